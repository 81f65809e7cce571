"""One training run by mmdet's own loop: its settings, its hooks, its resuming."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmcv import Config
from mmcv.parallel import MMDataParallel
from mmcv.runner import RUNNERS, EpochBasedRunner, get_dist_info
from mmdet.apis import set_random_seed, train_detector
from mmdet.utils import get_root_logger
from torch import nn

from ..config.recipe import Recipe
from ..data import loading, seeded_loader
from ..distill.initialization import InheritReport
from ..errors import RecipeError
from ..runtime import checkpoints, detectors, distributed, gpu_ops
from ..utils import processes
from ..utils.files import make_writable
from ..utils.machine import cpu_cores
from ..utils.progress import log_level
from . import (  # noqa: F401  (hooks: registered with mmcv)
    hooks,
    memory,
    pipelines,
    speed,
)
from .memory import explain_out_of_memory


def recipe_device(recipe: Recipe) -> str:
    """'cuda' or 'cpu', as `runtime.device` and the machine say.

    Raises:
        RecipeError: an unknown device, or a GPU that is not there or that mmcv's ops can't use.
    """
    return choose_device(recipe.device, recipe.source, 'runtime.device')


def choose_device(asked: str, source: Path, key: str = 'device') -> str:
    """As `device_of`, of any config's `key`. 'auto' is 'cuda' where torch sees a GPU that mmcv's ops can use."""
    if asked not in ('auto', 'cpu', 'cuda'):
        raise RecipeError(source, [f'{key} is {asked!r}: auto, cpu or cuda is needed.'])
    if asked == 'cuda' and not torch.cuda.is_available():
        raise RecipeError(source, [f'{key} is cuda, and torch sees no GPU. Set it to auto or cpu.'])
    if asked == 'cpu' or not torch.cuda.is_available():
        return 'cpu'
    obstacle = gpu_ops.gpu_obstacle()
    if obstacle and asked == 'cuda':
        raise RecipeError(
            source, [f'{key} is cuda, and {obstacle}. Set it to auto or cpu to use the CPU.']
        )
    if obstacle:
        gpu_ops.report_cpu()
    return 'cpu' if obstacle else 'cuda'


def data_parallel(model: nn.Module, device: str) -> MMDataParallel:
    """mmcv's wrapper of a model on 'cpu' or 'cuda', which takes batches as its loaders give them."""
    if device == 'cpu':
        return detectors.CpuDataParallel(model.to(device))
    return MMDataParallel(model.to(device), device_ids=[torch.cuda.current_device()])


def speed_settings(recipe: Recipe) -> dict[str, str]:
    """The recipe's `speed` on this machine: ``precision`` ('fp32', 'tf32' or 'bf16'), and ``speed``, the switches that are on."""
    settled = speed.resolve_speed(recipe.cfg.get('speed'), recipe_device(recipe))._asdict()
    precision = settled.pop('precision')
    on = ', '.join(name for name, value in settled.items() if value)
    return {'precision': precision, 'speed': on or 'all off'}


def data_workers(recipe: Recipe, training: bool = True) -> int:
    """How many processes load images for each process of a training or, if not `training`, of an evaluation."""
    here = int(os.environ.get('LOCAL_WORLD_SIZE', 0)) or process_count(recipe)
    runtime = recipe.cfg.runtime
    return loading.worker_count(
        runtime.workers, recipe_device(recipe), here * runtime.jobs, training
    )


def process_count(recipe: Recipe) -> int:
    """How many processes share the work, see `distributed.count`."""
    return distributed.count(recipe.gpus, recipe.device, recipe.source)


def train_model(
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
    distributed.share(recipe.cfg.schedule.batch_size, process_count(recipe), recipe.source)
    make_writable(out)
    masks = pipelines.needs_masks(recipe, model_cfg)
    train, val = (
        pipelines.dataset_config(recipe, split, scenes, masks) for split in ('train', 'val')
    )
    cfg = mmdet_cfg(recipe, train, val, out, updates, seed, recipe_device(recipe))
    validate = bool(recipe.cfg.schedule.eval_interval)
    named = memory.recipe_setting_names(recipe.cfg, process_count(recipe))
    return train_by_config(
        cfg, build, recipe.source, named, validate, recipe.cfg.runtime.threads, meta
    )


def train_by_config(
    cfg: Config,
    build: Callable[[], nn.Module],
    source: Path,
    named: memory.SettingNames,
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
    point = checkpoints.find_resume_point(Path(cfg.work_dir))
    task = (_train_in_process, cfg, build, source, named, validate, threads, meta, point)
    return distributed.everywhere(len(cfg.gpu_ids), cfg.device, *task)


def _train_in_process(
    cfg, build, source, named, validate, threads, meta, point
) -> InheritReport | None:
    """`run` in one process, of several or by itself."""
    rank, size = get_dist_info()
    use_threads(cfg.device, threads)
    # Made here, as building a Swin Transformer would make mmdet's log at INFO: lists of hooks, and so on.
    get_root_logger(log_level=log_level())
    set_random_seed(cfg.seed)
    limit = cfg.get('corrupt_limit', 0)
    switches = speed.Speed(**cfg.get('speed', {}))
    model, data = build(), loading.SkipCorrupt(pipelines.quiet_dataset(cfg.data.train), limit)
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
    cfg.optimizer = speed.optimizer_config(cfg.optimizer, switches)
    model = speed.apply_speed(model.to(cfg.device), switches, cfg.device)
    sizes = explain_out_of_memory(named, model, cfg.optimizer.type, Path(cfg.work_dir))
    ending = processes.stop_after_iteration(rank == 0)

    def train() -> None:
        with seeded_loader.seeded_training(cfg.seed, begin, limit), ending, sizes:
            train_detector(model, data, cfg, size > 1, validate, meta=meta)

    with speed.restored_autocast(cfg.device), speed.tf32_products(switches.precision):
        loading.explain_worker_death(train)
    return getattr(model, 'inherit_report', None)


def use_threads(device: str, threads: int) -> None:
    """Sets torch's threads on the CPU; 0: one per core, or what OMP_NUM_THREADS says."""
    if device == 'cpu' and (threads or not os.environ.get('OMP_NUM_THREADS')):
        torch.set_num_threads(threads or cpu_cores())


def mmdet_cfg(
    recipe: Recipe, train, val, out: Path, updates: int, seed: int, device: str
) -> Config:
    """The config that mmdet's `train_detector` reads."""
    schedule, size, loading = recipe.cfg.schedule, process_count(recipe), data_workers(recipe)
    images = distributed.share(schedule.batch_size, size, recipe.source)
    switches = speed.resolve_speed(recipe.cfg.get('speed'), device)
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
        optimizer=_scaled_optimizer(schedule),
        optimizer_config=dict(grad_clip=schedule.grad_clip),
        lr_config=policy_in_updates(schedule.lr, updates),
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


def policy_in_updates(lr: dict, updates: int) -> dict:
    """The learning rate's policy; a `step` between 0 and 1 is a share of the training's updates."""
    if 'pct_start' in lr and updates > 2:  # mmcv divides by the rise's length less one
        return {**lr, 'pct_start': max(lr['pct_start'], 2 / updates)}
    if 'step' not in lr:
        return lr
    steps = lr['step'] if isinstance(lr['step'], (list, tuple)) else [lr['step']]
    return {**lr, 'step': [round(s * updates) if 0 < s < 1 else s for s in steps]}


def _scaled_optimizer(schedule: dict) -> dict:
    """The optimizer; where `lr_batch_size` says which batch its learning rate is for, scaled linearly to ours."""
    meant = schedule.get('lr_batch_size')
    if meant in (None, schedule.batch_size):
        return schedule.optimizer
    lr = schedule.optimizer.lr * schedule.batch_size / meant
    print(f'learning rate {lr:g}: {schedule.optimizer.lr:g} is for {meant} images an update')
    return {**schedule.optimizer, 'lr': lr}


# mmcv's runner that counts epochs, able to go on inside one.


@RUNNERS.register_module()
class WithinEpoch(EpochBasedRunner):
    """As `EpochBasedRunner`, whose `train` takes every epoch for one that begins; here the loader has only its rest."""

    def train(self, data_loader, **kwargs) -> None:
        self.model.train()
        self.mode = 'train'
        self.data_loader = data_loader
        self._max_iters = self._max_epochs * len(data_loader)
        done = self.iter - self.epoch * len(data_loader)
        self.call_hook('before_train_epoch')
        time.sleep(2)  # as there: workers of the epoch before come to their end
        for self._inner_iter, self.data_batch in enumerate(data_loader, done):
            self.call_hook('before_train_iter')
            self.run_iter(self.data_batch, train_mode=True, **kwargs)
            self.call_hook('after_train_iter')
            del self.data_batch
            self._iter += 1
        self.call_hook('after_train_epoch')
        self._epoch += 1
