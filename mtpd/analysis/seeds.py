"""Runs that differ in nothing but the seed, read together."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import MtpdError
from ..utils.files import read_json
from ..utils.paths import ROOT, shown
from .runs import Run, load_run, points
from .setups import Setup, differences, given, neighbours, of_run
from .study import Order, Study


def comparable(run: Run, folders: Sequence[str] = ()) -> tuple[dict[int, Run], list[str]]:
    """`run` and those of the same recipe and settings, by seed, and what was left out for which reason.

    Args:
        folders: the other runs, or folders of runs. None given: the neighbours of `run`.

    Raises:
        MtpdError: a folder that was given is no run, or one with other settings.
    """
    source = ROOT / run.info['recipe']
    paths = given(source, folders) if folders else neighbours(run)
    own, runs, left_out = _setup(run), {run.info.get('seed'): run}, []
    for path in paths:
        if path.resolve() == run.path.resolve():
            continue
        other = load_run(path)
        setup = _setup(other)
        if own and setup and own.method != setup.method and not folders:
            continue  # of another study
        keys = ['recipe.py, which cannot be compared']
        if own and setup:
            keys = ['distill.method'] * (own.method != setup.method) + differences(own, setup)
        if keys:
            left_out.append(
                f'{shown(path)} differs from {shown(run.path)} in {", ".join(keys[:3])}.'
            )
        else:
            runs.setdefault(setup.seed, other)
    if folders and left_out:
        raise MtpdError('\n'.join(left_out))
    return runs, left_out


def gather(run: Run, folders: Sequence[str] = ()) -> Study:
    """The study of a run and of those of the same recipe and settings with other seeds, see `comparable`."""
    runs, left_out = comparable(run, folders)
    teachers = {row['name']: row['AP'] for row in run.results() if row['role'] == 'teacher'}
    baseline = {
        seed: row['AP']
        for seed, item in sorted(runs.items())
        for row in item.results()
        if row['role'] == 'baseline' and row['AP'] is not None
    }
    return Study(
        [_order(arm, runs) for arm in run.arms],
        baseline,
        {name: ap for name, ap in teachers.items() if ap is not None},
        *_forecast(run),
        left_out,
    )


def _setup(run: Run) -> Setup | None:
    try:
        return of_run(run)
    except MtpdError:
        return None


def _order(arm: dict, runs: dict[int, Run]) -> Order:
    last = {seed: points(run.metrics('arm', arm['name']))['AP'] for seed, run in runs.items()}
    ap = {seed: value for seed, value in sorted(last.items()) if value is not None}
    return Order(
        arm['name'],
        arm.get('label') or arm['name'],
        tuple(t for t in arm['teachers'] if t is not None),
        arm['updates'],
        ap,
        {seed: ap_curve(runs[seed], arm['name']) for seed in ap},
    )


def ap_curve(run: Run, arm: str) -> list[dict]:
    """AP (points) along an arm: the baseline, evaluations during training, the end of each stage.

    Rows: updates (since the baseline), AP, stage (0: the baseline), teacher (label).
    """
    ends = run.stage_aps(arm)
    known = {row['updates'] for row in ends}
    inside = [
        {
            'updates': row['update'],
            'AP': 100 * row['bbox_mAP'],
            'stage': row['stage'],
            'teacher': row['teacher'],
        }
        for row in run.curves(arm)
        if row.get('bbox_mAP') is not None and row['update'] not in known
    ]
    return sorted([*ends, *inside], key=lambda row: row['updates'])


def _forecast(run: Run) -> tuple[dict | None, list[tuple[str, ...]]]:
    """Costs and the sequences that they suggest: the run's own, or those of the sweep that it is part of."""
    sweep = run.path.resolve().parents[1]
    info = read_json(sweep / 'sweep.json')
    if info and info.get('suggested'):
        costs = read_json(sweep / 'shared' / str(info['seed']) / 'order' / 'costs.json')
        return costs, [tuple(order) for order in info['suggested']['orders']]
    folder = run.path / 'order'
    found = read_json(folder / 'sequence.json')
    return read_json(folder / 'costs.json'), [tuple(found['sequence'])] if found else []
