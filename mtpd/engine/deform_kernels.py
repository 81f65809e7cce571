"""Triton kernels of deformable convolution; imported only where Triton is there, see `mtpd.engine.deform_convs`.

Activations are `(N, H, W, C)` in memory. A sample is as mmcv's: zero unless -1 < y < H and -1 < x < W, and what lies
outside the image counts zero in it. Positions and sums are float32. Channels come in pieces (`PIECE`) that lie in one
block of the weights and in one deformable group.

Names that all kernels share:
    total: output cells of all images, N * height_out * width_out.
    offset_n, offset_c, offset_y, offset_x: strides of the offsets.
    CHANNELS, PER_GROUP, PER_BLOCK: input channels; of a deformable group; of a block of the weights.
    TAPS, KERNEL_W: cells of the convolution's window, and those in a row.
"""

import triton
import triton.language as tl

SIZES = [
    'total',
    'height',
    'width',
    'height_out',
    'width_out',
    'offset_n',
    'offset_c',
    'offset_y',
    'offset_x',
]  # sizes differ between batches: no kernel of its own for those that are multiples of 16


@triton.jit
def sample_position(
    offset, image, row, column, alive, tap, group, height, width,
    offset_n, offset_c, offset_y, offset_x,
    TAPS: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    PAD_Y: tl.constexpr, PAD_X: tl.constexpr, DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
):  # fmt: skip
    """Whether a tap samples the image, the corner above and left of the sample, and how far below and right it is."""
    place = image.to(tl.int64) * offset_n + row.to(tl.int64) * offset_y
    place += column.to(tl.int64) * offset_x + (group * TAPS + tap) * 2 * offset_c
    y = tl.load(offset + place, mask=alive, other=0.0).to(tl.float32)
    x = tl.load(offset + place + offset_c, mask=alive, other=0.0).to(tl.float32)
    y += (row * STRIDE_Y - PAD_Y + (tap // KERNEL_W) * DILATION_Y).to(tl.float32)
    x += (column * STRIDE_X - PAD_X + (tap % KERNEL_W) * DILATION_X).to(tl.float32)
    margin = tl.minimum(tl.minimum(y, x) + 1.0, tl.minimum(height - y, width - x))
    inside = tl.where(alive & (margin > 0.0), 0, -1)
    # Bounds, not a choice by `inside`, on which Triton 3.6 fails to compile. NaN becomes -1.
    y = tl.minimum(tl.maximum(y, -1.0), height.to(tl.float32))
    x = tl.minimum(tl.maximum(x, -1.0), width.to(tl.float32))
    top = tl.floor(y)
    left = tl.floor(x)
    return inside, top.to(tl.int32), left.to(tl.int32), y - top, x - left


@triton.jit
def corner(image, row, column, inside, height, width, CHANNELS: tl.constexpr):
    """Whether a corner lies in the image, and where its first channel is, if so."""
    # By numbers, not by `&` of conditions, which Triton 3.6 fails to compile where they are used in several layouts.
    low = tl.minimum(row, column)
    high = tl.maximum(row - height, column - width)
    valid = tl.minimum(tl.minimum(low, -1 - high), inside) >= 0
    cell = (image * height + row) * width + column
    return valid, cell.to(tl.int64) * CHANNELS


@triton.jit
def load_corner(x, channel, valid, place):
    return tl.load(x + place[:, None] + channel[None, :], mask=valid[:, None], other=0.0).to(
        tl.float32
    )


@triton.jit
def sample(
    x, channel, image, inside, top, left, below, right, height, width, CHANNELS: tl.constexpr
):
    """The interpolated values, `(cells, channels)` in float32."""
    valid, place = corner(image, top, left, inside, height, width, CHANNELS)
    values = load_corner(x, channel, valid, place) * ((1 - below) * (1 - right))[:, None]
    valid, place = corner(image, top, left + 1, inside, height, width, CHANNELS)
    values += load_corner(x, channel, valid, place) * ((1 - below) * right)[:, None]
    valid, place = corner(image, top + 1, left, inside, height, width, CHANNELS)
    values += load_corner(x, channel, valid, place) * (below * (1 - right))[:, None]
    valid, place = corner(image, top + 1, left + 1, inside, height, width, CHANNELS)
    values += load_corner(x, channel, valid, place) * (below * right)[:, None]
    return values


@triton.jit(do_not_specialize=SIZES)
def gather_columns(
    x, offset, columns, total, height, width, height_out, width_out,
    offset_n, offset_c, offset_y, offset_x,
    CHANNELS: tl.constexpr, PER_GROUP: tl.constexpr, PER_BLOCK: tl.constexpr,
    TAPS: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    PAD_Y: tl.constexpr, PAD_X: tl.constexpr, DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
    CELLS: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Writes the samples as `(total, blocks, TAPS, PER_BLOCK)`; a program takes some cells and a piece of channels."""
    pieces = CHANNELS // PIECE
    first = (tl.program_id(0) % pieces) * PIECE
    cell = (tl.program_id(0) // pieces) * CELLS + tl.arange(0, CELLS)
    alive = cell < total
    image = cell // (height_out * width_out)
    row = (cell // width_out) % height_out
    column = cell % width_out
    channel = first + tl.arange(0, PIECE)
    block = first // PER_BLOCK
    target = cell.to(tl.int64)[:, None] * (CHANNELS * TAPS) + channel[None, :]
    target += block * (TAPS - 1) * PER_BLOCK
    for tap in range(TAPS):
        inside, top, left, below, right = sample_position(
            offset, image, row, column, alive, tap, first // PER_GROUP, height, width,
            offset_n, offset_c, offset_y, offset_x,
            TAPS, KERNEL_W, STRIDE_Y, STRIDE_X, PAD_Y, PAD_X, DILATION_Y, DILATION_X,
        )  # fmt: skip
        values = sample(x, channel, image, inside, top, left, below, right, height, width, CHANNELS)
        tl.store(
            columns + target + tap * PER_BLOCK,
            values.to(columns.dtype.element_ty),
            mask=alive[:, None],
        )


@triton.jit(do_not_specialize=SIZES)
def convolve(
    x, offset, weight, out, total, height, width, height_out, width_out,
    offset_n, offset_c, offset_y, offset_x,
    CHANNELS: tl.constexpr, PER_GROUP: tl.constexpr, PER_BLOCK: tl.constexpr,
    TAPS: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    PAD_Y: tl.constexpr, PAD_X: tl.constexpr, DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
    OUTPUTS: tl.constexpr, CELLS: tl.constexpr, PIECE: tl.constexpr, TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The convolution, `(total, blocks * OUTPUTS)`, by weights `(blocks, TAPS, PER_BLOCK, OUTPUTS)`.

    A program takes some cells and, of a block, up to `TILE` outputs.
    """
    tiles = (OUTPUTS + TILE - 1) // TILE
    programs = (CHANNELS // PER_BLOCK) * tiles
    block = (tl.program_id(0) % programs) // tiles
    output = (tl.program_id(0) % tiles) * TILE + tl.arange(0, TILE)
    cell = (tl.program_id(0) // programs) * CELLS + tl.arange(0, CELLS)
    alive = cell < total
    image = cell // (height_out * width_out)
    row = (cell // width_out) % height_out
    column = cell % width_out
    pieces = PER_BLOCK // PIECE
    within = tl.arange(0, PIECE)
    sums = tl.zeros((CELLS, TILE), dtype=tl.float32)
    for step in range(TAPS * pieces):
        tap = step // pieces
        first = (step % pieces) * PIECE
        channel = block * PER_BLOCK + first
        inside, top, left, below, right = sample_position(
            offset, image, row, column, alive, tap, channel // PER_GROUP, height, width,
            offset_n, offset_c, offset_y, offset_x,
            TAPS, KERNEL_W, STRIDE_Y, STRIDE_X, PAD_Y, PAD_X, DILATION_Y, DILATION_X,
        )  # fmt: skip
        values = sample(
            x, channel + within, image, inside, top, left, below, right, height, width, CHANNELS
        )
        line = (block * TAPS + tap) * PER_BLOCK + first + within
        factors = tl.load(
            weight + line[:, None] * OUTPUTS + output[None, :],
            mask=output[None, :] < OUTPUTS,
            other=0.0,
        )
        sums = tl.dot(values.to(factors.dtype), factors, sums, input_precision=PRECISION)
    line = cell.to(tl.int64) * (CHANNELS // PER_BLOCK * OUTPUTS) + block * OUTPUTS
    tl.store(
        out + line[:, None] + output[None, :],
        sums.to(out.dtype.element_ty),
        mask=alive[:, None] & (output[None, :] < OUTPUTS),
    )


@triton.jit(do_not_specialize=SIZES)
def spread_gradients(
    x, offset, by_columns, by_x, by_offset, total, height, width, height_out, width_out,
    offset_n, offset_c, offset_y, offset_x,
    CHANNELS: tl.constexpr, PER_GROUP: tl.constexpr, PER_BLOCK: tl.constexpr,
    TAPS: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    PAD_Y: tl.constexpr, PAD_X: tl.constexpr, DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
    CELLS: tl.constexpr, PIECE: tl.constexpr, NEEDS_X: tl.constexpr, NEEDS_OFFSET: tl.constexpr,
):  # fmt: skip
    """Adds to the input's gradient, `(N, H, W, C)`, and writes the offsets', `(N, groups * TAPS * 2, H_out, W_out)`.

    Both are float32. A program takes some cells, one tap and one deformable group.
    """
    tap = tl.program_id(0) % TAPS
    groups = CHANNELS // PER_GROUP
    group = (tl.program_id(0) // TAPS) % groups
    cell = (tl.program_id(0) // (TAPS * groups)) * CELLS + tl.arange(0, CELLS)
    alive = cell < total
    image = cell // (height_out * width_out)
    row = (cell // width_out) % height_out
    column = cell % width_out
    inside, top, left, below, right = sample_position(
        offset, image, row, column, alive, tap, group, height, width,
        offset_n, offset_c, offset_y, offset_x,
        TAPS, KERNEL_W, STRIDE_Y, STRIDE_X, PAD_Y, PAD_X, DILATION_Y, DILATION_X,
    )  # fmt: skip
    valid_a, place_a = corner(image, top, left, inside, height, width, CHANNELS)
    valid_b, place_b = corner(image, top, left + 1, inside, height, width, CHANNELS)
    valid_c, place_c = corner(image, top + 1, left, inside, height, width, CHANNELS)
    valid_d, place_d = corner(image, top + 1, left + 1, inside, height, width, CHANNELS)
    by_y_sum = tl.zeros((CELLS,), dtype=tl.float32)
    by_x_sum = tl.zeros((CELLS,), dtype=tl.float32)
    for piece in range(PER_GROUP // PIECE):
        first = group * PER_GROUP + piece * PIECE
        channel = first + tl.arange(0, PIECE)
        shift = (first // PER_BLOCK * (TAPS - 1) + tap) * PER_BLOCK
        gradient = tl.load(
            by_columns
            + cell.to(tl.int64)[:, None] * (CHANNELS * TAPS)
            + (channel + shift)[None, :],
            mask=alive[:, None],
            other=0.0,
        ).to(tl.float32)
        if NEEDS_OFFSET:
            a = load_corner(x, channel, valid_a, place_a)
            b = load_corner(x, channel, valid_b, place_b)
            c = load_corner(x, channel, valid_c, place_c)
            d = load_corner(x, channel, valid_d, place_d)
            along_y = (c - a) * (1 - right)[:, None] + (d - b) * right[:, None]
            along_x = (b - a) * (1 - below)[:, None] + (d - c) * below[:, None]
            by_y_sum += tl.sum(gradient * along_y, axis=1)
            by_x_sum += tl.sum(gradient * along_x, axis=1)
        if NEEDS_X:
            tl.atomic_add(
                by_x + place_a[:, None] + channel[None, :],
                gradient * ((1 - below) * (1 - right))[:, None],
                mask=valid_a[:, None],
                sem='relaxed',
            )
            tl.atomic_add(
                by_x + place_b[:, None] + channel[None, :],
                gradient * ((1 - below) * right)[:, None],
                mask=valid_b[:, None],
                sem='relaxed',
            )
            tl.atomic_add(
                by_x + place_c[:, None] + channel[None, :],
                gradient * (below * (1 - right))[:, None],
                mask=valid_c[:, None],
                sem='relaxed',
            )
            tl.atomic_add(
                by_x + place_d[:, None] + channel[None, :],
                gradient * (below * right)[:, None],
                mask=valid_d[:, None],
                sem='relaxed',
            )
    if NEEDS_OFFSET:
        plane = height_out * width_out
        line = (image.to(tl.int64) * groups + group) * TAPS * 2 + tap * 2
        target = by_offset + line * plane + row * width_out + column
        tl.store(target, by_y_sum, mask=alive)
        tl.store(target + plane, by_x_sum, mask=alive)
