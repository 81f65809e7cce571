"""The paper next to ours."""

from __future__ import annotations

from collections.abc import Mapping

from ..utils.numerals import gain
from .figure import COLOURS, FAINT, HATCHES, INK, TEXT, Figure, dress, empty, new


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
    fig = new(9, 3.8)
    axes = fig.subplots(1, 2, sharey=True)
    alt = []
    for ax, source, name in zip(
        axes, (paper, ours), ('The paper, on COCO', f'Ours, on {dataset}'), strict=True
    ):
        base = source['baseline']
        bars = _bars(source, walk=source is paper)
        dress(
            ax,
            ylabel='gain over the baseline (AP points)' if ax is axes[0] else '',
            title=f'{name}: baseline {base:.1f}',
            grid='y',
        )
        for x, (_, ap, kind) in enumerate(bars):
            colour, hatch = COLOURS[kind], HATCHES[kind]
            ax.bar(x, ap - base, 0.65, color=colour, hatch=hatch, edgecolor='white', zorder=2)
            ax.annotate(
                f'{gain(ap, base)}\n({ap:.1f})',
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
        parts = ', '.join(f'{b[0]} {gain(b[1], base)}'.replace('\n', ' ') for b in bars)
        alt.append(f'{name}, baseline {base:.1f}: {parts}.')
    fig.alt = 'Gains over the baseline in AP points. ' + ' '.join(alt)
    return fig


def _bars(source: Mapping, walk: bool) -> list[tuple[str, float, int]]:
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
