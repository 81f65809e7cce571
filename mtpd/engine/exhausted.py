"""Memory that runs out while a detector is trained or evaluated: told with the setting to lower, and by how much."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from ..errors import MtpdError
from ..runtime.resume import kept
from . import memory
from .knobs import Knobs

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
def explained(
    knobs: Knobs, model: nn.Module, optimizer: str = '', out: Path | None = None
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
        if not is_exhausted(error):
            raise
        text = _text(error, knobs, model, optimizer)
        if out:
            text += f' {kept(out)}; other settings need another --work-dir.'
        raise MtpdError(text) from error


def is_exhausted(error: Exception) -> bool:
    """Whether an error says that memory ran out, the CPU's or a GPU's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        pattern.search(str(error)) for pattern in (_OF_THE_CPU, _OF_A_GPU, _VAGUE)
    )


def _text(error: Exception, knobs: Knobs, model: nn.Module, optimizer: str) -> str:
    gpu = not isinstance(error, MemoryError) and not _OF_THE_CPU.search(str(error))
    short = memory.told(str(error))
    if gpu and short.there is None and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        used = torch.cuda.memory_reserved()
        short = memory.Shortage(free + used, used, short.more)
    if not gpu:
        used = psutil.Process().memory_info().rss
        there = psutil.virtual_memory().available + used
        short = memory.Shortage(there, used, short.more)
    if optimizer and model.training:
        batch, rate = (knobs.batch, knobs.images, knobs.sharing), knobs.rate
    else:  # also of an evaluation during training
        batch, rate = (knobs.evaluation, knobs.evaluated, 1), ''
    own = memory.fixed(*_bytes(model), optimizer)
    what = 'GPU memory' if gpu else 'memory'
    text = memory.in_words(what, short, own, batch, (knobs.side, knobs.scale), rate)
    if 'DataLoader worker' in str(error):
        text += f' It was short in a data worker: fewer of them ({knobs.workers}) take less, too.'
    if vague := _VAGUE.search(str(error)):
        text += f' CUDA says {vague[0]!r}, which may have another cause where memory is free.'
    return text


def _bytes(model: nn.Module) -> tuple[int, int]:
    """Of all weights, with those of a `Distiller`'s teacher, and of the trained ones."""
    modules = [model, *filter(None, [getattr(model, 'teacher', None)])]
    weights = [value for module in modules for value in (*module.parameters(), *module.buffers())]
    return _sum(weights), _sum([value for value in model.parameters() if value.requires_grad])


def _sum(tensors: list[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors)
