"""What modules of mmcv and mmdet need beyond `compat`; imported, after mmdet, where detectors are made to be trained."""

from __future__ import annotations

import functools
from typing import Any

import torch
from mmcv.ops import DeformConv2dPack
from mmcv.parallel import MMDataParallel
from mmdet.models.dense_heads import RepPointsHead
from mmdet.utils import util_distribution
from torch import nn


def patch_detectors() -> None:
    """Apply everything (again, if called again: nothing changes the second time)."""
    start_without_offsets()
    put_point_flags_on_device()
    move_offsets_with_model()
    wrap_on_cpu()


def start_without_offsets() -> None:
    """A deformable convolution begins without offsets, as its paper has it, also where training begins from scratch.

    mmcv makes them zero, and then mmdet's backbones initialise all their convolutions, also those that make offsets,
    unless they load pretrained weights. What has an `init_weights` is called afterwards.
    """
    DeformConv2dPack.init_weights = DeformConv2dPack.init_offset


def put_point_flags_on_device() -> None:
    """RepPoints asks for its points' flags without naming the device, which then is 'cuda', also without a GPU."""
    original = RepPointsHead.get_points
    if hasattr(original, '__wrapped__'):
        return

    @functools.wraps(original)
    def get_points(
        self: RepPointsHead,
        featmap_sizes: list[tuple],
        img_metas: list[dict],
        device: torch.device | str,
    ) -> tuple[list, list]:
        generator = self.prior_generator
        generator.valid_flags = functools.partial(
            type(generator).valid_flags, generator, device=device
        )
        try:
            return original(self, featmap_sizes, img_metas, device)
        finally:
            del generator.valid_flags

    RepPointsHead.get_points = get_points


def move_offsets_with_model() -> None:
    """RepPoints keeps an offset as a plain tensor on the CPU, and on a GPU waits to copy it at each level and update."""

    def move(self: RepPointsHead, *args: Any, **kwargs: Any) -> RepPointsHead:
        super(RepPointsHead, self)._apply(*args, **kwargs)
        self.dcn_base_offset = self.dcn_base_offset.to(next(self.parameters()).device)
        return self

    RepPointsHead._apply = move


class CpuDataParallel(MMDataParallel):
    """mmcv's wrapper of a model that stays on the CPU: torch's, which it builds on, takes every GPU that it sees."""

    def __init__(self, module: nn.Module, dim: int = 0, **_: Any):
        nn.Module.__init__(self)
        self.module, self.dim, self.device_ids = module, dim, []


def wrap_on_cpu() -> None:
    """mmdet's `build_dp` moves a model to the first GPU, also where it is told 'cpu'."""
    util_distribution.dp_factory['cpu'] = CpuDataParallel


patch_detectors()
