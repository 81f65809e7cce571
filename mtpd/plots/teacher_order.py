"""AP versus the order of teachers over seeds, with intervals, and path costs against AP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..utils.statistics import Interval, format_signed
from .figure import (
    COLOURS,
    FAINT,
    INK,
    MARKERS,
    TEXT,
    Figure,
    empty,
    new_figure,
    series_style,
    spread_apart,
    style_axes,
)

CHOSEN_COLOUR, OTHER_COLOUR, CONTROL_COLOUR = COLOURS[2], COLOURS[1], COLOURS[0]


def ap_versus_order(rows: Sequence[Mapping], baseline: float | None = None) -> Figure:
    """AP by arm: a point per seed, mean and 95 % interval; beside it the paired difference from the strongest teacher alone.

    Args:
        rows: `Study.table()`.
        baseline: mean AP of the baseline, in points.
    """
    rows = [row for row in rows if row['mean'] is not None]
    if not rows:
        return empty('No arm has been evaluated yet.')
    compared = any(row['above_best_teacher'] for row in rows)
    key, other = 'above_best_teacher', 'strongest teacher alone'
    if not compared:
        key, other = 'above_control', 'no teacher'
    paired = any(row[key] for row in rows)
    fig = new_figure(9.6 if paired else 7, 1.6 + 0.36 * len(rows))
    axes = fig.subplots(
        1, 1 + paired, sharey=True, squeeze=False, width_ratios=[3, 2][: 1 + paired]
    )[0]
    seeds = sorted({seed for row in rows for seed in row['ap']})
    left = style_axes(axes[0], xlabel='box AP on the validation set (points)', grid='x')
    for place, row in enumerate(reversed(rows)):
        colour = _arm_colour(row)
        for seed, ap in row['ap'].items():
            marker = MARKERS[seeds.index(seed) % len(MARKERS)]
            left.plot(
                ap, place + 0.17, marker, color=colour, markersize=4.5, alpha=0.75, linestyle='none'
            )
        _draw_interval(left, row['mean'], place - 0.12, colour)
        if paired and row[key]:
            _draw_interval(axes[1], row[key], place, colour)
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
        style_axes(
            axes[1], xlabel=f'difference from "{other}",\npaired by seed (AP points)', grid='x'
        )
        axes[1].axvline(0, color=INK, linewidth=1, zorder=1)
        axes[1].xaxis.set_major_locator(MaxNLocator(5))
        axes[1].tick_params(axis='y', length=0)
    counts = {len(row['ap']) for row in rows}
    seeds_text = f'{min(counts)}' if len(counts) == 1 else f'{min(counts)} to {max(counts)}'
    note = 'One seed: a single run, without an interval.'
    if seeds_text != '1':
        note = f'Small: {seeds_text} seeds, a marker each. Large: mean and 95 % t interval.'
    if any(row['chosen'] for row in rows):
        note += ' ★, blue: suggested by adaptation cost.'
    fig.suptitle(note, x=0.01, ha='left', fontsize=TEXT - 0.5, color=INK)
    parts = [f'{row["label"]} {_interval_text(row["mean"])}' for row in rows]
    over = 'of one seed' if seeds_text == '1' else f'mean and 95 % interval over {seeds_text} seeds'
    fig.alt = f'Box AP by arm, {over}, best first: {"; ".join(parts)}.'
    if paired:
        parts = [
            f'{row["label"]} {_interval_text(row[key], sign=True)}' for row in rows if row[key]
        ]
        fig.alt += f' Difference from {other}: {"; ".join(parts)}.'
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
    fig = new_figure(8, 4.4)
    ax = style_axes(
        fig.subplots(),
        'sum of squared adaptation costs along the path',
        'box AP, mean of the seeds (points)',
        grid='both',
    )
    for place, row in enumerate(sorted(rows, key=lambda row: row['path_cost'])):
        shape, colour = MARKERS[(len(row['teachers']) - 1) % len(MARKERS)], _arm_colour(row)
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
    parts = [
        f'{row["label"]} cost {row["path_cost"]:.2f}, AP {row["mean"].value:.1f}' for row in rows
    ]
    fig.alt = f'Cost of the path against mean AP: {"; ".join(parts)}.'
    if correlation:
        text = f'rank correlation {correlation.value:.2f} [{correlation.low:.2f}, {correlation.high:.2f}]'
        ax.set_title(text, fontsize=TEXT, color=INK, loc='left')
        fig.alt += f' Spearman {text}.'
    return fig


def gain_by_regime(rows: Sequence[Mapping]) -> Figure:
    """What each order of teachers brings over training on without one, by regime index: a point for each seed, lines by means.

    Args:
        rows: of each sweep ``label``; ``index``, the regime index; ``gains``, AP points by order's label and seed, as
            ``{'T2 alone': {0: 4.6}}``.
    """
    rows = sorted((row for row in rows if row['gains']), key=lambda row: row['index'])
    if not rows:
        return empty('No sweep has a regime index yet.')
    fig = new_figure(7.6, 4.2)
    ax = style_axes(
        fig.subplots(),
        xlabel='regime index: gain of training on without a teacher / what distillation adds to it',
        ylabel='AP above no teacher (points)',
        grid='y',
    )
    labels, parts = list(dict.fromkeys(label for row in rows for label in row['gains'])), []
    for number, label in enumerate(labels):
        style = series_style(number + 1)
        points = [(row['index'], row['gains'][label]) for row in rows if label in row['gains']]
        for index, gains in points:
            for gain in gains.values():
                ax.plot(index, gain, style['marker'], color=style['color'], markersize=4, alpha=0.5)
        means = [(index, sum(gains.values()) / len(gains)) for index, gains in points]
        ax.plot(*zip(*means, strict=True), **style, markersize=7, label=label)
        texts = (f'{format_signed(mean)} at {index:.2g}' for index, mean in means)
        parts.append(f'{label} {", ".join(texts)}')
    ax.set_xscale('symlog', linthresh=0.1)  # an index may be 0 or, where training on harms, less
    ticks = [-1, -0.1, 0, 0.1, 0.2, 0.5, 1, 2, 5, 10]
    ax.set_xticks(ticks, [f'{tick:g}'.replace('-', '−') for tick in ticks])
    ax.set_xticks([], minor=True)
    least = rows[0]['index']
    ax.set_xlim(
        least / 1.6 if least > 0.1 else min(least - 0.05, 0), max(rows[-1]['index'], 1) * 1.4
    )
    ax.axhline(0, color=INK, linewidth=1, zorder=1)
    ax.axvline(1, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for number, row in enumerate(rows):
        ax.annotate(
            row['label'], (row['index'], 1.01 + 0.05 * (number % 2)), xycoords=ax.get_xaxis_transform(),
            ha='center', fontsize=TEXT - 1.5, color=INK,
        )  # fmt: skip
    ax.legend(fontsize=TEXT - 1, frameon=False)
    fig.alt = (
        "AP above training on without a teacher, by regime index (1 and more: orders can't be judged): "
        f'{"; ".join(parts)}.'
    )
    return fig


def _arm_colour(row: Mapping) -> str:
    if not row['teachers']:
        return CONTROL_COLOUR
    return CHOSEN_COLOUR if row['chosen'] else OTHER_COLOUR


def _draw_interval(ax: Axes, interval: Interval, place: float, colour: str) -> None:
    if interval.low is not None:
        ax.plot(
            [interval.low, interval.high], [place, place], color=colour, linewidth=2.2, zorder=2
        )
    ax.plot(
        interval.value, place, 'D', color=colour, markersize=7, markeredgecolor='white', zorder=3
    )


def _interval_text(interval: Interval, sign: bool = False) -> str:
    value = format_signed(interval.value) if sign else f'{interval.value:.1f}'
    return value if interval.low is None else f'{value} ({interval.low:.1f} to {interval.high:.1f})'


# Adaptation costs, and the sequence that they suggest.

CostTable = Sequence[Sequence[float | None]]


def cost_matrix(
    names: Sequence[str], cost: CostTable, interval: tuple[CostTable, CostTable] | None = None
) -> Figure:
    """Adaptation cost from each detector (row) to each other (column), 0 to about 1.

    Args:
        names: detectors.
        cost: (N, N); None or NaN where not measured.
        interval: lower and upper ends (N, N) of the costs' intervals, written below them.
    """
    values = np.array([[np.nan if v is None else v for v in row] for row in cost], float)
    if not values.size:
        return empty('No adaptation cost has been measured yet.')
    side = max(3.2, 1.0 + 0.95 * len(names))
    fig = new_figure(side + 1.6 + 0.06 * max(map(len, names)), side)
    ax = style_axes(fig.subplots(), xlabel='to (its features are predicted)', ylabel='from')
    top = max(1.0, float(np.nanmax(values))) if np.isfinite(values).any() else 1.0
    image = ax.imshow(values, cmap='Blues', vmin=0, vmax=top)
    for (row, column), value in np.ndenumerate(values):
        dark = np.isfinite(value) and value > 0.55 * top
        text = f'{value:.2f}' if np.isfinite(value) else '–'
        if interval and row != column and np.isfinite(value):
            low, high = (ends[row][column] for ends in interval)
            text += f'\n[{low:.2f}, {high:.2f}]'
        colour = 'white' if dark else INK
        ax.text(column, row, text, ha='center', va='center', color=colour, fontsize=TEXT - 1)
    ax.set_xticks(range(len(names)), names, rotation=25, ha='right', rotation_mode='anchor')
    ax.set_yticks(range(len(names)), names)
    ax.spines[:].set_visible(False)
    bar = fig.colorbar(image, ax=ax, shrink=0.8)
    bar.set_label('share of variance left unexplained', fontsize=TEXT - 0.5, color=INK)
    bar.ax.tick_params(labelsize=TEXT - 1.5)
    pairs = [
        f'{names[r]} to {names[c]} {v:.2f}'
        for (r, c), v in np.ndenumerate(values)
        if r != c and np.isfinite(v)
    ]
    fig.alt = f'Adaptation cost, 0 (alike) to 1 (nothing in common): {", ".join(pairs)}.'
    return fig


def sequence_graph(
    costs: Mapping, ap: Mapping[str, float], sequence: Sequence[str], labels: Mapping[str, str]
) -> Figure:
    """The teachers by cost from the student and AP, the chosen path drawn from the student on.

    Args:
        costs: from `adaptation_costs`.
        ap: AP 0..1 of the student and the teachers.
        sequence: the chosen teachers in order.
        labels: of student and teachers.
    """
    names = list(costs['detectors'])
    table = np.asarray(costs['cost'])
    student = names[0]
    shown = [name for name in names if ap.get(name) is not None]
    if not sequence or student not in shown:
        return empty('No sequence has been chosen yet.')
    place = {name: (float(table[0, names.index(name)]), 100 * ap[name]) for name in shown}
    fig = new_figure(8, 4.4)
    ax = style_axes(
        fig.subplots(),
        xlabel='adaptation cost from the student (0: alike, 1: nothing in common)',
        ylabel='box AP on the validation set (points)',
        grid='both',
    )
    for name, (x, y) in place.items():
        chosen = name == student or name in sequence
        colour = INK if name == student else COLOURS[2] if chosen else FAINT
        ax.plot(x, y, 'p' if name == student else 'o', color=colour, markersize=9, zorder=3)
    path = [student, *sequence]
    for a, b in pairwise(path):
        ax.annotate(
            '',
            place[b],
            place[a],
            arrowprops={
                'arrowstyle': '->',
                'color': COLOURS[2],
                'lw': 2,
                'shrinkA': 7,
                'shrinkB': 7,
            },
        )
        middle = np.mean([place[a], place[b]], axis=0)
        hop = table[names.index(a), names.index(b)]
        box = {'facecolor': 'white', 'edgecolor': 'none', 'pad': 1.5, 'alpha': 0.85}
        ax.text(*middle, f'{hop:.2f}', fontsize=TEXT, color=COLOURS[2], ha='center', bbox=box)
    ax.margins(x=0.08, y=0.15)
    low, high = ax.get_ylim()
    for (name, (x, y)), at in zip(
        place.items(),
        spread_apart([y for _, y in place.values()], 0.075 * (high - low)),
        strict=True,
    ):
        ax.annotate(
            labels.get(name, name),
            (x, y),
            (1.03, at),
            xycoords='data',
            textcoords=ax.get_yaxis_transform(),
            va='center',
            fontsize=TEXT - 1,
            color=INK,
            arrowprops={'arrowstyle': '-', 'color': FAINT, 'linewidth': 0.7, 'shrinkB': 6},
            annotation_clip=False,
        )
    parts = [
        f'{labels.get(name, name)} at cost {x:.2f}, AP {y:.1f}'
        for name, (x, y) in place.items()
        if name != student
    ]
    chosen = ' → '.join(labels.get(name, name) for name in path)
    fig.alt = f'Teachers by cost from the student and AP: {"; ".join(parts)}. Chosen: {chosen}.'
    return fig
