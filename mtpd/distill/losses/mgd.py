"""Masked generative distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import MtpdError
from .base import DISTILL_LOSSES, FeatureLoss, as_float32, check_settings


@DISTILL_LOSSES.register_module()
class MGD(FeatureLoss):
    """Masked generative distillation (Yang et al., ECCV 2022; github.com/yzd-v/MGD, det/).

    The student's feature map, with random cells set to zero, has to generate the teacher's:
    `alpha / N * sum((G(M * align(F_s)) - F_t) ** 2)`. The sum runs over C, H and W, so `alpha` is
    tied to the number of channels and the resolution.

    Args:
        student_channels, teacher_channels: C of the feature maps; see `FeatureLoss`.
        alpha: weight of the loss.
        mask_ratio: share of the cells set to zero, in [0, 1).

    Raises:
        MtpdError: a setting out of range.
    """

    scale_settings = ('alpha',)

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        alpha: float = 2e-5,
        mask_ratio: float = 0.65,
    ):
        super().__init__(student_channels, teacher_channels)
        if not 0 <= mask_ratio < 1:
            raise MtpdError(f'MGD: mask_ratio must lie in [0, 1), not {mask_ratio}')
        check_settings('MGD', alpha=alpha)
        self.alpha, self.mask_ratio = alpha, mask_ratio
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )

    def compare(self, student: Tensor, teacher: Tensor, gt_bboxes, img_metas) -> Tensor:
        n, _, h, w = student.shape
        # Drawn where the feature lives: a mask from the CPU costs a transfer a level and update.
        mask = torch.rand((n, 1, h, w), device=student.device) >= self.mask_ratio
        generated = self.generation(student * mask.to(student.dtype))
        return self.alpha / n * (as_float32(generated) - teacher).pow(2).sum()
