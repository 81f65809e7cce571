"""A run directory: whose it is, with which settings, and what run.json says of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.settings import CHANGEABLE, differing_settings, parse_settings, read_settings
from ..data.coco import fingerprint
from ..errors import MtpdError
from ..utils.files import make_writable_folder, read_json_if_valid, write_json, write_text
from ..utils.paths import ROOT, display_path

if TYPE_CHECKING:
    from ..config.recipe import Recipe

# A run directory with one of these has results to lose.
DATA = 'data.json'
RESULTS = ('notebooks', 'detectors', 'stages', 'latest.pth', 'model.pth')

# Beside `CHANGEABLE`, what a training or a choice of teachers in a run directory may have otherwise: it makes no other student.
NOT_TRAINED_WITH = (
    'name',
    'title',
    'order',
    'runtime',
    'evaluation',
    'data.cache',
    'schedule.log_interval',
    'schedule.checkpoint_interval',
    'schedule.eval_interval',
    'schedule.loggers',
)


def default_run_dir(recipe: Recipe, smoke: bool) -> Path:
    """Where a run goes without --work-dir."""
    name = f'{recipe.name}-smoke' if smoke else recipe.name
    return ROOT / 'runs' / name / str(recipe.seed)


def open_run(recipe: Recipe, run_dir: Path, smoke: bool, hidden: Iterable[str] = ()) -> bool:
    """Makes the run directory with recipe.py, run.json and data.json, or checks that they are this recipe's.

    Args:
        hidden: overrides that the smoke flag stands for, and the command to repeat leaves out.

    Returns:
        Whether the validation annotations have changed, see `claim_data`.

    Raises:
        MtpdError: it cannot be written to, or holds a run with other settings, or trainings on other annotations.
    """
    claim_run_dir(run_dir / 'recipe.py', recipe.text)
    has_other_val = claim_data(run_dir, [recipe.split('train')[0]], recipe.split('val')[0])
    info = run_info(recipe, smoke, hidden, run_dir)
    info['seconds'] = read_json_if_valid(run_dir / 'run.json', {}).get('seconds')
    write_json(run_dir / 'run.json', info)
    return has_other_val


def run_info(
    recipe: Recipe, smoke: bool = False, hidden: Iterable[str] = (), run_dir: Path | None = None
) -> dict:
    """What run.json says of a run of `recipe`, in `run_dir` if not where it goes by itself."""
    cfg = recipe.cfg
    return {
        'name': recipe.name,
        'title': cfg.get('title', recipe.name),
        'recipe': display_path(recipe.source),
        'seed': recipe.seed,
        'smoke': smoke,
        'command': shlex.join(_run_command(recipe, smoke, hidden, run_dir)),
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
        'dataset': Path(recipe.ensure_data()).name if cfg.data.root else 'DigitScenes',
        'paper': cfg.get('paper', {}),
        'classes': list(recipe.classes),
        'seconds': None,
    }


def _run_command(
    recipe: Recipe, smoke: bool, hidden: Iterable[str], run_dir: Path | None
) -> list[str]:
    """The command that makes the run, or continues it."""
    command = ['mtpd', 'run', display_path(recipe.source)]
    if recipe.seed:
        command += ['--seed', str(recipe.seed)]
    options = [
        f'{key}={value}'
        for key, value in recipe.overrides.items()
        if key != 'seed' and key not in hidden
    ]
    if options:
        command += ['--cfg-options', ' '.join(options)]
    if run_dir and run_dir.resolve() != default_run_dir(recipe, smoke).resolve():
        command += ['--work-dir', display_path(run_dir)]
    if smoke:
        command.append('--smoke')
    return command


# The settings of a run directory, in its recipe.py (config.py where a plain mmdet config is trained).


def claim_run_dir(settings_file: Path, text: str) -> None:
    """Writes a run's settings into its folder.

    Raises:
        MtpdError: it cannot be written to, or holds results of other settings.
    """
    make_writable_folder(settings_file.parent)
    if problem := settings_problem(settings_file, text):
        raise MtpdError(problem)
    write_text(settings_file, text)


def settings_problem(settings_file: Path, text: str) -> str | None:
    """What is wrong where a folder has results of a run with other settings than `text`."""
    folder = settings_file.parent
    if not settings_file.is_file() or not any((folder / name).exists() for name in RESULTS):
        return None
    if settings_file.read_text(encoding='utf-8') == text:
        return None
    try:
        recorded, settings = read_settings(settings_file), parse_settings(text, 'the recipe')
    except MtpdError:  # more than literals: in the file, or in a plain mmdet config
        return other_settings_text(folder)
    keys = differing_settings(recorded, settings, [*CHANGEABLE, *_unused_methods(settings)])
    is_smoke = read_json_if_valid(folder / 'run.json', {}).get('smoke')
    return (
        other_settings_text(folder, keys, 'a smoke run' if is_smoke else 'a run') if keys else None
    )


def refuse_other_settings(recipe: Recipe, run_dir: Path) -> None:
    """Looks whether a training or a choice of teachers fits to what is in a run directory already.

    The settings must be the same, but for those of `CHANGEABLE` and `NOT_TRAINED_WITH`, labels, further arms, and what
    methods other than the recipe's are set to.

    Raises:
        MtpdError: the directory is of other settings, or has a recipe.py that the kit did not write.
    """
    settings = recipe.cfg._cfg_dict.to_dict()
    allowed = [*CHANGEABLE, *NOT_TRAINED_WITH, *_unused_methods(settings)]
    for folder in (run_dir, run_dir / 'order'):
        recorded = read_settings(folder / 'recipe.py')
        if recorded is None:
            continue
        further_arms = set(settings['arms']) ^ set(recorded.get('arms', ()))
        keys = differing_settings(
            recorded, settings, [*allowed, *(f'arms.{name}' for name in further_arms)]
        )
        if keys := [key for key in keys if not key.endswith('.label')]:
            raise MtpdError(other_settings_text(run_dir, keys))


def _unused_methods(settings: dict) -> list[str]:
    """The keys of settings of methods that a recipe does not distil with; none of a plain mmdet config."""
    distill = settings.get('distill') or {}
    methods = [name for name in distill.get('settings', {}) if name != distill.get('method')]
    return [f'distill.settings.{name}' for name in methods]


def other_settings_text(folder: Path, keys: Sequence[str] = (), content: str = 'a run') -> str:
    """The message about a folder that holds results of other settings.

    Args:
        keys: of the settings that differ.
        content: what the folder holds.
    """
    names = ', '.join(keys[:3])
    if len(keys) > 3:
        names += f' and {len(keys) - 3} more'
    which = f' ({names})' if keys else ''
    return f'{folder} holds {content} with other settings{which}. Choose another --work-dir, or remove that folder.'


@contextmanager
def recorded_settings(recipe: Recipe, run_dir: Path, out: Path) -> Iterator[None]:
    """Writes recipe.py into a run directory that has none, and data.json, for a training in the block into `out`.

    The files are removed again where the block ends before the training's first checkpoint.
    """
    settings_file = run_dir / 'recipe.py'
    is_new = not settings_file.is_file()
    if is_new:
        make_writable_folder(run_dir)
        write_text(settings_file, recipe.text)
    claim_data(run_dir, [recipe.split('train')[0]], recipe.split('val')[0])
    try:
        yield
    finally:
        if is_new and not (out / 'training.json').is_file():
            settings_file.unlink(missing_ok=True)
            (run_dir / DATA).unlink(missing_ok=True)


# The annotation files that a run directory's trainings and numbers come from, in its data.json.


def claim_data(folder: Path, train: Sequence[Path], val: Path) -> bool:
    """Writes the SHA-256 of a run's annotation files into its folder.

    A folder of version 0.1 has none yet: its results are taken to be of these files.

    Args:
        train: those that trainings see.
        val: the one that detectors are measured on.

    Returns:
        Whether `val` has changed since: what was measured on it has to be measured again.

    Raises:
        MtpdError: the folder holds trainings on other annotations.
    """
    data = _data_fingerprints(train, val)
    if problem := _other_data_problem(folder, train, data):
        raise MtpdError(problem)
    recorded = read_json_if_valid(folder / DATA, data)
    if recorded != data or not (folder / DATA).is_file():
        write_json(folder / DATA, data)
    return recorded['val'] != data['val']


def refuse_other_data(recipe: Recipe, run_dir: Path) -> None:
    """Raises MtpdError where a run directory holds trainings on other annotations than the recipe's are now."""
    if not (run_dir / DATA).is_file():  # before `split`, which makes the built-in dataset
        return
    train, val = ([recipe.split(name)[0]] for name in ('train', 'val'))
    if all(path.is_file() for path in (*train, *val)):
        data = _data_fingerprints(train, *val)
        if problem := _other_data_problem(run_dir, train, data):
            raise MtpdError(problem)


def _data_fingerprints(train: Sequence[Path], val: Path) -> dict:
    return {'train': [fingerprint(path) for path in train], 'val': fingerprint(val)}


def _other_data_problem(folder: Path, train: Sequence[Path], data: dict) -> str | None:
    recorded = read_json_if_valid(folder / DATA, data)
    if recorded['train'] == data['train'] or not any(folder.rglob('training.json')):
        return None
    return (
        f'{folder} holds trainings on other annotations than {", ".join(map(str, train))} has now. Choose another '
        '--work-dir, remove that folder, or put the former file back.'
    )


def timestamp() -> str:
    """Now, in UTC, as the kit's JSON files have it."""
    return datetime.now(UTC).isoformat(timespec='seconds')
