"""Datasets that may have some corrupt images: each gives way to the next whole one, up to a limit, and is told of."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import copy
import itertools
import os
import os.path
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import cv2
import mmcv
import numpy as np
from mmcv.runner import get_dist_info
from mmdet.datasets import PIPELINES
from mmdet.datasets.pipelines import LoadImageFromFile
from torch.utils.data import DataLoader, Dataset

from ..errors import MtpdError
from ..runtime import distributed
from ..utils.machine import cpu_cores
from ..utils.processes import end_with_parent


class SkipCorrupt(Dataset):
    """mmdet's dataset, with the next whole image in place of one that is corrupt; otherwise the one inside.

    Which one that is depends on the files alone, and stands in the sample's `img_metas` as `corrupt`, see `told`.

    Attributes:
        corrupt: what is wrong with those that batches told of in this process (`note`), by path.
    """

    def __init__(self, dataset: Any, limit: int):
        self.dataset, self.limit = dataset, limit
        self.corrupt: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Raises CorruptImage where more images than `limit` come one after the other, or none is whole."""
        found: dict[str, str] = {}
        for other in self._others(index):
            try:
                sample = self.dataset[other]
            except CorruptImage as error:
                found |= error.files
                if len(found) > self.limit:
                    break
                continue
            if found:
                metas = sample['img_metas']
                for container in metas if isinstance(metas, list) else [metas]:
                    container.data['corrupt'] = found
            return sample
        raise corrupt_images_error(found, self.limit) from None

    def _others(self, index: int) -> Iterator[int]:
        """`index` and what comes after it, around the end: first images of its orientation, as it is in a batch of
        them."""
        after = [*range(index, len(self)), *range(index)]
        flags = getattr(self.dataset, 'flag', None)
        if flags is None:
            return iter(after)
        alike = (k for k in after if flags[k] == flags[index])
        return itertools.chain(alike, (k for k in after if flags[k] != flags[index]))

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'dataset':  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def note(self, found: dict[str, str]) -> None:
        """Raises CorruptImage when they are more than `limit`."""
        self.corrupt |= found
        if len(self.corrupt) > self.limit:
            raise corrupt_images_error(self.corrupt, self.limit)

    def evaluate(self, results: list, **settings: Any) -> dict:
        """As mmdet's, of whole images."""
        data, results = without_images(self.dataset, results, self.corrupt)
        return data.evaluate(results, **settings)


class _RecordingLoader(DataLoader):
    """At the end of the split all processes know the corrupt images of all, and the first one names them."""

    def __iter__(self) -> Iterator[Any]:
        data, before = self.dataset, set(self.dataset.corrupt)
        for batch in super().__iter__():
            data.note(corrupt_in_batch(batch))
            yield batch
        for found in distributed.gather(data.corrupt):
            data.note(found)
        for path in sorted(set(data.corrupt) - before) if get_dist_info()[0] == 0 else ():
            # Not among the numbers that `mtpd eval` prints.
            text = f'image {path} {data.corrupt[path]}: left out of the evaluation'
            print(text, file=sys.stderr, flush=True)


def recording_loader(loader: DataLoader) -> DataLoader:
    """mmdet's loader of a `Readable` in testing, which notes what its batches tell of."""
    return _RecordingLoader(
        loader.dataset,
        batch_sampler=loader.batch_sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        persistent_workers=loader.persistent_workers,
        prefetch_factor=loader.prefetch_factor,
        worker_init_fn=init_worker,
    )


def corrupt_in_batch(batch: dict) -> dict[str, str]:
    """What is wrong with the corrupt images that others in a batch stand for, by path."""
    return {p: wrong for meta in batch_metas(batch) for p, wrong in meta.get('corrupt', {}).items()}


def batch_metas(batch: dict) -> list[dict]:
    """mmdet's `img_metas` of a batch, one after the other."""
    found = batch['img_metas']
    containers = found if isinstance(found, list) else [found]
    return [meta for container in containers for group in container.data for meta in group]


def without_images(data: Any, results: list, corrupt: dict[str, str]) -> tuple[Any, list]:
    """A CocoDataset in testing and its results without some images, by their paths."""
    if not corrupt:
        return data, results
    kept = [
        k for k, i in enumerate(data.data_infos) if image_path(data.img_prefix, i) not in corrupt
    ]
    data = copy.copy(data)
    data.data_infos = [data.data_infos[k] for k in kept]
    data.img_ids = [data.img_ids[k] for k in kept]
    return data, [results[k] for k in kept]


def corrupt_images_error(found: dict[str, str], limit: int) -> CorruptImage:
    """The error for more corrupt images than are allowed."""
    shown = [f'image {path} {wrong}' for path, wrong in sorted(found.items())]
    if len(shown) > 20:
        shown = [*shown[:20], f'and {len(shown) - 20} more']
    fix = 'Fetch or export {} again; the same command goes on from the last checkpoint. '
    if not limit:
        more = '--cfg-options data.corrupt_limit=N would leave out up to N of them.'
        return CorruptImage(f'{"; ".join(shown)}. {fix.format("it")}{more}', found)
    more = f'data.corrupt_limit is {limit}: a higher one leaves out more.'
    lines = '\n'.join(['corrupt images, more than may be left out:', *(f'  - {s}' for s in shown)])
    return CorruptImage(f'{lines}\n{fix.format("them")}{more}', found)


# Image files that are missing, empty, cut short or no images: found out from the bytes that training reads anyway.


PNG = b'\x89PNG\r\n\x1a\n'
# The next marker in a JPEG's coded data, where FF is followed by 00, or separates restarts, or fills.
_MARKER = re.compile(rb'\xff([^\x00\x01\xd0-\xd8\xff])', re.DOTALL)


class CorruptImage(MtpdError):
    """An image file that can't be trained on.

    Attributes:
        files: what is wrong (`fault`, or the like) by path.
    """

    def __init__(self, text: str, files: dict[str, str] | None = None):
        # Out of a data worker torch raises it again, with the worker's traceback for its text.
        super().__init__(text.rpartition(f'{type(self).__name__}: ')[2].rstrip())
        self.files = files or {}


def image_file_fault(content: bytes) -> str | None:
    """What is wrong with an image file, as far as its bytes tell without decoding: by its version, OpenCV takes half
    a JPEG for a whole one."""
    if not content:
        return 'is empty (0 bytes)'
    if content.startswith(b'\xff\xd8') and not _jpeg_ends(content):
        return 'is cut short: a JPEG without its end'
    if content.startswith(PNG) and not _png_ends(content):
        return 'is cut short: a PNG without its end'
    return None


def _jpeg_ends(content: bytes) -> bool:
    """Whether the end marker comes, after segments (a thumbnail in one has an end of its own) and coded data."""
    place = 2
    while match := _MARKER.search(content, place):
        if match[1] == b'\xd9':
            return True
        place = match.end() + int.from_bytes(content[match.end() : match.end() + 2], 'big')
    return False


def _png_ends(content: bytes) -> bool:
    place = len(PNG)
    while place + 12 <= len(content):
        if content[place + 4 : place + 8] == b'IEND':
            return True
        place += 12 + int.from_bytes(content[place : place + 4], 'big')
    return False


def image_path(folder: str | None, info: dict) -> str:
    """An image's path, as mmdet joins it."""
    return info['filename'] if folder is None else os.path.join(folder, info['filename'])  # noqa: PTH118


@PIPELINES.register_module()
class LoadWholeImage(LoadImageFromFile):
    """As mmdet's `LoadImageFromFile`; of an image that is not whole it raises CorruptImage."""

    def __call__(self, results: dict) -> dict:
        path = image_path(results['img_prefix'], results['img_info'])
        if self.file_client is None:
            self.file_client = mmcv.FileClient(**self.file_client_args)
        wrong, image = None, None
        try:
            content = self.file_client.get(path)
            wrong = image_file_fault(content)
        except FileNotFoundError:
            wrong = 'is missing'
        except OSError as error:
            wrong = f'cannot be read ({error.strerror})'
        if not wrong:
            try:
                image = mmcv.imfrombytes(content, self.color_type, self.channel_order)
            except MemoryError:
                raise
            except Exception:  # by mmcv's backend, each has its own
                image = None
            if image is None:
                wrong = 'is no image that OpenCV can read'
        if wrong:
            raise CorruptImage(f'image {path} {wrong}. Fetch or export it again.', {path: wrong})
        results |= dict(filename=path, ori_filename=results['img_info']['filename'])
        results['img'] = image.astype(np.float32) if self.to_float32 else image
        results |= dict(img_shape=image.shape, ori_shape=image.shape, img_fields=['img'])
        return results


def with_whole_images(cfg: Any) -> Any:
    """A copy of a dataset's config that loads images by `LoadWholeImage`."""
    cfg = copy.deepcopy(cfg)
    _replace_loader(cfg)
    return cfg


def _replace_loader(node: Any) -> None:
    if isinstance(node, dict) and node.get('type') in ('LoadImageFromFile', LoadImageFromFile):
        node['type'] = 'LoadWholeImage'
    for item in node.values() if isinstance(node, dict) else node:
        if isinstance(item, (dict, list, tuple)):
            _replace_loader(item)


# Data workers: how many there are, and how one ends, told in words: the loop it feeds ends with torch's RuntimeError.


T = TypeVar('T')
_WORKER_DEATH = re.compile(
    r'DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:is killed by signal: (?P<signal>.+?)\. |exited)'
)
MAX_WORKERS = 8  # load 16 images of COCO, about half a second's work for one, in less than a GPU's update takes
WORKER_EXIT_DELAY = 1  # seconds for a worker's end, after its connection's
_LIKELY_CAUSES = {
    'SIGKILL': ' (often: out of memory)',
    'SIGBUS': ' (often: shared memory, /dev/shm, is full)',
}


def worker_count(asked: int | str, device: str, sharing: int, training: bool = True) -> int:
    """How many a process has: as `asked`, or for 'auto' by the device and the cores. What is computed is the same.

    On a GPU all cores but one, up to `MOST`; on the CPU, which computes on the same cores, one in training.

    Args:
        asked: a recipe's `runtime.workers`.
        sharing: how many processes share the cores of this machine.
    """
    if not isinstance(asked, str):
        return asked
    if device == 'cpu':
        return int(training)
    return min(MAX_WORKERS, max(2, cpu_cores() // sharing - 1))


def init_worker(_: int) -> None:
    """What a worker does first."""
    os.setpgid(0, 0)  # Ctrl-C is for the main process; a training ends at an update's end
    end_with_parent()
    cv2.setNumThreads(0)  # the others have the other cores


def explain_worker_death(work: Callable[[], T]) -> T:
    """What `work` returns; raises MtpdError where a data worker was killed or ended by itself meanwhile.

    torch raises in a signal handler, so anywhere: also on the way out of `work`, which is why this is no context manager,
    whose own `__exit__` would be outside of what it guards.
    """
    try:
        try:
            return work()
        except (ConnectionError, EOFError, FileNotFoundError):
            # A dying worker's connection may break before torch knows, which then raises here.
            time.sleep(WORKER_EXIT_DELAY)
            raise
    except RuntimeError as error:
        # By its start: what a worker raises in a dataset holds torch's words in the middle, and is no death.
        if not (dead := _WORKER_DEATH.match(str(error))):
            raise
        # The loop that waits for data raises a second error from the signal handler's.
        dead = _WORKER_DEATH.match(str(error.__cause__)) or dead
        raise MtpdError(
            f'a data worker {_describe_exit(dead["signal"])}. Fewer of them take less memory: runtime.workers (an mmdet config: '
            'data.workers_per_gpu). The same command goes on; a training, from its newest checkpoint.'
        ) from error


def _describe_exit(words: str | None) -> str:
    if not words:
        return 'ended unexpectedly'
    names = {signal.strsignal(number): signal.Signals(number).name for number in signal.Signals}
    name = names.get(words, words)
    return f'was ended by signal {name}{_LIKELY_CAUSES.get(name, "")}'
