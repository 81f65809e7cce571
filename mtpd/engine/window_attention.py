"""Swin Transformer's attention in windows for a frozen teacher: fewer copies, and torch's fused attention.

mmdet pads, rolls and cuts the image into windows by three copies, takes them apart by as many, and writes attention weights to
memory several times. Here tokens are fetched by one index and put back by another, and attention is one call.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import torch
from mmdet.models.backbones.swin import ShiftWindowMSA, WindowMSA
from torch import Tensor, nn
from torch.nn import functional as F

ALIGNMENT = 8  # what torch's kernel wants rows of a mask to be a multiple of, in elements
APART = -100.0  # mmdet's, of tokens that the shift has put into one window


def fuse_window_attention(teacher: nn.Module, hooked: Collection[nn.Module] = ()) -> None:
    """Makes attention in windows of a frozen detector faster on a GPU; weights and their names stay.

    Args:
        hooked: modules whose outputs are used elsewhere. Attention that contains one works as before.
    """
    for module in teacher.modules():
        plain = type(module) is ShiftWindowMSA and type(module.w_msa) is WindowMSA
        if plain and not any(part in hooked for part in module.w_msa.modules()):
            # A partial, not a closure: copied along with the module.
            module.forward = functools.partial(_forward, module, type(module).forward)


def _forward(
    module: ShiftWindowMSA, plain: Any, query: Tensor, hw_shape: tuple[int, int]
) -> Tensor:
    if module.training or torch.is_grad_enabled() or not query.is_cuda:
        return plain(module, query, hw_shape)
    return shifted_window_attention(module, query, hw_shape)


def shifted_window_attention(
    module: ShiftWindowMSA, query: Tensor, hw_shape: tuple[int, int]
) -> Tensor:
    """What `module` in eval mode gives for tokens `(N, H * W, C)` of images of `hw_shape`."""
    attention, window, shift = module.w_msa, module.window_size, module.shift_size
    (n, _, channels), heads = query.shape, attention.num_heads
    places, empty, back, regions = _windows(*hw_shape, window, shift, query.device)
    tokens = query.index_select(1, places)
    if len(empty):
        tokens.index_fill_(1, empty, 0)
    qkv = attention.qkv(tokens).view(-1, window**2, 3, heads, channels // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    bias = _bias(attention, regions, q.dtype)
    if regions is not None:
        bias = bias.repeat(n, 1, 1, 1)
    bias = bias[..., : window**2].expand(len(q), -1, -1, -1)
    out = F.scaled_dot_product_attention(q, k, v, bias, scale=attention.scale)
    out = attention.proj(out.transpose(1, 2).reshape(n, -1, channels))
    return out.index_select(1, back)


def _bias(attention: WindowMSA, regions: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What is added to attention weights, `(1 or windows, heads, tokens, tokens)`, rows with some elements behind them."""
    size = attention.window_size[0] * attention.window_size[1]
    table, index = attention.relative_position_bias_table, attention.relative_position_index
    bias = table[index.view(-1)].view(1, size, size, -1).permute(0, 3, 1, 2)
    if regions is not None:
        bias = bias + (regions[:, None, :, None] != regions[:, None, None, :]) * APART
    return F.pad(bias.to(dtype), (0, -size % ALIGNMENT))


@functools.lru_cache(maxsize=64)
def _windows(
    high: int, wide: int, window: int, shift: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """How the tokens of an image are put into windows, and back.

    Returns:
        places: of each token of each window its place in the image, any for padding.
        empty: which tokens of windows are padding.
        back: of each place in the image its token of windows.
        regions: `(windows, window ** 2)`: tokens of different regions don't attend to each other; None without a shift.
    """
    rows, columns = high + -high % window, wide + -wide % window
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing='ij')
    rolled = [((axis + shift) % size) for axis, size in ((y, rows), (x, columns))]
    in_image = (rolled[0] < high) & (rolled[1] < wide)
    places = torch.where(in_image, rolled[0] * wide + rolled[1], 0)

    def by_window(grid: Tensor) -> Tensor:
        grid = grid.view(rows // window, window, columns // window, window)
        return grid.permute(0, 2, 1, 3).reshape(-1, window**2)

    places, in_image = by_window(places).flatten(), by_window(in_image).flatten()
    back = torch.empty(high * wide, dtype=torch.long)
    back[places[in_image]] = in_image.nonzero()[:, 0]
    regions = None
    if shift:
        parts = [
            (axis >= size - window).long() + (axis >= size - shift).long()
            for axis, size in ((y, rows), (x, columns))
        ]
        regions = by_window(3 * parts[0] + parts[1]).to(device)
    empty = (~in_image).nonzero()[:, 0]
    return places.to(device), empty.to(device), back.to(device), regions
