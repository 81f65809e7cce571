"""Training batches that depend on the seed and the update alone: not on data workers, nor on where a training resumed."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import contextlib
import random
from collections.abc import Iterator
from typing import Any

import mmdet.apis.train
import numpy as np
import torch
from mmcv.runner import get_dist_info
from mmdet.datasets.samplers import InfiniteBatchSampler, InfiniteGroupBatchSampler
from torch.utils.data import DataLoader, Dataset

from .loading import init_worker, leave_out_corrupt

# The last part of a seed says what the random numbers are for; those of an update's images come after.
MODEL_DRAWS, ORDER_DRAWS = 0, 1


def seed_all(*key: int) -> None:
    """Seeds Python's, numpy's and torch's global generators from a tuple of numbers."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    # As torch.manual_seed, which formats the stack for each accelerator that is not in use: half a millisecond.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextlib.contextmanager
def seeded_training(seed: int, begin: int, corrupt_limit: int = 0) -> Iterator[None]:
    """In the block, mmdet's `train_detector` makes a training loader that goes on at update `begin`.

    Its evaluations leave out corrupt images, up to `corrupt_limit`.
    """
    build_dataloader = mmdet.apis.train.build_dataloader

    def build(dataset: Any, **settings: Any) -> DataLoader:
        if settings.get('shuffle') is False:
            leave_out_corrupt(dataset, corrupt_limit)
            loader = build_dataloader(dataset, **settings)
            loader.worker_init_fn = init_worker
            return loader
        return resume_at(build_dataloader(dataset, **settings), seed, begin)

    mmdet.apis.train.build_dataloader = build
    try:
        yield
    finally:
        mmdet.apis.train.build_dataloader = build_dataloader


def resume_at(loader: DataLoader, seed: int, begin: int) -> DataLoader:
    """mmdet's training loader from update `begin` on, with random numbers of its own for each image."""
    return DataLoader(
        _SeededImages(loader.dataset, seed),
        batch_sampler=_SeededBatches(loader.batch_sampler, seed, begin),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        persistent_workers=loader.persistent_workers,
        prefetch_factor=loader.prefetch_factor,
        worker_init_fn=init_worker,
    )


class _SeededBatches:
    """mmdet's batches from an update on. An image is ``(index, update, rank, place in the batch)``."""

    def __init__(self, batches: Any, seed: int, begin: int):
        self.batches, self.seed, self.update = batches, seed, begin
        self.rank, _ = get_dist_info()
        self.sampler = getattr(batches, 'sampler', None)  # whose epoch mmcv sets

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        endless = isinstance(self.batches, (InfiniteBatchSampler, InfiniteGroupBatchSampler))
        epoch, done = (0, self.update) if endless else divmod(self.update, len(self.batches))
        seed_all(self.seed, epoch, self.rank, ORDER_DRAWS)  # mmdet's GroupSampler takes numpy's
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)
        for number, batch in enumerate(self.batches):
            if number >= done:
                update, self.update = self.update, self.update + 1
                yield [(index, update, self.rank, place) for place, index in enumerate(batch)]


class _SeededImages(Dataset):
    """A dataset that seeds all random numbers before it loads an image. All other attributes are the inner dataset's."""

    def __init__(self, dataset: Any, seed: int):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, image: tuple[int, ...]) -> Any:
        index, update, rank, place = image
        seed_all(self.seed, update, rank, ORDER_DRAWS + 1 + place)
        return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'dataset':  # asked for while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)
