"""Work done by several processes together: mmdet's distributed training and evaluation.

Rank 0 alone runs a command: it reads recipes, decides, fetches, writes files and prints. Where work is shared out, the
training loop and the detections on a split, it calls `everywhere`, which has all processes run the same function.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from ..errors import MtpdError, RecipeError
from ..utils import world
from . import gpu_ops, launch
from .ddp import adapt

PATIENCE = timedelta(days=30)  # with rank 0, which may be fetching a dataset
GATHERING = timedelta(minutes=10)  # until all are there: torchrun's own; torch would wait 30

_control: dist.ProcessGroup | None = None  # for `everywhere`; None in a process that works alone


def count(asked: int | None, device: str, source: str | Path) -> int:
    """How many processes share the work: those of this world, else as many as are `asked` for, else one.

    Args:
        asked: a recipe's `runtime.gpus`.
        device: 'auto', 'cuda', or 'cpu', which takes that many processes without GPUs.
        source: the recipe, for messages.

    Raises:
        RecipeError: there are not that many GPUs, or mmcv's ops can't use them.
        MtpdError: the world has another size.
    """
    here = world.current_world()
    if here:
        world.check_size(here, asked)
    size = here.size if here else asked or 1
    if size > 1 and device != 'cpu':
        there = torch.cuda.device_count()
        if not there:
            problem = f'{size} processes are asked for (runtime.gpus, --gpus), and torch sees no GPU here. '
            fix = 'With runtime.device=cpu (an mmdet config: device=cpu) as many share the CPU.'
            raise RecipeError(source, [problem + fix])
        if not here and size > there:
            problem = f'runtime.gpus (--gpus) is {size}, and torch sees {there} GPU(s) here.'
            raise RecipeError(source, [problem])
        if obstacle := gpu_ops.gpu_obstacle():
            problem = f'{size} processes are asked for (runtime.gpus, --gpus), and {obstacle}. '
            fix = 'With runtime.device=cpu (an mmdet config: device=cpu) as many share the CPU.'
            raise RecipeError(source, [problem + fix])
    return size


def share(images: int, processes: int, source: str | Path) -> int:
    """The images of one process when an update takes `images` in all. Raises RecipeError if they can't be split."""
    if images % processes:
        problem = (
            f'schedule.batch_size is {images}, which {processes} processes cannot share evenly. '
        )
        fix = 'It counts the images of an update in all: choose a multiple.'
        raise RecipeError(source, [problem + fix])
    return images // processes


def everywhere(size: int, device: str, function: Callable, *args: Any) -> Any:
    """``function(*args)``, in every process of the world; returns what it returned on rank 0.

    Outside a world, and for a `size` above 1, torchrun starts one of that size for this call. Function and arguments
    must pickle: a function of a module, no lambda.

    Raises:
        MtpdError: what any of the processes raised as such; or this is a world that nobody joined.
        RuntimeError: a started process failed otherwise; with its traceback.
    """
    if _control is not None:
        if dist.get_rank() == 0:
            dist.broadcast_object_list([(function, args)], group=_control)
        return function(*args)
    if size == 1:
        return function(*args)
    if world.current_world():
        raise MtpdError(
            f'{size} processes were started, and each works alone: put the call into '
            '`with mtpd.runtime.distributed.joined(...):`, or use the command mtpd.'
        )
    return launch.launch(size, device, function, args)


def gather(value: Any) -> list:
    """`value` of every process, by rank; each of them has to call this. It must pickle."""
    if _control is None:
        return [value]
    told: list = [None] * dist.get_world_size()
    dist.all_gather_object(told, value, group=_control)
    return told


@contextlib.contextmanager
def joined(asked: int | None, device: str, source: str | Path, text: str = '') -> Iterator[None]:
    """What runs in the block runs on rank 0; the other processes help `everywhere`, and end with the block.

    Does nothing in a process that was started alone. `text`: must be equal in all, such as the recipe's.

    Raises:
        RecipeError: as `count`, and a process without a GPU of its own.
        MtpdError: the processes do not fit together.
    """
    size = count(asked, device, source)
    here = world.current_world()
    if size == 1 or here is None:
        yield
        return
    _connect(here, device, source)
    _compare(text)
    if here.rank:
        _help()
        raise SystemExit(0)
    yield
    dist.broadcast_object_list([None], group=_control)
    _leave()


def _connect(here: world.World, device: str, source: str | Path) -> None:
    global _control
    cuda, index = device != 'cpu', here.local_rank
    if cuda:
        there = torch.cuda.device_count()
        if here.starter == 'SLURM' and there == 1:  # --gpus-per-task=1
            index = 0
        if index >= there:
            problem = f'process {here.rank} is number {index + 1} on its machine, where torch sees {there} GPU(s).'
            raise RecipeError(source, [problem])
        torch.cuda.set_device(index)
    numbers = {'RANK': here.rank, 'WORLD_SIZE': here.size, 'LOCAL_RANK': index}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    try:
        store = _store()
        backend = 'cpu:gloo,cuda:nccl' if cuda else 'gloo'
        dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size)
        _control = dist.new_group(backend='gloo', timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise MtpdError(_no_connection(here, str(error))) from error
    adapt(device)
    if here.rank:
        sys.stdout = open(os.devnull, 'w')  # noqa: PTH123, SIM115


def _store() -> dist.Store:
    """Where the processes find each other. In a thread: torch waits for ever on a program that is none of them."""
    found: list = []

    def ask() -> None:
        try:
            found.append(next(dist.rendezvous('env://', timeout=GATHERING))[0])
        except Exception as error:
            found.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(GATHERING.total_seconds() + 5)
    if not found:
        raise RuntimeError(f'no answer within {GATHERING}')
    if isinstance(found[0], Exception):
        raise found[0]
    found[0].set_timeout(default_pg_timeout)
    return found[0]


def _no_connection(here: world.World, error: str) -> str:
    place = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
    if 'address already in use' in error.lower():
        return (
            f'MASTER_PORT {os.environ["MASTER_PORT"]} is in use by another program on this machine: set it to a free '
            f'port, the same for all {here.size} processes, or let `--gpus {here.size}` choose one.'
        )
    return (
        f'process {here.rank} of {here.size} found no connection to the others at {place} ({error}). Were all of them '
        'started, does every machine reach MASTER_ADDR, and has no other program MASTER_PORT?'
    )


def _compare(text: str) -> None:
    """Processes that were started with different things to do would train one of them, in silence."""
    told: list = [None] * dist.get_world_size()
    dist.all_gather_object(told, (sys.argv[1:], text), group=_control)
    if any(other != told[0] for other in told):
        raise MtpdError(
            'the processes were started together, with different commands or recipes: start them one by one '
            '(with SLURM: unset SLURM_STEP_NUM_TASKS).'
        )


def _help() -> None:
    while task := _next():
        function, args = task
        function(*args)
    _leave()


def _next() -> tuple | None:
    task = [None]
    try:
        dist.broadcast_object_list(task, group=_control)
    except RuntimeError:  # rank 0 is gone, and has said why
        raise SystemExit(1) from None
    return task[0]


def _leave() -> None:
    global _control
    with contextlib.suppress(RuntimeError):  # one that has left already
        dist.barrier(_control)
    _control = None
    dist.destroy_process_group()
