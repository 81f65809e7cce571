"""Focal and global distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import MtpdError
from .base import DISTILL_LOSSES, FeatureLoss, check_settings

BOX_SCALES = ('pad_shape', 'img_shape')


@DISTILL_LOSSES.register_module()
class FGD(FeatureLoss):
    """Focal and global distillation (Yang et al., CVPR 2022, arXiv 2111.11837; github.com/yzd-v/FGD).

    `alpha * L_fg + beta * L_bg + gamma * L_att + relation * L_rel`, each a sum divided by N:

    - attention to cells `S = H * W * softmax over cells of mean_c |F| / temperature`, and to
      channels `A = C * softmax over channels of mean_hw |F| / temperature`;
    - `L_fg = sum(M_fg * S_t * A_t * (F_s - F_t) ** 2)`, `L_bg` likewise with `M_bg`: `M_fg` is the
      largest `1 / (h * w)` of the boxes over a cell, sides in cells; `M_bg` is 1 outside all boxes,
      divided by its sum over the image;
    - `L_att = sum |S_s - S_t| + sum |A_s - A_t|`;
    - `L_rel = sum((R_s(F_s) - R_t(F_t)) ** 2)` with `R(F) = F + W2 ReLU(LN(W1 context))`, where
      `context = sum_hw F * softmax_hw(conv(F))`: one such block each for student and teacher, both
      trained, zero at first. They have the original's names.

    Args:
        student_channels, teacher_channels: C of the feature maps, the teacher's 2 or more; see
            `FeatureLoss`.
        temperature: of both attentions, above 0.
        alpha, beta, gamma, relation: weights of foreground, background, attention and relation.
        box_scale: what the feature map is taken to cover: 'pad_shape', the batch's padded size,
            which it does; or 'img_shape', each image's own size, for the original's behaviour,
            which shifts and stretches the boxes of images smaller than the batch.

    Raises:
        MtpdError: a setting out of range.
    """

    scale_settings = ('alpha', 'beta', 'gamma', 'relation')

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        temperature: float = 0.5,
        alpha: float = 1e-3,
        beta: float = 5e-4,
        gamma: float = 5e-4,
        relation: float = 5e-6,
        box_scale: str = 'pad_shape',
    ):
        super().__init__(student_channels, teacher_channels)
        check_settings(
            'FGD',
            {'temperature': temperature},
            alpha=alpha,
            beta=beta,
            gamma=gamma,
            relation=relation,
        )
        if box_scale not in BOX_SCALES:
            raise MtpdError(f'FGD: box_scale must be {" or ".join(BOX_SCALES)}, not {box_scale!r}')
        if teacher_channels < 2:
            raise MtpdError(f'FGD: teacher_channels must be 2 or more, not {teacher_channels}')
        self.temperature, self.box_scale = temperature, box_scale
        self.alpha, self.beta, self.gamma, self.relation = alpha, beta, gamma, relation
        self.conv_mask_s, self.channel_add_conv_s = _relation_block(teacher_channels)
        self.conv_mask_t, self.channel_add_conv_t = _relation_block(teacher_channels)

    def compare(
        self,
        student: Tensor,
        teacher: Tensor,
        gt_bboxes: list[Tensor] | None,
        img_metas: list[dict] | None,
    ) -> Tensor:
        sizes = self._image_sizes(len(student), gt_bboxes, img_metas)
        foreground, background = foreground_background_masks(student, gt_bboxes, sizes)
        cells_s, channels_s = self._attention(student)
        cells_t, channels_t = self._attention(teacher)
        error = (channels_t * (student - teacher).pow(2)).sum(1, keepdim=True) * cells_t
        focal = (self.alpha * foreground + self.beta * background) * error
        attention = (cells_s - cells_t).abs().sum() + (channels_s - channels_t).abs().sum()
        # Sums over cells and a difference of sums: not in half precision.
        with torch.autocast(student.device.type, enabled=False):
            of_student = _apply_relation(student, self.conv_mask_s, self.channel_add_conv_s)
            of_teacher = _apply_relation(teacher, self.conv_mask_t, self.channel_add_conv_t)
        relation = (of_student - of_teacher).pow(2).sum()
        return (focal.sum() + self.gamma * attention + self.relation * relation) / len(student)

    def _attention(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Attention to cells `(N, 1, H, W)` and to channels `(N, C, 1, 1)`, each of mean 1."""
        n, c, h, w = feature.shape
        size = feature.abs() / self.temperature
        cells = h * w * size.mean(1).flatten(1).softmax(1)
        channels = c * size.mean((2, 3)).softmax(1)
        return cells.view(n, 1, h, w), channels.view(n, c, 1, 1)

    def _image_sizes(self, n: int, gt_bboxes, img_metas) -> list[tuple[int, int]]:
        """For each image the height and width, in pixels, that its feature map is taken to cover."""
        if gt_bboxes is None or img_metas is None:
            raise MtpdError(
                'FGD needs the boxes, to separate foreground from background: give gt_bboxes and img_metas, or '
                'choose another distillation method for data without boxes'
            )
        if not len(gt_bboxes) == len(img_metas) == n:
            raise MtpdError(
                f'FGD: {len(gt_bboxes)} entries in gt_bboxes and {len(img_metas)} in img_metas for '
                f'feature maps of {n} images: give one of each per image'
            )
        if any(self.box_scale not in meta for meta in img_metas):
            raise MtpdError(
                f'FGD: img_metas lack {self.box_scale!r}: add it to meta_keys of Collect in the '
                'data pipeline, or set box_scale to a key that they have'
            )
        sizes = [tuple(meta[self.box_scale][:2]) for meta in img_metas]
        if self.box_scale == 'img_shape':
            return sizes
        # A batch is padded at the right and bottom to its largest image.
        heights, widths = zip(*sizes, strict=True)
        return [(max(heights), max(widths))] * n


def _relation_block(channels: int) -> tuple[nn.Conv2d, nn.Sequential]:
    """Weights of cells, and the bottleneck on their context: R starts as the identity."""
    cells = nn.Conv2d(channels, 1, 1)
    nn.init.kaiming_normal_(cells.weight, nonlinearity='relu')
    nn.init.zeros_(cells.bias)
    hidden = channels // 2
    bottleneck = nn.Sequential(
        nn.Conv2d(channels, hidden, 1),
        nn.LayerNorm([hidden, 1, 1]),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, channels, 1),
    )
    nn.init.zeros_(bottleneck[3].weight)
    nn.init.zeros_(bottleneck[3].bias)
    return cells, bottleneck


def _apply_relation(feature: Tensor, cells: nn.Conv2d, bottleneck: nn.Sequential) -> Tensor:
    """R(F) of `FGD`'s docstring, `(N, C, H, W)`."""
    share = cells(feature).flatten(2).softmax(2)
    context = (feature.flatten(2) * share).sum(2)
    return feature + bottleneck(context[:, :, None, None])


def foreground_background_masks(
    feature: Tensor, gt_bboxes: list[Tensor], sizes: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Foreground and background masks of FGD, each `(N, 1, H, W)`.

    Args:
        feature: `(N, C, H, W)`: its size, dtype and device are the masks'.
        gt_bboxes: for each image `(n, 4)`, xyxy, pixels; n may be 0, boxes may leave the image.
        sizes: for each image the height and width in pixels that the map covers.
    """
    h, w = feature.shape[2:]
    foreground = torch.stack(
        [
            _foreground_weights(boxes.to(feature), size, h, w)
            for boxes, size in zip(gt_bboxes, sizes, strict=True)
        ]
    )[:, None]
    background = (foreground == 0).to(feature.dtype)
    return foreground, background / background.sum((2, 3), keepdim=True).clamp(min=1)


def _foreground_weights(boxes: Tensor, size: tuple[int, int], h: int, w: int) -> Tensor:
    """`(h, w)`: at each cell the largest 1 / (cells of a box) of the boxes that cover it, or 0.

    A box covers the cells floor(start) to ceil(end), both included; what lies outside counts too.
    """
    # Multiplied first: a box that ends where a cell does gives a whole number.
    x, y = boxes[:, 0::2] * w / size[1], boxes[:, 1::2] * h / size[0]
    left, right = x[:, :1].floor(), x[:, 1:].ceil()
    top, bottom = y[:, :1].floor(), y[:, 1:].ceil()
    rows, columns = (torch.arange(count, device=boxes.device) for count in (h, w))
    in_rows = (top <= rows) & (rows <= bottom)
    in_columns = (left <= columns) & (columns <= right)
    weight = 1 / ((bottom - top + 1) * (right - left + 1))
    inside = in_rows[:, :, None] & in_columns[:, None]
    weights = torch.where(inside, weight[:, :, None], 0.0)
    return F.pad(weights, (0, 0, 0, 0, 0, 1)).amax(0)  # with a layer of zeros for no box
