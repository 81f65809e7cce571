"""Progress with the time left, of whatever takes more than a few seconds; and how much is told beside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm

BAR_DELAY = 5  # seconds before a bar appears
VERBOSE_VARIABLE = (
    'MTPD_VERBOSE'  # of `mtpd -v`; what a command starts, notebooks' kernels among it, has it, too
)


def progress_bar(
    what: str, items: Iterable | None = None, total: int | None = None, unit: str = ''
) -> tqdm:
    """tqdm's bar on standard error, which numbers on standard output don't mix with; gone when it is through.

    Where nobody watches, in a log or a notebook's output, it is renewed every ten seconds only.
    """
    slow = 0.5 if sys.stderr.isatty() else 10
    return tqdm(items, what, total, leave=False, unit=unit, delay=BAR_DELAY, mininterval=slow)


def log_level() -> str:
    """Of mmdet's and mmcv's logs."""
    return 'INFO' if os.environ.get(VERBOSE_VARIABLE, '') not in ('', '0') else 'WARNING'
