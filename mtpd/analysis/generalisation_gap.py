"""What a student's losses on training and validation images say, over seeds: arm against arm, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..utils import statistics
from ..utils.statistics import Interval, format_interval, format_number

# A measure of a student, all the better the lower it is, what that means, and digits of its unit.
MEASURES: dict[str, tuple[Callable[[dict], float | None], str, int]] = {
    'training loss': (lambda row: row['train']['loss'], 'Better fit', 3),
    'validation loss': (lambda row: row['val']['loss'], 'Better on other images', 3),
    'loss, validation less training': (
        lambda row: row['val']['loss'] - row['train']['loss'],
        'Smaller gap of the losses',
        3,
    ),
    'AP, training less validation': (lambda row: _ap_gap(row), 'Smaller gap of the APs', 1),
    'rise at the largest perturbation': (
        lambda row: loss_rise(row, max(row['sizes'])),
        'Flatter',
        3,
    ),
}


def _ap_gap(row: dict) -> float | None:
    train, val = row['train']['AP'], row['val']['AP']
    return None if train is None or val is None else train - val


def loss_rise(row: dict, size: float) -> float:
    """How much a perturbation of that relative size lifts the loss, mean over directions."""
    (still,) = (item['loss'] for item in row['flat'] if not item['size'])
    moved = [item['loss'] - still for item in row['flat'] if item['size'] == size]
    return sum(moved) / len(moved)


def measure_values(
    by_seed: Mapping[int, Sequence[dict]], name: str, measure: Callable
) -> dict[int, float]:
    """A measure of the student called `name`, by seed; where it is not known the seed is left out.

    Args:
        by_seed: `generalisation.measure_seeds`.
    """
    rows = {seed: row for seed, found in by_seed.items() for row in found if row['name'] == name}
    known = {seed: measure(row) for seed, row in rows.items()}
    return {seed: value for seed, value in known.items() if value is not None}


def gap_rows(by_seed: Mapping[int, Sequence[dict]]) -> list[dict]:
    """A row for each measure: its mean over the seeds for each student."""
    students = next(iter(by_seed.values()))
    rows = []
    for title, (measure, _, digits) in MEASURES.items():
        means = {
            row['label']: statistics.mean_interval(
                list(measure_values(by_seed, row['name'], measure).values())
            )
            for row in students
        }
        rows.append(
            {'mean over the seeds': title}
            | {k: v and format_number(v.value, digits) for k, v in means.items()}
        )
    return rows


def gap_differences(
    by_seed: Mapping[int, Sequence[dict]], control: str | None
) -> dict[str, dict[str, Interval]]:
    """{measure: {arm's label: its difference from the arm without a teacher, paired by seed}}, where it is known.

    Args:
        control: the name of that arm; None: there is none, and no difference.
    """
    arms = [row for row in next(iter(by_seed.values())) if row['name'] not in ('baseline', control)]
    found: dict[str, dict[str, Interval]] = {}
    for title, (measure, *_) in MEASURES.items():
        base = measure_values(by_seed, control or '', measure)
        gaps = {
            row['label']: statistics.paired_difference(
                measure_values(by_seed, row['name'], measure), base
            )
            for row in arms
        }
        found[title] = {label: gap for label, gap in gaps.items() if gap}
    return {title: gaps for title, gaps in found.items() if gaps}


def gap_difference_rows(by_seed: Mapping[int, Sequence[dict]], control: str | None) -> list[dict]:
    """`differences` as `mtpd.report.tables.markdown_table` shows them, with 95 % intervals; a star: the interval leaves out 0."""
    return [
        {'less the arm without a teacher': title}
        | {
            label: format_interval(gap, sign=True, digits=MEASURES[title][2], star=True)
            for label, gap in gaps.items()
        }
        for title, gaps in gap_differences(by_seed, control).items()
    ]


def gap_verdict(by_seed: Mapping[int, Sequence[dict]], control: str | None) -> list[str]:
    """Whether arms fit better, generalise better or end in flatter minima than the one without a teacher: a sentence a
    measure. See `differences`."""
    found = gap_differences(by_seed, control)
    if not found:
        return ['Without an arm that has no teacher there is nothing to compare with.']
    if all(gap.n < 2 for gaps in found.values() for gap in gaps.values()):
        return [
            "With one seed these are this run's numbers, and show no difference between arms.",
            'Run other seeds (`mtpd run RECIPE --seed 1`): they are read together.',
        ]
    text = []
    for title, gaps in found.items():
        better, worse = (
            [label for label, gap in gaps.items() if gap.sign == sign] for sign in (-1, 1)
        )
        said = f'shown for {", ".join(better)}' if better else 'not shown'
        said += f', the contrary for {", ".join(worse)}' if worse else ''
        text.append(f'{MEASURES[title][1]} than without a teacher: {said}.')
    return text
