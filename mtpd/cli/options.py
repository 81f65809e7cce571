"""What the commands of `mtpd` share: their options, and how a user's mistake is told."""

from __future__ import annotations

import errno
import functools
import signal
from pathlib import Path

import click

from ..config.schema import parse_overrides
from ..errors import MtpdError
from ..utils.paths import config_file
from ..utils.processes import sigterm_raises
from ..utils.world import wait_for_rank_0

FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class Main(click.Group):
    """Prints a user's mistake as one message (exit code 2) instead of a traceback."""

    def invoke(self, ctx: click.Context):
        try:
            with sigterm_raises():
                return super().invoke(ctx)
        except MtpdError as error:
            click.echo(f'mtpd: {wait_for_rank_0()}{error}', err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno not in FULL_OR_READ_ONLY:
                raise
            where = f' ({error.filename})' if error.filename else ''
            click.echo(
                f'mtpd: nothing more can be written: {error.strerror}{where}. Free some space or check permissions; the '
                'same command goes on from here.',
                err=True,
            )
            ctx.exit(2)
        except KeyboardInterrupt as end:
            name = f'{end}' or 'Ctrl-C'
            click.echo(f'mtpd: stopped by {name}; the same command goes on from here.', err=True)
            ctx.exit(128 + getattr(end, 'number', signal.SIGINT))


def _overrides(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict:
    found: dict = {}
    for text in texts:
        try:
            found |= parse_overrides(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return found


class Words(click.Command):
    """Takes several words for an option with choices that may be repeated: `--metrics bbox segm`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        choices = {
            flag: option.type.choices
            for option in self.params
            if isinstance(option.type, click.Choice) and option.multiple
            for flag in option.opts
        }
        given, flag = [], None
        for word in args:
            if word in choices:
                flag = word
            elif flag and given[-1] != flag:  # beyond the option's first word
                flag = flag if word in choices[flag] else None
                given += [flag] if flag else []
            given.append(word)
        return super().parse_args(ctx, given)


cfg_options = click.option(
    '--cfg-options',
    multiple=True,
    callback=_overrides,
    metavar='KEY=VALUE ...',
    help='Overrides of the recipe, several in one text or the option given again.',
)


as_json_option = click.option('--json', 'as_json', is_flag=True, help='For machines.')


def echo_json(found) -> None:
    import json

    from ..utils.files import json_value

    click.echo(json.dumps(json_value(found), indent=2, ensure_ascii=False))


def work_dir_option(end: str = '/<seed>', plain: bool = False):
    """--work-dir; its default is ``runs/<recipe>`` and `end`."""
    text = f'Default: runs/<recipe>{end}' + '; of an mmdet config: runs/<config>.' * plain
    return click.option('--work-dir', type=click.Path(path_type=Path), help=text)


def recipe_options(command, plain: bool = False, several: bool = False):
    """RECIPE, --seed, --work-dir, --gpus and --cfg-options; the command gets `recipe` (loaded) and `work_dir`.

    `plain`: it takes plain mmdet configs, too, and then gets a `PlainConfig`. `several`: runs, so neither seed nor GPUs.
    """

    def call(recipe, cfg_options, seed=None, gpus=None, **rest):
        config_file(recipe)  # before the heavy imports
        if gpus is not None:
            cfg_options = {**cfg_options, 'runtime.gpus': gpus}
        if plain:
            from ..pipeline.mmdet_config import load_config as load
        else:
            from ..preflight.checks import load_whole as load

        return command(recipe=load(recipe, cfg_options, seed), **rest)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__click_params__ = getattr(command, '__click_params__', [])
    options = [
        cfg_options,
        work_dir_option('-sweep' if several else '/<seed>', plain),
        click.argument('recipe', metavar='CONFIG' if plain else 'RECIPE', type=click.Path()),
    ]
    if not several:
        gpus = click.option(
            '--gpus',
            type=click.IntRange(1),
            help="Processes, each with a GPU. Default: the recipe's, or 1.",
        )
        options[2:2] = [gpus, click.option('--seed', type=int, help="Default: the recipe's.")]
    for option in options:
        call = option(call)
    return call


def with_all_processes(command):
    """Under torchrun or srun rank 0 runs the command, and the other processes help it."""

    @functools.wraps(command)
    def call(recipe, **rest):
        from ..runtime.distributed import joined

        with joined(recipe.gpus, recipe.device, recipe.source, recipe.text):
            return command(recipe=recipe, **rest)

    return call


def config_options(command):
    """As `recipe_options`, of a command that also takes plain mmdet configs."""
    return recipe_options(command, plain=True)


def sweep_options(command):
    """As `recipe_options`, of a command that makes several runs."""
    return recipe_options(command, several=True)


def refuse_for_plain(config, **options) -> bool:
    """Whether it is a plain mmdet config; MtpdError where options were given that only a recipe has."""
    from ..config.recipe import Recipe

    plain = not isinstance(config, Recipe)
    if plain and (given := [name for name, value in options.items() if value]):
        raise MtpdError(
            f'--{given[0]} is for recipes: {config.source} is an mmdet config, of one detector.'
        )
    return plain
