"""Which of mmdet's detectors can be student or teacher: a row for each folder of its configs.

python benchmarks/detectors.py --data data/coco --out results/detectors.json

Each is the student of a Faster R-CNN R50 and its teacher, in a recipe by `mtpd new`, with random weights: one update on two
real images with all five distillation losses. Three of them are computed again in float64, from the maps of that stride that the
neck gave. The table goes to docs/detectors.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import mmdet
import numpy as np
import torch
from mmcv.parallel import collate
from torch import nn

from mtpd import load_recipe
from mtpd.distill.distiller import Distiller
from mtpd.engine import loop, pipelines
from mtpd.engine.distill_config import distill_cfg
from mtpd.errors import MtpdError
from mtpd.pipeline.new_recipe import new_recipe, read_detector
from mtpd.preflight.detectors import settings_problems
from mtpd.preflight.trial import _without_pretrained
from mtpd.utils.files import read_json, write_json
from mtpd.utils.machine import describe_environment
from mtpd.utils.paths import ROOT, packaged_configs

PARTNER = 'mmdet::faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py'
NOT_DETECTORS = ('_base_', 'common')
SCALE = (448, 320)  # SSD takes no lower images
TIMEOUT = 600  # seconds of a row
PAGE, MARKERS = ROOT / 'docs' / 'detectors.md', ('<!-- detectors -->', '<!-- end of detectors -->')
TOLERANCE = 1e-3  # of a loss's value: float32 against float64


def families() -> list[str]:
    folders = (path for path in packaged_configs().iterdir() if any(path.glob('*.py')))
    return sorted(path.name for path in folders if path.name not in NOT_DETECTORS)


# Configs with a second subject: semantic maps, proposals alone, a pooling.
SPECIAL = re.compile('htc|crpn_r|fast_rcnn|dpool')


def smallest_config(family: str) -> str:
    """The config of a family with the shortest name, a ResNet-50's or a ResNet-18's where there is one."""
    names = [path.name for path in (packaged_configs() / family).glob('*.py')]
    names.sort(key=lambda name: (bool(SPECIAL.search(name)), len(name), name))
    usual = [name for name in names if re.search('r50|r18', name)]
    return f'mmdet::{family}/{(usual or names)[0]}'


# A row


def row_of(family: str, data: str) -> dict:
    config = smallest_config(family)
    row: dict = {'family': family, 'config': config}
    try:
        outputs = read_detector(config).outputs
        row['strides'] = [level.stride for level in outputs.levels]
        row['modules'] = [level.module for level in outputs.levels]
        row['behind'] = sorted({name for level in outputs.levels for name in level.behind})
    except Exception as error:
        row['neck'] = message(error)
    for role, pair in (('student', (config, PARTNER)), ('teacher', (PARTNER, config))):
        row[role] = update_of(*pair, data)
    return row


def message(error: Exception) -> dict:
    """Refused with a message of the kit's, or failed with another error."""
    key = 'refused' if isinstance(error, MtpdError) else 'failed'
    name = '' if key == 'refused' else f'{type(error).__name__}: '
    text = ' '.join(str(error).split()).replace(f'{packaged_configs()}/', 'mmdet::')
    return {key: f'{name}{text}'[:400]}


def update_of(student: str, teacher: str, data: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'pair.py'
        try:
            new_recipe(path, student, [teacher], data=data, pocket=True)
            recipe = load_recipe(path, {'image.scale': SCALE})
            if problems := settings_problems(recipe, ['student']):
                raise MtpdError(problems[0])
            return one_update(recipe)
        except Exception as error:
            return message(error)


def one_update(recipe) -> dict:
    name = next(iter(recipe.cfg.teachers))
    configs = [_without_pretrained(recipe.model(who)) for who in ('student', name)]
    settings: dict[tuple[str, str], list[dict]] = {}
    for method in recipe.cfg.distill.settings:
        varied = load_recipe(recipe, {'distill.method': method})
        for item in distill_cfg(varied, *configs):
            pair = item['student_module'], item['teacher_module']
            settings.setdefault(pair, []).extend(item['methods'])
    links = [
        dict(student_module=pair[0], teacher_module=pair[1], methods=methods)
        for pair, methods in settings.items()
    ]
    torch.manual_seed(0)
    norm = recipe.own_normalisation(name)
    model = Distiller(*configs, links, teacher_checkpoint='random', teacher_norm=norm).train()
    model.teacher.init_weights()
    batch = real_batch(recipe, configs[0], name)
    height = batch['img'].data[0].shape[2]
    with outputs_of(model.student) as of_student, outputs_of(model.teacher) as of_teacher:
        losses = loop.data_parallel(model, 'cpu').train_step(batch, None)
    losses['loss'].backward()
    values = {key: float(value) for key, value in losses['log_vars'].items()}
    grads = [p.grad for p in model.student.parameters() if p.grad is not None]
    wrong = [key for key, value in values.items() if not np.isfinite(value)]
    if wrong or not all(torch.isfinite(grad).all() for grad in grads):
        return {'failed': f'not finite: {", ".join(wrong) or "a gradient"}'}
    check = compared(model, links, values, (of_student, of_teacher), height)
    return {'methods': sorted(recipe.cfg.distill.settings), **check}


def real_batch(recipe, student: dict, teacher: str) -> dict:
    masks = pipelines.needs_masks(recipe, student)
    cfg = pipelines.dataset_config(recipe, 'train', masks=masks, teacher=teacher)
    dataset = pipelines.quiet_dataset(cfg)
    wide = [index for index in range(len(dataset)) if dataset.flag[index] == 1]
    return collate([dataset[index] for index in wide[:2]], 2)


# The same losses by other means


@contextlib.contextmanager
def outputs_of(model: nn.Module):
    """What each module gives in a forward pass, by its path."""
    outputs: dict = {}
    hooks = [
        module.register_forward_hook(
            lambda _, args, output, path=path: outputs.update({path: output})
        )
        for path, module in model.named_modules()
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def compared(
    model: Distiller, links: list[dict], values: dict, outputs: tuple, height: int
) -> dict:
    """The strides that were compared, and the largest difference of a loss from its formula, as a share of the loss."""
    largest, strides = 0.0, []
    for link in links:
        modules = link['student_module'], link['teacher_module']
        maps = [map_of(out, path).detach() for out, path in zip(outputs, modules, strict=True)]
        sides = {item.shape[2] for item in maps}
        for out, item in zip(outputs, maps, strict=True):
            if item.shape[2] not in {level.shape[2] for level in levels_of(out)}:
                return {'failed': f'{modules} are not of a level that the neck gives'}
        if len(sides) > 1:
            return {'failed': f'{modules} are of different strides'}
        strides.append(round(height / sides.pop()))
        for method in link['methods']:
            loss = model.distill_losses[method['name']]
            student, teacher = (item.double().numpy() for item in maps)
            if loss.align is not None:
                kernel, bias = (p.detach().double().numpy() for p in loss.align.parameters())
                student = np.einsum('oc,nchw->nohw', kernel[:, :, 0, 0], student)
                student += bias[:, None, None]
            if method['type'] in FORMULAS:
                wanted = FORMULAS[method['type']](student, teacher, method)
                largest = max(
                    largest, abs(values[method['name']] - wanted) / max(abs(wanted), 1e-12)
                )
    result = {'strides': strides, 'largest_difference': largest}
    if largest > TOLERANCE:
        result['failed'] = f'a loss differs from its formula by {largest:.2g} of its value'
    return result


def map_of(outputs: dict, path: str) -> torch.Tensor:
    """A module's output or, of 'neck:1', the second of them."""
    module, _, number = path.partition(':')
    return outputs[module][int(number)] if number else outputs[module]


def levels_of(outputs: dict) -> list:
    """The maps that the neck gives, or the backbone where there is no neck."""
    levels = outputs.get('neck', outputs['backbone'])
    return (
        [levels]
        if isinstance(levels, torch.Tensor)
        else [x for x in levels if isinstance(x, torch.Tensor)]
    )


def mse(student, teacher, cfg):
    return cfg['weight'] * np.mean((student - teacher) ** 2)


def pkd(student, teacher, cfg):
    def standard(x):
        axes = (0, 2, 3)
        mean, std = (f(x, axis=axes, keepdims=True) for f in (np.mean, lambda *a, **k: np.std(*a, ddof=1, **k)))  # fmt: skip
        return (x - mean) / (std + 1e-6)

    return cfg['weight'] / 2 * np.mean((standard(student) - standard(teacher)) ** 2)


def cwd(student, teacher, cfg):
    def log_softmax(x):
        x = x.reshape(*x.shape[:2], -1) / cfg['tau']
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    s, t = log_softmax(student), log_softmax(teacher)
    return cfg['weight'] * cfg['tau'] ** 2 * np.mean(np.sum(np.exp(t) * (t - s), -1))


FORMULAS = {'FeatureMSE': mse, 'PKD': pkd, 'CWD': cwd}


# All rows


def verdict(cell: dict) -> str:
    """'yes', or why not: 'needs a GPU', 'no' with the message's first sentence, 'fails' with another error."""
    text = cell.get('failed') or cell.get('refused')
    if not text:
        return 'yes'
    if gpu := re.search(
        r'(\w+?)(?:_forward)?_impl: implementation for device cpu|the operator (\w+) for GPUs', text
    ):
        return f'needs a GPU ({gpu[1] or gpu[2]})'
    if package := re.search(r"No module named '(\w+)'", text):
        return f'no: its config needs the package {package[1]}'
    text = re.sub(r'^mmdet::\S+ has a problem: - |^(mmdet::\S+:|\w+:) (?=\w)', '', text)
    sentence = re.split(r'(?<=[a-z)])[.:] ', text)[0].rstrip('.')
    return f'{"fails" if "failed" in cell else "no"}: {sentence}'


def table(rows: list[dict]) -> str:
    yes = {
        role: sum(verdict(row[role]) == 'yes' for row in rows) for role in ('student', 'teacher')
    }
    largest = max(row[role].get('largest_difference', 0) for row in rows for role in yes)
    lines = [
        f'Of {len(rows)} folders {yes["student"]} work as student and {yes["teacher"]} as teacher, with each of the five losses. MSE, PKD '
        f'and CWD differ from their formulas by at most {largest:.1g} of their value.',
        '',
        '| folder of configs | as student | as teacher | strides | compared | behind it |',
        '|---|---|---|---|---|---|',
    ]
    for row in rows:
        modules = [module for module in row.get('modules', ()) if module]
        cells = [
            f'`{row["family"]}`',
            *(verdict(row[role]) for role in ('student', 'teacher')),
            ', '.join(map(str, row.get('strides', ()))),
            f'`{modules[0]}`' if modules else '',
            ', '.join(row.get('behind', ())),
        ]
        lines.append(f'| {" | ".join(cell.replace("|", "/") for cell in cells)} |')
    return '\n'.join(lines)


def measured(family: str, data: str) -> dict:
    """A row, by a process of its own."""
    command = [sys.executable, '-W', 'ignore', __file__, '--data', data, '--family', family]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        cell = {'failed': f'not done after {TIMEOUT} s'}
    except (IndexError, json.JSONDecodeError):
        cell = {'failed': f'the process ended with {done.returncode}: {done.stderr[-300:]}'}
    return {'family': family, 'config': smallest_config(family), 'student': cell, 'teacher': cell}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--data', required=True, help='a COCO-format folder')
    parser.add_argument('--only', nargs='+', help='these folders of configs')
    parser.add_argument('--family', help=argparse.SUPPRESS)
    parser.add_argument('--out', type=Path, help='where the JSON goes; rows that it holds stay')
    options = parser.parse_args()
    if options.family:
        print(json.dumps(row_of(options.family, options.data)))
        return
    before = read_json(options.out) if options.out and options.out.is_file() else {}
    rows = {row['family']: row for row in before.get('rows', ())}
    for family in options.only or [name for name in families() if name not in rows]:
        rows[family] = measured(family, options.data)
        environment = {**describe_environment(1), 'mmdet': mmdet.__version__}
        rows[family]['commit'] = environment['git_commit']
        cells = rows[family]['student'], rows[family]['teacher']
        print(f'{family}: student {verdict(cells[0])}; teacher {verdict(cells[1])}', flush=True)
        if options.out:
            write_json(
                options.out,
                {
                    'command': 'python benchmarks/detectors.py --data data/coco --out results/detectors.json',
                    'environment': environment,
                    'rows': [rows[name] for name in sorted(rows)],
                },
            )
    ordered = [rows[name] for name in sorted(rows)]
    print(table(ordered))
    if options.out and PAGE.is_file():
        before, rest = PAGE.read_text().split(MARKERS[0])
        after = rest.split(MARKERS[1])[1]
        PAGE.write_text(f'{before}{MARKERS[0]}\n{table(ordered)}\n{MARKERS[1]}{after}')


if __name__ == '__main__':
    main()
