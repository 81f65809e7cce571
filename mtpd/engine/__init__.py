from ..runtime import compat  # noqa: F401  (before mmcv)
