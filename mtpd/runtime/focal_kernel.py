"""The focal loss of many predictions, and its gradient, in Triton, which comes with torch for CUDA.

This module can only be imported where Triton is installed.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton import language as tl

BLOCK = 4096  # predictions of a program


def loss_sum(
    pred: Tensor, target: Tensor, weight: Tensor | None, gamma: float, alpha: float
) -> Tensor:
    """The sum over predictions, a scalar in float32; arguments as those of `loss_gradient`."""
    programs = triton.cdiv(pred.numel(), BLOCK)
    parts = torch.empty(programs, device=pred.device)
    _focal_loss[(programs,)](
        *(pred, target, pred if weight is None else weight, parts, parts),
        *(pred.numel(), gamma, alpha, pred.shape[1]),
        HAS_WEIGHT=weight is not None, GRADIENT=False, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return parts.sum()


def loss_gradient(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None,
    gamma: float,
    alpha: float,
    factor: Tensor,
) -> Tensor:
    """The gradient of `factor` times the sum, as `pred`.

    Args:
        pred: `(n, classes)` before the sigmoid, contiguous, float32 or bfloat16.
        target: `(n,)`: the class, or `classes` for background.
        weight: `(n,)` or None.
        factor: a scalar.
    """
    out = torch.empty_like(pred)
    _focal_loss[(triton.cdiv(pred.numel(), BLOCK),)](
        *(pred, target, pred if weight is None else weight, factor, out),
        *(pred.numel(), gamma, alpha, pred.shape[1]),
        HAS_WEIGHT=weight is not None, GRADIENT=True, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return out


@triton.jit
def _focal_loss(
    pred, target, weight, factor, out, count, gamma, alpha,
    CLASSES: tl.constexpr, HAS_WEIGHT: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of each prediction to `out`, or the program's part of the sum."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    place = first + tl.arange(0, BLOCK)
    inside = place < count
    within = (first % CLASSES).to(tl.int32) + tl.arange(0, BLOCK)  # 32 bits: divided faster
    row = first // CLASSES + within // CLASSES
    x = tl.load(pred + place, mask=inside, other=0.0).to(tl.float32)
    positive = tl.load(target + row, mask=inside, other=-1) == within % CLASSES
    # Of the wrong answer to each: z rises with the loss. log(q) and log(1 - q) of q = sigmoid(z).
    z = tl.where(positive, -x, x)
    rest = tl.log(1.0 + tl.exp(-tl.abs(z)))
    log_wrong = tl.minimum(z, 0.0) - rest
    log_right = tl.minimum(-z, 0.0) - rest
    scale = tl.where(positive, alpha, 1.0 - alpha) * tl.exp(gamma * log_wrong)
    if HAS_WEIGHT:
        scale *= tl.load(weight + row, mask=inside, other=0.0).to(tl.float32)
    if GRADIENT:
        wrong = tl.exp(log_wrong)
        slope = scale * (wrong - gamma * (1.0 - wrong) * log_right)
        slope = tl.where(positive, -slope, slope) * tl.load(factor)
        tl.store(out + place, slope.to(out.dtype.element_ty), mask=inside)
    else:
        losses = tl.where(inside, -scale * log_right, 0.0)
        tl.store(out + tl.program_id(0), tl.sum(losses, axis=0))
