"""SIGINT and SIGTERM during a training: obeyed at the update's end, after a checkpoint."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_asked: int | None = None
_before: dict = {}  # what the signals did before


def asked() -> bool:
    """Whether the training is to stop."""
    return _asked is not None


def stop() -> None:
    """Lets the signal do what it did before the training; where that returns, the training goes on."""
    global _asked
    number, _asked = _asked, None
    now = signal.signal(number, _before[number])
    try:
        signal.raise_signal(number)
    finally:
        signal.signal(number, now)


@contextlib.contextmanager
def at_an_updates_end(first: bool = True) -> Iterator[None]:
    """In the block a first signal is noted, for `asked`; a second one is obeyed at once.

    `first`: this is rank 0, which writes the checkpoint. The others don't obey: they end by losing it.
    """
    global _asked
    _asked = None
    with _handled(_note if first else signal.SIG_IGN) as before:
        _before.update(before)
        yield
    if asked():  # during the last update
        number, _asked = _asked, None
        signal.raise_signal(number)


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """In the block SIGTERM raises `Interrupted`; then it does what it did before."""
    try:
        with raised():
            yield
    except Interrupted as end:
        signal.raise_signal(end.number)
        raise


def raised():
    """In the block SIGTERM raises `Interrupted`."""
    return _handled(_raise, [signal.SIGTERM])


class Interrupted(KeyboardInterrupt):
    """A signal to end; `number` is the signal's."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def _handled(handler, numbers=SIGNALS) -> Iterator[dict]:
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


def _raise(number: int, frame: object) -> None:
    raise Interrupted(number)


def _note(number: int, frame: object) -> None:
    global _asked
    if asked():
        stop()
    _asked = number
