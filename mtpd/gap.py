"""What a student's losses on training and validation images say, over seeds: arm against arm, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from . import intervals
from .intervals import Interval
from .numerals import bracketed, number

MEASURES: dict[str, Callable[[dict], float | None]] = {
    'training loss': lambda row: row['train']['loss'],
    'validation loss': lambda row: row['val']['loss'],
    'gap of the losses': lambda row: row['val']['loss'] - row['train']['loss'],
    'rise when perturbed': lambda row: rise(row, max(row['sizes'])),
}


def rise(row: dict, size: float) -> float:
    """How much a perturbation of that relative size lifts the loss, mean over directions."""
    (still,) = (item['loss'] for item in row['flat'] if not item['size'])
    moved = [item['loss'] - still for item in row['flat'] if item['size'] == size]
    return sum(moved) / len(moved)


def values(by_seed: Mapping[int, Sequence[dict]], name: str, measure: Callable) -> dict[int, float]:
    """A measure of the student called `name`, by seed; where it is not known the seed is left out.

    Args:
        by_seed: `generalisation.over_seeds`.
    """
    rows = {seed: row for seed, found in by_seed.items() for row in found if row['name'] == name}
    known = {seed: measure(row) for seed, row in rows.items()}
    return {seed: value for seed, value in known.items() if value is not None}


def table_rows(by_seed: Mapping[int, Sequence[dict]]) -> list[dict]:
    """A row for each student: its measures, mean over seeds."""
    rows = []
    for row in next(iter(by_seed.values())):
        line: dict = {'student': row['label'], 'seeds': 0}
        for title, measure in MEASURES.items():
            known = values(by_seed, row['name'], measure)
            line['seeds'] = max(line['seeds'], len(known))
            mean = intervals.mean(list(known.values()))
            line[title] = mean and number(mean.value, 3)
        rows.append(line)
    return rows


def differences(
    by_seed: Mapping[int, Sequence[dict]], control: str | None
) -> dict[str, dict[str, Interval | None]]:
    """{arm's label: {measure: its difference from the arm without a teacher, paired by seed}}.

    Args:
        control: the name of that arm; None: there is none, and no difference.
    """
    arms = [row for row in next(iter(by_seed.values())) if row['name'] not in ('baseline', control)]
    bases = {title: values(by_seed, control or '', MEASURES[title]) for title in MEASURES}
    found = {
        row['label']: {
            title: intervals.paired(values(by_seed, row['name'], MEASURES[title]), base)
            for title, base in bases.items()
        }
        for row in arms
    }
    return found if any(bases.values()) else {}


def difference_rows(by_seed: Mapping[int, Sequence[dict]], control: str | None) -> list[dict]:
    """`differences` as `mtpd.tables.table` shows them, with 95 % intervals; a star: a difference is shown."""
    return [
        {'arm, less no teacher': label}
        | {
            title: bracketed(gap, sign=True, digits=3) + ' *' * bool(gap.sign) if gap else None
            for title, gap in gaps.items()
        }
        for label, gaps in differences(by_seed, control).items()
    ]


def conclude(by_seed: Mapping[int, Sequence[dict]], control: str | None) -> list[str]:
    """Whether arms fit better, generalise better or end in flatter minima than the one without a teacher: a sentence a
    measure. See `differences`."""
    found = differences(by_seed, control)
    if not found:
        return ['Without an arm that has no teacher there is nothing to compare with.']
    if all(gap is None or gap.n < 2 for gaps in found.values() for gap in gaps.values()):
        return [
            "With one seed these are this run's numbers, and show no difference between arms.",
            'Run other seeds (`mtpd run RECIPE --seed 1`): they are read together.',
        ]
    text = []
    for title in MEASURES:
        signs = {label: gaps[title].sign for label, gaps in found.items() if gaps[title]}
        parts = [
            f'{word} for {", ".join(label for label in signs if signs[label] == sign)}'
            for sign, word in ((-1, 'lower'), (1, 'higher'))
            if sign in signs.values()
        ]
        none = 'no difference is shown'
        parts += [f'for the others {none}' if parts else none] * (0 in signs.values())
        text.append(f'{title[0].upper()}{title[1:]} against no teacher: {"; ".join(parts)}.')
    return text
