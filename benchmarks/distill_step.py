"""The distillation step: the original's (`original.py`) and the kit's, in turn in one process, on the same batches.

python benchmarks/distill_step.py --out results/bench/distill_step.json
python benchmarks/distill_step.py configs/paper/retinanet_r50__r101_rx101.py --teacher rx101 --batch 8 \\
    --cfg-options data.root=data/coco --out results/bench/gpu_retinanet.json

--ours names what is measured beside the original: `default` (the recipe's), `off`, or switches joined by `+`, such as
`default+bf16` or `fold_teacher+channels_last`. Ratios are medians over pairs of updates that follow each other. Memory, of
the GPU or resident on the CPU, and a second ratio are those of processes that make one kind of update, which take turns
too: what frees memory and what asks for it is then each kind's own.
"""

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from machine_limits import ceilings
from original import Original
from parts import Parts
from torch.utils.data._utils.pin_memory import pin_memory
from torch.utils.flop_counter import FlopCounterMode

from mtpd.config.recipe import Recipe, load_recipe
from mtpd.config.schema import SWITCHES
from mtpd.engine import loop, memory, pipelines, speed
from mtpd.preflight import trial
from mtpd.preflight.trial import example_batches as examples_batches
from mtpd.preflight.trial import example_images
from mtpd.runtime import compat  # noqa: F401  (compat before mmcv)
from mtpd.utils.files import write_json
from mtpd.utils.machine import describe_environment
from mtpd.utils.progress import progress_bar

# isort: split
from mmcv.parallel import collate

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
OURS = [
    'off',
    'fold_teacher',
    'channels_last',
    'fold_student',
    'fused_optimizer',
    'keep_memory',
    'bf16',
    'default+fp32',
    'default',
]


def switches(text: str, recipe: Recipe, device: str) -> speed.Speed:
    """Those that an `--ours` names."""
    settings = speed.Speed()
    for word in text.split('+'):
        if word == 'default':
            settings = speed.resolve_speed(recipe.cfg.get('speed'), device)
        elif word in ('bf16', 'tf32', 'fp32'):
            settings = settings._replace(precision=word)
        elif word != 'off':
            settings = settings._replace(**{word: True})
    return settings


def known(text: str) -> str:
    """`text`, where it is an `--ours`: raises ArgumentTypeError where it is none."""
    words = ('off', 'default', 'bf16', 'tf32', 'fp32', *SWITCHES)
    if wrong := [word for word in text.split('+') if word not in words]:
        raise argparse.ArgumentTypeError(f'{wrong[0]!r} is none of {", ".join(words)}')
    return text


def update_of(name: str, recipe: Recipe, teacher: str, device: str) -> trial.Update:
    if name == 'original':
        return trial.Update(Original(recipe, teacher), recipe, speed.Speed(), device)
    model = trial.untrained_detector(recipe, 'student', teacher)
    return trial.Update(model, recipe, switches(name, recipe, device), device)


def batches(recipe: Recipe, folder: Path, size: int, count: int) -> tuple[list, float]:
    """Batches of training images, and the seconds in which one process makes one."""
    masks = pipelines.needs_masks(recipe, recipe.model('student'))
    data = example_images(recipe, folder, size, size * count, masks)
    made, began = [], time.perf_counter()
    for places in islice(examples_batches(data, size), count):
        made.append(collate([data[place] for place in places], size))
    return made, (time.perf_counter() - began) / count


def pin(batch: dict) -> dict:
    """A copy of a batch in pinned memory, as the loader of a training makes it."""
    return pin_memory({key: copy.copy(value) for key, value in batch.items()})


def apart(options: argparse.Namespace, names: list[str]) -> dict[str, dict]:
    """Of processes of one kind, in turn: MiB at the peak, milliseconds of an update, and the original's through them."""
    measurements: dict = {name: [] for name in names}
    for _ in progress_bar('processes', range(options.processes)):
        for name in names:
            command = [sys.executable, *sys.argv, '--alone', name]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            measurements[name].append(json.loads(process.stdout.splitlines()[-1]))
    return {
        name: {
            'peak_mib': statistics.median(row['peak_mib'] for row in rows),
            'milliseconds_apart': statistics.median(row['milliseconds'] for row in rows),
            'ratio_apart': statistics.median(
                a['milliseconds'] / b['milliseconds']
                for a, b in zip(measurements['original'], rows, strict=True)
            ),
        }
        for name, rows in measurements.items()
        if rows
    }


def measure(options: argparse.Namespace, recipe: Recipe, device: str, folder: Path) -> dict:
    made, loading = batches(recipe, folder, options.batch, options.batches)
    names = ['original', *options.ours]
    arms = {name: update_of(name, recipe, options.teacher, device) for name in names}
    seconds: dict = {name: [] for name in names}
    pinned = {
        name
        for name in options.ours
        if switches(name, recipe, device).pin_memory and device == 'cuda'
    }
    in_memory = {True: [pin(batch) for batch in made] if pinned else [], False: made}
    for number in progress_bar('updates', range(options.warm_up + options.pairs)):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            batches_made = in_memory[name in pinned]
            seconds[name].append(arms[name](batches_made[number % len(made)]))
    seconds = {name: values[options.warm_up :] for name, values in seconds.items()}
    flops = {}
    for name in names[:2]:
        with FlopCounterMode(display=False) as counter:
            arms[name](made[0])
        flops[name] = counter.get_total_flops()
    separate, rows = apart(options, names), {}
    for name in names:
        middle = statistics.median(seconds[name])
        pairs = zip(seconds['original'], seconds[name], strict=True)
        rows[name] = {
            'milliseconds': 1e3 * middle,
            'images_a_second': options.batch / middle,
            'ratio': statistics.median(a / b for a, b in pairs),
            'tflops': flops['original' if name == 'original' else names[1]] / middle / 1e12,
            **separate.get(name, {}),
            'parts_milliseconds': Parts(arms[name]).measure(made),
        }
    return {'flops_an_update': flops, 'data_milliseconds': 1e3 * loading, 'rows': rows}


def alone(options: argparse.Namespace, recipe: Recipe, device: str, folder: Path) -> dict:
    """MiB at the peak of updates of `options.alone`, and milliseconds of one."""
    made, _ = batches(recipe, folder, options.batch, options.batches)
    update = update_of(options.alone, recipe, options.teacher, device)
    memory.reset_peak(device)
    count = options.warm_up + options.pairs
    seconds = [update(made[number % len(made)]) for number in range(count)][options.warm_up :]
    peak = memory.memory_used(device)[1] // 2**20
    return {'peak_mib': peak, 'milliseconds': 1e3 * statistics.median(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('recipe', nargs='?', default=MINI)
    parser.add_argument('--teacher', default='rx101')
    parser.add_argument('--ours', nargs='+', default=OURS, type=known)
    parser.add_argument('--batch', type=int, help="images of an update; by default the recipe's")
    parser.add_argument('--batches', type=int, default=8, help='how many different ones')
    parser.add_argument('--pairs', type=int, default=40, help='updates of each that are timed')
    parser.add_argument('--warm-up', type=int, default=4, help='updates of each before')
    parser.add_argument('--cfg-options', default='')
    parser.add_argument('--processes', type=int, default=3, help='of each kind alone; 0: none')
    parser.add_argument('--alone', help=argparse.SUPPRESS)
    parser.add_argument('--out', type=Path, help='where the JSON goes')
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.cfg_options)
    options.batch = options.batch or recipe.cfg.schedule.batch_size
    device = loop.recipe_device(recipe)
    loop.set_threads(device, recipe.cfg.runtime.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if recipe.cfg.data.root is None:  # as many scenes as are needed here
            few = {'data.scenes.train': options.batch * options.batches, 'data.cache': folder}
            recipe = load_recipe(recipe, few | {'data.scenes.val': 1})
        if options.alone:
            print(json.dumps(alone(options, recipe, device, Path(folder))))
            return
        report = measure(options, recipe, device, Path(folder))
    for name, row in report['rows'].items():
        parts = ', '.join(f'{k} {v:.1f}' for k, v in row['parts_milliseconds'].items())
        print(
            f'{name:<40} {row["milliseconds"]:8.1f} ms  {row["images_a_second"]:7.1f} img/s  '
            f'x {row["ratio"]:.2f} (apart {row.get("ratio_apart", math.nan):.2f})  {row.get("peak_mib")} MiB  '
            f'{row["tflops"]:.3f} TFLOP/s\n    ms: {parts}'
        )
    print(f'data: {report["data_milliseconds"]:.1f} ms a batch by one process')
    report = {
        'command': ' '.join(['python', *sys.argv]),
        'settings': {k: v for k, v in vars(options).items() if k not in ('out', 'alone')},
        **report,
        'ceilings': ceilings(device),
        'environment': describe_environment(torch.get_num_threads()),
    }
    print(json.dumps(report['ceilings']))
    if options.out:
        write_json(options.out, report)


if __name__ == '__main__':
    main()
