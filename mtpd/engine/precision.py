"""Training in bfloat16: which parts of a detector run in it, and which stay in full precision.

Weights, gradients and the optimizer are float32, and so is a detector in eval mode. Convolutions and matrix products of backbone, neck and heads, and of
distillation losses, run under autocast. What the losses are computed from is float32 again: a head's outputs, regions of
interest, the points of RepPoints, the features that are compared. mmcv's own operators take float32 only, in the usual
layout (N, C, H, W).
"""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmdet.models.roi_heads.base_roi_head import BaseRoIHead
from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
from torch import Tensor, nn

OPERATORS = (DeformConv2d, ModulatedDeformConv2d, BaseRoIExtractor)  # mmcv's, or what calls them
POINTS = ('reppoints_pts_init_out', 'reppoints_pts_refine_out')  # offsets in cells


class Scope:
    """A module's forward pass under autocast to bfloat16, or (`half` False) out of it on float32 inputs, contiguous.

    Scopes of modules may be nested; a module has one.

    Args:
        full_output: tensors of the output, in nested tuples, lists and dicts, become float32.
        always: also in eval mode, in which there is no autocast else.
    """

    def __init__(self, device: str, half: bool, full_output: bool = False, always: bool = False):
        self.device, self.half, self.full_output, self.always = device, half, full_output, always
        self.open: list[torch.autocast] = []

    def on(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(self.enter, with_kwargs=True)
        module.register_forward_hook(self.leave, always_call=True)

    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        enabled = self.half and (self.always or module.training)
        scope = torch.autocast(self.device, torch.bfloat16, enabled=enabled)
        scope.__enter__()
        self.open.append(scope)
        return (args, kwargs) if self.half else (in_full(args, True), in_full(kwargs, True))

    def leave(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if self.open:
            self.open.pop().__exit__(None, None, None)
        return in_full(output) if self.full_output else output


@contextlib.contextmanager
def contained(device: str) -> Iterator[None]:
    """After the block autocast is as it was before, whatever ended the block.

    What is raised between a scope's hooks, such as Ctrl-C, may leave it open. Then all that the process does later would
    run in bfloat16, with weights that autocast had kept from then.
    """
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device), _depth()
    try:
        yield
    finally:
        while _depth() > before[2]:
            torch.autocast_decrement_nesting()
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])
        if not before[2]:
            torch.clear_autocast_cache()


@contextlib.contextmanager
def float32_rounded(precision: str) -> Iterator[None]:
    """In the block a GPU rounds the factors of float32 convolutions and matrix products to 10 bits (TF32), or does not.

    It does unless `precision` is 'fp32', as the original's torch (up to 1.11) did; today's does so for convolutions only.
    """
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = precision != 'fp32'
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def _depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def use_bfloat16(model: nn.Module, student: nn.Module, device: str, backbone: bool) -> None:
    """Puts a detector, or a `Distiller` with its teacher and losses, under autocast as this module says.

    Args:
        backbone: the student's too; on the CPU few channels gain nothing.
    """
    parts = [getattr(student, 'neck', None)]
    if backbone:
        parts.append(student.backbone)
    if model is not student:
        keep_in_bfloat16(model.teacher)
        Scope(device, True, always=True).on(model.teacher)
        parts += model.distill_losses.values()
    for part in filter(None, parts):
        Scope(device, True).on(part)
    for name, module in student.named_modules():
        if is_head(name, module):
            Scope(device, True, full_output=True).on(module)
        elif name.endswith(POINTS):
            Scope(device, False).on(module)


def keep_in_bfloat16(teacher: nn.Module) -> None:
    """Casts the weights of a frozen model once, not in each update, and keeps activations between its layers in bfloat16.

    Convolutions and matrix products give the same numbers as before. Layer norms compute in float32 still, but read and
    write bfloat16, so that the sums of a Swin Transformer's blocks are bfloat16, too.
    """
    plain = {part for op in teacher.modules() if isinstance(op, OPERATORS) for part in op.modules()}
    for module in teacher.modules():
        if type(module) in (nn.Conv2d, nn.Linear) and module not in plain:
            module.bfloat16()
        elif type(module) is nn.LayerNorm:
            module.bfloat16().forward = functools.partial(_layer_norm, module)


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        shape, weight, bias = module.normalized_shape, module.weight, module.bias
        return nn.functional.layer_norm(x.bfloat16(), shape, weight, bias, module.eps)


def keep_operators_plain(*models: nn.Module, device: str) -> None:
    """Gives mmcv's operators in detectors the inputs and weights that they take, whatever is around them."""
    for model in models:
        for module in model.modules():
            if isinstance(module, OPERATORS):
                module.to(memory_format=torch.contiguous_format)
                Scope(device, False).on(module)


def is_head(name: str, module: nn.Module) -> bool:
    """Whether a module of a detector predicts by itself: 'bbox_head', 'roi_head.mask_head', 'roi_head.bbox_head.0'."""
    return name.rstrip('.0123456789').endswith('_head') and not isinstance(
        module, (BaseRoIHead, nn.ModuleList)
    )


def in_full(item: Any, contiguous: bool = False) -> Any:
    """`item` with its bfloat16 tensors in float32, in nested tuples, lists and dicts; all `contiguous`, if need be."""
    if isinstance(item, Tensor):
        item = item.float() if item.dtype == torch.bfloat16 else item
        return item.contiguous() if contiguous else item
    if isinstance(item, (tuple, list)) and type(item) in (tuple, list):
        return type(item)(in_full(part, contiguous) for part in item)
    if isinstance(item, dict):
        return {key: in_full(value, contiguous) for key, value in item.items()}
    return item
