"""On a GPU: deformable convolutions by Triton, in bfloat16 under autocast, for activations as (N, H, W, C) in memory.

mmcv's kernels take float32 in (N, C, H, W) only, and multiply group by group. Samples are mmcv's, interpolated in
float32. Where Triton is not there, or its kernels don't compile, mmcv's are used.
"""

from __future__ import annotations

import functools
import logging
import math
import types
from typing import Any, NamedTuple

import torch
from mmcv.ops import DeformConv2d, DeformConv2dPack
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..runtime import gpu_ops

BLOCK = 64  # input channels of neighbouring groups that are multiplied as one, and of one step of a kernel
MOST_BYTES = 1 << 30  # of the samples that are in memory at a time

_log = logging.getLogger('mtpd')
_tried: set[tuple] = set()  # kinds of convolutions whose kernels have run
_broken: list[str] = []  # why Triton is not used in this process


class Window(NamedTuple):
    """What a deformable convolution slides over its input; pairs are (y, x)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    deform_groups: int

    def output_size(self, x: Tensor) -> tuple[int, int]:
        height, width = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(x.shape[2:], *self[:4], strict=True)
        )
        return height, width


class Launch(NamedTuple):
    """How a kernel is started: output cells and outputs of a program, and Triton's options."""

    cells: int
    tile: int
    num_warps: int
    num_stages: int


GATHER, SPREAD = Launch(64, 0, 4, 1), Launch(32, 0, 4, 1)


def find_triton() -> types.ModuleType | None:
    """`mtpd.engine.deform_kernels`, or None where Triton can't be imported."""
    return gpu_ops.triton_kernels('mtpd.engine.deform_kernels')


# The operation.


def merge_groups(weight: Tensor, groups: int) -> Tensor:
    """A convolution's weight `(O, C / groups, kh, kw)` as few blocks `(blocks, kh * kw, C / blocks, O / blocks)`.

    A block holds neighbouring groups, with zeros between them. Gradients pass.
    """
    outputs, channels, *kernel = weight.shape
    merged = _merged_groups(groups, channels)
    blocks, taps = groups // merged, math.prod(kernel)
    parts = weight.reshape(blocks, merged, outputs // groups, channels, taps)
    parts = torch.diag_embed(parts.permute(0, 4, 3, 2, 1), dim1=2, dim2=4)
    return parts.reshape(blocks, taps, merged * channels, merged * outputs // groups)


def _merged_groups(groups: int, channels: int) -> int:
    """How many groups of `channels` each make a block."""
    most = max(1, BLOCK // channels)
    return next(count for count in range(min(most, groups), 0, -1) if groups % count == 0)


def piece_size(per_block: int, per_group: int) -> int:
    """Channels of a kernel's step: a power of two, all in one block and one deformable group."""
    common = math.gcd(per_block, per_group)
    return min(BLOCK, common & -common)


def deform_conv(
    x: Tensor, offset: Tensor, weight: Tensor, window: Window, groups: int = 1
) -> Tensor:
    """mmcv's `deform_conv2d`; the output is `(N, O, H_out, W_out)`, channels-last in memory.

    Args:
        x: `(N, C, H, W)`, float32 or bfloat16; not copied if channels-last.
        offset: `(N, deform_groups * kh * kw * 2, H_out, W_out)`, of any float type and layout.
        weight: `(O, C / groups, kh, kw)`; becomes of `x`'s type.
    """
    return DeformConv.apply(x, offset, merge_groups(weight.to(x.dtype), groups), window)


class DeformConv(torch.autograd.Function):
    """`deform_conv` by weights as `merge_groups` gives them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, offset: Tensor, weight: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(x, offset, weight)
        ctx.window = window
        cells, offset = _channels_last(x.detach()), offset.detach()
        size = window.output_size(x)
        blocks, _, _, outputs = weight.shape
        shape = len(x), blocks * outputs, *size
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        rows = out.permute(0, 2, 3, 1)  # `out` itself is no view: a ReLU may work in place on it
        if x.dtype == torch.bfloat16:
            convolve(cells, offset, weight, rows, window)
        else:  # exact products are torch's business
            factors = weight.flatten(1, 2)
            for part in _parts(len(x), size, weight, x.element_size()):
                columns = gather(cells[part], offset[part], weight.shape, size, window)
                target = rows[part].view(-1, blocks, outputs).transpose(0, 1)
                _multiply(columns.transpose(0, 1), factors, target)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, offset, weight = ctx.saved_tensors
        window, size = ctx.window, grad.shape[2:]
        needs_x, needs_offset, needs_weight, _ = ctx.needs_input_grad
        cells, grad = _channels_last(x), _channels_last(grad.to(x.dtype))
        blocks, _, _, outputs = weight.shape
        by_x = torch.empty_like(cells) if needs_x else None
        by_offset = torch.empty(offset.shape, device=x.device) if needs_offset else None
        by_weight = torch.zeros(weight.shape, device=x.device) if needs_weight else None
        for part in _parts(len(x), size, weight, x.element_size()):
            rows = grad[part].view(-1, blocks, outputs).transpose(0, 1)
            columns = None
            if needs_weight:
                columns = gather(cells[part], offset[part], weight.shape, size, window)
                by_weight += _product(columns.permute(1, 2, 0), rows).view(weight.shape)
            if needs_x or needs_offset:
                if columns is None:
                    columns = _empty_columns(cells[part], weight.shape, size)
                _multiply(rows, weight.flatten(1, 2).transpose(1, 2), columns.transpose(0, 1))
                to_x = torch.zeros_like(cells[part], dtype=torch.float32) if needs_x else None
                to_offset = by_offset[part] if needs_offset else None
                spread(cells[part], offset[part], columns, to_x, to_offset, weight.shape, window)
                if needs_x:
                    by_x[part] = to_x
            del columns
        return (
            by_x.permute(0, 3, 1, 2) if needs_x else None,
            by_offset.to(offset.dtype) if needs_offset else None,
            by_weight.to(weight.dtype) if needs_weight else None,
            None,
        )


def _channels_last(x: Tensor) -> Tensor:
    """`(N, C, H, W)` as `(N, H, W, C)`, contiguous."""
    return x.permute(0, 2, 3, 1).contiguous()


def _parts(images: int, size: tuple[int, int], weight: Tensor, item_size: int) -> list[slice]:
    """Slices of a batch whose samples take at most `MOST_BYTES`, if an image's do."""
    blocks, taps, channels, _ = weight.shape
    most = max(1, MOST_BYTES // (math.prod(size) * blocks * taps * channels * item_size))
    step = math.ceil(images / math.ceil(images / most))
    return [slice(start, start + step) for start in range(0, images, step)]


def _empty_columns(cells: Tensor, shape: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    blocks, taps, channels, _ = shape
    return cells.new_empty(len(cells) * math.prod(size), blocks, taps * channels)


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Batches of matrix products, into any layout whose rows or columns are contiguous."""
    if len(a) == 1:
        torch.mm(a[0], b[0], out=out[0])
    else:
        torch.bmm(a, b, out=out)


def _product(a: Tensor, b: Tensor) -> Tensor:
    # For a single product of long sums, mm splits the sums among the GPU's processors.
    return torch.mm(a[0], b[0])[None] if len(a) == 1 else torch.bmm(a, b)


# The kernels' calls.


def _arguments(
    cells: Tensor, offset: Tensor, shape: tuple[int, ...], size: tuple[int, int], window: Window
) -> tuple[list[int], list[int]]:
    """The sizes and the constants that all kernels take, in their order."""
    images, height, width, channels = cells.shape
    _, taps, per_block, _ = shape
    sizes = [images * math.prod(size), height, width, *size, *offset.stride()]
    pairs = window.stride, window.padding, window.dilation
    constants = [channels, channels // window.deform_groups, per_block, taps, window.kernel[1]]
    return sizes, [*constants, *(value for pair in pairs for value in pair)]


def _piece(shape: tuple[int, ...], window: Window) -> int:
    blocks, _, per_block, _ = shape
    return piece_size(per_block, blocks * per_block // window.deform_groups)


def _device(x: Tensor) -> Any:
    """Triton starts kernels on torch's current device."""
    return torch.cuda.device_of(x)


def gather(
    cells: Tensor,
    offset: Tensor,
    shape: tuple[int, ...],
    size: tuple[int, int],
    window: Window,
    launch: Launch | None = None,
) -> Tensor:
    """The samples of images `(N, H, W, C)`, as `(N * H_out * W_out, blocks, taps * C / blocks)`.

    Args:
        shape: of the weights, as `merge_groups` gives them.
    """
    launch = launch or GATHER
    columns = _empty_columns(cells, shape, size)
    sizes, constants = _arguments(cells, offset, shape, size, window)
    piece = _piece(shape, window)
    programs = math.ceil(sizes[0] / launch.cells) * (cells.shape[3] // piece)
    with _device(cells):
        find_triton().gather_columns[(programs,)](
            cells, offset, columns, *sizes, *constants, launch.cells, piece,
            num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip
    return columns


def convolve(
    cells: Tensor,
    offset: Tensor,
    weight: Tensor,
    out: Tensor,
    window: Window,
    launch: Launch | None = None,
) -> None:
    """Writes the convolution of images `(N, H, W, C)` to `out`, `(N, H_out, W_out, O)`; samples are not stored."""
    blocks, _, _, outputs = weight.shape
    launch = launch or best_launch(outputs, cells.dtype)
    sizes, constants = _arguments(cells, offset, weight.shape, out.shape[1:3], window)
    programs = math.ceil(sizes[0] / launch.cells) * blocks * math.ceil(outputs / launch.tile)
    exact = cells.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    with _device(cells):
        find_triton().convolve[(programs,)](
            cells, offset, weight.contiguous(), out, *sizes, *constants, outputs, launch.cells,
            _piece(weight.shape, window), launch.tile, 'ieee' if exact else 'tf32',
            num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip


def best_launch(outputs: int, dtype: torch.dtype) -> Launch:
    """How `convolve` is started for blocks of so many outputs."""
    if dtype == torch.float32:
        return Launch(32, min(64, max(16, 1 << (outputs - 1).bit_length())), 4, 1)
    if outputs > 128:
        return Launch(64, 256, 8, 2)
    return Launch(64, max(16, 1 << (outputs - 1).bit_length()), 4, 2)


def spread(
    cells: Tensor,
    offset: Tensor,
    by_columns: Tensor,
    by_x: Tensor | None,
    by_offset: Tensor | None,
    shape: tuple[int, ...],
    window: Window,
    launch: Launch | None = None,
) -> None:
    """Adds the gradient by the samples to `by_x`, `(N, H, W, C)`, and writes that by offsets; both float32."""
    launch, size = launch or SPREAD, offset.shape[2:]
    sizes, constants = _arguments(cells, offset, shape, size, window)
    programs = math.ceil(sizes[0] / launch.cells) * constants[3] * window.deform_groups
    nothing = by_columns  # a pointer that is not used
    with _device(cells):
        find_triton().spread_gradients[(programs,)](
            cells, offset, by_columns, nothing if by_x is None else by_x,
            nothing if by_offset is None else by_offset, *sizes, *constants,
            launch.cells, _piece(shape, window), by_x is not None, by_offset is not None,
            num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip


# In models.


def is_supported(module: nn.Module) -> bool:
    """Whether the kernels take a module: one of mmcv's, not modulated, with channels in pieces of 16 at least."""
    if type(module) not in (DeformConv2d, DeformConv2dPack):
        return False
    channels = module.in_channels // module.groups
    per_block = _merged_groups(module.groups, channels) * channels
    per_group = module.in_channels // module.deform_groups
    return module.in_channels % module.deform_groups == 0 and piece_size(per_block, per_group) >= 16


def replace_deform_convs(model: nn.Module) -> None:
    """Makes a model's deformable convolutions work by Triton for inputs on a GPU; weights and their names stay."""
    if find_triton() is None:
        return
    for module in model.modules():
        if is_supported(module) and not is_replaced(module):
            # A partial, not a closure: copied along with the module.
            module.forward = functools.partial(_forward, module)


def is_replaced(module: nn.Module) -> bool:
    """Whether a module takes what autocast gives, in any layout."""
    forward = vars(module).get('forward')
    return isinstance(forward, functools.partial) and forward.func is _forward


def _forward(module: DeformConv2d, x: Tensor, offset: Tensor | None = None) -> Tensor:
    if isinstance(module, DeformConv2dPack):
        offset = module.conv_offset(x)
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    window = Window(
        module.kernel_size, module.stride, module.padding, module.dilation, module.deform_groups
    )
    if _can_run(x, dtype, window):
        inputs = x.to(dtype), offset, module.weight, window, module.groups
        if _works(*inputs):
            return deform_conv(*inputs)
    return _by_mmcv(module, x, offset)


def _can_run(x: Tensor, dtype: torch.dtype, window: Window) -> bool:
    """Whether the kernels take an input of a type: on a GPU, not empty and not smaller than the window."""
    return (
        not _broken
        and x.is_cuda
        and dtype in (torch.float32, torch.bfloat16)
        and 0 < x.numel() // x.shape[1] < 1 << 31
        and all(size >= kernel for size, kernel in zip(x.shape[2:], window.kernel, strict=True))
        and min(window.output_size(x)) > 0
    )


def _works(x: Tensor, offset: Tensor, weight: Tensor, window: Window, groups: int) -> bool:
    """Whether the kernels compile; found out on one image, the gradients' too, the first time for each kind."""
    with_gradients = torch.is_grad_enabled() and (
        x.requires_grad or offset.requires_grad or weight.requires_grad
    )
    kind = (x.device, x.dtype, offset.dtype, weight.shape, window, groups, with_gradients)
    if kind in _tried:
        return True
    try:
        with torch.set_grad_enabled(with_gradients):
            parts = [part.detach() for part in (x[:1], offset[:1], weight)]
            for part in parts:
                part.requires_grad_(with_gradients)
            out = deform_conv(*parts, window, groups)
            if with_gradients:
                torch.autograd.grad(out, parts, torch.zeros_like(out))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no C compiler, a GPU that Triton does not know, ...
        _broken.append(f'{type(error).__name__}: {error}')
        lines = _broken[0].strip().splitlines()
        _log.warning(
            "deformable convolutions by mmcv's slower kernels, not by Triton: %s", lines[0]
        )
        return False
    _tried.add(kind)
    return True


def _by_mmcv(module: DeformConv2d, x: Tensor, offset: Tensor) -> Tensor:
    """mmcv's operator on what it takes: float32 in the usual layout."""
    names = 'kernel_size', 'stride', 'padding', 'dilation', 'groups', 'deform_groups', 'im2col_step'
    plain = types.SimpleNamespace(**{name: getattr(module, name) for name in names})
    plain.weight = module.weight.float().contiguous()
    with torch.autocast(x.device.type, enabled=False):
        return DeformConv2d.forward(plain, x.float().contiguous(), offset.float().contiguous())
