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
from ..utils.files import read_json, write_json, write_text
from ..utils.machine import write_environment
from ..utils.paths import display_path
from .plan import Job, Order, arm_name, plan_jobs, shared_run

if TYPE_CHECKING:
    from ..config.recipe import Recipe
if TYPE_CHECKING:
    from ..config.plan import Training
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
        words = ['mtpd', 'sweep', display_path(Path(self.info['recipe'])), '--orders', orders]
        words += ['--methods', ','.join(self.info['methods'])]
        words += ['--seeds', ','.join(map(str, self.info['seeds']))]
        words += ['--work-dir', display_path(self.path)]
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
            silent = _seconds_since(status['heartbeat'])
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
        from ..pipeline.run_dir import comparable_settings

        recipe = load_recipe(self.info['recipe'], self.info['overrides'])
        if comparable_settings(recipe.text) != comparable_settings(self.info['text']):
            raise MtpdError(f'{recipe.source} has changed since the sweep in {self.path} began.')
        return recipe_of_run(recipe, self.info, job.run)


def load_sweep(path: str | Path) -> Sweep:
    """Opens a sweep's folder. Raises MtpdError when it is none."""
    path = Path(path).resolve()
    info = read_json(path / 'sweep.json')
    if info is None:
        raise MtpdError(f'{path} is not a sweep: it has no sweep.json. Run `mtpd sweep` first.')
    return Sweep(path, info, {item['id']: Job.read(item) for item in info['jobs']})


def recipe_of_run(recipe: Recipe, info: dict, run: str) -> Recipe:
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


def _seconds_since(stamp: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# A sweep's folder, made or added to: its plan, its run directories, and the links to what they share.


def open_sweep(
    recipe: Recipe,
    path: Path,
    orders: list[Order],
    methods: list[str],
    seeds: list[int],
    suggested: dict | None = None,
    costs: bool = False,
) -> Sweep:
    """Makes a sweep's folder, or adds to the one that is there.

    Args:
        suggested: what `suggest` found, to be kept.
        costs: as `plan` takes it.

    Raises:
        MtpdError: it cannot be written to, its disk lacks room for the checkpoints, or it holds a sweep of another recipe
            or of other settings; names that clash.
        RecipeError: an order's length does not divide the updates.
    """
    from ..preflight import forecast

    info = read_plan(recipe, path) or {}
    orders = list(dict.fromkeys([*map(tuple, info.get('orders', [])), *orders]))
    if len({arm_name(order) for order in orders}) < len(orders):
        raise MtpdError(
            'Two orders would have one name, as of the teachers a, b and a-b. Rename a teacher.'
        )
    methods = list(dict.fromkeys([*info.get('methods', []), *methods]))
    seeds = list(dict.fromkeys([*info.get('seeds', []), *seeds]))
    suggested, costs = suggested or info.get('suggested'), costs or info.get('costs', False)
    jobs = plan_jobs(recipe, orders, methods, seeds, costs)
    info = {
        'name': recipe.name,
        'recipe': recipe.source,
        'overrides': recipe.overrides,
        'orders': orders,
        'methods': methods,
        'seeds': seeds,
        'updates': recipe.cfg.schedule.arm,
        'seed': recipe.seed,
        'costs': costs,
        'suggested': suggested,
        'jobs': [job.json() for job in jobs],
        'text': recipe.text,
    }
    if full := forecast.disk_problems(
        recipe, [t for job in jobs for t in _job_trainings(job, path)], path
    ):
        raise MtpdError(full[0])
    runs = {job.run: recipe_of_run(recipe, info, job.run) for job in jobs}
    try:
        write_json(path / 'sweep.json', info)
    except OSError as error:
        raise MtpdError(
            f'{path} cannot be written to ({error.strerror}). Choose another folder with --work-dir.'
        ) from None
    if not (path / 'environment.json').is_file():
        write_environment(path / 'environment.json', recipe.cfg.runtime.threads)
    sweep = load_sweep(path)
    for run, own in runs.items():
        _open_sweep_run(sweep, run, own)
    return sweep


def _job_trainings(job: Job, path: Path) -> list[Training]:
    """What a job trains."""
    from ..config.plan import Training

    if job.detector:
        folder = path / job.folders[0]
        return [Training(job.detector, None, job.updates, folder, 'model.pth')] * bool(job.updates)
    return [
        Training('student', job.teachers[number - 1], job.updates, path / job.stage(number))
        for number in range(job.first, job.last + 1)
    ]


def read_plan(recipe: Recipe, path: Path) -> dict | None:
    """sweep.json, None where there is none. Raises MtpdError where it is of another recipe."""
    from ..pipeline.run_dir import comparable_settings

    info = read_json(path / 'sweep.json')
    if info is not None and comparable_settings(info['text']) != comparable_settings(recipe.text):
        what = f'of {info["name"]}' if info['name'] != recipe.name else 'with other settings'
        raise MtpdError(
            f'{path} holds a sweep {what}. Choose another --work-dir, or remove that folder.'
        )
    return info


def _open_sweep_run(sweep: Sweep, run: str, recipe: Recipe) -> None:
    from ..pipeline.run_dir import run_info

    folder = sweep.path / run
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / 'recipe.py', recipe.text)
    if run.startswith('shared/'):
        return
    write_json(folder / 'run.json', run_info(recipe) | {'command': sweep.command})
    _link_shared(
        folder / 'detectors' / 'student', sweep.path / shared_run(recipe.seed) / 'detectors/student'
    )
    for name in recipe.cfg.teachers:
        teachers = sweep.path / shared_run(sweep.info['seed']) / 'detectors'
        _link_shared(folder / 'detectors' / name, teachers / name)
    for job in sweep.jobs.values():
        if job.kind == 'control' and job.seed == recipe.seed and job.run != run:
            _link_shared(
                folder / job.stage(1).removeprefix(f'{job.run}/'), sweep.path / job.stage(1)
            )
        if job.kind == 'prefix' and job.run == run:
            for name, arm in recipe.arms.items():
                same = arm.stage_updates == job.updates
                if name != job.arm and same and arm.teachers[: job.last] == job.teachers:
                    for number in range(job.first, job.last + 1):
                        place = folder / 'stages' / name / arm.stage_name(number)
                        _link_shared(place, sweep.path / job.stage(number))


def _link_shared(place: Path, target: Path) -> None:
    if not place.exists() and not place.is_symlink():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(target, place.parent))
