"""What came out: AP by arm, by class and against cost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..utils.statistics import format_signed, printed_difference
from .figure import (
    COLOURS,
    FAINT,
    HATCHES,
    INK,
    TEXT,
    Figure,
    break_label,
    empty,
    new_figure,
    series_style,
    spread_apart,
    style_axes,
)


def ap_by_arm(rows: list[dict]) -> Figure:
    """AP of each arm as a dot, its gain over the baseline as a line; teachers as references.

    Args:
        rows: `Run.results()`, AP in points.
    """
    arms = [r for r in rows if r['role'] == 'arm' and r['AP'] is not None]
    if not arms:
        return empty('No arm has been evaluated yet.')
    base = next((r['AP'] for r in rows if r['role'] == 'baseline'), None)
    teachers = [r for r in rows if r['role'] == 'teacher' and r['AP'] is not None]
    fig = new_figure(8, 1.5 + 0.5 * len(arms))
    ax = style_axes(fig.subplots(), xlabel='box AP on the validation set (points)', grid='x')
    values = [r['AP'] for r in arms + teachers] + ([] if base is None else [base])
    room = max(values) - min(values) or 1
    for index, row in enumerate(arms):
        y = len(arms) - 1 - index
        look = series_style(index) | {'linestyle': 'none'}
        if base is not None:
            ax.plot([base, row['AP']], [y, y], color=look['color'], linewidth=3, zorder=2)
        ax.plot(row['AP'], y, **look, markersize=10, markeredgecolor='white', zorder=3)
        text = f'{row["AP"]:.1f}' + (
            '' if base is None else f'  ({printed_difference(row["AP"], base)})'
        )
        left = base is not None and row['AP'] < base
        ax.annotate(
            text,
            (row['AP'], y),
            (-9 if left else 9, 0),
            textcoords='offset points',
            ha='right' if left else 'left',
            va='center',
            fontsize=TEXT,
            color=INK,
            bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 1, 'alpha': 0.8},
        )
    ax.set_yticks(range(len(arms)), [r['label'] for r in reversed(arms)])
    ax.set_ylim(-0.6, len(arms) - 0.4)
    # A number stands on the side of its dot that is away from the baseline, and has room there.
    below = [r['AP'] for r in arms if base is not None and r['AP'] < base]
    above = [r['AP'] for r in arms if base is None or r['AP'] >= base]
    ax.set_xlim(
        min([min(values) - 0.08 * room, *(ap - 0.3 * room for ap in below)]),
        max([max(values) + 0.12 * room, *(ap + 0.3 * room for ap in above)]),
    )
    lines = [(r['AP'], r['label'], ':') for r in teachers]
    lines += [] if base is None else [(base, 'baseline', '-')]
    places = spread_apart([line[0] for line in lines], 0.16 * room)
    for (ap, label, dash), x in zip(lines, places, strict=True):
        ax.axvline(ap, color=FAINT, linestyle=dash, linewidth=1.3, zorder=1)
        ax.annotate(
            f'{break_label(label)}\n{ap:.1f}',
            (ap, 1),
            (x, 1.04),
            xycoords=ax.get_xaxis_transform(),
            textcoords=ax.get_xaxis_transform(),
            ha='center',
            fontsize=TEXT - 1.5,
            color=INK,
            linespacing=1.2,
        )
    parts = [f'{r["label"]} {r["AP"]:.1f}' for r in arms]
    refs = [f'{label} {ap:.1f}' for ap, label, _ in lines]
    fig.alt = f'Box AP by arm: {", ".join(parts)}. For reference: {", ".join(refs)}.'
    return fig


COST_MEASURES = (
    ('parameters', 1e-6, 'parameters (millions)'),
    ('gflops', 1, 'GFLOPs an image'),
    ('ms_per_image', 1, 'milliseconds an image, this machine'),
)


def ap_versus_cost(rows: list[dict]) -> Figure:
    """AP against parameters, GFLOPs and latency, with the Pareto front; the arms share the student's cost.

    Args:
        rows: `Run.results()`; parameters as a count, gflops and ms_per_image for one image; what nobody has is left out.
    """
    shown = [r for r in rows if r['AP'] is not None and r['parameters'] and r['gflops']]
    if not shown:
        return empty('No detector with AP and cost yet.')
    measures = [measure for measure in COST_MEASURES if all(r.get(measure[0]) for r in shown)]
    fig = new_figure(3.3 * len(measures), 4.4)
    axes = fig.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    looks = _detector_styles(rows)
    for ax, (key, unit, label) in zip(axes, measures, strict=True):
        style_axes(ax, xlabel=label, ylabel='box AP (points)' if ax is axes[0] else '', grid='both')
        front = pareto_front([(r[key] * unit, r['AP']) for r in shown])
        ax.step(*zip(*front, strict=True), where='post', color=FAINT, linewidth=1.3, zorder=1)
        for row in shown:
            ax.plot(row[key] * unit, row['AP'], **looks[row['role'], row['name']], zorder=3)
        ax.margins(x=0.12, y=0.08)
        ax.set_xlim(left=max(0, ax.get_xlim()[0]))
    handles = [
        axes[0].plot(
            [], [], **looks[r['role'], r['name']], label=f'{_short_label(r)}  {r["AP"]:.1f}'
        )[0]
        for r in sorted(shown, key=lambda r: -r['AP'])
    ]
    handles += axes[0].plot([], [], color=FAINT, label='Pareto front: none is cheaper and better')
    fig.legend(
        handles=handles, loc='outside lower center', ncols=2, frameon=False, fontsize=TEXT - 1
    )
    parts = [
        f'{r["label"]}: AP {r["AP"]:.1f}, {r["parameters"] / 1e6:.2f} million parameters, '
        f'{r["gflops"]:.2f} GFLOPs'
        + (f', {r["ms_per_image"]:.1f} ms' if len(measures) == 3 else '')
        for r in shown
    ]
    fig.alt = 'Box AP against cost. ' + '; '.join(parts) + '.'
    return fig


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (cost, value) those of which no other costs at most as much and has more, by cost."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def _detector_styles(rows: list[dict]) -> dict[tuple[str, str], dict]:
    """Marker and colour by role and name: arms as in all figures, detectors before distillation in ink."""
    arms = [r['name'] for r in rows if r['role'] == 'arm']
    teachers = [r['name'] for r in rows if r['role'] == 'teacher']
    looks = {}
    for row in rows:
        if row['role'] == 'arm':
            look = series_style(arms.index(row['name']))
        elif row['role'] == 'teacher':
            look = {'color': INK, 'marker': 'p*hH8'[teachers.index(row['name']) % 5]}
        else:
            look = {'color': INK, 'marker': 'o', 'markerfacecolor': 'white'}
        looks[row['role'], row['name']] = {**look, 'linestyle': 'none', 'markersize': 8}
    return looks


def _short_label(row: dict) -> str:
    return 'baseline' if row['role'] == 'baseline' else row['label']


def per_class(
    before: Mapping[str, float | None],
    after: Mapping[str, float | None],
    labels: tuple[str, str] = ('before', 'after'),
    most: int = 30,
) -> Figure:
    """AP of each class before and after, sorted by the change.

    Args:
        before, after: `metrics['per_class']['bbox']`, fractions 0..1 by class name.
        labels: names of the two.
        most: with more classes than this, those that change most.
    """
    classes = [
        (name, 100 * ap, 100 * after[name])
        for name, ap in before.items()
        if ap is not None and after.get(name) is not None
    ]
    if not classes:
        return empty('No class has an AP in both.')
    total = len(classes)
    classes = sorted(classes, key=lambda item: -abs(item[2] - item[1]))[:most]
    classes.sort(key=lambda item: item[2] - item[1])
    fig = new_figure(7.5, 1.2 + 0.3 * len(classes))
    xlabel = 'box AP of the class (points)'
    if total > most:
        xlabel += f' ({len(classes)} of {total} classes, those that change most)'
    ax = style_axes(fig.subplots(), xlabel=xlabel, grid='x')
    for y, (_, a, b) in enumerate(classes):
        colour = COLOURS[2] if b >= a else COLOURS[6]
        line = '-' if b >= a else ':'
        ax.plot([a, b], [y, y], color=colour, linewidth=2.2, linestyle=line, zorder=2)
        ax.plot(b, y, 'D', color=colour, markersize=7, zorder=3, label='_')
        ax.plot(a, y, 'o', color=INK, markerfacecolor='white', markersize=7, zorder=3, label='_')
        ax.annotate(
            format_signed(b - a),
            (max(a, b), y),
            (9, 0),
            textcoords='offset points',
            va='center',
            fontsize=TEXT - 1,
            color=INK,
        )
    ax.plot([], [], 'o', color=INK, markerfacecolor='white', label=labels[0])
    ax.plot([], [], 'D', color=COLOURS[2], label=f'{labels[1]}, better')
    ax.plot([], [], 'D', color=COLOURS[6], label=f'{labels[1]}, worse (dotted)')
    fig.legend(loc='outside upper right', ncols=3, frameon=False, fontsize=TEXT - 1)
    ax.set_yticks(range(len(classes)), [name for name, *_ in classes])
    ax.set_ylim(-0.7, len(classes) - 0.3)
    ax.margins(x=0.08)
    up = sum(b > a for _, a, b in classes)
    down = sum(b < a for _, a, b in classes)
    name, a, b = classes[-1]
    fig.alt = (
        f'AP by class, {labels[0]} and {labels[1]}: {up} classes better, {down} worse. '
        f'Largest gain: {name}, {a:.1f} to {b:.1f}. '
        f'At the bottom: {classes[0][0]}, {classes[0][1]:.1f} to {classes[0][2]:.1f}.'
    )
    return fig


def error_types(counts: Mapping[str, Mapping[str, int]], objects: int) -> Figure:
    """Bars by kind of error, one for each detector side by side, with their numbers.

    Args:
        counts: {detector: {kind: how many}}, as `mtpd.analysis.error_types` counts them; the first is the one before.
        objects: how many there are to find, and detections that are counted.
    """
    if not counts:
        return empty('No detections yet.')
    kinds = list(next(iter(counts.values())))
    fig = new_figure(8, 1.2 + 0.2 * len(kinds) * len(counts))
    ax = style_axes(
        fig.subplots(),
        xlabel=f'detections, the {objects:,} best scored of each student; for missed: objects',
        grid='x',
    )
    wide = 0.8 / len(counts)
    for index, (name, count) in enumerate(counts.items()):
        places = np.arange(len(kinds)) + (index - (len(counts) - 1) / 2) * wide
        values = [count[kind] for kind in kinds]
        bars = ax.barh(
            places,
            values,
            wide * 0.92,
            # An arm's style is that of the other figures. The student before, which comes first, has none there.
            color=COLOURS[(index - 1) % len(COLOURS)] if index else INK,
            hatch=HATCHES[(index - 1) % len(HATCHES)] if index else '',
            edgecolor='white',
            linewidth=0,
            label=break_label(name),
        )
        ax.bar_label(
            bars, [f'{value:,}' for value in values], padding=3, fontsize=TEXT - 2, color=INK
        )
    ax.set_yticks(range(len(kinds)), kinds)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    fig.legend(
        loc='outside upper left', ncols=min(5, len(counts)), frameon=False, fontsize=TEXT - 1
    )
    parts = [
        f'{name}: ' + ', '.join(f'{count[kind]} {kind}' for kind in kinds)
        for name, count in counts.items()
    ]
    fig.alt = f'Kinds of detections by detector, of {objects} objects to find. {"; ".join(parts)}.'
    return fig
