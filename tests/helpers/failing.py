"""A detector whose training or evaluation fails in ways that large ones do."""

from __future__ import annotations

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split

import torch
from mmcv import ConfigDict
from mmcv.runner import get_dist_info
from mmdet.models import DETECTORS, RetinaNet, build_detector

# As torch words it on a GPU of 8 GiB with another process on it.
OOM = (
    'CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB of which 512.00 MiB is '
    'free. Process 77 has 1.50 GiB memory in use. Including non-PyTorch memory, this process has 6.00 GiB memory in '
    'use. Of the allocated memory 5.50 GiB is allocated by PyTorch, and 200.00 MiB is reserved by PyTorch but '
    'unallocated. If reserved but unallocated memory is large try setting '
    'PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.'
)


@DETECTORS.register_module()
class Failing(RetinaNet):
    """Fails in update `at` of its process: a loss is 'nan' or 'inf', a finite one has infinite 'gradients', memory runs
    out ('oom', 'ram'), or does so in evaluation ('oom_test')."""

    def __init__(self, *args, kind: str, at: int = 1, **settings):
        super().__init__(*args, **settings)
        self.kind, self.at, self.update = kind, at, 0

    def forward_train(self, *args, **settings):
        self.update += 1
        losses = super().forward_train(*args, **settings)
        if self.update != self.at:
            return losses
        if self.kind == 'oom':
            raise torch.OutOfMemoryError(OOM)
        if self.kind == 'ram':
            torch.empty(2**60)
        if self.kind in ('nan', 'inf'):
            losses['loss_bbox'][0] = losses['loss_bbox'][0] * float(self.kind)
        if self.kind == 'gradients':  # of a root at 0
            losses['loss_root'] = (self.bbox_head.retina_cls.weight * 0).sum().sqrt()
        return losses

    def forward_test(self, *args, **settings):
        if self.kind == 'oom_test':
            raise torch.OutOfMemoryError(OOM)
        return super().forward_test(*args, **settings)


def build(cfg: dict):
    return build_detector(ConfigDict(cfg))


def build_on_rank_1(cfg: dict):
    """The other processes' detectors do not fail."""
    model = build(cfg)
    if get_dist_info()[0] != 1:
        model.kind = 'none' if model.kind == 'nan' else model.kind
    return model
