"""Channel-wise distillation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .base import DISTILL_LOSSES, FeatureLoss, check_settings


@DISTILL_LOSSES.register_module()
class CWD(FeatureLoss):
    """Channel-wise knowledge distillation (Shu et al., ICCV 2021, arXiv 2011.13256).

    Each channel is a distribution over the cells, `p = softmax over H, W of F / tau`, and the
    student's has to match the teacher's:
    `weight * tau ** 2 / (N * C) * sum(p_t * (log p_t - log p_s))`.

    Args:
        student_channels, teacher_channels: C of the feature maps; see `FeatureLoss`.
        tau: temperature, above 0: the higher, the more the weak cells count.
        weight: weight of the loss.

    Raises:
        MtpdError: a setting out of range.
    """

    def __init__(
        self, student_channels: int, teacher_channels: int, tau: float = 1.0, weight: float = 5.0
    ):
        super().__init__(student_channels, teacher_channels)
        check_settings('CWD', {'tau': tau}, weight=weight)
        self.tau, self.weight = tau, weight

    def compare(self, student: Tensor, teacher: Tensor, gt_bboxes, img_metas) -> Tensor:
        n, c = student.shape[:2]
        log_s, log_t = (F.log_softmax(f.flatten(2) / self.tau, dim=2) for f in (student, teacher))
        divergence = F.kl_div(log_s, log_t, reduction='sum', log_target=True)
        return self.weight * self.tau**2 / (n * c) * divergence
