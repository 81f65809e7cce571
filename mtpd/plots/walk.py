"""AP over the student's updates along one sequence of teachers, as in the paper's walk-through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..utils.numerals import signed
from .curves import SHADES
from .figure import COLOURS, INK, MARKERS, TEXT, Figure, dress, empty, narrow, new


def walk_through(
    curves: Mapping[int, Sequence[Mapping]], control: Mapping[int, float] | None = None
) -> Figure:
    """AP over the student's updates along one sequence, its stages shaded and their teachers named.

    Args:
        curves: by seed, rows as `study.ap_curve` gives them.
        control: final AP without a teacher, by seed.
    """
    curves = {seed: rows for seed, rows in curves.items() if len(rows) > 1}
    if not curves:
        return empty('No stage has been evaluated yet.')
    fig = new(8, 4.2)
    ax = dress(
        fig.subplots(),
        'updates after the baseline',
        'box AP on the validation set (points)',
        grid='y',
    )
    longest = max(curves.values(), key=len)
    start = 0
    for stage in sorted({row['stage'] for row in longest} - {0}):
        part = [row for row in longest if row['stage'] == stage]
        ax.axvspan(start, part[-1]['updates'], color=SHADES[(stage - 1) % 2], linewidth=0, zorder=0)
        ax.text(
            (start + part[-1]['updates']) / 2, 0.97, f'stage {stage}\n{narrow(part[0]["teacher"])}',
            transform=ax.get_xaxis_transform(), ha='center', va='top', fontsize=TEXT - 1, color=INK,
        )  # fmt: skip
        start = part[-1]['updates']
    for seed, rows in curves.items():
        marker = MARKERS[list(curves).index(seed) % len(MARKERS)]
        ax.plot([r['updates'] for r in rows], [r['AP'] for r in rows], color=COLOURS[2], marker=marker, markersize=4,
                linewidth=0.8, alpha=0.45)  # fmt: skip
    at = sorted({row['updates'] for rows in curves.values() for row in rows})
    means = [
        np.mean([r['AP'] for rows in curves.values() for r in rows if r['updates'] == u])
        for u in at
    ]
    ax.plot(
        at,
        means,
        color=COLOURS[2],
        marker='D',
        markersize=7,
        linewidth=2.2,
        markeredgecolor='white',
        zorder=3,
    )
    for x, y in zip(at, means, strict=True):
        ax.annotate(
            f'{y:.1f}',
            (x, y),
            (0, 9),
            textcoords='offset points',
            ha='center',
            fontsize=TEXT,
            color=INK,
        )
    if control:
        level = float(np.mean(list(control.values())))
        ax.axhline(level, color=COLOURS[0], linestyle=':', linewidth=1.4)
        ax.annotate(f'no teacher, as many updates: {level:.1f}', (0.01, level), (0, -11), xycoords=('axes fraction', 'data'),
                    textcoords='offset points', fontsize=TEXT - 1, color=INK)  # fmt: skip
    ax.set_xlim(-0.04 * start, 1.04 * start)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.28 * (high - low))
    steps = ', '.join(f'{y:.1f} at {x}' for x, y in zip(at, means, strict=True))
    fig.alt = f'AP over updates, mean of {len(curves)} seed(s): {steps}.'
    fig.alt += (
        f' Without a teacher {level:.1f}, {signed(means[-1] - level)} points.' if control else ''
    )
    return fig
