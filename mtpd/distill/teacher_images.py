"""A teacher's own images: normalised its way, or of another size, with its features brought to the student's grid.

A level of the teacher is compared with the student's level of the same stride, whatever the images' sizes. With images of
twice the size it has twice the cells, and each of the student's cells gets what lies at its place in the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MtpdError


def normalise_bytes(images: Tensor, norm: dict, shapes: Sequence[Sequence[int]]) -> Tensor:
    """Images as mmdet's `Normalize` and `Pad` make them, to the bit: (N, 3, H, W) in float32.

    Args:
        images: bytes (N, 3, H, W), BGR.
        norm: ``mean``, ``std`` and ``to_rgb``.
        shapes: height and width of each image in its canvas, in pixels; the rest becomes 0.
    """
    normalised = torch.empty_like(images, dtype=torch.float32)
    for channel, (mean, std) in enumerate(zip(norm['mean'], norm['std'], strict=True)):
        pixels = images[:, 2 - channel if norm['to_rgb'] else channel].float()
        # OpenCV rounds the difference to float32, and multiplies in float64.
        normalised[:, channel] = pixels.sub_(float(mean)).double().mul_(1 / np.float64(std))
    return _with_blank_padding(normalised, shapes)


def renormalise(
    images: Tensor, before: dict, after: dict, shapes: Sequence[Sequence[int]]
) -> Tensor:
    """Images of one normalisation as another makes them, to rounding; padding is 0 again.

    Args:
        images: (N, 3, H, W), normalised by `before`.
        before, after: ``mean``, ``std`` and ``to_rgb``.
        shapes: as of `normalise_bytes`.
    """
    if before['to_rgb'] != after['to_rgb']:
        images = images.flip(1)
        order = slice(None, None, -1)
    else:
        order = slice(None)
    values = [np.asarray(before[key], np.float64)[order] for key in ('mean', 'std')]
    wanted = [np.asarray(after[key], np.float64) for key in ('mean', 'std')]
    factor, shift = values[1] / wanted[1], (values[0] - wanted[0]) / wanted[1]
    factor, shift = (images.new_tensor(v.tolist()).view(1, 3, 1, 1) for v in (factor, shift))
    return _with_blank_padding(images * factor + shift, shapes)


def _with_blank_padding(images: Tensor, shapes: Sequence[Sequence[int]]) -> Tensor:
    for image, shape in zip(images, shapes, strict=True):
        image[:, shape[0] :], image[:, :, shape[1] :] = 0, 0
    return images


def on_students_grid(
    feature: Tensor,
    size: Sequence[int],
    canvases: tuple[Sequence[int], Sequence[int]],
    shapes: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
) -> Tensor:
    """A teacher's feature map (N, C, h, w) at the cells of the student's map of the same stride: (N, C, H, W), float32 at least.

    Bilinear, cells taken as areas (`align_corners=False`), image by image: where both resized a picture by other factors, or
    padded it by other amounts, a cell still gets what lies at its place. Where all sides have one ratio it is
    `torch.nn.functional.interpolate`. A ratio above 2 leaves cells between the samples out.

    Args:
        size: H and W.
        canvases: height and width of the padded batch, the student's and the teacher's, in pixels.
        shapes: of each image height and width without the padding, in both, in pixels.

    Raises:
        MtpdError: the maps are of other strides.
    """
    for cells, expected, *sides in zip(feature.shape[2:], size, *canvases, strict=True):
        ratio = sides[1] / sides[0]
        if abs(cells - expected * ratio) > 1 + ratio:
            raise MtpdError(
                f'the feature maps have different strides: student {tuple(size)} cells of an image of {tuple(canvases[0])} '
                f'pixels, teacher {tuple(feature.shape[2:])} of {tuple(canvases[1])}: hook modules of the same stride in both'
            )
    feature = feature.to(torch.promote_types(feature.dtype, torch.float32))
    axes = []
    for axis, (cells, wanted) in enumerate(zip(feature.shape[2:], size, strict=True)):
        ratios = [theirs[axis] / ours[axis] for ours, theirs in zip(*shapes, strict=True)]
        centres = torch.arange(wanted, dtype=torch.float64) + 0.5
        places = torch.tensor(ratios, dtype=torch.float64)[:, None] * centres  # in teacher's cells
        axes.append((2 * places / cells - 1).to(feature))
    rows, columns = axes
    count = (len(rows), *size)
    grid = torch.stack([columns[:, None, :].expand(count), rows[:, :, None].expand(count)], dim=-1)
    return F.grid_sample(feature, grid, mode='bilinear', padding_mode='border', align_corners=False)
