"""A sweep's jobs in slots on this machine, a GPU to each slot where there are any."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from ..utils.files import write_json
from ..utils.machine import cores, gpus
from .folder import DEADLINE, Sweep
from .job import SweepJob
from .plan import Job
from .resources import YEAR, Resources


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
        self.devices = _devices()
        self.count = resources.slots or max(len(self.devices), 1)
        self.threads = resources.threads or max(1, cores() // self.count)
        self.executor = submitit.LocalExecutor(
            sweep.path / 'submitit', max_num_timeout=resources.requeues
        )
        self.executor.update_parameters(
            timeout_min=resources.minutes or YEAR, signal_delay_s=resources.delay
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
        with _environment(env), _interrupts_ignored():
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


def _devices() -> list[str]:
    """The GPUs that slots share out, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    if given is not None:
        return [name.strip() for name in given.split(',') if name.strip()]
    return [str(number) for number in range(len(gpus()))]


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
