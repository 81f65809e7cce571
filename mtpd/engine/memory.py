"""Memory: what to lower when it runs out, how much a process uses, how many images fit."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import nn

from ..errors import MtpdError
from ..runtime.checkpoints import resume_hint
from ..utils.machine import free_memory

HEADROOM = 0.1  # of the memory, for what differs from batch to batch
GIB = 2**30

# RuntimeErrors for a shortage of the CPU's memory, and of a GPU's: CUDA and its libraries have words of their own.
_CPU_SHORTAGE = re.compile("DefaultCPUAllocator: can't allocate memory|_HOST_ALLOCATION_FAILED")
_GPU_SHORTAGE = re.compile(
    "CUDA error: out of memory|Cuda failure (\\d+ )?'out of memory'"
    '|CU[A-Z]+_STATUS_(INTERNAL_ERROR_DEVICE_)?ALLOC(ATION)?_FAILED'
    # What cuBLAS and cuDNN 9 say where they find no room to work in. It may have another cause.
    '|CUBLAS_STATUS_NOT_INITIALIZED|unable to find an engine to execute this computation'
)


# Running out of memory: the error names the setting to lower.


@contextlib.contextmanager
def explain_out_of_memory(
    setting_names: SettingNames, model: nn.Module, run_dir: Path | None = None
) -> Iterator[None]:
    """In the block, running out of memory raises an MtpdError that says what to lower; other errors pass.

    Args:
        model: what is trained or evaluated; whether it is in train mode says which.
        run_dir: the training's folder, whose checkpoint stays.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        text = out_of_memory_text(error, setting_names, model.training)
        if run_dir:
            text += f' {resume_hint(run_dir)}; other settings need another --work-dir.'
        raise MtpdError(text) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, the CPU's or a GPU's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and bool(
        _CPU_SHORTAGE.search(text) or _GPU_SHORTAGE.search(text)
    )


def out_of_memory_text(error: Exception, setting_names: SettingNames, training: bool) -> str:
    """What ran out, which setting to lower and to what, and the error's own first line.

    How much is missing is not known in general. So the advice is to halve: the images of a process, or the area of
    each image. Both halve about what images take; weights and the optimizer stay.

    Args:
        training: whether an update was being made, and not an evaluation.
    """
    on_cpu = isinstance(error, MemoryError) or _CPU_SHORTAGE.search(str(error))
    names = setting_names
    if training:
        batch, images, processes = names.batch, names.images, names.processes
    else:
        batch, images, processes = names.evaluation, names.evaluated, 1
    smaller_images = f'{names.side} to {scaled_image(names.scale, math.sqrt(0.5))}'
    half = images // processes // 2 * processes
    if half:
        rate = f' ({names.rate})' if training else ''
        advice = (
            f'lower it to {half}{rate}, or {smaller_images}. Each halves the memory of the images.'
        )
    else:
        advice = f'lower {smaller_images}, which halves the memory of the images, or choose a smaller detector.'
    lines = [
        f'{"memory" if on_cpu else "GPU memory"} ran out with {batch} {images}: {advice}',
        f'({textwrap.shorten(str(error).partition(chr(10))[0], 240, placeholder=" ...")})',
    ]
    if 'DataLoader worker' in str(error):
        lines.append(
            f'It ran out in a data worker: fewer workers ({names.workers}) take less, too.'
        )
    return ' '.join(lines)


def scaled_image(scale: int | tuple[int, int] | None, factor: float) -> str:
    """An image scale with its sides multiplied, as a recipe states it; of None the share of its sides."""
    if scale is None:
        return f'{math.floor(100 * factor) / 100:g} of its sides'
    if isinstance(scale, int):
        return f'{math.floor(scale * factor)}'
    return f'({", ".join(str(math.floor(side * factor)) for side in scale)})'


# The settings that error messages name, by the keys that a config has for them.


class SettingNames(NamedTuple):
    """Keys of settings, and the values that advice is calculated from.

    Attributes:
        batch: key of an update's images; there are `images`, shared evenly by `processes`.
        rate: how the learning rate follows another batch, in words.
        side: key of the images' size; `scale` is its value, None where it stands in several places.
        evaluation: key of the images that a process evaluates at a time, of which there are `evaluated`.
        workers, lr, clip: keys of the data workers, the learning rate and gradient clipping.
    """

    batch: str
    images: int
    processes: int
    rate: str
    side: str
    scale: int | tuple[int, int] | None
    evaluation: str
    evaluated: int
    workers: str
    lr: str
    clip: str

    @property
    def divergence_advice(self) -> str:
        """What helps against losses that grow."""
        return f'lower the learning rate ({self.lr}), or clip gradients to a smaller norm ({self.clip})'


def recipe_setting_names(cfg: dict, processes: int, detector: str = 'student') -> SettingNames:
    """The settings of a recipe, `cfg` its values, for the training or evaluation of a detector."""
    schedule, side, scale = cfg.schedule, 'image.scale', cfg.image.scale
    if stated := cfg.teachers.get(detector, {}).get('image', {}).get('scale'):
        side, scale = f'teachers.{detector}.image.scale', stated
    if schedule.get('lr_batch_size') is None:
        rate = f'schedule.lr_batch_size={schedule.batch_size} scales the learning rate with it'
    else:
        rate = 'schedule.lr_batch_size scales the learning rate'
    lr = 'schedule.lr.max_lr' if 'max_lr' in schedule.lr else 'schedule.optimizer.lr'
    if schedule.get('arm_lr') is not None:
        lr += '; in a stage: schedule.arm_lr'
    return SettingNames(
        batch='schedule.batch_size',
        images=schedule.batch_size,
        processes=processes,
        rate=rate,
        side=side,
        scale=scale if isinstance(scale, int) else tuple(scale),
        evaluation='evaluation.batch_size',
        evaluated=cfg.evaluation.batch_size,
        workers='runtime.workers',
        lr=lr,
        clip='schedule.grad_clip',
    )


def config_setting_names(cfg: dict, batch: str, evaluation: str) -> SettingNames:
    """The settings of a plain mmdet config.

    Args:
        cfg: the whole config, its `data` in mmdet's newer layout.
        batch: the key of the batch in the file, which may have the older layout.
        evaluation: 'val_dataloader' (during training) or 'test_dataloader'.
    """
    data, policy = cfg.data, cfg.get('lr_config') or {}
    return SettingNames(
        batch=batch,
        images=data.train_dataloader.get('samples_per_gpu', 2),
        processes=1,
        rate='auto_scale_lr.enable=True scales the learning rate',
        side="img_scale in the pipelines' Resize",
        scale=None,
        evaluation=f'data.{evaluation}.samples_per_gpu',
        evaluated=data[evaluation].get('samples_per_gpu', 1),
        workers=f'{batch.rpartition(".")[0]}.workers_per_gpu',
        lr='lr_config.max_lr' if 'max_lr' in policy else 'optimizer.lr',
        clip='optimizer_config.grad_clip',
    )


# How many images fit, by what was measured.


class Fit(NamedTuple):
    """The batch and the image size that fit into memory.

    Attributes:
        images: an update's images in all, None where even one for each process is too much.
        side: by what the images' sides are to be multiplied in place of that: 1 where all fit; with one image for
            each process where `images` is None. None where memory is too small without any image.
    """

    images: int | None
    side: float | None


def largest_fit(batch: int, processes: int, fixed: float, wanted: float, available: float) -> Fit:
    """The largest batch, or the largest images, for which a process's memory suffices with a tenth to spare.

    Args:
        batch: images of an update, shared evenly by `processes`.
        fixed: bytes that a process needs whatever its images (see `fixed_bytes`); the rest is proportional to their
            pixels.
        wanted: bytes that a process needs with its share of the batch.
        available: bytes that it can have.
    """
    share = batch // processes
    per_image = (wanted - fixed) / share
    room = (1 - HEADROOM) * available - fixed
    if room <= 0:
        return Fit(None, None)
    if per_image <= 0 or per_image * share <= room:
        return Fit(batch, 1.0)
    fitting = math.floor(room / per_image)
    if fitting:
        return Fit(fitting * processes, math.sqrt(room / (per_image * share)))
    return Fit(None, math.sqrt(room / per_image))


def fixed_bytes(weights: int, trained: int, optimizer: str = '') -> int:
    """Bytes that a training needs besides those of its images.

    Args:
        weights: bytes of all weights, a teacher's included.
        trained: of those that are trained: each has a gradient, and the optimizer keeps one number, two of Adam's kind.
        optimizer: its type; '' where nothing is trained.
    """
    if not optimizer:
        return weights
    return weights + trained * (1 + optimizer_moments(optimizer))


def optimizer_moments(optimizer: str) -> int:
    """How many numbers an optimizer keeps of a weight, by its type; SGD's is its momentum."""
    return 2 if 'adam' in optimizer.lower() else 1


# Memory in use.


class MemoryUse(NamedTuple):
    """Bytes of a process: in use, the most that were since `reset_peak`, and those that it may have."""

    current: int
    peak: int
    available: int


def memory_used(device: str) -> MemoryUse:
    """The memory of this process on 'cpu' or 'cuda'."""
    if device == 'cuda':
        free, reserved = torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()
        return MemoryUse(
            torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), free + reserved
        )
    current = psutil.Process().memory_info().rss
    peak = re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())
    return MemoryUse(current, max(current, int(peak[1]) * 1024), current + free_memory())


def reset_peak(device: str) -> None:
    """Frees unused memory, and restarts the measurement of the peak."""
    gc.collect()  # a detector refers to itself
    if device == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    # What the speed switch `keep_memory` holds back.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL('libc.so.6').malloc_trim(0)
    with contextlib.suppress(OSError):  # then earlier peaks count too
        Path('/proc/self/clear_refs').write_text('5')
