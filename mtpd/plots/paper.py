"""The paper next to ours."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..utils.statistics import printed_difference
from .figure import COLOURS, FAINT, HATCHES, INK, TEXT, Figure, empty, new_figure, style_axes


def paper_next_to_ours(paper: Mapping, ours: Mapping, dataset: str = 'this run') -> Figure:
    """Gains over the baseline in the paper (COCO, full size) and here, side by side.

    Only the shape of the two can be compared: dataset, detectors and schedules differ.

    Args:
        paper, ours: `run.info['paper']` and `Run.walkthrough()`: baseline, after_stage (list),
            result, direct, control in AP points; only baseline is needed.
        dataset: what ours was measured on.
    """
    if 'baseline' not in paper or 'baseline' not in ours:
        return empty('A baseline is missing, so there are no gains to compare.')
    fig = new_figure(9, 3.8)
    axes = fig.subplots(1, 2, sharey=True)
    alt = []
    for ax, source, name in zip(
        axes, (paper, ours), ('The paper, on COCO', f'Ours, on {dataset}'), strict=True
    ):
        base = source['baseline']
        bars = _gain_bars(source, walk=source is paper)
        style_axes(
            ax,
            ylabel='gain over the baseline (AP points)' if ax is axes[0] else '',
            title=f'{name}: baseline {base:.1f}',
            grid='y',
        )
        for x, (_, ap, kind) in enumerate(bars):
            colour, hatch = COLOURS[kind], HATCHES[kind]
            ax.bar(x, ap - base, 0.65, color=colour, hatch=hatch, edgecolor='white', zorder=2)
            ax.annotate(
                f'{printed_difference(ap, base)}\n({ap:.1f})',
                (x, ap - base),
                (0, 3 if ap >= base else -3),
                textcoords='offset points',
                ha='center',
                va='bottom' if ap >= base else 'top',
                fontsize=TEXT - 1,
                color=INK,
            )
        ax.axhline(0, color=FAINT, linewidth=1)
        ax.set_xticks(range(len(bars)), [bar[0] for bar in bars])
        ax.margins(x=0.06, y=0.2)
        parts = ', '.join(
            f'{b[0]} {printed_difference(b[1], base)}'.replace('\n', ' ') for b in bars
        )
        alt.append(f'{name}, baseline {base:.1f}: {parts}.')
    fig.alt = 'Gains over the baseline in AP points. ' + ' '.join(alt)
    return fig


def _gain_bars(source: Mapping, walk: bool) -> list[tuple[str, float, int]]:
    # The paper's stages (its walk-through) and final figures (its tables) are different runs.
    bars = [
        (f'after\nteacher {k}' + ('\n(walk-through)' if walk else ''), ap, 2)
        for k, ap in enumerate(source.get('after_stage', []), 1)
    ]
    end = '\n(table)' if walk else ''
    if walk and 'result' in source:
        bars.append(('progressive' + end, source['result'], 2))
    if 'direct' in source:
        bars.append(('last teacher\nonly' + end, source['direct'], 1))
    if 'control' in source:
        bars.append(('no\nteacher' + end, source['control'], 0))
    return bars


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


def direct_against_progressive(paper: Mapping, ours: Mapping, dataset: str = 'this run') -> Figure:
    """AP by distillation method as pairs of bars, the paper's on the left and ours on the right.

    The axes of a row span equally many AP points, so equal steps are equally high; cut axes say so.

    Args:
        paper: `mtpd.analysis.paper.paper_chart(student)`: {'box' or 'mask': {method: {'direct' or 'progressive': AP}}}, in points.
        ours: `Comparison.bars`: the same with {'mean', 'sd', 'n'} in place of the AP.
        dataset: what ours was measured on.
    """
    single = {
        metric: {
            method: {arm: {'mean': ap, 'sd': None, 'n': None} for arm, ap in arms.items()}
            for method, arms in methods.items()
        }
        for metric, methods in paper.items()
    }
    sides = {'The paper, on COCO': single, f'Ours, on {dataset}': ours}
    sides = {name: metrics for name, metrics in sides.items() if any(metrics.values())}
    if not sides:
        return empty('Neither the paper nor a run has bars for this student.')
    metrics = [m for m in ('box', 'mask') if any(side.get(m) for side in sides.values())]
    counts = [max(1.6, *(len(side.get(m, {})) for m in metrics)) for side in sides.values()]
    width = max(5.4, 1.4 + 1.15 * sum(counts) + 0.7 * len(sides))  # the legend's width
    fig = new_figure(width, 0.7 + 3.1 * len(metrics))
    grid = fig.subplots(len(metrics), len(sides), squeeze=False, width_ratios=counts)
    alt = []
    for row, metric in zip(grid, metrics, strict=True):
        panels = [side.get(metric, {}) for side in sides.values()]
        span = max([1.0, *(high - low for low, high in map(_ap_range, filter(None, panels)))])
        for ax, name, methods, slots in zip(row, sides, panels, counts, strict=True):
            if not methods:
                ax.axis('off')
                continue
            _draw_panel(ax, methods, span, slots)
            cut = '; axis cut' if ax.get_ylim()[0] > 0 else ''
            style_axes(ax, ylabel=f'{metric} AP (points{cut})', title=name, grid='y')
            alt.append(f'{name}, {metric} AP: {_bars_text(methods)}.')
    handles = [Patch(label=label, **ARM_STYLES[arm]) for arm, label in ARM_LABELS.items()]
    fig.legend(handles=handles, loc='outside upper left', ncols=2, frameon=False, fontsize=TEXT - 1)
    fig.alt = 'AP of direct and of progressive distillation by method. ' + ' '.join(alt)
    return fig


def _ap_range(methods: Mapping) -> tuple[float, float]:
    bars = [bar for arms in methods.values() for bar in arms.values()]
    return (
        min(bar['mean'] - (bar['sd'] or 0) for bar in bars),
        max(bar['mean'] + (bar['sd'] or 0) for bar in bars),
    )


def _draw_panel(ax: Axes, methods: Mapping, span: float, slots: float) -> None:
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
    ax.set_xticks(range(len(methods)), [f'{m}{_seeds_text(arms)}' for m, arms in methods.items()])


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
