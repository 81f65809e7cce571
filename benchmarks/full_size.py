"""The paper's ten stages at full size: a few updates each on real COCO images, with random weights, nothing downloaded.

python benchmarks/full_size.py --data ../shared/data/coco_tiny --out results/full_size_update.json
python benchmarks/full_size.py --data data/coco --device cuda --updates 50 --scale 1333 800 \\
    --out results/full_size_gpu.json

A stage runs in a process of its own through `train_stage`: the teacher's weights are drawn and saved, stage 1 inherits
its teacher's neck and head, stage 2 starts from stage 1's student, which is then evaluated on four images. A row has the
losses of the last update, gradients, checkpoints, time and the largest memory of the process.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPES = (
    'retinanet_r50__r101_rx101',
    'retinanet_r50__swint_swins',
    'mask_rcnn_r50__cascade_r50dcn_rx101dcn',
    'mask_rcnn_r50__swint_swins',
    'reppoints_r50__r101_rx101dcn',
)
PRETRAINED = (
    'pretrained',
    'backbone.init_cfg',
)  # what names a backbone's weights in mmdet's configs


def overrides(options: argparse.Namespace, out: Path) -> dict:
    """Those of the recipe: the data, no pretrained weights, few updates."""
    from mtpd.data import coco, layouts

    root, splits = options.data.resolve(), {}
    for split, count in (('train', options.batch * options.updates), ('val', 4)):
        annotations, images = layouts.locate_split(root, split)
        table = coco.read_annotations(annotations)
        annotated_ids = {item['image_id'] for item in table['annotations'] if not item['iscrowd']}
        few = [image for image in table['images'] if image['id'] in annotated_ids][:count]
        ids = {image['id'] for image in few}
        objects = [item for item in table['annotations'] if item['image_id'] in ids]
        file = out / f'{split}.json'
        file.write_text(json.dumps({**table, 'images': few, 'annotations': objects}))
        splits[split] = {'annotations': str(file), 'images': str(images)}
    unfetched = {f'student.model.{key}': None for key in PRETRAINED}
    return unfetched | {
        'data.root': str(root),
        'data.splits': splits,
        'image.scale': tuple(options.scale),
        'student.checkpoint': None,
        'schedule.arm': 2 * options.updates,
        'schedule.batch_size': options.batch,
        'schedule.log_interval': max(1, options.updates // 5),
        'schedule.checkpoint_interval': options.updates,
        'runtime.device': options.device,
        'runtime.workers': 0 if options.updates == 1 else 2,
        'distill.method': options.method,
    }


def one_stage(options: argparse.Namespace, name: str, stage: int, out: Path) -> dict:
    """Trains a stage in `out`, where the stage before it lies; its row."""
    from mtpd.config.recipe import load_recipe
    from mtpd.errors import MtpdError
    from mtpd.pipeline import stages  # before mmcv

    # isort: split
    from mmcv.utils import get_logger

    for module in ('mmcv', 'mmdet'):  # hundreds of lines on initialisation
        get_logger(module, log_level='ERROR')
    path = f'configs/paper/{name}.py'
    plan = load_recipe(path, overrides(options, out), seed=0)
    teacher = plan.arm('progressive').teachers[stage - 1]
    weights = out / f'{teacher}.pth'
    drawn = {f'teachers.{teacher}.model.{key}': None for key in PRETRAINED}
    plan = load_recipe(plan, drawn | {f'teachers.{teacher}.checkpoint': str(weights)})
    draw(plan.model(teacher), weights, plan.classes, stage)

    trained = []

    class RecordedDistiller(stages.Distiller):  # train_stage keeps the model to itself
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            trained.append(self)

    stages.Distiller = RecordedDistiller
    try:
        made = stages.train_stage(plan, stage, 'progressive', out)
    except MtpdError as error:
        sys.exit(f'{name}, stage {stage}: {error}')
    return {
        'recipe': path,
        'stage': stage,
        'teacher': plan.cfg.teachers[teacher].label,
        'start': made['stage']['start'],
        'inherited': {key: _count(made['stage'][key]) for key in ('copied', 'adapted', 'skipped')},
        **of_log(made['dir'] / 'log.json', options.batch),
        'gradients': gradients(trained[-1]),
        **of_checkpoints(made['dir']),
        'evaluated': {k: v for k, v in made['metrics'].items() if k.endswith('_mAP')},
        'memory_mib': peak_memory(),
        **gpu_memory(),
    }


def draw(cfg: dict, path: Path, classes: tuple, seed: int) -> None:
    """Saves a detector with the weights that its config draws, all blocks at work."""
    from mtpd.runtime.checkpoints import save_atomic

    # isort: split
    import torch
    from mmcv import ConfigDict
    from mmdet.models import build_detector
    from mmdet.models.backbones.resnet import Bottleneck

    torch.manual_seed(seed)
    model = build_detector(ConfigDict(cfg))
    model.init_weights()
    for module in model.backbone.modules():
        if isinstance(
            module, Bottleneck
        ):  # 0 leaves it out, 1 (ResNeXt) makes features grow with depth
            torch.nn.init.constant_(module.norm3.weight, 0.1)
    save_atomic({'meta': {'CLASSES': classes}, 'state_dict': model.state_dict()}, path)


def gradients(distiller) -> dict:
    """By part: parameters that are trained, those with a gradient, and the gradients' norm (after clipping)."""
    student = distiller.student
    head = [p for n, p in student.named_parameters() if not n.startswith(('backbone.', 'neck.'))]
    parts = {
        'backbone': list(student.backbone.parameters()),
        'neck': list(student.neck.parameters()),
        'head': head,
        'distill_losses': list(distiller.distill_losses.parameters()),
        'teacher': list(distiller.teacher.parameters()),
    }
    summary = {}
    for part, parameters in parts.items():
        grads = [p.grad for p in parameters if p.grad is not None]
        squares = sum(float(grad.double().square().sum()) for grad in grads)
        trained = sum(p.requires_grad for p in parameters)
        summary[part] = {'trained': trained, 'reached': len(grads), 'norm': math.sqrt(squares)}
    return summary


def of_log(path: Path, batch: int) -> dict:
    """Losses of the last row; the time of an update and images a second, without the first row where there are more."""
    from mtpd.utils.files import read_log

    rows = read_log(path)
    later = rows[1:] or rows
    seconds = sum(row['time'] for row in later) / len(later)
    losses = {key: value for key, value in rows[-1].items() if key.startswith('loss')}
    return {
        'updates': rows[-1]['update'],
        'losses': losses,
        'seconds_an_update': round(seconds, 3),
        'images_a_second': round(batch / seconds, 2),
    }


def of_checkpoints(folder: Path) -> dict:
    """Size and number of keys of latest.pth, by the first part of the key, and of student.pth."""
    import torch

    checkpoints = {}
    for name in ('latest', 'student'):
        path = folder / f'{name}.pth'
        state = torch.load(path, weights_only=True)['state_dict']
        keys: dict = {}
        for key in state:
            part = key.split('.')[0]
            keys[part] = keys.get(part, 0) + 1
        checkpoints[name] = {
            'megabytes': round(path.stat().st_size / 1e6, 1),
            'keys': keys,
            'finite': all(bool(v.isfinite().all()) for v in state.values()),
        }
    return {'checkpoints': checkpoints}


def peak_memory() -> int:
    """The largest resident size of this process so far, MiB."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmHWM'):
            return int(line.split()[1]) // 1024
    return 0


def gpu_memory() -> dict:
    import torch

    used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {'gpu_memory_mib': used // 2**20} if used else {}


def machine() -> dict:
    """What the figures depend on; asked in a process of its own, as torch is."""
    import torch

    from mtpd.utils.machine import cpu_cores, nvidia_gpus

    names = [name for name, *_ in nvidia_gpus()]
    return {'torch': torch.__version__, 'cores': cpu_cores(), 'gpus': names}


def _count(item) -> int:
    return item if isinstance(item, int) else len(item)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--data', type=Path, required=True, help='a folder laid out as COCO 2017')
    parser.add_argument('--out', type=Path, help='where the JSON goes')
    parser.add_argument('--recipe', choices=RECIPES, nargs='+', default=RECIPES)
    parser.add_argument('--work-dir', type=Path, help='kept; default: a temporary folder')
    parser.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda'])
    parser.add_argument('--updates', type=int, default=1, help='of each stage')
    parser.add_argument('--scale', type=int, nargs=2, default=[256, 160], metavar=('W', 'H'))
    parser.add_argument('--batch', type=int, default=2, help='images an update')
    parser.add_argument('--method', default='mgd', help='distillation loss')
    parser.add_argument('--stage', type=int, help=argparse.SUPPRESS)  # of the process of one stage
    return parser.parse_args()


def main() -> None:
    options = _parse()
    if options.stage:
        row = one_stage(options, options.recipe[0], options.stage, options.work_dir)
        options.out.write_text(json.dumps({'row': row, 'machine': machine()}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(run(options, options.work_dir or Path(temporary)))


def run(options: argparse.Namespace, work_dir: Path) -> int:
    """All stages, one process at a time; writes what there is after each. Returns how many failed."""
    settings = {key: getattr(options, key) for key in ('updates', 'scale', 'batch', 'method')}
    report: dict = {'settings': settings, 'machine': {}, 'rows': []}
    failed = 0
    for name in options.recipe:
        for stage in (1, 2):
            out = work_dir / name
            out.mkdir(parents=True, exist_ok=True)
            file, began = out / f'stage_{stage}.json', time.time()
            command = [sys.executable, __file__, '--data', options.data, '--out', file]
            command += ['--recipe', name, '--stage', stage, '--work-dir', out]
            command += ['--device', options.device, '--updates', options.updates]
            command += ['--scale', *options.scale, '--batch', options.batch]
            command += ['--method', options.method]
            done = subprocess.run(list(map(str, command)), stdout=sys.stderr)
            if done.returncode:
                failed += 1
                break  # the next stage starts from this one
            stage_report = json.loads(file.read_text())
            row = stage_report['row'] | {'seconds': round(time.time() - began, 1)}
            report['machine'] = stage_report['machine']
            report['rows'].append(row)
            print(line(row), flush=True)
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(report, indent=2) + '\n')
    return failed


def line(row: dict) -> str:
    losses = '  '.join(f'{key[5:] or "sum"} {value:.4g}' for key, value in row['losses'].items())
    sizes = row['checkpoints']
    memory = f'{row["memory_mib"]} MiB'
    if 'gpu_memory_mib' in row:
        memory += f', GPU {row["gpu_memory_mib"]} MiB'
    return (
        f'{Path(row["recipe"]).stem} stage {row["stage"]} ({row["teacher"]}): {losses}\n'
        f'    {row["images_a_second"]} img/s  {memory}  latest {sizes["latest"]["megabytes"]} MB '
        f'{sizes["latest"]["keys"]}  student {sizes["student"]["megabytes"]} MB'
    )


if __name__ == '__main__':
    main()
