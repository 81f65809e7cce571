"""The processes of a command, known by a variable in their environment: whom to hit, and who is left."""

from __future__ import annotations

import contextlib
import random
import signal
import time

import psutil

MARK = 'MTPD_FAULTS'  # in the environment of a command that is hit, and so of all its processes
YOUNG = 0.5  # seconds in which a forked worker is about to become one


def family(mark: str) -> list[psutil.Process]:
    """All processes of the command at work, orphans too."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            zombie = process.status() == psutil.STATUS_ZOMBIE
            if not zombie and process.environ().get(MARK) == mark:
                processes.append(process)
    return processes


def victim(mark: str, first: int, target: str, rng: random.Random) -> psutil.Process | None:
    """The process to hit, if there is one now; `first` is the command's own."""
    if target in ('runner', 'training'):
        return psutil.Process(first)
    processes = []
    for process in family(mark):
        with contextlib.suppress(psutil.Error):
            if 'ipykernel_launcher' not in ' '.join(process.cmdline()):
                continue
            # A worker is forked, so it has its kernel's command line.
            kernel = process.ppid() == first
            old = time.time() - process.create_time() > YOUNG
            if (target == 'kernel' and kernel) or (target == 'data worker' and not kernel and old):
                processes.append(process)
    return rng.choice(sorted(processes, key=lambda process: process.pid)) if processes else None


def send(process: psutil.Process, name: str, mark: str) -> None:
    """A signal to one process; a power cut to all."""
    members = family(mark) if name == 'power cut' else [process]
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGKILL if name == 'power cut' else signal.Signals[name])


def left(mark: str, seconds: float = 5) -> int:
    """How many processes are there after that time."""
    deadline = time.monotonic() + seconds
    while (members := family(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return len(members)
