"""A recipe's steps, one notebook execution each: run, skipped where done, their status on disk."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ..config.plan import stage_dir
from ..config.recipe import Arm, Recipe, load_recipe
from ..engine.loop import process_count
from ..errors import MtpdError, RecipeError
from ..preflight import checks as preflight
from ..preflight import forecast
from ..utils import world
from ..utils.files import read_json, write_json
from ..utils.machine import cpu_cores
from ..utils.paths import ROOT, display_path
from .notebooks import NotebookError, end_kernels, execute_notebook
from .run_dir import default_run_dir, open_run, open_steps, run_info, timestamp
from .status import STATUS, refuse_second, run_lock
from .teacher_order import resolve_auto_arms

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
    def short(self) -> str:
        """For the head of an output line: ``progressive 1``."""
        return ' '.join(map(str, self.parameters.values())) or self.source.stem

    @property
    def notebook(self) -> str:
        return f'notebooks/{self.title}.ipynb'


def step_chains(recipe: Recipe, run_dir: Path) -> list[list[list[Step]]]:
    """The steps in order: groups of chains, which may run side by side, of steps that need each other.

    Where an arm's teachers are still to be chosen, the steps up to the choice.
    """

    def step(name: str, *makes: str, **parameters: Any) -> Step:
        files = tuple(run_dir / item for item in makes)
        return Step(NOTEBOOKS / f'{name}.ipynb', parameters, files)

    def stages(arm: Arm) -> list[Step]:
        plan = []
        for stage in range(1, len(arm.teachers) + 1):
            folder = stage_dir(recipe, arm, stage, run_dir).relative_to(run_dir)
            makes = (f'{folder}/student.pth', f'{folder}/metrics.json')
            plan.append(step('04_distill_stage', *makes, arm=arm.name, stage=stage))
        return plan

    trained = [f'detectors/{name}/metrics.json' for name in recipe.detectors]
    order = step('03_teacher_order', 'order/costs.json', 'order/sequence.json')
    first = [
        [[step('00_environment', 'environment.json')]],
        [[step('01_data')]],
        [[step('02_detectors', *trained)]],
    ]
    if not all(arm.teachers for arm in recipe.arms.values()):
        return [*first, [[order]]]
    return [
        *first,
        [[order], *(stages(arm) for arm in recipe.arms.values())],
        [[step('05_evaluate')], [step('06_analysis')]],
    ]


def recipe_steps(recipe: Recipe, run_dir: Path) -> list[Step]:
    """The steps in order; every arm's stages one after the other."""
    return [step for group in step_chains(recipe, run_dir) for chain in group for step in chain]


def run_recipe(
    recipe: Recipe | str | Path,
    work_dir: str | Path | None = None,
    smoke: bool = False,
    echo: Callable[[str], None] = print,
    stream: Any = None,
    report: Callable[[Path], Path] | None = None,
) -> Path:
    """Every step of a recipe, skipping what is done; returns the run directory.

    Args:
        work_dir: default ``runs/<name>/<seed>``, or ``runs/<name>-smoke/<seed>``.
        smoke: next to no training, to see that everything works.
        echo: gets a line per step.
        stream: a text stream that the notebooks' output is passed on to.
        report: makes the report of the run directory; also after a step failed. The run is done when it is.

    Raises:
        RecipeError: the recipe, its data or its checkpoints are not in order: all problems at once.
        MtpdError: the directory can't be written, or holds the results of another recipe.
        NotebookError: a step failed; what was done before is kept, and the same call goes on from it.
    """
    recipe = load_recipe(recipe)
    if smoke:
        recipe = load_recipe(recipe, _smoke(recipe))
    if smoke and work_dir is None:
        work_dir = default_run_dir(recipe, smoke)
    run_dir = recipe.run_dir(work_dir)
    refuse_second(run_dir)
    seen = _preflight(recipe, run_dir, smoke, echo)
    hidden = _smoke(recipe) if smoke else ()
    command = shlex.split(run_info(recipe, smoke, hidden, run_dir)['command'])
    with run_lock(run_dir, command, echo) as status:
        open_run(recipe, run_dir, smoke, hidden)
        forecast.keep_forecast(seen, run_dir)
        try:
            seconds = _all_steps(recipe, run_dir, status, echo, stream)
            echo(f'all steps are done, {seconds / 60:.1f} minutes in all: {run_dir}')
        except NotebookError:  # what there is, is worth a report too
            _report(report, run_dir, echo)
            raise
        _report(report, run_dir, echo)
    return run_dir


def _report(make: Callable[[Path], Path] | None, run_dir: Path, echo) -> None:
    if make:
        echo(f'report: {make(run_dir)}')


def _preflight(recipe: Recipe, run_dir: Path, smoke: bool, echo) -> dict | None:
    """Raises what would stop the run later on; tells what it will take, and returns what `forecast` found."""
    refuse_a_world()
    found, seen = preflight.check_run(recipe, run_dir, not smoke, echo)
    if found := found or preflight.fetch_weights(recipe, recipe.detectors, recipe.detectors):
        raise RecipeError(recipe.source, found)
    if seen:
        words = forecast.forecast_text(recipe, run_dir, seen)
        echo(f'{recipe.name}: {words["time"]}, {words["memory"]}')
    return seen


def refuse_a_world() -> None:
    """Raises MtpdError where several processes were started together."""
    if (here := world.current_world()) and here.size > 1:
        raise MtpdError(
            f'{here.starter} started {here.size} processes, and a run starts its own: start it once, with --gpus.'
        )


def _all_steps(recipe: Recipe, run_dir: Path, status: dict, echo, stream) -> float:
    """Works through the steps; returns the seconds that all starts of the run took so far."""
    began, chosen = time.time(), (run_dir / 'order' / 'sequence.json').is_file()
    plan = resolve_auto_arms(recipe, run_dir) if chosen else recipe
    try:
        _Work(plan, run_dir, status, echo, stream).run()
        if not chosen and (plan := resolve_auto_arms(recipe, run_dir)) is not recipe:
            _Work(plan, run_dir, status, echo, stream).run()
    finally:
        info = read_json(run_dir / 'run.json')
        seconds = round((info['seconds'] or 0) + time.time() - began, 1)
        write_json(run_dir / 'run.json', info | {'seconds': seconds})
    return seconds


class _Work:
    """Executes steps' notebooks, from several threads at once, and keeps status.json true."""

    def __init__(
        self, recipe: Recipe, run_dir: Path, status: dict, echo: Callable[[str], None], stream: Any
    ):
        self.recipe, self.run_dir, self.echo, self.stream = recipe, run_dir, echo, stream
        # Arms side by side would share the GPUs that each of them asks for.
        self.lanes = ChainRunner(1 if process_count(recipe) > 1 else recipe.cfg.runtime.jobs)
        self.names = [step.title for step in recipe_steps(recipe, run_dir)]
        self.status = status
        open_steps(self.names, status)
        info = read_json(run_dir / 'run.json')
        write_json(run_dir / 'run.json', info | {'arms': run_info(recipe)['arms']})
        self.lock = threading.Lock()
        self.note({})

    def run(self) -> None:
        """Every step that is not done."""
        for group in step_chains(self.recipe, self.run_dir):
            self.lanes.run(group, self)

    def note(self, entry: dict, **values: Any) -> None:
        with self.lock:
            entry.update(values)
            write_json(self.run_dir / STATUS, self.status)

    def __call__(self, step: Step, env: dict[str, str], mark: str) -> None:
        number = self.names.index(step.title)
        entry, place = self.status['steps'][number], f'[{number + 1}/{len(self.names)}]'
        if entry['state'] == 'done' and all(path.is_file() for path in step.makes):
            self.echo(f'{place} {step.title}: done before')
            return
        self.echo(f'{place} {step.title}')
        began = time.time()
        self.note(entry, state='running', started=timestamp(), ended=None, reason=None)
        try:
            self._execute(step, env, mark)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt) or self.lanes.interrupted
            state, reason = ('interrupted', None) if stopped else ('failed', f'{error}')
            raise
        else:
            reason, state = None, 'done'
        finally:
            seconds = round(time.time() - began, 1)
            self.note(entry, state=state, ended=timestamp(), seconds=seconds, reason=reason)

    def _execute(self, step: Step, env: dict[str, str], mark: str) -> None:
        parameters = {
            'recipe': display_path(self.recipe.source),
            'seed': self.recipe.seed,
            'cfg_options': options_text(self.recipe),
            'work_dir': str(self.run_dir),
        } | step.parameters
        stream = PrefixedStream(self.stream, mark) if mark and self.stream else self.stream
        out = self.run_dir / step.notebook
        execute_notebook(step.source, out, parameters, ROOT, echo=stream, env=env)
        missing = [str(path.relative_to(self.run_dir)) for path in step.makes if not path.is_file()]
        if missing:
            raise MtpdError(f'{step.source.name} ended without writing {", ".join(missing)}.')


def _smoke(recipe: Recipe) -> dict[str, Any]:
    own = {'updates': SMOKE['schedule.teacher'], 'scenes': SMOKE['data.scenes.train']}
    return SMOKE | {
        f'teachers.{name}.{key}': value
        for name, spec in recipe.cfg.teachers.items()
        for key, value in own.items()
        if key in spec
    }


def options_text(recipe: Recipe) -> str:
    """The recipe's overrides as `--cfg-options` takes them; the seed has its own option."""
    return ' '.join(f'{key}={value}' for key, value in recipe.overrides.items() if key != 'seed')


# Independent chains of steps side by side, on threads that each wait for a notebook's kernel.


class ChainRunner:
    """Runs chains of steps, up to `jobs` chains at a time.

    After a failure what runs is ended in peace and nothing new begins; Ctrl-C ends the kernels, a training after its update.
    """

    def __init__(self, jobs: int):
        self.jobs = jobs
        self.interrupted = False

    def run(self, chains: Sequence[Sequence], work: Callable[[Any, dict, str], None]) -> None:
        """Calls `work(step, env, mark)` for every step; a chain's steps one after the other.

        `env` shares the cores out among the kernels at work, `mark` tells their output apart.
        """
        side_by_side = min(self.jobs, len(chains))
        if side_by_side <= 1:
            for step in (step for chain in chains for step in chain):
                work(step, {}, '')
            return
        env = {'OMP_NUM_THREADS': str(max(1, cpu_cores() // side_by_side))}
        failed = threading.Event()

        def follow(chain: Sequence) -> None:
            for step in chain:
                if failed.is_set():
                    return
                try:
                    work(step, env, f'{step.short}: ')
                except BaseException:
                    failed.set()
                    raise

        with ThreadPoolExecutor(side_by_side) as pool:
            futures = [pool.submit(follow, chain) for chain in chains]
            try:
                wait(futures)
            except KeyboardInterrupt:
                self.interrupted = True
                failed.set()
                end_kernels()
                raise
        for future in futures:
            future.result()


class PrefixedStream:
    """A text stream that writes whole lines to another, each with a mark before it."""

    def __init__(self, stream: TextIO, mark: str):
        self.stream, self.mark, self.rest = stream, mark, ''

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split('\n')
        self.stream.write(''.join(f'{self.mark}{line}\n' for line in lines))

    def flush(self) -> None:
        self.stream.flush()
