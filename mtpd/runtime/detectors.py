"""What detectors of mmdet need beyond `compat`. Importing this module imports mmdet and applies it."""

from __future__ import annotations

from typing import Any

import torch
from mmcv.ops import DeformConv2dPack, deform_conv2d
from mmcv.parallel import MMDataParallel
from mmdet.models.dense_heads import RepPointsHead, tood_head
from mmdet.utils import util_distribution
from torch import Tensor, nn


def patch_detectors() -> None:
    """Applies every adaptation. A second call changes nothing."""
    start_without_offsets()
    move_offsets_with_model()
    wrap_on_cpu()
    sample_in_full_precision()


def start_without_offsets() -> None:
    """Lets a deformable convolution begin with zero offsets, as in its paper, also in a training from scratch.

    mmcv makes them zero. Then mmdet's backbones initialise all their convolutions, also those that compute offsets, unless
    they load pretrained weights. A module's `init_weights` is called after that.
    """
    DeformConv2dPack.init_weights = DeformConv2dPack.init_offset


def move_offsets_with_model() -> None:
    """Moves an offset of RepPoints with the model. It is no buffer: mmdet copies it to the GPU at each level and update."""

    def move(self: RepPointsHead, *args: Any, **kwargs: Any) -> RepPointsHead:
        super(RepPointsHead, self)._apply(*args, **kwargs)
        self.dcn_base_offset = self.dcn_base_offset.to(next(self.parameters()).device)
        return self

    RepPointsHead._apply = move


class CpuDataParallel(MMDataParallel):
    """mmcv's data-parallel wrapper of a model on the CPU; the original takes every GPU that it sees."""

    def __init__(self, module: nn.Module, dim: int = 0, **_: Any):
        nn.Module.__init__(self)
        self.module, self.dim, self.device_ids = module, dim, []


def sample_in_full_precision() -> None:
    """Lets TOOD's head train in bfloat16: it calls mmcv's deformable convolution itself, which takes float32 only."""
    if tood_head.deform_conv2d is not deform_conv2d:
        return

    def in_full_precision(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            full = [a.float() if isinstance(a, Tensor) else a for a in args]
            return deform_conv2d(x.float().contiguous(), *full, **kwargs)

    tood_head.deform_conv2d = in_full_precision


def wrap_on_cpu() -> None:
    """Makes mmdet's `build_dp` leave a model on the CPU where the device is 'cpu'; it would move it to the first GPU."""
    util_distribution.dp_factory['cpu'] = CpuDataParallel


patch_detectors()
