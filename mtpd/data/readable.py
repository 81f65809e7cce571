"""Datasets that may have some corrupt images: each gives way to the next whole one, up to a limit, and is told of."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import copy
import itertools
import sys
from collections.abc import Iterator
from typing import Any

from mmcv.runner import get_dist_info
from torch.utils.data import DataLoader, Dataset

from ..runtime import distributed
from .whole import CorruptImage, path_of
from .workers import begin_worker


class Readable(Dataset):
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
        raise too_many(found, self.limit) from None

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
            raise too_many(self.corrupt, self.limit)

    def evaluate(self, results: list, **settings: Any) -> dict:
        """As mmdet's, of whole images."""
        data, results = without(self.dataset, results, self.corrupt)
        return data.evaluate(results, **settings)


class _Noting(DataLoader):
    """At the end of the split all processes know the corrupt images of all, and the first one names them."""

    def __iter__(self) -> Iterator[Any]:
        data, before = self.dataset, set(self.dataset.corrupt)
        for batch in super().__iter__():
            data.note(told(batch))
            yield batch
        for found in distributed.gather(data.corrupt):
            data.note(found)
        for path in sorted(set(data.corrupt) - before) if get_dist_info()[0] == 0 else ():
            # Not among the numbers that `mtpd eval` prints.
            text = f'image {path} {data.corrupt[path]}: left out of the evaluation'
            print(text, file=sys.stderr, flush=True)


def noting(loader: DataLoader) -> DataLoader:
    """mmdet's loader of a `Readable` in testing, which notes what its batches tell of."""
    return _Noting(
        loader.dataset,
        batch_sampler=loader.batch_sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        persistent_workers=loader.persistent_workers,
        prefetch_factor=loader.prefetch_factor,
        worker_init_fn=begin_worker,
    )


def told(batch: dict) -> dict[str, str]:
    """What is wrong with the corrupt images that others in a batch stand for, by path."""
    return {p: wrong for meta in metas(batch) for p, wrong in meta.get('corrupt', {}).items()}


def metas(batch: dict) -> list[dict]:
    """mmdet's `img_metas` of a batch, one after the other."""
    found = batch['img_metas']
    containers = found if isinstance(found, list) else [found]
    return [meta for container in containers for group in container.data for meta in group]


def without(data: Any, results: list, corrupt: dict[str, str]) -> tuple[Any, list]:
    """A CocoDataset in testing and its results without some images, by their paths."""
    if not corrupt:
        return data, results
    kept = [k for k, i in enumerate(data.data_infos) if path_of(data.img_prefix, i) not in corrupt]
    data = copy.copy(data)
    data.data_infos = [data.data_infos[k] for k in kept]
    data.img_ids = [data.img_ids[k] for k in kept]
    return data, [results[k] for k in kept]


def too_many(found: dict[str, str], limit: int) -> CorruptImage:
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
