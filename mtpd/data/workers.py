"""Data workers: how many there are, and how one ends, told in words: the loop it feeds ends with torch's RuntimeError."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from typing import TypeVar

import cv2

from ..errors import MtpdError
from ..utils.machine import cores
from ..utils.parent import end_with_parent

T = TypeVar('T')
_DEAD = re.compile(
    r'DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:is killed by signal: (?P<signal>.+?)\. |exited)'
)
MOST = 8  # load 16 images of COCO, about half a second's work for one, in less than a GPU's update takes
PATIENCE = 1  # seconds for a worker's end, after its connection's
_OFTEN = {
    'SIGKILL': ' (often: out of memory)',
    'SIGBUS': ' (often: shared memory, /dev/shm, is full)',
}


def count(asked: int | str, device: str, sharing: int, training: bool = True) -> int:
    """How many a process has: as `asked`, or for 'auto' by the device and the cores. What is computed is the same.

    On a GPU all cores but one, up to `MOST`; on the CPU, which computes on the same cores, one in training.

    Args:
        asked: a recipe's `runtime.workers`.
        sharing: how many processes share the cores of this machine.
    """
    if not isinstance(asked, str):
        return asked
    if device == 'cpu':
        return int(training)
    return min(MOST, max(2, cores() // sharing - 1))


def begin_worker(_: int) -> None:
    """What a worker does first."""
    os.setpgid(0, 0)  # Ctrl-C is for the main process; a training ends at an update's end
    end_with_parent()
    cv2.setNumThreads(0)  # the others have the other cores


def told(work: Callable[[], T]) -> T:
    """What `work` returns; raises MtpdError where a data worker was killed or ended by itself meanwhile.

    torch raises in a signal handler, so anywhere: also on the way out of `work`, which is why this is no context manager,
    whose own `__exit__` would be outside of what it guards.
    """
    try:
        try:
            return work()
        except (ConnectionError, EOFError, FileNotFoundError):
            # A dying worker's connection may break before torch knows, which then raises here.
            time.sleep(PATIENCE)
            raise
    except RuntimeError as error:
        # By its start: what a worker raises in a dataset holds torch's words in the middle, and is no death.
        if not (dead := _DEAD.match(str(error))):
            raise
        # The loop that waits for data raises a second error from the signal handler's.
        dead = _DEAD.match(str(error.__cause__)) or dead
        raise MtpdError(
            f'a data worker {_end(dead["signal"])}. Fewer of them take less memory: runtime.workers (an mmdet config: '
            'data.workers_per_gpu). The same command goes on; a training, from its newest checkpoint.'
        ) from error


def _end(words: str | None) -> str:
    if not words:
        return 'ended unexpectedly'
    names = {signal.strsignal(number): signal.Signals(number).name for number in signal.Signals}
    name = names.get(words, words)
    return f'was ended by signal {name}{_OFTEN.get(name, "")}'
