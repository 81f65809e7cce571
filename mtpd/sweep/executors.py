"""A sweep's jobs in slots on this machine, a GPU to each slot where there are any."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MtpdError, unknown
from ..pipeline.run_dir import timestamp
from ..utils.files import read_json, write_json
from ..utils.machine import cpu_cores, nvidia_gpus
from .folder import DEADLINE, Sweep
from .job import SweepJob
from .plan import Job


def run_local(
    sweep: Sweep,
    jobs: list[Job],
    resources: Resources,
    echo: Callable[[str], None],
    deadline: float = DEADLINE,
    poll: float = 0.5,
) -> None:
    """Runs jobs, each once and as soon as what it needs is done; returns when no more can be done.

    A job that another process runs already takes a slot until it ends.
    """
    slots = _Slots(sweep, resources, echo, deadline)
    waiting = list(jobs)
    try:
        while waiting or slots.busy:
            slots.clear()
            for job in list(waiting):
                if slots.take(job, waiting):
                    waiting.remove(job)
            time.sleep(poll)
    except BaseException:
        slots.cancel()
        raise


class _Slots:
    """The jobs at work: in slots 0, 1, ... those that were started here, and those of other processes."""

    def __init__(self, sweep: Sweep, resources: Resources, echo, deadline: float):
        import submitit

        self.sweep, self.echo, self.deadline = sweep, echo, deadline
        self.devices = _slot_gpus()
        self.count = resources.slots or max(len(self.devices), 1)
        self.threads = resources.threads or max(1, cpu_cores() // self.count)
        self.executor = submitit.LocalExecutor(
            sweep.path / 'submitit', max_num_timeout=resources.requeues
        )
        self.executor.update_parameters(
            timeout_min=resources.minutes or MINUTES_A_YEAR, signal_delay_s=resources.delay
        )
        self.running: dict[int, tuple] = {}
        self.elsewhere: list[Job] = []

    @property
    def busy(self) -> set[str]:
        return {job.id for job, _ in self.running.values()} | {job.id for job in self.elsewhere}

    def state(self, job: Job) -> str:
        return self.sweep.state(job, deadline=self.deadline)[0]

    def clear(self) -> None:
        """Empties the slots of jobs that have ended, and tells of them."""
        ended = [slot for slot, (_, process) in self.running.items() if process.done()]
        gone = [self.running.pop(slot)[0] for slot in ended]
        gone += [job for job in self.elsewhere if self.state(job) != 'running']
        self.elsewhere = [job for job in self.elsewhere if job not in gone]
        for job in gone:
            state, reason = self.sweep.state(job, deadline=self.deadline)
            if not self.sweep.status(job):
                state, reason = 'lost', 'killed before it wrote anything'
                place = self.sweep.path / 'jobs' / job.id / 'status.json'
                write_json(place, {'id': job.id, 'state': state, 'reason': reason})
            self.echo(f'{job.id}: {state}' + (f' ({reason.splitlines()[0]})' if reason else ''))

    def take(self, job: Job, waiting: list[Job]) -> bool:
        """Starts a job where that is possible. False: it has to wait."""
        state = self.state(job)
        if state == 'done':
            return True
        if state == 'running':
            self.elsewhere.append(job)
            return True
        needed = [self.sweep.jobs[name] for name in job.needs]
        if any(self.state(item) != 'done' for item in needed):
            coming = self.busy | {item.id for item in waiting}
            if any(item.id in coming for item in needed):
                return False
            self.echo(f'{job.id}: not started, what it needs is not done')
            return True
        free = [slot for slot in range(self.count) if slot not in self.running]
        if not free or len(self.running) + len(self.elsewhere) >= self.count:
            return False
        self._start(job, free[0])
        return True

    def _start(self, job: Job, slot: int) -> None:
        env = {'OMP_NUM_THREADS': str(self.threads)}
        if self.devices:
            env['CUDA_VISIBLE_DEVICES'] = self.devices[slot % len(self.devices)]
        with _environment_variables(env), _interrupts_ignored():
            process = self.executor.submit(SweepJob(self.sweep.path, job.id, env))
        self.running[slot] = job, process
        self.echo(f'{job.id}: started in slot {slot}')

    def cancel(self, patience: float = 20) -> None:
        """Interrupts the jobs that were started here, and waits until they have written it down."""
        told, until = set(), time.time() + patience
        while time.time() < until and not all(p.done() for _, p in self.running.values()):
            for job, _ in self.running.values():
                if job.id not in told and self.state(job) == 'running':
                    told.add(job.id)
                    os.kill(self.sweep.status(job)['pid'], signal.SIGINT)
            time.sleep(0.1)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """What starts in it is deaf to Ctrl-C; a job listens again by itself, and ends with a word on it."""
    if threading.current_thread() is not threading.main_thread():  # Ctrl-C is another's business
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _slot_gpus() -> list[str]:
    """The GPUs that slots share out, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    if given is not None:
        return [name.strip() for name in given.split(',') if name.strip()]
    return [str(number) for number in range(len(nvidia_gpus()))]


@contextlib.contextmanager
def _environment_variables(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


# A sweep's jobs on SLURM: arrays, which wait for what they need.


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
            ids = [numbers.get(name) or _slurm_number(sweep, name) for name in after]
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
                _write_queued_status(sweep, job)
            try:
                with executor.batch():
                    made = [executor.submit(SweepJob(sweep.path, job.id, env)) for job in group]
            except (
                submitit.core.utils.FailedJobError,
                submitit.core.utils.FailedSubmissionError,
            ) as error:
                for job in group:
                    _write_queued_status(sweep, job, state='failed', reason='sbatch refused it')
                raise MtpdError(f'sbatch refused {group[0].id}: {error}') from None
            for job, handle in zip(group, made, strict=True):
                numbers[job.id] = handle.job_id
                write_json(sweep.path / 'jobs' / job.id / 'slurm.json', {'job': handle.job_id})
                wait = f', after {", ".join(after)}' if after else ''
                echo(f'{job.id}: SLURM job {handle.job_id}{wait}')


def _slurm_number(sweep: Sweep, name: str) -> str:
    return read_json(Path(sweep.path, 'jobs', name, 'slurm.json'))['job']


def _write_queued_status(
    sweep: Sweep, job: Job, state: str = 'queued', reason: str | None = None
) -> None:
    status = sweep.status(job)
    status |= {
        'id': job.id,
        'state': state,
        'reason': reason,
        'heartbeat': timestamp(),
        'ended': None,
    }
    write_json(sweep.path / 'jobs' / job.id / 'status.json', status)


# Where a sweep's jobs run and what they get there; both executors are built on submitit.


EXECUTORS = ('local', 'slurm')
MINUTES_A_YEAR = 365 * 24 * 60  # minutes


@dataclass(frozen=True)
class Resources:
    """What a job gets. `slots`: jobs side by side; `slurm` holds submitit's own parameters, such as partition."""

    executor: str = 'local'
    slots: int | None = None
    minutes: int | None = None
    signal_delay: int | None = None
    requeues: int = 3
    threads: int | None = None
    slurm: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises MtpdError where the executor is unknown or cannot be used here."""
        if self.executor not in EXECUTORS:
            raise MtpdError(f'--executor: {unknown("executor", self.executor, EXECUTORS)}')
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise MtpdError(
                'sweeps need submitit, which is not installed: '
                '`make env`, or pip install -r requirements/sweep.txt, or pip install "mtpd[sweep]".'
            ) from None
        if self.executor == 'slurm':
            for program in ('sbatch', 'srun'):
                if not shutil.which(program):
                    raise MtpdError(
                        f'--executor slurm: there is no {program} on this machine. Log in to a node that submits jobs, '
                        'or use --executor local.'
                    )
            if not self.minutes:
                raise MtpdError("--executor slurm: give a job's time limit in minutes with --time.")

    @property
    def delay(self) -> int:
        """Seconds before the time limit at which a job is told to stop."""
        return self.signal_delay or min(90, 15 * (self.minutes or MINUTES_A_YEAR))
