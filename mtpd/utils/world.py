"""The processes that train together, as torchrun or SLURM's srun started them."""

from __future__ import annotations

import os
import re
import time
from typing import NamedTuple

from ..errors import MtpdError

START_HINT = (
    'Start them with `torchrun --nproc-per-node N -m mtpd.cli ...`, or let `--gpus N` do it.'
)


class World(NamedTuple):
    """This process among the others.

    Attributes:
        rank: its number.
        size: how many there are.
        local_rank: its number on this machine.
        local_size: how many there are on this machine.
        starter: what started them.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    starter: str


def current_world() -> World | None:
    """The world that this process was started in; None if it was started alone.

    Under SLURM it sets MASTER_ADDR and MASTER_PORT, where they are not set.

    Raises:
        MtpdError: numbers that are missing or contradict each other, machines with unequal numbers of processes.
    """
    if 'RANK' in os.environ or os.environ.get('WORLD_SIZE', '1') != '1':
        return _torchrun_world()
    if os.environ.get('SLURM_STEP_NUM_TASKS', '1') != '1':  # by srun; sbatch's script is one task
        return _slurm_world()
    return None


def check_size(world: World, gpus: int | None) -> None:
    """Raises MtpdError where runtime.gpus is set to another number than the world's processes."""
    if gpus not in (None, world.size):
        raise MtpdError(
            f'{world.starter} started {world.size} process(es), and runtime.gpus (--gpus) is {gpus}: make them '
            'equal, or leave runtime.gpus out: the number that was started then counts.'
        )


def wait_for_rank_0() -> str:
    """Waits three seconds, except on rank 0. Most errors occur on all ranks, and rank 0, which prints first, then ends all.

    Returns:
        The beginning of this process's messages: '' on rank 0, else such as 'process 1: '.
    """
    rank = os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or '0'
    if rank == '0':
        return ''
    time.sleep(3)
    return f'process {rank}: '


def _torchrun_world() -> World:
    rank, size = _whole_number('RANK', 'torchrun'), _whole_number('WORLD_SIZE', 'torchrun')
    local = _whole_number('LOCAL_RANK', 'torchrun', rank if size == 1 else None)
    if not 0 <= rank < size:
        raise MtpdError(
            f'RANK is {rank}, but WORLD_SIZE is {size}: RANK must be less. {START_HINT}'
        )
    machines = _whole_number('GROUP_WORLD_SIZE', 'torchrun', 0)
    on_this = _whole_number('LOCAL_WORLD_SIZE', 'torchrun', 0)
    if machines and on_this and machines * on_this != size:
        raise MtpdError(
            f'torchrun started {size} processes on {machines} machines, {on_this} of them here: unequal numbers. '
            'Give every machine the same --nproc-per-node.'
        )
    if size > 1:
        for name in ('MASTER_ADDR', 'MASTER_PORT'):
            _required_text(name, 'torchrun')
    return World(rank, size, local, on_this or size, 'torchrun')


def _slurm_world() -> World:
    rank, size = (
        _whole_number('SLURM_PROCID', 'srun'),
        _whole_number('SLURM_STEP_NUM_TASKS', 'srun'),
    )
    tasks = os.environ.get('SLURM_STEP_TASKS_PER_NODE') or str(
        size
    )  # 4(x2), or 4,2 where they differ
    numbers = {re.sub(r'\(x\d+\)$', '', part) for part in tasks.split(',')}
    if len(numbers) > 1:
        raise MtpdError(
            f'SLURM started unequal numbers of tasks on the nodes ({tasks}). Ask for --nodes and --ntasks-per-node.'
        )
    os.environ.setdefault('MASTER_ADDR', _first_host(_required_text('SLURM_STEP_NODELIST', 'srun')))
    job, step = (_whole_number(f'SLURM_{name}_ID', 'srun', 0) for name in ('JOB', 'STEP'))
    os.environ.setdefault('MASTER_PORT', str(20000 + (job * 16 + step) % 20000))
    local_rank = _whole_number('SLURM_LOCALID', 'srun')
    return World(rank, size, local_rank, int(numbers.pop()), 'SLURM')


def _first_host(hosts: str) -> str:
    """'node[03-05,9],other' -> 'node03'."""
    match = re.match(r'([^,\[]+)(?:\[([^-,\]]+)[^\]]*\])?([^,]*)', hosts)
    return ''.join(part or '' for part in match.groups())


def _whole_number(name: str, starter: str, default: int | None = None) -> int:
    if default is not None and name not in os.environ:
        return default
    text = _required_text(name, starter)
    if not text.isdigit():
        raise MtpdError(f'{name} is {text!r}: {starter} sets it to a number. {START_HINT}')
    return int(text)


def _required_text(name: str, starter: str) -> str:
    if not os.environ.get(name):
        raise MtpdError(
            f'this looks like one of several processes of {starter}, but {name} is not set. {START_HINT}'
        )
    return os.environ[name]
