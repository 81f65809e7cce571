"""Options that several commands of `mtpd` share, and how a user's mistake is printed."""

from __future__ import annotations

import errno
import functools
import re
import signal
from pathlib import Path

import click

from ..config.schema import parse_overrides
from ..errors import MtpdError
from ..utils.paths import find_config_file, user_path
from ..utils.processes import sigterm_unwinds
from ..utils.world import wait_for_rank_0

FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class PathType(click.ParamType):
    """A path; `~` is the home folder also where the shell leaves it, as in --work-dir=~/runs."""

    name = 'path'

    def convert(self, value: str | Path, param, ctx) -> Path:
        return user_path(value)


PATH = PathType()


class Command(click.Command):
    """Takes several words after an option that may be repeated, as mmdet's tools do.

    `--metrics bbox segm` and `--cfg-options seed=1 schedule.arm=3` are `--metrics bbox --metrics segm` and so on. A word
    belongs to the option before it if it is one of its choices or, for `--cfg-options`, begins with ``KEY=``; other options
    that may be repeated take all words up to the next option.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        patterns = {
            flag: _word_pattern(option)
            for option in self.params
            if isinstance(option, click.Option) and option.multiple
            for flag in option.opts
        }
        words: list[str] = []
        flag = None  # the option that the next words may belong to
        for word in args:
            if flag and words[-1] != flag:
                if re.match(patterns[flag], word):
                    words.append(flag)
                else:
                    flag = None
            if word in patterns:
                flag = word
            words.append(word)
        return super().parse_args(ctx, words)


def _word_pattern(option: click.Option) -> str:
    """What a word that belongs to the option begins with."""
    if isinstance(option.type, click.Choice):
        return '|'.join(map(re.escape, option.type.choices)) + '$'
    return r'[A-Za-z_][\w.]*=' if option.name == 'cfg_options' else '(?!-)'


class Main(click.Group):
    """Prints a user's mistake as one message (exit code 2) instead of a traceback.

    Args:
        sections: the names of its commands, by the heading under which --help lists them.
    """

    command_class = Command

    def __init__(self, *args, sections: dict[str, tuple[str, ...]], **settings):
        super().__init__(*args, **settings)
        self.sections = sections

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        limit = formatter.width - 6 - max(map(len, self.commands))
        for heading, names in self.sections.items():
            commands = [self.commands[name] for name in names if name in self.commands]
            with formatter.section(heading):
                formatter.write_dl([(c.name, c.get_short_help_str(limit)) for c in commands])

    def invoke(self, ctx: click.Context):
        with sigterm_unwinds():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context):
        try:
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


def _parse_overrides(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict:
    overrides: dict = {}
    for text in texts:
        try:
            overrides |= parse_overrides(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return overrides


cfg_options = click.option(
    '--cfg-options',
    multiple=True,
    callback=_parse_overrides,
    metavar='KEY=VALUE ...',
    help='Overrides of the recipe.',
)

as_json_option = click.option('--json', 'as_json', is_flag=True, help='Print JSON.')


def echo_json(value) -> None:
    import json

    from ..utils.files import json_value

    click.echo(json.dumps(json_value(value), indent=2, ensure_ascii=False))


def work_dir_option(help_text: str = 'Default: runs/<recipe>/<seed>.'):
    return click.option('--work-dir', type=PATH, help=help_text)


def recipe_options(command):
    """RECIPE, --seed, --gpus, --cfg-options and --work-dir; the command gets `recipe` (loaded) and `work_dir`."""
    from_recipe = _with_loaded_recipe(command, takes_plain=False)
    argument = click.argument('recipe', metavar='RECIPE', type=click.Path())
    return _add_options(from_recipe, argument, *_RUN_OPTIONS, work_dir_option(), cfg_options)


def config_options(command):
    """As `recipe_options`, of a command that also takes plain mmdet configs, and then gets a `PlainConfig`."""
    from_config = _with_loaded_recipe(command, takes_plain=True)
    argument = click.argument('recipe', metavar='CONFIG', type=click.Path())
    work_dir = work_dir_option('Default: runs/<recipe>/<seed>; of an mmdet config: runs/<config>.')
    return _add_options(from_config, argument, *_RUN_OPTIONS, work_dir, cfg_options)


def sweep_options(command):
    """As `recipe_options`, of a command that makes several runs: neither --seed nor --gpus."""
    from_recipe = _with_loaded_recipe(command, takes_plain=False)
    argument = click.argument('recipe', metavar='RECIPE', type=click.Path())
    work_dir = work_dir_option('Default: runs/<recipe>-sweep.')
    return _add_options(from_recipe, argument, work_dir, cfg_options)


_RUN_OPTIONS = (
    click.option('--seed', type=int, help="Default: the recipe's."),
    click.option(
        '--gpus',
        type=click.IntRange(1),
        help="Processes, each with a GPU. Default: the recipe's, or 1.",
    ),
)


def _with_loaded_recipe(command, takes_plain: bool):
    """`command`, which gets the loaded recipe in place of its path, its overrides, seed and number of GPUs."""

    def call(recipe, cfg_options, seed=None, gpus=None, **rest):
        find_config_file(recipe)  # a missing file is said before the heavy imports
        if gpus is not None:
            cfg_options = {**cfg_options, 'runtime.gpus': gpus}
        if takes_plain:
            from ..pipeline.mmdet_config import load_config as load
        else:
            from ..preflight.checks import load_or_report_all_problems as load

        return command(recipe=load(recipe, cfg_options, seed), **rest)

    functools.update_wrapper(call, command)
    call.__click_params__ = getattr(command, '__click_params__', [])
    return call


def _add_options(command, *options):
    for option in reversed(options):
        command = option(command)
    return command


def with_all_processes(command):
    """Under torchrun or srun rank 0 runs the command, and the other processes help it."""

    @functools.wraps(command)
    def call(recipe, **rest):
        from ..runtime.distributed import process_group

        with process_group(recipe.gpus, recipe.device, recipe.source, recipe.text):
            return command(recipe=recipe, **rest)

    return call


def is_plain(config, **recipe_only) -> bool:
    """Whether `config` is a plain mmdet config.

    Args:
        recipe_only: values of options that only a recipe has, by name.

    Raises:
        MtpdError: a plain config with one of these options.
    """
    from ..config.recipe import Recipe

    if isinstance(config, Recipe):
        return False
    for name, value in recipe_only.items():
        if value:
            raise MtpdError(
                f'--{name} is an option for recipes, and {config.source} is an mmdet config. Leave it out.'
            )
    return True
