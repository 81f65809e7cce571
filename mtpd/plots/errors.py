"""Kinds of errors, detector by detector."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .figure import COLOURS, HATCHES, INK, TEXT, Figure, dress, empty, narrow, new


def error_types(counts: Mapping[str, Mapping[str, int]], objects: int) -> Figure:
    """Bars by kind of error, one for each detector side by side, with their numbers.

    Args:
        counts: {detector: {kind: how many}}, as `mtpd.analysis.error_types` counts them; the first is the one before.
        objects: how many there are to find, and detections that are counted.
    """
    if not counts:
        return empty('No detections yet.')
    kinds = list(next(iter(counts.values())))
    fig = new(8, 1.2 + 0.2 * len(kinds) * len(counts))
    ax = dress(
        fig.subplots(),
        xlabel=f'detections, the best {objects:,} of each; of missed: objects',
        grid='x',
    )
    wide = 0.8 / len(counts)
    for index, (name, found) in enumerate(counts.items()):
        places = np.arange(len(kinds)) + (index - (len(counts) - 1) / 2) * wide
        values = [found[kind] for kind in kinds]
        bars = ax.barh(
            places,
            values,
            wide * 0.92,
            # The arms' looks are those of the other figures; what comes first, the student before, has none there.
            color=COLOURS[(index - 1) % len(COLOURS)] if index else INK,
            hatch=HATCHES[(index - 1) % len(HATCHES)] if index else '',
            edgecolor='white',
            linewidth=0,
            label=narrow(name),
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
    told = [
        f'{name}: ' + ', '.join(f'{found[kind]} {kind}' for kind in kinds)
        for name, found in counts.items()
    ]
    fig.alt = f'Kinds of detections by detector, of {objects} objects to find. {"; ".join(told)}.'
    return fig
