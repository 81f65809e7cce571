"""What a run was made with: its method, its seed, and whether another run differs in anything else."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.recipe import Recipe
from ..config.schema import SWITCHES
from ..errors import MtpdError
from ..utils.files import flatten, json_value
from ..utils.paths import display_path, resolve_path
from .run import Run

# Keys without influence on the student's AP, and what a method brings with it.
IDLE = {'seed', 'name', 'title', 'paper', 'order', 'runtime', 'evaluation'}
IDLE |= (
    {'data.cache', 'data.corrupt_limit'}
    | {f'schedule.{key}_interval' for key in ('log', 'checkpoint', 'eval')}
    | {'distill.method', 'schedule.loggers'}
    | {f'speed.{switch}' for switch in SWITCHES}
)
OWN = {'distill.settings', 'distill.levels', 'distill.student_module', 'distill.teacher_module'}


@dataclass(frozen=True)
class Settings:
    """Attributes: the method's class ('MGD'), the seed, where that is from, and the other settings by dotted key."""

    method: str
    seed: int
    source: str
    settings: dict[str, Any]


def recipe_settings(recipe: Recipe, source: str) -> Settings:
    """The setup of a run of `recipe`."""
    return _settings_of(recipe.cfg._cfg_dict.to_dict(), source)


def run_settings(run: Run) -> Settings | None:
    """The setup that a run directory's recipe.py states, None where there is none. Runs no code of it.

    Raises:
        MtpdError: it is not one that the kit wrote.
    """
    return _kept(run.path)


def _kept(folder: Path) -> Settings | None:
    path = folder / 'recipe.py'
    if not path.is_file():
        return None
    try:
        lines = ast.parse(path.read_text(encoding='utf-8')).body
        cfg = {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
        return _settings_of(cfg, display_path(folder.resolve()))
    except (SyntaxError, ValueError, AttributeError, KeyError, TypeError):
        raise MtpdError(
            f'{display_path(path)} does not tell how the run was distilled: it is not as the kit wrote it.'
        ) from None


def _settings_of(cfg: dict, source: str) -> Settings:
    method = cfg['distill']['settings'][cfg['distill']['method']]
    cfg = {**cfg, 'distill': {**cfg['distill'], 'settings': method}}
    settings = {key: value for key, value in flatten(json_value(cfg)) if _counts(key, value)}
    return Settings(method['type'], cfg['seed'], source, settings)


def _counts(key: str, value: Any) -> bool:
    """Whether a setting may make a difference; an older recipe.py may lack one that is None or 'auto'."""
    idle = any(f'{key}.'.startswith(f'{name}.') for name in IDLE) or key.split('.')[-1] == 'label'
    return not idle and value is not None and (key, value) != ('speed.precision', 'auto')


def setting_differences(a: Settings, b: Settings) -> list[str]:
    """Keys in which two setups differ although only the seed, or the method and what it brings along, may."""
    keys = sorted(
        key for key in a.settings | b.settings if a.settings.get(key) != b.settings.get(key)
    )
    if a.method == b.method:
        return keys
    return [key for key in keys if not any(key == own or key.startswith(f'{own}.') for own in OWN)]


def named_runs(source: Path, folders: Sequence[str]) -> list[Path]:
    """The run directories that `folders` name, also seen from a recipe's file: runs, or folders of runs."""
    found = []
    for folder in folders:
        path = resolve_path(folder, source).resolve()
        inside = [] if (path / 'run.json').is_file() else sorted(path.glob('*/run.json'))
        found += [item.parent for item in inside] or [path]
    return found


def sibling_runs(run: Run) -> list[Path]:
    """Run directories of the same recipe beside `run`, and in the folders beside its own that begin with the recipe's
    name; not the smoke runs'."""
    name = run.info['name']
    here = run.path.resolve().parent
    beside = [path for path in here.parent.glob(f'{name}*') if not path.match('*-smoke')]
    files = {*here.glob('*/run.json')}.union(*(path.glob('*/run.json') for path in beside))
    own = f'name = {name!r}'
    return [path.parent for path in sorted(files) if own in _lines(path.with_name('recipe.py'))]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding='utf-8').splitlines() if path.is_file() else []
