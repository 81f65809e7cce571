"""One job of a sweep in a process of its own: its work, and the status.json that it writes about itself."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import MtpdError
from ..pipeline.run_dir import timestamp
from ..pipeline.status import process_record
from ..utils.files import write_json
from .folder import Sweep, load_sweep
from .plan import Job

HEARTBEAT_INTERVAL = 10  # seconds


class SweepJob:
    """What submitit pickles and calls: job `id` of the sweep in `path`.

    Args:
        env: environment variables, set before torch is imported.
    """

    def __init__(self, path: Path, id: str, env: dict[str, str]):
        self.path, self.id, self.env = path, id, env

    def __call__(self) -> None:
        os.environ.update(self.env)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sweep = load_sweep(self.path)
        job = sweep.jobs[self.id]
        folder = sweep.job_dir(job)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / 'lock', timeout=0):  # falls with its owner
                self.status = JobStatus(sweep, job)
                self.status.record(do_job)
        except Timeout:
            raise MtpdError(
                f'{job.id} already runs in another process. Wait for its end; `mtpd status` shows it.'
            ) from None

    def checkpoint(self):
        """Before a time limit ends this process: the training's checkpoint is what the next one goes on from."""
        from submitit.helpers import DelayedSubmission

        self.status.close(
            state='queued', reason='out of time or preempted, goes on from its checkpoint'
        )
        return DelayedSubmission(SweepJob(self.path, self.id, self.env))


def do_job(sweep: Sweep, job: Job, status: JobStatus) -> None:
    """Trains and evaluates the detector or stage of a job.

    Raises:
        MtpdError: something that it needs is missing, or the recipe does not fit.
    """
    missing = [name for name in job.needs if not sweep.has_results(sweep.jobs[name])]
    if missing:
        raise MtpdError(
            f'{", ".join(missing)} must be done before {job.id}: the same `mtpd sweep` command runs both in order.'
        )
    from ..pipeline.detectors import prepare_detector
    from ..pipeline.stages import train_stage

    recipe, run_dir = sweep.recipe(job), sweep.path / job.run
    if job.detector:
        prepare_detector(recipe, job.detector, run_dir)
    for number in job.stages:
        status.update(stage=number)
        lock = sweep.path / f'{job.stage_dir(number)}.lock'
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):  # a job that began before the sweep grew may be at the same stage
            train_stage(recipe, number, job.arm, run_dir)


class JobStatus:
    """A job's status.json, with a heartbeat: what tells a job at work on another host from a killed one."""

    def __init__(self, sweep: Sweep, job: Job):
        self.sweep, self.job = sweep, job
        self.path = sweep.job_dir(job) / 'status.json'
        self.lock = threading.RLock()  # a signal's handler may write while its thread is writing
        self.ended = threading.Event()
        before = sweep.status(job)
        self.fields = {
            'id': job.id,
            'state': 'running',
            'reason': None,
            'stage': None,
            **process_record(),
            'slurm': _slurm_id(),
            'gpu': os.environ.get('CUDA_VISIBLE_DEVICES'),
            'threads': os.environ.get('OMP_NUM_THREADS'),
            'log': _log_path(),
            'attempt': before.get('attempt', 0) + 1,
            'first_started': before.get('first_started') or timestamp(),
            'started': timestamp(),
            'ended': None,
            'heartbeat': timestamp(),
        }

    def record(self, work: Callable[[Sweep, Job, JobStatus], None]) -> None:
        """Runs `work(sweep, job, status)` and writes down how it goes."""
        self.update()
        threading.Thread(target=self._beat, daemon=True).start()
        try:
            work(self.sweep, self.job, self)
        except SystemExit:  # `checkpoint` has written
            raise
        except KeyboardInterrupt:
            self.close(state='failed', reason='interrupted')
            raise
        except BaseException as error:
            self.close(state='failed', reason=_failure_text(error))
            raise
        self.close(state='done', stage=None)

    def update(self, **values: Any) -> None:
        """Writes values into status.json, with the time."""
        with self.lock:
            self.fields |= {'heartbeat': timestamp()} | values
            write_json(self.path, self.fields)

    def close(self, **values: Any) -> None:
        """Writes how the job ended; no heartbeat comes after it."""
        with self.lock:
            self.ended.set()
            self.update(ended=timestamp(), **values)

    def _beat(self) -> None:
        while not self.ended.wait(HEARTBEAT_INTERVAL):
            with self.lock:
                if not self.ended.is_set():
                    self.update()


def _failure_text(error: BaseException) -> str:
    if isinstance(error, MtpdError):
        return str(error)
    if 'timed-out' in str(error):  # submitit's, from the signal before the limit
        return 'out of time: raise --time; the same command goes on from its checkpoint'
    return f'{type(error).__name__}: {error}'


def _log_path() -> str | None:
    """Where submitit sends what this process prints."""
    if 'SUBMITIT_FOLDER' not in os.environ:
        return None
    from submitit import JobEnvironment

    return str(JobEnvironment().paths.stdout)


def _slurm_id() -> str | None:
    array = os.environ.get('SLURM_ARRAY_JOB_ID')
    if array:
        return f'{array}_{os.environ["SLURM_ARRAY_TASK_ID"]}'
    return os.environ.get('SLURM_JOB_ID')
