"""bf16 against fp32: AP of baseline and arms over seeds, and the losses of an arm's stages overlaid.

python benchmarks/precision.py --out results/bench/precision.json     # and precision.png beside it

Both precisions train at the same time, by one thread each. What is done is not done again: the same command goes on.
Everything but the precision is the recipe's; AP is measured in fp32.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from mtpd.analysis.run import ap_points
from mtpd.config.recipe import load_recipe
from mtpd.pipeline.detectors import train_detector_run
from mtpd.pipeline.stages import train_stage
from mtpd.plots import figure
from mtpd.utils.files import read_log, write_json
from mtpd.utils.machine import describe_environment

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
PRECISIONS = ('fp32', 'bf16')
COMMON = 'runtime.threads=1 runtime.workers=0'


def plan_of(options: argparse.Namespace, precision: str, seed: int):
    return load_recipe(options.recipe, f'{COMMON} speed.precision={precision}', seed)


def train(options: argparse.Namespace, precision: str) -> None:
    """Everything of one precision."""
    for seed in options.seeds:
        plan, folder = plan_of(options, precision, seed), options.runs / precision / str(seed)
        train_detector_run(plan, 'student', folder)
        for arm in options.arms:
            for stage in range(1, len(plan.arm(arm).teachers) + 1):
                train_stage(plan, stage, arm, folder)


def collected(options: argparse.Namespace) -> dict:
    """AP by step, precision and seed, and the differences; the log rows of the last arm's stages."""
    ap: dict = {}
    curves: dict = {precision: {} for precision in PRECISIONS}
    for precision in PRECISIONS:
        for seed in options.seeds:
            plan, folder = plan_of(options, precision, seed), options.runs / precision / str(seed)
            made = {'baseline': train_detector_run(plan, 'student', folder)}
            for arm in options.arms:
                stages = len(plan.arm(arm).teachers)
                made[arm] = train_stage(plan, stages, arm, folder)
                curves[precision][seed] = [
                    row | {'stage': stage}
                    for stage in range(1, stages + 1)
                    for row in read_log(train_stage(plan, stage, arm, folder)['dir'] / 'log.json')
                ]
            for step, training in made.items():
                ap.setdefault(step, {}).setdefault(precision, []).append(
                    ap_points(training['metrics'])['AP']
                )
    summary = {}
    for step, by in ap.items():
        gaps = [b - a for a, b in zip(by['fp32'], by['bf16'], strict=True)]
        summary[step] = {
            **{f'{key}_mean': statistics.mean(values) for key, values in by.items()},
            **{f'{key}_sd': statistics.stdev(values) for key, values in by.items()},
            'difference_mean': statistics.mean(gaps),
            'difference_sd': statistics.stdev(gaps),
        }
    return {'ap': ap, 'summary': summary, 'curves': curves}


def drawn(curves: dict, arm: str) -> figure.Figure:
    """Total loss by update: a line per seed and precision, in a panel per stage."""
    stages = sorted({row['stage'] for rows in curves['fp32'].values() for row in rows})
    fig = figure.new_figure(3.6 * len(stages) + 0.6, 3.2)
    panels = fig.subplots(1, len(stages), sharey=True, squeeze=False)[0]
    for ax, stage in zip(panels, stages, strict=True):
        title = f'{arm}, stage {stage}'
        figure.style_axes(
            ax, xlabel='updates', ylabel='loss' if stage == 1 else '', title=title, grid='y'
        )
        for number, precision in enumerate(PRECISIONS):
            for seed, rows in curves[precision].items():
                stage_rows = [row for row in rows if row['stage'] == stage]
                ax.plot(
                    [row['update'] for row in stage_rows],
                    [row['loss'] for row in stage_rows],
                    color=figure.COLOURS[(2, 6)[number]],
                    linestyle=figure.LINES[number],
                    linewidth=1.2,
                    alpha=0.75,
                    label=None if seed != min(curves[precision]) else precision,
                )
        ax.legend(frameon=False)
    fig.alt = (
        f'Loss of {arm} by update, {len(curves["fp32"])} seeds each in fp32 and bf16, overlaid.'
    )
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('recipe', nargs='?', default=MINI)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument('--arms', nargs='+', default=['none', 'direct', 'progressive'])
    parser.add_argument('--runs', type=Path, default=Path('runs/precision'))
    parser.add_argument('--only', choices=PRECISIONS, help=argparse.SUPPRESS)
    parser.add_argument('--out', type=Path, help='the JSON')
    options = parser.parse_args()
    options.runs = options.runs.resolve()
    if options.only:
        train(options, options.only)
        return
    workers = [
        subprocess.Popen([sys.executable, *sys.argv, '--only', precision])
        for precision in PRECISIONS
    ]
    if sum(worker.wait() != 0 for worker in workers):
        sys.exit('a training failed: see above')
    report = collected(options)
    for step, row in report['summary'].items():
        print(
            f'{step:<12} fp32 {row["fp32_mean"]:.2f} ± {row["fp32_sd"]:.2f}   bf16 {row["bf16_mean"]:.2f} ± '
            f'{row["bf16_sd"]:.2f}   difference {row["difference_mean"]:+.2f} ± {row["difference_sd"]:.2f}'
        )
    if options.out:
        keep = ('update', 'stage', 'loss')
        for rows in (rows for by in report['curves'].values() for rows in by.values()):
            rows[:] = [{key: row[key] for key in keep} for row in rows if 'loss' in row]
        write_json(
            options.out,
            {
                'what': 'Validation AP in points by step, precision and seed; the loss of the last arm.',
                'command': ' '.join(['python', *sys.argv]),
                'recipe': str(options.recipe),
                'seeds': options.seeds,
                **report,
                'environment': describe_environment(threads=1),
            },
        )
        image = drawn(report['curves'], options.arms[-1]).encoded()[1]
        options.out.with_suffix('.png').write_bytes(image)


if __name__ == '__main__':
    main()
