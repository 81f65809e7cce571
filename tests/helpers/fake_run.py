"""Small made-up run directories: what the reporting side is tested on."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat

from mtpd.analysis.run import load_run
from mtpd.config.recipe import load_recipe
from mtpd.pipeline.run_dir import open_run

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
CLASSES = ['zero', '<b>one</b>', 'two']
ARMS = {
    'none': ('No teacher', [None], [27.6]),
    'direct': ('Teacher 2 only', ['rx101'], [29.0]),
    'progressive': ('Teacher 1 → teacher 2', ['r101', 'rx101'], [26.1, 30.6]),
    'reverse': ('Teacher 2 → teacher 1', ['rx101', 'r101'], [25.2, 29.9]),
}
DETECTORS = {  # label, role, AP points, parameters, GFLOPs
    'r50': ('Student', 'student', 20.2, 712_345, 0.31),
    'r101': ('Teacher 1', 'teacher', 43.2, 2_900_000, 1.2),
    'rx101': ('Teacher 2', 'teacher', 52.3, 5_600_000, 2.75),
}
UPDATES = 800
PNG = (  # one transparent pixel
    'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJg'
    'gg=='
)


def put(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def metrics(ap: float) -> dict:
    """`ap` in points; the other numbers are fixed multiples, so that tests can compute them."""
    f = ap / 100
    numbers = {'bbox_mAP': f, 'bbox_mAP_50': 1.7 * f, 'bbox_mAP_75': 0.9 * f, 'bbox_mAP_s': 0.5 * f}
    numbers |= {'bbox_mAP_m': 1.1 * f, 'bbox_mAP_l': None}
    return numbers | {
        'per_class': {'bbox': dict(zip(CLASSES, (f, 0.8 * f, None), strict=True))},
        'num_images': 200,
    }


def log(path: Path, updates: int, distilled: bool, every: int = 20) -> None:
    rows = []
    for update in range(every, updates + 1, every):
        row = {'update': update, 'updates': updates, 'lr': 0.002, 'loss_cls': 0.8 - update / 2000}
        row['loss_bbox'] = 0.5 - update / 4000 + 0.02 * (update // every % 2)
        if distilled:
            row |= {'loss_mgd_fpn_0': 40.0 / update, 'loss_mgd_fpn_1': 20.0 / update}
        row['loss'] = sum(v for k, v in row.items() if k.startswith('loss_'))
        rows.append(json.dumps(row))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(rows) + '\n')


def stage(run: Path, arm: str, k: int, evaluated: bool = True) -> None:
    _, teachers, aps = ARMS[arm]
    folder = run / 'stages' / arm / f'{k}_{teachers[k - 1] or "no_teacher"}'
    updates = UPDATES // len(teachers)
    put(folder / 'stage.json', {'arm': arm, 'stage': k, 'updates': updates, 'seconds': 81.0})
    put(folder / 'training.json', {'update': updates, 'seconds': 50.0})
    log(folder / 'log.json', updates, teachers[k - 1] is not None)
    if evaluated:
        put(folder / 'metrics.json', metrics(aps[k - 1]))


def notebook(path: Path, title: str, *, error: str | None = None) -> None:
    v4 = nbformat.v4
    show = v4.new_output('display_data', {'image/png': PNG, 'text/plain': 'a dot'})
    show.metadata = {'image/png': {'alt': f'A dot of "{title}"', 'width': 10}}
    cells = [
        v4.new_markdown_cell(f'# {title}\n\nSee [the paper](https://arxiv.org/abs/2308.09105).'),
        v4.new_code_cell('stage: int = 1  # which', metadata={'tags': ['parameters']}),
        v4.new_code_cell('show(1 < 2)', outputs=[show], execution_count=1),
        v4.new_code_cell(
            'print(x)',
            outputs=[v4.new_output('stream', name='stdout', text='<i>raw</i> & text\n')],
            execution_count=2,
        ),
    ]
    if error:
        trace = [f'\x1b[31mValueError\x1b[0m: {error}']
        failed = v4.new_output('error', ename='ValueError', evalue=error, traceback=trace)
        cells.append(v4.new_code_cell('fail()', outputs=[failed], execution_count=3))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells), path)


def make_run(path: Path, done: bool = True) -> Path:
    """A finished run; with done=False one that failed in stage 2 of the progressive arm."""
    arms = [
        {'name': n, 'label': label, 'teachers': t, 'updates': UPDATES}
        for n, (label, t, _) in ARMS.items()
    ]
    detectors = [
        {'name': n, 'label': d[0], 'role': d[1], 'shipped': d[1] == 'teacher'}
        for n, d in DETECTORS.items()
    ]
    info = {
        'name': 'retinanet_r50__r101_rx101',
        'title': 'RetinaNet R50 <- R101, X101',
        'recipe': 'configs/mini/retinanet_r50__r101_rx101.py',
        'seed': 0,
        'smoke': False,
        'command': 'mtpd run configs/mini/retinanet_r50__r101_rx101.py --seed 0',
        'arms': arms,
        'detectors': detectors,
        'paper': {
            **{'student': 'RetinaNet R50', 'baseline': 36.5, 'baseline_2x': 37.4, 'result': 41.7},
            **{'direct': 41.0, 'progressive': 41.4, 'walk_through': [36.5, 37.9, 39.9]},
        },
        'classes': CLASSES,
        'seconds': 812.0 if done else None,
    }
    put(path / 'run.json', info)
    environment = {'python': '3.11.9', 'torch': '2.13.0', 'device': 'cpu <2 cores>', 'cuda': None}
    put(path / 'environment.json', environment)
    (path / 'recipe.py').write_text("title = 'a <recipe>'\n")
    for name, (_, role, ap, parameters, gflops) in DETECTORS.items():
        folder = path / 'detectors' / name
        put(folder / 'metrics.json', metrics(ap))
        put(
            folder / 'model.json', {'parameters': parameters, 'gflops': gflops, 'ms_per_image': 7.5}
        )
        if role == 'student':
            log(folder / 'log.json', 900, distilled=False)
    steps = [('00_environment', None), ('02_detectors', None)]
    for arm, (_, teachers, _) in ARMS.items():
        steps += [(f'04_distill_stage__{arm}_{k}', (arm, k)) for k in range(1, len(teachers) + 1)]
    steps.append(('06_analysis', None))
    states = []
    for name, which in steps:
        failing = not done and which == ('progressive', 2)
        pending = not done and bool(states) and states[-1]['state'] != 'done'
        state = 'failed' if failing else 'pending' if pending else 'done'
        entry = {'name': name, 'state': state, 'notebook': f'notebooks/{name}.ipynb'}
        reason = 'ValueError: bad <script>alert(1)</script>' if failing else None
        states.append(entry | {'reason': reason, 'seconds': None if pending else 61.5})
        if not pending:
            notebook(path / entry['notebook'], name, error=reason)
        if which and not pending:
            stage(path, *which, evaluated=not failing)
    put(path / 'status.json', {'state': 'done' if done else 'failed', 'steps': states})
    return path


def trained(path: Path, method: str = 'mgd', seed: int = 0, options: dict | None = None, **aps):
    """A run of the demo's recipe with AP points by arm: a number, or (box, mask); each class has the box AP."""
    recipe = load_recipe(MINI, {'distill.method': method, **(options or {})}, seed)
    open_run(recipe, path, smoke=False)
    for name, ap in aps.items():
        box, mask = ap if isinstance(ap, tuple) else (ap, None)
        values = {
            'bbox_mAP': box / 100,
            'per_class': {'bbox': dict.fromkeys(recipe.classes, box / 100)},
        }
        values |= {} if mask is None else {'segm_mAP': mask / 100}
        arm = recipe.arms[name]
        for stage in range(1, len(arm.teachers) + 1):
            put(path / 'stages' / name / arm.stage_name(stage) / 'metrics.json', values)
    return load_run(path)
