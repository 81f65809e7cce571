"""How well students fit and generalise, and how flat their minima are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..analysis.generalisation_gap import loss_rise, loss_rises, measure_values
from ..utils import statistics
from .figure import INK, TEXT, Figure, break_label, empty, new_figure, series_style, style_axes


def generalisation(by_seed: Mapping[int, Sequence[dict]]) -> Figure:
    """Loss and box AP of each student on training images (open) and on validation images (filled), mean over seeds.

    Args:
        by_seed: `generalisation.measure_seeds`.
    """
    rows = next(iter(by_seed.values()), [])
    if not rows:
        return empty('No student has been evaluated yet.')
    fig = new_figure(9, 1.5 + 0.42 * len(rows))
    axes = fig.subplots(1, 2, sharey=True)
    parts = []
    over = f'mean of {len(by_seed)} seeds' if len(by_seed) > 1 else 'one seed'
    for ax, key, label in zip(
        axes, ('loss', 'AP'), ('detection loss', 'box AP (points)'), strict=True
    ):
        style_axes(ax, xlabel=f'{label}, {over}', grid='x')
        for index, row in enumerate(rows):
            ends = []
            for side in ('train', 'val'):
                values = measure_values(by_seed, row['name'], lambda r, s=side, k=key: r[s][k])
                ends.append(statistics.mean_interval(list(values.values())))
            if None in ends:
                continue
            look = _student_style(row, index) | {'linestyle': 'none'}
            a, b = (end.value for end in ends)
            y = len(rows) - 1 - index
            ax.plot([a, b], [y, y], color=look['color'], linewidth=2, zorder=2)
            ax.plot(a, y, **look, markersize=8, markerfacecolor='white', zorder=3)
            ax.plot(b, y, **look, markersize=8, zorder=3)
            parts.append(f'{row["label"]}, {label}: training {a:.3g}, validation {b:.3g}')
        ax.margins(x=0.1)
    axes[0].set_yticks(range(len(rows)), [break_label(row['label']) for row in reversed(rows)])
    axes[0].set_ylim(-0.6, len(rows) - 0.4)
    point = dict(color=INK, marker='o', linestyle='none')
    open_, filled = (
        axes[0].plot([], [], **point, markerfacecolor='white', label='training images')[0],
        axes[0].plot([], [], **point, label='validation images')[0],
    )
    fig.legend(
        handles=[open_, filled],
        loc='outside upper right',
        ncols=2,
        frameon=False,
        fontsize=TEXT - 1,
    )
    fig.alt = f'Fit and generalisation. {"; ".join(parts)}.'
    return fig


def flatness(by_seed: Mapping[int, Sequence[dict]]) -> Figure:
    """How the training loss rises with the size of a random perturbation of the weights: mean over seeds, and the
    range of the seeds or, of one seed, of the directions.

    Args:
        by_seed: `generalisation.measure_seeds`.
    """
    rows = next(iter(by_seed.values()), [])
    if not rows:
        return empty('No student has been evaluated yet.')
    sizes = rows[0]['sizes']
    fig = new_figure(8, 4)
    ax = style_axes(
        fig.subplots(),
        "size of the perturbation (% of each filter's norm)",
        'rise of the detection loss on training images',
        grid='y',
    )
    parts = []
    for index, row in enumerate(rows):
        look, lows, means, highs = _student_style(row, index), [0.0], [0.0], [0.0]
        for size in sizes:
            rises = list(
                measure_values(by_seed, row['name'], lambda r, s=size: loss_rise(r, s)).values()
            )
            spread = rises if len(rises) > 1 else loss_rises(row, size)
            means.append(sum(rises) / len(rises))
            lows.append(min(spread))
            highs.append(max(spread))
        at = [0, *(100 * size for size in sizes)]
        ax.fill_between(at, lows, highs, color=look['color'], alpha=0.12, linewidth=0)
        ax.plot(at, means, **look, linewidth=1.8, markersize=6, label=row['label'])
        parts.append(f'{row["label"]} {means[-1]:.3f}')
    ax.legend(frameon=False, fontsize=TEXT - 1, loc='upper left')
    spread = f'{len(by_seed)} seeds' if len(by_seed) > 1 else 'the directions'
    ax.set_title(
        f'shaded: from least to most over {spread}', fontsize=TEXT - 1, color=INK, loc='right'
    )
    fig.alt = f'Rise of the training loss under perturbations of {100 * sizes[-1]:.0f} % of the weights: {"; ".join(parts)}.'
    return fig


def _student_style(row: dict, index: int) -> dict:
    """An arm's style is that of the other figures. The baseline, which comes first, has none there."""
    if row['name'] == 'baseline':
        return {'color': INK, 'marker': 'p', 'linestyle': '-'}
    return series_style(index - 1)
