"""mmcv 1.7, mmdet 2.28 and today's torch made to work together; importing any module of it applies `compat`."""

from . import compat  # noqa: F401
