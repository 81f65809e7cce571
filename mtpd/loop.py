"""One training run by mmdet's own loop: its settings, its hooks, its resuming."""

from __future__ import annotations

from . import compat  # noqa: F401  (before mmcv)

# isort: split
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmcv import Config
from mmdet.apis import set_random_seed, train_detector
from torch import nn

from . import (
    checkpoints,
    hooks,  # noqa: F401  (registered with mmcv)
)
from .data import pipelines
from .errors import MtpdError, RecipeError
from .machine import cores
from .recipe import Recipe


def device_of(recipe: Recipe) -> str:
    """'cuda' or 'cpu', as `runtime.device` and the machine say.

    Raises:
        RecipeError: an unknown device, or a GPU that is not there.
    """
    asked = recipe.cfg.runtime.device
    if asked == 'auto':
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    if asked not in ('cpu', 'cuda'):
        raise RecipeError(
            recipe.source, [f'runtime.device is {asked!r}: auto, cpu or cuda is needed.']
        )
    if asked == 'cuda' and not torch.cuda.is_available():
        raise RecipeError(
            recipe.source, ['runtime.device is cuda, and torch sees no GPU. Set it to auto or cpu.']
        )
    return asked


def fit(
    recipe: Recipe,
    build: Callable[[], nn.Module],
    model_cfg: dict,
    out: Path,
    updates: int,
    seed: int,
    scenes: int | None = None,
) -> nn.Module:
    """Trains what `build` makes for `updates` optimizer steps into ``out/latest.pth``; returns it.

    Resumes where that file is there. `scenes`: number of training scenes, if not the recipe's.

    Raises:
        RecipeError: the dataset, the device or the detector does not fit the recipe.
        MtpdError: `out` cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / 'log.json').touch()
    except OSError as error:
        raise MtpdError(
            f'{out} cannot be written to ({error.strerror}). Choose another --work-dir.'
        ) from None
    device = device_of(recipe)
    if device == 'cpu':
        shared_out = os.environ.get('OMP_NUM_THREADS')  # torch has read it
        if recipe.cfg.runtime.threads or not shared_out:
            torch.set_num_threads(recipe.cfg.runtime.threads or cores())
    masks = pipelines.with_masks(recipe, model_cfg)
    train, val = (pipelines.dataset(recipe, split, scenes, masks) for split in ('train', 'val'))
    latest = out / 'latest.pth'
    if latest.is_file():
        checkpoints.load_own(latest)
    set_random_seed(seed)
    model, data = build(), pipelines.build(train)
    model.CLASSES = data.CLASSES
    if len(data) == 0:
        raise RecipeError(
            recipe.source, [f'{train["ann_file"]} has no image with an object to train on.']
        )
    model = model.to(device)
    cfg = mmdet_cfg(recipe, train, val, out, updates, seed, device)
    cfg.resume_from = str(latest) if latest.is_file() else None
    if cfg.resume_from is None:
        (out / 'log.json').write_text('')
    train_detector(
        model,
        data,
        cfg,
        validate=bool(recipe.cfg.schedule.eval_interval),
        meta={'CLASSES': data.CLASSES},
    )
    return model


def mmdet_cfg(
    recipe: Recipe, train, val, out: Path, updates: int, seed: int, device: str
) -> Config:
    """The config that mmdet's `train_detector` reads."""
    schedule, runtime = recipe.cfg.schedule, recipe.cfg.runtime
    batch = dict(samples_per_gpu=schedule.batch_size, workers_per_gpu=runtime.workers)
    settings: dict[str, Any] = dict(
        data=dict(
            train=train,
            val=val,
            test=val,
            train_dataloader=dict(**batch, persistent_workers=runtime.workers > 0),
            val_dataloader=dict(
                samples_per_gpu=recipe.cfg.evaluation.batch_size, workers_per_gpu=0
            ),
        ),
        optimizer=_for_batch(schedule),
        optimizer_config=dict(grad_clip=schedule.grad_clip),
        lr_config=_in_updates(schedule.lr, updates),
        runner=dict(type='IterBasedRunner', max_iters=updates),
        checkpoint_config=None,
        log_config=dict(
            interval=schedule.log_interval, hooks=[dict(type='JsonLog', path=str(out / 'log.json'))]
        ),
        custom_hooks=[
            dict(
                type='SaveLatest',
                path=str(out / 'latest.pth'),
                interval=schedule.checkpoint_interval,
            )
        ],
        evaluation=dict(interval=schedule.eval_interval or updates, metric='bbox'),
        workflow=[('train', 1)],
        work_dir=str(out),
        log_level='WARNING',
        load_from=None,
        resume_from=None,
        gpu_ids=[0],
        device=device,
        seed=seed,
    )
    return Config(settings)


def _in_updates(lr: dict, updates: int) -> dict:
    """The learning rate's policy; a `step` between 0 and 1 is a share of the training's updates."""
    if 'step' not in lr:
        return lr
    steps = lr['step'] if isinstance(lr['step'], (list, tuple)) else [lr['step']]
    return {**lr, 'step': [round(s * updates) if 0 < s < 1 else s for s in steps]}


def _for_batch(schedule: dict) -> dict:
    """The optimizer; where `lr_batch_size` says which batch its learning rate is for, scaled linearly to ours."""
    meant = schedule.get('lr_batch_size')
    if meant in (None, schedule.batch_size):
        return schedule.optimizer
    lr = schedule.optimizer.lr * schedule.batch_size / meant
    print(f'learning rate {lr:g}: {schedule.optimizer.lr:g} is for {meant} images an update')
    return {**schedule.optimizer, 'lr': lr}
