"""Would mmcv and torch take a recipe's optimizer, learning rate policy and gradient clipping? Seen before it trains."""

from __future__ import annotations

from . import compat  # noqa: F401  (before mmcv)

# isort: split
from collections.abc import Callable
from typing import Any

import torch
from mmcv.runner import HOOKS, OPTIMIZERS, build_optimizer
from mmcv.utils import build_from_cfg
from torch import nn

from .recipe import Recipe
from .schema import unknown

POLICY = 'LrUpdaterHook'


def problems(recipe: Recipe) -> list[str]:
    """What is wrong with them, a text each."""
    schedule = recipe.cfg.schedule
    found = _optimizer(dict(schedule.optimizer)) + _policy(dict(schedule.lr))
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


def _refused(key: str, value: Any, make: Callable[[], Any]) -> list[str]:
    try:
        make()
    except Exception as error:  # each setting is refused by a type of its own
        return [f'schedule.{key} is {dict(value)!r}, which is refused: {error}.']
    return []
