"""How cost grows with size: an update with pixels and batch, a report and a sweep with runs, adaptation costs with images.

python benchmarks/growth.py --out results/bench/growth.json      # all; or name some: step costs report sweep
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from distill_step import batches, update_of

from mtpd.config.recipe import load_recipe
from mtpd.engine import loop, memory
from mtpd.engine.features import load_detectors
from mtpd.pipeline.teacher_order import image_features
from mtpd.report.run import make_report
from mtpd.utils.files import write_json
from mtpd.utils.machine import describe_environment
from mtpd.utils.paths import ROOT
from mtpd.utils.progress import progress_bar

sys.path.insert(0, str(ROOT / 'tests'))

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
TEACHER = 'rx101'


def of_step(folder: Path) -> list[dict]:
    """Milliseconds of an update at three image sizes, and with three batches."""
    loop.set_threads('cpu', 0)
    rows = []
    for side, batch in progress_bar('steps', ((64, 8), (128, 8), (256, 8), (128, 4), (128, 16))):
        few = {'data.scenes.train': 4 * batch, 'data.scenes.val': 1, 'data.scenes.size': 256}
        recipe = load_recipe(MINI, few | {'data.cache': str(folder), 'image.scale': side})
        update = update_of('default', recipe, TEACHER, 'cpu')
        made, _ = batches(recipe, folder, batch, 4)
        times = [update(made[number % 4]) for number in range(24)][4:]
        rows.append({'side': side, 'batch': batch, 'milliseconds': 1e3 * statistics.median(times)})
    return rows


def of_costs(folder: Path) -> list[dict]:
    """The peak of a process's memory in the costs of a pool of three, and seconds, by images."""
    rows = []
    for images in (64, 128, 256):
        command = [sys.executable, __file__, '--images', str(images)]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(process.stdout.splitlines()[-1]))
    return rows


def costs_of(images: int) -> dict:
    from mtpd.distill.adaptation_cost import costs_from_features

    recipe = load_recipe(MINI)
    loop.set_threads('cpu', 0)
    files = {name: (name, recipe.checkpoint(name)) for name in recipe.pool}
    files['again'] = files[recipe.pool[0]]
    models = load_detectors(recipe, files)
    memory.reset_peak('cpu')
    before, began = memory.memory_used('cpu')[0], time.perf_counter()
    costs_from_features(*(image_features(recipe, models, images, half) for half in (0, 1)))
    seconds = time.perf_counter() - began
    rise = (memory.memory_used('cpu')[1] - before) / 2**20
    return {'images': images, 'peak_rise_mib': round(rise), 'seconds': seconds}


def of_report(folder: Path) -> list[dict]:
    """Seconds of a run's report with as many runs of other seeds beside it (made up, no trainings)."""
    from helpers.fake_run import trained

    rows = []
    for runs in (5, 10, 20):
        for seed in range(runs):
            aps = dict(none=9 + seed / 10, direct=11 - seed / 20, progressive=10, reverse=10.5)
            trained(folder / f'{runs}' / 'mini_retinanet' / str(seed), seed=seed, **aps)
        times = []
        for _ in range(3):
            began = time.perf_counter()
            make_report(folder / f'{runs}' / 'mini_retinanet' / '0')
            times.append(time.perf_counter() - began)
        rows.append({'runs': runs, 'seconds': statistics.median(times)})
    return rows


def of_sweep(folder: Path) -> list[dict]:
    """Seconds of a job, two at a time on a core each, whose training is one or two updates: all but overhead; and of
    `mtpd status` on the sweep, and `mtpd --help`."""
    from helpers.tiny import SMALL

    rows = []
    for seeds in (1, 2, 4):
        few = {'data.scenes.train': 8, 'data.scenes.val': 4, 'data.cache': folder}
        few |= {
            f'teachers.{t}.{k}': n
            for t in ('r101', 'rx101')
            for k, n in (('updates', 1), ('scenes', 8))
        }
        options = ' '.join(f'{key}={value}' for key, value in (SMALL | few).items())
        where = folder / f'sweep-{seeds}'
        command = [sys.executable, '-m', 'mtpd.cli', 'sweep', MINI, '--cfg-options', options]
        command += ['--orders', 'r101,rx101', '--seeds', f'0-{seeds - 1}', '--work-dir', str(where)]
        seconds = taken([*command, '--slots', '2', '--cpus', '1'])
        jobs = len(list((where / 'jobs').glob('*/status.json')))
        mtpd = [str(Path(sys.executable).with_name('mtpd'))]
        status, usage = (
            statistics.median(taken([*mtpd, *words]) for _ in range(5))
            for words in (('status', str(where)), ('--help',))
        )
        row = {
            'seeds': seeds,
            'jobs': jobs,
            'seconds': seconds,
            'seconds_a_job': 2 * seconds / jobs,
        }
        rows.append(row | {'status_seconds': status, 'help_seconds': usage})
    return rows


def taken(command: list[str]) -> float:
    """Seconds that a command takes."""
    began = time.perf_counter()
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env, cwd=ROOT)
    return time.perf_counter() - began


PARTS = {'step': of_step, 'costs': of_costs, 'report': of_report, 'sweep': of_sweep}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('parts', nargs='*', help=' '.join(PARTS))
    parser.add_argument('--images', type=int, help=argparse.SUPPRESS)
    parser.add_argument('--out', type=Path, help='where the JSON goes')
    options = parser.parse_args()
    if options.images:
        print(json.dumps(costs_of(options.images)))
        return
    rows_by_part = {}
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            rows_by_part[part] = PARTS[part](Path(folder))
        for row in rows_by_part[part]:
            print(part, {k: round(v, 3) for k, v in row.items()}, flush=True)
    if options.out:
        command = ' '.join(['python', *sys.argv])
        threads = torch.get_num_threads()
        write_json(
            options.out,
            {'command': command, **rows_by_part, 'environment': describe_environment(threads)},
        )


if __name__ == '__main__':
    main()
