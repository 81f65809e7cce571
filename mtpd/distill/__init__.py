"""Distillation: student, teacher, losses, adaptation costs, sequences of teachers."""

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
from ..utils.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, {'.distiller': ('Distiller',)})
