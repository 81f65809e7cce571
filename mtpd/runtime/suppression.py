"""Non-maximum suppression of many sets of boxes at once, in Triton, which comes with torch for CUDA.

This module can only be imported where Triton is installed.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton import language as tl


def kept_boxes(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Which boxes non-maximum suppression keeps, `(sets, n)`; each set is a problem of its own.

    Args:
        boxes: `(sets, n, 4)` of x1, y1, x2, y2 in float32, the best of a set first.
        valid: `(sets, n)`; boxes that are not are not kept, and suppress none.
        threshold: a box goes that overlaps (IoU) a better one, which is kept, by more.
    """
    sets, count = valid.shape
    flags = valid.to(torch.int32).contiguous()
    block = max(16, triton.next_power_of_2(count))
    _suppress[(sets,)](boxes.contiguous(), flags, count, threshold, BLOCK=block, num_warps=8)
    return flags.bool()


@triton.jit
def _suppress(boxes, flags, count, threshold, BLOCK: tl.constexpr):
    """One set: goes through its boxes, of which each that is still kept takes out the later ones."""
    first = tl.program_id(0).to(tl.int64) * count
    boxes += first * 4
    flags += first
    index = tl.arange(0, BLOCK)
    inside = index < count
    x1 = tl.load(boxes + index * 4, mask=inside, other=0.0)
    y1 = tl.load(boxes + index * 4 + 1, mask=inside, other=0.0)
    x2 = tl.load(boxes + index * 4 + 2, mask=inside, other=0.0)
    y2 = tl.load(boxes + index * 4 + 3, mask=inside, other=0.0)
    area = (x2 - x1) * (y2 - y1)
    alive = tl.load(flags + index, mask=inside, other=0)
    for i in range(count):
        if tl.sum(tl.where(index == i, alive, 0), axis=0) > 0:
            left = tl.load(boxes + i * 4)
            top = tl.load(boxes + i * 4 + 1)
            right = tl.load(boxes + i * 4 + 2)
            bottom = tl.load(boxes + i * 4 + 3)
            wide = tl.maximum(tl.minimum(x2, right) - tl.maximum(x1, left), 0.0)
            high = tl.maximum(tl.minimum(y2, bottom) - tl.maximum(y1, top), 0.0)
            shared = wide * high
            union = area + (right - left) * (bottom - top) - shared
            alive = tl.where((index > i) & (shared > threshold * union), 0, alive)
    tl.store(flags + index, alive, mask=inside)
