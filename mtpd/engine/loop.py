"""One training run by mmdet's own loop: its settings, its hooks, its resuming."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmcv import Config
from mmcv.parallel import MMDataParallel
from mmcv.runner import get_dist_info
from mmdet.apis import set_random_seed, train_detector
from mmdet.utils import get_root_logger
from torch import nn

from ..config.recipe import Recipe
from ..data import readable, replay, whole, workers
from ..distill.inherit import InheritReport
from ..errors import RecipeError
from ..runtime import distributed, gpu_ops, modules, resume
from ..utils import stopping
from ..utils.files import writable
from ..utils.machine import cores
from ..utils.progress import log_level
from . import (  # noqa: F401  (epochs, guards, hooks, skipped: registered with mmcv)
    epochs,
    guards,
    hooks,
    knobs,
    pipelines,
    precision,
    skipped,
    speed,
)
from .exhausted import explained


def device_of(recipe: Recipe) -> str:
    """'cuda' or 'cpu', as `runtime.device` and the machine say.

    Raises:
        RecipeError: an unknown device, or a GPU that is not there or that mmcv's ops can't use.
    """
    return find_device(recipe.device, recipe.source, 'runtime.device')


def find_device(asked: str, source: Path, key: str = 'device') -> str:
    """As `device_of`, of any config's `key`. 'auto' is 'cuda' where torch sees a GPU that mmcv's ops can use."""
    if asked not in ('auto', 'cpu', 'cuda'):
        raise RecipeError(source, [f'{key} is {asked!r}: auto, cpu or cuda is needed.'])
    if asked == 'cuda' and not torch.cuda.is_available():
        raise RecipeError(source, [f'{key} is cuda, and torch sees no GPU. Set it to auto or cpu.'])
    if asked == 'cpu' or not torch.cuda.is_available():
        return 'cpu'
    obstacle = gpu_ops.obstacle()
    if obstacle and asked == 'cuda':
        raise RecipeError(
            source, [f'{key} is cuda, and {obstacle}. Set it to auto or cpu to use the CPU.']
        )
    if obstacle:
        gpu_ops.report_cpu()
    return 'cpu' if obstacle else 'cuda'


def parallel(model: nn.Module, device: str) -> MMDataParallel:
    """mmcv's wrapper of a model on 'cpu' or 'cuda', which takes batches as its loaders give them."""
    if device == 'cpu':
        return modules.OnCpu(model.to(device))
    return MMDataParallel(model.to(device), device_ids=[torch.cuda.current_device()])


def switches(recipe: Recipe) -> dict[str, str]:
    """The recipe's `speed` on this machine: ``precision`` ('fp32', 'tf32' or 'bf16'), and ``speed``, the switches that are on."""
    settled = speed.settled(recipe.cfg.get('speed'), device_of(recipe))._asdict()
    precision = settled.pop('precision')
    on = ', '.join(name for name, value in settled.items() if value)
    return {'precision': precision, 'speed': on or 'all off'}


def data_workers(recipe: Recipe, training: bool = True) -> int:
    """How many processes load images for each process of a training or, if not `training`, of an evaluation."""
    here = int(os.environ.get('LOCAL_WORLD_SIZE', 0)) or processes(recipe)
    runtime = recipe.cfg.runtime
    return workers.count(runtime.workers, device_of(recipe), here * runtime.jobs, training)


def processes(recipe: Recipe) -> int:
    """How many processes share the work, see `distributed.process_count`."""
    return distributed.process_count(recipe.gpus, recipe.device, recipe.source)


def fit(
    recipe: Recipe,
    build: Callable[[], nn.Module],
    model_cfg: dict,
    out: Path,
    updates: int,
    seed: int,
    scenes: int | None = None,
    meta: dict | None = None,
) -> InheritReport | None:
    """Trains what `build` makes for `updates` optimizer steps into ``out/latest.pth``; returns its `inherit_report`.

    Resumes where that file is there. With `runtime.gpus`, or in a world (`mtpd.runtime.distributed`), by several processes.

    Args:
        build: makes the detector or `Distiller`, in each process; it must pickle where there are several.
        scenes: number of training scenes, if not the recipe's.
        meta: about the training, for the checkpoint.

    Raises:
        RecipeError: the dataset, the devices or the detector do not fit the recipe.
        MtpdError: `out` cannot be written to.
    """
    distributed.images_per_process(recipe.cfg.schedule.batch_size, processes(recipe), recipe.source)
    writable(out)
    masks = pipelines.with_masks(recipe, model_cfg)
    train, val = (pipelines.dataset(recipe, split, scenes, masks) for split in ('train', 'val'))
    cfg = mmdet_cfg(recipe, train, val, out, updates, seed, device_of(recipe))
    validate = bool(recipe.cfg.schedule.eval_interval)
    named = knobs.of_recipe(recipe.cfg, processes(recipe))
    return run(cfg, build, recipe.source, named, validate, recipe.cfg.runtime.threads, meta)


def run(
    cfg: Config,
    build: Callable[[], nn.Module],
    source: Path,
    named: knobs.Knobs,
    validate: bool,
    threads: int = 0,
    meta: dict | None = None,
) -> InheritReport | None:
    """Trains what `build` makes as an mmdet config says, into its `work_dir`; returns its `inherit_report`.

    By mmdet's own loop, with our log.json in place of mmdet's text log, and a latest.pth that is whole at any time,
    from which it resumes, in place of its checkpoints. Images, their augmentation and what the model draws depend on
    `seed` and the update alone. SIGINT and SIGTERM are obeyed at the update's end, with a checkpoint.

    Args:
        cfg: with `work_dir`, `seed`, `device` and `gpu_ids`, as mmdet's `train_detector` reads it; of several
            `gpu_ids` each stands for a process. `corrupt_limit`: as many images of a split may be corrupt.
        build: must pickle where there are several processes.
        source: the config's file, for messages.
        named: its settings, likewise.
        validate: evaluate in between, too.
        threads: of torch on the CPU; 0: one per core, or what OMP_NUM_THREADS says.

    Raises:
        RecipeError: there is no image to train on.
        MtpdError: the latest.pth to go on from is no training's; images are corrupt, a loss is not finite, or memory
            runs out.
    """
    point = resume.find(Path(cfg.work_dir))
    task = (_run, cfg, build, source, named, validate, threads, meta, point)
    return distributed.run_on_all_ranks(len(cfg.gpu_ids), cfg.device, *task)


def _run(cfg, build, source, named, validate, threads, meta, point) -> InheritReport | None:
    """`run` in one process, of several or by itself."""
    rank, size = get_dist_info()
    use_threads(cfg.device, threads)
    # Made here, as building a Swin Transformer would make mmdet's log at INFO: lists of hooks, and so on.
    get_root_logger(log_level=log_level())
    set_random_seed(cfg.seed)
    limit = cfg.get('corrupt_limit', 0)
    switches = speed.Speed(**cfg.get('speed', {}))
    model, data = build(), readable.Readable(pipelines.build(cfg.data.train), limit)
    cfg.data.val = whole.checked(cfg.data.val)
    model.CLASSES = data.CLASSES
    if len(data) == 0:
        where = getattr(data, 'ann_file', 'the training split')
        raise RecipeError(source, [f'{where} has no image with an object to train on.'])
    log, latest = (Path(cfg.work_dir) / name for name in ('log.json', 'latest.pth'))
    shown = [hook for hook in cfg.log_config.get('hooks', ()) if hook['type'] != 'TextLoggerHook']
    cfg.log_config.hooks = [dict(type='JsonLog', path=str(log)), *shown]
    saving = dict(type='SaveLatest', path=str(latest), **cfg.checkpoint_config)
    drawing = dict(type='SeedUpdate', seed=cfg.seed, priority='HIGHEST')
    counting = dict(type='RecordCorrupt', folder=cfg.work_dir, limit=limit, priority='HIGHEST')
    guarding = dict(type='FiniteLoss', folder=cfg.work_dir, advice=named.lower, priority='HIGH')
    cfg.custom_hooks = [drawing, counting, guarding, *(cfg.get('custom_hooks') or ()), saving]
    cfg.checkpoint_config = None
    cfg.log_level = log_level()
    if cfg.runner.type == 'EpochBasedRunner':
        cfg.runner.type = 'WithinEpoch'
    cfg.resume_from = str(point.path) if point else None
    meta = {'CLASSES': data.CLASSES, **(meta or {})}
    begin = point.update if point else 0
    cfg.optimizer = speed.optimizer(cfg.optimizer, switches)
    model = speed.prepare(model.to(cfg.device), switches, cfg.device)
    sizes = explained(named, model, cfg.optimizer.type, Path(cfg.work_dir))
    ending = stopping.at_an_updates_end(rank == 0)

    def train() -> None:
        with replay.loaders(cfg.seed, begin, limit), ending, sizes:
            train_detector(model, data, cfg, size > 1, validate, meta=meta)

    with precision.contained(cfg.device), precision.float32_rounded(switches.precision):
        workers.told(train)
    return getattr(model, 'inherit_report', None)


def use_threads(device: str, threads: int) -> None:
    """Sets torch's threads on the CPU; 0: one per core, or what OMP_NUM_THREADS says."""
    if device == 'cpu' and (threads or not os.environ.get('OMP_NUM_THREADS')):
        torch.set_num_threads(threads or cores())


def mmdet_cfg(
    recipe: Recipe, train, val, out: Path, updates: int, seed: int, device: str
) -> Config:
    """The config that mmdet's `train_detector` reads."""
    schedule, size, loading = recipe.cfg.schedule, processes(recipe), data_workers(recipe)
    images = distributed.images_per_process(schedule.batch_size, size, recipe.source)
    switches = speed.settled(recipe.cfg.get('speed'), device)
    loader = dict(
        samples_per_gpu=images,
        workers_per_gpu=loading,
        persistent_workers=loading > 0,
        pin_memory=switches.pin_memory,
    )
    settings: dict[str, Any] = dict(
        data=dict(
            train=train,
            val=val,
            test=val,
            train_dataloader=loader,
            val_dataloader=evaluation_batch(recipe),
        ),
        optimizer=_for_batch(schedule),
        optimizer_config=dict(grad_clip=schedule.grad_clip),
        lr_config=in_updates(schedule.lr, updates),
        runner=dict(type='IterBasedRunner', max_iters=updates),
        checkpoint_config=dict(interval=schedule.checkpoint_interval, by_epoch=False),
        log_config=dict(interval=schedule.log_interval, hooks=list(schedule.get('loggers', ()))),
        evaluation=dict(interval=schedule.eval_interval or updates, metric='bbox'),
        workflow=[('train', 1)],
        work_dir=str(out),
        load_from=None,
        resume_from=None,
        gpu_ids=list(range(size)),
        find_unused_parameters=True,  # as the original; only where there are several processes
        device=device,
        seed=seed,
        corrupt_limit=recipe.corrupt_limit,
        speed=switches._asdict(),
    )
    return Config(settings)


def evaluation_batch(recipe: Recipe) -> dict:
    """How mmdet loads images of an evaluation: `samples_per_gpu` and `workers_per_gpu`."""
    images = recipe.cfg.evaluation.batch_size
    return dict(samples_per_gpu=images, workers_per_gpu=data_workers(recipe, training=False))


def in_updates(lr: dict, updates: int) -> dict:
    """The learning rate's policy; a `step` between 0 and 1 is a share of the training's updates."""
    if 'pct_start' in lr and updates > 2:  # mmcv divides by the rise's length less one
        return {**lr, 'pct_start': max(lr['pct_start'], 2 / updates)}
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
