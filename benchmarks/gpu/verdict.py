"""The targets on a GPU beside what `run.py` measured; measured JSON goes to results/."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

COCO_1X = 12 * 117266  # images of a 1x schedule on COCO 2017


def read(folder: Path, name: str) -> Any:
    path = folder / name
    return json.loads(path.read_text()) if path.is_file() else None


def collect(folder: Path, results: Path) -> None:
    """Copies what there is, with peak memory put beside the times of the same updates."""
    peaks = read(folder, 'gpu_peak.json') or {}
    for path in sorted(folder.glob('gpu_distill_step_*.json')):
        table, name = json.loads(path.read_text()), path.stem.removeprefix('gpu_distill_step_')
        for kind, row in peaks.get('rows', {}).get(name, {}).items():
            if kind in table['rows'] and 'peak_mib' in row:
                table['rows'][kind]['peak_mib'] = row['peak_mib']
        path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + '\n')
    parts = [json.loads(path.read_text()) for path in sorted((folder / 'full_size').glob('*.json'))]
    if parts:
        merged = parts[0] | {'rows': [row for part in parts for row in part['rows']]}
        (folder / 'full_size_gpu.json').write_text(json.dumps(merged, indent=2) + '\n')
    for path in [*sorted(folder.glob('gpu_*')), *folder.glob('full_size_gpu.json')]:
        shutil.copyfile(
            path, results / ('' if path.name.startswith('full') else 'bench') / path.name
        )


def rows(folder: Path) -> list[tuple[str, str, str, str]]:
    """What, target, measured, and whether it is met."""
    lines = []

    def add(what: str, target: str, value: float | None, text: str, met: bool) -> None:
        lines.append(
            (what, target, '-', 'not measured')
            if value is None
            else (what, target, text, 'met' if met else 'not met')
        )

    for name, ratio in (('retinanet', 3.0), ('mask_rcnn', 2.5), ('reppoints', 2.5)):
        table = read(folder, f'gpu_distill_step_{name}.json') or {'rows': {}}
        default, original = (table['rows'].get(kind, {}) for kind in ('default', 'original'))
        value = default.get('ratio')
        add(
            f'{name}: step, ours / original',
            f'>= {ratio}',
            value,
            f'{value or 0:.2f}',
            (value or 0) >= ratio,
        )
        if name == 'retinanet':
            speed = default.get('images_a_second')
            add(
                'retinanet: images a second',
                '>= 112',
                speed,
                f'{speed or 0:.0f}',
                (speed or 0) >= 112,
            )
        peaks = [row.get('peak_mib') for row in (default, original)]
        share = peaks[0] / peaks[1] if all(peaks) else None
        add(
            f'{name}: peak memory, ours / original',
            '<= 0.6',
            share,
            f'{share or 0:.2f}',
            (share or 9) <= 0.6,
        )
    stage = (read(folder, 'gpu_end_to_end.json') or {}).get('rows', {}).get('default')
    waiting = stage[0]['waiting_for_data'] if stage else None
    add(
        'whole stage: waiting for data',
        '< 5 %',
        waiting,
        f'{100 * (waiting or 0):.1f} %',
        (waiting or 0) < 0.05,
    )
    hours = COCO_1X / stage[0]['images_a_second'] / 3600 if stage else None
    add(
        'a 1x COCO stage, from X101',
        '< 3 h for R101',
        hours,
        f'{hours or 0:.1f} h',
        (hours or 9) < 3,
    )
    check = read(folder, 'gpu_check.json')
    worst = max(_apart(check), default=0.0) if check else None
    errors = [name for name, result in (check or {}).items() if 'error' in result]
    add(
        'float32 on the GPU and on the CPU, apart',
        '< 1e-4',
        worst,
        f'{worst or 0:.0e} {errors or ""}',
        not errors and (worst or 0) < 1e-4,
    )
    log = (folder / 'log.txt').read_text() if (folder / 'log.txt').is_file() else ''
    for step in ('gpu_tests',):
        counts = re.findall(rf'^{step}\| .*?((?:\d+ \w+, )*\d+ passed.*) in ', log, re.MULTILINE)
        add(
            f'{step}',
            'all pass',
            1 if counts else None,
            counts[-1] if counts else '',
            bool(counts) and 'failed' not in counts[-1],
        )
    steps = (folder / 'steps.txt').read_text() if log else ''
    for step, count in (('notebook', 1), ('demo', 1), (r'full_size_\w+', 5)):
        ends = re.findall(rf'^ *\d+ s  {step}: (.*)', steps, re.MULTILINE)
        done = [end for end in ends if end.startswith('done')]
        name = step.removesuffix(r'_\w+')
        add(
            name,
            'works',
            len(done) if ends else None,
            ends[-1] if count == 1 and ends else f'{len(done)} of {count}',
            len(done) == count,
        )
    return lines


def _apart(check: dict) -> list[float]:
    """Distances of operators and of losses without switches from the CPU's."""
    return [
        value
        for result in check.values()
        for value in result.get('apart', [])
        if isinstance(result.get('apart'), list)
    ]


def table(folder: Path) -> str:
    found = [('what', 'target', 'measured', ''), *rows(folder)]
    widths = [max(len(line[i]) for line in found) for i in range(4)]
    return '\n'.join(
        '  '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in found
    )
