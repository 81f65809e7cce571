"""A recipe's steps, one notebook execution each: run, skipped where done, their status on disk."""

from __future__ import annotations

import shlex
import threading
import time
from collections import Counter
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
from ..preflight.student_config import student_notes
from ..utils import world
from ..utils.files import read_json, write_json
from ..utils.machine import cpu_cores
from ..utils.paths import ROOT, display_path
from .notebooks import NotebookError, end_kernels, execute_notebook
from .run_dir import default_run_dir, open_run, run_info, timestamp
from .status import STATUS, init_steps, refuse_if_in_use, reset_steps, run_lock
from .teacher_order import resolve_auto_arms

NOTEBOOKS = ROOT / 'notebooks'
# A run of everything with next to no training.
SMOKE_SETTINGS = {
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
    outputs: tuple[Path, ...] = ()

    @property
    def title(self) -> str:
        """The source's name and the step's own parameters: ``04_distill_stage__progressive_1``."""
        values = '_'.join(map(str, self.parameters.values()))
        return f'{self.source.stem}__{values}' if values else self.source.stem

    @property
    def label(self) -> str:
        """For the head of an output line: ``progressive 1``."""
        return ' '.join(map(str, self.parameters.values())) or self.source.stem

    @property
    def notebook(self) -> str:
        return f'notebooks/{self.title}.ipynb'


def step_chains(recipe: Recipe, run_dir: Path) -> list[list[list[Step]]]:
    """The steps in order: groups of chains, which may run side by side, of steps that need each other.

    Where an arm's teachers are still to be chosen, the steps up to the choice.
    """

    def step(name: str, *outputs: str, **parameters: Any) -> Step:
        paths = tuple(run_dir / output for output in outputs)
        return Step(NOTEBOOKS / f'{name}.ipynb', parameters, paths)

    def stage_steps(arm: Arm) -> list[Step]:
        steps = []
        for stage in range(1, len(arm.teachers) + 1):
            folder = stage_dir(recipe, arm, stage, run_dir).relative_to(run_dir)
            outputs = (f'{folder}/student.pth', f'{folder}/metrics.json')
            steps.append(step('04_distill_stage', *outputs, arm=arm.name, stage=stage))
        return steps

    # Arms that begin alike are one chain: the later ones take over what the first has trained.
    arm_chains: dict[tuple, list[Step]] = {}
    distilled: Counter = Counter()
    if not _has_auto_arms(recipe):
        for arm in recipe.arms.values():
            first_stage = arm.teachers[0], arm.stage_updates
            arm_chains.setdefault(first_stage, []).extend(stage_steps(arm))
            distilled[first_stage] += arm.stage_updates * sum(map(bool, arm.teachers))
    if recipe.cfg.runtime.jobs > 1:  # long chains first, so that none is left alone at the end
        arm_chains = {key: arm_chains[key] for key, _ in distilled.most_common()}

    metrics = [f'detectors/{name}/metrics.json' for name in recipe.detectors]
    order = [step('03_teacher_order', 'order/costs.json', 'order/sequence.json')]
    environment = [step('00_environment', 'environment.json')]
    data, detectors = [step('01_data')], [step('02_detectors', *metrics)]
    preparation = [[environment, data], [detectors]]
    if all(map(recipe.checkpoint, recipe.detectors)):  # there is none to train, with all cores
        preparation = [[environment, data + detectors]]
    # Teachers without AP have no place in a sequence that is chosen by it.
    has_ap = not any(recipe.is_features_only(name) for name in recipe.detectors)
    chosen_by_costs = [order] if has_ap else []
    if _has_auto_arms(recipe):
        return [*preparation, [order]]
    return [
        *preparation,
        [*chosen_by_costs, *arm_chains.values()],
        [[step('05_evaluate')], [step('06_analysis')]],
    ]


def recipe_steps(recipe: Recipe, run_dir: Path) -> list[Step]:
    """The steps in order; every arm's stages one after the other."""
    return [step for group in step_chains(recipe, run_dir) for chain in group for step in chain]


def run_recipe(
    recipe: Recipe | str | Path,
    work_dir: str | Path | None = None,
    smoke: bool = False,
    *,
    echo: Callable[[str], None] = print,
    stream: TextIO | None = None,
    report: Callable[[Path], Path] | None = None,
) -> Path:
    """Every step of a recipe, skipping what is done; returns the run directory.

    Args:
        work_dir: default ``runs/<name>/<seed>``, or ``runs/<name>-smoke/<seed>``.
        smoke: next to no training, to see that everything works.
        echo: gets a line per step.
        stream: gets the notebooks' output.
        report: makes the report of the run directory, and returns its file; `mtpd.make_report` does. It is called at
            the end, also after a step failed. The run is done when it is.

    Raises:
        RecipeError: the recipe, its data or its checkpoints are not in order: all problems at once.
        MtpdError: the directory can't be written, or holds the results of another recipe.
        NotebookError: a step failed; what was done before is kept, and the same call goes on from it.
    """
    recipe = load_recipe(recipe)
    smoke_overrides = _smoke_overrides(recipe) if smoke else {}
    recipe = load_recipe(recipe, smoke_overrides)
    run_dir = recipe.run_dir(work_dir or default_run_dir(recipe, smoke))
    refuse_if_in_use(run_dir)
    expected = _check_before_run(recipe, run_dir, smoke, echo)
    command = shlex.split(run_info(recipe, smoke, smoke_overrides, run_dir)['command'])

    def make_report() -> None:
        if report:
            echo('making the report ...')
            echo(f'report: {report(run_dir)}')

    with run_lock(run_dir, command, echo) as status:
        if open_run(recipe, run_dir, smoke, smoke_overrides):
            echo('the validation annotations have changed: detectors are measured again')
            reset_steps(status)
        forecast.write_forecast(expected, run_dir)
        try:
            seconds = _run_all_steps(recipe, run_dir, status, echo, stream)
        except NotebookError:  # what there is, is worth a report too
            make_report()
            raise
        echo(f'all steps are done, {seconds / 60:.1f} minutes in all: {run_dir}')
        make_report()
    return run_dir


def refuse_several_processes() -> None:
    """Raises MtpdError where several processes were started together."""
    current = world.current_world()
    if current and current.size > 1:
        raise MtpdError(
            f'{current.starter} started {current.size} processes, and a run starts its own: '
            'start it once, with --gpus.'
        )


def options_text(recipe: Recipe) -> str:
    """The recipe's overrides as `--cfg-options` takes them; the seed has its own option."""
    return ' '.join(f'{key}={value}' for key, value in recipe.overrides.items() if key != 'seed')


def _smoke_overrides(recipe: Recipe) -> dict[str, Any]:
    teacher_settings = {
        'updates': SMOKE_SETTINGS['schedule.teacher'],
        'scenes': SMOKE_SETTINGS['data.scenes.train'],
    }
    return SMOKE_SETTINGS | {
        f'teachers.{name}.{key}': value
        for name, spec in recipe.cfg.teachers.items()
        for key, value in teacher_settings.items()
        if key in spec
        and not spec.get('checkpoint')  # what is not trained keeps what it says of its training
    }


def _has_auto_arms(recipe: Recipe) -> bool:
    """Whether teachers of an arm are still to be chosen."""
    return not all(arm.teachers for arm in recipe.arms.values())


def _check_before_run(
    recipe: Recipe, run_dir: Path, smoke: bool, echo: Callable[[str], None]
) -> dict | None:
    """Raises what would stop the run later on; says what it will take, and returns what `forecast` expects."""
    refuse_several_processes()
    problems, expected = preflight.check_run(recipe, run_dir, not smoke, echo)
    if not problems:
        problems = preflight.fetch_weights(recipe, recipe.detectors, recipe.detectors)
    if problems:
        raise RecipeError(recipe.source, problems)
    for note in recipe.data_notes() + student_notes(recipe):
        echo(f'note: {note}')
    if expected:
        words = forecast.forecast_texts(recipe, run_dir, expected)
        echo(f'{recipe.name}: {words["time"]}, {words["memory"]}')
    return expected


def _run_all_steps(
    recipe: Recipe, run_dir: Path, status: dict, echo: Callable[[str], None], stream: TextIO | None
) -> float:
    """Works through the steps; returns the seconds that all starts of the run took so far."""
    began = time.time()
    if (run_dir / 'order' / 'sequence.json').is_file():
        recipe = resolve_auto_arms(recipe, run_dir)
    try:
        steps = _StepRunner(recipe, run_dir, status, echo, stream)
        if steps.chains.jobs > 1:
            echo(
                f'up to {steps.chains.jobs} steps run side by side, not in the order of their numbers'
            )
        steps.run()
        if _has_auto_arms(recipe):  # the last of these steps has made the choice
            recipe = resolve_auto_arms(recipe, run_dir)
            _StepRunner(recipe, run_dir, status, echo, stream).run()
    finally:
        info = read_json(run_dir / 'run.json')
        seconds = round((info['seconds'] or 0) + time.time() - began, 1)
        write_json(run_dir / 'run.json', info | {'seconds': seconds})
    return seconds


class _StepRunner:
    """Executes steps' notebooks, from several threads at once, and keeps status.json true."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        status: dict,
        echo: Callable[[str], None],
        stream: TextIO | None,
    ):
        self.recipe, self.run_dir, self.echo, self.stream = recipe, run_dir, echo, stream
        # Arms side by side would share the GPUs that each of them asks for.
        self.chains = ChainRunner(1 if process_count(recipe) > 1 else recipe.cfg.runtime.jobs)
        self.titles = [step.title for step in recipe_steps(recipe, run_dir)]
        self.status = status
        self.lock = threading.Lock()  # of the status
        init_steps(self.titles, status)
        info = read_json(run_dir / 'run.json')
        write_json(run_dir / 'run.json', info | {'arms': run_info(recipe)['arms']})
        write_json(run_dir / STATUS, status)

    def run(self) -> None:
        """Every step that is not done."""
        for group in step_chains(self.recipe, self.run_dir):
            self.chains.run(group, self.run_step)

    def run_step(self, step: Step, env: dict[str, str], prefix: str) -> None:
        """One step, unless it is done; as `ChainRunner` calls it."""
        number = self.titles.index(step.title)
        entry = self.status['steps'][number]
        head = f'[{number + 1}/{len(self.titles)}] {step.title}'
        if entry['state'] == 'done' and all(path.is_file() for path in step.outputs):
            self.echo(f'{head}: done before')
            return
        self.echo(head)
        began = time.time()
        self.update_status(entry, state='running', started=timestamp(), ended=None, reason=None)
        try:
            self._execute(step, env, prefix)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt) or self.chains.interrupted
            state, reason = ('interrupted', None) if stopped else ('failed', f'{error}')
            raise
        else:
            state, reason = 'done', None
        finally:
            seconds = round(time.time() - began, 1)
            self.update_status(
                entry, state=state, ended=timestamp(), seconds=seconds, reason=reason
            )
        if prefix:  # others are at work beside it
            self.echo(f'{head}: done in {seconds:.0f} s')

    def update_status(self, entry: dict, **values: Any) -> None:
        """Puts values into a step's entry of status.json."""
        with self.lock:
            entry.update(values)
            write_json(self.run_dir / STATUS, self.status)

    def _execute(self, step: Step, env: dict[str, str], prefix: str) -> None:
        parameters = {
            'recipe': display_path(self.recipe.source),
            'seed': self.recipe.seed,
            'cfg_options': options_text(self.recipe),
            'work_dir': str(self.run_dir),
            **step.parameters,
        }
        stream = PrefixedStream(self.stream, prefix) if prefix and self.stream else self.stream
        out = self.run_dir / step.notebook
        execute_notebook(step.source, out, parameters, ROOT, echo=stream, env=env)
        missing = [
            str(path.relative_to(self.run_dir)) for path in step.outputs if not path.is_file()
        ]
        if missing:
            raise MtpdError(
                f'{step.source.name} ended without writing {", ".join(missing)}. Has the notebook been changed? See {out}; '
                'the same command runs it again.'
            )


# Independent chains of steps side by side, on threads that each wait for a notebook's kernel.


class ChainRunner:
    """Runs chains of steps, up to `jobs` chains at a time.

    After a failure what runs is ended in peace and nothing new begins; Ctrl-C ends the kernels, a training after its update.
    """

    def __init__(self, jobs: int):
        self.jobs = jobs
        self.interrupted = False

    def run(self, chains: Sequence[Sequence], work: Callable[[Any, dict, str], None]) -> None:
        """Calls `work(step, env, prefix)` for every step; a chain's steps one after the other.

        `env` shares the cores out among the kernels at work, `prefix` tells their output apart.
        """
        side_by_side = min(self.jobs, len(chains))
        if side_by_side <= 1:
            for chain in chains:
                for step in chain:
                    work(step, {}, '')
            return
        env = {'OMP_NUM_THREADS': str(max(1, cpu_cores() // side_by_side))}
        failed = threading.Event()

        def run_chain(chain: Sequence) -> None:
            for step in chain:
                if failed.is_set():
                    return
                try:
                    work(step, env, f'{step.label}: ')
                except BaseException:
                    failed.set()
                    raise

        with ThreadPoolExecutor(side_by_side) as pool:
            futures = [pool.submit(run_chain, chain) for chain in chains]
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
    """A text stream that writes whole lines to another, each with a prefix."""

    def __init__(self, stream: TextIO, prefix: str):
        self.stream, self.prefix, self.rest = stream, prefix, ''

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split('\n')
        self.stream.write(''.join(f'{self.prefix}{line}\n' for line in lines))

    def flush(self) -> None:
        self.stream.flush()
