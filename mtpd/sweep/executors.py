"""Where a sweep's jobs run and what they get there: slots on this machine, or SLURM. Both are built on submitit."""

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
from typing import Any

from ..errors import MtpdError, unknown_name
from ..pipeline.run_dir import timestamp
from ..utils.files import write_json
from ..utils.machine import cpu_cores, nvidia_gpus
from ..utils.processes import same_imports
from .folder import DEADLINE, Sweep
from .job import SweepJob
from .plan import Job

EXECUTORS = ('local', 'slurm')
MINUTES_A_YEAR = 365 * 24 * 60


@dataclass(frozen=True)
class Resources:
    """The resources of a job.

    Attributes:
        slots: jobs side by side.
        minutes: a job's time limit.
        signal_delay: seconds before the limit at which a job is told to stop.
        requeues: how often a job out of time goes on by itself.
        threads: of a job, on the CPU.
        slurm: submitit's own parameters, such as partition.
    """

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
            raise MtpdError(f'--executor: {unknown_name("executor", self.executor, EXECUTORS)}')
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
        """Seconds before the time limit at which a job is told to stop; by default 15 to 90."""
        return self.signal_delay or min(90, 15 * (self.minutes or MINUTES_A_YEAR))


# Slots on this machine, a GPU to each where there are any.


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

    Args:
        deadline: seconds without a sign of life after which a job counts as lost.
        poll: seconds between looks at the jobs.
    """
    slots = _Slots(sweep, resources, echo, deadline)
    waiting = list(jobs)
    try:
        while waiting or slots.busy:
            slots.release_ended()
            for job in list(waiting):
                if slots.settle(job, waiting):
                    waiting.remove(job)
            time.sleep(poll)
    except BaseException:
        slots.cancel()
        raise


class _Slots:
    """The jobs at work: in slots 0, 1, ... those that were started here, and those of other processes."""

    def __init__(
        self, sweep: Sweep, resources: Resources, echo: Callable[[str], None], deadline: float
    ):
        import submitit

        self.sweep, self.echo, self.deadline = sweep, echo, deadline
        self.gpus = _slot_gpus()
        self.count = resources.slots or max(len(self.gpus), 1)
        self.threads = resources.threads or max(1, cpu_cores() // self.count)
        self.executor = submitit.LocalExecutor(
            sweep.path / 'submitit', max_num_timeout=resources.requeues
        )
        self.executor.update_parameters(
            timeout_min=resources.minutes or MINUTES_A_YEAR, signal_delay_s=resources.delay
        )
        self.started: dict[int, tuple[Job, submitit.Job]] = {}  # by slot
        self.elsewhere: list[Job] = []

    @property
    def busy(self) -> set[str]:
        """The ids of the jobs at work."""
        return {job.id for job, _ in self.started.values()} | {job.id for job in self.elsewhere}

    def state(self, job: Job) -> str:
        return self.sweep.state(job, deadline=self.deadline)[0]

    def release_ended(self) -> None:
        """Empties the slots of jobs that have ended, and says how these ended."""
        free_slots = [slot for slot, (_, process) in self.started.items() if process.done()]
        ended = [self.started.pop(slot)[0] for slot in free_slots]
        ended += [job for job in self.elsewhere if self.state(job) != 'running']
        self.elsewhere = [job for job in self.elsewhere if job not in ended]
        for job in ended:
            state, reason = self.sweep.state(job, deadline=self.deadline)
            if not self.sweep.status(job):
                state, reason = 'lost', 'killed before it wrote anything'
                status = {'id': job.id, 'state': state, 'reason': reason}
                write_json(self.sweep.job_dir(job) / 'status.json', status)
            self.echo(
                f'{job.id}: {state} ({reason.splitlines()[0]})' if reason else f'{job.id}: {state}'
            )

    def settle(self, job: Job, waiting: list[Job]) -> bool:
        """Starts a job unless it is done, runs elsewhere or can't be done. False: it has to wait."""
        state = self.state(job)
        if state == 'done':
            return True
        if state == 'running':
            self.elsewhere.append(job)
            return True
        needed = [name for name in job.needs if self.state(self.sweep.jobs[name]) != 'done']
        if needed:
            if self.busy.union(item.id for item in waiting).intersection(needed):
                return False
            self.echo(f'{job.id}: not started, because the jobs that it needs are not done')
            return True
        free_slots = [slot for slot in range(self.count) if slot not in self.started]
        if not free_slots or len(self.started) + len(self.elsewhere) >= self.count:
            return False
        self._start(job, free_slots[0])
        return True

    def _start(self, job: Job, slot: int) -> None:
        env = {'OMP_NUM_THREADS': str(self.threads)}
        if self.gpus:
            env['CUDA_VISIBLE_DEVICES'] = self.gpus[slot % len(self.gpus)]
        with _environment_variables(env | same_imports()), _interrupts_ignored():
            process = self.executor.submit(SweepJob(self.sweep.path, job.id, env))
        self.started[slot] = job, process
        self.echo(f'{job.id}: started in slot {slot}')

    def cancel(self, patience: float = 20) -> None:
        """Interrupts the jobs that were started here, and waits some seconds until they have written it down."""
        interrupted, deadline = set(), time.time() + patience
        while time.time() < deadline and not all(p.done() for _, p in self.started.values()):
            for job, _ in self.started.values():
                if job.id not in interrupted and self.state(job) == 'running':
                    interrupted.add(job.id)
                    os.kill(self.sweep.status(job)['pid'], signal.SIGINT)
            time.sleep(0.1)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """What starts in it is deaf to Ctrl-C; a job listens again by itself, and ends with a word on it."""
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _slot_gpus() -> list[str]:
    """The GPUs that slots share out, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    if visible is not None:
        return [name.strip() for name in visible.split(',') if name.strip()]
    return [str(number) for number in range(len(nvidia_gpus()))]


@contextlib.contextmanager
def _environment_variables(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


# SLURM: arrays of jobs, which wait for what they need.


def slurm_queue() -> dict[str, str] | None:
    """The user's jobs that SLURM has not ended: state by number (``12_3`` in an array). None: it can't be asked."""
    if not shutil.which('squeue'):
        return None
    command = ['squeue', '--noheader', '--me', '--array', '--format=%i|%T|%r']
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    queue = {}
    for line in out.splitlines():
        number, state, reason = line.split('|')
        queue[number] = state.lower() if reason == 'None' else f'{state.lower()} ({reason})'
    return queue


def submit_slurm(
    sweep: Sweep, jobs: list[Job], resources: Resources, echo: Callable[[str], None]
) -> None:
    """Hands jobs to SLURM: those with the same needs as one array, which waits for these to end well.

    Raises:
        MtpdError: sbatch refuses an array; those before it are handed over.
    """
    left = list(jobs)
    while left:
        ready = [job for job in left if not any(item.id in job.needs for item in left)]
        arrays: dict[tuple[str, ...], list[Job]] = {}
        for job in ready:
            needs = [name for name in job.needs if sweep.state(sweep.jobs[name])[0] != 'done']
            arrays.setdefault(tuple(needs), []).append(job)
            left.remove(job)
        for needs, array in arrays.items():
            _submit_array(sweep, array, needs, resources, echo)


def _submit_array(
    sweep: Sweep,
    jobs: list[Job],
    needs: tuple[str, ...],
    resources: Resources,
    echo: Callable[[str], None],
) -> None:
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = submitit.SlurmExecutor(sweep.path / 'submitit', resources.requeues)
    settings = {'job_name': sweep.info['name'], **resources.slurm}
    if resources.minutes:
        settings['time'] = resources.minutes
    if resources.slots:
        settings['array_parallelism'] = resources.slots
    if needs:
        numbers = [sweep.slurm_number(sweep.jobs[name]) for name in needs]
        settings['dependency'] = ':'.join(['afterok', *numbers])
        settings['additional_parameters'] = {'kill-on-invalid-dep': 'yes'}
    executor.update_parameters(signal_delay_s=resources.delay, **settings)
    env = {'OMP_NUM_THREADS': str(resources.threads)} if resources.threads else {}
    for job in jobs:  # before the job can write itself
        _write_queued_status(sweep, job)
    try:
        with _environment_variables(same_imports()), executor.batch():  # sbatch hands them on
            handles = [executor.submit(SweepJob(sweep.path, job.id, env)) for job in jobs]
    except (FailedJobError, FailedSubmissionError) as error:
        for job in jobs:
            _write_queued_status(sweep, job, state='failed', reason='sbatch refused it')
        raise MtpdError(
            f'sbatch refused {jobs[0].id}: {error}\nCorrect --partition, --account, --time, --mem and the like; the same '
            'command submits the missing jobs.'
        ) from None
    for job, handle in zip(jobs, handles, strict=True):
        write_json(sweep.job_dir(job) / 'slurm.json', {'job': handle.job_id})
        after = f', after {", ".join(needs)}' if needs else ''
        echo(f'{job.id}: SLURM job {handle.job_id}{after}')


def _write_queued_status(
    sweep: Sweep, job: Job, state: str = 'queued', reason: str | None = None
) -> None:
    fields = {'id': job.id, 'state': state, 'reason': reason, 'ended': None}
    fields['heartbeat'] = timestamp()
    write_json(sweep.job_dir(job) / 'status.json', sweep.status(job) | fields)
