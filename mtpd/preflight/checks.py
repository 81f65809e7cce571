"""What would stop a run after hours, found before it begins: everything that is wrong, in one message."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import shlex
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from mmcv.runner import HOOKS, OPTIMIZERS, LoggerHook, build_optimizer
from mmcv.utils import build_from_cfg
from packaging.requirements import Requirement
from torch import nn

from ..config.plan import Training, planned_trainings
from ..config.recipe import Recipe, load_recipe
from ..engine.learning_rate import policy_in_updates, with_peak_rate
from ..engine.loop import process_count, recipe_device
from ..engine.pipelines import print_notes
from ..errors import MtpdError, RecipeError, unknown_name
from ..runtime.distributed import images_per_process
from ..utils.download import is_complete
from ..utils.files import sha256_in_name
from ..utils.progress import progress_bar
from . import detectors
from .forecast import disk_problems, forecast

LOGGER_PACKAGES = {  # as pip takes them
    'ClearMLLoggerHook': 'clearml',
    'DvcliveLoggerHook': 'dvclive<1',  # later ones lack set_step, which the hook calls
    'MlflowLoggerHook': 'mlflow',
    'MMDetWandbHook': 'wandb',
    'NeptuneLoggerHook': 'neptune',
    'TensorboardLoggerHook': 'tensorboard',
    'WandbLoggerHook': 'wandb',
}
# Modules that pip cannot install, and why.
UNAVAILABLE_LOGGERS = {
    'PaviLoggerHook': ('pavi', 'which pip cannot install: only its makers distribute it'),
    'SegmindLoggerHook': ('segmind.tracking', 'which newer releases of segmind lack'),
}
POLICY_SUFFIX = 'LrUpdaterHook'  # of mmcv's hooks for learning rate policies


def check_before_training(
    recipe: Recipe,
    names: Iterable[str],
    loaded: Iterable[str] | None = None,
    trainings: Iterable[Training] = (),
    folder: Path | None = None,
) -> None:
    """Checks device, data, detectors, checkpoints, distillation and disk; then fetches the checkpoints named by a URL.

    Args:
        names: detectors that are about to be used: 'student' or teachers.
        loaded: those whose checkpoint is loaded; by default all.
        trainings: what is to be trained, into `folder`.

    Raises:
        RecipeError: everything that is wrong.
        MtpdError: a checkpoint can't be fetched.
    """
    names = list(names)
    loaded = names if loaded is None else list(loaded)
    problems, full_disk = recipe_problems(recipe, names, loaded, trainings, folder)
    problems += full_disk
    if not problems:
        problems = fetch_weights(recipe, names, loaded)
    if problems:
        raise RecipeError(recipe.source, problems)
    print_notes(recipe.data_notes())


def check_run(
    recipe: Recipe, run_dir: Path, tried: bool = True, echo: Callable[[str], None] = print
) -> tuple[list[str], dict | None]:
    """What is wrong with a whole run, and what it will take.

    Args:
        tried: whether a few updates are tried (`forecast`), where the recipe is right.

    Returns:
        The problems, a text each, and what `forecast` measured; None where it did not, or a problem was seen.
    """
    names, trainings = list(recipe.detectors), planned_trainings(recipe, run_dir)
    problems, full_disk = recipe_problems(recipe, names, names, trainings, run_dir)
    if problems or not tried:
        return problems + full_disk, None
    measured, shortages = forecast(recipe, trainings, run_dir, echo)
    problems = full_disk + shortages
    return problems, None if problems else measured


def load_or_report_all_problems(
    path: str | Path, overrides: dict | str | None = None, seed: int | None = None
) -> Recipe:
    """As `load_recipe`; where a recipe has wrong keys or values, its error also tells what else is wrong."""
    try:
        return load_recipe(path, overrides, seed)
    except RecipeError as error:
        if error.rest is None:
            raise
        rest = _rest_problems(error.rest)
        if any("unknown key 'data." in problem for problem in error.problems):
            # It may have been meant for data.root, which then stands as it was.
            rest = [problem for problem in rest if not problem.startswith('data.root ')]
        raise RecipeError(error.source, error.problems + rest) from None


def _rest_problems(recipe: Recipe) -> list[str]:
    """Problems of a recipe that has wrong values, as far as these let them be seen."""
    with contextlib.suppress(Exception):  # any: what is called trusts the values
        return recipe_problems(recipe, recipe.detectors, recipe.detectors)[0]
    problems: list[str] = []
    for check in (recipe.data_problems, recipe.checkpoint_problems):
        with contextlib.suppress(Exception):
            problems += check()
    return problems


def recipe_problems(
    recipe: Recipe,
    names: Iterable[str],
    loaded: Iterable[str],
    trainings: Iterable[Training] = (),
    folder: Path | None = None,
) -> tuple[list[str], list[str]]:
    """What is wrong with the recipe, and with the disk, a text each. Of checkpoints those that are on this machine.

    Args: as of `check_before_training`.
    """
    names, loaded = list(names), list(loaded)
    problems = _device_problems(recipe) + schedule_problems(recipe) + recipe.data_problems()
    if not _has_classes(recipe):  # which the heads follow from
        return problems + recipe.checkpoint_problems(loaded), []
    unbuilt, right = _config_problems(recipe, names)
    problems += unbuilt + detectors.settings_problems(recipe, right)
    problems += recipe.checkpoint_problems(loaded)
    for name, key in progress_bar('checkpoints', list(_named_checkpoints(recipe, names, loaded))):
        if name in right and _is_local(recipe, name, key):
            problems += _checkpoint_problems(recipe, name, key)
    if 'student' in right:
        teachers = [name for name in right if name != 'student']
        unfit = detectors.distillation_problems(recipe, teachers)
        unfit = unfit or detectors.inheritance_problems(recipe, teachers)
        problems, unbuilt = problems + unfit, unbuilt + unfit
    full_disk = disk_problems(recipe, trainings, folder) if folder and not unbuilt else []
    return list(dict.fromkeys(problems)), full_disk


def fetch_weights(recipe: Recipe, names: Iterable[str], loaded: Iterable[str]) -> list[str]:
    """Fetches the checkpoints that aren't here, and returns what is wrong with them.

    Args: as of `check_before_training`.
    """
    problems = []
    for name, key in _named_checkpoints(recipe, names, loaded):
        if not _is_local(recipe, name, key):
            recipe.fetch(name, key)
            problems += _checkpoint_problems(recipe, name, key)
    return problems


# Device and detectors


def _device_problems(recipe: Recipe) -> list[str]:
    problems = []
    try:
        images_per_process(recipe.cfg.schedule.batch_size, process_count(recipe), recipe.source)
    except RecipeError as error:
        problems += error.problems
    try:
        recipe_device(recipe)
    except RecipeError as error:
        problems += error.problems
    return problems


def _has_classes(recipe: Recipe) -> bool:
    try:
        return bool(recipe.classes)
    except MtpdError:
        return False


def _config_problems(recipe: Recipe, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """What is wrong with detectors' configs, and the detectors whose config is right."""
    problems, right = [], []
    for name in progress_bar('detectors', names):
        try:
            recipe.model(name)
            right.append(name)
        except RecipeError as error:
            problems += error.problems
    return problems, right


# Checkpoints


def _named_checkpoints(
    recipe: Recipe, names: Iterable[str], loaded: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Checkpoints to be loaded, and those that trainings begin with: a detector, and 'checkpoint' or 'init'."""
    for name in loaded:
        if recipe.checkpoint(name):
            yield name, 'checkpoint'
    for name in names:
        if not recipe.checkpoint(name) and recipe.checkpoint(name, 'init'):
            yield name, 'init'


def _is_local(recipe: Recipe, name: str, key: str) -> bool:
    path = recipe.checkpoint(name, key)
    if recipe.url(name, key):
        return is_complete(path, sha256_in_name(path.name))
    return path.is_file() or key == 'init'  # loading reports a missing one


def _checkpoint_problems(recipe: Recipe, name: str, key: str) -> list[str]:
    path = recipe.checkpoint(name, key)
    if key == 'init':
        return detectors.init_problems(recipe, name, path)
    return detectors.checkpoint_problems(recipe, name, path)


# Settings of the schedule, of a recipe and of a plain config. `key` is the setting's name in messages.


def schedule_problems(recipe: Recipe) -> list[str]:
    """What mmcv and torch refuse of the optimizer, the learning rate policy, the gradient clipping and the loggers."""
    schedule = recipe.cfg.schedule
    policy = policy_in_updates(schedule.lr, schedule.baseline)
    problems = optimizer_problems('schedule.optimizer', schedule.optimizer, nn.Linear(1, 1))
    problems += policy_problems('schedule.lr', policy)
    if schedule.get('arm_lr'):
        try:
            with_peak_rate(schedule.optimizer, schedule.lr, schedule.arm_lr)
        except MtpdError as error:
            problems.append(str(error))
    for logger in schedule.get('loggers', ()):
        problems += logger_problems('schedule.loggers', logger)
    return problems + clip_problems('schedule.grad_clip', schedule.grad_clip)


def optimizer_problems(key: str, cfg: dict, model: nn.Module) -> list[str]:
    """What is refused of the config of an optimizer of `model`."""
    kind = cfg.get('type')
    if not isinstance(kind, str) or kind not in OPTIMIZERS.module_dict:
        return [unknown_name(f'{key}.type', str(kind), OPTIMIZERS.module_dict)]
    return refusal(key, cfg, lambda: build_optimizer(model, copy.deepcopy(cfg)))


def policy_problems(key: str, cfg: dict) -> list[str]:
    """As mmcv's runner registers the hook of a policy: 'step' is StepLrUpdaterHook, 'OneCycle' OneCycleLrUpdaterHook."""
    settings = dict(cfg)
    policy = str(settings.pop('policy', None))
    name = (policy.title() if policy == policy.lower() else policy) + POLICY_SUFFIX
    if name not in HOOKS.module_dict:
        hooks = [key for key in HOOKS.module_dict if key.endswith(POLICY_SUFFIX)]
        known = filter(None, (key.removesuffix(POLICY_SUFFIX) for key in hooks))
        return [unknown_name(f'{key}.policy', policy, known)]
    return refusal(key, settings, lambda: build_from_cfg({**settings, 'type': name}, HOOKS))


def logger_problems(key: str, cfg: Any) -> list[str]:
    """What is refused of the config of one of mmcv's loggers: the type, or a package that is not installed."""
    kind = cfg.get('type') if isinstance(cfg, dict) else None
    if kind not in HOOKS.module_dict or not issubclass(HOOKS.module_dict[kind], LoggerHook):
        known = [name for name, hook in HOOKS.module_dict.items() if issubclass(hook, LoggerHook)]
        return [f'{key}: {unknown_name("type", str(kind), known)}']
    module, reason = UNAVAILABLE_LOGGERS.get(kind, ('', ''))
    if module and not _is_importable(module):
        return [f'{key}: {kind} needs the module {module}, {reason}. Choose another logger.']
    if kind not in LOGGER_PACKAGES:
        return []
    package, version = Requirement(LOGGER_PACKAGES[kind]), None
    if _is_importable(package.name):
        with contextlib.suppress(metadata.PackageNotFoundError):
            version = metadata.version(package.name)
        if version is None or package.specifier.contains(version, prereleases=True):
            return []
    state = f' ({version} is installed)' if version else ''
    words = shlex.quote(str(package))
    return [f'{key}: {kind} needs the package {package}{state}: pip install {words}.']


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it lies in
        return False


def clip_problems(key: str, cfg: dict | None) -> list[str]:
    if not cfg:
        return []
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    problems = refusal(key, cfg, lambda: nn.utils.clip_grad_norm_([weight], **cfg))
    if not problems and cfg.get('max_norm', 1) <= 0:
        problems.append(f'{key}.max_norm must be above 0, or {key} must be None.')
    return problems


def refusal(key: str, value: dict, make: Callable[[], Any]) -> list[str]:
    """A message where `make` raises, which makes something of the setting's value; else none."""
    try:
        make()
    except Exception as error:  # each setting is refused by a type of its own
        reason = str(error) or type(error).__name__
        return [
            f'{key} is {dict(value)!r}, which is refused: {reason}. Correct it. _delete_=True in it drops '
            'inherited settings.'
        ]
    return []
