"""A sweep's folder, made or added to: its plan, its run directories, and the links to what they share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MtpdError
from ..utils.environment import write as write_environment
from ..utils.files import read_json, write_json, write_text
from .folder import Sweep, load_sweep, run_recipe
from .plan import Job, Order, arm_name, plan, shared_run

if TYPE_CHECKING:
    from ..config.recipe import Recipe
    from ..config.trainings import Training


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
    from ..preflight import disk

    info = check(recipe, path) or {}
    orders = list(dict.fromkeys([*map(tuple, info.get('orders', [])), *orders]))
    if len({arm_name(order) for order in orders}) < len(orders):
        raise MtpdError(
            'Two orders would have one name, as of the teachers a, b and a-b. Rename a teacher.'
        )
    methods = list(dict.fromkeys([*info.get('methods', []), *methods]))
    seeds = list(dict.fromkeys([*info.get('seeds', []), *seeds]))
    suggested, costs = suggested or info.get('suggested'), costs or info.get('costs', False)
    jobs = plan(recipe, orders, methods, seeds, costs)
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
    if full := disk.problems(recipe, [t for job in jobs for t in _trainings(job, path)], path):
        raise MtpdError(full[0])
    runs = {job.run: run_recipe(recipe, info, job.run) for job in jobs}
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
        _open_run(sweep, run, own)
    return sweep


def _trainings(job: Job, path: Path) -> list[Training]:
    """What a job trains."""
    from ..config.trainings import Training

    if job.detector:
        folder = path / job.folders[0]
        return [Training(job.detector, None, job.updates, folder, 'model.pth')] * bool(job.updates)
    return [
        Training('student', job.teachers[number - 1], job.updates, path / job.stage(number))
        for number in range(job.first, job.last + 1)
    ]


def check(recipe: Recipe, path: Path) -> dict | None:
    """sweep.json, None where there is none. Raises MtpdError where it is of another recipe."""
    from ..pipeline.rundir import meant

    info = read_json(path / 'sweep.json')
    if info is not None and meant(info['text']) != meant(recipe.text):
        what = f'of {info["name"]}' if info['name'] != recipe.name else 'with other settings'
        raise MtpdError(
            f'{path} holds a sweep {what}. Choose another --work-dir, or remove that folder.'
        )
    return info


def _open_run(sweep: Sweep, run: str, recipe: Recipe) -> None:
    from ..pipeline.rundir import about

    folder = sweep.path / run
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / 'recipe.py', recipe.text)
    if run.startswith('shared/'):
        return
    write_json(folder / 'run.json', about(recipe) | {'command': sweep.command})
    _link(
        folder / 'detectors' / 'student', sweep.path / shared_run(recipe.seed) / 'detectors/student'
    )
    for name in recipe.cfg.teachers:
        teachers = sweep.path / shared_run(sweep.info['seed']) / 'detectors'
        _link(folder / 'detectors' / name, teachers / name)
    for job in sweep.jobs.values():
        if job.kind == 'control' and job.seed == recipe.seed and job.run != run:
            _link(folder / job.stage(1).removeprefix(f'{job.run}/'), sweep.path / job.stage(1))
        if job.kind == 'prefix' and job.run == run:
            for name, arm in recipe.arms.items():
                same = arm.stage_updates == job.updates
                if name != job.arm and same and arm.teachers[: job.last] == job.teachers:
                    for number in range(job.first, job.last + 1):
                        place = folder / 'stages' / name / arm.stage_name(number)
                        _link(place, sweep.path / job.stage(number))


def _link(place: Path, target: Path) -> None:
    if not place.exists() and not place.is_symlink():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(target, place.parent))
