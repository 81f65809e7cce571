"""A whole stage as `mtpd train` makes it: data loading, updates, checkpoints, log; the share of time without data.

python benchmarks/end_to_end.py --out results/bench/end_to_end.json
python benchmarks/end_to_end.py configs/paper/retinanet_r50__r101_rx101.py --cfg-options data.root=data/coco \\
    --updates 500 --out results/bench/gpu_end_to_end.json

Each kind in turn, in a process of its own: `default`, the recipe as it is; `off`, without its speed switches and with the
original's two data workers. The teacher and the student have random weights.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mtpd.config.recipe import Recipe, load_recipe
from mtpd.config.schema import SWITCHES
from mtpd.utils.files import read_log, write_json
from mtpd.utils.machine import describe_environment
from mtpd.utils.progress import progress_bar

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
KINDS = {
    'off': {
        'speed': {'precision': 'tf32', **dict.fromkeys(SWITCHES, False)},
        'runtime.workers': 2,
    },
    'default': {},
}


def plan_of(options: argparse.Namespace, kind: str) -> Recipe:
    few = {
        'schedule.arm': options.updates,
        'schedule.log_interval': max(1, options.updates // 10),
        'schedule.checkpoint_interval': max(1, options.updates // 2),
        'arms': {'_delete_': True, 'one': {'teachers': [options.teacher]}},
        'distill.start': 'random',
        'student.checkpoint': None,
        'student.model.backbone.init_cfg': None,
        f'teachers.{options.teacher}.model.backbone.init_cfg': None,
    }
    recipe = load_recipe(options.recipe, options.cfg_options)
    return load_recipe(recipe, few | KINDS[kind])


def one(options: argparse.Namespace, kind: str, folder: Path) -> dict:
    """A row: one stage in this process."""
    from mtpd.pipeline.stages import train_stage
    from mtpd.preflight import trial
    from mtpd.runtime import checkpoints

    plan, weights = plan_of(options, kind), folder / 'teacher.pth'
    model = trial.untrained_detector(plan, options.teacher, None)
    meta = {'CLASSES': plan.classes}
    checkpoints.save_atomic({'meta': meta, 'state_dict': model.state_dict()}, weights)
    plan = load_recipe(plan, {f'teachers.{options.teacher}.checkpoint': str(weights)})
    began = time.perf_counter()
    made = train_stage(plan, 1, 'one', folder)
    seconds = time.perf_counter() - began
    rows = [row for row in read_log(made['dir'] / 'log.json') if 'loss' in row]
    rows = rows[len(rows) // 3 :]  # what workers loaded before the first update is used up by then
    update = statistics.mean(row['time'] for row in rows)
    return {
        'seconds': seconds,
        'milliseconds_an_update': 1e3 * update,
        'images_a_second': plan.cfg.schedule.batch_size / update,
        'waiting_for_data': statistics.mean(row['data_time'] for row in rows) / update,
        'seconds_beside_updates': seconds - options.updates * update,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('recipe', nargs='?', default=MINI)
    parser.add_argument('--teacher', default='rx101')
    parser.add_argument('--updates', type=int, default=300)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--cfg-options', default='')
    parser.add_argument('--kinds', nargs='+', default=list(KINDS), choices=list(KINDS))
    parser.add_argument('--one', choices=list(KINDS), help=argparse.SUPPRESS)
    parser.add_argument('--out', type=Path, help='where the JSON goes')
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(one(options, options.one, Path(folder))))
        return
    rows: dict = {kind: [] for kind in options.kinds}
    for _ in progress_bar('pairs of stages', range(options.repeats)):
        for kind, repeats in rows.items():
            command = [sys.executable, *sys.argv, '--one', kind]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            repeats.append(json.loads(process.stdout.splitlines()[-1]))
    ratios = {}
    if rows.keys() == KINDS.keys():
        for name, key in (('ratio_stage', 'seconds'), ('ratio_update', 'milliseconds_an_update')):
            pairs = zip(rows['off'], rows['default'], strict=True)
            ratios[name] = statistics.median(a[key] / b[key] for a, b in pairs)
        print(
            f'off / default: whole stage {ratios["ratio_stage"]:.2f}, an update {ratios["ratio_update"]:.2f}'
        )
    for kind, repeats in rows.items():
        row = {key: statistics.median(item[key] for item in repeats) for key in repeats[0]}
        print(kind, {key: round(value, 3) for key, value in row.items()})
    if options.out:
        write_json(
            options.out,
            {
                'command': ' '.join(['python', *sys.argv]),
                'recipe': str(options.recipe),
                'updates': options.updates,
                'rows': rows,
                **ratios,
                'environment': describe_environment(),
            },
        )


if __name__ == '__main__':
    main()
