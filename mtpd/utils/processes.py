"""SIGINT and SIGTERM during a training: obeyed at the update's end, after a checkpoint."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_requested: int | None = None
_previous_handlers: dict = {}  # what the signals did before


def stop_requested() -> bool:
    """Whether the training is to stop."""
    return _requested is not None


def stop_now() -> None:
    """Lets the signal do what it did before the training; where that returns, the training goes on."""
    global _requested
    number, _requested = _requested, None
    now = signal.signal(number, _previous_handlers[number])
    try:
        signal.raise_signal(number)
    finally:
        signal.signal(number, now)


@contextlib.contextmanager
def stop_after_update(first: bool = True) -> Iterator[None]:
    """In the block a first signal is noted, for `asked`; a second one is obeyed at once.

    `first`: this is rank 0, which writes the checkpoint. The others don't obey: they end by losing it.
    """
    global _requested
    _requested = None
    with _handle_signals(_request_stop if first else signal.SIG_IGN) as before:
        _previous_handlers.update(before)
        yield
    if stop_requested():  # during the last update
        number, _requested = _requested, None
        signal.raise_signal(number)


@contextlib.contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """In the block SIGTERM raises `Interrupted`; then it does what it did before."""
    try:
        with sigterm_raises():
            yield
    except Interrupted as end:
        signal.raise_signal(end.number)
        raise


def sigterm_raises():
    """In the block SIGTERM raises `Interrupted`."""
    return _handle_signals(_raise_interrupted, [signal.SIGTERM])


class Interrupted(KeyboardInterrupt):
    """A signal to end; `number` is the signal's."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def _handle_signals(handler, numbers=SIGNALS) -> Iterator[dict]:
    """Has signals handled, where Python lets us (in the main thread) and they aren't ignored; gives what did it before."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        known = {number: signal.getsignal(number) for number in numbers}
        before = {n: old for n, old in known.items() if old not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _raise_interrupted(number: int, frame: object) -> None:
    raise Interrupted(number)


def _request_stop(number: int, frame: object) -> None:
    global _requested
    if stop_requested():
        stop_now()
    _requested = number


# Processes that end with the one that started them, however that ended.


_PR_SET_PDEATHSIG = 1
# Loaded here: `end_with_parent` runs between fork and exec, where little may be done.
_libc = ctypes.CDLL(None) if sys.platform == 'linux' else None


def end_with_parent() -> None:
    """Ends this process when its parent ends: on Linux by the kernel and at once, elsewhere within a second."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()


# For `subprocess.Popen`, of a program that does not know of us.
END_WITH_PARENT = {'preexec_fn': end_with_parent} if _libc is not None else {}


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
