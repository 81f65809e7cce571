"""A run directory at the start of a run: whose it is, what will happen in it, what is done already."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.schema import SWITCHES
from ..errors import MtpdError
from ..utils.files import flatten, make_writable, read_json_if_whole, write_json, write_text
from ..utils.paths import ROOT, display_path

if TYPE_CHECKING:
    from ..config.recipe import Recipe

# What a run has as soon as it has anything worth keeping.
RESULTS = ('notebooks', 'detectors', 'stages', 'latest.pth', 'model.pth')


def open_run(recipe: Recipe, run_dir: Path, smoke: bool, hidden: Iterable[str] = ()) -> None:
    """Makes the run directory with recipe.py and run.json, or checks that they are this recipe's.

    Args:
        hidden: overrides that the smoke flag stands for, and the command to repeat leaves out.

    Raises:
        MtpdError: it cannot be written to, or holds a run with other settings.
    """
    claim_run_dir(run_dir / 'recipe.py', recipe.text)
    info = run_info(recipe, smoke, hidden, run_dir)
    info['seconds'] = read_json_if_whole(run_dir / 'run.json', {}).get('seconds')
    write_json(run_dir / 'run.json', info)


def default_run_dir(recipe: Recipe, smoke: bool) -> Path:
    """Where a run goes without --work-dir."""
    return ROOT / 'runs' / (recipe.name + '-smoke' * smoke) / str(recipe.seed)


def run_info(
    recipe: Recipe, smoke: bool = False, hidden: Iterable[str] = (), run_dir: Path | None = None
) -> dict:
    """What run.json says of a run of `recipe`, in `run_dir` if not where it goes by itself."""
    command = ['mtpd', 'run', display_path(recipe.source)]
    if recipe.seed:
        command += ['--seed', str(recipe.seed)]
    options = {k: v for k, v in recipe.overrides.items() if k != 'seed' and k not in hidden}
    if options:
        command += ['--cfg-options', ' '.join(f'{key}={value}' for key, value in options.items())]
    if run_dir and run_dir.resolve() != default_run_dir(recipe, smoke).resolve():
        command += ['--work-dir', display_path(run_dir)]
    cfg = recipe.cfg
    return {
        'name': recipe.name,
        'title': cfg.get('title', recipe.name),
        'recipe': display_path(recipe.source),
        'seed': recipe.seed,
        'smoke': smoke,
        'command': shlex.join(command + ['--smoke'] * smoke),
        'arms': [
            {'name': a.name, 'label': a.label, 'teachers': list(a.teachers), 'updates': a.updates}
            for a in recipe.arms.values()
        ],
        'detectors': [
            {
                'name': name,
                'role': 'student' if name == 'student' else 'teacher',
                'label': spec.get('label', name),
                'shipped': recipe.checkpoint(name) is not None,
                'updates': spec.get('updates'),
            }
            for name, spec in recipe.detectors.items()
        ],
        'dataset': Path(recipe.data_root()).name if cfg.data.root else 'DigitScenes',
        'paper': cfg.get('paper', {}),
        'classes': list(recipe.classes),
        'seconds': None,
    }


@contextmanager
def recorded_settings(recipe: Recipe, run_dir: Path, out: Path) -> Iterator[None]:
    """Writes down what a run directory's trainings are made with, unless it says so already; not where the block, which
    trains into `out`, ends before the training's first checkpoint.
    """
    kept, done = run_dir / 'recipe.py', out / 'training.json'
    if kept.is_file():
        yield
        return
    make_writable(run_dir)
    write_text(kept, recipe.text)
    try:
        yield
    finally:
        if not done.is_file():
            kept.unlink(missing_ok=True)


def claim_run_dir(kept: Path, text: str) -> None:
    """Keeps a run's settings in its folder. Raises MtpdError as `writable`, or where results of others are there."""
    make_writable(kept.parent)
    if found := settings_problem(kept, text):
        raise MtpdError(found)
    write_text(kept, text)


def settings_problem(kept: Path, text: str) -> str | None:
    """What is wrong where a folder has results of a run with other settings than `text`: those kept in it."""
    results = any((kept.parent / name).exists() for name in RESULTS)
    if (
        not results
        or not kept.is_file()
        or comparable_settings(kept.read_text()) == comparable_settings(text)
    ):
        return None
    had, asked = (
        found if isinstance(found, dict) else {}
        for found in (comparable_settings(kept.read_text()), comparable_settings(text))
    )
    had, asked = dict(flatten(had)), dict(flatten(asked))
    keys = sorted(key for key in had | asked if had.get(key) != asked.get(key))
    named = f'{", ".join(keys[:3])}, ' if keys else ''
    return (
        f'{kept.parent} holds a run with other settings ({named}compare {kept}). Choose another --work-dir, '
        'or remove that folder.'
    )


def comparable_settings(text: str) -> str | dict:
    """A config's values, by which two runs are the same.

    Without how far to go on with corrupt images and how many processes load them: a run may be told so in between. A
    speed switch that an earlier version did not have is 'auto'.
    """
    try:
        lines = ast.parse(text).body
        values = {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
        values.get('data', {}).pop('corrupt_limit', None)
        values.get('runtime', {}).pop('workers', None)
        values['speed'] = dict.fromkeys(SWITCHES, 'auto') | values.get('speed', {})
    except (SyntaxError, ValueError, AttributeError):
        return text
    return values


def init_steps(names: list[str], status: dict) -> None:
    """Puts a run's steps into its status; what an earlier start finished stays done."""
    before = {entry['name']: entry for entry in status.get('steps', ())}
    fresh = dict.fromkeys(('started', 'ended', 'seconds', 'reason'))
    status['steps'] = [
        before[name]
        if before.get(name, {}).get('state') == 'done'
        else {'name': name, 'state': 'pending', **fresh, 'notebook': f'notebooks/{name}.ipynb'}
        for name in names
    ]


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec='seconds')
