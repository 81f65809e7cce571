"""What a run will take: memory and time, from a few real updates of each kind of training, and disk."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from mmcv import ConfigDict
from mmdet.models import build_detector
from torch import nn

from ..config.plan import Training, planned_trainings
from ..config.recipe import Recipe
from ..data import coco
from ..distill.distiller import Teacher
from ..distill.losses import build_losses
from ..engine import memory
from ..engine.distill_config import distill_cfg
from ..engine.loop import data_workers, process_count, recipe_device
from ..engine.memory import largest_fit, scaled_image
from ..errors import MtpdError
from ..runtime.distributed import ProcessKilled, launch
from ..utils.files import accepts_files, nearest_existing_folder, read_json_if_valid, write_json
from ..utils.machine import GIB
from . import trial

NOTEBOOK_SECONDS = (
    10  # of a notebook, beside training and evaluation: its kernel's start, its figures
)
OTHER_NOTEBOOKS = 6  # beside those that train
FORECAST_FILE = 'preflight.json'
BUSY = 2 / 3  # of the time of updates; with a core for less of it other programs are at work


def forecast(
    recipe: Recipe, trainings: list[Training], run_dir: Path, echo: Callable[[str], None] = print
) -> tuple[dict | None, list[str]]:
    """What `trial.measure_updates` measures, or measured when the same run began, and what is wrong, a text each.

    It measures in a process of its own: a GPU's memory is free again afterwards, and where memory runs out only that
    process is ended. None where nothing is left to train.
    """
    todo = {t.title: (t.detector, t.teacher) for t in trainings if not t.done}
    if not todo:
        return None, []
    earlier = read_json_if_valid(run_dir / FORECAST_FILE, {})
    if earlier.get('recipe') == recipe.text and todo.keys() <= earlier['trainings'].keys():
        return earlier, []
    echo('trying a few updates of each kind of training ...')
    batch = recipe.cfg.schedule.batch_size // process_count(recipe)
    kinds = list(todo.values())
    detectors = [name for name in recipe.detectors if not recipe.is_features_only(name)]
    task = (str(recipe.source), recipe.overrides, batch, kinds, detectors)
    try:
        measured = launch(1, recipe_device(recipe), trial.measure_updates, task)
    except ProcessKilled as error:
        fix = 'A lower schedule.batch_size or image.scale takes less memory.'
        return None, [f'a few updates were tried, and failed: {error} {fix}']
    except RuntimeError as error:
        text = _failure_text(str(error)).rstrip('.')
        fix = '`mtpd train` with the same settings shows where it fails.'
        return None, [f'a few updates were tried, and failed: {text}. {fix}']
    except MtpdError as error:
        return None, [str(error)]
    return {'recipe': recipe.text, **measured}, memory_problems(recipe, measured['trainings'])


def _failure_text(text: str) -> str:
    """The first line of an error's text, which says what ended; with a traceback in it also the exception's line."""
    first = text.partition('\n')[0]
    traceback = text.rpartition('Traceback (most recent call last):\n')[2].splitlines()
    exception = next((line for line in traceback if not line.startswith(' ')), first)
    return first if exception == first else f'{first} {exception}'


def write_forecast(measured: dict | None, run_dir: Path) -> None:
    """Writes what `forecast` measured into a run directory, where it is read again."""
    if measured:
        write_json(run_dir / FORECAST_FILE, measured)


# Memory


def memory_problems(recipe: Recipe, rows: dict[str, dict]) -> list[str]:
    """Trainings whose largest batch does not fit into memory, or arms side by side that don't; of `rows` see `trial`."""
    batch, processes = recipe.cfg.schedule.batch_size, process_count(recipe)
    problems = [
        f'{title}: an update of {batch} images takes {_format_gib(row["wanted"])} of memory, and '
        f'{_format_gib(row["there"])} are free: {_what_to_lower(recipe, title, row, processes)}'
        for title, row in rows.items()
        if row['wanted'] > row['there']
    ]
    if problems or processes > 1:
        return problems
    largest = max(rows.values(), key=lambda row: row['wanted'])
    jobs = min(recipe.cfg.runtime.jobs, len(recipe.arms))
    fit = max(1, largest['there'] // largest['wanted'])
    if jobs <= fit:
        return []
    return [
        f'{jobs} arms side by side take {_format_gib(jobs * largest["wanted"])} of memory, and '
        f'{_format_gib(largest["there"])} are free: lower runtime.jobs to {fit}.'
    ]


def _what_to_lower(recipe: Recipe, title: str, row: dict, processes: int) -> str:
    batch = recipe.cfg.schedule.batch_size
    fit = largest_fit(batch, processes, row['fixed'], row['wanted'], row['there'])
    if fit.side is None:
        return 'the weights alone do not fit. Choose a smaller detector, or a machine with more memory.'
    names = memory.recipe_setting_names(recipe.cfg, processes, title)  # of a teacher it is its name
    scale = f'{names.side} to {scaled_image(names.scale, fit.side)}'
    if fit.images:
        return f'lower schedule.batch_size to {fit.images}, or {scale}.'
    return f'lower schedule.batch_size to {processes} and {scale}.'


def _format_gib(size: int) -> str:
    return f'{size / GIB:.1f} GiB'


# Time


def forecast_texts(recipe: Recipe, run_dir: Path, measured: dict) -> dict[str, str]:
    """What the rest of a run takes, in words: its ``time`` and ``memory``. `measured`: by `forecast`."""
    largest = max(row['wanted'] for row in measured['trainings'].values())
    seconds = seconds_left(recipe, run_dir, measured)
    time = f'about {_time_text(seconds)}, more where other programs use the machine'
    rows = measured['trainings'].values()
    wall = sum(row['seconds'] for row in rows)
    # Files of earlier versions lack it.
    processor = sum(row.get('processor', row['seconds']) for row in rows)
    if processor < BUSY * wall:
        time = (
            f'about {_time_text(seconds)} if the machine stays as busy as it is, far less alone: other programs use it, and '
            f'updates took {wall:.1f} s of wall time for {processor:.1f} s of processor time'
        )
    return {'time': time, 'memory': f'{_format_gib(largest)} a training'}


def _time_text(seconds: float) -> str:
    return f'{seconds / 60:.0f} minutes' if seconds < 7200 else f'{seconds / 3600:.1f} hours'


def seconds_left(recipe: Recipe, run_dir: Path, measured: dict) -> float:
    """About what the rest of a run takes: its trainings, evaluations and notebooks. `measured`: by `forecast`."""
    workers, cpu = data_workers(recipe), recipe_device(recipe) == 'cpu'
    seconds, evaluations = NOTEBOOK_SECONDS * OTHER_NOTEBOOKS, set()
    for training in (t for t in planned_trainings(recipe, run_dir) if not t.done):
        row = measured['trainings'][training.title]
        # Data workers load beside the training; on the CPU they take their time from it.
        update = row['seconds'] + row['data']
        if workers and not cpu:
            update = max(row['seconds'], row['data'] / workers)
        done = read_json_if_valid(training.folder / 'training.json', {}).get('update', 0)
        seconds += max(0, training.updates - done) * update + NOTEBOOK_SECONDS
        evaluations.add((training.folder, training.detector))
    for name in (n for n in recipe.detectors if not recipe.is_features_only(n)):
        folder = run_dir / 'detectors' / name
        if recipe.checkpoint(name) and not (folder / 'metrics.json').is_file():
            evaluations.add((folder, name))
    if recipe.cfg.data.root is None:
        images = recipe.cfg.data.scenes.val
    else:
        images = len(coco.read_annotations(recipe.split('val')[0])['images'])
    return seconds + sum(measured['images'][detector] * images for _, detector in evaluations)


# Disk


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def disk_problems(
    recipe: Recipe,
    trainings: Iterable[Training],
    folder: Path,
    free: Callable[[Path], int] = _free_bytes,
) -> list[str]:
    """Whether `folder` can't be written to, or lacks room for what the trainings still have to write; one text or none."""
    existing = nearest_existing_folder(folder)
    if not accepts_files(existing):
        return [f'{existing} cannot be written to. Choose another folder with --work-dir.']
    needed, room = bytes_to_write(recipe, trainings), free(existing)
    if needed <= room:
        return []
    return [
        f'the checkpoints still to be written take {_format_bytes(needed)}, and {folder} has {_format_bytes(room)} free: free '
        'some space, or choose another disk with --work-dir.'
    ]


def bytes_to_write(recipe: Recipe, trainings: Iterable[Training]) -> int:
    """Bytes of the checkpoints that the trainings still have to write.

    Each leaves a latest.pth and the detector in it; while it is at work there are two resumable checkpoints.
    """
    total, largest = 0, 0
    sizes = functools.cache(functools.partial(checkpoint_sizes, recipe))
    for training in trainings:
        if training.done:
            continue
        latest, final = sizes(training.detector, training.teacher)
        written = sum(path.stat().st_size for path in training.folder.glob('*.pth'))
        total += max(0, latest + final - written)
        largest = max(largest, latest)
    return total + largest * recipe.cfg.runtime.jobs


def checkpoint_sizes(recipe: Recipe, detector: str, teacher: str | None) -> tuple[int, int]:
    """Bytes of the numbers in a training's latest.pth, and in the detector's checkpoint that is made of it."""
    cfg = recipe.model(detector)
    model, losses = build_detector(ConfigDict(cfg)), nn.ModuleDict()
    if teacher:
        teacher_cfg = recipe.model(teacher)
        settings = distill_cfg(recipe, cfg, teacher_cfg)
        losses = build_losses(settings, model, Teacher(ConfigDict(teacher_cfg)))
        losses = nn.ModuleDict(losses)
    optimizer = recipe.cfg.schedule.optimizer
    plain = optimizer.type == 'SGD' and not optimizer.get('momentum')
    moments = 0 if plain else memory.optimizer_moments(optimizer.type)
    trained = sum(
        p.nbytes for part in (model, losses) for p in part.parameters() if p.requires_grad
    )
    final, added = (sum(t.nbytes for t in part.state_dict().values()) for part in (model, losses))
    return final + added + moments * trained, final


def _format_bytes(size: int) -> str:
    return f'{size / 1e9:.1f} GB' if size >= 1e8 else f'{size / 1e6:.1f} MB'
