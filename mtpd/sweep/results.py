"""A sweep read: a table of its jobs, and its results as JSON and CSV. AP in points 0..100."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ..analysis.run import ap_points, load_run
from ..utils.files import read_json, read_log, write_json, write_text
from ..utils.paths import display_path
from .executors import slurm_queue
from .folder import DEADLINE, Sweep, load_sweep
from .plan import Job, shared_run

if TYPE_CHECKING:
    from ..analysis.study import Study

CSV_COLUMNS = ('order', 'method', 'seed', 'stage', 'stages', 'teacher', 'updates')


def job_table(sweep: Sweep, deadline: float = DEADLINE) -> list[dict]:
    """A row per job.

    Keys: job, state, stage ('2/3 rx101'), updates ('120/600'), elapsed and left (seconds or None), reason.
    """
    queue = slurm_queue() if _on_slurm(sweep) else None
    rows = []
    for job in sweep.jobs.values():
        state, reason = sweep.state(job, queue, deadline)
        status, (done, total, rate) = sweep.status(job), _updates_done(sweep, job, state)
        number = status.get('stage') if state != 'done' else None
        active = state == 'running'
        rows.append(
            {
                'job': job.id,
                'state': state,
                'stage': f'{number}/{job.last} {job.teachers[number - 1] or ""}'.strip()
                if number
                else '',
                'updates': f'{done}/{total}' if total else '',
                'elapsed': _elapsed_seconds(status, active),
                'left': rate * (total - done) if active and rate else None,
                'reason': reason or '',
            }
        )
    return rows


def _on_slurm(sweep: Sweep) -> bool:
    return any((sweep.path / 'jobs' / name / 'slurm.json').is_file() for name in sweep.jobs)


def _updates_done(sweep: Sweep, job: Job, state: str) -> tuple[int, int, float | None]:
    """Updates done, updates in all, and seconds an update."""
    done, rate = 0, None
    for folder in job.folders if job.updates else ():
        rows = [row for row in read_log(sweep.path / folder / 'log.json') if 'time' in row]
        finished = (sweep.path / folder / 'metrics.json').is_file()
        done += job.updates if finished else rows[-1]['update'] if rows else 0
        rate = rows[-1]['time'] if rows else rate
    return done, job.updates * len(job.folders), rate


def _elapsed_seconds(status: dict, active: bool) -> float | None:
    if not status.get('started') or status.get('state') == 'queued':
        return None
    end = status.get('ended') or status['heartbeat']
    until = datetime.now(UTC) if active else datetime.fromisoformat(end)
    return (until - datetime.fromisoformat(status['started'])).total_seconds()


def table_text(rows: list[dict]) -> str:
    """The table for a terminal, with a line that counts the states."""

    def clock(seconds: float | None) -> str:
        return '' if seconds is None else str(timedelta(seconds=round(seconds)))

    lines = [('job', 'state', 'stage', 'updates', 'elapsed', 'left', 'reason')]
    for row in rows:
        first = row['reason'].splitlines()[0] if row['reason'] else ''
        times = clock(row['elapsed']), clock(row['left'])
        lines.append((row['job'], row['state'], row['stage'], row['updates'], *times, first))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = [
        '  '.join(f'{cell:<{width}}' for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    states = [row['state'] for row in rows]
    counts = ', '.join(f'{states.count(state)} {state}' for state in dict.fromkeys(states))
    return '\n'.join([*shown, f'{len(rows)} jobs: {counts}'])


def is_ended(rows: list[dict]) -> bool:
    """Whether nothing of the sweep is under way."""
    return not any(row['state'] in ('running', 'queued') for row in rows)


def collect_results(path: str | Path) -> dict:
    """Gathers what a sweep has measured into its ``results.json`` and ``results.csv``; returns the former.

    By method 'studies' has means, intervals and paired differences over the seeds, as `Study.json`. In 'rows' a row per evaluated stage of each order, of the control (order 'none') and of the baselines (order 'baseline', stage
    0); a stage that orders share is in the rows of each, with the same `folder`. Jobs that are not done are listed under
    'unfinished'.

    Raises:
        MtpdError: `path` is no sweep.
    """
    sweep = load_sweep(path)
    queue = slurm_queue() if _on_slurm(sweep) else None
    rows, teachers, unfinished = [], [], []
    for job in sweep.jobs.values():
        state, reason = sweep.state(job, queue)
        if state != 'done':
            unfinished.append({'job': job.id, 'state': state, 'reason': reason})
        if job.kind == 'teacher':
            teachers += _detector_rows(sweep, job)
        elif job.kind == 'baseline':
            rows += _detector_rows(sweep, job)
        elif job.kind != 'prefix':
            rows += _stage_rows(sweep, job)
    info = sweep.info
    found = {key: info[key] for key in ('name', 'overrides', 'methods', 'seeds', 'updates')}
    found |= {'orders': [','.join(t or 'none' for t in order) for order in info['orders']]}
    found |= {'suggested': info['suggested'], 'teachers': teachers, 'unfinished': unfinished}
    found |= {
        'recipe': display_path(Path(info['recipe'])),
        'command': sweep.command,
        'environment': read_json(sweep.path / 'environment.json', {}),
    }
    found['costs'] = read_json(sweep.path / shared_run(info['seed']) / 'order' / 'costs.json')
    found['studies'] = {method: study.json() for method, study in sweep_studies(sweep).items()}
    found['rows'] = rows
    write_json(sweep.path / 'results.json', found)
    write_text(sweep.path / 'results.csv', _csv_text(rows))
    return found


def sweep_studies(sweep: Sweep) -> dict[str, Study]:
    """AP by sequence over the seeds, by method."""
    from ..analysis.study import load_study

    seed = sweep.info['seeds'][0] if sweep.info['seeds'] else None
    return {
        method: load_study(load_run(sweep.path / method / str(seed)))
        for method in sweep.info['methods']
    }


def _detector_rows(sweep: Sweep, job: Job) -> list[dict]:
    folder = sweep.path / job.folders[0]
    metrics = read_json(folder / 'metrics.json')
    if metrics is None:
        return []
    seconds = [row['time'] for row in read_log(folder / 'log.json') if 'time' in row]
    mean = sum(seconds) / len(seconds) if seconds else None
    found = {'order': 'baseline', 'method': None, 'seed': job.seed, 'stage': 0, 'stages': 0}
    found |= {'teacher': None, 'updates': job.updates} | ap_points(metrics)
    found |= {'seconds': mean and round(mean * job.updates, 1), 'folder': job.folders[0]}
    if job.kind == 'teacher':
        model = read_json(folder / 'model.json', {})
        size = {key: model.get(key) for key in ('parameters', 'gflops')}
        return [{'name': job.detector} | {k: found[k] for k in list(found)[6:]} | size]
    return [found]


def _stage_rows(sweep: Sweep, job: Job) -> list[dict]:
    rows = []
    for number, teacher in enumerate(job.teachers, 1):
        folder = (sweep.path / job.stage(number)).resolve()  # where it was computed
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
    columns = list(rows[0]) if rows else list(CSV_COLUMNS)
    writer = csv.DictWriter(out, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
