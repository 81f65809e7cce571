"""What a student's losses on training and validation images say, over seeds: arm against arm, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ..utils import statistics
from ..utils.statistics import Interval, format_interval, format_number


def _ap_gap(row: dict) -> float | None:
    train, val = row['train']['AP'], row['val']['AP']
    return None if train is None or val is None else train - val


def loss_rise(row: dict, size: float) -> float:
    """How much a perturbation of that relative size lifts the loss, mean over directions."""
    rises = loss_rises(row, size)
    return sum(rises) / len(rises)


def loss_rises(row: dict, size: float) -> list[float]:
    """How much perturbations of that relative size lift the loss, for each direction."""
    (unperturbed,) = (item['loss'] for item in row['flat'] if not item['size'])
    return [item['loss'] - unperturbed for item in row['flat'] if item['size'] == size]


class Measure(NamedTuple):
    """A measure of a student; lower is better.

    Attributes:
        value: its value from a row of `generalisation.measure_run`, None where it is not known.
        better: what a lower value means.
        digits: decimals of its unit.
    """

    value: Callable[[dict], float | None]
    better: str
    digits: int


MEASURES = {
    'training loss': Measure(lambda row: row['train']['loss'], 'Better fit', 3),
    'validation loss': Measure(lambda row: row['val']['loss'], 'Better on other images', 3),
    'loss, validation less training': Measure(
        lambda row: row['val']['loss'] - row['train']['loss'], 'Smaller gap of the losses', 3
    ),
    'AP, training less validation': Measure(_ap_gap, 'Smaller gap of the APs', 1),
    'rise at the largest perturbation': Measure(
        lambda row: loss_rise(row, max(row['sizes'])), 'Flatter', 3
    ),
}


def measure_values(
    by_seed: Mapping[int, Sequence[dict]], name: str, measure: Callable
) -> dict[int, float]:
    """A measure of the student called `name`, by seed; where it is not known the seed is left out.

    Args:
        by_seed: `generalisation.measure_seeds`.
    """
    values = {
        seed: measure(row) for seed, rows in by_seed.items() for row in rows if row['name'] == name
    }
    return {seed: value for seed, value in values.items() if value is not None}


def gap_rows(by_seed: Mapping[int, Sequence[dict]]) -> list[dict]:
    """A row for each measure: its mean over the seeds for each student."""
    students = next(iter(by_seed.values()))
    rows = []
    for title, measure in MEASURES.items():
        means = {
            row['label']: statistics.mean_interval(
                list(measure_values(by_seed, row['name'], measure.value).values())
            )
            for row in students
        }
        rows.append(
            {'mean over the seeds': title}
            | {k: v and format_number(v.value, measure.digits) for k, v in means.items()}
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
    differences: dict[str, dict[str, Interval]] = {}
    for title, measure in MEASURES.items():
        base = measure_values(by_seed, control or '', measure.value)
        gaps = {
            row['label']: statistics.paired_difference(
                measure_values(by_seed, row['name'], measure.value), base
            )
            for row in arms
        }
        differences[title] = {label: gap for label, gap in gaps.items() if gap}
    return {title: gaps for title, gaps in differences.items() if gaps}


def gap_difference_rows(by_seed: Mapping[int, Sequence[dict]], control: str | None) -> list[dict]:
    """`gap_differences` as `mtpd.report.tables.markdown_table` shows them, with 95 % intervals.

    A star: the interval leaves out 0.
    """
    return [
        {'less the arm without a teacher': title}
        | {
            label: format_interval(gap, sign=True, digits=MEASURES[title].digits, star=True)
            for label, gap in gaps.items()
        }
        for title, gaps in gap_differences(by_seed, control).items()
    ]


def gap_verdict(by_seed: Mapping[int, Sequence[dict]], control: str | None) -> list[str]:
    """Whether arms fit better, generalise better or end in flatter minima than the one without a teacher: a sentence a
    measure. See `gap_differences`."""
    differences = gap_differences(by_seed, control)
    if not differences:
        return ['The run has no arm without a teacher, so there is nothing to compare with.']
    if all(gap.n < 2 for gaps in differences.values() for gap in gaps.values()):
        return [
            'These are the numbers of one seed: they show no difference between arms.',
            'Run other seeds (`mtpd run RECIPE --seed 1`): they are read together.',
        ]
    sentences = []
    for title, gaps in differences.items():
        better = [label for label, gap in gaps.items() if gap.sign < 0]
        worse = [label for label, gap in gaps.items() if gap.sign > 0]
        text = f'shown for {", ".join(better)}' if better else 'not shown'
        if worse:
            text += f', the opposite for {", ".join(worse)}'
        sentences.append(f'{MEASURES[title].better} than without a teacher: {text}.')
    return sentences
