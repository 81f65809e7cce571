"""A recipe's steps, one notebook execution each: run, skipped where done, their status on disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import MtpdError
from .files import read_json, write_json
from .notebooks import execute
from .recipe import ROOT, Recipe, RecipeError, load_recipe, shown
from .rundir import now, open_run, open_status
from .train import stage_dir

NOTEBOOKS = ROOT / 'notebooks'
# A run of everything with next to no training: does it work at all?
SMOKE = {
    'data.scenes.train': 64,
    'data.scenes.val': 16,
    'schedule.batch_size': 4,
    'schedule.baseline': 4,
    'schedule.arm': 4,
    'schedule.teacher': 4,
    'schedule.log_interval': 1,
    'runtime.workers': 0,
}


@dataclass(frozen=True)
class Step:
    """One notebook execution: its source, its parameters beyond the recipe's, the files it must leave."""

    source: Path
    parameters: dict[str, Any] = field(default_factory=dict)
    makes: tuple[Path, ...] = ()

    @property
    def title(self) -> str:
        """The source's name and the step's own parameters: ``04_distill_stage__progressive_1``."""
        own = ''.join(f'_{value}' for value in self.parameters.values())
        return f'{self.source.stem}{"_" + own if own else ""}'

    @property
    def notebook(self) -> str:
        return f'notebooks/{self.title}.ipynb'


def steps(recipe: Recipe, run_dir: Path) -> list[Step]:
    """The steps in order; every arm's stages one after the other."""

    def step(name: str, *makes: str, **parameters: Any) -> Step:
        files = tuple(run_dir / item for item in makes)
        return Step(NOTEBOOKS / f'{name}.ipynb', parameters, files)

    trained = [f'detectors/{name}/metrics.json' for name in recipe.detectors]
    plan = [
        step('00_environment', 'environment.json'),
        step('01_data'),
        step('02_detectors', *trained),
        step('03_teacher_order', 'order/costs.json', 'order/sequence.json'),
    ]
    for arm in recipe.arms.values():
        for stage in range(1, len(arm.teachers) + 1):
            folder = stage_dir(recipe, arm, stage, run_dir).relative_to(run_dir)
            plan.append(
                step(
                    '04_distill_stage',
                    f'{folder}/student.pth',
                    f'{folder}/metrics.json',
                    arm=arm.name,
                    stage=stage,
                )
            )
    return [*plan, step('05_evaluate'), step('06_analysis')]


def run_recipe(
    recipe: Recipe | str | Path,
    work_dir: str | Path | None = None,
    smoke: bool = False,
    echo: Callable[[str], None] = print,
    stream: Any = None,
) -> Path:
    """Every step of a recipe, skipping what is done; returns the run directory.

    Args:
        work_dir: default ``runs/<name>/<seed>``, or ``runs/<name>-smoke/<seed>``.
        smoke: next to no training, to see that everything works.
        echo: gets a line per step.
        stream: a text stream that the notebooks' output is passed on to.

    Raises:
        RecipeError: the recipe, its data or its checkpoints are not in order: all problems at once.
        MtpdError: the directory can't be written, or holds the results of another recipe.
        NotebookError: a step failed; what was done before is kept, and the same call goes on from it.
    """
    recipe = load_recipe(recipe)
    if smoke:
        recipe = load_recipe(recipe, _smoke(recipe))
    if smoke and work_dir is None:
        work_dir = ROOT / 'runs' / f'{recipe.name}-smoke' / str(recipe.seed)
    run_dir = recipe.run_dir(work_dir)
    _preflight(recipe)
    open_run(recipe, run_dir, smoke, _smoke(recipe) if smoke else ())
    plan = steps(recipe, run_dir)
    status = open_status([(step.title, step.notebook) for step in plan], run_dir)
    began = time.time()
    for number, (step, entry) in enumerate(zip(plan, status['steps'], strict=True), start=1):
        if entry['state'] == 'done' and all(path.is_file() for path in step.makes):
            echo(f'[{number}/{len(plan)}] {step.title}: done before')
            continue
        echo(f'[{number}/{len(plan)}] {step.title}')
        _run(recipe, step, entry, status, run_dir, stream)
    status |= {'state': 'done', 'ended': now()}
    write_json(run_dir / 'status.json', status)
    spent = sum(entry['seconds'] or 0 for entry in status['steps'])
    info = read_json(run_dir / 'run.json')
    write_json(run_dir / 'run.json', info | {'seconds': round(spent, 1)})
    echo(f'all steps done in {(time.time() - began) / 60:.1f} minutes: {run_dir}')
    return run_dir


def _smoke(recipe: Recipe) -> dict[str, Any]:
    own = {'updates': SMOKE['schedule.teacher'], 'scenes': SMOKE['data.scenes.train']}
    return SMOKE | {
        f'teachers.{name}.{key}': value
        for name, spec in recipe.cfg.teachers.items()
        for key, value in own.items()
        if key in spec
    }


def _run(recipe: Recipe, step: Step, entry: dict, status: dict, run_dir: Path, stream: Any) -> None:
    """Executes a step's notebook and keeps its entry of status.json true."""
    began = time.time()

    def note(**values: Any) -> None:
        entry.update(values)
        write_json(run_dir / 'status.json', status)

    note(state='running', started=now(), ended=None, reason=None)
    try:
        execute(
            step.source,
            run_dir / step.notebook,
            _parameters(recipe, step, run_dir),
            ROOT,
            echo=stream,
        )
        missing = [str(path.relative_to(run_dir)) for path in step.makes if not path.is_file()]
        if missing:
            raise MtpdError(f'{step.source.name} ended without writing {", ".join(missing)}.')
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        status |= {'state': 'failed', 'ended': now()}
        reason = 'interrupted' if stopped else f'{error}'
        note(state='failed', ended=now(), seconds=round(time.time() - began, 1), reason=reason)
        raise
    note(state='done', ended=now(), seconds=round(time.time() - began, 1))


def _parameters(recipe: Recipe, step: Step, run_dir: Path) -> dict[str, Any]:
    common = {
        'recipe': shown(recipe.source),
        'seed': recipe.seed,
        'cfg_options': options_text(recipe),
        'work_dir': str(run_dir),
    }
    return common | step.parameters


def options_text(recipe: Recipe) -> str:
    """The recipe's overrides as `--cfg-options` takes them; the seed has its own option."""
    return ' '.join(f'{key}={value}' for key, value in recipe.overrides.items() if key != 'seed')


def _preflight(recipe: Recipe) -> None:
    problems = recipe.data_problems() + recipe.checkpoint_problems()
    if problems:
        raise RecipeError(recipe.source, problems)
