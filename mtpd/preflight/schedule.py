"""Would mmcv and torch take a recipe's optimizer, learning rate policy, gradient clipping and loggers? Seen before it trains."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from mmcv.runner import HOOKS, OPTIMIZERS, LoggerHook, build_optimizer
from mmcv.utils import build_from_cfg
from torch import nn

from ..config.recipe import Recipe
from ..engine.loop import in_updates
from ..errors import unknown

POLICY = 'LrUpdaterHook'
PACKAGES = {
    'TensorboardLoggerHook': 'tensorboard',
    'WandbLoggerHook': 'wandb',
    'MlflowLoggerHook': 'mlflow',
    'NeptuneLoggerHook': 'neptune',
}


def problems(recipe: Recipe) -> list[str]:
    """What is wrong with them, a text each."""
    schedule = recipe.cfg.schedule
    lr = in_updates(schedule.lr, schedule.baseline)
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
