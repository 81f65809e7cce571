"""Which runs may be compared: their settings without those that have no influence on AP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config.recipe import Recipe
from ..config.schema import SWITCHES
from ..config.settings import differing_settings, read_settings
from ..errors import MtpdError
from ..utils.paths import display_path, resolve_path
from .run import Run

# Keys without influence on the student's AP, with all below them. Labels have none either.
KEYS_WITHOUT_EFFECT = (
    *('seed', 'name', 'title', 'paper', 'order', 'runtime', 'evaluation'),
    *('data.cache', 'data.corrupt_limit', 'distill.method'),
    *(f'speed.{switch}' for switch in SWITCHES),
    *(
        f'schedule.{key}'
        for key in ('log_interval', 'checkpoint_interval', 'eval_interval', 'loggers')
    ),
)
# Keys that come with a method.
METHOD_KEYS = (
    'distill.settings',
    'distill.levels',
    'distill.student_module',
    'distill.teacher_module',
)


@dataclass(frozen=True)
class Settings:
    """Settings of a run, of which `setting_differences` compares two.

    Attributes:
        method: the class of the distillation loss ('MGD').
        source: the run directory or file that they are from.
        values: by key, as recipe.py states them; 'distill.settings' are those of the method alone.
    """

    method: str
    seed: int
    source: str
    values: dict


def recipe_settings(recipe: Recipe, source: str) -> Settings:
    """The settings of a run of `recipe`."""
    return _comparable_settings(recipe.cfg._cfg_dict.to_dict(), source)


def run_settings(run: Run) -> Settings | None:
    """The settings that a run directory's recipe.py states, None where there is none. Runs no code of it.

    Raises:
        MtpdError: it is not one that the kit wrote.
    """
    return _folder_settings(run.path)


def setting_differences(a: Settings, b: Settings) -> list[str]:
    """Dotted keys in which two runs differ, apart from the seed, the method and its settings."""
    ignored = KEYS_WITHOUT_EFFECT if a.method == b.method else KEYS_WITHOUT_EFFECT + METHOD_KEYS
    keys = differing_settings(a.values, b.values, ignored)
    return [key for key in keys if key.rpartition('.')[2] != 'label']


def _folder_settings(folder: Path) -> Settings | None:
    values = read_settings(folder / 'recipe.py')
    if values is None:
        return None
    try:
        return _comparable_settings(values, display_path(folder.resolve()))
    except (KeyError, TypeError):
        raise MtpdError(
            f'{display_path(folder / "recipe.py")} does not say how the run was distilled: it is not as the kit wrote it.'
        ) from None


def _comparable_settings(values: dict, source: str) -> Settings:
    distill = values['distill']
    method = distill['settings'][distill['method']]
    values = {**values, 'distill': {**distill, 'settings': method}}
    return Settings(method['type'], values['seed'], source, values)


# Where other runs are.


def named_runs(source: Path, folders: Sequence[str]) -> list[Path]:
    """The run directories that `folders` name, each a run or a folder of runs; relative names also from `source`, a recipe's
    file."""
    paths = []
    for folder in folders:
        path = resolve_path(folder, source).resolve()
        inside = [] if (path / 'run.json').is_file() else sorted(path.glob('*/run.json'))
        paths += [file.parent for file in inside] or [path]
    return paths


def sibling_runs(run: Run) -> list[Path]:
    """Run directories of the same recipe beside `run`, and in the folders beside its own whose names begin with the
    recipe's; smoke runs are left out."""
    name = run.info['name']
    folder = run.path.resolve().parent
    others = [path for path in folder.parent.glob(f'{name}*') if not path.match('*-smoke')]
    files = {file for path in (folder, *others) for file in path.glob('*/run.json')}
    return [
        file.parent for file in sorted(files) if _states_name(file.with_name('recipe.py'), name)
    ]


def _states_name(recipe: Path, name: str) -> bool:
    """Whether a recipe.py is of the recipe of that name; told from its lines, since it may be damaged."""
    return (
        recipe.is_file() and f'name = {name!r}' in recipe.read_text(encoding='utf-8').splitlines()
    )
