"""Independent chains of steps side by side, on threads that each wait for a notebook's kernel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TextIO

from ..utils.machine import cores
from .notebooks import end_kernels


class Lanes:
    """Runs chains of steps, up to `jobs` chains at a time.

    After a failure what runs is ended in peace and nothing new begins; Ctrl-C ends the kernels, a training after its update.
    """

    def __init__(self, jobs: int):
        self.jobs = jobs
        self.interrupted = False

    def run(self, chains: Sequence[Sequence], work: Callable[[Any, dict, str], None]) -> None:
        """Calls `work(step, env, mark)` for every step; a chain's steps one after the other.

        `env` shares the cores out among the kernels at work, `mark` tells their output apart.
        """
        side_by_side = min(self.jobs, len(chains))
        if side_by_side <= 1:
            for step in (step for chain in chains for step in chain):
                work(step, {}, '')
            return
        env = {'OMP_NUM_THREADS': str(max(1, cores() // side_by_side))}
        failed = threading.Event()

        def follow(chain: Sequence) -> None:
            for step in chain:
                if failed.is_set():
                    return
                try:
                    work(step, env, f'{step.short}: ')
                except BaseException:
                    failed.set()
                    raise

        with ThreadPoolExecutor(side_by_side) as pool:
            futures = [pool.submit(follow, chain) for chain in chains]
            try:
                wait(futures)
            except KeyboardInterrupt:
                self.interrupted = True
                failed.set()
                end_kernels()
                raise
        for future in futures:
            future.result()


class Marked:
    """A text stream that writes whole lines to another, each with a mark before it."""

    def __init__(self, stream: TextIO, mark: str):
        self.stream, self.mark, self.rest = stream, mark, ''

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split('\n')
        self.stream.write(''.join(f'{self.mark}{line}\n' for line in lines))

    def flush(self) -> None:
        self.stream.flush()
