"""Fit, generalisation and flatness over the seeds of a recipe, as notebook 06 measures them in each run, and how near the
progressive arm's features come to the teachers': one JSON file.

mtpd sweep configs/mini/retinanet_r50__r101_rx101.py --orders "rx101;r101,rx101" --seeds 0-4 --work-dir runs/fit
python benchmarks/generalisation.py --run runs/fit/mgd/0 \\
    --out results/mini_retinanet_r50__r101_rx101/generalisation.json
"""

import argparse
import sys
from pathlib import Path

from mtpd import load_recipe, load_run
from mtpd.analysis import feature_maps, generalisation, generalisation_gap
from mtpd.analysis.feature_maps import stage_checkpoints
from mtpd.analysis.run import Run
from mtpd.analysis.study import comparable_runs, load_study
from mtpd.utils.files import read_json_if_valid, write_json
from mtpd.utils.machine import describe_environment


def commit_of(run: Run) -> str | None:
    """That a run, or the sweep that it belongs to, was made on."""
    folders = run.path, run.path.parents[1]
    environments = [read_json_if_valid(folder / 'environment.json', {}) for folder in folders]
    return next((e['git_commit'] for e in environments if e.get('git_commit')), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--run', default='runs/mini_retinanet_r50__r101_rx101/0', type=Path)
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    run = load_run(args.run)
    study = load_study(run)
    recipe = load_recipe(run.path / 'recipe.py')
    for other in comparable_runs(run)[0].values():
        generalisation.measure_run(load_recipe(other.path / 'recipe.py'), other)
    by_seed = generalisation.measure_seeds(recipe, run)
    control = study.control and study.control.name
    report = {
        'command': ' '.join(['python', *sys.argv]),
        'seeds': sorted(by_seed),
        'commits': {
            seed: commit_of(other) for seed, other in sorted(comparable_runs(run)[0].items())
        },
        'table': generalisation_gap.gap_rows(by_seed),
        'differences': generalisation_gap.gap_difference_rows(by_seed, control),
        'conclusion': generalisation_gap.gap_verdict(by_seed, control),
        'nearness': {
            seed: feature_maps.distance_to_teachers(
                recipe, stage_checkpoints(recipe, run.arm()['name'], other.path)
            )
            for seed, other in sorted(comparable_runs(run)[0].items())
        },
        'ap': study.json()['orders'],
        'rows': by_seed,
        'environment': describe_environment(),
    }
    for row in (*report['table'], *report['differences'], *report['nearness'].items()):
        print(row)
    print('\n'.join(report['conclusion']))
    if args.out:
        write_json(args.out, report)


if __name__ == '__main__':
    main()
