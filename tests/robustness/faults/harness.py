"""Kills tiny runs at random moments of every phase, repeats the same command, and compares their ends bit by bit.

    python tests/robustness/faults/harness.py --kills 20 --seed 1 --out results/faults.json

Signals go to the runner (`mtpd run`), its kernel, a data worker or the training (`mtpd train`). A power cut kills all
processes and truncates what was written last. After each: nobody is left 5 seconds later, and status.json is true.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import family
import table
from plan import Hit, deal, plan
from run_state import at_work, folders, status, wrong
from table import Fault
from tiny_run import TinyRun

IMPORTS = 1  # seconds in which a command is Python's own
ROUNDS = 4  # of runs for hits that their phase escaped


class Harness:
    """Hits a tiny run in a folder."""

    def __init__(self, folder: Path, seed: int, echo=print):
        self.tiny, self.random, self.echo = TinyRun(folder), random.Random(seed), echo
        self.hit, self.log, self.mark = self.tiny.hit, self.tiny.log, self.tiny.mark

    def reference(self) -> float:
        """The run that is not hit, unless it is there; returns its seconds."""
        seconds = self.tiny.reference()
        lengths = ', '.join(f'{name} {value:.1f}' for name, value in self.tiny.lengths.items())
        self.echo(f'reference: {seconds:.0f} s; seconds of its phases: {lengths}')
        return seconds

    def faults(self, kills: int) -> list[Fault]:
        """Runs with a few hits each, until there were `kills`, and one in every phase that was planned."""
        rows: list[Fault] = []
        runs, rounds = plan(kills, self.random), 1
        planned = {hit.phase for hits in runs for hit in hits}
        while runs and rounds <= ROUNDS:
            again: list[Hit] = []
            for hits in runs:
                new_rows, missed = self.run(hits, len({row.run for row in rows}) + 1, len(rows))
                rows += new_rows
                again += missed
            reached = {phase for row in rows for phase in row.during.split(', ')}
            escaped = [hit for hits in runs for hit in hits if hit.phase in planned - reached]
            sooner = [
                replace(hit, share=hit.share / 2) for hit in dict.fromkeys([*again, *escaped])
            ]
            runs, rounds = deal(sooner), rounds + 1
        return rows

    def run(self, hits: list[Hit], number: int, before: int) -> tuple[list[Fault], list[Hit]]:
        """One run, hit and started again until its end, and compared; its rows, and the hits not made."""
        shutil.rmtree(self.hit, ignore_errors=True)
        rows, missed = [], []
        for hit in hits:
            if row := self.strike(hit, number):
                rows.append(row)
                self.echo(f'{before + len(rows):3} {row}')
            else:
                missed.append(hit)
        process = self.tiny.start('run', self.hit)
        if process.wait(600) or status(self.hit)['state'] != 'done' or family.left(self.mark):
            raise RuntimeError(f'the last start did not end well: {self.log}')
        same = self.tiny.compare()
        for row in rows:
            row.identical = same
        self.echo(f'run {number} ended, identical: {same}')
        return rows, missed

    def strike(self, hit: Hit, number: int) -> Fault | None:
        """Starts the command and hits it in its phase, or at the phase's early end; None where it ended by itself."""
        process, began = self.tiny.start(hit.verb, self.hit), time.monotonic()
        output = self.log.stat().st_size
        victim = self.moment(process, hit)
        if victim is None:
            if process.wait():
                raise RuntimeError(f'{hit.verb} failed ({process.returncode}): {self.log}')
            return None
        moment, during = time.monotonic() - began, at_work(self.hit, process.pid)
        family.send(victim, hit.signal, self.mark)
        code = process.wait(120)
        left = family.left(self.mark)
        named = 'SIGKILL' if hit.signal == 'power cut' else hit.signal
        state = wrong(self.hit, process.pid, hit.target, named, code, during) or 'true'
        if hit.signal == 'power cut':
            self.truncate()
        with self.log.open(errors='replace') as log:
            log.seek(output)
            message = _message(log.read(), code)
        words = ', '.join(during) or 'between steps'
        row = (number, round(moment, 1), words, hit.signal, hit.target, code, left, state, message)
        return Fault(*row)

    def moment(self, process: subprocess.Popen, hit: Hit):
        """Waits for the hit's moment; its victim, or None where the command ended before there was one."""

        def until(reached) -> None:
            while process.poll() is None and not reached():
                time.sleep(0.03)

        def at() -> bool:
            return hit.phase in at_work(self.hit, process.pid)

        def victim():
            return family.victim(self.mark, process.pid, hit.target, self.random)

        length = self.tiny.lengths[hit.phase]
        until(at)
        if hit.target == 'data worker':
            until(victim)
            length = self.tiny.lengths[f'train {hit.phase}']
        shortest = IMPORTS if hit.phase == 'start' else 0
        due = time.monotonic() + shortest + hit.share * max(0, length - shortest)
        until(lambda: time.monotonic() > due or not at())
        hit_process = None
        while process.poll() is None and not (hit_process := victim()):
            time.sleep(0.02)
        return hit_process

    def truncate(self) -> None:
        """Cuts what a training wrote last, and all that was being written, to a random length."""
        files = []
        for _, place, final in folders(self.hit)[-1:]:
            if not final.is_file():
                files += [place / 'latest.pth', place / 'log.json']
            elif not (place / 'metrics.json').is_file():
                files.append(final)
        files += self.hit.rglob('*.part')
        for path in files:
            if path.is_file():
                os.truncate(path, self.random.randrange(path.stat().st_size + 1))


def _message(output: str, code: int) -> str:
    """Of a command's output: 'yes' where its end is a message, 'none' where it had no time for one or needs none."""
    if 'Traceback' in output:
        return 'a traceback'
    if code <= 0:
        return 'none'
    return 'yes' if '\nmtpd: ' in f'\n{output}' else 'nothing was said'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--folder', type=Path, help='default: a temporary one')
    parser.add_argument('--out', type=Path, help='a JSON file for the table')
    parser.add_argument('--table', type=Path, help='a text file for the table')
    asked, began = parser.parse_args(), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        harness = Harness(
            asked.folder or Path(temporary), asked.seed, lambda s: print(s, flush=True)
        )
        harness.reference()
        rows = harness.faults(asked.kills)
    text = f'seed {asked.seed}: {table.outcome(rows)}\n{table.text(rows)}\n'
    print(text)
    if asked.table:
        asked.table.write_text(text)
    if asked.out:
        command = f'python tests/robustness/faults/harness.py {shlex.join(sys.argv[1:])}'
        table.save(asked.out, rows, command, asked.seed, time.monotonic() - began)
    sys.exit(not all(row.right for row in rows))


if __name__ == '__main__':
    main()
