"""What a student's losses on training and validation images say, over seeds: arm against arm, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from . import intervals
from .findings import number
from .intervals import Interval

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
    """A row for each student: its measures, mean over seeds with its 95 % interval."""
    rows = []
    for row in next(iter(by_seed.values())):
        line: dict = {'student': row['label'], 'seeds': 0}
        for title, measure in MEASURES.items():
            known = values(by_seed, row['name'], measure)
            line['seeds'] = max(line['seeds'], len(known))
            line[title] = _text(intervals.mean(list(known.values())))
        rows.append(line)
    return rows


def conclude(by_seed: Mapping[int, Sequence[dict]], control: str | None) -> list[str]:
    """Whether arms fit better, generalise better or end in flatter minima than the one without a teacher, seed by seed.

    Args:
        control: the name of that arm; None: there is none, and nothing to say.
    """
    arms = [row for row in next(iter(by_seed.values())) if row['name'] not in ('baseline', control)]
    known = {seed for seed, rows in by_seed.items() if any(row['name'] == control for row in rows)}
    if not known or not arms:
        return ['Without an arm that has no teacher there is nothing to compare with.']
    if len(known) < 2:
        return [
            "With one seed these are this run's numbers, and show no difference between arms.",
            'Run other seeds (`mtpd run RECIPE --seed 1`): they are read together.',
        ]
    text = []
    for title, measure in MEASURES.items():
        base = values(by_seed, control, measure)
        found = {
            row['label']: intervals.paired(values(by_seed, row['name'], measure), base)
            for row in arms
        }
        parts = [f'{label} {_text(gap, sign=True)}' for label, gap in found.items() if gap]
        shown = [label for label, gap in found.items() if gap and gap.sign]
        verdict = f'a difference is shown for {", ".join(shown)}' if shown else 'none is shown'
        text.append(
            f'{title[0].upper()}{title[1:]} against no teacher: {"; ".join(parts)}: {verdict}.'
        )
    return text


def _text(found: Interval | None, sign: bool = False) -> str | None:
    if found is None:
        return None
    value = number(found.value, 3)
    value = f'+{value}' if sign and not value.startswith('−') else value
    return (
        value if found.low is None else f'{value} [{number(found.low, 3)}, {number(found.high, 3)}]'
    )
