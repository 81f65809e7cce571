"""Distillation: student, teacher, losses, adaptation costs, sequences of teachers."""

from __future__ import annotations

from typing import Any

from ..runtime import compat  # noqa: F401  (before mmcv)

__all__ = ['Distiller']


def __getattr__(name: str) -> Any:
    """`Distiller` on first use: it takes mmdet, which sequences and adaptation costs do without."""
    if name == 'Distiller':
        from .distiller import Distiller

        return Distiller
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
