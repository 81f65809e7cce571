"""What mmdet's distributed training lacks on the CPU; on GPUs it stays as it is."""

from __future__ import annotations

import functools

import mmdet.apis.train
from mmcv.parallel import MMDistributedDataParallel
from mmcv.parallel.scatter_gather import scatter_kwargs
from mmdet.core.utils import sync_random_seed
from mmdet.datasets.samplers import class_aware_sampler, distributed_sampler, infinite_sampler
from mmdet.utils import build_ddp


def adapt(device: str) -> None:
    """Lets `train_detector` take several processes on `device`, 'cpu' or another."""
    mmdet.apis.train.build_ddp = build_ddp_anywhere
    # Samplers share their seed by way of a GPU: two of them unless told, the third where it sees one.
    place = 'cpu' if device == 'cpu' else 'cuda'
    draw = functools.partial(sync_random_seed, device=place)
    infinite_sampler.sync_random_seed = class_aware_sampler.sync_random_seed = draw
    distributed_sampler.get_device = lambda: place


class OnCpu(MMDistributedDataParallel):
    """mmcv's wrapper hands batches on only to GPUs; this one does so on the CPU, as its MMDataParallel does."""

    def train_step(self, *inputs, **kwargs):
        inputs, kwargs = scatter_kwargs(inputs, kwargs, [-1])
        return super().train_step(*inputs[0], **kwargs[0])

    def _run_ddp_forward(self, *inputs, **kwargs):
        inputs, kwargs = scatter_kwargs(inputs, kwargs, [-1])
        return super()._run_ddp_forward(*inputs[0], **kwargs[0])


def build_ddp_anywhere(model, device: str, device_ids: list[int], **options):
    """mmdet's `build_ddp`, which knows no CPU."""
    if device == 'cpu':
        return OnCpu(model, **options)
    return build_ddp(model, device, device_ids=device_ids, **options)
