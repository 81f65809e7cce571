"""How much memory this process uses; how many images fit into it, and what to lower where they don't."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import re
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from ..utils.machine import free_memory

SPARE = 0.1  # of the memory, for what differs from batch to batch
UNITS = {'bytes': 1, 'KiB': 2**10, 'MiB': 2**20, 'GiB': 2**30, 'TiB': 2**40}
GIB = 2**30


class Advice(NamedTuple):
    """What fits.

    Attributes:
        images: an update's images in all, None where even one for each process is too much.
        side: by what the images' sides are to be multiplied in place of that: 1 where all fit; with one image for
            each process where `images` is None. None where memory is too small without any image.
    """

    images: int | None
    side: float | None


def advice(batch: int, processes: int, fixed: float, wanted: float, there: float) -> Advice:
    """What to lower so that a process's memory suffices, with a tenth to spare.

    Args:
        batch: images of an update, shared evenly by `processes`.
        fixed: bytes that a process needs whatever its images (see `fixed`); the rest is proportional to their pixels.
        wanted: bytes that a process needs with its share of the batch.
        there: bytes that it can have.
    """
    share = batch // processes
    each = (wanted - fixed) / share
    room = (1 - SPARE) * there - fixed
    if room <= 0:
        return Advice(None, None)
    if each <= 0 or each * share <= room:
        return Advice(batch, 1.0)
    fitting = math.floor(room / each)
    if fitting:
        return Advice(fitting * processes, math.sqrt(room / (each * share)))
    return Advice(None, math.sqrt(room / each))


def fixed(weights: int, trained: int, optimizer: str = '') -> int:
    """Bytes that a training needs whatever its images.

    Args:
        weights: bytes of all weights, a teacher's included.
        trained: of those that are trained: each has a gradient, and the optimizer keeps one number, two of Adam's kind.
        optimizer: its type; '' where nothing is trained.
    """
    if not optimizer:
        return weights
    return weights + trained * (1 + moments(optimizer))


def moments(optimizer: str) -> int:
    """How many numbers an optimizer keeps of a weight, by its type; SGD's is its momentum."""
    return 2 if 'adam' in optimizer.lower() else 1


class Shortage(NamedTuple):
    """What an error says of memory, in bytes, None where it doesn't: what the process can have and has, which are known
    together, and what it wanted more."""

    there: int | None
    used: int | None
    more: int | None


def told(text: str) -> Shortage:
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


def scaled(scale: int | tuple[int, int] | None, factor: float) -> str:
    """An image scale with its sides multiplied, as it is written in a recipe."""
    if scale is None:
        return f'{math.floor(100 * factor) / 100:g} of its sides'
    if isinstance(scale, int):
        return f'{math.floor(scale * factor)}'
    return f'({", ".join(str(math.floor(side * factor)) for side in scale)})'


def in_words(
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
        found = Advice(images // 2 // processes * processes or None, math.sqrt(0.5))
    else:
        wanted = short.used + (short.more or 0)
        found = advice(images, processes, own, wanted, short.there)
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
        return f'{began}lower it to {lower}{noted}, or {side[0]} to {scaled(side[1], factor)}.'
    fewest = f'{key} to {processes} and ' * (images > processes)
    return f'{began}lower {fewest}{side[0]} to {scaled(side[1], factor)}.'


def used(device: str) -> tuple[int, int, int]:
    """Bytes in use, the most that were since `forget`, and those that this process may have."""
    if device == 'cuda':
        free, reserved = torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), free + reserved
    now = psutil.Process().memory_info().rss
    told = re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())
    return now, max(now, int(told[1]) * 1024), now + free_memory()


def forget(device: str) -> None:
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
