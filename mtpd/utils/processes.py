"""Signals that end a training after its update or raise an exception; processes that end with their parent."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .paths import ROOT

# A training, which writes a checkpoint before it obeys.

_requested: int | None = None  # the signal that asks for the stop
_previous_handlers: dict = {}  # signal -> what handled it before `stop_after_update`


@contextlib.contextmanager
def stop_after_update(writes_checkpoint: bool = True) -> Iterator[None]:
    """In the block SIGINT and SIGTERM only set `stop_requested`; the loop in it calls `stop_now` after an update.

    A second signal is obeyed at once. One that the loop did not see is obeyed after the block.

    Args:
        writes_checkpoint: False ignores the signals, for processes that end because rank 0, which writes, is gone.
    """
    global _requested
    _requested = None
    handler = _request_stop if writes_checkpoint else signal.SIG_IGN
    with _handle_signals(handler, signal.SIGINT, signal.SIGTERM) as previous:
        _previous_handlers.update(previous)
        yield
    if stop_requested():  # during the last update
        number, _requested = _requested, None
        signal.raise_signal(number)


def stop_requested() -> bool:
    """Whether a signal asks the training to stop."""
    return _requested is not None


def stop_now() -> None:
    """Has the signal do what it did before `stop_after_update`. Where that returns, the training goes on."""
    global _requested
    number, _requested = _requested, None
    handler = signal.signal(number, _previous_handlers[number])
    try:
        signal.raise_signal(number)
    finally:
        signal.signal(number, handler)


def _request_stop(number: int, frame: object) -> None:
    global _requested
    if stop_requested():
        stop_now()
    _requested = number


# SIGTERM as an exception, so that `finally` and `except KeyboardInterrupt` see it as they see Ctrl-C.


class Interrupted(KeyboardInterrupt):
    """A signal asks the process to end; `number` is the signal's, the text its name."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """In the block SIGTERM raises `Interrupted`; where that leaves the block, the signal does what it did before."""
    usual = sys.unraisablehook
    sys.unraisablehook = functools.partial(_repeat_dropped_signal, usual)
    try:
        with _handle_signals(_raise_interrupted, signal.SIGTERM):
            yield
    except Interrupted as interruption:
        signal.raise_signal(interruption.number)
        raise
    finally:
        sys.unraisablehook = usual


def _repeat_dropped_signal(usual: Callable, unraisable: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised in a destructor. A signal that came then comes again, a moment later."""
    error = unraisable.exc_value
    if not isinstance(error, KeyboardInterrupt):
        usual(unraisable)
        return
    number = error.number if isinstance(error, Interrupted) else signal.SIGINT
    again = threading.Timer(0.05, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _raise_interrupted(number: int, frame: object) -> None:
    raise Interrupted(number)


@contextlib.contextmanager
def _handle_signals(handler: Callable | signal.Handlers, *numbers: int) -> Iterator[dict]:
    """In the block `handler` handles the signals; yields what handled them before.

    Left alone are signals that are ignored, and all of them outside the main thread, where Python sets no handlers.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if signal.getsignal(number) not in (None, signal.SIG_IGN):
                previous[number] = signal.signal(number, handler)
    try:
        yield previous
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


# Processes that end with the one that started them, however that one ended.

_PR_SET_PDEATHSIG = 1
# Loaded here: `end_with_parent` runs between fork and exec, where little may be done.
_libc = ctypes.CDLL(None) if sys.platform == 'linux' else None


def end_with_parent() -> None:
    """Ends this process when its parent ends: on Linux by the kernel and at once, elsewhere within a second."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()


# For `subprocess.Popen` of a program that can't call `end_with_parent`.
END_WITH_PARENT = {'preexec_fn': end_with_parent} if _libc is not None else {}


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


# Processes that import what this one does.


def same_imports() -> dict[str, str]:
    """Environment variables with which a new Python process imports the packages that this one does.

    By itself Python looks into the working directory first, for `-c` and for `-m`. A checkout of mmdet that is the
    working directory would go before the installed mmdet.
    """
    here = str(Path.cwd())
    working_directory = here if {'', here} & set(sys.path) else None
    folders = [str(ROOT), working_directory, os.environ.get('PYTHONPATH')]
    return {'PYTHONPATH': os.pathsep.join(filter(None, folders)), 'PYTHONSAFEPATH': '1'}
