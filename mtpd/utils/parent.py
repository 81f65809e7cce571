"""Processes that end with the one that started them, however that ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
# Loaded here: `end_with_parent` runs between fork and exec, where little may be done.
_libc = ctypes.CDLL(None) if sys.platform == 'linux' else None


def end_with_parent() -> None:
    """Ends this process when its parent ends: on Linux by the kernel and at once, elsewhere within a second."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


# For `subprocess.Popen`, of a program that does not know of us.
FOLLOWS = {'preexec_fn': end_with_parent} if _libc is not None else {}


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
