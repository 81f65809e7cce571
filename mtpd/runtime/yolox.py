"""YOLOX's random image sizes, of images of any size, the same after a restart. Importing this module puts them in place.

mmdet scales boxes by the drawn size over `input_size`, and stretches images to the drawn size whatever theirs is: where images
are not of `input_size`, boxes no longer fit from the eleventh update on. What size is next is forgotten at a restart.
"""

from __future__ import annotations

import random

import torch.nn.functional as F
from mmdet.models.detectors import YOLOX, SingleStageDetector
from torch import Tensor


def resize_batch(
    self: YOLOX, img: Tensor, img_metas: list[dict], gt_bboxes: list[Tensor]
) -> tuple[Tensor, list[dict], list[Tensor]]:
    """Images, their sizes and boxes as the update at hand is to see them. A second call changes nothing.

    Args:
        img: `(N, 3, H, W)`.
        img_metas: one dict per image.
        gt_bboxes: of each image `(n, 4)`, xyxy, pixels.
    """
    factors = drawn_factors(self)
    if img_metas[0].get('resized') or factors == (1, 1):
        return img, img_metas, gt_bboxes
    unit, sides = self._size_multiplier, img.shape[2:]
    size = [max(unit, unit * round(a * b / unit)) for a, b in zip(sides, factors, strict=True)]
    scales = [new / side for new, side in zip(size, sides, strict=True)]
    resized = F.interpolate(img, size=size, mode='bilinear', align_corners=False)
    boxes = [box * box.new_tensor([scales[1], scales[0]] * 2) for box in gt_bboxes]
    metas = [
        meta
        | {'resized': True}
        | {key: _scaled(meta[key], scales) for key in ('img_shape', 'pad_shape') if key in meta}
        for meta in img_metas
    ]
    return resized, metas, boxes


def _scaled(shape: tuple[int, ...], scales: list[float]) -> tuple[int, ...]:
    height, width = (round(a * b) for a, b in zip(shape, scales, strict=False))
    return (height, width, *shape[2:])


def drawn_factors(self: YOLOX) -> tuple[float, float]:
    """What height and width are multiplied by in the update at hand: 1 at first, drawn anew every few updates.

    The draw depends on the training's seed and on the update alone.
    """
    number = self._progress_in_iter // self._random_size_interval
    if not number:
        return 1, 1
    high, wide = self._default_input_size
    drawn = random.Random(f'{getattr(self, "size_seed", 0)} {number}').randint(
        *self._random_size_range
    )
    return (
        self._size_multiplier * drawn / high,
        self._size_multiplier * int(wide / high * drawn) / wide,
    )


def _forward_train(
    self: YOLOX,
    img: Tensor,
    img_metas: list[dict],
    gt_bboxes: list[Tensor],
    gt_labels: list[Tensor],
    gt_bboxes_ignore: list[Tensor] | None = None,
) -> dict[str, Tensor]:
    img, img_metas, gt_bboxes = self.resize_batch(img, img_metas, gt_bboxes)
    losses = SingleStageDetector.forward_train(
        self, img, img_metas, gt_bboxes, gt_labels, gt_bboxes_ignore
    )
    self._progress_in_iter += 1
    return losses


YOLOX.resize_batch = resize_batch
YOLOX.forward_train = _forward_train
