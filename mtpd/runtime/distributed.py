"""Work done by several processes together: mmdet's distributed training and evaluation.

Rank 0 alone runs a command: it reads recipes, decides, fetches, writes files and prints. The training loop and the
detections on a split are shared out: for them it calls `run_on_all_ranks`, which has all processes run one function.

The processes come from one of two places. torchrun or srun starts a world: each process runs the command, and
`process_group` makes all but rank 0 helpers. Or the command was started alone: then `run_on_all_ranks` starts the
processes for one call, by `launch`, and each of them enters `process_group`.
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
from ..utils.processes import end_with_parent, same_imports, sigterm_unwinds
from . import gpu_ops

PATIENCE = timedelta(days=30)  # how long helpers wait for rank 0, which may be fetching a dataset
GATHERING = timedelta(minutes=10)  # until all processes are connected; torch would wait 30

# The group by which rank 0 hands out tasks and processes exchange values: on the CPU, with `PATIENCE`. mmdet uses
# torch's default group. None in a process that works alone.
_control_group: dist.ProcessGroup | None = None


def process_count(requested: int | None, device: str, source: str | Path) -> int:
    """How many processes share the work: those of this world, else `requested`, else one.

    Args:
        requested: a recipe's `runtime.gpus`.
        device: 'auto' or 'cuda': each process needs a GPU; or 'cpu'.
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
        problem = f'runtime.gpus (--gpus) is {size}, but {obstacle}. '
        fix = 'With runtime.device=cpu (an mmdet config: device=cpu) the processes share the CPU.'
        raise RecipeError(source, [problem + fix])
    return size


def images_per_process(images: int, processes: int, source: str | Path) -> int:
    """The images of one process when an update takes `images` in all. Raises RecipeError if they can't be split."""
    if images % processes:
        problem = (
            f'schedule.batch_size is {images}, which {processes} processes cannot share evenly. '
        )
        fix = 'It counts the images of an update over all processes: choose a multiple.'
        raise RecipeError(source, [problem + fix])
    return images // processes


def run_on_all_ranks(size: int, device: str, function: Callable, *args: Any) -> Any:
    """Runs ``function(*args)`` in every process of the world; returns what it returned on rank 0.

    In a world rank 0 calls this, and the helpers join in. Outside a world it starts `size` processes for this call; for
    a `size` of 1 it starts none and calls the function itself.

    Args:
        size, device: number and device of the processes to start. A connected world has its own.
        function: with `args`, must pickle: a function of a module, no lambda.

    Raises:
        MtpdError: one of the processes raised it or was ended by a signal; or this world has no `process_group`.
        RuntimeError: a started process failed otherwise; with its traceback.
    """
    if _control_group is not None:
        if dist.get_rank() == 0:
            dist.broadcast_object_list([(function, args)], group=_control_group)
        return function(*args)
    if size == 1:
        return function(*args)
    if world.current_world():
        raise MtpdError(
            f'{size} processes were started, but each works alone: put the call into '
            '`with mtpd.runtime.distributed.process_group(...):`, or use the command mtpd.'
        )
    return launch(size, device, function, args)


def gather(value: Any) -> list:
    """The `value` of each process, by rank. All processes have to call this; `value` must pickle."""
    if _control_group is None:
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_control_group)
    return values


# The processes of a world, connected.


@contextlib.contextmanager
def process_group(
    requested: int | None, device: str, source: str | Path, text: str = ''
) -> Iterator[None]:
    """The block runs on rank 0 alone. Another process never comes to it: it helps `run_on_all_ranks`, then exits.

    Does nothing in a process that was started alone.

    Args:
        requested, device, source: as `process_count`.
        text: must be equal in all processes, such as the recipe's.

    Raises:
        RecipeError: as `process_count`; or a process has no GPU of its own.
        MtpdError: the processes find no connection, or were started for different tasks.
        SystemExit: in each process but rank 0: 0 after the block's end, 1 where rank 0 failed.
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
    yield  # an error in the block ends rank 0; the helpers see its connection break
    dist.broadcast_object_list([None], group=_control_group)
    _disconnect()


def _connect(process: world.World, device: str, source: str | Path) -> None:
    """Joins this process with the others, on a GPU of its own unless `device` is 'cpu'. Only rank 0 prints from now on.

    Raises:
        RecipeError: there is no GPU for it.
        MtpdError: it finds no connection.
    """
    global _control_group
    cuda, index = device != 'cpu', process.local_rank
    if cuda:
        gpus = torch.cuda.device_count()
        if process.starter == 'SLURM' and gpus == 1:  # --gpus-per-task=1 shows each process its own
            index = 0
        if index >= gpus:
            problem = f'process {process.rank} is number {index + 1} on its machine, where torch sees {gpus} GPU(s).'
            raise RecipeError(source, [problem])
        torch.cuda.set_device(index)
    # srun sets none of them; torch's rendezvous and mmdet read them.
    numbers = {'RANK': process.rank, 'WORLD_SIZE': process.size, 'LOCAL_RANK': index}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    try:
        store = _open_store()
        backend = 'cpu:gloo,cuda:nccl' if cuda else 'gloo'
        dist.init_process_group(backend, store=store, rank=process.rank, world_size=process.size)
        _control_group = dist.new_group(backend='gloo', timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise MtpdError(_connection_problem(process, str(error))) from error
    patch_train_detector(device)
    if process.rank:
        sys.stdout = open(os.devnull, 'w')  # noqa: PTH123, SIM115


def _open_store() -> dist.Store:
    """The store in which the processes find each other, at MASTER_ADDR and MASTER_PORT.

    It is asked for in a thread. Where another program answers at that address, torch waits for ever.
    """
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
    answer.set_timeout(default_pg_timeout)  # as torch's own; GATHERING is for the connection alone
    return answer


def _connection_problem(process: world.World, error: str) -> str:
    """What to do where `_connect` failed with an error of torch."""
    address = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
    if 'address already in use' in error.lower():
        return (
            f'MASTER_PORT {os.environ["MASTER_PORT"]} is in use by another program on this machine: set it to a free '
            f'port, the same for all {process.size} processes, or let `--gpus {process.size}` choose one.'
        )
    return (
        f'process {process.rank} of {process.size} found no connection to the others at {address} ({error}). Check that all '
        'were started, that every machine reaches MASTER_ADDR, and that no other program uses MASTER_PORT.'
    )


def _check_same_task(text: str) -> None:
    """Raises MtpdError where the processes have different commands or `text`: all would do what rank 0's says."""
    tasks = gather((sys.argv[1:], text))
    if any(task != tasks[0] for task in tasks):
        _disconnect()  # a process that ends while its connections live may be aborted
        raise MtpdError(
            'the processes were started together, but with different commands or recipes: start them one by one '
            '(with SLURM: unset SLURM_STEP_NUM_TASKS).'
        )


def _help_rank_0() -> None:
    """Runs what rank 0 hands to `run_on_all_ranks`, until its block ends."""
    while task := _next_task():
        function, args = task
        function(*args)
    _disconnect()


def _next_task() -> tuple | None:
    """The next function and its arguments from rank 0; None at the end of its block."""
    task = [None]
    try:
        dist.broadcast_object_list(task, group=_control_group)
    except RuntimeError:  # rank 0 has ended, and printed why
        raise SystemExit(1) from None
    return task[0]


def _disconnect() -> None:
    global _control_group
    with contextlib.suppress(RuntimeError):  # another process has ended already
        dist.barrier(_control_group)
    _control_group = None
    dist.destroy_process_group()


# Processes that are started for one call.


class ProcessKilled(MtpdError):
    """A signal ended one of the processes that were started."""

    exit_code = 1


def launch(size: int, device: str, function: Callable, args: tuple) -> Any:
    """Runs ``function(*args)`` in `size` new processes on this machine; returns what it returned on rank 0.

    Their output goes to `sys.stdout` and `sys.stderr`, where a notebook shows it. A folder of its own carries the rest:
    ``task`` to the processes, ``result`` or ``failure-<rank>`` back.

    Args:
        function: as `run_on_all_ranks`.

    Raises:
        MtpdError: one of the processes raised it. `ProcessKilled`: a signal ended one.
        RuntimeError: one failed otherwise; with its traceback.
    """
    # It would log failures, which are raised here. It stays silent afterwards.
    logger = logging.getLogger('torch.distributed.elastic')
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
            _supervise(elastic_launch(config, 'env'), _env_command(size, folder), folder)
        except ChildFailedError as error:
            raise _launch_error(error, size, Path(folder)) from None
        return pickle.loads(Path(folder, 'result').read_bytes())


def _env_command(size: int, folder: str) -> list[str]:
    """Arguments of the program `env`: it sets variables for the started processes and not for this one."""
    # torch's C++ code would warn in each process that no parameter was unused.
    defaults = {'OMP_NUM_THREADS': max(1, cpu_cores() // size), 'TORCH_CPP_LOG_LEVEL': 'ERROR'}
    variables = {name: value for name, value in defaults.items() if name not in os.environ}
    variables |= {**same_imports(), 'PYTHONUNBUFFERED': 1}
    # `end_with_parent` first: the other imports take seconds, in which the parent may end.
    code = f'from {end_with_parent.__module__} import end_with_parent; end_with_parent(); '
    code += f'from {__name__} import _process_main; _process_main()'
    settings = [f'{name}={value}' for name, value in variables.items()]
    return [*settings, sys.executable, '-c', code, folder, str(os.getpid())]


def _supervise(start: Callable, command: list[str], folder: str) -> None:
    """Starts the processes and waits for their end. Ctrl-C and SIGTERM end them, a training with a checkpoint.

    `start` runs in a thread. In the main thread torch would replace the signal handlers, even the one that ignores
    SIGHUP under `nohup`.
    """
    with ThreadPoolExecutor(1) as pool, sigterm_unwinds():
        future = pool.submit(start, *command)
        try:
            future.result()
        except KeyboardInterrupt:
            Path(folder, 'task').unlink()  # for processes that have yet to start
            try:
                _signal_processes(signal.SIGTERM, folder)
                future.exception()  # waits for their end; torch kills them after 30 seconds
            finally:  # also where a second Ctrl-C ends the waiting
                _signal_processes(signal.SIGKILL, folder)
            raise


def _signal_processes(number: int, folder: str) -> None:
    """Sends a signal to the processes that were started with `folder`."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if folder in process.cmdline():
                process.send_signal(number)


def _launch_error(error: ChildFailedError, size: int, folder: Path) -> Exception:
    """What `launch` raises: the error that the first failed process left in `folder`, else how that process ended."""
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
    """The program of a process that `launch` started; its arguments are the folder and the parent's process id."""
    folder, parent, code = Path(sys.argv[1]), int(sys.argv[2]), 0
    if os.getppid() != parent:  # the parent ended before `end_with_parent` was called
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
            # It may have failed only because another process ended. After a pause that one's failure is torch's first.
            time.sleep(1)
        (folder / f'failure-{rank}').write_bytes(pickle.dumps(failure))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # no ordinary exit: gloo's threads can block it


# What mmdet's distributed training lacks on the CPU. On GPUs it works as before.


def patch_train_detector(device: str) -> None:
    """Makes mmdet's `train_detector` work in several processes on `device`: 'cpu', else on GPUs."""
    mmdet.apis.train.build_ddp = _build_ddp
    # The samplers of all processes agree on a seed. mmdet sends it by way of a GPU: the infinite and the class-aware
    # sampler always, the distributed one where it sees a GPU.
    seed_device = 'cpu' if device == 'cpu' else 'cuda'
    share_seed = functools.partial(sync_random_seed, device=seed_device)
    infinite_sampler.sync_random_seed = class_aware_sampler.sync_random_seed = share_seed
    distributed_sampler.get_device = lambda: seed_device


class CpuDataParallel(MMDistributedDataParallel):
    """mmcv's distributed wrapper of a model, on the CPU: unpacks batches there too, as mmcv's `MMDataParallel` does.

    `mtpd.runtime.detectors` has the wrapper of the same name for a single process.
    """

    def train_step(self, *inputs, **kwargs):
        inputs, kwargs = scatter_kwargs(inputs, kwargs, [-1])
        return super().train_step(*inputs[0], **kwargs[0])

    def _run_ddp_forward(self, *inputs, **kwargs):
        inputs, kwargs = scatter_kwargs(inputs, kwargs, [-1])
        return super()._run_ddp_forward(*inputs[0], **kwargs[0])


def _build_ddp(model, device: str, device_ids: list[int], **options):
    """In place of mmdet's `build_ddp`, which refuses the CPU."""
    if device == 'cpu':
        return CpuDataParallel(model, **options)
    return build_ddp(model, device, device_ids=device_ids, **options)
