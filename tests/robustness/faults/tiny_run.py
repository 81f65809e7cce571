"""The tiny run that is hit, the one beside it that is not, and how their ends compare."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import family
from run_state import at_work, folders

from mtpd.analysis.run import MEASURED_TIMES
from mtpd.utils.paths import ROOT

RECIPE = """
_base_ = {base!r}
name = 'faults'
teachers = dict(
    r101=dict(config={config!r}, checkpoint='{teachers}/r101/model.pth'),
    rx101=dict(config={config!r}, checkpoint='{teachers}/rx101/model.pth', init=None),
)
student = dict(config={config!r}, checkpoint=None)
arms = dict(_delete_=True, progressive=dict(label='both', teachers=['r101', 'rx101']))
"""
OPTIONS = (
    'data.scenes.train=32 data.scenes.val=8 schedule.batch_size=4 schedule.baseline=60 schedule.arm=80 '
    'schedule.checkpoint_interval=8 schedule.log_interval=8 schedule.eval_interval=0 image.flip=0.5 '
    'runtime.workers=1 runtime.threads=1 runtime.device=cpu data.cache={cache}'
)
COMPARED = ('detectors/student/model.pth', 'detectors/*/metrics.json')
COMPARED += ('detectors/student/latest.pth', 'stages/*/*/latest.pth')
COMPARED += ('stages/*/*/student.pth', 'stages/*/*/metrics.json')


class TinyRun:
    """A folder with a recipe, the reference run `whole` and the run `hit`, and their logs."""

    def __init__(self, folder: Path):
        base = ROOT / 'configs/mini/retinanet_r50__r101_rx101.py'
        config = str(ROOT / 'configs/_base_/models/pocket_retinanet.py')
        text = RECIPE.format(base=str(base), config=config, teachers=base.parent / 'teachers')
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.recipe, self.mark = folder, folder / 'faults.py', str(folder)
        self.recipe.write_text(text)
        self.whole, self.hit, self.log = folder / 'whole', folder / 'hit', folder / 'hit.log'
        self.lengths: dict[str, float] = {}  # of the phases, in seconds

    def command(self, verb: str, run: Path) -> list[str]:
        stage = ['--arm', 'progressive', '--stage', '2'] if verb == 'train' else []
        options = OPTIONS.format(cache=self.folder / 'data')
        where = ['--work-dir', str(run), '--cfg-options', options]
        return [sys.executable, '-m', 'mtpd.cli', verb, str(self.recipe), *where, *stage]

    def start(self, verb: str, run: Path) -> subprocess.Popen:
        path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
        variables = {'OMP_NUM_THREADS': '1', 'PYTHONPATH': path, family.MARK: self.mark}
        with self.log.with_stem(run.name).open('ab') as log:
            return subprocess.Popen(
                self.command(verb, run),
                cwd=ROOT,
                env=os.environ | variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def reference(self) -> float:
        """The uninterrupted run, unless it is in the folder; returns its seconds, and keeps those of its phases."""
        cache, began = self.folder / 'lengths.json', time.monotonic()
        if not cache.is_file():
            seen: dict[str, list[float]] = {}
            process = self.start('run', self.whole)
            while process.poll() is None:
                for phase in at_work(self.whole, process.pid):
                    seen.setdefault(phase, []).append(time.monotonic())
                time.sleep(0.02)
            if process.returncode:
                raise RuntimeError(f'the reference failed: {self.folder}/whole.log')
            lengths = {phase: times[-1] - times[0] for phase, times in seen.items()}
            for name, place, _ in folders(self.whole):  # without a kernel's start
                trained = json.loads((place / 'training.json').read_text())
                lengths[f'train {name}'] = trained['seconds']
            cache.write_text(json.dumps(lengths))
        self.lengths = json.loads(cache.read_text())
        return time.monotonic() - began

    def compare(self) -> str:
        """'yes', or the files that differ from the reference's."""
        names = [
            str(path.relative_to(self.whole))
            for pattern in COMPARED
            for path in sorted(self.whole.glob(pattern))
        ]
        differ = [n for n in names if not _same(self.whole / n, self.hit / n)]
        shown = [_results(run) for run in (self.whole, self.hit)]
        differ += ['report'] * (shown[0] != shown[1] or not shown[0])
        return 'yes' if names and not differ else f'no: {", ".join(differ)}'


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _results(run: Path) -> list:
    """The report's numbers that don't tell the time."""
    if not (run / 'report/index.html').is_file():
        return []
    rows = json.loads((run / 'results.json').read_text())['results']
    return [{k: v for k, v in row.items() if k not in MEASURED_TIMES} for row in rows]
