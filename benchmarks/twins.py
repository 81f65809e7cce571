"""The pocket-size twins on a short schedule: baseline, teachers, both stages of the progressive arm; AP and time of each.

python benchmarks/twins.py --out results/mini_twins.json [--runs runs/twins] [--only NAME ...]

What is done is not done again: the same command goes on, and adds to the JSON.
"""

import argparse
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mtpd.analysis.run import ap_points
from mtpd.config.recipe import load_recipe
from mtpd.pipeline.detectors import train_detector_run
from mtpd.pipeline.stages import train_stage
from mtpd.utils.files import read_json, read_log, write_json
from mtpd.utils.machine import describe_environment

COMMON = 'runtime.threads=1 runtime.workers=0 data.scenes.train=1500'
SHORT = {  # of each recipe what is cut, so that each takes 4 to 12 minutes of one core
    'retinanet_r50__swint_swins': 'schedule.baseline=600 schedule.arm=200 teachers.swint.updates=1000 '
    'teachers.swins.updates=500',
    'mask_rcnn_r50__swint_swins': 'schedule.baseline=600 schedule.arm=240 teachers.swint.updates=600 '
    'teachers.swins.updates=600',
    'mask_rcnn_r50__cascade_r50dcn_rx101dcn': 'schedule.baseline=250 schedule.arm=120 '
    'teachers.cascade_r50dcn.updates=100 teachers.cascade_rx101dcn.updates=100',
    'reppoints_r50__r101_rx101dcn': 'schedule.baseline=400 schedule.arm=160 '
    'teachers.r101.updates=250 teachers.rx101dcn.updates=250',
}


def rows_of(name: str, folder: Path, before: dict) -> Iterator[dict]:
    """A row for each detector and stage: AP (points), updates, the seconds that its training and evaluation took.

    Args:
        before: rows of an earlier call by their step; their seconds stand for what is there already.
    """
    recipe = load_recipe(f'configs/mini/{name}.py', f'{COMMON} {SHORT[name]}')
    arm = recipe.arm('progressive')
    steps = {who: partial(train_detector_run, recipe, who, folder) for who in recipe.detectors}
    for stage, teacher in enumerate(arm.teachers, 1):
        steps[f'stage {stage}: {teacher}'] = partial(train_stage, recipe, stage, arm.name, folder)
    for step, make in steps.items():
        began, cpu = time.time(), time.process_time()
        made = make()
        took = {'seconds': time.time() - began, 'cpu_seconds': time.process_time() - cpu}
        if took['cpu_seconds'] < 2:  # it was there
            took = {key: before.get(step, {}).get(key) for key in took}
        ap = ap_points(made['metrics'])
        yield {
            'recipe': name,
            'step': step,
            'updates': read_log(made['dir'] / 'log.json')[-1]['update'],
            **{key: ap[key] for key in ('AP', 'AP50', 'mask_AP')},
            **{key: value and round(value, 1) for key, value in took.items()},
        }


def save(out: Path, rows: list[dict]) -> None:
    options = {name: f'{COMMON} {SHORT[name]}' for name in SHORT}
    write_json(
        out,
        {
            'what': 'The pocket-size twins on a short schedule, one run each, seed 0: validation AP in points; wall and '
            'CPU seconds of one thread, on a machine that other work shared.',
            'command': f'python benchmarks/twins.py --out {out}',
            'commands': [
                f"mtpd train configs/mini/{name}.py --arm progressive --stage 2 --cfg-options '{text}'"
                for name, text in options.items()
            ],
            'environment': describe_environment(threads=1),
            'rows': rows,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--out', type=Path, required=True, help='the JSON')
    parser.add_argument('--runs', type=Path, default=Path('runs/twins'), help='run directories')
    parser.add_argument('--only', nargs='+', choices=list(SHORT), default=list(SHORT))
    options = parser.parse_args()
    earlier_rows = read_json(options.out, {'rows': []})['rows']
    rows = {(row['recipe'], row['step']): row for row in earlier_rows}
    for name in options.only:
        known = {step: row for (recipe, step), row in rows.items() if recipe == name}
        for row in rows_of(name, options.runs.resolve() / name, known):
            print(row, flush=True)
            rows[name, row['step']] = row
            save(options.out, list(rows.values()))


if __name__ == '__main__':
    main()
