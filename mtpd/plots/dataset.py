"""What the data and the detectors are like: sizes, classes, adaptation costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .figure import COLOURS, FAINT, HATCHES, INK, LINES, TEXT, Figure, dress, empty, new

# COCO's area ranges, in square pixels.
SMALL, MEDIUM = 32**2, 96**2


def size_histogram(areas: Mapping[str, Sequence[float]] | Sequence[float]) -> Figure:
    """How large the objects are, with COCO's ranges small, medium and large.

    Args:
        areas: object areas in square pixels, or {split: areas}.
    """
    splits = areas if isinstance(areas, Mapping) else {'objects': areas}
    splits = {name: np.sqrt(np.asarray(a, float)) for name, a in splits.items() if len(a)}
    if not splits:
        return empty('No objects.')
    every = np.concatenate(list(splits.values()))
    low, high = max(min(every.min() / 1.1, 24), 1), max(every.max() * 1.1, 128)
    edges = np.geomspace(low, high, 31)
    fig = new(8, 3.8)
    ax = dress(
        fig.subplots(),
        xlabel='object size: square root of its area (pixels, log scale)',
        ylabel='share of objects (%)',
        grid='y',
    )
    ax.set_xscale('log')
    for index, (name, sizes) in enumerate(splits.items()):
        share = 100 * np.histogram(sizes, edges)[0] / len(sizes)
        colour = COLOURS[(2, 1, 4, 3)[index % 4]]
        label = f'{name} ({len(sizes):,} objects)'
        ax.stairs(share, edges, fill=True, color=colour, alpha=0.25)
        ax.stairs(share, edges, color=colour, linewidth=1.8, linestyle=LINES[index], label=label)
    bounds = (low, SMALL**0.5, MEDIUM**0.5, high)
    alt = []
    for k, name in enumerate(('small', 'medium', 'large')):
        shares = {s: 100 * np.mean(_range(sizes) == k) for s, sizes in splits.items()}
        text = ' / '.join(f'{value:.0f} %' for value in shares.values())
        ax.text(
            (bounds[k] * bounds[k + 1]) ** 0.5,
            1.02,
            f'{name}: {text}',
            transform=ax.get_xaxis_transform(),
            ha='center',
            fontsize=TEXT - 0.5,
            color=INK,
        )
        if k:
            ax.axvline(bounds[k], color=FAINT, linewidth=1.2, linestyle='--')
        alt.append(f'{name} ' + ', '.join(f'{v:.0f} % ({s})' for s, v in shares.items()))
    ax.set_xlim(low, high)
    ticks = [t for t in (2, 4, 8, 16, 32, 64, 96, 128, 256, 512, 1024) if low <= t <= high]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=TEXT - 1)
    fig.alt = f'Object sizes by COCO area range: {"; ".join(alt)}.'
    return fig


def _range(sizes: np.ndarray) -> np.ndarray:
    return np.digitize(sizes**2, [SMALL, MEDIUM])


def class_counts(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> Figure:
    """Objects of each class, as a share of its split so that splits of any size compare.

    Args:
        counts: {split: objects of each class}, in the order of `classes`.
        classes: class names.
    """
    counts = {name: np.asarray(c, float) for name, c in counts.items()}
    if not counts or not len(classes):
        return empty('No classes.')
    fig = new(7.5, 1.3 + 0.27 * len(classes))
    ax = dress(fig.subplots(), xlabel='share of the objects of the split (%)', grid='x')
    height = 0.8 / len(counts)
    for index, (name, count) in enumerate(counts.items()):
        ax.barh(
            np.arange(len(classes)) + (index - (len(counts) - 1) / 2) * height,
            100 * count / max(count.sum(), 1),
            height,
            color=COLOURS[(2, 1, 4, 3)[index % 4]],
            hatch=HATCHES[(2, 1, 0, 3)[index % 4]],
            edgecolor='white',
            label=f'{name} ({int(count.sum()):,} objects)',
        )
    ax.set_yticks(range(len(classes)), classes)
    ax.invert_yaxis()
    fig.legend(loc='outside upper right', ncols=len(counts), frameon=False, fontsize=TEXT - 1)
    alt = [
        f'{name}: {int(c.sum()):,} objects, {classes[int(c.argmin())]} the rarest class with '
        f'{int(c.min()):,}, {classes[int(c.argmax())]} the commonest with {int(c.max()):,}'
        for name, c in counts.items()
    ]
    fig.alt = f'Objects by class. {". ".join(alt)}.'
    return fig
