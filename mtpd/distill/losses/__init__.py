"""Distillation losses between one student feature map and one teacher feature map, built from a recipe's settings.

Each module here but `base` is a loss. All are imported, and their classes are this package's attributes.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from .base import DISTILL_LOSSES, FeatureLoss, build_distill_loss, build_losses

for _module in iter_modules(__path__):
    import_module(f'{__name__}.{_module.name}')
globals().update(DISTILL_LOSSES.module_dict)

__all__ = [
    'DISTILL_LOSSES',
    'FeatureLoss',
    'build_distill_loss',
    'build_losses',
    *DISTILL_LOSSES.module_dict,
]
