"""Which teachers, in which order: adaptation costs between detectors, and the sequence they suggest.

The costs and both searches are this kit's own definitions, in the spirit of the paper's selection.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from .errors import MtpdError
from .files import write_json
from .recipe import Recipe

RIDGE = 1e-6  # of the mean feature variance: makes rank-deficient features safe


class Moments:
    """Sums over pixels from which the best linear map between any two detectors follows.

    Holds, for the channels of all detectors side by side and a constant 1, the (C+1, C+1) matrix of
    second moments in float64: its size does not depend on the number of images.
    """

    def __init__(self, channels: list[int]):
        edges = np.cumsum([0, *channels])
        self.parts = [slice(a, b) for a, b in pairwise(edges)]
        self.sums = np.zeros((edges[-1] + 1, edges[-1] + 1))

    def add(self, features: list[np.ndarray]) -> None:
        """Features of the same images, one (N, C_i, H, W) a detector."""
        rows = [np.moveaxis(f, 1, 0).reshape(f.shape[1], -1) for f in features]
        stacked = np.concatenate([*rows, np.ones((1, rows[0].shape[1]))]).astype(np.float64)
        self.sums += stacked @ stacked.T

    def linear_map(self, a: int, b: int) -> np.ndarray:
        """Weights and bias (C_a + 1, C_b) of the map a -> b with the least squared residual."""
        x = np.r_[self.parts[a], -1]
        gram = self.sums[np.ix_(x, x)].copy()
        size = len(x) - 1
        gram[np.arange(size), np.arange(size)] += RIDGE * np.trace(gram[:size, :size]) / size
        return np.linalg.lstsq(gram, self.sums[np.ix_(x, np.r_[self.parts[b]])], rcond=None)[0]

    def unexplained(self, a: int, b: int, weights: np.ndarray) -> float:
        """The share of b's variance that `weights` applied to a leave unexplained."""
        x, y = np.r_[self.parts[a], -1], np.r_[self.parts[b]]
        power = np.trace(self.sums[np.ix_(y, y)])
        residual = (
            power
            - 2 * np.sum(weights * self.sums[np.ix_(x, y)])
            + np.sum(weights * (self.sums[np.ix_(x, x)] @ weights))
        )
        variance = power - np.sum(self.sums[y, -1] ** 2) / self.sums[-1, -1]
        return float(max(residual, 0.0) / variance) if variance > 0 else 0.0


def costs_from_features(batches) -> tuple[np.ndarray, np.ndarray]:
    """Adaptation costs from an iterable of {detector: (features per level)}, NumPy (N, C, H, W).

    Images with an even number fit the maps, those with an odd number measure them.

    Returns:
        Costs per level (L, D, D) and their mean (D, D); row: source, column: target.
    """
    halves: list | None = None
    seen = 0
    for features in batches:
        detectors = list(features.values())
        levels = list(zip(*detectors, strict=True))
        if halves is None:
            halves = [[Moments([f.shape[1] for f in level]) for level in levels] for _ in range(2)]
        odd = (np.arange(len(levels[0][0])) + seen) % 2
        for half in range(2):
            for moments, level in zip(halves[half], levels, strict=True):
                moments.add([feature[odd == half] for feature in level])
        seen += len(odd)
    if halves is None or seen < 2:
        raise MtpdError('adaptation costs need at least 2 images: raise the number of images.')
    fit, held_out = halves
    count = range(len(fit[0].parts))
    per_level = np.array(
        [
            [[test.unexplained(a, b, train.linear_map(a, b)) for b in count] for a in count]
            for train, test in zip(fit, held_out, strict=True)
        ]
    )
    return per_level, per_level.mean(0)


def adaptation_costs(recipe: Recipe, work_dir: str | Path | None = None, images: int = 256) -> dict:
    """How far each detector's neck features are from each other's, without any training.

    cost(A -> B) is the share of the variance of B's features that the best linear map (a 1 x 1
    convolution with bias) from A's leaves unexplained, on images that did not fit the map; the mean
    over FPN levels. About 0: the same up to a linear map; about 1: nothing in common.

    Returns:
        ``{'detectors': names, 'cost': (D, D) list, row source and column target, 'levels': the same
        per level, 'num_images'}``; also written to ``order/costs.json``.

    Raises:
        RecipeError, MtpdError: a detector's checkpoint is missing or does not fit.
    """
    from .features import batches, load_all, neck_features
    from .train import detector_checkpoint

    models = load_all(
        recipe,
        {name: (name, detector_checkpoint(recipe, name, work_dir)) for name in recipe.detectors},
    )
    stream = (
        {
            name: [feature.numpy() for feature in neck_features(model, pixels)]
            for name, model in models.items()
        }
        for pixels, _ in batches(recipe, images)
    )
    levels, cost = costs_from_features(stream)
    found = {
        'detectors': list(models),
        'cost': cost.tolist(),
        'levels': {str(i): level.tolist() for i, level in enumerate(levels)},
        'num_images': min(images, recipe.cfg.data.scenes.val)
        if recipe.cfg.data.root is None
        else images,
    }
    write_json(recipe.run_dir(work_dir) / 'order' / 'costs.json', found)
    return found


def choose_sequence(
    costs: dict,
    ap: dict[str, float],
    student: str = 'student',
    teachers: list[str] | None = None,
    max_length: int = 2,
    method: str = 'backward_greedy',
    power: float = 2.0,
) -> dict:
    """The sequence of teachers that the costs suggest; it ends with the teacher of highest AP.

    Args:
        costs: from `adaptation_costs`.
        ap: validation AP of each teacher.
        method: 'backward_greedy' puts teachers before the last one while one lies between student
            and head of the sequence; 'shortest_path' minimises the sum of cost ** power exactly.

    Returns:
        ``{'sequence': names, 'method', 'reasons': a sentence per step}``.

    Raises:
        MtpdError: no teacher, an unknown method, or a teacher without AP or cost.
    """
    teachers = list(teachers or [name for name in costs['detectors'] if name != student])
    missing = [t for t in teachers if ap.get(t) is None or t not in costs['detectors']]
    if not teachers or missing:
        raise MtpdError(
            f'no sequence can be chosen: {", ".join(missing) + " lack AP or cost" if missing else "the pool is empty"}. '
            'Evaluate every teacher of the pool first.'
        )
    searches = {'backward_greedy': _greedy, 'shortest_path': _shortest}
    if method not in searches:
        raise MtpdError(f'unknown method {method!r}: there are {", ".join(searches)}.')
    index = {name: i for i, name in enumerate(costs['detectors'])}
    table = np.asarray(costs['cost'])

    def cost(a: str, b: str) -> float:
        return float(table[index[a], index[b]])

    best = max(sorted(teachers), key=lambda name: ap[name])
    others = sorted(set(teachers) - {best})
    sequence, reasons = searches[method](student, best, others, cost, max_length, power)
    first = f'{best} comes last: it has the highest AP of the pool, {100 * ap[best]:.1f}.'
    return {'sequence': sequence, 'method': method, 'reasons': [first, *reasons]}


def _greedy(student, best, others, cost, max_length, power):
    sequence, reasons, pool = [best], [], list(others)
    while len(sequence) < max_length:
        head = sequence[0]
        near = [t for t in pool if cost(student, t) < cost(student, head)]
        if not near:
            reasons.append(f'No teacher left is nearer to the student than {head}.')
            break
        chosen = min(near, key=lambda t: cost(t, head))
        reasons.append(
            f'{chosen} goes before {head}: cost {cost(student, chosen):.3f} from the student '
            f'(against {cost(student, head):.3f}) and {cost(chosen, head):.3f} on to {head}.'
        )
        sequence.insert(0, chosen)
        pool.remove(chosen)
    return sequence, reasons


def _shortest(student, best, others, cost, max_length, power):
    # Bellman-Ford by number of hops; a detector may appear once, which positive costs ensure.
    paths = {t: (cost(student, t) ** power, [t]) for t in [*others, best]}
    shortest = paths[best]
    for _ in range(max_length - 1):
        longer = {}
        for target in [*others, best]:
            options = [
                (total + cost(path[-1], target) ** power, [*path, target])
                for total, path in paths.values()
                if target not in path and best not in path
            ]
            if options:
                longer[target] = min(options)
        paths = longer
        if best in paths:
            shortest = min(shortest, paths[best])
    total, sequence = shortest
    return sequence, [
        f'The path {" → ".join([student, *sequence])} has the least sum of cost^{power:g}, {total:.3f}.'
    ]
