"""How much memory this process uses; how many images fit into it, and what to lower where they don't."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import Tensor, nn

from ..errors import MtpdError
from ..runtime.checkpoints import resume_hint
from ..utils.machine import free_memory

HEADROOM = 0.1  # of the memory, for what differs from batch to batch
UNITS = {'bytes': 1, 'KiB': 2**10, 'MiB': 2**20, 'GiB': 2**30, 'TiB': 2**40}
GIB = 2**30


class Fit(NamedTuple):
    """What fits.

    Attributes:
        images: an update's images in all, None where even one for each process is too much.
        side: by what the images' sides are to be multiplied in place of that: 1 where all fit; with one image for
            each process where `images` is None. None where memory is too small without any image.
    """

    images: int | None
    side: float | None


def largest_fit(batch: int, processes: int, fixed: float, wanted: float, there: float) -> Fit:
    """What to lower so that a process's memory suffices, with a tenth to spare.

    Args:
        batch: images of an update, shared evenly by `processes`.
        fixed: bytes that a process needs whatever its images (see `fixed`); the rest is proportional to their pixels.
        wanted: bytes that a process needs with its share of the batch.
        there: bytes that it can have.
    """
    share = batch // processes
    each = (wanted - fixed) / share
    room = (1 - HEADROOM) * there - fixed
    if room <= 0:
        return Fit(None, None)
    if each <= 0 or each * share <= room:
        return Fit(batch, 1.0)
    fitting = math.floor(room / each)
    if fitting:
        return Fit(fitting * processes, math.sqrt(room / (each * share)))
    return Fit(None, math.sqrt(room / each))


def fixed_bytes(weights: int, trained: int, optimizer: str = '') -> int:
    """Bytes that a training needs whatever its images.

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


class Shortage(NamedTuple):
    """What an error says of memory, in bytes, None where it doesn't: what the process can have and has, which are known
    together, and what it wanted more."""

    there: int | None
    used: int | None
    more: int | None


def parse_shortage(text: str) -> Shortage:
    """What the text of torch's or numpy's error says; what other processes have of a GPU cannot be had."""

    def find(pattern: str) -> int | None:
        match = re.search(pattern.replace('SIZE', r'([\d.]+) (bytes|[KMGT]iB)'), text)
        return round(float(match[1]) * UNITS[match[2]]) if match else None

    more = find('[Tt]ried to allocate SIZE') or find('Unable to allocate SIZE')
    used, free = find('this process has SIZE memory in use'), find('of which SIZE is free')
    if used is None or free is None:
        return Shortage(None, None, more)
    most = find('SIZE allowed')  # where torch was told to keep to a part of it
    return Shortage(min(used + free, most or used + free), used, more)


def scaled_image(scale: int | tuple[int, int] | None, factor: float) -> str:
    """An image scale with its sides multiplied, as it is written in a recipe."""
    if scale is None:
        return f'{math.floor(100 * factor) / 100:g} of its sides'
    if isinstance(scale, int):
        return f'{math.floor(scale * factor)}'
    return f'({", ".join(str(math.floor(side * factor)) for side in scale)})'


def shortage_text(
    what: str,
    short: Shortage,
    own: int,
    batch: tuple[str, int, int],
    side: tuple[str, int | tuple[int, int] | None],
    rate: str = '',
) -> str:
    """An error's text: what is short, which setting to lower, by how much.

    Args:
        what: 'GPU memory' or 'memory'.
        own: `fixed`.
        batch: key, images, and how many processes share them.
        side: key and value of the images' scale.
        rate: what to know of the learning rate with another batch.
    """
    key, images, processes = batch
    numbers = []
    if short.there is not None:
        numbers = [f'{short.there / GIB:.1f} GiB', f'{short.used / GIB:.1f} in use']
    if short.more:
        numbers.append(f'{short.more / GIB:.1f}{" GiB" * (not numbers)} more wanted')
    told = f' ({", ".join(numbers)})' if numbers else ''
    began = f'{what} ran out{told} with {key} {images}: '
    if short.there is None:  # nothing to calculate with: half
        found = Fit(images // 2 // processes * processes or None, math.sqrt(0.5))
    else:
        wanted = short.used + (short.more or 0)
        found = largest_fit(images, processes, own, wanted, short.there)
    if found.side is None:
        return (
            f'{began}the weights alone take {own / GIB:.1f} GiB. A smaller detector, or one with more '
            'memory to itself, is needed.'
        )
    factor, lower = min(found.side, 0.95), found.images  # it did not fit, whatever the numbers say
    if lower == images:
        lower = images - processes or None
    if lower:
        noted = f' ({rate})' * bool(rate)
        return (
            f'{began}lower it to {lower}{noted}, or {side[0]} to {scaled_image(side[1], factor)}.'
        )
    fewest = f'{key} to {processes} and ' * (images > processes)
    return f'{began}lower {fewest}{side[0]} to {scaled_image(side[1], factor)}.'


def memory_used(device: str) -> tuple[int, int, int]:
    """Bytes in use, the most that were since `forget`, and those that this process may have."""
    if device == 'cuda':
        free, reserved = torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), free + reserved
    now = psutil.Process().memory_info().rss
    told = re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())
    return now, max(now, int(told[1]) * 1024), now + free_memory()


def reset_peak(device: str) -> None:
    """Peaks count from here, without what nobody uses any more."""
    gc.collect()  # a detector refers to itself
    if device == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError, AttributeError):  # what `keep_memory` has kept
        ctypes.CDLL('libc.so.6').malloc_trim(0)
    with contextlib.suppress(OSError):  # then earlier peaks count too
        Path('/proc/self/clear_refs').write_text('5')


# Memory that runs out while a detector is trained or evaluated: told with the setting to lower, and by how much.


# What is said by RuntimeErrors alone: of the CPU's memory, and of a GPU's by CUDA and its libraries.
_OF_THE_CPU = re.compile("DefaultCPUAllocator: can't allocate memory|_HOST_ALLOCATION_FAILED")
_OF_A_GPU = re.compile(
    "CUDA error: out of memory|Cuda failure (\\d+ )?'out of memory'"
    '|CU[A-Z]+_STATUS_(INTERNAL_ERROR_DEVICE_)?ALLOC(ATION)?_FAILED'
)
# What cuBLAS and cuDNN 9 also say where they find no room to work in.
_VAGUE = re.compile(
    'CUBLAS_STATUS_NOT_INITIALIZED|unable to find an engine to execute this computation'
)


@contextlib.contextmanager
def explain_out_of_memory(
    knobs: SettingNames, model: nn.Module, optimizer: str = '', out: Path | None = None
) -> Iterator[None]:
    """In the block, running out of memory raises an MtpdError that says what to lower; other errors pass.

    Args:
        model: what is trained or evaluated; whether it is in train mode says which.
        optimizer: the type of its optimizer; '': there is none.
        out: the training's folder, whose checkpoint stays.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        text = _error_text(error, knobs, model, optimizer)
        if out:
            text += f' {resume_hint(out)}; other settings need another --work-dir.'
        raise MtpdError(text) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, the CPU's or a GPU's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        pattern.search(str(error)) for pattern in (_OF_THE_CPU, _OF_A_GPU, _VAGUE)
    )


def _error_text(error: Exception, knobs: SettingNames, model: nn.Module, optimizer: str) -> str:
    gpu = not isinstance(error, MemoryError) and not _OF_THE_CPU.search(str(error))
    short = parse_shortage(str(error))
    if gpu and short.there is None and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        used = torch.cuda.memory_reserved()
        short = Shortage(free + used, used, short.more)
    if not gpu:
        used = psutil.Process().memory_info().rss
        there = psutil.virtual_memory().available + used
        short = Shortage(there, used, short.more)
    if optimizer and model.training:
        batch, rate = (knobs.batch, knobs.images, knobs.sharing), knobs.rate
    else:  # also of an evaluation during training
        batch, rate = (knobs.evaluation, knobs.evaluated, 1), ''
    own = fixed_bytes(*_weight_bytes(model), optimizer)
    what = 'GPU memory' if gpu else 'memory'
    text = shortage_text(what, short, own, batch, (knobs.side, knobs.scale), rate)
    if 'DataLoader worker' in str(error):
        text += f' It was short in a data worker: fewer of them ({knobs.workers}) take less, too.'
    if vague := _VAGUE.search(str(error)):
        text += f' CUDA says {vague[0]!r}, which may have another cause where memory is free.'
    return text


def _weight_bytes(model: nn.Module) -> tuple[int, int]:
    """Of all weights, with those of a `Distiller`'s teacher, and of the trained ones."""
    modules = [model, *filter(None, [getattr(model, 'teacher', None)])]
    weights = [value for module in modules for value in (*module.parameters(), *module.buffers())]
    return _sum(weights), _sum([value for value in model.parameters() if value.requires_grad])


def _sum(tensors: list[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors)


# The settings that a training which cannot go on refers to, by the keys that its config has for them.


class SettingNames(NamedTuple):
    """Keys, and the values that advice is calculated from.

    Attributes:
        batch: of the images of an update, of which there are `images`, shared evenly by `sharing` processes.
        rate: how the learning rate follows another batch.
        side: of the images' side; `scale` is its value, None where it stands in several places.
        evaluated: images of a process at a time in evaluation, by the key `evaluation`.
        workers: of the data workers; `lr`: of the learning rate; `clip`: of gradient clipping.
    """

    batch: str
    images: int
    sharing: int
    rate: str
    side: str
    scale: int | tuple[int, int] | None
    evaluation: str
    evaluated: int
    workers: str
    lr: str
    clip: str

    @property
    def lower(self) -> str:
        """What helps against losses that grow."""
        return f'lower the learning rate ({self.lr}), or clip gradients to less ({self.clip})'


def recipe_setting_names(cfg: dict, processes: int) -> SettingNames:
    """Those of a recipe's values."""
    schedule, scale = cfg.schedule, cfg.image.scale
    if schedule.get('lr_batch_size') is None:
        rate = f'schedule.lr_batch_size={schedule.batch_size} scales the learning rate with it'
    else:
        rate = 'schedule.lr_batch_size scales the learning rate'
    return SettingNames(
        batch='schedule.batch_size',
        images=schedule.batch_size,
        sharing=processes,
        rate=rate,
        side='image.scale',
        scale=scale if isinstance(scale, int) else tuple(scale),
        evaluation='evaluation.batch_size',
        evaluated=cfg.evaluation.batch_size,
        workers='runtime.workers',
        lr='schedule.lr.max_lr' if 'max_lr' in schedule.lr else 'schedule.optimizer.lr',
        clip='schedule.grad_clip',
    )


def config_setting_names(data: dict, batch: str, evaluation: str) -> SettingNames:
    """Those of a plain mmdet config's `data`, in mmdet's newer layout.

    Args:
        batch: the key of the batch in the file, which may have the older layout.
        evaluation: 'val_dataloader' (during training) or 'test_dataloader'.
    """
    return SettingNames(
        batch=batch,
        images=data.train_dataloader.get('samples_per_gpu', 2),
        sharing=1,
        rate='auto_scale_lr.enable=True scales the learning rate',
        side="img_scale in the pipelines' Resize",
        scale=None,
        evaluation=f'data.{evaluation}.samples_per_gpu',
        evaluated=data[evaluation].get('samples_per_gpu', 1),
        workers=f'{batch.rpartition(".")[0]}.workers_per_gpu',
        lr='optimizer.lr',
        clip='optimizer_config.grad_clip',
    )
