"""What would stop a run after hours, found in seconds: everything that is wrong, in one message."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmcv.runner import HOOKS, OPTIMIZERS, LoggerHook, build_optimizer
from mmcv.utils import build_from_cfg
from torch import nn

from ..config.plan import Training
from ..config.plan import planned_trainings as trainings_of
from ..config.recipe import Recipe, load_recipe
from ..engine.loop import policy_in_updates, process_count, recipe_device
from ..errors import MtpdError, RecipeError, unknown
from ..runtime.distributed import share
from ..utils.download import is_complete
from ..utils.files import sha256_in_name
from ..utils.progress import progress_bar
from . import detectors
from .forecast import disk_problems, forecast

Weights = tuple[str, str]  # a detector, and the key of its checkpoint: 'checkpoint' or 'init'


def check_before_training(
    recipe: Recipe,
    names: Iterable[str],
    loaded: Iterable[str] | None = None,
    trainings: Iterable[Training] = (),
    folder: Path | None = None,
) -> None:
    """Device, data, detectors, checkpoints, distillation, disk; what the recipe names by a URL is fetched at the end.

    Args:
        names: detectors that are about to be used: 'student' or teachers.
        loaded: those of which the checkpoint is; by default all.
        trainings: what is to be trained, into `folder`.

    Raises:
        RecipeError: everything that is wrong.
        MtpdError: a checkpoint can't be fetched.
    """
    names = list(names)
    loaded = names if loaded is None else list(loaded)
    found = recipe_problems(recipe, names, loaded, trainings, folder) or fetch_weights(
        recipe, names, loaded
    )
    if found:
        raise RecipeError(recipe.source, found)


def check_run(
    recipe: Recipe, run_dir: Path, tried: bool = True, echo: Callable[[str], None] = print
) -> tuple[list[str], dict | None]:
    """What is wrong with a whole run, and what it will take (`forecast`) where nothing is and it is `tried`."""
    names, todo, seen = list(recipe.detectors), trainings_of(recipe, run_dir), []

    def try_out() -> list[str]:
        found, wrong = forecast(recipe, todo, run_dir, echo)
        seen.append(found)
        return wrong

    found = recipe_problems(recipe, names, names, todo, run_dir, try_out if tried else list)
    return found, seen[0] if seen and not found else None


def fetch_weights(recipe: Recipe, names: Iterable[str], loaded: Iterable[str]) -> list[str]:
    """Fetches the checkpoints that aren't here, and returns what is wrong with them; names as `check` takes them."""
    found = []
    for item in _weights(recipe, names, loaded):
        if not _is_here(recipe, *item):
            recipe.fetch(*item)
            found += _of_weights(recipe, *item)
    return found


def load_whole(
    path: str | Path, overrides: dict | str | None = None, seed: int | None = None
) -> Recipe:
    """As `load_recipe`; where a recipe has wrong keys or values, its error also tells what else is wrong."""
    try:
        return load_recipe(path, overrides, seed)
    except RecipeError as error:
        if error.rest is None:
            raise
        raise RecipeError(error.source, error.problems + _besides(error.rest)) from None


def _besides(recipe: Recipe) -> list[str]:
    """Problems of a recipe that has wrong values, as far as these let them be seen."""
    found: list[str] = []
    with contextlib.suppress(Exception):  # any: what is called trusts the values
        names = list(recipe.detectors)
        return recipe_problems(recipe, names, names)
    for look in (recipe.data_problems, recipe.checkpoint_problems):
        with contextlib.suppress(Exception):
            found += look()
    return found


def recipe_problems(
    recipe: Recipe,
    names: Iterable[str],
    loaded: Iterable[str],
    trainings: Iterable[Training] = (),
    folder: Path | None = None,
    more: Callable[[], list[str]] = list,
) -> list[str]:
    """As `check`, a text each; of checkpoints those that are here. `more` is called where nothing but room is lacking."""
    names, loaded = list(names), list(loaded)
    found = [*_machine(recipe), *schedule_problems(recipe), *recipe.data_problems()]
    if not _classes_known(recipe):  # which the heads follow from
        return [*found, *recipe.checkpoint_problems(loaded)]
    broken, fine = _without_model(recipe, names)
    found += broken + detectors.settings_problems(recipe, fine)
    found += recipe.checkpoint_problems(loaded)
    for name, key in progress_bar('checkpoints', list(_weights(recipe, names, loaded))):
        if name in fine and _is_here(recipe, name, key):
            found += _of_weights(recipe, name, key)
    if 'student' in fine:
        unfit = detectors.distillation_problems(
            recipe, [name for name in fine if name != 'student']
        )
        found, broken = found + unfit, broken + unfit
    full = disk_problems(recipe, trainings, folder) if folder and not broken else []
    found = list(dict.fromkeys(found))
    return found + full + ([] if found else more())


def _machine(recipe: Recipe) -> Iterator[str]:
    for look in (lambda: share(recipe.cfg.schedule.batch_size, process_count(recipe), recipe.source),
                 lambda: recipe_device(recipe)):  # fmt: skip
        try:
            look()
        except RecipeError as error:
            yield from error.problems


def _classes_known(recipe: Recipe) -> bool:
    try:
        return bool(recipe.classes)
    except MtpdError:
        return False


def _without_model(recipe: Recipe, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """What is wrong with detectors' configs, and the detectors whose config is right."""
    found, fine = [], []
    for name in progress_bar('detectors', names):
        try:
            recipe.model(name)
            fine.append(name)
        except RecipeError as error:
            found += error.problems
    return found, fine


def _weights(recipe: Recipe, names: Iterable[str], loaded: Iterable[str]) -> Iterator[Weights]:
    """Checkpoints to be loaded, and those that trainings begin with."""
    for name in loaded:
        if recipe.checkpoint(name):
            yield name, 'checkpoint'
    for name in names:
        if not recipe.checkpoint(name) and recipe.checkpoint(name, 'init'):
            yield name, 'init'


def _is_here(recipe: Recipe, name: str, key: str) -> bool:
    path = recipe.checkpoint(name, key)
    if recipe.url(name, key):
        return is_complete(path, sha256_in_name(path.name))
    return path.is_file() or key == 'init'  # a missing one is told as such by its loading


def _of_weights(recipe: Recipe, name: str, key: str) -> list[str]:
    path = recipe.checkpoint(name, key)
    look = detectors.init_problems if key == 'init' else detectors.checkpoint_problems
    return look(recipe, name, path)


# Would mmcv and torch take a recipe's optimizer, learning rate policy, gradient clipping and loggers? Seen before it trains.


POLICY = 'LrUpdaterHook'
PACKAGES = {
    'TensorboardLoggerHook': 'tensorboard',
    'WandbLoggerHook': 'wandb',
    'MlflowLoggerHook': 'mlflow',
    'NeptuneLoggerHook': 'neptune',
}


def schedule_problems(recipe: Recipe) -> list[str]:
    """What is wrong with them, a text each."""
    schedule = recipe.cfg.schedule
    lr = policy_in_updates(schedule.lr, schedule.baseline)
    found = _optimizer(dict(schedule.optimizer)) + _policy(dict(lr))
    found += [text for logger in schedule.get('loggers', ()) for text in _logger(logger)]
    if schedule.grad_clip:
        weight = nn.Parameter(torch.ones(1))
        weight.grad = torch.ones(1)
        clip = nn.utils.clip_grad_norm_
        found += _refused(
            'grad_clip', schedule.grad_clip, lambda: clip([weight], **schedule.grad_clip)
        )
        if not found and schedule.grad_clip.get('max_norm', 1) <= 0:
            found.append('schedule.grad_clip.max_norm must be above 0, or grad_clip None.')
    return found


def _optimizer(cfg: dict) -> list[str]:
    kind = cfg.get('type')
    if not isinstance(kind, str) or kind not in OPTIMIZERS.module_dict:
        return [unknown('schedule.optimizer.type', str(kind), OPTIMIZERS.module_dict)]
    return _refused('optimizer', cfg, lambda: build_optimizer(nn.Linear(1, 1), dict(cfg)))


def _policy(cfg: dict) -> list[str]:
    """As mmcv's runner registers the hook of a policy: 'step' is StepLrUpdaterHook, 'OneCycle' OneCycleLrUpdaterHook."""
    policy = str(cfg.pop('policy', None))
    name = (policy.title() if policy == policy.lower() else policy) + POLICY
    if name not in HOOKS.module_dict:
        known = [key.removesuffix(POLICY) for key in HOOKS.module_dict if key.endswith(POLICY)]
        return [unknown('schedule.lr.policy', policy, filter(None, known))]
    return _refused('lr', cfg, lambda: build_from_cfg({**cfg, 'type': name}, HOOKS))


def _logger(cfg: Any) -> list[str]:
    kind = cfg.get('type') if isinstance(cfg, dict) else None
    if kind not in HOOKS.module_dict or not issubclass(HOOKS.module_dict[kind], LoggerHook):
        known = [name for name, hook in HOOKS.module_dict.items() if issubclass(hook, LoggerHook)]
        return ['schedule.loggers: ' + unknown('type', str(kind), known)]
    package = PACKAGES.get(kind)
    if package and importlib.util.find_spec(package) is None:
        return [f'schedule.loggers: {kind} needs the package {package}: pip install {package}.']
    return []


def _refused(key: str, value: Any, make: Callable[[], Any]) -> list[str]:
    try:
        make()
    except Exception as error:  # each setting is refused by a type of its own
        return [
            f'schedule.{key} is {dict(value)!r}, which is refused: {error or type(error).__name__}.'
        ]
    return []
