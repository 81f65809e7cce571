"""The command line: `mtpd ...`, a thin shell over the package. Heavy imports wait for a command."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from . import __version__
from .errors import MtpdError
from .schema import parse_overrides
from .sweep import commands as sweeps

SPLIT = click.Choice(['train', 'val'])


class Main(click.Group):
    """Prints a user's mistake as one message (exit code 2) instead of a traceback."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except MtpdError as error:
            click.echo(f'mtpd: {error}', err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo('mtpd: interrupted; the same command goes on from here.', err=True)
            ctx.exit(130)


def _overrides(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict:
    found: dict = {}
    for text in texts:
        try:
            found |= parse_overrides(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return found


def recipe_options(command, seed: bool = True):
    """RECIPE, --seed, --work-dir and --cfg-options; the command gets `recipe` (loaded) and `work_dir`."""

    def call(recipe, cfg_options, seed=None, **rest):
        from .recipe import load_recipe

        return command(recipe=load_recipe(recipe, cfg_options, seed), **rest)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__click_params__ = getattr(command, '__click_params__', [])
    for option in (
        click.option(
            '--cfg-options',
            multiple=True,
            callback=_overrides,
            metavar='KEY=VALUE ...',
            help='Overrides of the recipe, several in one text or the option given again.',
        ),
        click.option(
            '--work-dir',
            type=click.Path(path_type=Path),
            help=f'Default: runs/<recipe>{"/<seed>" if seed else "-sweep"}.',
        ),
        *([click.option('--seed', type=int, help="Default: the recipe's.")] if seed else []),
        click.argument('recipe'),
    ):
        call = option(call)
    return call


@click.group(cls=Main, context_settings={'help_option_names': ['-h', '--help']})
@click.version_option(__version__)
def main() -> None:
    """MTPD reproduction kit: distil a detector from a sequence of teachers."""


@main.command()
@recipe_options
@click.option('--smoke', is_flag=True, help='Next to no training: does everything work?')
def run(recipe, work_dir: Path | None, smoke: bool) -> None:
    """Run all steps of RECIPE, skipping what is done, and write the report."""
    from .notebooks import NotebookError
    from .pipeline import run_recipe
    from .report import make_report

    minutes = recipe.cfg.get('expected_minutes')
    if minutes and not smoke:
        click.echo(f'{recipe.name}: about {minutes:g} minutes on 2 CPU cores')
    try:
        run_dir = run_recipe(recipe, work_dir, smoke, click.echo, sys.stdout)
    except NotebookError as error:  # what there is, is worth a report too
        click.echo(f'report: {make_report(error.out.parents[1])}')
        raise
    click.echo(f'report: {make_report(run_dir)}')


@main.command()
@recipe_options
@click.option('--detector', help='student (its baseline), or a teacher. Default: student.')
@click.option('--arm', help='Train a stage of this arm instead.')
@click.option('--stage', type=int, default=1, show_default=True, help='Which stage of the arm.')
def train(recipe, work_dir: Path | None, detector: str | None, arm: str | None, stage: int) -> None:
    """Train a plain detector of RECIPE, or one stage of distillation with what comes before it."""
    from .train import train_detector_run, train_stage

    if arm and detector:
        raise click.UsageError('--arm trains a stage and --detector a plain detector: give one.')
    if arm:
        made = train_stage(recipe, stage, arm, work_dir)
    else:
        made = train_detector_run(recipe, detector or 'student', work_dir)
    click.echo(f'AP {100 * made["metrics"]["bbox_mAP"]:.1f}  {made["checkpoint"]}')


@main.command()
@recipe_options
def order(recipe, work_dir: Path | None) -> None:
    """How far RECIPE's detectors are from each other, and the sequence of teachers that suggests."""
    from .order import adaptation_costs, choose, conclusion

    labels = {name: spec.get('label', name) for name, spec in recipe.detectors.items()}
    costs = adaptation_costs(recipe, work_dir)
    width = max(map(len, costs['detectors']))
    click.echo(f'adaptation cost, row to column, {costs["images"]} images:')
    click.echo(' ' * width + ''.join(f'  {name:>{max(width, 6)}}' for name in costs['detectors']))
    for name, row in zip(costs['detectors'], costs['cost'], strict=True):
        click.echo(f'{name:<{width}}' + ''.join(f'  {value:{max(width, 6)}.3f}' for value in row))
    found = choose(recipe, costs, work_dir)
    click.echo('\n'.join([*found['reasons'], conclusion(found, labels)]))


main.command()(recipe_options(sweeps.sweep, seed=False))
main.add_command(sweeps.status)
main.add_command(sweeps.collect)


@main.command(name='eval')
@recipe_options
@click.option('--checkpoint', required=True, type=click.Path(path_type=Path))
@click.option('--detector', default='student', show_default=True, help='Whose architecture it has.')
@click.option(
    '--metrics', multiple=True, type=click.Choice(['bbox', 'segm']), help='Default: bbox.'
)
@click.option('--out', type=click.Path(path_type=Path), help='Folder for metrics.json.')
def evaluate_(recipe, work_dir, checkpoint, detector, metrics, out) -> None:
    """COCO numbers of a checkpoint on RECIPE's validation split, as JSON."""
    import json

    from .evaluate import evaluate

    found = evaluate(recipe, checkpoint, metrics or ('bbox',), detector, out)
    click.echo(json.dumps(found, indent=2))


@main.command()
@click.argument('source', type=click.Path(path_type=Path))
@click.argument('target', type=click.Path(path_type=Path))
@click.option('--half', is_flag=True, help='Store the weights in float16: half the size.')
def export(source: Path, target: Path, half: bool) -> None:
    """Write the student in SOURCE (any layout) to TARGET as a plain mmdet checkpoint."""
    from .checkpoints import export_student

    click.echo(export_student(source, target, half))


@main.command()
@click.argument('run_dir', metavar='RUN', type=click.Path(path_type=Path))
def report(run_dir: Path) -> None:
    """Write the HTML report of a run directory."""
    from .report import make_report

    click.echo(make_report(run_dir))


@main.group()
def data() -> None:
    """Make or fetch datasets."""


@data.command()
@click.option('--root', default='data', show_default=True, type=click.Path(path_type=Path))
@click.option('--train', default=2000, show_default=True, help='Training scenes.')
@click.option('--val', default=200, show_default=True, help='Validation scenes.')
@click.option('--size', default=128, show_default=True, help='Side of a scene in pixels.')
@click.option('--seed', default=0, show_default=True)
def digits(root: Path, train: int, val: int, size: int, seed: int) -> None:
    """Make DigitScenes below ROOT, or check the ones that are there."""
    from .data import digits as scenes

    folder = scenes.make(root, train, val, size, seed)
    broken = scenes.verify(folder)
    if broken:
        raise MtpdError(
            f'{folder}: files of {", ".join(broken)} have changed. Remove the folder and make it again.'
        )
    click.echo(f'{folder}: {train} + {val} scenes of {size} x {size} pixels, checksums right')


@data.command()
@click.option('--root', default='data/coco', show_default=True, type=click.Path(path_type=Path))
@click.option(
    '--split',
    'splits',
    multiple=True,
    type=SPLIT,
    help='One or both: --split train val. Default: both.',
)
@click.argument('more', nargs=-1, type=SPLIT, metavar='')  # `--split train val`
@click.option('--server', envvar='MTPD_COCO_SERVER', help='A mirror with the same archives.')
@click.option('--remove-zips', is_flag=True, help='Remove the archives once all is checked.')
def coco(root: Path, splits, more, server: str | None, remove_zips: bool) -> None:
    """Fetch COCO 2017 (20 GB, 40 GB with what it unpacks to) into ROOT, or check what is there.

    Goes on where it was interrupted. Sizes and SHA-256 of the archives are compared with those that TensorFlow
    Datasets recorded, as COCO publishes none. Terms of use: https://cocodataset.org/#termsofuse
    """
    from .data.coco_download import SERVER, download

    splits = (*splits, *more) or ('train', 'val')
    download(root, splits, server or SERVER, remove_zips, click.echo)


@main.command()
@click.argument('recipe', required=False)
def doctor(recipe: str | None) -> None:
    """Check this machine (and RECIPE's data and checkpoints): all problems at once, with fixes."""
    from .doctor import report as check

    sys.exit(check(recipe))


@main.command(name='install-ops')
@click.option('--cuda-arch', help="For example 9.0. Default: the GPU's own.")
@click.option('--rebuild', is_flag=True, help='Compile again even where a built wheel is cached.')
def install_ops(cuda_arch: str | None, rebuild: bool) -> None:
    """Build mmcv-full's compiled ops against the installed torch; cached outside the checkout."""
    from .ops import install

    install(cuda_arch, rebuild, echo=click.echo)


if __name__ == '__main__':
    main()
