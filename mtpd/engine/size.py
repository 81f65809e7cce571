"""Size and speed of a detector."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import contextlib
import io
import time

import numpy as np
import torch
from mmcv import ConfigDict
from mmcv.cnn import get_model_complexity_info
from mmdet.models import build_detector

from ..config.recipe import Recipe
from . import pipelines
from .loop import device_of


def describe(recipe: Recipe, detector: str, images: int = 20) -> dict:
    """Size and speed: ``parameters``, ``gflops`` (multiply-adds counted as one, mmdet's convention) at ``input``
    [height, width] pixels, and ``ms_per_image``, the median of `images` single-image forward passes on this machine.
    """
    model = build_detector(ConfigDict(recipe.model(detector))).eval().to(device_of(recipe))
    if hasattr(model, 'roi_head'):
        _give_boxes(model.roi_head)
    height, width = pipelines.input_size(recipe.cfg.image)
    forward, model.forward = model.forward, model.forward_dummy
    with contextlib.redirect_stdout(io.StringIO()):
        flops, _ = get_model_complexity_info(
            model, (3, height, width), as_strings=False, print_per_layer_stat=False
        )
    model.forward = forward
    image = torch.zeros(1, 3, height, width, device=next(model.parameters()).device)
    times = []
    with torch.no_grad():
        for _ in range(images + 3):
            began = time.perf_counter()
            model.forward_dummy(image)
            if image.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    return {
        'parameters': sum(parameter.numel() for parameter in model.parameters()),
        'gflops': flops / 1e9,
        'input': [height, width],
        'ms_per_image': 1000 * float(np.median(times[3:])),
    }


def _give_boxes(roi_head: torch.nn.Module) -> None:
    """mmdet's dummy forward pass draws four numbers a proposal, and RoIAlign on the CPU takes boxes only."""
    forward = roi_head.forward_dummy

    def with_boxes(features, proposals):
        corner, sides = proposals[:, :2], 32 * proposals[:, 2:].abs()
        return forward(features, torch.cat([corner, corner + sides], dim=1))

    roi_head.forward_dummy = with_boxes
