"""What a student's mmdet config says of its training, and a recipe does not take over."""

from __future__ import annotations

from typing import Any

from mmcv import Config, ConfigDict

from ..config.files import mmdet_config
from ..config.recipe import Recipe
from ..utils.paths import resolve_path

# Steps of a train pipeline that the recipe's own has, too.
KNOWN_STEPS = ('LoadImageFromFile', 'LoadAnnotations', 'Resize', 'RandomFlip', 'Normalize', 'Pad', 'DefaultFormatBundle', 'Collect', 'FilterAnnotations')  # fmt: skip
# Hooks of mmdet that check what preflight does, or that every training has (`engine.hooks.SetEpoch`).
KNOWN_HOOKS = ('NumClassCheckHook', 'CheckInvalidLossHook', 'SetEpochInfoHook')


def student_notes(recipe: Recipe) -> list[str]:
    """A sentence about what is left out, for people who wrote the recipe themselves; `mtpd new` says it in its file."""
    cfg = mmdet_config(resolve_path(recipe.detectors['student'].config, recipe.source))
    left, optimizer = parts_left_out(cfg), recipe.cfg.schedule.optimizer.type
    stated = (cfg.get('optimizer') or {}).get('type', optimizer)
    if stated != optimizer:
        left.append(f"optimizer {stated} (the recipe's is {optimizer})")
    return [f"not taken from the student's config: {', '.join(left)}."] if left else []


def parts_left_out(cfg: Config | ConfigDict) -> list[str]:
    """Steps of the student's pipeline, hooks and settings that a recipe has no place for."""
    train = cfg.get('data', {}).get('train', {})
    steps = [step['type'] for step in train_steps(train)]
    left = [step for step in dict.fromkeys(steps) if step not in KNOWN_STEPS]
    sizes = image_scales(train)
    if len(sizes) > 1:
        left.append(f'images of several sizes ({sizes[0]} to {sizes[-1]})')
    if any(step.get('keep_ratio') is False for step in train_steps(train)):
        left.append('images stretched to one shape (keep_ratio=False)')
    hooks = [hook['type'] for hook in cfg.get('custom_hooks') or ()]
    left += [hook for hook in hooks if hook not in KNOWN_HOOKS]
    if cfg.get('fp16'):
        left.append('fp16 (speed.precision takes its place)')
    return left


def train_steps(dataset: Any) -> list[dict]:
    """The steps of a training dataset's pipelines, those of wrapped datasets and of branches included."""
    if isinstance(dataset, dict):
        single = (
            [dataset]
            if 'type' in dataset and 'pipeline' not in dataset and 'dataset' not in dataset
            else []
        )
        inner = [dataset.get(key) for key in ('dataset', 'pipeline', 'transforms', 'policies')]
        return single + [step for item in inner for step in train_steps(item)]
    items = dataset if isinstance(dataset, (list, tuple)) else ()
    return [step for item in items for step in train_steps(item)]


def image_scales(dataset: dict) -> list[tuple[int, int]]:
    """Each (long side, short side) of the pipelines' Resize steps, from the smallest."""
    scales: list = []
    for step in train_steps(dataset):
        scale = step.get('img_scale') if step['type'] == 'Resize' else None
        scales += scale if isinstance(scale, list) else [scale] if scale else []
    return sorted({(max(scale), min(scale)) for scale in scales if len(scale) == 2})
