"""The paper next to ours."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..utils.statistics import printed_difference
from .figure import (
    COLOURS,
    FAINT,
    HATCHES,
    INK,
    MARKERS,
    TEXT,
    Figure,
    empty,
    new_figure,
    style_axes,
)

PAPER_SIDE = 'The paper, on COCO'
# The bars of either side: its label, and its key in the paper's figures and in ours.
NEXT_TO_OURS = (
    ('no teacher', 'baseline_2x', 'control', 0),
    ('last teacher\nonly', 'direct', 'direct', 1),
    ('progressive', 'progressive', 'progressive', 2),
)


def paper_next_to_ours(paper: Mapping, ours: Mapping, dataset: str = 'this run') -> Figure:
    """Gains over the baseline in the paper (COCO, full size) and here, side by side; a dashed line is what no teacher gains.

    The paper's are its pair, direct and progressive, whose figures belong together; where a recipe names no pair, the release.
    Only the shape of the two can be compared: dataset, detectors and schedules differ.

    Args:
        paper: `Run.paper`; `baseline` and `baseline_2x` are the student alone after 12 epochs, and after as many as the others.
        ours: `Run.key_aps()`.
        dataset: what ours was measured on.
    """
    if 'baseline' not in paper:
        return empty('The recipe names no figures of the paper, so there is nothing to compare.')
    if 'baseline' not in ours:
        return empty('A baseline is missing, so there are no gains to compare.')
    fig = new_figure(9, 4.2)
    axes = fig.subplots(1, 2, sharey=True)
    sides = {
        PAPER_SIDE: ('baseline after 12 epochs', paper['baseline'], _paper_bars(paper)),
        f'Ours, on {dataset}': ('baseline', ours['baseline'], _our_bars(ours)),
    }
    alt = []
    for ax, (name, (base_name, base, bars)) in zip(axes, sides.items(), strict=True):
        style_axes(
            ax,
            ylabel='gain over the baseline (AP points)' if ax is axes[0] else '',
            title=f'{name}: {base_name} {base:.1f}',
            grid='y',
        )
        alone = next((ap for _, ap, kind in bars if kind == 0), None)
        if alone is not None:
            ax.axhline(alone - base, color=COLOURS[0], linewidth=1.2, linestyle='--', zorder=1)
        parts = []
        for x, (label, ap, kind) in enumerate(bars):
            gains = [printed_difference(ap, base)]
            if kind and alone is not None:
                gains.append(f'{printed_difference(ap, alone)} over no teacher')
            parts.append(f'{label} {ap:.1f} ({", ".join(gains)})'.replace('\n', ' '))
            ax.bar(x, ap - base, 0.65, color=COLOURS[kind], hatch=HATCHES[kind], edgecolor='white')
            ax.annotate(
                '\n'.join([f'{ap:.1f}', *gains]),
                (x, ap - base),
                (0, 3 if ap >= base else -3),
                textcoords='offset points',
                ha='center',
                va='bottom' if ap >= base else 'top',
                fontsize=TEXT - 1,
                color=INK,
            )
        ax.axhline(0, color=FAINT, linewidth=1)
        ax.set_xticks(range(len(bars)), [label for label, *_ in bars])
        ax.set_xlim(-0.6, max(len(bars), 2) - 0.4)
        ax.margins(y=0.28)
        alt.append(f'{name}, {base_name} {base:.1f}: {"; ".join(parts)}.')
    fig.alt = 'AP, and gains in AP points over the baseline. ' + ' '.join(alt)
    return fig


def _paper_bars(paper: Mapping) -> list[tuple[str, float, int]]:
    bars = [(label, paper[key], kind) for label, key, _, kind in NEXT_TO_OURS if key in paper]
    bars = [(f'{label},\n24 epochs' if not kind else label, ap, kind) for label, ap, kind in bars]
    if 'progressive' not in paper and 'result' in paper:
        bars.append(('progressive\n(the release)', paper['result'], 2))
    return bars


def _our_bars(ours: Mapping) -> list[tuple[str, float, int]]:
    return [(label, ours[key], kind) for label, _, key, kind in NEXT_TO_OURS if key in ours]


WALK_NOTE = (
    "The paper's walk-through is a figure of its own: another loss, or a drawing. It starts from a trained baseline,\n"
    'and does not lead to the AP of its chart or of its release.'
)


def paper_walk_through(paper: Mapping, ours: Mapping, dataset: str = 'this run') -> Figure:
    """AP from the baseline over both stages: the paper's walk-through, and beside it the progressive arm of this run.

    Args:
        paper, ours: `Run.paper` and `Run.key_aps()`: `walk_through`, AP points from the baseline on.
        dataset: what ours was measured on.
    """
    if not paper.get('walk_through'):
        return empty('The paper has no walk-through of this sequence.')
    sides = {PAPER_SIDE: paper, f'Ours, on {dataset}': ours}
    walks = {name: side['walk_through'] for name, side in sides.items() if 'walk_through' in side}
    fig = new_figure(4.4 * len(walks), 3.2)
    alt = []
    for ax, (name, aps) in zip(
        fig.subplots(1, len(walks), squeeze=False)[0], walks.items(), strict=True
    ):
        style_axes(ax, ylabel='box AP (points; axis cut)', title=name, grid='y')
        ax.plot(
            range(len(aps)),
            aps,
            color=COLOURS[2],
            marker=MARKERS[2],
            linewidth=2,
            markersize=7,
            markeredgecolor='white',
        )
        for x, ap in enumerate(aps):
            text = f'{ap:.1f}' if x == 0 else f'{ap:.1f}\n{printed_difference(ap, aps[x - 1])}'
            ax.annotate(
                text,
                (x, ap),
                (0, 7),
                textcoords='offset points',
                ha='center',
                fontsize=TEXT - 1,
                color=INK,
            )
        names = ['baseline', *(f'after\nteacher {k}' for k in range(1, len(aps)))]
        ax.set_xticks(range(len(aps)), names)
        ax.margins(x=0.14, y=0.1)
        low, high = min(aps), max(aps)
        ax.set_ylim(low - 0.15 * (high - low or 1), high + 0.4 * (high - low or 1))
        alt.append(f'{name}: {" to ".join(f"{ap:.1f}" for ap in aps)}.')
    fig.supxlabel(WALK_NOTE, x=0.01, ha='left', fontsize=TEXT - 1, color=INK)
    fig.alt = f'AP from the baseline over the stages. {" ".join(alt)} {" ".join(WALK_NOTE.split())}'
    return fig


# Direct against progressive distillation, by method.

ARM_LABELS = {
    'direct': 'direct: last teacher only',
    'progressive': 'progressive: teachers in sequence',
}
ARM_SIDES = {'direct': -1, 'progressive': 1}
ARM_STYLES = {
    arm: {'facecolor': COLOURS[k], 'hatch': HATCHES[k], 'edgecolor': 'white'}
    for k, arm in enumerate(ARM_LABELS, 1)
}
BAR_WIDTH = 0.36


def direct_against_progressive(
    paper: Mapping, ours: Mapping, dataset: str = 'this run', notes: Mapping | None = None
) -> Figure:
    """AP by distillation method as pairs of bars, the paper's on the left and ours on the right.

    The axes of a row span equally many AP points, so equal steps are equally high; cut axes say so.

    Args:
        paper: `mtpd.analysis.paper_chart(student)`: {'box' or 'mask': {method: {'direct' or 'progressive': AP}}}, in points.
        ours: `MethodComparison.bars`: the same with {'mean', 'sd', 'n'} in place of the AP.
        dataset: what ours was measured on.
        notes: `mtpd.analysis.chart_notes(student)`, footnotes to the paper's bars: {'box' or 'mask': {method: sentence}}.
    """
    single = {
        metric: {
            method: {arm: {'mean': ap, 'sd': None, 'n': None} for arm, ap in arms.items()}
            for method, arms in methods.items()
        }
        for metric, methods in paper.items()
    }
    sides = {PAPER_SIDE: single, f'Ours, on {dataset}': ours}
    sides = {name: metrics for name, metrics in sides.items() if any(metrics.values())}
    if not sides:
        return empty('Neither the paper nor a run has bars for this student.')
    metrics = [m for m in ('box', 'mask') if any(side.get(m) for side in sides.values())]
    counts = [max(1.6, *(len(side.get(m, {})) for m in metrics)) for side in sides.values()]
    width = max(5.4, 1.4 + 1.15 * sum(counts) + 0.7 * len(sides))  # the legend's width
    fig = new_figure(width, 0.7 + 3.1 * len(metrics))
    grid = fig.subplots(len(metrics), len(sides), squeeze=False, width_ratios=counts)
    alt, footnotes = [], []
    for row, metric in zip(grid, metrics, strict=True):
        panels = [side.get(metric, {}) for side in sides.values()]
        span = max([1.0, *(high - low for low, high in map(_ap_range, filter(None, panels)))])
        for ax, name, methods, slots in zip(row, sides, panels, counts, strict=True):
            if not methods:
                ax.axis('off')
                continue
            marks = {}
            for method, note in (notes or {}).get(metric, {}).items() if name == PAPER_SIDE else ():
                if method in methods:
                    footnotes.append(f'{"*" * (len(footnotes) + 1)} {note}.')
                    marks[method] = '*' * len(footnotes)
            _draw_panel(ax, methods, span, slots, marks)
            cut = '; axis cut' if ax.get_ylim()[0] > 0 else ''
            style_axes(ax, ylabel=f'{metric} AP (points{cut})', title=name, grid='y')
            alt.append(f'{name}, {metric} AP: {_bars_text(methods)}.')
    handles = [Patch(label=label, **ARM_STYLES[arm]) for arm, label in ARM_LABELS.items()]
    fig.legend(handles=handles, loc='outside upper left', ncols=2, frameon=False, fontsize=TEXT - 1)
    if footnotes:
        text = '\n'.join(fill(note, round(13.5 * width)) for note in footnotes)
        fig.supxlabel(text, x=0.01, ha='left', fontsize=TEXT - 1, color=INK)
    fig.alt = 'AP of direct and of progressive distillation by method. ' + ' '.join(alt + footnotes)
    return fig


def _ap_range(methods: Mapping) -> tuple[float, float]:
    bars = [bar for arms in methods.values() for bar in arms.values()]
    return (
        min(bar['mean'] - (bar['sd'] or 0) for bar in bars),
        max(bar['mean'] + (bar['sd'] or 0) for bar in bars),
    )


def _draw_panel(ax: Axes, methods: Mapping, span: float, slots: float, marks: Mapping) -> None:
    for x, arms in enumerate(methods.values()):
        for arm, bar in arms.items():
            place = x + ARM_SIDES[arm] * BAR_WIDTH / 2
            ax.bar(place, bar['mean'], BAR_WIDTH, **ARM_STYLES[arm], zorder=2)
            top = bar['mean'] + (bar['sd'] or 0)
            if bar['sd'] is not None:
                ax.errorbar(
                    place, bar['mean'], bar['sd'], color=INK, capsize=4, linewidth=1.2, zorder=3
                )
            ax.annotate(
                f'{bar["mean"]:.1f}',
                (place, top),
                (0, 3),
                textcoords='offset points',
                ha='center',
                fontsize=TEXT - 1,
                color=INK,
            )
    low = max(0.0, _ap_range(methods)[0] - 0.6 * span)
    ax.set_ylim(low, low + 1.85 * span)
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    middle = (len(methods) - 1) / 2
    ax.set_xlim(middle - max(slots, len(methods)) / 2, middle + max(slots, len(methods)) / 2)
    names = [f'{m}{marks.get(m, "")}{_seeds_text(arms)}' for m, arms in methods.items()]
    ax.set_xticks(range(len(methods)), names)


def _seeds_text(arms: Mapping) -> str:
    counts = [bar['n'] for bar in arms.values() if bar['n']]
    if not counts:
        return ''
    numbers = ' and '.join(map(str, dict.fromkeys(counts)))
    return f'\n{numbers} seed{"s" if max(counts) > 1 else ""}'


def _bars_text(methods: Mapping) -> str:
    parts = []
    for method, arms in methods.items():
        bars = [f'{arm} {bar["mean"]:.1f}{_spread_text(bar)}' for arm, bar in arms.items()]
        parts.append(f'{method} {", ".join(bars)}')
    return '; '.join(parts)


def _spread_text(bar: Mapping) -> str:
    return '' if bar['sd'] is None else f' ± {bar["sd"]:.1f} over {bar["n"]} seeds'
