"""A sweep's folder: sweep.json says what it is, ``jobs/<id>/status.json`` how far each job is.

``shared/<seed>`` and ``<method>/<seed>`` are run directories. What jobs share lies in one of them; links lead to it from
the others.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.settings import CHANGEABLE, differing_settings, parse_settings
from ..errors import MtpdError
from ..pipeline.run_dir import other_settings_text, run_info
from ..pipeline.status import may_be_alive
from ..utils.files import read_json, write_json, write_text
from ..utils.machine import write_environment
from ..utils.paths import display_path
from .plan import Job, Order, arm_name, plan_jobs, shared_run

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
        """The command that continues or repeats the sweep, without executor and resources."""
        orders = ';'.join(','.join(t or 'none' for t in order) for order in self.info['orders'])
        words = ['mtpd', 'sweep', display_path(Path(self.info['recipe'])), '--orders', orders]
        words += ['--methods', ','.join(self.info['methods'])]
        words += ['--seeds', ','.join(map(str, self.info['seeds']))]
        words += ['--work-dir', display_path(self.path)]
        if options := self.info['overrides']:
            words += ['--cfg-options', ' '.join(f'{key}={value}' for key, value in options.items())]
        return shlex.join(words)

    def job_dir(self, job: Job) -> Path:
        """The folder of a job's status.json; its results lie in run directories."""
        return self.path / 'jobs' / job.id

    def status(self, job: Job) -> dict:
        """What the job's status.json says; empty before it began."""
        return read_json(self.job_dir(job) / 'status.json', {})

    def slurm_number(self, job: Job) -> str | None:
        """The number under which SLURM has the job (``12_3`` in an array); None where it was not handed to it."""
        return read_json(self.job_dir(job) / 'slurm.json', {}).get('job')

    def has_results(self, job: Job) -> bool:
        """Whether all of the job's results are there."""
        return all((self.path / item / 'metrics.json').is_file() for item in job.folders)

    def state(
        self, job: Job, queue: dict[str, str] | None = None, deadline: float = DEADLINE
    ) -> tuple[str, str | None]:
        """The job's state and a reason.

        'done', 'failed', 'running', 'queued' (SLURM has it), 'lost' (it was running, and is no more) or 'pending'.

        Args:
            queue: the states of SLURM's jobs by their number, if it could be asked.
            deadline: seconds.
        """
        status = self.status(job)
        state, reason = status.get('state', 'pending'), status.get('reason')
        if state == 'queued':
            number = self.slurm_number(job)
            if queue is not None and number not in queue:
                return 'lost', 'left the queue without starting'
            return 'queued', reason or (queue or {}).get(number)
        if state == 'running':
            if queue is not None and status.get('slurm') and status['slurm'] not in queue:
                return 'lost', 'killed: SLURM has ended it'
            if not may_be_alive(status):
                return 'lost', 'killed: its process is gone'
            silence = _seconds_since(status['heartbeat'])
            if silence > deadline:  # of another host the process can't be asked
                return 'lost', f'no sign of life for {silence:.0f} s'
        if state == 'done' and not self.has_results(job):
            return 'pending', 'its results have been removed'
        return state, reason

    def recipe(self, job: Job) -> Recipe:
        """The recipe of a job's run directory.

        Raises:
            MtpdError: the recipe's file has changed since the sweep began.
        """
        from ..config.recipe import load_recipe

        recipe = load_recipe(self.info['recipe'], self.info['overrides'])
        if keys := _differing_keys(self.info, recipe):
            raise MtpdError(
                f'{recipe.source} has changed since the sweep in {self.path} began: {", ".join(keys[:3])}. Change it back, '
                'or begin another sweep: --work-dir.'
            )
        return recipe_of_run(recipe, self.info, job.run)


def load_sweep(path: str | Path) -> Sweep:
    """Opens a sweep's folder. Raises MtpdError when it is none."""
    path = Path(path).resolve()
    info = read_json(path / 'sweep.json')
    if info is None:
        raise MtpdError(f'{path} is not a sweep: it has no sweep.json. Run `mtpd sweep` first.')
    return Sweep(path, info, {fields['id']: Job.from_json(fields) for fields in info['jobs']})


def recipe_of_run(recipe: Recipe, info: dict, run: str) -> Recipe:
    """The recipe of a run directory below a sweep's, from the sweep's own.

    Args:
        info: of sweep.json.
        run: ``shared/<seed>`` or ``<method>/<seed>``.
    """
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
    overrides = {'arms': {'_delete_': True, **arms}, 'distill.method': method, 'seed': int(seed)}
    return load_recipe(recipe, overrides)


def _seconds_since(stamp: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()


def _differing_keys(info: dict, recipe: Recipe) -> list[str]:
    """The settings in which a sweep's recipe differs from `recipe`."""
    settings = parse_settings(info['text'], 'the recipe in sweep.json')
    return differing_settings(settings, recipe.cfg._cfg_dict.to_dict(), CHANGEABLE)


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
        suggested: what `suggested_orders` returned, for sweep.json.
        costs: as `plan_jobs` takes it.

    Raises:
        MtpdError: it cannot be written to, its disk lacks room for the checkpoints, or it holds a sweep of another recipe
            or of other settings; names that clash.
        RecipeError: an order's length does not divide the updates.
    """
    from ..preflight import forecast

    before = read_plan(recipe, path) or {}
    orders = _union(map(tuple, before.get('orders', [])), orders)
    if len({arm_name(order) for order in orders}) < len(orders):
        raise MtpdError(
            'Two orders would have the same name, as with the teachers a, b and a-b. Rename a teacher.'
        )
    methods = _union(before.get('methods', []), methods)
    seeds = _union(before.get('seeds', []), seeds)
    costs = costs or before.get('costs', False)
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
        'suggested': suggested or before.get('suggested'),
        'jobs': [job.to_json() for job in jobs],
        'text': recipe.text,
    }
    trainings = [training for job in jobs for training in _job_trainings(job, path)]
    if problems := forecast.disk_problems(recipe, trainings, path):
        raise MtpdError(problems[0])
    run_recipes = {job.run: recipe_of_run(recipe, info, job.run) for job in jobs}
    try:
        write_json(path / 'sweep.json', info)
    except OSError as error:
        raise MtpdError(
            f'{path} cannot be written to ({error.strerror}). Choose another folder with --work-dir.'
        ) from None
    if not (path / 'environment.json').is_file():
        write_environment(path / 'environment.json', recipe.cfg.runtime.threads)
    sweep = load_sweep(path)
    for run, run_recipe in run_recipes.items():
        _open_sweep_run(sweep, run, run_recipe)
    return sweep


def read_plan(recipe: Recipe, path: Path) -> dict | None:
    """The content of sweep.json, None where there is none. Raises MtpdError where it is of another recipe."""
    info = read_json(path / 'sweep.json')
    if info is None:
        return None
    keys = _differing_keys(info, recipe)
    if 'name' in keys:
        raise MtpdError(
            f'{path} holds a sweep of {info["name"]}. Choose another --work-dir, or remove that folder.'
        )
    if keys:
        raise MtpdError(other_settings_text(path, keys, 'a sweep'))
    return info


def _union(first: Iterable, second: Iterable) -> list:
    """The items of both, each once."""
    return list(dict.fromkeys([*first, *second]))


def _job_trainings(job: Job, path: Path) -> list[Training]:
    """What a job trains."""
    from ..config.plan import Training

    if job.detector and job.updates:
        folder = path / job.folders[0]
        return [Training(job.detector, None, job.updates, folder, 'model.pth')]
    return [
        Training('student', job.teachers[number - 1], job.updates, path / job.stage_dir(number))
        for number in job.stages
    ]


def _open_sweep_run(sweep: Sweep, run: str, recipe: Recipe) -> None:
    """Makes a run directory below the sweep's, with links to what other jobs compute for it."""
    folder = sweep.path / run
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / 'recipe.py', recipe.text)
    if run.startswith('shared/'):
        return
    write_json(folder / 'run.json', run_info(recipe) | {'command': sweep.command})
    baseline = sweep.path / shared_run(recipe.seed) / 'detectors' / 'student'
    _link_shared(folder / 'detectors' / 'student', baseline)
    teachers = sweep.path / shared_run(sweep.info['seed']) / 'detectors'
    for name in recipe.cfg.teachers:
        _link_shared(folder / 'detectors' / name, teachers / name)
    for job in sweep.jobs.values():
        if job.kind == 'control' and job.seed == recipe.seed and job.run != run:
            stage_dir = job.stage_dir(1)
            _link_shared(folder / stage_dir.removeprefix(f'{job.run}/'), sweep.path / stage_dir)
        if job.kind == 'prefix' and job.run == run:
            _link_prefix(sweep, job, recipe)


def _link_prefix(sweep: Sweep, job: Job, recipe: Recipe) -> None:
    """Links the first stages of the arms that share them to those that `job` computes."""
    for name, arm in recipe.arms.items():
        same_updates = arm.stage_updates == job.updates
        if name != job.arm and same_updates and arm.teachers[: job.last] == job.teachers:
            for number in job.stages:
                link = sweep.path / job.run / 'stages' / name / arm.stage_name(number)
                _link_shared(link, sweep.path / job.stage_dir(number))


def _link_shared(link: Path, target: Path) -> None:
    if not link.exists() and not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(target, link.parent))
