"""AP versus the order of teachers over seeds, with intervals, and what adaptation costs foretold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..utils.intervals import Interval
from ..utils.numerals import signed
from .figure import COLOURS, FAINT, INK, MARKERS, TEXT, Figure, dress, empty, new

CHOSEN, OTHER, CONTROL = COLOURS[2], COLOURS[1], COLOURS[0]


def ap_versus_order(rows: Sequence[Mapping], baseline: float | None = None) -> Figure:
    """AP by arm: a point per seed, mean and 95 % interval; beside it the paired difference from direct distillation.

    Args:
        rows: `Study.table()`.
        baseline: mean AP of the baseline, in points.
    """
    rows = [row for row in rows if row['mean'] is not None]
    if not rows:
        return empty('No arm has been evaluated yet.')
    compared = any(row['above_direct'] for row in rows)
    key, other = ('above_direct', 'direct, strongest teacher')
    if not compared:
        key, other = ('above_control', 'no teacher')
    paired = any(row[key] for row in rows)
    fig = new(9.6 if paired else 7, 1.6 + 0.36 * len(rows))
    axes = fig.subplots(
        1, 1 + paired, sharey=True, squeeze=False, width_ratios=[3, 2][: 1 + paired]
    )[0]
    seeds = sorted({seed for row in rows for seed in row['ap']})
    left = dress(axes[0], xlabel='box AP on the validation set (points)', grid='x')
    for place, row in enumerate(reversed(rows)):
        colour = _colour(row)
        for seed, ap in row['ap'].items():
            marker = MARKERS[seeds.index(seed) % len(MARKERS)]
            left.plot(
                ap, place + 0.17, marker, color=colour, markersize=4.5, alpha=0.75, linestyle='none'
            )
        _whisker(left, row['mean'], place - 0.12, colour)
        if paired and row[key]:
            _whisker(axes[1], row[key], place, colour)
        elif paired:
            axes[1].text(0, place, '  reference', va='center', fontsize=TEXT - 1.5, color=INK)
    names = [('★ ' if row['chosen'] else '') + row['label'] for row in reversed(rows)]
    left.set_yticks(range(len(rows)), names)
    left.set_ylim(-0.7, len(rows) - 0.3)
    if baseline is not None:
        left.axvline(baseline, color=FAINT, linewidth=1, zorder=1)
        left.annotate(
            f'baseline {baseline:.1f}', (baseline, 1.01), xycoords=left.get_xaxis_transform(),
            ha='center', fontsize=TEXT - 1.5, color=INK,
        )  # fmt: skip
    if paired:
        dress(axes[1], xlabel=f'difference from "{other}",\npaired by seed (AP points)', grid='x')
        axes[1].axvline(0, color=INK, linewidth=1, zorder=1)
        axes[1].xaxis.set_major_locator(MaxNLocator(5))
        axes[1].tick_params(axis='y', length=0)
    counts = {len(row['ap']) for row in rows}
    seeds_text = f'{min(counts)}' if len(counts) == 1 else f'{min(counts)} to {max(counts)}'
    note = 'One seed: a single run, without an interval.'
    if seeds_text != '1':
        note = f'Small: {seeds_text} seeds, a marker each. Large: mean and 95 % t interval.'
    note += ' ★, blue: suggested by adaptation cost.' if any(row['chosen'] for row in rows) else ''
    fig.suptitle(note, x=0.01, ha='left', fontsize=TEXT - 0.5, color=INK)
    said = [f'{row["label"]} {_text(row["mean"])}' for row in rows]
    over = 'of one seed' if seeds_text == '1' else f'mean and 95 % interval over {seeds_text} seeds'
    fig.alt = f'Box AP by arm, {over}, best first: {"; ".join(said)}.'
    if paired:
        said = [f'{row["label"]} {_text(row[key], sign=True)}' for row in rows if row[key]]
        fig.alt += f' Difference from {other}: {"; ".join(said)}.'
    return fig


def predicted_and_measured(rows: Sequence[Mapping], correlation: Interval | None = None) -> Figure:
    """Mean AP of each sequence against the cost of its path, with 95 % intervals over seeds.

    Args:
        rows: `Study.table()`.
        correlation: of the ranks, as `Study.correlation`.
    """
    rows = [row for row in rows if row['path_cost'] is not None]
    if not rows:
        return empty(
            'No path cost is known: `mtpd order`, or notebook 03, measures adaptation costs.'
        )
    fig = new(8, 4.4)
    ax = dress(
        fig.subplots(),
        'sum of squared adaptation costs along the path',
        'box AP, mean of the seeds (points)',
        grid='both',
    )
    for place, row in enumerate(sorted(rows, key=lambda row: row['path_cost'])):
        shape, colour = MARKERS[(len(row['teachers']) - 1) % len(MARKERS)], _colour(row)
        mean = row['mean']
        if mean.low is not None:
            ax.plot(
                [row['path_cost']] * 2,
                [mean.low, mean.high],
                color=colour,
                linewidth=1.2,
                alpha=0.5,
            )
        ax.plot(
            row['path_cost'], mean.value, shape, color=colour, markersize=8, markeredgecolor='white'
        )
        ax.annotate(
            ('★ ' if row['chosen'] else '') + row['label'], (row['path_cost'], mean.value), (7, -11 if place % 2 else 5),
            textcoords='offset points', fontsize=TEXT - 2, color=INK,
        )  # fmt: skip
    lengths = sorted({len(row['teachers']) for row in rows})
    for length in lengths:
        name = f'{length} teacher{"s" if length > 1 else ""}'
        ax.plot([], [], MARKERS[(length - 1) % len(MARKERS)], color=FAINT, label=name)
    ax.legend(frameon=False, fontsize=TEXT - 1, loc='best')
    ax.margins(x=0.22, y=0.1)
    low, high = ax.get_ylim()
    if high - low < 1:  # less than a point of AP is not to look like much
        ax.set_ylim((low + high) / 2 - 0.5, (low + high) / 2 + 0.5)
    said = [
        f'{row["label"]} cost {row["path_cost"]:.2f}, AP {row["mean"].value:.1f}' for row in rows
    ]
    fig.alt = f'Cost of the path against mean AP: {"; ".join(said)}.'
    if correlation:
        text = f'rank correlation {correlation.value:.2f} [{correlation.low:.2f}, {correlation.high:.2f}]'
        ax.set_title(text, fontsize=TEXT, color=INK, loc='left')
        fig.alt += f' Spearman {text}.'
    return fig


def _colour(row: Mapping) -> str:
    if not row['teachers']:
        return CONTROL
    return CHOSEN if row['chosen'] else OTHER


def _whisker(ax: Axes, found: Interval, place: float, colour: str) -> None:
    if found.low is not None:
        ax.plot([found.low, found.high], [place, place], color=colour, linewidth=2.2, zorder=2)
    ax.plot(found.value, place, 'D', color=colour, markersize=7, markeredgecolor='white', zorder=3)


def _text(found: Interval, sign: bool = False) -> str:
    value = signed(found.value) if sign else f'{found.value:.1f}'
    return value if found.low is None else f'{value} ({found.low:.1f} to {found.high:.1f})'
