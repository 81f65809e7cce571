"""Distillation losses between one student feature map and one teacher feature map, built from a recipe's settings."""

from __future__ import annotations

from .base import DISTILL_LOSSES, FeatureLoss, build_distill_loss, build_losses
from .cwd import CWD
from .fgd import FGD
from .mgd import MGD
from .mse import FeatureMSE
from .pkd import PKD

__all__ = [
    'CWD',
    'DISTILL_LOSSES',
    'FGD',
    'MGD',
    'PKD',
    'FeatureLoss',
    'FeatureMSE',
    'build_distill_loss',
    'build_losses',
]
