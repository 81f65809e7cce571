"""One training run by mmdet's own loop: its settings, its hooks, its resuming."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
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
from ..errors import MtpdError, RecipeError
from ..runtime import checkpoints, detectors, distributed, gpu_ops
from ..utils import processes
from ..utils.files import make_writable_folder
from ..utils.machine import cpu_cores
from ..utils.progress import log_level
from . import (  # noqa: F401  (hooks: registered with mmcv)
    hooks,
    memory,
    pipelines,
    speed,
)
from .memory import SettingNames, explain_out_of_memory


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

    Resumes where that file is there. With `runtime.gpus`, or in a world (`mtpd.runtime.distributed`), by several
    processes. The dataset is not checked here: `mtpd.preflight.checks` does that.

    Args:
        build: makes the detector or `Distiller`, in each process; it must pickle where there are several.
        scenes: number of training scenes, if not the recipe's.
        meta: about the training, for the checkpoint.

    Raises:
        RecipeError: the devices or the detector do not fit the recipe.
        MtpdError: `out` cannot be written to; and as `train_by_config`.
    """
    count = process_count(recipe)
    distributed.images_per_process(recipe.cfg.schedule.batch_size, count, recipe.source)
    make_writable_folder(out)
    masks = pipelines.needs_masks(recipe, model_cfg)
    train, val = (
        pipelines.dataset_config(recipe, split, scenes, masks) for split in ('train', 'val')
    )
    cfg = training_config(recipe, train, val, out, updates, seed, recipe_device(recipe))
    return train_by_config(
        cfg,
        build,
        recipe.source,
        memory.recipe_setting_names(recipe.cfg, count),
        validate=bool(recipe.cfg.schedule.eval_interval),
        threads=recipe.cfg.runtime.threads,
        meta=meta,
    )


def train_by_config(
    cfg: Config,
    build: Callable[[], nn.Module],
    source: Path,
    setting_names: SettingNames,
    validate: bool,
    threads: int = 0,
    meta: dict | None = None,
) -> InheritReport | None:
    """Trains what `build` makes as an mmdet config says, into its `work_dir`; returns its `inherit_report`.

    The loop is mmdet's own. Our log.json takes the place of its text log. Our latest.pth, which is whole at any time
    and from which a training resumes, takes the place of its checkpoints. Images, their augmentation and what the model
    draws depend on `seed` and the update alone. SIGINT and SIGTERM are obeyed after an update, with a checkpoint.

    Args:
        cfg: with `work_dir`, `seed`, `device` and `gpu_ids`, as mmdet's `train_detector` reads it; of several
            `gpu_ids` each stands for a process. `corrupt_limit`: as many images of a split may be corrupt.
        build: must pickle where there are several processes.
        source: the config's file, for messages.
        setting_names: its settings, likewise.
        validate: evaluate in between, too.
        threads: of torch on the CPU; 0: one per core, or what OMP_NUM_THREADS says.

    Raises:
        RecipeError: there is no image to train on.
        MtpdError: the latest.pth to go on from is no training's; images are corrupt, a loss is not finite, or memory
            runs out.
    """
    train = partial(
        _train_in_process,
        cfg,
        build,
        source=source,
        setting_names=setting_names,
        validate=validate,
        threads=threads,
        meta=meta or {},
        resume_point=checkpoints.find_resume_point(Path(cfg.work_dir)),
    )
    return distributed.run_on_all_ranks(len(cfg.gpu_ids), cfg.device, train)


def _train_in_process(
    cfg: Config,
    build: Callable[[], nn.Module],
    *,
    source: Path,
    setting_names: SettingNames,
    validate: bool,
    threads: int,
    meta: dict,
    resume_point: checkpoints.ResumePoint | None,
) -> InheritReport | None:
    """`train_by_config` in one process, of several or by itself."""
    rank, size = get_dist_info()
    set_threads(cfg.device, threads)
    # Made here, as building a Swin Transformer would make mmdet's log at INFO: lists of hooks, and so on.
    get_root_logger(log_level=log_level())
    set_random_seed(cfg.seed)
    corrupt_limit = cfg.get('corrupt_limit', 0)
    switches = speed.Speed(**cfg.get('speed', {}))

    model = build()
    data = loading.SkipCorrupt(pipelines.quiet_dataset(cfg.data.train), corrupt_limit)
    if len(data) == 0:
        split = getattr(data, 'ann_file', 'the training split')
        raise RecipeError(source, [f'{split} has no image with an object to train on.'])
    model.CLASSES = data.CLASSES
    cfg.optimizer = speed.optimizer_config(cfg.optimizer, switches)
    model = speed.apply_speed(model.to(cfg.device), switches, cfg.device)

    _set_hooks(cfg, corrupt_limit, setting_names)
    cfg.resume_from = str(resume_point.path) if resume_point else None
    first_update = resume_point.update if resume_point else 0
    if cfg.runner.type == 'EpochBasedRunner':
        cfg.runner.type = 'ResumableEpochRunner'

    seeded = seeded_loader.seeded_training(cfg.seed, first_update, corrupt_limit)
    stopping = processes.stop_after_update(rank == 0)
    explained = explain_out_of_memory(setting_names, model, Path(cfg.work_dir))

    def train() -> None:
        with seeded, stopping, explained:
            train_detector(
                model, data, cfg, size > 1, validate, meta={'CLASSES': data.CLASSES, **meta}
            )

    with speed.restored_autocast(cfg.device), speed.tf32_products(switches.precision):
        loading.explain_worker_death(train)
    return getattr(model, 'inherit_report', None)


def _set_hooks(cfg: Config, corrupt_limit: int, setting_names: SettingNames) -> None:
    """Puts this kit's hooks into a config, in place of mmdet's text log and checkpoints."""
    folder = Path(cfg.work_dir)
    loggers = [hook for hook in cfg.log_config.get('hooks', ()) if hook['type'] != 'TextLoggerHook']
    cfg.log_config.hooks = [dict(type='JsonLog', path=str(folder / 'log.json')), *loggers]
    cfg.custom_hooks = [
        dict(type='SeedUpdate', seed=cfg.seed, priority='HIGHEST'),
        dict(type='RecordCorrupt', folder=str(folder), limit=corrupt_limit, priority='HIGHEST'),
        dict(
            type='FiniteLoss',
            folder=str(folder),
            advice=setting_names.divergence_advice,
            priority='HIGH',
        ),
        *(cfg.get('custom_hooks') or ()),
        dict(type='SaveLatest', path=str(folder / 'latest.pth'), **cfg.checkpoint_config),
    ]
    cfg.checkpoint_config = None
    cfg.log_level = log_level()


# A recipe as the config that mmdet's loop reads.


def training_config(
    recipe: Recipe, train: dict, val: dict, out: Path, updates: int, seed: int, device: str
) -> Config:
    """The config that mmdet's `train_detector` reads.

    Args:
        train, val: configs of the two splits, see `pipelines.dataset_config`.
        out: the training's folder.
        updates: optimizer steps.
        device: 'cpu' or 'cuda'.

    Raises:
        MtpdError: `schedule.lr_batch_size` is to scale a learning rate, and none is stated.
    """
    schedule, size, workers = recipe.cfg.schedule, process_count(recipe), data_workers(recipe)
    switches = speed.resolve_speed(recipe.cfg.get('speed'), device)
    loader = dict(
        samples_per_gpu=distributed.images_per_process(schedule.batch_size, size, recipe.source),
        workers_per_gpu=workers,
        persistent_workers=workers > 0,
        pin_memory=switches.pin_memory,
    )
    optimizer, lr, meant = schedule.optimizer, schedule.lr, schedule.get('lr_batch_size')
    if meant not in (None, schedule.batch_size):
        optimizer, lr = scale_rates(optimizer, lr, schedule.batch_size, meant)
    settings: dict[str, Any] = dict(
        data=dict(
            train=train,
            val=val,
            test=val,
            train_dataloader=loader,
            val_dataloader=evaluation_loader(recipe),
        ),
        optimizer=optimizer,
        optimizer_config=dict(grad_clip=schedule.grad_clip),
        lr_config=policy_in_updates(lr, updates),
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


def evaluation_loader(recipe: Recipe) -> dict:
    """How mmdet loads images of an evaluation: `samples_per_gpu` and `workers_per_gpu`."""
    images = recipe.cfg.evaluation.batch_size
    return dict(samples_per_gpu=images, workers_per_gpu=data_workers(recipe, training=False))


# The settings of mmcv's policies that are rates: OneCycle's peak, and where other policies end. The rest are ratios of
# the optimizer's `lr`, such as `warmup_ratio` and `gamma`.
RATES_OF_POLICIES = ('max_lr', 'min_lr')


def scale_rates(optimizer: dict, lr: dict, batch: int, meant: int) -> tuple[dict, dict]:
    """Every rate of an mmcv optimizer and policy scaled linearly to another batch; prints the one that is used.

    Args:
        optimizer, lr: stay as they are.
        batch: images of an update.
        meant: images of an update for which the rates are stated.

    Raises:
        MtpdError: no rate is stated.
    """
    stated = peak_rate(optimizer, lr)
    if stated is None:
        raise MtpdError('there is no learning rate to scale: the optimizer states no lr. Add it.')
    optimizer, lr = dict(optimizer), dict(lr)
    for settings, key in ((optimizer, 'lr'), *((lr, key) for key in RATES_OF_POLICIES)):
        if settings.get(key) is not None:
            settings[key] = _multiply(settings[key], batch / meant)
    used, stated = (_rate_text(rate) for rate in (peak_rate(optimizer, lr), stated))
    print(f'learning rate {used}: {stated} is for {meant} images an update')
    return optimizer, lr


def peak_rate(optimizer: dict, lr: dict) -> Any:
    """The largest learning rate of a training: OneCycle's `max_lr`, else the optimizer's `lr`, else None.

    `max_lr` may be a list of rates, one for each parameter group, or a dict.
    """
    return lr.get('max_lr', optimizer.get('lr'))


def _multiply(rates: Any, factor: float) -> Any:
    """A rate, or a list or dict of rates, multiplied."""
    if isinstance(rates, dict):
        return {key: _multiply(value, factor) for key, value in rates.items()}
    if isinstance(rates, (list, tuple)):
        return [_multiply(value, factor) for value in rates]
    return rates * factor


def _rate_text(rates: Any) -> str:
    return f'{rates:g}' if isinstance(rates, (int, float)) else str(rates)


def policy_in_updates(lr: dict, updates: int) -> dict:
    """The learning rate's policy; a `step` between 0 and 1 is a share of the training's updates."""
    if 'pct_start' in lr and updates > 2:  # mmcv divides by the rise's length less one
        return {**lr, 'pct_start': max(lr['pct_start'], 2 / updates)}
    if 'step' not in lr:
        return lr
    steps = lr['step'] if isinstance(lr['step'], (list, tuple)) else [lr['step']]
    return {**lr, 'step': [round(s * updates) if 0 < s < 1 else s for s in steps]}


# Devices, processes and threads.


def recipe_device(recipe: Recipe) -> str:
    """'cuda' or 'cpu', as `runtime.device` and the machine say.

    Raises:
        RecipeError: an unknown device, or a GPU that is not there or that mmcv's ops can't use.
    """
    return choose_device(recipe.device, recipe.source, 'runtime.device')


def choose_device(device: str, source: Path, key: str = 'device') -> str:
    """'cuda' or 'cpu' for a setting of 'auto', 'cpu' or 'cuda'; 'auto' is 'cuda' where mmcv's ops can use a GPU.

    Args:
        source, key: the config's file and its setting, for messages.

    Raises:
        RecipeError: as `recipe_device`.
    """
    if device not in ('auto', 'cpu', 'cuda'):
        raise RecipeError(source, [f'{key} is {device!r}: auto, cpu or cuda is needed.'])
    if device == 'cuda' and not torch.cuda.is_available():
        raise RecipeError(source, [f'{key} is cuda, and torch sees no GPU. Set it to auto or cpu.'])
    if device == 'cpu' or not torch.cuda.is_available():
        return 'cpu'
    obstacle = gpu_ops.gpu_obstacle()
    if not obstacle:
        return 'cuda'
    if device == 'cuda':
        raise RecipeError(
            source, [f'{key} is cuda, and {obstacle}. Set it to auto or cpu to use the CPU.']
        )
    gpu_ops.report_cpu()
    return 'cpu'


def data_parallel(model: nn.Module, device: str) -> MMDataParallel:
    """mmcv's wrapper of a model on 'cpu' or 'cuda', which takes batches as its loaders give them."""
    if device == 'cpu':
        return detectors.CpuDataParallel(model.to(device))
    return MMDataParallel(model.to(device), device_ids=[torch.cuda.current_device()])


def process_count(recipe: Recipe) -> int:
    """How many processes share the work, see `distributed.process_count`."""
    return distributed.process_count(recipe.gpus, recipe.device, recipe.source)


def data_workers(recipe: Recipe, training: bool = True) -> int:
    """How many processes load images for each process of a training or, if not `training`, of an evaluation."""
    local_processes = int(os.environ.get('LOCAL_WORLD_SIZE', 0)) or process_count(recipe)
    runtime = recipe.cfg.runtime
    return loading.worker_count(
        runtime.workers, recipe_device(recipe), local_processes * runtime.jobs, training
    )


def set_threads(device: str, threads: int) -> None:
    """Sets torch's threads on the CPU; 0: one per core, or what OMP_NUM_THREADS says."""
    if device == 'cpu' and (threads or not os.environ.get('OMP_NUM_THREADS')):
        torch.set_num_threads(threads or cpu_cores())


def speed_settings(recipe: Recipe) -> dict[str, str]:
    """The recipe's `speed` on this machine, in words.

    Returns:
        ``precision``: 'fp32', 'tf32' or 'bf16'; ``speed``: the switches that are on.
    """
    switches = speed.resolve_speed(recipe.cfg.get('speed'), recipe_device(recipe))._asdict()
    precision = switches.pop('precision')
    switched_on = [name for name, value in switches.items() if value]
    return {'precision': precision, 'speed': ', '.join(switched_on) or 'all off'}


# mmcv's runner that counts epochs, able to go on inside one.


@RUNNERS.register_module()
class ResumableEpochRunner(EpochBasedRunner):
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
