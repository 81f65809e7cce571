"""What mmcv 1.7 and mmdet 2.28 need to run on today's torch and numpy; imported before them.

Importing this module applies every adaptation. Each function below is one, with its reason.
`mtpd -v`, or MTPD_VERBOSE=1, keeps the output that the last one silences.
"""

from __future__ import annotations

import copy
import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

from ..errors import MtpdError
from ..utils.machine import OPS_ONLY_VARIABLE, check_mmdet, check_torch, find_package, find_torch
from ..utils.progress import log_level, progress_bar

__all__ = ['patch_libraries']

_libraries: list[Any] = []  # torch.library forgets a schema when its Library object is collected


def patch_libraries() -> None:
    """Applies every adaptation. A second call changes nothing.

    Raises MtpdError if torch is missing or too old, mmcv has no compiled ops, or mmdet is of another release.
    """
    quiet_warnings()
    require_ops()
    require_mmdet()
    import_torchvision()
    restore_numpy_int()
    allow_numpy_scalars()
    refuse_code_in_checkpoints()
    refuse_foreign_weights()
    fix_scatter_stream()
    pin_data_containers()
    fix_ddp_forward()
    resume_on_cpu()
    replace_progress_bar()
    if log_level() == 'WARNING':
        quiet_initialisation()


def require_ops() -> None:
    """Raises MtpdError without torch or mmcv's compiled ops; mmdet, which imports them, would give a long traceback."""
    check_torch(find_torch())
    mmcv = find_package('mmcv')
    if mmcv and list(mmcv.folder.glob('_ext*.so')):
        return
    if mmcv and mmcv.origin:
        raise MtpdError(f'mmcv is {mmcv.text}, and has no compiled ops. {mmcv.remedy}')
    raise MtpdError(
        "mmcv-full's compiled ops are not installed in this Python. Run `make env` (or `mtpd install-ops`)."
    )


def require_mmdet() -> None:
    """Raises MtpdError without mmdet 2.28; another release would give a long traceback, or other numbers."""
    if not os.environ.get(OPS_ONLY_VARIABLE):
        check_mmdet(find_package('mmdet'))


def quiet_warnings() -> None:
    """Silences notes on mmcv's own future, and on how mmcv and mmdet call torch: a reader can do nothing about them."""
    for message in (
        'On January 1, 2023, MMCV will release v2.0.0',
        r'``MultiScaleDeformableAttention`` has been moved',
        r'`torch\.cuda\.amp\.',
        r'`broadcast_buffers` is deprecated',
        r'torch\.meshgrid: in an upcoming release',
    ):
        warnings.filterwarnings('ignore', message=message)


def import_torchvision() -> None:
    """Lets torchvision be imported where its compiled part does not fit torch.

    A CUDA torchvision (PyPI's) beside a CPU torch can't load its library, and fails with "operator
    torchvision::nms does not exist". mmcv imports torchvision and uses none of its ops: declaring
    the two schemas it asks for is enough.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if 'torchvision::' not in str(error):
            raise
        import torch

        library = torch.library.Library('torchvision', 'FRAGMENT')
        for name in ('nms', 'qnms'):
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        _libraries.append(library)
        import torchvision  # noqa: F401


def restore_numpy_int() -> None:
    """Gives numpy its alias `np.int` again, which mmdet uses (datasets/custom.py, openimages.py, IoU-balanced sampler).

    numpy removed it in 1.24. To patch those three modules instead, mmdet would have to be imported here: four seconds.
    """
    import numpy as np

    if 'int' not in vars(np):
        np.int = int


def allow_numpy_scalars() -> None:
    """Lets checkpoints load whose `meta` holds numpy numbers, as some in mmdet's model zoo do.

    mmcv calls `torch.load` without `weights_only`; since torch 2.6 that means True, which refuses
    them. Numbers are allowed by name, arbitrary code stays refused. `numpy.core` is the name that
    numpy 1 wrote.
    """
    import numpy as np
    import torch

    scalar = np._core.multiarray.scalar
    names = [(scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')]
    dtypes = [type(np.dtype(name)) for name in ('bool', 'int32', 'int64', 'float32', 'float64')]
    torch.serialization.add_safe_globals([*names, np.dtype, *dtypes])


def refuse_code_in_checkpoints() -> None:
    """Makes mmcv and mmdet read checkpoints by `safe_load.load_safely` (`load_from`, `init_cfg`, resuming).

    mmcv leaves `weights_only` to torch, which an environment variable turns off, and its downloads go through
    `torch.hub`, where it is off by default. Resuming runs the config text in a checkpoint's `meta` as Python, to learn
    how many GPUs there were: it gets none.
    """
    from mmcv.runner import BaseRunner, CheckpointLoader, checkpoint

    from . import safe_load

    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    for loader, prefixes in (
        (safe_load.load_from_local, ''),
        (safe_load.load_from_http, ('http://', 'https://')),
    ):
        setattr(checkpoint, loader.__name__, loader)
        CheckpointLoader.register_scheme(prefixes, loader, force=True)
    original = BaseRunner.load_checkpoint
    if hasattr(original, '__wrapped__'):
        return

    def load_checkpoint(self: BaseRunner, *args: Any, **options: Any) -> dict:
        loaded = original(self, *args, **options)
        if isinstance(loaded.get('meta'), dict):
            loaded['meta'].pop('config', None)
        return loaded

    load_checkpoint.__wrapped__ = original
    BaseRunner.load_checkpoint = load_checkpoint


def refuse_foreign_weights() -> None:
    """Makes mmcv raise MtpdError where a checkpoint has no weight of a model (`init_cfg`, resuming).

    mmcv logs what does not match, and trains from random weights even where nothing does: a detector's checkpoint that a
    backbone takes without ``prefix='backbone.'``. A model that renames keys itself, as `Distiller`, is left alone.
    """
    import mmcv.runner
    from mmcv.parallel import is_module_wrapper
    from torch import nn

    original = mmcv.runner.checkpoint.load_state_dict
    if hasattr(original, '__wrapped__'):
        return

    @functools.wraps(original)
    def load_state_dict(module: nn.Module, state_dict: dict, *args: Any, **options: Any) -> None:
        model = module.module if is_module_wrapper(module) else module
        weights = model.state_dict()
        renames = type(model)._load_from_state_dict is not nn.Module._load_from_state_dict
        shared = (
            key
            for key in weights
            if getattr(state_dict.get(key), 'shape', None) == weights[key].shape
        )
        if weights and not renames and next(shared, None) is None:
            keys = ', '.join(list(state_dict)[:2])
            raise MtpdError(
                f'it has no weight of {type(model).__name__}, which has {", ".join(list(weights)[:2])}, ...: its '
                f'keys are {keys}, ... If these begin with a prefix, such as backbone., set init_cfg.prefix to it'
            )
        original(module, state_dict, *args, **options)

    mmcv.runner.checkpoint.load_state_dict = mmcv.runner.load_state_dict = load_state_dict


def fix_scatter_stream() -> None:
    """Gives torch a device where mmcv asks it for a copy stream by device number, as torch 2.1 and later want.

    Without this, every batch on a GPU fails: "'int' object has no attribute 'type'".
    """
    import torch
    from mmcv.parallel import _functions
    from torch.nn.parallel._functions import _get_stream

    def get_stream(device: int | torch.device) -> Any:
        if isinstance(device, int):
            device = torch.device('cuda', device) if device >= 0 else torch.device('cpu')
        return _get_stream(device)

    _functions._get_stream = get_stream


def pin_data_containers() -> None:
    """Lets torch's `DataLoader(pin_memory=True)` pin what mmcv's `DataContainer` holds, masks too.

    torch does not look into a container, and masks are numpy arrays.
    """
    from mmcv.parallel import DataContainer
    from torch.utils.data._utils.pin_memory import pin_memory

    def pinned(data: Any, device: Any) -> Any:
        if isinstance(data, list):
            return [pinned(item, device) for item in data]
        if type(data).__name__ != 'BitmapMasks':
            return data
        import torch

        copied = copy.copy(data)
        copied.masks = pin_memory(torch.from_numpy(data.masks), device).numpy()
        return copied

    def pin(self: DataContainer, device: Any = None) -> DataContainer:
        self._data = (pinned if self.cpu_only else pin_memory)(self._data, device)
        return self

    DataContainer.pin_memory = pin


def fix_ddp_forward() -> None:
    """Sets `_use_replicated_tensor_module`, which mmcv's DDP wrapper reads in evaluation, and torch 2.1 removed.

    It was False for every model that mmcv builds.
    """
    from mmcv.parallel import MMDistributedDataParallel

    MMDistributedDataParallel._use_replicated_tensor_module = False


def resume_on_cpu() -> None:
    """Reads a resumed checkpoint into the CPU's memory. From there weights and optimizer go to the model's device.

    mmcv's runners read it into the current GPU: `IterBasedRunner` also where there is none, and both also in a training
    on the CPU.
    """
    from mmcv.runner import BaseRunner, IterBasedRunner

    for runner in (BaseRunner, IterBasedRunner):
        if not hasattr(runner.resume, '__wrapped__'):
            runner.resume = _with_cpu_as_default(runner.resume)


def _with_cpu_as_default(original: Callable) -> Callable:
    @functools.wraps(original)
    def resume(
        self: Any, checkpoint: str, resume_optimizer: bool = True, map_location: Any = 'default'
    ) -> None:
        location = 'cpu' if map_location == 'default' else map_location
        original(self, checkpoint, resume_optimizer, location)

    return resume


def replace_progress_bar() -> None:
    """Puts this kit's progress bar in place of mmcv's, whose lines fill pages of a notebook or a log."""
    from mmcv import ProgressBar

    def start(self: ProgressBar) -> None:
        self.completed, self.bar = 0, progress_bar('images', total=self.task_num or None)

    def update(self: ProgressBar, num_tasks: int = 1) -> None:
        self.completed += num_tasks
        self.bar.update(num_tasks)
        if self.completed >= self.task_num > 0:
            self.bar.close()

    ProgressBar.start, ProgressBar.update = start, update


def quiet_initialisation() -> None:
    """Silences mmcv's reports on the initialisation of every parameter, hundreds of lines a detector.

    mmcv reports at INFO to the first logger that was made. Here that is 'mmcv', at WARNING; training's log ('mmdet') stays.
    mmcv also sets Python's root logger to INFO, for a line on each deformable convolution that is loaded, unless it is
    registered as initialised, as here.
    """
    from mmcv.utils import get_logger
    from mmcv.utils.logging import logger_initialized

    get_logger('mmcv').setLevel('WARNING')
    logger_initialized['root'] = True


patch_libraries()
