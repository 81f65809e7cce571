"""Fit, generalisation and flatness over the seeds of a recipe, as notebook 06 measured them in each run, and how near the
progressive arm's features come to the teachers': one JSON file.

for seed in 0 1 2 3 4; do mtpd run configs/mini/retinanet_r50__r101_rx101.py --seed $seed; done
python benchmarks/generalisation.py --run runs/mini_retinanet_r50__r101_rx101/0 \\
    --out results/mini_retinanet_r50__r101_rx101/generalisation.json
"""

import argparse
import sys
from pathlib import Path

from mtpd import load_recipe, load_run
from mtpd.analysis import gap, generalisation, nearness
from mtpd.analysis.feature_views import stage_checkpoints
from mtpd.analysis.seeds import comparable, gather
from mtpd.utils.environment import describe
from mtpd.utils.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--run', default='runs/mini_retinanet_r50__r101_rx101/0', type=Path)
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    run = load_run(args.run)
    study = gather(run)
    recipe = load_recipe(run.path / 'recipe.py')
    by_seed = generalisation.over_seeds(recipe, run)
    control = study.control and study.control.name
    found = {
        'command': ' '.join(['python', *sys.argv]),
        'seeds': sorted(by_seed),
        'commits': {
            seed: other.environment.get('git_commit')
            for seed, other in sorted(comparable(run)[0].items())
        },
        'table': gap.table_rows(by_seed),
        'differences': gap.difference_rows(by_seed, control),
        'conclusion': gap.conclude(by_seed, control),
        'nearness': {
            seed: nearness.table_rows(
                recipe, stage_checkpoints(recipe, run.arm()['name'], other.path)
            )
            for seed, other in sorted(comparable(run)[0].items())
        },
        'ap': study.json()['orders'],
        'rows': by_seed,
        'environment': describe(),
    }
    for row in (*found['table'], *found['differences'], *found['nearness'].items()):
        print(row)
    print('\n'.join(found['conclusion']))
    if args.out:
        write_json(args.out, found)


if __name__ == '__main__':
    main()
