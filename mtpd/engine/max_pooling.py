"""Max pooling on the CPU, computed faster in the layout (N, H, W, C), whatever the layout around it is."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn


def pool_channels_last(model: nn.Module) -> None:
    """Has a model's max poolings computed channels-last. Outputs and gradients are the same numbers, in the same layout."""
    for module in model.modules():
        if type(module) is nn.MaxPool2d and not module.return_indices:
            module.forward = functools.partial(_pool, module)


def _pool(module: nn.MaxPool2d, x: Tensor) -> Tensor:
    sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
    pairs = [[size, size] if isinstance(size, int) else list(size) for size in sizes]
    return _ChannelsLastMaxPool.apply(x, *pairs, module.ceil_mode)


class _ChannelsLastMaxPool(torch.autograd.Function):
    """torch's operator; backward, which is slower channels-last, in the usual layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *settings: Any) -> Tensor:
        output, indices = torch.ops.aten.max_pool2d_with_indices(
            x.contiguous(memory_format=torch.channels_last), *settings
        )
        ctx.save_for_backward(x, indices.contiguous())
        ctx.settings = settings
        return output.contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, indices = ctx.saved_tensors
        of_x = torch.ops.aten.max_pool2d_with_indices_backward(
            gradient.contiguous(), x, *ctx.settings, indices
        )
        return of_x, None, None, None, None, None
