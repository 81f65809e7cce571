"""Work done by several processes together: mmdet's distributed training and evaluation.

Rank 0 alone runs a command: it reads recipes, decides, fetches, writes files and prints. The training loop and the
detections on a split are shared out: for them it calls `run_on_all_ranks`, which has all processes run one function.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import mmdet.apis.train
import psutil
import torch
import torch.distributed as dist
from mmcv.parallel import MMDistributedDataParallel
from mmcv.parallel.scatter_gather import scatter_kwargs
from mmdet.core.utils import sync_random_seed
from mmdet.datasets.samplers import class_aware_sampler, distributed_sampler, infinite_sampler
from mmdet.utils import build_ddp
from torch.distributed.constants import default_pg_timeout
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..errors import MtpdError, RecipeError
from ..utils import world
from ..utils.machine import cpu_cores
from ..utils.paths import ROOT
from ..utils.processes import end_with_parent, sigterm_unwinds
from . import gpu_ops

PATIENCE = timedelta(days=30)  # with rank 0, which may be fetching a dataset
GATHERING = timedelta(minutes=10)  # until all processes are connected; torch would wait 30

# Of `run_on_all_ranks`; None in a process that works alone.
_control: dist.ProcessGroup | None = None


def process_count(requested: int | None, device: str, source: str | Path) -> int:
    """How many processes share the work: those of this world, else `requested`, else one.

    Args:
        requested: a recipe's `runtime.gpus`.
        device: 'auto', 'cuda', or 'cpu', which takes that many processes without GPUs.
        source: the recipe, for messages.

    Raises:
        RecipeError: there are not that many GPUs, or mmcv's ops can't use them.
        MtpdError: the world has another size.
    """
    process = world.current_world()
    if process:
        world.check_size(process, requested)
    size = process.size if process else requested or 1
    if size == 1 or device == 'cpu':
        return size
    gpus = torch.cuda.device_count()
    if gpus and not process and size > gpus:
        problem = f'runtime.gpus (--gpus) is {size}, and torch sees {gpus} GPU(s) here.'
        raise RecipeError(source, [problem])
    obstacle = gpu_ops.gpu_obstacle() if gpus else 'torch sees no GPU here'
    if obstacle:
        problem = f'{size} processes are asked for (runtime.gpus, --gpus), and {obstacle}. '
        fix = 'With runtime.device=cpu (an mmdet config: device=cpu) as many share the CPU.'
        raise RecipeError(source, [problem + fix])
    return size


def images_per_process(images: int, processes: int, source: str | Path) -> int:
    """The images of one process when an update takes `images` in all. Raises RecipeError if they can't be split."""
    if images % processes:
        problem = (
            f'schedule.batch_size is {images}, which {processes} processes cannot share evenly. '
        )
        fix = 'It counts the images of an update in all: choose a multiple.'
        raise RecipeError(source, [problem + fix])
    return images // processes


def run_on_all_ranks(size: int, device: str, function: Callable, *args: Any) -> Any:
    """Runs ``function(*args)`` in every process of the world; returns what it returned on rank 0.

    Outside a world, and for a `size` above 1, it starts that many processes for this call. Function and arguments
    must pickle: a function of a module, no lambda.

    Raises:
        MtpdError: one of the processes raised it or was ended by a signal; or this world has no `process_group`.
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
            '`with mtpd.runtime.distributed.process_group(...):`, or use the command mtpd.'
        )
    return launch(size, device, function, args)


def gather(value: Any) -> list:
    """`value` of every process, by rank; each of them has to call this. It must pickle."""
    if _control is None:
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_control)
    return values


# The processes of a world, connected.


@contextlib.contextmanager
def process_group(
    requested: int | None, device: str, source: str | Path, text: str = ''
) -> Iterator[None]:
    """The block runs on rank 0. The other processes help `run_on_all_ranks`, and end with the block.

    Does nothing in a process that was started alone. `text`: must be equal in all, such as the recipe's.

    Raises:
        RecipeError: as `process_count`, and a process without a GPU of its own.
        MtpdError: the processes do not fit together.
    """
    size = process_count(requested, device, source)
    process = world.current_world()
    if size == 1 or process is None:
        yield
        return
    _connect(process, device, source)
    _check_same_task(text)
    if process.rank:
        _help_rank_0()
        raise SystemExit(0)
    yield
    dist.broadcast_object_list([None], group=_control)
    _disconnect()


def _connect(process: world.World, device: str, source: str | Path) -> None:
    global _control
    cuda, index = device != 'cpu', process.local_rank
    if cuda:
        gpus = torch.cuda.device_count()
        if process.starter == 'SLURM' and gpus == 1:  # --gpus-per-task=1
            index = 0
        if index >= gpus:
            problem = f'process {process.rank} is number {index + 1} on its machine, where torch sees {gpus} GPU(s).'
            raise RecipeError(source, [problem])
        torch.cuda.set_device(index)
    numbers = {'RANK': process.rank, 'WORLD_SIZE': process.size, 'LOCAL_RANK': index}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    try:
        store = _open_store()
        backend = 'cpu:gloo,cuda:nccl' if cuda else 'gloo'
        dist.init_process_group(backend, store=store, rank=process.rank, world_size=process.size)
        _control = dist.new_group(backend='gloo', timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise MtpdError(_no_connection(process, str(error))) from error
    patch_train_detector(device)
    if process.rank:
        sys.stdout = open(os.devnull, 'w')  # noqa: PTH123, SIM115


def _open_store() -> dist.Store:
    """Where the processes find each other. In a thread: torch waits for ever on a program that is none of them."""
    answers: list = []

    def ask() -> None:
        try:
            answers.append(next(dist.rendezvous('env://', timeout=GATHERING))[0])
        except Exception as error:
            answers.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(GATHERING.total_seconds() + 5)
    if not answers:
        raise RuntimeError(f'no answer within {GATHERING}')
    (answer,) = answers
    if isinstance(answer, Exception):
        raise answer
    answer.set_timeout(default_pg_timeout)
    return answer


def _no_connection(process: world.World, error: str) -> str:
    address = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
    if 'address already in use' in error.lower():
        return (
            f'MASTER_PORT {os.environ["MASTER_PORT"]} is in use by another program on this machine: set it to a free '
            f'port, the same for all {process.size} processes, or let `--gpus {process.size}` choose one.'
        )
    return (
        f'process {process.rank} of {process.size} found no connection to the others at {address} ({error}). Were all '
        'of them started, does every machine reach MASTER_ADDR, and has no other program MASTER_PORT?'
    )


def _check_same_task(text: str) -> None:
    """Processes that were started with different things to do would train one of them, in silence."""
    tasks: list = [None] * dist.get_world_size()
    dist.all_gather_object(tasks, (sys.argv[1:], text), group=_control)
    if any(task != tasks[0] for task in tasks):
        raise MtpdError(
            'the processes were started together, with different commands or recipes: start them one by one '
            '(with SLURM: unset SLURM_STEP_NUM_TASKS).'
        )


def _help_rank_0() -> None:
    while task := _next_task():
        function, args = task
        function(*args)
    _disconnect()


def _next_task() -> tuple | None:
    task = [None]
    try:
        dist.broadcast_object_list(task, group=_control)
    except RuntimeError:  # rank 0 is gone, and has said why
        raise SystemExit(1) from None
    return task[0]


def _disconnect() -> None:
    global _control
    with contextlib.suppress(RuntimeError):  # one that has left already
        dist.barrier(_control)
    _control = None
    dist.destroy_process_group()


# Processes that are started for one call.


class ProcessKilled(MtpdError):
    """A signal ended one of the processes that were started."""

    exit_code = 1


def launch(size: int, device: str, function: Callable, args: tuple) -> Any:
    """Runs ``function(*args)`` in `size` new processes on this machine; returns what it returned on rank 0.

    Their output goes to `sys.stdout` and `sys.stderr`, where a notebook shows it.

    Raises:
        MtpdError: one of the processes raised it. `ProcessKilled`: a signal ended one.
        RuntimeError: one failed otherwise; with its traceback.
    """
    logger = logging.getLogger('torch.distributed.elastic')  # logs failures, which are raised here
    logger.handlers, logger.propagate = [logging.NullHandler()], False
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # torch copies the output and does not flush
    with tempfile.TemporaryDirectory(prefix='mtpd-') as folder:
        Path(folder, 'task').write_bytes(pickle.dumps((size, device, function, args)))
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=size,
            run_id=uuid.uuid4().hex,
            rdzv_backend='c10d',
            rdzv_endpoint='localhost:0',  # a free port
            local_addr='localhost',
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(folder, tee=Std.ALL),
            log_line_prefix_template='${role_name}',
            role='',  # no prefix
        )
        try:
            _supervise(elastic_launch(config, 'env'), _command(size, folder), folder)
        except ChildFailedError as error:
            raise _failure(error, size, Path(folder)) from None
        return pickle.loads(Path(folder, 'result').read_bytes())


def _command(size: int, folder: str) -> list[str]:
    """Arguments of the program `env`, which sets variables for the processes alone."""
    # C++ warnings: each process notes that no parameter was unused, which is as it should be.
    defaults = {'OMP_NUM_THREADS': max(1, cpu_cores() // size), 'TORCH_CPP_LOG_LEVEL': 'ERROR'}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    variables = {name: value for name, value in defaults.items() if name not in os.environ}
    variables |= {'PYTHONPATH': path, 'PYTHONUNBUFFERED': 1}
    # Imports of seconds come after `end_with_parent`.
    code = f'from {end_with_parent.__module__} import end_with_parent; end_with_parent(); '
    code += f'from {__name__} import _process_main; _process_main()'
    settings = [f'{name}={value}' for name, value in variables.items()]
    return [*settings, sys.executable, '-c', code, folder, str(os.getpid())]


def _supervise(start: Callable, command: list[str], folder: str) -> None:
    """Starts the processes and waits for their end. Ctrl-C and SIGTERM end them, a training with a checkpoint.

    In a thread, as torch would replace the main thread's signal handlers, also those that ignore SIGHUP for `nohup`.
    """
    with ThreadPoolExecutor(1) as pool, sigterm_unwinds():
        future = pool.submit(start, *command)
        try:
            future.result()
        except KeyboardInterrupt:
            Path(folder, 'task').unlink()  # for processes that have yet to start
            try:
                _signal_processes(signal.SIGTERM, folder)
                future.exception()  # torch kills them after 30 seconds
            finally:  # a second Ctrl-C
                _signal_processes(signal.SIGKILL, folder)
            raise


def _signal_processes(number: int, folder: str) -> None:
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if folder in process.cmdline():
                process.send_signal(number)


def _failure(error: ChildFailedError, size: int, folder: Path) -> Exception:
    rank, failure = error.get_first_failure()
    file = folder / f'failure-{rank}'
    if file.is_file():
        return pickle.loads(file.read_bytes())
    process, name = f'process {rank} of {size}', failure.signal_name()
    if failure.exitcode < 0:
        cause = ' (often: out of memory)' if name == 'SIGKILL' else ''
        return ProcessKilled(f'{process} was ended by signal {name}{cause}.')
    return RuntimeError(f'{process} ended unexpectedly (exit code {failure.exitcode}).')


def _process_main() -> None:
    """What a process of `launch` does."""
    folder, parent, code = Path(sys.argv[1]), int(sys.argv[2]), 0
    if os.getppid() != parent:  # it ended before `end_with_parent`
        os._exit(1)
    try:
        size, device, function, args = pickle.loads((folder / 'task').read_bytes())
        with process_group(size, device, 'the recipe'):
            result = run_on_all_ranks(size, device, function, *args)
            (folder / 'result').write_bytes(pickle.dumps(result))
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        code, rank = 1, os.environ['RANK']
        if isinstance(error, MtpdError):
            failure = MtpdError(str(error))
        else:
            failure = RuntimeError(f'process {rank} failed:\n{traceback.format_exc()}')
            # This may fail because another process ended, which torch sees first if this one waits.
            time.sleep(1)
        (folder / f'failure-{rank}').write_bytes(pickle.dumps(failure))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not the slow way: gloo's threads can block the interpreter's end


# What mmdet's distributed training lacks on the CPU. On GPUs it stays as it is.


def patch_train_detector(device: str) -> None:
    """Lets mmdet's `train_detector` take several processes on `device`, 'cpu' or another."""
    mmdet.apis.train.build_ddp = _build_ddp
    # Samplers share their seed by way of a GPU: two of them unless told, the third where it sees one.
    kind = 'cpu' if device == 'cpu' else 'cuda'
    draw = functools.partial(sync_random_seed, device=kind)
    infinite_sampler.sync_random_seed = class_aware_sampler.sync_random_seed = draw
    distributed_sampler.get_device = lambda: kind


class CpuDataParallel(MMDistributedDataParallel):
    """mmcv's wrapper hands batches on only to GPUs; this one does so on the CPU, as its MMDataParallel does."""

    def train_step(self, *inputs, **kwargs):
        inputs, kwargs = scatter_kwargs(inputs, kwargs, [-1])
        return super().train_step(*inputs[0], **kwargs[0])

    def _run_ddp_forward(self, *inputs, **kwargs):
        inputs, kwargs = scatter_kwargs(inputs, kwargs, [-1])
        return super()._run_ddp_forward(*inputs[0], **kwargs[0])


def _build_ddp(model, device: str, device_ids: list[int], **options):
    """mmdet's `build_ddp`, which knows no CPU."""
    if device == 'cpu':
        return CpuDataParallel(model, **options)
    return build_ddp(model, device, device_ids=device_ids, **options)
