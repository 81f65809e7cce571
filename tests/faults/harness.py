"""Kills a tiny run at random moments, repeats the same command, and compares its end bit by bit.

    python tests/faults/harness.py --kills 20 --seed 1 --table faults.txt

Signals go to the runner (`mtpd run`), its kernel, a data worker or the training (`mtpd train`). A power cut kills all
processes and truncates what was written last. After each: nobody is left 5 seconds later, and status.json is true.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from mtpd.holding import alive
from mtpd.paths import ROOT

RECIPE = """
_base_ = {base!r}
name = 'faults'
teachers = dict(
    r101=dict(config={config!r}, checkpoint='{teachers}/r101/model.pth'),
    rx101=dict(config={config!r}, checkpoint='{teachers}/rx101/model.pth', init=None),
)
student = dict(config={config!r})
arms = dict(_delete_=True, progressive=dict(label='both', teachers=['r101', 'rx101']))
"""
OPTIONS = (
    'data.scenes.train=32 data.scenes.val=8 schedule.batch_size=4 schedule.baseline=60 schedule.arm=80 '
    'schedule.checkpoint_interval=8 schedule.log_interval=8 schedule.eval_interval=0 image.flip=0.5 '
    'runtime.workers=1 runtime.threads=1 runtime.device=cpu data.cache={cache}'
)
CASES = [  # what is hit, and by what
    *(('runner', name) for name in ('SIGKILL', 'SIGTERM', 'SIGINT')),
    *(('kernel', name) for name in ('SIGKILL', 'SIGTERM')),
    ('data worker', 'SIGKILL'),
    *(('training', name) for name in ('SIGKILL', 'SIGTERM', 'SIGINT')),
    ('runner', 'power cut'),
    ('training', 'power cut'),
]
COMPARED = ('detectors/student/model.pth', 'detectors/*/metrics.json')
COMPARED += ('detectors/student/latest.pth', 'stages/*/*/latest.pth')
COMPARED += ('stages/*/*/student.pth', 'stages/*/*/metrics.json')


@dataclass
class Fault:
    """One row of the table."""

    moment: float  # seconds after the command's start
    during: str
    target: str
    signal: str
    code: int
    left: int  # processes 5 seconds after its end
    status: str  # as it should be, or what it said
    identical: str = 'not ended'

    @property
    def right(self) -> bool:
        return (self.left, self.status, self.identical) == (0, 'true', 'yes')


class Harness:
    """A folder with a recipe, the reference run and the run that is hit."""

    def __init__(self, folder: Path, seed: int, echo=print):
        self.folder, self.random, self.echo = folder, random.Random(seed), echo
        base = ROOT / 'configs/mini/retinanet_r50__r101_rx101.py'
        config = str(ROOT / 'configs/_base_/models/pocket_retinanet.py')
        text = RECIPE.format(base=str(base), config=config, teachers=base.parent / 'teachers')
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe = folder / 'faults.py'
        self.recipe.write_text(text)
        self.whole, self.hit = folder / 'whole', folder / 'hit'

    def command(self, verb: str, run: Path) -> list[str]:
        stage = ['--arm', 'progressive', '--stage', '2'] if verb == 'train' else []
        options = OPTIONS.format(cache=self.folder / 'data')
        where = ['--work-dir', str(run), '--cfg-options', options]
        return [sys.executable, '-m', 'mtpd.cli', verb, str(self.recipe), *where, *stage]

    def start(self, verb: str, run: Path) -> subprocess.Popen:
        path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': path}
        log = (self.folder / f'{run.name}.log').open('ab')
        return subprocess.Popen(
            self.command(verb, run),
            cwd=ROOT,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def reference(self) -> float:
        """The uninterrupted run, unless it is in the folder; returns its seconds."""
        began = time.monotonic()
        if self._results(self.whole):
            return 0.0
        if code := self.start('run', self.whole).wait():
            raise RuntimeError(f'the reference failed ({code}): {self.folder / "whole.log"}')
        return time.monotonic() - began

    def faults(self, kills: int, longest: float) -> list[Fault]:
        """Hits runs until there were `kills` hits and the last run ended; every case before any comes again."""
        rows: list[Fault] = []
        open_rows: list[Fault] = []
        cases: list = []
        while len(rows) < kills or open_rows:
            if len(rows) < kills and not cases:
                cases = self.random.sample(CASES, len(CASES))
            target, name = cases.pop() if len(rows) < kills else ('', '')
            found = self.strike(target, name, longest)
            if found is None:
                same = self.compare()
                for row in open_rows:
                    row.identical = same
                self.echo(f'ended, identical: {same}')
                open_rows = []
                shutil.rmtree(self.hit)
                if target:
                    cases.append((target, name))
                continue
            rows.append(found)
            open_rows.append(found)
            self.echo(f'{len(rows):3} {found}')
        return rows

    def strike(self, target: str, name: str, longest: float) -> Fault | None:
        """Starts the command and hits it; None where it ended by itself, and the run is complete."""
        verb = 'train' if target == 'training' else 'run'
        process = self.start(verb, self.hit)
        began = time.monotonic()
        moment = self.random.uniform(1, longest) if target else float('inf')
        while process.poll() is None and time.monotonic() - began < moment:
            time.sleep(0.05)
        victim = None
        while process.poll() is None and not (victim := self.victim(process, target)):
            time.sleep(0.02)  # no kernel, no data worker at this moment
        if victim is None:
            if process.returncode:
                raise RuntimeError(f'{verb} failed ({process.returncode}): {self.folder}/hit.log')
            # A finished `mtpd train` leaves the rest of the run to do.
            return None if verb == 'run' else self.strike('runner', name, longest)
        family = _family(process)
        moment, during = time.monotonic() - began, self.during()
        if name == 'power cut':
            for member in family:
                _send(member, signal.SIGKILL)
        else:
            _send(victim, signal.Signals[name])
        family |= _family(process)
        code = process.wait(120)
        row = Fault(round(moment, 1), during, target, name, code, _left(family), '')
        row.status = self.status(process.pid, row)
        if name == 'power cut':
            self.truncate()
        return row

    def victim(self, process: subprocess.Popen, target: str) -> psutil.Process | None:
        if target in ('runner', 'training'):
            return psutil.Process(process.pid)
        for member in _family(process):
            try:
                kernel = 'ipykernel_launcher' in ' '.join(member.cmdline())
                parent = member.parent()
                worker = parent and parent.pid != process.pid and kernel
                if target == 'kernel' and kernel and not worker:
                    return member
                # Forked, so with its kernel's command line, as a program in its first moment.
                if target == 'data worker' and worker and _age(member) > 0.5:
                    return member
            except psutil.Error:
                continue
        return None

    def during(self) -> str:
        """What status.json says is at work."""
        try:
            found = json.loads((self.hit / 'status.json').read_text())
        except (OSError, ValueError):
            return 'start'
        running = [s['name'] for s in found.get('steps', ()) if s['state'] == 'running']
        return ' '.join(running) or found['command'].split()[1]

    def status(self, pid: int, row: Fault) -> str:
        """'true', or what is wrong in status.json after a hit."""
        try:
            found = json.loads((self.hit / 'status.json').read_text())
        except FileNotFoundError:
            found = {}
        state = found.get('state')
        if found.get('pid') != pid:  # hit before the command had begun its work
            return 'true' if state != 'running' or not alive(found) else f'pid {found["pid"]}'
        if row.code == -signal.SIGKILL:
            return 'true' if state == 'running' and not alive(found) else f'{state} after a kill'
        if row.code in (130, 143):
            wanted = {130: 'SIGINT', 143: 'SIGTERM'}[row.code]
            right = (state, found['signal'], found['exit_code']) == (
                'interrupted',
                wanted,
                row.code,
            )
            return 'true' if right and row.signal == wanted else f'{state} {found["signal"]}'
        if state == 'done' and row.code == 0:  # hit at its very end
            return 'true'
        right = state == 'failed' and found['exit_code'] == row.code and found['reason']
        return 'true' if right else f'{state}, exit code {row.code}'

    def truncate(self) -> None:
        """Cuts the newest checkpoint of a training at work, and all that was being written, to a random length."""
        files = [
            path
            for path in self.hit.rglob('latest.pth')
            if not any(path.with_name(name).is_file() for name in ('model.pth', 'student.pth'))
        ]
        files = sorted(files, key=lambda path: path.stat().st_mtime)[-1:]
        files += [path for path in self.hit.rglob('*.part') if path.is_file()]
        for path in files:
            os.truncate(path, self.random.randrange(path.stat().st_size + 1))

    def compare(self) -> str:
        """'yes', or the files that differ from the reference's."""
        names = [
            str(path.relative_to(self.whole))
            for pattern in COMPARED
            for path in sorted(self.whole.glob(pattern))
        ]
        differ = [n for n in names if not _same(self.whole / n, self.hit / n)]
        shown = [self._results(run) for run in (self.whole, self.hit)]
        differ += ['report'] * (shown[0] != shown[1] or not shown[0])
        return 'yes' if names and not differ else f'no: {", ".join(differ)}'

    @staticmethod
    def _results(run: Path) -> list:
        """The report's numbers that don't tell the time."""
        if not (run / 'report/index.html').is_file():
            return []
        rows = json.loads((run / 'results.json').read_text())['results']
        return [{k: v for k, v in row.items() if k != 'ms_per_image'} for row in rows]


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _family(process: subprocess.Popen) -> set[psutil.Process]:
    try:
        first = psutil.Process(process.pid)
        return {first, *first.children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def _age(process: psutil.Process) -> float:
    return time.time() - process.create_time()


def _send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _left(family: set[psutil.Process]) -> int:
    _, still = psutil.wait_procs(family, timeout=5)
    return sum(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in still)


def table(rows: list[Fault]) -> str:
    head = ('no', 'moment', 'during', 'signal', 'target', 'exit', 'left', 'status', 'identical')
    lines = [head]
    for number, row in enumerate(rows, 1):
        found = asdict(row)
        cells = [found[key] for key in ('during', 'signal', 'target', 'code', 'left', 'status')]
        lines.append((number, f'{row.moment:.1f} s', *cells, row.identical))
    widths = [max(len(str(line[k])) for line in lines) for k in range(len(head))]
    return '\n'.join(
        '  '.join(f'{cell!s:{width}}' for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--longest', type=float, default=25, help='latest moment, in seconds')
    parser.add_argument('--folder', type=Path, help='default: a temporary one')
    parser.add_argument('--table', type=Path, help='a file for the table')
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        harness = Harness(asked.folder or Path(temporary), asked.seed)
        print(f'reference: {harness.reference():.0f} s', flush=True)
        rows = harness.faults(asked.kills, asked.longest)
    right = sum(row.right for row in rows)
    text = f'seed {asked.seed}: {right} of {len(rows)} right\n{table(rows)}\n'
    print(text)
    if asked.table:
        asked.table.write_text(text)
    sys.exit(right != len(rows))


if __name__ == '__main__':
    main()
