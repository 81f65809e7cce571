"""`mtpd sweep`: from what was asked for to jobs that run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RecipeError
from ..utils.files import json_value
from ..utils.paths import ROOT
from .executors import Resources, run_local, slurm_queue, submit_slurm
from .folder import DEADLINE, Sweep, open_sweep, read_plan
from .plan import Order, parse_methods, parse_orders, parse_seeds, shared_run

if TYPE_CHECKING:
    from ..config.recipe import Recipe

SUGGESTED_LENGTHS = (2, 3)  # of the sequences that `auto` looks for


def run_sweep(
    recipe: Recipe | str | Path,
    orders: str = 'all',
    methods: str | None = None,
    seeds: str = '0',
    work_dir: str | Path | None = None,
    resources: Resources | None = None,
    echo: Callable[[str], None] = print,
    deadline: float = DEADLINE,
) -> Sweep:
    """Runs what is not done yet of a sweep, or hands it to SLURM; the control without a teacher is always part of it.

    A sweep that is there already is added to: its jobs become those of all orders, methods and seeds asked for so far.

    Args:
        orders: ``all`` (each teacher alone, every ordered pair), ``auto`` (what adaptation costs suggest), sequences such
            as ``a,b;b,a``, or several of them with ``;`` between.
        methods: such as ``mgd,cwd``. Default: the recipe's.
        seeds: ``0-4`` or ``0,2``.
        work_dir: default ``runs/<recipe>-sweep``.
        deadline: seconds without a sign of life after which a job counts as lost, and is run again.

    Raises:
        RecipeError: the recipe, its data or its checkpoints are not in order.
        MtpdError: an unknown name, an executor that cannot be used, or a folder of another sweep.
    """
    from ..config.recipe import load_recipe
    from ..pipeline.run import refuse_several_processes
    from ..pipeline.teacher_order import adaptation_costs, check_teacher_pool
    from ..preflight.checks import check_before_training as check_recipe

    resources = resources or Resources()
    resources.check()
    recipe = load_recipe(recipe)
    recipe = load_recipe(
        recipe.source, json_value(recipe.overrides)
    )  # as sweep.json will give it back
    path = Path(work_dir).resolve() if work_dir else ROOT / 'runs' / f'{recipe.name}-sweep'
    info = read_plan(recipe, path) or {}
    wanted_methods = parse_methods(
        methods or recipe.cfg.distill.method, recipe.cfg.distill.settings
    )
    wanted_seeds = parse_seeds(seeds)
    teachers = recipe.pool
    automatic = []  # whether `auto` is in the text
    wanted = parse_orders(orders, teachers, lambda: automatic.append(True) or [])
    refuse_several_processes()
    check_recipe(recipe, recipe.detectors)
    _write_digit_scenes(recipe)
    suggested = info.get('suggested')
    if automatic and not suggested:
        _check_lengths(recipe)
        check_teacher_pool(recipe)
        sweep = open_sweep(recipe, path, [], [], [], costs=True)
        first = [j for j in sweep.jobs.values() if j.kind == 'teacher' or j.seed == recipe.seed]
        first = [j for j in first if j.detector]
        _run_jobs(sweep, first, resources, echo, deadline)
        if not all(sweep.state(job)[0] == 'done' for job in first):
            echo('The costs need these jobs first; the same command goes on when they are done.')
            return sweep
        run_dir = path / shared_run(recipe.seed)
        suggested = suggested_orders(recipe, adaptation_costs(recipe, run_dir), run_dir, echo)
    wanted = parse_orders(orders, teachers, lambda: list(map(tuple, suggested['orders'])))
    sweep = open_sweep(
        recipe, path, wanted, wanted_methods, wanted_seeds, suggested, bool(automatic)
    )
    _run_jobs(sweep, list(sweep.jobs.values()), resources, echo, deadline)
    return sweep


def suggested_orders(
    recipe: Recipe, costs: dict, run_dir: Path, echo: Callable[[str], None] = print
) -> dict:
    """The sequences of each length that the adaptation costs suggest, by both searches.

    Args:
        costs: from `adaptation_costs`.
        run_dir: where the detectors are measured.

    Returns:
        ``{'orders': sequences, each once, 'reasons': {'<search>, <length>': sentences}}``.
    """
    from ..config.recipe import load_recipe
    from ..pipeline.teacher_order import calibration_text, suggest_sequence

    echo(calibration_text(costs))
    orders: list[Order] = []
    reasons = {}
    for length in SUGGESTED_LENGTHS:
        found = suggest_sequence(load_recipe(recipe, {'order.max_length': length}), costs, run_dir)
        for item in (found, found['check']):
            reasons[f'{item["method"]}, {length}'] = item['reasons']
            orders.append(tuple(item['sequence']))
    orders = list(dict.fromkeys(orders))
    echo('the costs suggest ' + ', '.join(' → '.join(order) for order in orders))
    return {'orders': orders, 'reasons': reasons}


def _check_lengths(recipe: Recipe) -> None:
    """Raises RecipeError where a sequence that `auto` may find has stages of unequal lengths."""
    longest, updates = min(SUGGESTED_LENGTHS[-1], len(recipe.pool)), recipe.cfg.schedule.arm
    uneven = [str(k) for k in range(1, longest + 1) if updates % k]
    if uneven:
        text = f'--orders auto may find {" or ".join(uneven)} stages, which do not divide schedule.arm = {updates} evenly.'
        raise RecipeError(
            recipe.source, [f'{text} Choose a multiple of {math.lcm(*SUGGESTED_LENGTHS)}.']
        )


def _run_jobs(sweep: Sweep, jobs, resources: Resources, echo, deadline: float) -> None:
    queue = slurm_queue() if resources.executor == 'slurm' else None
    states = {job.id: sweep.state(job, queue, deadline) for job in jobs}
    done = [job for job in jobs if states[job.id][0] == 'done']
    for job in jobs:
        state, reason = states[job.id]
        if state in ('failed', 'lost'):
            echo(f'{job.id}: {state} before ({(reason or "").splitlines()[0]}), again')
    echo(f'{len(jobs)} jobs, {len(done)} of them done before, in {sweep.path}')
    if resources.executor == 'slurm':
        left = [j for j in jobs if states[j.id][0] not in ('done', 'running', 'queued')]
        submit_slurm(sweep, left, resources, echo)
    else:
        run_local(sweep, [job for job in jobs if job not in done], resources, echo, deadline)


def _write_digit_scenes(recipe: Recipe) -> None:
    """Writes the built-in dataset once, before many jobs want it."""
    recipe.data_root()
    for name, spec in recipe.detectors.items():
        if spec.get('scenes') and recipe.checkpoint(name) is None:
            recipe.data_root(spec['scenes'])
