"""Distillation by Pearson correlation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import MtpdError
from .base import DISTILL_LOSSES, FeatureLoss, check_settings


@DISTILL_LOSSES.register_module()
class PKD(FeatureLoss):
    """Distillation by the Pearson correlation coefficient (Cao et al., NeurIPS 2022, arXiv 2207.02039).

    With each channel standardised over N, H and W, `Z = (F - mean) / (std + 1e-6)` (std with
    n - 1), the loss is `weight / 2 * mean((Z_s - Z_t) ** 2)`: about `weight * (1 - r)`, r being
    the correlation of student and teacher, whatever their magnitudes.

    Args:
        student_channels, teacher_channels: C of the feature maps; see `FeatureLoss`. The paper
            has no alignment, nor has the loss where the channels are equal.
        weight: weight of the loss.

    Raises:
        MtpdError: a setting out of range.
    """

    def __init__(self, student_channels: int, teacher_channels: int, weight: float = 10.0):
        super().__init__(student_channels, teacher_channels)
        check_settings('PKD', weight=weight)
        self.weight = weight

    def compare(self, student: Tensor, teacher: Tensor, gt_bboxes, img_metas) -> Tensor:
        if student[:, 0].numel() < 2:
            raise MtpdError(
                f'PKD: a feature map of shape {tuple(student.shape)} (N, C, H, W) has one cell per '
                'channel, so it has no variance: leave this FPN level out, or enlarge images or batch'
            )
        return self.weight / 2 * F.mse_loss(_standardise(student), _standardise(teacher))


def _standardise(feature: Tensor) -> Tensor:
    std, mean = torch.std_mean(feature, dim=(0, 2, 3), keepdim=True)
    return (feature - mean) / (std + 1e-6)
