"""A sweep's folder: sweep.json says what it is, ``jobs/<id>/status.json`` how far each job is.

``shared/<seed>`` and ``<method>/<seed>`` are run directories. What jobs share lies in one of them; links lead to it from
the others.
"""

from __future__ import annotations

import os
import shlex
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MtpdError
from ..utils.files import read_json
from ..utils.paths import shown
from .plan import Job, arm_name

if TYPE_CHECKING:
    from ..config.recipe import Recipe

DEADLINE = 120  # seconds without a sign of life after which a job counts as dead


@dataclass(frozen=True)
class Sweep:
    """A sweep as sweep.json has it. Reading one takes no mmcv."""

    path: Path
    info: dict
    jobs: dict[str, Job]

    @property
    def command(self) -> str:
        """That continues or repeats it, without executor and resources."""
        orders = ';'.join(','.join(t or 'none' for t in order) for order in self.info['orders'])
        words = ['mtpd', 'sweep', shown(Path(self.info['recipe'])), '--orders', orders]
        words += ['--methods', ','.join(self.info['methods'])]
        words += ['--seeds', ','.join(map(str, self.info['seeds']))]
        words += ['--work-dir', shown(self.path)]
        if options := self.info['overrides']:
            words += ['--cfg-options', ' '.join(f'{key}={value}' for key, value in options.items())]
        return shlex.join(words)

    def status(self, job: Job) -> dict:
        return read_json(self.path / 'jobs' / job.id / 'status.json', {})

    def made(self, job: Job) -> bool:
        """Whether the job's results are there."""
        return all((self.path / item / 'metrics.json').is_file() for item in job.folders)

    def state(self, job: Job, queue: dict[str, str] | None = None, deadline: float = DEADLINE):
        """The job's state and a reason.

        'done', 'failed', 'running', 'queued' (SLURM has it), 'lost' (it was running, and is no more) or 'pending'.

        Args:
            queue: the states of SLURM's jobs by their id, if it could be asked.
            deadline: seconds.
        """
        status = self.status(job)
        state, reason = status.get('state', 'pending'), status.get('reason')
        number = (read_json(self.path / 'jobs' / job.id / 'slurm.json') or {}).get('job')
        if state == 'queued':
            if queue is not None and number not in queue:
                return 'lost', 'it left the queue without starting'
            return 'queued', reason or (queue or {}).get(number)
        if state == 'running':
            silent = _age(status['heartbeat'])
            if queue is not None and status.get('slurm') and status['slurm'] not in queue:
                return 'lost', 'killed: SLURM has ended it'
            if status['host'] == socket.gethostname() and not _alive(status['pid']):
                return 'lost', 'killed: its process is gone'
            if silent > deadline:
                return 'lost', f'no sign of life for {silent:.0f} s'
        if state == 'done' and not self.made(job):
            return 'pending', 'its results have been removed'
        return state, reason

    def recipe(self, job: Job) -> Recipe:
        """The recipe of a job's run directory.

        Raises:
            MtpdError: the recipe's file has changed since the sweep began.
        """
        from ..config.recipe import load_recipe
        from ..pipeline.rundir import meant

        recipe = load_recipe(self.info['recipe'], self.info['overrides'])
        if meant(recipe.text) != meant(self.info['text']):
            raise MtpdError(f'{recipe.source} has changed since the sweep in {self.path} began.')
        return run_recipe(recipe, self.info, job.run)


def load_sweep(path: str | Path) -> Sweep:
    """Opens a sweep's folder. Raises MtpdError when it is none."""
    path = Path(path).resolve()
    info = read_json(path / 'sweep.json')
    if info is None:
        raise MtpdError(f'{path} is not a sweep: it has no sweep.json. Run `mtpd sweep` first.')
    return Sweep(path, info, {item['id']: Job.read(item) for item in info['jobs']})


def run_recipe(recipe: Recipe, info: dict, run: str) -> Recipe:
    from ..config.recipe import load_recipe

    method, seed = run.split('/')
    if method == 'shared':
        return load_recipe(recipe, {'seed': int(seed)})
    arms = {
        arm_name(tuple(order)): {
            'label': ' → '.join(t or 'no teacher' for t in order),
            'teachers': list(order),
        }
        for order in info['orders']
    }
    changes = {'arms': {'_delete_': True, **arms}, 'distill.method': method, 'seed': int(seed)}
    return load_recipe(recipe, changes)


def _age(stamp: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
