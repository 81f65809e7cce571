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
from .plan import (
    Job,
    Order,
    parse_methods,
    parse_orders,
    parse_seeds,
    shared_run,
    wants_suggestion,
)

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
    from ..preflight.checks import check_before_training

    resources = resources or Resources()
    resources.check()
    recipe = load_recipe(recipe)
    # With the overrides as sweep.json will give them back.
    recipe = load_recipe(recipe.source, json_value(recipe.overrides))
    path = Path(work_dir).resolve() if work_dir else ROOT / 'runs' / f'{recipe.name}-sweep'
    before = read_plan(recipe, path) or {}
    method_names = parse_methods(methods or recipe.cfg.distill.method, recipe.cfg.distill.settings)
    seed_numbers = parse_seeds(seeds)
    parse_orders(orders, recipe.pool)  # a mistake is said before anything is written
    refuse_several_processes()
    check_before_training(recipe, recipe.detectors)
    _write_digit_scenes(recipe)
    automatic, suggested = wants_suggestion(orders), before.get('suggested')
    if automatic and not suggested:
        _check_lengths(recipe)
        check_teacher_pool(recipe)
        sweep = open_sweep(recipe, path, [], [], [], costs=True)
        detector_jobs = [
            job
            for job in sweep.jobs.values()
            if job.kind == 'teacher' or (job.kind == 'baseline' and job.seed == recipe.seed)
        ]
        _run_jobs(sweep, detector_jobs, resources, echo, deadline)
        if any(sweep.state(job)[0] != 'done' for job in detector_jobs):
            echo('The costs need these jobs first; the same command goes on when they are done.')
            return sweep
        run_dir = path / shared_run(recipe.seed)
        suggested = suggested_orders(recipe, adaptation_costs(recipe, run_dir), run_dir, echo)
    suggested_sequences = map(tuple, suggested['orders']) if automatic else ()
    order_list = parse_orders(orders, recipe.pool, suggested_sequences)
    sweep = open_sweep(recipe, path, order_list, method_names, seed_numbers, suggested, automatic)
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
        choice = suggest_sequence(load_recipe(recipe, {'order.max_length': length}), costs, run_dir)
        for search in (choice, choice['check']):
            reasons[f'{search["method"]}, {length}'] = search['reasons']
            orders.append(tuple(search['sequence']))
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


def _run_jobs(
    sweep: Sweep,
    jobs: list[Job],
    resources: Resources,
    echo: Callable[[str], None],
    deadline: float,
) -> None:
    """Runs what is not done of some jobs, or hands it to SLURM."""
    on_slurm = resources.executor == 'slurm'
    queue = slurm_queue() if on_slurm else None
    states = {}
    for job in jobs:
        state, reason = sweep.state(job, queue, deadline)
        states[job.id] = state
        if state in ('failed', 'lost'):
            echo(
                f'{job.id}: {state} before ({(reason or "no reason").splitlines()[0]}), runs again'
            )
    left = [job for job in jobs if states[job.id] != 'done']
    echo(f'{len(jobs)} jobs, {len(jobs) - len(left)} of them done already, in {sweep.path}')
    if on_slurm:
        left = [job for job in left if states[job.id] not in ('running', 'queued')]
        submit_slurm(sweep, left, resources, echo)
    else:
        run_local(sweep, left, resources, echo, deadline)


def _write_digit_scenes(recipe: Recipe) -> None:
    """Writes the built-in dataset once, before many jobs want it."""
    recipe.ensure_data()
    for name, spec in recipe.detectors.items():
        if spec.get('scenes') and recipe.checkpoint(name) is None:
            recipe.ensure_data(spec['scenes'])
