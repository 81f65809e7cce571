"""What changes during training: losses and AP over the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from ..analysis.run import DISTILLATION_LOSS
from ..utils.statistics import format_signed, printed_difference
from .figure import (
    COLOURS,
    FAINT,
    HATCHES,
    INK,
    MARKERS,
    TEXT,
    Figure,
    break_label,
    empty,
    new_figure,
    series_style,
    spread_apart,
    style_axes,
)

STAGE_SHADES = ('#f3f3f3', '#dfeaf3')


def loss_curves(curves: Mapping[str, list[dict]] | list[dict]) -> Figure:
    """Detection loss above, distillation loss below; a column for each arm, its stages shaded.

    Args:
        curves: `Run.curves()` ({arm label: log rows}), or the rows of one arm or of one training
            (`loss_rows`); where no row names a teacher, there is no panel for distillation.
    """
    arms = curves if isinstance(curves, Mapping) else {'': curves}
    arms = {label: rows for label, rows in arms.items() if rows}
    if not arms:
        return empty('No training log yet.')
    taught = any(r['teacher'] is not None for rows in arms.values() for r in rows)
    names = ('detection', 'distillation') if taught else ('detection',)
    fig = new_figure(max(6.5, 3.1 * len(arms)), 0.5 + 2.4 * len(names))
    axes = fig.subplots(len(names), len(arms), sharex='col', sharey='row', squeeze=False)
    last = 'updates after the baseline' if isinstance(curves, Mapping) else 'updates'
    alt = []
    for column, (label, rows) in enumerate(arms.items()):
        ends = []
        for row, name in enumerate(names):
            ax = axes[row][column]
            style_axes(
                ax,
                xlabel=last if row == len(names) - 1 else '',
                ylabel=f'{name} loss' if column == 0 else '',
                title='' if row else label,
                grid='y',
            )
            end = _shade_stages(ax, rows, 'update', named=taught and row == 0)
            ax.set_xlim(0, end)
            ax.xaxis.set_major_locator(MaxNLocator(4, prune='upper'))
            drawn = _draw_losses(ax, rows, name, COLOURS[2] if row else COLOURS[6])
            if drawn is None:
                ax.text(0.5, 0.5, 'no teacher', transform=ax.transAxes, ha='center', color=INK)
            else:
                ends.append(f'{name} loss from {drawn[0]:.2f} to {drawn[1]:.2f}')
        count = f'over {rows[-1]["update"]} updates'
        alt.append(f'{label or "This training"}: {", ".join(ends)} {count}.')
    for row, name in enumerate(names):
        _scale_losses(axes[row][0], [r[name] for rows in arms.values() for r in rows])
    fig.alt = 'Loss curves, smoothed ends. ' + ' '.join(alt)
    return fig


def _shade_stages(ax: Axes, rows: Sequence[Mapping], key: str, named: bool = True) -> int:
    """Shades the stages of rows with 'stage', 'teacher' and updates under `key`; returns the last update.

    Args:
        named: write the stage and its teacher at the top.
    """
    start, stages = 0, sorted({row['stage'] for row in rows} - {0})  # 0: the baseline
    for stage in stages:
        part = [row for row in rows if row['stage'] == stage]
        end = part[-1][key]
        ax.axvspan(start, end, color=STAGE_SHADES[(stage - 1) % 2], linewidth=0, zorder=0)
        if named:
            teacher = break_label(part[0]['teacher'])
            ax.text(
                (start + end) / 2,
                0.97,
                f'stage {stage}\n{teacher}' if len(stages) > 1 else teacher,
                transform=ax.get_xaxis_transform(),
                ha='center',
                va='top',
                fontsize=TEXT - 2,
                color=INK,
            )
        start = end
    return start


def _draw_losses(ax: Axes, rows: list[dict], key: str, colour: str) -> tuple[float, float] | None:
    """Raw values thin and the moving mean thick, each stage for itself; first and last mean."""
    ends = []
    for stage in sorted({r['stage'] for r in rows}):
        part = [r for r in rows if r['stage'] == stage and r[key] is not None]
        if not part:
            continue
        x = [r['update'] for r in part]
        y = np.array([r[key] for r in part], float)
        smooth = moving_mean(y, max(1, len(y) // 20))
        ax.plot(x, y, color=colour, alpha=0.35, linewidth=0.8)
        mark = '' if len(x) > 1 else 'o'  # a line of one point would not be seen
        ax.plot(x, smooth, color=colour, linewidth=1.9, marker=mark)
        ends += [smooth[0], smooth[-1]]
    return (ends[0], ends[-1]) if ends else None


def moving_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Mean over the neighbours up to `reach` away, fewer at the ends. Shape (N,) -> (N,)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _scale_losses(ax: Axes, values: list[float | None]) -> None:
    values = [v for v in values if v is not None]
    if not values:
        ax.set_yticks([])
    elif min(values) > 0 and max(values) / min(values) > 10:
        ax.set_yscale('log')
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter('{x:g}')
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_ylabel(f'{ax.get_ylabel()} (log scale)')
        low, high = np.log(min(values)), np.log(max(values))
        ax.set_ylim(np.exp(low - 0.05 * (high - low)), np.exp(high + 0.28 * (high - low)))
    else:
        low, high = min(values), max(values)
        room = high - low or 1
        ax.set_ylim(max(low - 0.08 * room, min(0, low)), high + 0.28 * room)


def ap_over_stages(arms: Mapping[str, list[dict]]) -> Figure:
    """AP from the baseline over the stages of each arm, as in the paper's walk-through.

    Args:
        arms: `Run.stage_aps()`: {arm label: rows with updates, AP (points), label}.
    """
    arms = {label: rows for label, rows in arms.items() if len(rows) > 1}
    if not arms:
        return empty('No stage has been evaluated yet.')
    fig = new_figure(8, 4.6)
    ax = style_axes(
        fig.subplots(),
        xlabel='updates after the baseline',
        ylabel='box AP on the validation set (points)',
        grid='y',
    )
    ends, alt = [], []
    for index, (label, rows) in enumerate(arms.items()):
        look = series_style(index)
        ax.plot(
            [r['updates'] for r in rows],
            [r['AP'] for r in rows],
            **look,
            linewidth=2,
            markersize=7,
            markeredgecolor='white',
            zorder=3,
        )
        ends.append((rows[-1]['AP'], f'{label}  {rows[-1]["AP"]:.1f}', look['color'], rows[-1]))
        steps = ', '.join(f'{r["AP"]:.1f} {r["label"]}' for r in rows[1:])
        alt.append(f'{label}: {steps}.')
    low, high = ax.get_ylim()
    last = max(r['updates'] for *_, r in ends)
    placed = spread_apart([end[0] for end in ends], 0.062 * (high - low))
    for (ap, text, colour, row), y in zip(ends, placed, strict=True):
        ax.annotate(
            text,
            (row['updates'], ap),
            (last * 1.04, y),
            va='center',
            fontsize=TEXT,
            color=INK,
            # A leader, not a curve: it may cross the plot where an arm is shorter.
            arrowprops={'arrowstyle': '-', 'color': colour, 'linewidth': 0.8, 'shrinkB': 5}
            | ({} if row['updates'] == last else {'color': FAINT, 'linestyle': ':'}),
            annotation_clip=False,
        )
    base = next(iter(arms.values()))[0]
    if base['updates'] == 0:
        ax.annotate(
            f'baseline {base["AP"]:.1f}',
            (0, base['AP']),
            (8, -12),
            textcoords='offset points',
            fontsize=TEXT,
            color=INK,
        )
    ax.set_xlim(-0.03 * last, last * 1.02)
    best = max(ends)[3]
    fig.alt = (
        f'AP over the stages, from the baseline at {base["AP"]:.1f}. {" ".join(alt)} '
        f'The best arm gains {printed_difference(best["AP"], base["AP"])} points.'
    )
    return fig


def level_shares(rows: list[dict]) -> Figure:
    """What each FPN level has of the distillation loss over an arm's updates, as stacked shares; above, their sum.

    Args:
        rows: an arm of `Run.curves()`, or `loss_rows` of one stage.
    """
    rows = [row for row in rows if row['distillation']]
    if not rows:
        return empty('No stage with a teacher has been trained yet.')
    keys = sorted(
        {key for row in rows for key in row if DISTILLATION_LOSS.fullmatch(key)}, key=_fpn_level
    )
    levels = sorted({_fpn_level(key) for key in keys})
    shares = np.array(
        [
            [
                sum(row.get(k) or 0 for k in keys if _fpn_level(k) == n) / row['distillation']
                for n in levels
            ]
            for row in rows
        ]
    )
    at = [row['update'] for row in rows]
    fig = new_figure(8, 4.2)
    ax = style_axes(
        fig.subplots(), 'updates after the baseline', 'share of the distillation loss (%)'
    )
    look = dict(
        colors=[COLOURS[n % len(COLOURS)] for n in levels],
        edgecolor='white',
        linewidth=0.8,
        alpha=0.85,
    )
    areas = ax.stackplot(at, 100 * shares.T, labels=[f'level {n}' for n in levels], **look)
    for area, n in zip(areas, levels, strict=True):
        area.set_hatch(HATCHES[n % len(HATCHES)])
    for before, row in pairwise(rows):
        if row['stage'] != before['stage']:
            ax.axvline(before['update'], color=INK, linewidth=1.2)
    ax.set_xlim(at[0], max(at[-1], at[0] + 1))
    ax.set_ylim(0, 100)
    fig.legend(loc='outside right upper', frameon=False, fontsize=TEXT - 1, reverse=True)
    parts = [
        f'level {n} from {100 * first:.0f} to {100 * last:.0f} %'
        for n, first, last in zip(levels, shares[0], shares[-1], strict=True)
    ]
    fig.alt = (
        f'Share of each FPN level (0 the finest) in the distillation loss: {", ".join(parts)}.'
    )
    return fig


def _fpn_level(key: str) -> int:
    return int(DISTILLATION_LOSS.fullmatch(key)[1])


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
    fig = new_figure(max(6.5, 3.1 * len(arms)), 0.9 + 2.4 * len(kinds))
    axes = fig.subplots(len(kinds), len(arms), sharex='col', sharey='row', squeeze=False)
    ends = []
    for column, (arm, runs) in enumerate(arms.items()):
        for line, kind in enumerate(kinds):
            ax = axes[line][column]
            style_axes(
                ax,
                xlabel='updates after the baseline' if line == len(kinds) - 1 else '',
                ylabel=f'{kind} loss' if column == 0 else '',
                title='' if line else arm,
                grid='y',
            )
            for name, part in runs.items():
                logged = [row for row in part if row[kind] is not None]
                if not logged:
                    continue
                values = np.array([row[kind] for row in logged], float)
                smooth = moving_mean(values, max(1, len(values) // 20))
                look = series_style(names.index(name)) | {'marker': None}
                ax.plot([row['update'] for row in logged], smooth, **look, linewidth=1.7)
                if kind == 'detection':
                    ends.append(f'{arm}, {name}: from {smooth[0]:.2f} to {smooth[-1]:.2f}')
    handles = [
        axes[0][0].plot([], [], **(series_style(k) | {'marker': None}), label=name)[0]
        for k, name in enumerate(names)
    ]
    fig.legend(handles=handles, loc='outside lower center', ncols=min(3, len(names)), frameon=False)
    fig.alt = f'Losses of {len(names)} runs, overlaid. Detection loss: {"; ".join(ends)}.'
    return fig


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
    fig = new_figure(8, 4.2)
    ax = style_axes(
        fig.subplots(),
        'updates after the baseline',
        'box AP on the validation set (points)',
        grid='y',
    )
    longest = max(curves.values(), key=len)
    last = _shade_stages(ax, longest, 'updates')
    for seed, rows in curves.items():
        marker = MARKERS[list(curves).index(seed) % len(MARKERS)]
        ax.plot(
            [row['updates'] for row in rows],
            [row['AP'] for row in rows],
            color=COLOURS[2],
            marker=marker,
            markersize=4,
            linewidth=0.8,
            alpha=0.45,
        )
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
    ax.set_xlim(-0.04 * last, 1.04 * last)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.28 * (high - low))
    steps = ', '.join(f'{y:.1f} at {x}' for x, y in zip(at, means, strict=True))
    fig.alt = f'AP over updates, mean of {len(curves)} seed(s): {steps}.'
    if control:
        fig.alt += f' Without a teacher {level:.1f}, {format_signed(means[-1] - level)} points.'
    return fig
