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
from mmcv.runner import HOOKS, RUNNERS, EpochBasedRunner, get_dist_info
from mmdet.apis import set_random_seed, train_detector
from mmdet.utils import get_root_logger
from torch import nn

from ..config.recipe import Recipe
from ..data import loading, seeded_loader
from ..distill.initialization import InheritReport, warm_start
from ..errors import MtpdError, RecipeError
from ..runtime import checkpoints, detectors, distributed, gpu_ops
from ..utils import processes, world
from ..utils.files import make_writable_folder
from ..utils.machine import cpu_cores
from ..utils.progress import log_level
from . import hooks, learning_rate, pipelines, speed
from .memory import SettingNames, explain_out_of_memory, recipe_setting_names


def train_model(
    recipe: Recipe,
    build: Callable[[], nn.Module],
    model_cfg: dict,
    out: Path,
    updates: int,
    seed: int,
    scenes: int | None = None,
    meta: dict | None = None,
    peak: float | None = None,
    detector: str = 'student',
    teacher: str | None = None,
) -> InheritReport | None:
    """Trains what `build` makes for `updates` optimizer steps into ``out/latest.pth``.

    The training resumes where that file is there. Several processes share it where `runtime.gpus` says so, or in a
    world (`mtpd.runtime.distributed`). The dataset is not checked here: `mtpd.preflight.checks` does that.

    Args:
        build: makes the detector or `Distiller`, in each process; it must pickle where there are several.
        model_cfg: mmdet config of the detector; it says whether the annotations' masks are loaded.
        scenes: number of training scenes, if not the recipe's.
        meta: entries for the checkpoint's `meta`.
        peak: the largest learning rate, if not the schedule's; as that, before it is scaled to the batch.
        detector: whose images are loaded: 'student', or a teacher that is trained.
        teacher: the stage's, whose images may be of another size.

    Returns:
        The model's `inherit_report`: what a `Distiller` took over from its teacher. None where that is nothing.

    Raises:
        RecipeError: the devices or the detector do not fit the recipe.
        MtpdError: `out` cannot be written to; and as `train_by_config`.
    """
    processes_used = process_count(recipe)
    # Called for its error, before the folder is made.
    distributed.images_per_process(recipe.cfg.schedule.batch_size, processes_used, recipe.source)
    make_writable_folder(out)
    masks = pipelines.needs_masks(recipe, model_cfg)
    train, val = (
        pipelines.dataset_config(recipe, split, scenes, masks, detector, teacher)
        for split in ('train', 'val')
    )
    cfg = training_config(recipe, train, val, out, updates, seed, recipe_device(recipe), peak)
    return train_by_config(
        cfg,
        build,
        recipe.source,
        recipe_setting_names(recipe.cfg, processes_used, detector),
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
    """Trains what `build` makes as an mmdet config says, into its `work_dir`.

    The loop is mmdet's own. log.json takes the place of its text log. latest.pth takes the place of its checkpoints: it
    is whole at any time, and a training resumes from it. Images, their augmentation and what the model draws depend on
    `seed` and the update alone. SIGINT and SIGTERM are obeyed after an update, with a checkpoint.

    Args:
        cfg: as mmdet's `train_detector` reads it, its `optimizer_config` a dict, `custom_hooks` a list, and
            `checkpoint_config` of `interval` and `by_epoch`, as the runner counts; with `work_dir`, `seed`, `device` and `gpu_ids`, one id per process.
            `load_from` may have any layout, see `warm_start`. Two entries are not mmdet's: `corrupt_limit`, how many
            images of a split may be corrupt, and `speed`, the fields of `Speed`. The training may change `cfg`: it
            can't be used twice.
        build: as `train_model`.
        source: the config's file, for messages.
        setting_names: the config's keys, for messages.
        validate: whether the validation split is evaluated during the training.
        threads: of torch on the CPU; 0: one per core, or what OMP_NUM_THREADS says.
        meta: entries for the checkpoint's `meta`.

    Returns:
        As `train_model`.

    Raises:
        RecipeError: there is no image to train on.
        MtpdError: the weights of `load_from` can't be had; latest.pth is there and is not the checkpoint of a training;
            images are corrupt, a loss is not finite, or memory runs out.
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
    """The share of one process in `train_by_config`; all of it where there is no other."""
    rank, size = get_dist_info()
    set_threads(cfg.device, threads)
    # Before the model: a Swin Transformer's constructor makes mmdet's logger, at level INFO, if there is none.
    get_root_logger(log_level=log_level())
    set_random_seed(cfg.seed)
    corrupt_limit = cfg.get('corrupt_limit', 0)
    switches = speed.Speed(**cfg.get('speed', {}))

    model = build()
    if switches.byte_batches:
        cfg.data.train = pipelines.with_byte_batches(cfg.data.train)
        model.register_forward_pre_hook(pipelines.normalise_batch, with_kwargs=True)
    dataset = loading.SkipCorrupt(pipelines.quiet_dataset(cfg.data.train), corrupt_limit)
    if len(dataset) == 0:
        annotations = getattr(dataset, 'ann_file', 'the training split')
        raise RecipeError(
            source, [f'{annotations} has no image with an object, so there is nothing to train on.']
        )
    model.CLASSES = dataset.CLASSES
    if cfg.load_from and not resume_point:
        taken = warm_start(model, cfg.load_from)
        if rank == 0:
            print(f'load_from {cfg.load_from}: {taken}')
    cfg.load_from = None
    cfg.optimizer = speed.optimizer_config(cfg.optimizer, switches)
    model = speed.apply_speed(model.to(cfg.device), switches, cfg.device)

    cfg.resume_from = str(resume_point.path) if resume_point else None
    _set_hooks(cfg, corrupt_limit, setting_names)
    first_update = resume_point.update if resume_point else 0
    if cfg.runner.type == 'EpochBasedRunner':
        cfg.runner.type = 'ResumableEpochRunner'

    def train() -> None:
        with (
            seeded_loader.seeded_training(cfg.seed, first_update, corrupt_limit),
            processes.stop_after_update(writes_checkpoint=rank == 0),
            explain_out_of_memory(setting_names, model, Path(cfg.work_dir)),
        ):
            train_detector(
                model,
                dataset,
                cfg,
                distributed=size > 1,
                validate=validate,
                meta={'CLASSES': dataset.CLASSES, **meta},
            )

    with speed.restored_autocast(cfg.device), speed.tf32_products(switches.precision):
        loading.explain_worker_death(train)
    return getattr(model, 'inherit_report', None)


def _set_hooks(cfg: Config, corrupt_limit: int, setting_names: SettingNames) -> None:
    """Puts this kit's hooks into `cfg` itself, in place of mmdet's text log and checkpoints."""
    folder = Path(cfg.work_dir)
    loggers = [hook for hook in cfg.log_config.get('hooks', ()) if hook['type'] != 'TextLoggerHook']
    for hook in cfg.get('custom_hooks') or ():
        if cfg.resume_from and issubclass(HOOKS.get(hook['type']), hooks.EMA_HOOKS):
            hook['resume_from'] = cfg.resume_from  # or the average begins anew
    if 'type' not in cfg.optimizer_config and not cfg.get(
        'fp16'
    ):  # then mmdet makes a hook of its own
        interval = cfg.log_config.interval
        cfg.optimizer_config.update(type='LoggedGradNorm', interval=interval)
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


# The mmdet config of a recipe's training.


def training_config(
    recipe: Recipe,
    train: dict,
    val: dict,
    out: Path,
    updates: int,
    seed: int,
    device: str,
    peak: float | None = None,
) -> Config:
    """A recipe's training as the config that `train_by_config` reads.

    Args:
        train, val: configs of the two splits, see `pipelines.dataset_config`.
        out: the training's folder.
        updates: optimizer steps.
        device: 'cpu' or 'cuda'.
        peak: as `train_model`.

    Raises:
        RecipeError: the processes cannot share the batch evenly, or the devices do not fit the recipe.
        MtpdError: `schedule.lr_batch_size` or `peak` asks for another learning rate, and none is stated.
    """
    schedule, size, workers = recipe.cfg.schedule, process_count(recipe), data_workers(recipe)
    switches = speed.resolve_speed(recipe.cfg.get('speed'), device)
    loader = dict(
        samples_per_gpu=distributed.images_per_process(schedule.batch_size, size, recipe.source),
        workers_per_gpu=workers,
        persistent_workers=workers > 0,
        pin_memory=switches.pin_memory,
    )
    optimizer, lr = learning_rate.optimizer_and_policy(schedule, updates, peak)
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
        lr_config=lr,
        runner=dict(type='IterBasedRunner', max_iters=updates),
        checkpoint_config=dict(interval=schedule.checkpoint_interval, by_epoch=False),
        log_config=dict(interval=schedule.log_interval, hooks=list(schedule.get('loggers', ()))),
        custom_hooks=[dict(type='SetEpoch', batch_size=schedule.batch_size)],
        evaluation=dict(interval=schedule.eval_interval or updates, metric='bbox'),
        workflow=[('train', 1)],
        work_dir=str(out),
        load_from=None,
        resume_from=None,
        gpu_ids=list(range(size)),
        find_unused_parameters=True,  # as in the original code; mmdet reads it for several processes only
        device=device,
        seed=seed,
        corrupt_limit=recipe.corrupt_limit,
        speed=switches._asdict(),
    )
    return Config(settings)


def evaluation_loader(recipe: Recipe) -> dict:
    """mmdet's config of an evaluation's data loader."""
    images = recipe.cfg.evaluation.batch_size
    return dict(samples_per_gpu=images, workers_per_gpu=data_workers(recipe))


# Devices, processes, threads and speed switches.


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
        raise RecipeError(source, [f'{key} is {device!r}: it must be auto, cpu or cuda.'])
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
    """A model on 'cpu' or 'cuda' in mmcv's wrapper, which unpacks the `DataContainer`s of a batch."""
    if device == 'cpu':
        return detectors.CpuDataParallel(model.to(device))
    return MMDataParallel(model.to(device), device_ids=[torch.cuda.current_device()])


def process_count(recipe: Recipe) -> int:
    """How many processes share the work, see `distributed.process_count`."""
    return distributed.process_count(recipe.gpus, recipe.device, recipe.source)


def data_workers(recipe: Recipe) -> int:
    """How many data workers each process of a training or an evaluation has."""
    process = world.current_world()
    local_processes = process.local_size if process else process_count(recipe)
    runtime = recipe.cfg.runtime
    return loading.worker_count(
        runtime.workers, recipe_device(recipe), local_processes * runtime.jobs
    )


def set_threads(device: str, threads: int) -> None:
    """Sets torch's threads on the CPU; 0: one per core, or what OMP_NUM_THREADS says."""
    if device == 'cpu' and (threads or not os.environ.get('OMP_NUM_THREADS')):
        torch.set_num_threads(threads or cpu_cores())


def speed_settings(recipe: Recipe) -> dict[str, str]:
    """The recipe's `speed` on this machine, in words.

    Returns:
        ``precision``: 'fp32', 'tf32' or 'bf16'; ``speed``: the names of the other switches that are on.
    """
    switches = speed.resolve_speed(recipe.cfg.get('speed'), recipe_device(recipe))._asdict()
    precision = switches.pop('precision')
    switched_on = [name for name, value in switches.items() if value]
    return {'precision': precision, 'speed': ', '.join(switched_on) or 'all off'}


# Trainings that count epochs: mmcv's runner, made to resume within one.


@RUNNERS.register_module()
class ResumableEpochRunner(EpochBasedRunner):
    """An `EpochBasedRunner` that goes on within an epoch, where the seeded loader gives the rest of its batches.

    `train` is mmcv's own but for the number of the first batch: mmcv counts from 0. It raises MtpdError where a training
    goes on with epochs of another length, as by other processes.
    """

    def resume(self, checkpoint: str, **kwargs) -> None:
        super().resume(checkpoint, **kwargs)
        meta = checkpoints.load_checkpoint(checkpoint).get('meta') or {}
        self.resumed, self.epoch_updates = checkpoint, meta.get('epoch_updates')

    def train(self, data_loader, **kwargs) -> None:
        length = len(data_loader)
        if getattr(self, 'epoch_updates', None) not in (None, length):
            raise MtpdError(
                f'{self.resumed} is from a training with {self.epoch_updates} updates an epoch, and now an epoch has {length}: a '
                'training goes on only with the same images, batch and number of processes. Use these, or choose '
                'another --work-dir.'
            )
        self.model.train()
        self.mode = 'train'
        self.data_loader = data_loader
        self._max_iters = self._max_epochs * len(data_loader)
        done = self.iter - self.epoch * len(data_loader)
        self.call_hook('before_train_epoch')
        time.sleep(2)  # as in mmcv: the epoch before may still be ending its data workers
        for self._inner_iter, self.data_batch in enumerate(data_loader, done):
            self.call_hook('before_train_iter')
            self.run_iter(self.data_batch, train_mode=True, **kwargs)
            self.call_hook('after_train_iter')
            del self.data_batch
            self._iter += 1
        self.call_hook('after_train_epoch')
        self._epoch += 1
