"""Plain feature matching."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .base import DISTILL_LOSSES, FeatureLoss, check_settings


@DISTILL_LOSSES.register_module()
class FeatureMSE(FeatureLoss):
    """Plain feature matching, after FitNets (Romero et al., ICLR 2015, arXiv 1412.6550).

    The mean squared difference over all elements: `weight * mean((align(F_s) - F_t) ** 2)`.

    Args:
        student_channels, teacher_channels: C of the feature maps; see `FeatureLoss`.
        weight: weight of the loss.

    Raises:
        MtpdError: a setting out of range.
    """

    def __init__(self, student_channels: int, teacher_channels: int, weight: float = 1.0):
        super().__init__(student_channels, teacher_channels)
        check_settings('FeatureMSE', weight=weight)
        self.weight = weight

    def compare(self, student: Tensor, teacher: Tensor, gt_bboxes, img_metas) -> Tensor:
        return self.weight * F.mse_loss(student, teacher)
