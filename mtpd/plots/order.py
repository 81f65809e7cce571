"""Which teachers, in which order: adaptation costs, and the sequence that they suggest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from .figure import COLOURS, FAINT, INK, TEXT, Figure, apart, dress, empty, new

Table = Sequence[Sequence[float | None]]


def cost_matrix(
    names: Sequence[str], cost: Table, interval: tuple[Table, Table] | None = None
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
    fig = new(side + 1.6 + 0.06 * max(map(len, names)), side)
    ax = dress(fig.subplots(), xlabel='to (its features are predicted)', ylabel='from')
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
    fig = new(8, 4.4)
    ax = dress(
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
        place.items(), apart([y for _, y in place.values()], 0.075 * (high - low)), strict=True
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
