"""The sequence of teachers that adaptation costs suggest.

Both searches are this kit's own definitions, in the spirit of the paper's selection.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from ..errors import MtpdError


def choose_sequence(
    costs: dict,
    ap: dict[str, float],
    student: str = 'student',
    teachers: list[str] | None = None,
    max_length: int = 2,
    method: str = 'backward_greedy',
    power: float = 2.0,
    min_gain: float | None = None,
) -> dict:
    """The sequence of teachers that the costs suggest; it ends with the teacher of highest AP.

    Args:
        costs: from `adaptation_costs`.
        ap: validation AP of each teacher, 0..1.
        max_length: most teachers in the sequence.
        method: 'backward_greedy' puts teachers before the last one while one lies between student
            and head of the sequence; 'shortest_path' minimises the sum of cost ** power exactly.
        min_gain: the AP, 0..1, by which each teacher must exceed the one before it. None: AP decides on the last only.

    Returns:
        A dict: ``sequence``: names, ``method``, ``pool``: names, ``reasons``: a sentence per step, ``total``: the sum
        of cost ** power, ``support``: the share of the bootstrap replicates that lead to this sequence (None without
        replicates), ``ties``: [sequence, share] of the others that more than one in twenty lead to.

    Raises:
        MtpdError: no teacher, an unknown method, or a teacher without AP or cost.
    """
    teachers = list(teachers or [name for name in costs['detectors'] if name != student])
    problems = [] if teachers else ['the pool of teachers is empty']
    problems += [
        f'{name} has no AP (`mtpd eval RECIPE --detector {name} --checkpoint FILE` measures it, on a validation split '
        'with objects)'
        for name in teachers
        if ap.get(name) is None
    ]
    problems += [
        f'{name} has no adaptation cost (`mtpd order RECIPE` measures it)'
        for name in teachers
        if name not in costs['detectors']
    ]
    if problems:
        raise MtpdError(f'no sequence can be chosen: {"; ".join(problems)}.')
    if method not in SEARCH_METHODS:
        raise MtpdError(f'unknown method {method!r}: there are {", ".join(SEARCH_METHODS)}.')
    index = {name: i for i, name in enumerate(costs['detectors'])}
    best = max(sorted(teachers), key=lambda name: ap[name])
    others = sorted(set(teachers) - {best})

    def search(table: np.ndarray) -> tuple[list[str], list[str], float]:
        def cost(a: str, b: str) -> float:
            return float(table[index[a], index[b]])

        def may_precede(a: str, b: str) -> bool:
            return min_gain is None or ap[b] - ap[a] >= min_gain

        sequence, reasons = SEARCH_METHODS[method](
            student=student,
            last=best,
            others=others,
            cost=cost,
            may_precede=may_precede,
            max_length=max_length,
            power=power,
        )
        hops = zip([student, *sequence], sequence, strict=False)
        return sequence, reasons, sum(cost(a, b) ** power for a, b in hops)

    sequence, reasons, total = search(np.asarray(costs['cost']))
    reasons.insert(
        0, f'{best} comes last: it has the highest AP of the pool, {100 * ap[best]:.1f}.'
    )
    if not others:
        reasons = [f'{best} is the only teacher of the pool: direct distillation.']
    elif len(sequence) == 1:
        reasons.append('So it is direct distillation.')
    drawn = [tuple(search(np.asarray(table))[0]) for table in costs.get('replicates', ())]
    shares = {names: times / len(drawn) for names, times in Counter(drawn).most_common()}
    return {
        'sequence': sequence,
        'method': method,
        'pool': sorted(teachers),
        'reasons': reasons,
        'total': total,
        'support': shares.pop(tuple(sequence), 0.0) if drawn else None,
        'ties': [[list(names), share] for names, share in shares.items() if share > 0.05],
    }


def _backward_greedy(*, student, last, others, cost, may_precede, max_length, power):
    """The sequence that ends with `last`, and a sentence for each step."""
    sequence, reasons, pool = [last], [], list(others)
    while len(sequence) < max_length:
        head = sequence[0]
        near = [t for t in pool if cost(student, t) < cost(student, head) and may_precede(t, head)]
        if not near:
            weaker = any(cost(student, t) < cost(student, head) for t in pool)
            gain = ' and weaker by order.min_gain' if weaker else ''
            reasons.append(f'No teacher left is nearer to the student than {head}{gain}.')
            break
        chosen = min(near, key=lambda t: cost(t, head))
        reasons.append(
            f'{chosen} goes before {head}: cost {cost(student, chosen):.3f} from the student '
            f'(against {cost(student, head):.3f}) and {cost(chosen, head):.3f} on to {head}.'
        )
        sequence.insert(0, chosen)
        pool.remove(chosen)
    return sequence, reasons


def _shortest_path(*, student, last, others, cost, may_precede, max_length, power):
    """The sequence that ends with `last`, and a sentence about it."""
    # Bellman-Ford by number of hops; a detector may appear once, which positive costs ensure.
    paths = {t: (cost(student, t) ** power, [t]) for t in [*others, last]}
    shortest = paths[last]
    for _ in range(max_length - 1):
        longer = {}
        for target in [*others, last]:
            options = [
                (total + cost(path[-1], target) ** power, [*path, target])
                for total, path in paths.values()
                if target not in path and last not in path and may_precede(path[-1], target)
            ]
            if options:
                longer[target] = min(options)
        paths = longer
        if last in paths:
            shortest = min(shortest, paths[last])
    total, sequence = shortest
    return sequence, [
        f'The path {" → ".join([student, *sequence])} has the least sum of cost^{power:g}, {total:.3f}.'
    ]


SEARCH_METHODS = {'backward_greedy': _backward_greedy, 'shortest_path': _shortest_path}
