"""The focal loss on a GPU: its sum in one pass over the predictions, and its gradient in another.

mmcv writes the loss of each prediction, of which RetinaNet has a quarter of a billion in a batch of 16, and mmdet weights and
sums them afterwards.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .gpu_ops import triton_kernels


def sigmoid_focal_loss(
    original: Callable,
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float = 0.25,
    reduction: str = 'mean',
    avg_factor: Any = None,
) -> Tensor:
    """In place of mmdet's function; others than weighted means by `avg_factor` are left to it."""
    simple = (
        pred.is_cuda
        and pred.dim() == 2
        and pred.numel()
        and (weight is None or weight.shape == target.shape)
        and target.dim() == 1
        and reduction == 'mean'
        and avg_factor is not None
        and _kernel()
    )
    if not simple:
        return original(pred, target, weight, gamma, alpha, reduction, avg_factor)
    total = _FocalSum.apply(pred.contiguous(), target.contiguous(), weight, gamma, alpha)
    return total / (avg_factor + torch.finfo(torch.float32).eps)


def _kernel() -> types.ModuleType | None:
    return triton_kernels('mtpd.runtime.focal_kernel')


class _FocalSum(torch.autograd.Function):
    """Of predictions `(n, classes)`, targets `(n,)` and weights `(n,)`, a scalar; see `focal_kernel`."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor, target: Tensor, weight: Tensor | None, *factors: float):
        weight = None if weight is None else weight.contiguous()
        ctx.save_for_backward(pred, target, weight)
        ctx.factors = factors
        return _kernel().loss_sum(pred, target, weight, *factors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return _kernel().loss_gradient(*ctx.saved_tensors, *ctx.factors, grad), *[None] * 4
