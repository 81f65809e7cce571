"""Progress bars with the time left, and how much mmdet and mmcv log."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm

BAR_DELAY = 5  # seconds before a bar appears
# Set by `mtpd -v`. An environment variable: the kernels and processes that a command starts inherit it.
VERBOSE_VARIABLE = 'MTPD_VERBOSE'


def progress_bar(
    description: str, items: Iterable | None = None, total: int | None = None, unit: str = ''
) -> tqdm:
    """tqdm's bar on standard error, apart from the numbers on standard output; it disappears at the end.

    In a log or a notebook's output, which is no terminal, it is renewed every ten seconds only.
    """
    interval = 0.5 if sys.stderr.isatty() else 10
    return tqdm(
        items, description, total, leave=False, unit=unit, delay=BAR_DELAY, mininterval=interval
    )


def log_level() -> str:
    """The level of mmdet's and mmcv's logs: 'INFO' after `mtpd -v`, else 'WARNING'."""
    return 'INFO' if os.environ.get(VERBOSE_VARIABLE, '') not in ('', '0') else 'WARNING'
