"""Ten pairs that the paper does not have: `mtpd new`, doctor, two stages on real images, mmdet's inference of the export.

python benchmarks/pairs.py --coco data/coco --three-classes data/bccd --out results/pairs.json

With random weights, small images and few updates: it shows that each works, and nothing about AP.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import torch
from mmcv import Config
from mmdet.apis import inference_detector, init_detector

from mtpd import load_recipe
from mtpd.utils.files import read_json, read_log, write_json
from mtpd.utils.machine import describe_environment

RETINANET = 'mmdet::retinanet/retinanet_{}_fpn_1x_coco.py'
FASTER = 'mmdet::faster_rcnn/faster_rcnn_{}_fpn_1x_coco.py'
MOBILENET = """_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(_delete_=True, type='MobileNetV2', out_indices=(1, 2, 4, 7)),
    neck=dict(in_channels=[24, 32, 96, 1280]),
)
"""
PAIRS = {  # the student, its teachers in order, other options
    'ATSS R50 <- R101': [
        'mmdet::atss/atss_r50_fpn_1x_coco.py',
        'mmdet::atss/atss_r101_fpn_1x_coco.py',
    ],
    'RetinaNet R18 <- R50 <- R101': [RETINANET.format(name) for name in ('r18', 'r50', 'r101')],
    'RetinaNet R50 <- Mask R-CNN Swin-T, PKD': [
        RETINANET.format('r50'),
        'mmdet::swin/mask_rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    ],
    'Faster R-CNN R50 <- RetinaNet R101': [FASTER.format('r50'), RETINANET.format('r101')],
    'YOLOX tiny <- s': [
        'mmdet::yolox/yolox_tiny_8x8_300e_coco.py',
        'mmdet::yolox/yolox_s_8x8_300e_coco.py',
    ],
    'RetinaNet MobileNetV2 <- R50': ['mobilenet.py', RETINANET.format('r50')],
    'YOLOF R50 <- RetinaNet R101': [
        'mmdet::yolof/yolof_r50_c5_8x8_1x_coco.py',
        RETINANET.format('r101'),
    ],
    'Faster R-CNN PAFPN R50 <- FPN R101': [
        'mmdet::pafpn/faster_rcnn_r50_pafpn_1x_coco.py',
        FASTER.format('r101'),
    ],
    'RetinaNet R18 <- R50 <- R101 <- X101': [
        RETINANET.format(name) for name in ('r18', 'r50', 'r101', 'x101_32x4d')
    ],
    'three classes: RetinaNet R18 <- R50': [RETINANET.format(name) for name in ('r18', 'r50')],
}
UPDATES = 10  # of a stage, and of a teacher


def mtpd(*words: str, folder: Path) -> tuple[str, str]:
    """The command as a user types it, and what it prints."""
    command = [sys.executable, '-W', 'ignore', '-m', 'mtpd.cli', *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode not in (0, 1):
        raise SystemExit(
            f'mtpd {shlex.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}'
        )
    return f'mtpd {shlex.join(words)}', done.stdout


def row_of(title: str, options: argparse.Namespace, folder: Path) -> dict:
    began = time.time()
    data = options.three_classes if title.startswith('three classes') else options.coco
    student, *teachers = PAIRS[title]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'mobilenet.py').write_text(MOBILENET)
    (folder / 'my.py').unlink(missing_ok=True)
    method = ['--method', 'pkd'] if title.endswith('PKD') else []
    words = [
        'new',
        'my.py',
        '--student',
        student,
        '--teachers',
        *teachers,
        '--data',
        str(data),
        '--pocket',
        *method,
    ]
    command, notes = mtpd(*words, folder=folder)
    _, checks = mtpd('doctor', 'my.py', folder=folder)
    recipe = load_recipe(folder / 'my.py')
    arm, more = 'progressive', ''
    if len(teachers) == 1:  # it teaches twice: two stages, too
        (name,) = recipe.cfg.teachers
        arm, more = (
            'repeated',
            f" arms.repeated.label=twice arms.repeated.teachers=['{name}','{name}']",
        )
    few = f'schedule.arm={UPDATES * max(2, len(teachers))} schedule.teacher={UPDATES} schedule.baseline={UPDATES} schedule.log_interval=5{more}'
    mtpd('train', 'my.py', '--arm', arm, '--work-dir', 'run', '--cfg-options', few, folder=folder)
    stages = sorted((folder / 'run' / 'stages' / arm).iterdir())
    losses = {path.name: distill_losses(path) for path in stages}
    mtpd('export', str(stages[-1] / 'student.pth'), 'out', folder=folder)
    file = next(folder.glob('out-*.pth'))
    boxes = detections(file, data)
    names = {str(folder): '.', str(options.coco): 'data/coco'}
    names |= {str(options.three_classes): 'data/three_classes'}
    row = {
        'pair': title,
        'command': command,
        'recipe': (folder / 'my.py').read_text(),
        'notes': notes.splitlines(),
        'commit': describe_environment(1)['git_commit'],
        'doctor': checks.strip().splitlines()[-1],
        'start': recipe.cfg.distill.start,
        'distillation_losses': losses,
        'export': file.name,
        'classes': len(boxes),
        'seconds': round(time.time() - began, 1),
    }
    return without_paths(row, names)


def without_paths(value, names: dict[str, str]):
    """A row with this machine's folders by other names."""
    if isinstance(value, dict):
        return {key: without_paths(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item, names) for item in value]
    for path, name in names.items() if isinstance(value, str) else ():
        value = value.replace(path, name)
    return value


def distill_losses(stage: Path) -> dict[str, float]:
    """Of the last update that was logged."""
    row = read_log(stage / 'log.json')[-1]
    return {key: value for key, value in row.items() if '_fpn_' in key}


def detections(file: Path, data: Path) -> list:
    """By mmdet alone, with the config that the export holds."""
    meta = torch.load(file, map_location='cpu', weights_only=True)['meta']
    model = init_detector(Config.fromstring(meta['config'], '.py'), str(file), device='cpu')
    image = next(iter(sorted(Path(data).rglob('*.jpg'))))
    result = inference_detector(model, str(image))
    return result[0] if isinstance(result, tuple) else result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        '--coco', required=True, type=Path, help='a COCO-format folder with COCO’s classes'
    )
    parser.add_argument('--three-classes', required=True, type=Path, help='one of other classes')
    parser.add_argument('--runs', type=Path, default=Path('runs/pairs'))
    parser.add_argument('--only', nargs='+', help='these pairs, by a part of their title')
    parser.add_argument('--out', type=Path, help='where the JSON goes; rows that it holds stay')
    options = parser.parse_args()
    options.coco, options.three_classes = options.coco.resolve(), options.three_classes.resolve()
    rows = (
        {row['pair']: row for row in read_json(options.out)['rows']}
        if options.out.is_file()
        else {}
    )
    titles = (
        [t for t in PAIRS if any(part in t for part in options.only)]
        if options.only
        else [t for t in PAIRS if t not in rows]
    )
    for title in titles:
        rows[title] = row_of(title, options, options.runs.resolve() / str(list(PAIRS).index(title)))
        row = rows[title]
        print(
            f'{title}: {row["doctor"]} | {row["start"]} | {row["distillation_losses"]} | {row["classes"]} classes | {row["seconds"]} s',
            flush=True,
        )
        ordered = [rows[name] for name in PAIRS if name in rows]
        if options.out:
            command = (
                'python benchmarks/pairs.py --coco data/coco --three-classes data/three_classes'
            )
            written = {'command': command, 'environment': describe_environment(1), 'rows': ordered}
            write_json(options.out, written)


if __name__ == '__main__':
    main()
