"""The targets on a GPU beside what `run.py` measured; measured JSON goes to results/."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

COCO_1X = 12 * 117_266  # images of a 1x schedule on COCO 2017


class Target(NamedTuple):
    """A line of the verdict; `value` is None where it was not measured."""

    what: str
    target: str
    value: float | None
    shown: str
    reached: Callable[[float], bool] | None = None  # None: no target

    def cells(self) -> tuple[str, str, str, str]:
        if self.value is None:
            return self.what, self.target, '-', 'not measured'
        met = '' if self.reached is None else 'met' if self.reached(self.value) else 'NOT MET'
        return self.what, self.target, self.shown.format(self.value), met


def read(folder: Path, name: str) -> dict:
    path = folder / name
    return json.loads(path.read_text()) if path.is_file() else {}


def collect(folder: Path, results: Path) -> list[Path]:
    """Copies what there is, with peak memory put beside the times of the same updates; where to."""
    copies = []
    peaks = read(folder, 'gpu_peak.json').get('rows', {})
    for path in sorted(folder.glob('gpu_distill_step_*.json')):
        table = json.loads(path.read_text())
        for kind, row in peaks.get(path.stem.removeprefix('gpu_distill_step_'), {}).items():
            if kind in table['rows'] and 'peak_mib' in row:
                table['rows'][kind]['peak_mib'] = row['peak_mib']
        path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + '\n')
    parts = [json.loads(path.read_text()) for path in sorted((folder / 'full_size').glob('*.json'))]
    if parts:
        merged = parts[0] | {'rows': [row for part in parts for row in part['rows']]}
        copies.append(results / 'full_size_gpu.json')
        copies[-1].write_text(json.dumps(merged, indent=2) + '\n')
    for path in sorted(folder.glob('gpu_*')):
        if path.stat().st_size:
            copies.append(results / 'bench' / path.name)
            shutil.copyfile(path, copies[-1])
    return copies


def targets(folder: Path) -> list[Target]:
    lines = []
    steps = {
        name: read(folder, f'gpu_distill_step_{name}.json').get('rows', {})
        for name in ('retinanet', 'mask_rcnn', 'reppoints', 'retinanet_r101')
    }
    for name, least in (('retinanet', 3.0), ('mask_rcnn', 2.5), ('reppoints', 2.5)):
        ours, original = (steps[name].get(kind, {}) for kind in ('default', 'original'))
        ratio, peaks = ours.get('ratio'), [row.get('peak_mib') for row in (ours, original)]
        share = peaks[0] / peaks[1] if all(peaks) else None
        lines.append(
            Target(
                f'{name}: step, original / ours',
                f'>= {least}',
                ratio,
                '{:.2f}',
                lambda v, least=least: v >= least,
            )
        )
        lines.append(
            Target(
                f'{name}: peak memory, ours / original',
                '<= 0.6',
                share,
                '{:.2f}',
                lambda v: v <= 0.6,
            )
        )
    speed = steps['retinanet'].get('default', {}).get('images_a_second')
    lines.append(
        Target('retinanet: images a second', '>= 112', speed, '{:.0f}', lambda v: v >= 112)
    )
    speed = steps['retinanet_r101'].get('default', {}).get('images_a_second')
    hours = COCO_1X / speed / 3600 if speed else None
    lines.append(
        Target(
            'a 1x COCO stage of RetinaNet from R101, by its step',
            '< 3 h',
            hours,
            '{:.1f} h',
            lambda v: v < 3,
        )
    )
    ways = read(folder, 'gpu_stage_r101.json').get('ways', {})
    speed = ways.get('bytes', {}).get('row', {}).get('images_a_second')
    hours = COCO_1X / speed / 3600 if speed else None
    lines.append(
        Target('the same, by a stage', '< 3 h', hours, '{:.1f} h', lambda v: v < 3),
    )
    stage = read(folder, 'gpu_end_to_end.json').get('rows', {}).get('default', [{}])
    speed = stage[0].get('images_a_second')
    hours = COCO_1X / speed / 3600 if speed else None
    lines.append(
        Target(
            'a 1x COCO stage of RetinaNet from X101, by a short stage',
            '-',
            hours,
            '{:.1f} h',
        )
    )
    waiting = stage[0].get('waiting_for_data')
    lines.append(
        Target('a whole stage: waiting for data', '< 5 %', waiting, '{:.1%}', lambda v: v < 0.05)
    )
    check = read(folder, 'gpu_check.json')
    lines.append(
        Target(
            'float32 on the GPU and on the CPU, apart',
            '< 1e-4',
            max(distances(check), default=None),
            '{:.0e}',
            lambda v: v < 1e-4,
        )
    )
    errors = sum('error' in result for result in check.values())
    lines.append(
        Target(
            'checks that end in an error', 'none', errors if check else None, '{}', lambda v: not v
        )
    )
    lines += ends(folder)
    return lines


def distances(check: dict) -> list[float]:
    """How far operators and their gradients are from the CPU's, relative."""
    return [
        value
        for result in check.values()
        if isinstance(result.get('apart'), list)
        for value in result['apart']
    ]


def ends(folder: Path) -> list[Target]:
    """Of the tests marked gpu how many failed; of what only has to work how many did."""
    log, steps = (
        path.read_text() if (path := folder / name).is_file() else ''
        for name in ('log.txt', 'steps.txt')
    )
    summary = re.findall(r'^gpu_tests\| =*\s*(.*\b(?:passed|failed)\b.*) in ', log, re.MULTILINE)
    failed = sum(map(int, re.findall(r'(\d+) (?:failed|error)', summary[-1]))) if summary else None
    lines = [Target('tests marked gpu that fail', 'none', failed, '{}', lambda v: not v)]
    for what, pattern, count in (
        ('notebook 04 by papermill', 'notebook', 1),
        ('the demo', 'demo', 1),
        ('recipes of the paper at full size', r'full_size_\w+', 5),
    ):
        how = re.findall(rf'^ *\d+ s  {pattern}: (\w+)', steps, re.MULTILINE)
        done = how.count('done') if how else None
        lines.append(
            Target(what, f'{count} done', done, '{} done', lambda v, count=count: v == count)
        )
    return lines


def table(folder: Path) -> str:
    rows = [('what', 'target', 'measured', ''), *(line.cells() for line in targets(folder))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
