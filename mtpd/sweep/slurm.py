"""A sweep's jobs on SLURM: arrays, which wait for what they need."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from ..errors import MtpdError
from ..pipeline.rundir import now
from ..utils.files import read_json, write_json
from .folder import Sweep
from .job import SweepJob
from .plan import Job
from .resources import Resources


def slurm_queue() -> dict[str, str] | None:
    """The user's jobs that SLURM has not ended: state by id (``12_3`` in an array). None: it can't be asked."""
    if not shutil.which('squeue'):
        return None
    command = ['squeue', '--noheader', '--me', '--array', '--format=%i|%T|%r']
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    rows = (line.split('|') for line in out.splitlines())
    return {
        number: state.lower() + (f' ({reason})' if reason != 'None' else '')
        for number, state, reason in rows
    }


def submit_slurm(
    sweep: Sweep, jobs: list[Job], resources: Resources, echo: Callable[[str], None]
) -> None:
    """Hands jobs to SLURM: those with the same needs as one array, which waits for these to end well."""
    import submitit

    numbers: dict[str, str] = {}
    left = list(jobs)
    while left:
        ready = [job for job in left if not any(item.id in job.needs for item in left)]
        groups: dict[tuple[str, ...], list[Job]] = {}
        for job in ready:
            after = [name for name in job.needs if sweep.state(sweep.jobs[name])[0] != 'done']
            groups.setdefault(tuple(after), []).append(job)
            left.remove(job)
        for after, group in groups.items():
            ids = [numbers.get(name) or _number(sweep, name) for name in after]
            executor = submitit.SlurmExecutor(sweep.path / 'submitit', resources.requeues)
            settings = {'job_name': sweep.info['name'], **resources.slurm}
            if resources.minutes:
                settings['time'] = resources.minutes
            if resources.slots:
                settings['array_parallelism'] = resources.slots
            if ids:
                settings['dependency'] = 'afterok:' + ':'.join(ids)
                settings['additional_parameters'] = {'kill-on-invalid-dep': 'yes'}
            executor.update_parameters(signal_delay_s=resources.delay, **settings)
            env = {'OMP_NUM_THREADS': str(resources.threads)} if resources.threads else {}
            for job in group:  # before the job can write itself
                _queued(sweep, job)
            try:
                with executor.batch():
                    made = [executor.submit(SweepJob(sweep.path, job.id, env)) for job in group]
            except (
                submitit.core.utils.FailedJobError,
                submitit.core.utils.FailedSubmissionError,
            ) as error:
                for job in group:
                    _queued(sweep, job, state='failed', reason='sbatch refused it')
                raise MtpdError(f'sbatch refused {group[0].id}: {error}') from None
            for job, handle in zip(group, made, strict=True):
                numbers[job.id] = handle.job_id
                write_json(sweep.path / 'jobs' / job.id / 'slurm.json', {'job': handle.job_id})
                wait = f', after {", ".join(after)}' if after else ''
                echo(f'{job.id}: SLURM job {handle.job_id}{wait}')


def _number(sweep: Sweep, name: str) -> str:
    return read_json(Path(sweep.path, 'jobs', name, 'slurm.json'))['job']


def _queued(sweep: Sweep, job: Job, state: str = 'queued', reason: str | None = None) -> None:
    status = sweep.status(job)
    status |= {'id': job.id, 'state': state, 'reason': reason, 'heartbeat': now(), 'ended': None}
    write_json(sweep.path / 'jobs' / job.id / 'status.json', status)
