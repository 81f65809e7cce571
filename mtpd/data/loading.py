"""How training and evaluation load images, and a picture to be shown; corrupt files, left out up to a limit; data
workers, and how one ended."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import itertools
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from mmcv.runner import get_dist_info
from mmdet.datasets import PIPELINES
from mmdet.datasets.pipelines import LoadImageFromFile
from torch.multiprocessing import reductions
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ..errors import MtpdError
from ..utils.machine import cpu_cores
from ..utils.processes import end_with_parent
from ..utils.progress import progress_bar
from .image_files import path_on_disk

# Corrupt images: files that are missing, empty, cut short or no images at all.


class CorruptImage(MtpdError):
    """Image files that can't be loaded.

    Attributes:
        problems: what is wrong with each, by path. Empty where a data worker raised the error: torch makes it anew in
            the main process, from its text alone.
    """

    def __init__(self, text: str, problems: dict[str, str] | None = None):
        # torch puts the worker's traceback before the text: it is cut off.
        super().__init__(text.rpartition(f'{type(self).__name__}: ')[2].rstrip())
        self.problems = problems or {}


@PIPELINES.register_module(name='LoadImageFromFile', force=True)
class LoadWholeImage(LoadImageFromFile):
    """Takes the place of mmdet's `LoadImageFromFile`; raises CorruptImage for a file that is no whole image.

    mmdet decodes a file's bytes by `cv2.imdecode`. Unlike `cv2.imread`, it refuses a part of an image.
    """

    def __call__(self, results: dict) -> dict:
        folder, name = results['img_prefix'], results['img_info']['filename']
        try:
            return super().__call__(results)
        except MemoryError:
            raise
        except OSError as error:
            path = path_on_disk(folder or '', name)
            if path and path != Path(folder or '', name):  # spelled otherwise on the disk
                info = {**results['img_info'], 'filename': str(path)}
                return self({**results, 'img_prefix': None, 'img_info': info})
            problem = f'cannot be read ({error.strerror})'
        except Exception as error:
            if _WORKER_DEATH.match(str(error)):  # torch raises it wherever the process is
                raise
            # OpenCV gives None, on which mmdet raises an AttributeError. Other decoders of mmcv raise their own.
            problem = 'is empty, cut short, damaged or not an image'
        path = name if folder is None else os.path.join(folder, name)  # noqa: PTH118
        raise corrupt_images_error({path: problem}, 0)


def read_image(path: str | os.PathLike, turned: bool = True) -> np.ndarray:
    """The picture that training, evaluation and boxes are of: (H, W, 3), RGB, uint8.

    Channels of 16 bits are scaled to 8, transparency is dropped, and an animation is its first picture.

    Args:
        turned: as its EXIF data says.

    Raises:
        CorruptImage: the file is no whole image.
    """
    load = LoadWholeImage(color_type='color' if turned else 'color_ignore_orientation')
    pixels = load({'img_prefix': None, 'img_info': {'filename': str(path)}})['img']
    return np.ascontiguousarray(pixels[..., ::-1])


class SkipCorrupt(Dataset):
    """A dataset of mmdet for training, in which the next whole image takes the place of a corrupt one.

    Which one that is depends on the files alone. The sample's `img_metas` name the corrupt ones
    (`corrupt_in_batch`). This class limits how many follow each other; the hook `RecordCorrupt` limits how many a
    training has.

    Args:
        dataset: the inner dataset; its other attributes are this one's, too.
        limit: how many images may be corrupt.
    """

    def __init__(self, dataset: Any, limit: int):
        self.dataset, self.limit = dataset, limit

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Raises CorruptImage where more than `limit` images in a row are corrupt, or all are."""
        problems: dict[str, str] = {}
        for candidate in itertools.islice(self._candidates(index), self.limit + 1):
            try:
                sample = self.dataset[candidate]
            except CorruptImage as error:
                problems |= error.problems
                continue
            if problems and not isinstance(sample['img_metas'], list):  # a list in test mode
                sample['img_metas'].data['corrupt'] = problems
            return sample
        raise corrupt_images_error(problems, self.limit)

    def _candidates(self, index: int) -> Iterator[int]:
        """`index`, then all others from there on and from the beginning, those of its orientation first.

        A batch holds images of one orientation (mmdet's `flag`).
        """
        yield index
        others = [*range(index + 1, len(self)), *range(index)]
        flags = getattr(self.dataset, 'flag', None)
        if flags is not None:
            others.sort(key=lambda other: flags[other] != flags[index])
        yield from others

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'dataset':  # unpickling asks before `dataset` is there
            raise AttributeError(name)
        return getattr(self.dataset, name)


def batch_metas(batch: dict) -> list[dict]:
    """The `img_metas` of a training batch, one of each image."""
    return [meta for group in batch['img_metas'].data for meta in group]


def corrupt_in_batch(batch: dict) -> dict[str, str]:
    """The corrupt images whose places others take in a training batch: what is wrong with each, by path."""
    corrupt: dict[str, str] = {}
    for meta in batch_metas(batch):
        corrupt |= meta.get('corrupt', {})
    return corrupt


def leave_out_corrupt(dataset: Any, limit: int) -> dict[str, str]:
    """Takes the corrupt images out of a CocoDataset in test mode, and names them on stderr.

    It decodes all images to find them. With a `limit` of 0 it does nothing: the evaluation itself raises the error when
    it comes to a corrupt one. It also does nothing with a dataset that has no `data_infos`.

    Returns:
        What is wrong with each, by path.

    Raises:
        CorruptImage: they are more than `limit`.
    """
    if not limit or not hasattr(dataset, 'data_infos'):
        return {}
    load = LoadWholeImage()

    def image_problem(info: dict) -> dict[str, str]:
        try:
            load({'img_prefix': dataset.img_prefix, 'img_info': info})
        except CorruptImage as error:
            return error.problems
        return {}

    infos = dataset.data_infos
    with ThreadPoolExecutor(cpu_cores()) as pool:
        checked = [*progress_bar('image files', pool.map(image_problem, infos), len(infos))]
    corrupt = {path: text for problems in checked for path, text in problems.items()}
    if len(corrupt) > limit:
        raise corrupt_images_error(corrupt, limit)
    whole = [index for index, problems in enumerate(checked) if not problems]
    dataset.data_infos = [infos[index] for index in whole]
    dataset.img_ids = [dataset.img_ids[index] for index in whole]
    if get_dist_info()[0] == 0:
        # On stderr: stdout is for the numbers of `mtpd eval`.
        for path, problem in sorted(corrupt.items()):
            print(f'image {path} {problem}: left out of the evaluation', file=sys.stderr)
    return corrupt


def corrupt_images_error(problems: dict[str, str], limit: int) -> CorruptImage:
    """The error for more corrupt images than `limit`; `problems` says by path what is wrong with each."""
    lines = [f'image {path} {problem}' for path, problem in sorted(problems.items())]
    if len(lines) > 20:
        lines = [*lines[:20], f'and {len(lines) - 20} more']
    if limit:
        text = '\n  - '.join(['more images are corrupt than may be left out:', *lines]) + '\n'
        hint = f'data.corrupt_limit is {limit}: a higher one leaves out more.'
    else:
        text = '; '.join(lines) + '. '
        hint = '--cfg-options data.corrupt_limit=N leaves out up to N such images.'
    text += 'Fetch or export the corrupt images again; the same command goes on from the last checkpoint. '
    return CorruptImage(text + hint, problems)


# Data workers: how many there are, what each does first, and the error where one ends too early.

# One worker takes half a second to load 16 images of COCO. Eight do it in less time than a GPU's update takes.
MAX_WORKERS = 8
WORKER_EXIT_DELAY = 5  # seconds; a worker's connection breaks at most so long before it ends

T = TypeVar('T')
# How torch begins its error for a data worker that ended.
_WORKER_DEATH = re.compile(
    r'DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:is killed by signal: (?P<signal>.+?)\. |exited)'
)
_LIKELY_CAUSES = {
    'SIGKILL': ' (often: out of memory)',
    'SIGBUS': ' (often: shared memory, /dev/shm, is full)',
}


def worker_count(workers: int | str, device: str, processes: int) -> int:
    """How many data workers a process has. Results do not depend on it.

    Args:
        workers: a recipe's `runtime.workers`. 'auto' on a GPU is all cores of the process but one, from 2 to
            MAX_WORKERS. On the CPU it is none: a worker would compute on the same cores.
        device: 'cpu' or 'cuda'.
        processes: how many processes share the cores of this machine.
    """
    if not isinstance(workers, str):
        return workers
    if device == 'cpu':
        return 0
    return min(MAX_WORKERS, max(2, cpu_cores() // processes - 1))


SENT_AS_BYTES = 2**16


def init_worker(_: int) -> None:
    """DataLoader's `worker_init_fn`: what a data worker does first."""
    # A process group of its own: Ctrl-C reaches the main process alone, which ends after an update.
    os.setpgid(0, 0)
    end_with_parent()
    cv2.setNumThreads(0)  # the other workers have the other cores
    ForkingPickler.register(torch.Tensor, _reduce_tensor)


def _reduce_tensor(tensor: torch.Tensor) -> tuple:
    """How a worker sends a tensor: a small one itself, others as torch does.

    torch sends a file of shared memory for each. The training's process opens a connection for each, in a thread that keeps
    its own thread waiting.
    """
    if type(tensor) is torch.Tensor and tensor.nbytes <= SENT_AS_BYTES:
        return torch.from_numpy, (tensor.numpy(),)
    return reductions.reduce_tensor(tensor)


def explain_worker_death(work: Callable[[], T]) -> T:
    """What `work` returns. Raises MtpdError where a data worker was killed or ended by itself in the meantime.

    torch raises in a signal handler, wherever the process is. So this is no context manager: the handler could run in
    its `__exit__`, outside of the guarded block. And code that is interrupted there may raise an error of its own, as
    torch's writer of checkpoints does: the worker's is in its context.
    """
    try:
        try:
            return work()
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            # A dying worker's connection may break before torch knows of its end. Then torch raises in this pause.
            # Or it has raised before, in a destructor, where Python drops the error.
            code = _wait_for_worker_exit(error)
            if code is None:
                raise
            raise MtpdError(_worker_death_text(_signal_text(code))) from error
    except Exception as error:
        # Only at a text's beginning: a worker's own error in a dataset may have these words further on.
        deaths = [death for text in _texts(error) if (death := _WORKER_DEATH.match(text))]
        if not deaths:
            raise
        # Not every one names the signal: torch's loop that waits for data wraps the handler's error, which does, into
        # another. It may also see the worker's end before the handler does.
        text = next((death['signal'] for death in deaths if death['signal']), None)
        raise MtpdError(_worker_death_text(text or _late_signal(error))) from error


def _texts(error: BaseException | None) -> Iterator[str]:
    """Of an error and of those in whose handling it was raised."""
    while error:
        yield str(error)
        error = error.__cause__ or error.__context__


def _wait_for_worker_exit(error: BaseException) -> int | None:
    """The exit code of a worker of the data loader that `error` comes from, minus its signal; None where none ends.

    torch's signal handler may raise in the meantime.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    objects = [frame.f_locals.get('self') for frame in frames]
    loaders = [item for item in objects if isinstance(item, _MultiProcessingDataLoaderIter)]
    workers = {worker for loader in loaders for worker in loader._workers}
    end = time.monotonic() + WORKER_EXIT_DELAY
    while True:
        if codes := [worker.exitcode for worker in workers if worker.exitcode]:
            return codes[0]
        if time.monotonic() >= end:
            return None
        time.sleep(0.05)


def _late_signal(error: BaseException) -> str | None:
    """The text of the signal that ended the worker that `error` is of; torch's handler may name it in the meantime."""
    try:
        return _signal_text(_wait_for_worker_exit(error))
    except RuntimeError as named:
        death = _WORKER_DEATH.match(str(named))
        return death and death['signal']


def _signal_text(code: int | None) -> str | None:
    """The text of the signal that ended a process; None where no signal did."""
    return signal.strsignal(-code) if code and code < 0 else None


def _worker_death_text(signal_text: str | None) -> str:
    return (
        f'a data worker {_describe_exit(signal_text)}. Fewer workers take less memory: runtime.workers (an mmdet '
        'config: data.workers_per_gpu). The same command goes on, a training from its newest checkpoint.'
    )


def _describe_exit(signal_text: str | None) -> str:
    """How a worker ended; torch names a signal by its text, such as 'Killed'."""
    if not signal_text:
        return 'ended unexpectedly'
    names = {signal.strsignal(number): signal.Signals(number).name for number in signal.Signals}
    name = names.get(signal_text, signal_text)
    return f'was ended by signal {name}{_LIKELY_CAUSES.get(name, "")}'
