"""The command line: `mtpd ...`, a thin shell over the package. Heavy imports wait for a command."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

import click

from .. import __version__
from . import data as datasets
from . import sweep as sweeps
from .options import (
    PATH,
    Main,
    as_json_option,
    cfg_options,
    config_options,
    echo_json,
    is_plain,
    recipe_options,
    sweep_options,
    with_all_processes,
    work_dir_option,
)

METRIC = click.Choice(['bbox', 'segm'])
# What one wants, and the commands for it.
SECTIONS = {
    'Start': ('run', 'new', 'recipes', 'show'),
    'Train and measure': ('train', 'order', 'eval', 'export'),
    'Look': ('report', 'compare', 'status', 'predict', 'diagnose'),
    'Many runs': ('sweep', 'collect'),
    'Set up': ('doctor', 'data', 'install-ops'),
}


@click.group(cls=Main, sections=SECTIONS, context_settings={'help_option_names': ['-h', '--help']})
@click.version_option(__version__)
@click.option(
    '-v',
    '--verbose',
    is_flag=True,
    help="Show mmdet's and mmcv's logs, too. Give it before COMMAND.",
)
def main(verbose: bool) -> None:
    """MTPD reproduction kit: distil a detector from a sequence of teachers."""
    if verbose:
        from ..utils.progress import VERBOSE_VARIABLE

        os.environ[VERBOSE_VARIABLE] = '1'
        logging.basicConfig(level='INFO', format='%(name)s: %(message)s')


@main.command()
@recipe_options
@click.option('--smoke', is_flag=True, help='Train for a few updates only: does everything work?')
def run(recipe, work_dir: Path | None, smoke: bool) -> None:
    """Run all steps of RECIPE, and write the report. What is done is skipped."""
    from ..pipeline.run import run_recipe
    from ..report.run import make_report

    run_recipe(recipe, work_dir, smoke, echo=click.echo, stream=sys.stdout, report=make_report)


@main.command()
@config_options
@click.option(
    '--detector', help='student (the baseline), or the name of a teacher. Default: student.'
)
@click.option('--arm', help='Train the stages of this arm instead.')
@click.option('--stage', type=int, help='The last stage of the arm to train. Default: all of them.')
@as_json_option
@with_all_processes
def train(recipe, work_dir, detector: str | None, arm: str | None, stage, as_json) -> None:
    """Train a plain detector, or the stages of an arm. What they need and lack is trained, too.

    CONFIG is a recipe, or an mmdet config: a file, or mmdet::retinanet/retinanet_r50_fpn_1x_coco.py. An mmdet config is
    trained as it is. --cfg-options then takes its keys, and data.root=FOLDER for any COCO-format dataset.
    """
    from ..pipeline.detectors import train_detector_run
    from ..pipeline.mmdet_config import config_run_dir, train_config
    from ..pipeline.run_dir import refuse_other_settings
    from ..pipeline.stages import train_stage
    from ..pipeline.status import run_lock

    if arm and detector:
        raise click.UsageError('--arm trains stages and --detector a plain detector: give one.')
    plain = is_plain(recipe, arm=arm, detector=detector)
    run_dir = config_run_dir(recipe, work_dir) if plain else recipe.run_dir(work_dir)
    # With --json standard output has the JSON alone.
    output = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    with output, run_lock(run_dir, ['mtpd', *sys.argv[1:]]):
        if plain:
            trained = train_config(recipe, work_dir)
        else:
            refuse_other_settings(recipe, run_dir)
            if arm:
                trained = train_stage(recipe, stage, arm, work_dir)
            else:
                trained = train_detector_run(recipe, detector or 'student', work_dir)
    checkpoint, metrics = trained['checkpoint'], trained['metrics']
    if as_json:
        echo_json({'checkpoint': checkpoint, 'metrics': metrics})
        return
    masks = f'  mask AP {100 * metrics["segm_mAP"]:.1f}' if 'segm_mAP' in metrics else ''
    click.echo(f'AP {100 * metrics["bbox_mAP"]:.1f}{masks}  {checkpoint}')


@main.command()
@click.argument('out', type=PATH)
@click.option('--student', required=True, help="The student's mmdet config: a file, or mmdet::...")
@click.option(
    '--teachers',
    required=True,
    multiple=True,
    help="The teachers' configs, in the order of the sequence.",
)
@click.option('--data', help="A dataset's folder in COCO format. Default: COCO in data/coco.")
@click.option('--method', default='mgd', show_default=True, help='The distillation loss.')
@click.option('--student-checkpoint', help='Weights that stages start from.')
@click.option(
    '--teacher-checkpoints',
    multiple=True,
    help="The teachers' weights, in their order. Default: those that mmdet publishes.",
)
@click.option('--pocket', is_flag=True, help='Small images and few updates, to see that all works.')
def new(
    out: Path, student, teachers, data, method, student_checkpoint, teacher_checkpoints, pocket
) -> None:
    """Write a recipe OUT for any student and teachers. It says what was chosen and why."""
    from ..pipeline.new_recipe import new_recipe

    text = new_recipe(
        out,
        student,
        list(teachers),
        data,
        method,
        student_checkpoint,
        pocket,
        teacher_checkpoints,
    )
    click.echo(
        ''.join(f'{line[2:]}\n' for line in text.splitlines() if line.startswith('# ')), nl=False
    )


@main.command()
@recipe_options
def order(recipe, work_dir: Path | None) -> None:
    """Suggest a sequence of teachers by adaptation costs. They say how far RECIPE's detectors are from each other."""
    from ..pipeline.run_dir import refuse_other_settings
    from ..pipeline.teacher_order import (
        adaptation_costs,
        calibration_text,
        order_conclusion,
        suggest_sequence,
    )
    from ..preflight.checks import check_before_training
    from ..utils.files import write_text
    from ..utils.paths import display_path

    run_dir = recipe.run_dir(work_dir)
    refuse_other_settings(recipe, run_dir)
    check_before_training(recipe, recipe.detectors)  # before what is not trained yet is trained
    labels = {name: spec.get('label', name) for name, spec in recipe.detectors.items()}
    costs = adaptation_costs(recipe, work_dir)
    write_text(run_dir / 'order' / 'recipe.py', recipe.text)
    width = max(map(len, costs['detectors']))
    click.echo('adaptation cost, row to column:')
    click.echo(' ' * width + ''.join(f'  {name:>{max(width, 6)}}' for name in costs['detectors']))
    for name, row in zip(costs['detectors'], costs['cost'], strict=True):
        click.echo(f'{name:<{width}}' + ''.join(f'  {value:{max(width, 6)}.3f}' for value in row))
    click.echo(calibration_text(costs))
    suggestion = suggest_sequence(recipe, costs, work_dir)
    click.echo('\n'.join([*suggestion['reasons'], order_conclusion(suggestion, labels)]))
    folder = display_path(run_dir / 'order')
    click.echo(f'intervals and levels: {folder}/costs.json, {folder}/sequence.json')


@main.command()
@config_options
def show(recipe, work_dir: Path | None) -> None:
    """Print a recipe or an mmdet config, and train nothing. It is resolved: bases and overrides are in it.

    CONFIG is Python, and loading it runs its code. Read what strangers wrote first.
    """
    from ..config.files import format_config

    click.echo(f'# {recipe.source}, resolved')
    click.echo(format_config(recipe.cfg._cfg_dict.to_dict(), wide=100), nl=False)


main.command()(sweep_options(sweeps.sweep))
main.add_command(sweeps.status)
main.add_command(sweeps.collect)


@main.command(name='eval')
@config_options
@click.option('--checkpoint', required=True, type=PATH)
@click.option('--detector', help='The detector whose architecture it has. Default: student.')
@click.option(
    '--metrics', multiple=True, type=METRIC, help="--metrics bbox segm. Default: the config's."
)
@click.option('--out', type=PATH, help='Folder for metrics.json.')
@click.option(
    '--ignore-classes',
    is_flag=True,
    help="Take its k-th class for the dataset's k-th class, whatever classes it was trained on.",
)
@with_all_processes
def evaluate_(recipe, work_dir, checkpoint, detector, metrics, out, ignore_classes) -> None:
    """Measure a checkpoint: COCO's numbers, as JSON.

    The checkpoint has any layout. It is measured on a recipe's validation split, or on an mmdet config's test split.
    """
    from ..engine.evaluation import evaluate, image_size_note
    from ..pipeline.mmdet_config import evaluate_config

    if is_plain(recipe, detector=detector):
        numbers = evaluate_config(
            recipe, checkpoint, metrics or recipe.metrics, out, ignore_classes
        )
    else:
        metrics = metrics or tuple(recipe.cfg.evaluation.metrics)
        name = detector or 'student'
        numbers = evaluate(recipe, checkpoint, metrics, name, out, ignore_classes)
        if note := image_size_note(recipe, checkpoint, name):
            click.echo(f'note: {note}', err=True)
    echo_json(numbers)


@main.command()
@click.argument('sources', metavar='IMAGE_OR_FOLDER...', nargs=-1, required=True)
@click.option('--checkpoint', required=True, type=PATH)
@click.option(
    '--config', help="The checkpoint's recipe or mmdet config. Default: the one that it names."
)
@click.option('--detector', default='student', help='Its name in the recipe. Default: student.')
@click.option('--out', default='predictions', show_default=True, type=PATH)
@click.option(
    '--threshold',
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    help='The lowest score that is drawn.',
)
@click.option('--device', default='auto', show_default=True, help='auto, cpu or cuda.')
def predict(sources, checkpoint, config, detector, out, threshold, device) -> None:
    """Draw what a checkpoint's detector finds in images. Boxes and, if it has them, masks are drawn; predictions.json has them, too.

    A folder stands for all images in it and below it. Images that cannot be read are listed at the end, with exit code 1.
    The other images have their predictions.
    """
    from collections import Counter

    from .. import predict as prediction

    model = prediction.detector(checkpoint, config, detector, device)
    with contextlib.closing(prediction.predict(model, sources, out, threshold)) as rows:
        for row in rows:
            counts = Counter(item['class'] for item in row['objects'])
            objects = ', '.join(f'{count} of class {name}' for name, count in counts.most_common())
            objects = objects or f'no object with a score of at least {threshold:g}'
            click.echo(f'{row["image"]} -> {row["drawn"]}: {objects}')


@main.command()
@as_json_option
def recipes(as_json: bool) -> None:
    """List the recipes: what each does, and the paper's AP on COCO."""
    from ..config.recipe import list_recipes

    rows = list_recipes()
    if as_json:
        echo_json(rows)
        return
    for row in rows:
        paper = f"  (the authors' model on COCO: {row['paper']} AP)" if row['paper'] else ''
        click.echo(f'{row["path"]:<58}  {row["title"]}{paper}')


@main.command()
@click.argument('source', type=PATH)
@click.argument('target')
@click.option('--half', is_flag=True, help='Store the weights in float16: half the size.')
@click.option(
    '--trust-checkpoint',
    is_flag=True,
    help='Also load Python objects, which old files have: RUNS ANY CODE in SOURCE.',
)
@click.option('--config', help='For ONNX: as in `mtpd predict`.')
@click.option('--detector', default='student', help='For ONNX: its name in the recipe.')
def export(source: Path, target: str, half: bool, trust_checkpoint: bool, config, detector) -> None:
    """Write the student in SOURCE for mmdet, or as ONNX. SOURCE is a checkpoint of any layout.

    TARGET is a folder (made where it ends in a slash), or a name. The start of the file's SHA-256 is added to the name:
    student-7ee888e0.pth. A name that ends in .onnx gives an ONNX file of that name, of a one-stage detector, which
    `mtpd.edge.EdgeDetector` runs without torch.
    """
    path = Path(target)
    if target.endswith('/'):
        from ..utils.files import make_writable_folder

        make_writable_folder(path, 'another TARGET')
    if path.suffix == '.onnx':
        from .. import predict as prediction
        from ..engine.onnx_export import export_onnx

        model = prediction.detector(source, config, detector, 'cpu')
        click.echo(export_onnx(model, path))
    else:
        from ..runtime.checkpoints import publish_student

        click.echo(publish_student(source, path, half, trust_checkpoint))


@main.command()
@click.argument('path', metavar='RUN_OR_RECIPE', type=PATH)
@click.option('--seed', type=int, help="Default: the recipe's.")
@cfg_options
@work_dir_option()
def diagnose(path: Path, seed: int | None, cfg_options: dict, work_dir: Path | None) -> None:
    """Say why a student is worse than expected. What is out of its usual range: measured value, usual range, what to change.

    It computes a few batches with the existing checkpoints, and reads the logs. Nothing is trained. RUN_OR_RECIPE is a
    run directory, a folder of `mtpd train`, or a recipe. Exit code 1: nothing could be measured.
    """
    from ..analysis.findings import diagnose, format_diagnosis

    diagnosis = diagnose(path, cfg_options, seed, work_dir)
    click.echo(format_diagnosis(diagnosis))
    sys.exit(0 if diagnosis.measured else 1)


@main.command()
@click.argument('folder', metavar='RUN_OR_SWEEP', type=PATH)
def report(folder: Path) -> None:
    """Write the HTML report of a run or of a sweep. The folder may also be one of `mtpd train`."""
    from ..report.run import make_report
    from ..sweep.report import make_sweep_report

    is_sweep = (folder / 'sweep.json').is_file()
    click.echo(make_sweep_report(folder) if is_sweep else make_report(folder))


@main.command()
@click.argument('folders', metavar='RUN RUN...', nargs=-1, required=True, type=PATH)
@click.option('--out', default='runs/comparison.html', show_default=True, type=PATH)
def compare(folders: tuple[str, ...], out: str) -> None:
    """Write one page about several run directories. AP stands side by side, settings that differ, and curves overlaid."""
    from ..report.comparison import compare_runs

    click.echo(compare_runs(folders, out))


main.add_command(datasets.data)


@main.command()
@click.argument('recipe', required=False, type=PATH)
@cfg_options
@work_dir_option()
@as_json_option
def doctor(recipe: str | None, cfg_options: dict, work_dir: Path | None, as_json: bool) -> None:
    """Check this machine, and all that a run of RECIPE needs. All problems are told at once, with fixes. Default: the demo's RECIPE.

    A few updates are tried, to measure the memory and the time that the run will take. RECIPE is Python, and its code runs.
    """
    from ..pipeline.doctor import print_checks, run_checks

    if as_json:
        checks = run_checks(recipe, cfg_options, work_dir)
        echo_json([check._asdict() for check in checks])
        sys.exit(any(check.state == 'fail' for check in checks))
    sys.exit(print_checks(recipe, click.echo, cfg_options, work_dir))


@main.command(name='install-ops')
@click.option(
    '--cuda-arch',
    help="GPU architectures of the ops: 9.0, or '8.0;9.0'; cpu: CPU ops. Default: that of this machine's GPU, if it has one.",
)
@click.option('--rebuild', is_flag=True, help='Compile again even where a built wheel is cached.')
@click.option(
    '--no-retry', is_flag=True, help='Keep CPU ops where an earlier build of CUDA ops failed.'
)
def install_ops(cuda_arch: str | None, rebuild: bool, no_retry: bool) -> None:
    """Build mmcv-full's compiled ops for the installed torch. They are cached outside the checkout.

    With a GPU and a torch for CUDA, CUDA ops for that GPU are built. Where nvcc is missing, pip's is fetched (150 MB).
    """
    from ..install.ops import install_ops

    install_ops(cuda_arch, rebuild, not no_retry, echo=click.echo)


if __name__ == '__main__':
    main()
