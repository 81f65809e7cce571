"""A sweep read: a table of its jobs, and its results as JSON and CSV. AP in points 0..100."""

from __future__ import annotations

import csv
import io
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from ..analysis.run import ap_points, load_run
from ..utils.files import read_json, read_log, write_json, write_text
from ..utils.paths import display_path
from .executors import slurm_queue
from .folder import DEADLINE, Sweep, load_sweep
from .plan import Job, shared_run

if TYPE_CHECKING:
    from ..analysis.study import Study

# Of results.csv before anything is evaluated.
CSV_COLUMNS = ('order', 'method', 'seed', 'stage', 'stages', 'teacher', 'updates')


def job_table(sweep: Sweep, deadline: float = DEADLINE) -> list[dict]:
    """A row per job.

    Keys: job, state, stage ('2/3 rx101'), updates ('120/600'), elapsed and left (seconds or None), reason.
    """
    queue = slurm_queue() if _is_on_slurm(sweep) else None
    return [_job_row(sweep, job, queue, deadline) for job in sweep.jobs.values()]


def _job_row(sweep: Sweep, job: Job, queue: dict[str, str] | None, deadline: float) -> dict:
    state, reason = sweep.state(job, queue, deadline)
    status = sweep.status(job)
    done, total, rate = _updates_done(sweep, job)
    running = state == 'running'
    stage = ''
    if state != 'done' and (number := status.get('stage')):
        stage = f'{number}/{job.last} {job.teachers[number - 1] or ""}'.strip()
    return {
        'job': job.id,
        'state': state,
        'stage': stage,
        'updates': f'{done}/{total}' if total else '',
        'elapsed': _elapsed_seconds(status, running),
        'left': rate * (total - done) if running and rate else None,
        'reason': reason or '',
    }


def _is_on_slurm(sweep: Sweep) -> bool:
    return any(sweep.slurm_number(job) for job in sweep.jobs.values())


def _updates_done(sweep: Sweep, job: Job) -> tuple[int, int, float | None]:
    """Updates done, updates in all, and seconds an update."""
    done, rate = 0, None
    for folder in job.folders if job.updates else ():
        rows = [row for row in read_log(sweep.path / folder / 'log.json') if 'time' in row]
        if rows:
            rate = rows[-1]['time']
        if (sweep.path / folder / 'metrics.json').is_file():
            done += job.updates
        elif rows:
            done += rows[-1]['update']
    return done, job.updates * len(job.folders), rate


def _elapsed_seconds(status: dict, running: bool) -> float | None:
    if not status.get('started') or status.get('state') == 'queued':
        return None
    started = datetime.fromisoformat(status['started'])
    if running:
        return (datetime.now(UTC) - started).total_seconds()
    ended = datetime.fromisoformat(status.get('ended') or status['heartbeat'])
    return (ended - started).total_seconds()


def table_text(rows: list[dict]) -> str:
    """The table for a terminal, with a line that counts the states."""

    def clock(seconds: float | None) -> str:
        return '' if seconds is None else str(timedelta(seconds=round(seconds)))

    table = [('job', 'state', 'stage', 'updates', 'elapsed', 'left', 'reason')]
    for row in rows:
        reason = row['reason'].partition('\n')[0]
        times = clock(row['elapsed']), clock(row['left'])
        table.append((row['job'], row['state'], row['stage'], row['updates'], *times, reason))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        '  '.join(f'{cell:<{width}}' for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in table
    ]
    counts = Counter(row['state'] for row in rows)  # in the order of the rows
    states = ', '.join(f'{count} {state}' for state, count in counts.items())
    return '\n'.join([*lines, f'{len(rows)} jobs: {states}'])


def is_ended(rows: list[dict]) -> bool:
    """Whether nothing of the sweep is under way."""
    return not any(row['state'] in ('running', 'queued') for row in rows)


def collect_results(path: str | Path) -> dict:
    """Gathers what a sweep has measured into its ``results.json`` and ``results.csv``; returns the former.

    By method 'studies' has means, intervals and paired differences over the seeds, as `Study.json`. In 'rows' a row per
    evaluated stage of each order, of the control (order 'none') and of the baselines (order 'baseline', stage 0); a stage
    that orders share is in the rows of each, with the same `folder`. Jobs that are not done are listed under
    'unfinished'.

    Raises:
        MtpdError: `path` is no sweep.
    """
    sweep = load_sweep(path)
    info = sweep.info
    queue = slurm_queue() if _is_on_slurm(sweep) else None
    rows, teachers, unfinished = [], [], []
    for job in sweep.jobs.values():
        state, reason = sweep.state(job, queue)
        if state != 'done':
            unfinished.append({'job': job.id, 'state': state, 'reason': reason})
        if job.kind == 'teacher':
            teachers += _teacher_rows(sweep, job)
        elif job.kind == 'baseline':
            rows += _baseline_rows(sweep, job)
        elif job.kind != 'prefix':
            rows += _stage_rows(sweep, job)
    costs_file = sweep.path / shared_run(info['seed']) / 'order' / 'costs.json'
    results = {
        **{key: info[key] for key in ('name', 'overrides', 'methods', 'seeds', 'updates')},
        'orders': [','.join(t or 'none' for t in order) for order in info['orders']],
        'suggested': info['suggested'],
        'teachers': teachers,
        'unfinished': unfinished,
        'recipe': display_path(Path(info['recipe'])),
        'command': sweep.command,
        'environment': read_json(sweep.path / 'environment.json', {}),
        'costs': read_json(costs_file),
        'studies': {method: study.json() for method, study in sweep_studies(sweep).items()},
        'rows': rows,
    }
    write_json(sweep.path / 'results.json', results)
    write_text(sweep.path / 'results.csv', _csv_text(rows))
    return results


def sweep_studies(sweep: Sweep) -> dict[str, Study]:
    """AP by sequence over the seeds, by method."""
    from ..analysis.study import load_study

    seed = sweep.info['seeds'][0] if sweep.info['seeds'] else None
    return {
        method: load_study(load_run(sweep.path / method / str(seed)))
        for method in sweep.info['methods']
    }


def _baseline_rows(sweep: Sweep, job: Job) -> list[dict]:
    """One row, or none before the baseline is evaluated."""
    head = {'order': 'baseline', 'method': None, 'seed': job.seed, 'stage': 0, 'stages': 0}
    return [head | {'teacher': None} | row for row in _detector_rows(sweep, job)]


def _teacher_rows(sweep: Sweep, job: Job) -> list[dict]:
    """One row, or none before the teacher is evaluated."""
    model = read_json(sweep.path / job.folders[0] / 'model.json', {})
    size = {key: model.get(key) for key in ('parameters', 'gflops')}
    return [{'name': job.detector} | row | size for row in _detector_rows(sweep, job)]


def _detector_rows(sweep: Sweep, job: Job) -> list[dict]:
    """What a baseline and a teacher have: updates, AP, seconds, folder."""
    folder = sweep.path / job.folders[0]
    metrics = read_json(folder / 'metrics.json')
    if metrics is None:
        return []
    times = [row['time'] for row in read_log(folder / 'log.json') if 'time' in row]
    seconds = round(mean(times) * job.updates, 1) if times else None
    row = {'updates': job.updates} | ap_points(metrics)
    return [row | {'seconds': seconds, 'folder': job.folders[0]}]


def _stage_rows(sweep: Sweep, job: Job) -> list[dict]:
    """A row per evaluated stage of an order or of the control."""
    rows = []
    for number, teacher in enumerate(job.teachers, 1):
        folder = (sweep.path / job.stage_dir(number)).resolve()  # where it was computed
        metrics, stage = read_json(folder / 'metrics.json'), read_json(folder / 'stage.json')
        if metrics is None or stage is None:
            break
        rows.append(
            {
                'order': ','.join(t or 'none' for t in job.teachers),
                'method': job.method,
                'seed': job.seed,
                'stage': number,
                'stages': len(job.teachers),
                'teacher': teacher,
                'updates': stage['updates'],
                **ap_points(metrics),
                'seconds': stage['seconds'],
                'folder': str(folder.relative_to(sweep.path)),
            }
        )
    return rows


def _csv_text(rows: list[dict]) -> str:
    out = io.StringIO()
    columns = list(rows[0]) if rows else CSV_COLUMNS
    writer = csv.DictWriter(out, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
