"""Curves of several runs in the same axes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .curves import moving_mean
from .figure import Figure, dress, empty, new, style


def overlaid_curves(arms: Mapping[str, Mapping[str, list[dict]]]) -> Figure:
    """Detection loss above, distillation loss below, moving means; a column for each arm, a line for each run.

    Args:
        arms: {arm: {run: rows}}, rows as `Run.curves` gives them.
    """
    arms = {arm: runs for arm, runs in arms.items() if any(runs.values())}
    if not arms:
        return empty('No training log yet.')
    names = list(dict.fromkeys(name for runs in arms.values() for name in runs))
    rows = [row for runs in arms.values() for part in runs.values() for row in part]
    kinds = [k for k in ('detection', 'distillation') if any(row[k] is not None for row in rows)]
    fig = new(max(6.5, 3.1 * len(arms)), 0.9 + 2.4 * len(kinds))
    axes = fig.subplots(len(kinds), len(arms), sharex='col', sharey='row', squeeze=False)
    ends = []
    for column, (arm, runs) in enumerate(arms.items()):
        for line, kind in enumerate(kinds):
            ax = axes[line][column]
            dress(
                ax,
                xlabel='updates after the baseline' if line == len(kinds) - 1 else '',
                ylabel=f'{kind} loss' if column == 0 else '',
                title='' if line else arm,
                grid='y',
            )
            for name, part in runs.items():
                there = [row for row in part if row[kind] is not None]
                if not there:
                    continue
                values = np.array([row[kind] for row in there], float)
                smooth = moving_mean(values, max(1, len(values) // 20))
                look = style(names.index(name)) | {'marker': None}
                ax.plot([row['update'] for row in there], smooth, **look, linewidth=1.7)
                if kind == 'detection':
                    ends.append(f'{arm}, {name}: from {smooth[0]:.2f} to {smooth[-1]:.2f}')
    handles = [
        axes[0][0].plot([], [], **(style(k) | {'marker': None}), label=name)[0]
        for k, name in enumerate(names)
    ]
    fig.legend(handles=handles, loc='outside lower center', ncols=min(3, len(names)), frameon=False)
    fig.alt = f'Losses of {len(names)} runs, overlaid. Detection loss: {"; ".join(ends)}.'
    return fig
