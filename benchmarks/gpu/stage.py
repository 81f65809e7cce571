"""Where the time of a stage's updates goes: the stage itself, as `mtpd train` makes it, its parts timed on the host.

python benchmarks/gpu/stage.py --data data/coco --out results/bench/gpu_stage_r101.json
python benchmarks/gpu/stage.py --data data/coco --ways floats bytes same_batches

A way is a process of its own: `bytes` is the default, `floats` is without `speed.byte_batches`, and `same_batches` gives the
first six batches again and again, so that no data worker is at work. The first third of the updates does not count. The host
runs ahead of the GPU; what waits for it is `read losses`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]

import end_to_end  # compat before mmcv

# isort: split
import torch
from mmcv.runner.hooks.optimizer import OptimizerHook
from mmcv.runner.iter_based_runner import IterLoader
from mmdet.models import BaseDetector

from mtpd.distill.distiller import Distiller
from mtpd.utils.files import write_json
from mtpd.utils.machine import describe_environment

WAYS = ('floats', 'bytes', 'same_batches')
PARTS = (
    ('next batch', IterLoader, '__next__'),
    ('forward', Distiller, 'forward_train'),
    ('read losses', BaseDetector, '_parse_losses'),
    ('backward', torch.Tensor, 'backward'),
    ('clip gradients', OptimizerHook, 'clip_grads'),
)


def timed(work: Callable, seconds: list[float]) -> Callable:
    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return work(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - began)

    return run


def repeat_batches(count: int) -> None:
    """Lets a training's loader give its first batches again and again."""
    load, batches, given = IterLoader.__next__, [], [0]

    def next_batch(loader: IterLoader) -> dict:
        if len(batches) < count:
            batches.append(load(loader))
        given[0] += 1
        return batches[(given[0] - 1) % len(batches)]

    IterLoader.__next__ = next_batch


def measure(options: argparse.Namespace, way: str) -> dict:
    """A row: one stage in this process."""
    if way == 'same_batches':
        repeat_batches(6)
    parts, starts, sizes = defaultdict(list), [], []
    forward = Distiller.forward_train

    def noted(distiller: Distiller, img: torch.Tensor, *args: Any, **kwargs: Any) -> dict:
        starts.append(time.perf_counter())
        sizes.append('x'.join(map(str, img.shape[2:])))
        return forward(distiller, img, *args, **kwargs)

    Distiller.forward_train = noted
    for part, owner, name in PARTS:
        setattr(owner, name, timed(getattr(owner, name), parts[part]))
    more = f' speed.byte_batches={way != "floats"}'
    chosen = argparse.Namespace(**{**vars(options), 'cfg_options': options.cfg_options + more})
    with tempfile.TemporaryDirectory() as folder:
        row = end_to_end.one(chosen, 'default', Path(folder))
    milliseconds = [1e3 * (b - a) for a, b in pairwise(starts)]
    by_size = defaultdict(list)
    for size, value in zip(sizes, milliseconds, strict=False):
        by_size[size].append(round(value))
    later = [values[len(values) // 3 :] for values in (milliseconds, *parts.values())]
    medians = [statistics.median(values) for values in later]
    return {
        'row': row,
        'median_milliseconds': medians[0],
        'parts_milliseconds': {part: 1e3 * m for part, m in zip(parts, medians[1:], strict=True)},
        'milliseconds_by_size': by_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('recipe', nargs='?', default='configs/paper/retinanet_r50__r101_rx101.py')
    parser.add_argument('--teacher', default='r101')
    parser.add_argument('--updates', type=int, default=500)
    parser.add_argument('--ways', nargs='+', choices=WAYS, default=['bytes'])
    parser.add_argument('--data', help='a folder laid out as COCO 2017')
    parser.add_argument('--cfg-options', default='')
    parser.add_argument('--one', choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument('--out', type=Path, help='where the JSON goes')
    options = parser.parse_args()
    if options.data:
        options.cfg_options += f' data.root={options.data}'
    if options.one:
        print(json.dumps(measure(options, options.one)))
        return
    ways = {}
    for way in options.ways:
        command = [sys.executable, '-W', 'ignore', *sys.argv, '--one', way]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        ways[way] = made = json.loads(process.stdout.splitlines()[-1])
        parts = ', '.join(f'{part} {value:.1f}' for part, value in made['parts_milliseconds'].items())  # fmt: skip
        print(
            f'{way}: {made["median_milliseconds"]:.0f} ms, {made["row"]["images_a_second"]:.0f} img/s\n    ms: {parts}',
            flush=True,
        )
    if options.out:
        command = ' '.join(['python', *sys.argv])
        report = {'command': command, 'ways': ways, 'environment': describe_environment()}
        write_json(options.out, report)


if __name__ == '__main__':
    main()
