"""What a run will take, from a few real updates of each kind of its trainings: memory, and time."""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from mmcv import ConfigDict
from mmdet.models import build_detector
from torch import nn

from ..config.plan import Training, distill_cfg, planned_trainings
from ..config.recipe import Recipe
from ..data import coco
from ..distill.losses import build_losses
from ..engine import memory
from ..engine.loop import data_workers, process_count, recipe_device
from ..engine.memory import Advice, advise, scaled_image
from ..errors import MtpdError
from ..runtime.launch import launch
from ..utils.files import accepts_files, nearest_existing, read_json_if_whole, write_json
from ..utils.machine import GIB
from . import trial

STEP = (
    10  # seconds of a notebook beside what it trains and evaluates: its kernel's start, its figures
)
NOTEBOOKS = 6  # beside those that train
KEPT = 'preflight.json'


def forecast(
    recipe: Recipe, trainings: list[Training], run_dir: Path, echo: Callable[[str], None] = print
) -> tuple[dict | None, list[str]]:
    """What `trial.measure_updates` finds, or found when the same run began, and what is wrong: a text for each problem.

    It measures in a process of its own: a GPU's memory is free again afterwards, and where the memory runs out only
    that process is ended. None where nothing is left to train.
    """
    todo = {t.title: (t.detector, t.teacher) for t in trainings if not t.done}
    if not todo:
        return None, []
    kept = read_json_if_whole(run_dir / KEPT, {})
    if kept.get('recipe') == recipe.text and todo.keys() <= kept['trainings'].keys():
        return kept, []
    echo('trying a few updates of each kind of training ...')
    batch = recipe.cfg.schedule.batch_size // process_count(recipe)
    kinds, detectors = list(todo.values()), list(recipe.detectors)
    task = (str(recipe.source), recipe.overrides, batch, kinds, detectors)
    try:
        found = launch(1, recipe_device(recipe), trial.measure_updates, task)
    except MtpdError as error:
        return None, [str(error)]
    except RuntimeError as error:
        said = [
            line for line in str(error).splitlines() if re.match(r'[\w.]*(Error|Exception)\b', line)
        ]
        return None, [f'a few updates were tried, and failed: {said[-1] if said else error}']
    return {'recipe': recipe.text, **found}, memory_problems(recipe, found['trainings'])


def keep_forecast(found: dict | None, run_dir: Path) -> None:
    """Writes what `forecast` found into a run directory, where it finds it again."""
    if found:
        write_json(run_dir / KEPT, found)


def memory_problems(recipe: Recipe, rows: dict[str, dict]) -> list[str]:
    """Trainings whose largest batch does not fit into memory, and trainings side by side that don't."""
    batch, size = recipe.cfg.schedule.batch_size, process_count(recipe)
    found = []
    for title, row in rows.items():
        if row['wanted'] > row['there']:
            text = _lower(
                recipe, advise(batch, size, row['fixed'], row['wanted'], row['there']), size
            )
            found.append(f'{title}: an update of {batch} images takes {_gib(row["wanted"])} of memory, '
                         f'and {_gib(row["there"])} are free: {text}')  # fmt: skip
    jobs, most = min(recipe.cfg.runtime.jobs, len(recipe.arms)), max(rows.values(), key=_wanted)
    if not found and jobs > 1 and size == 1 and jobs * most['wanted'] > most['there']:
        fit = max(1, most['there'] // most['wanted'])
        found.append(
            f'{jobs} arms side by side take {_gib(jobs * most["wanted"])} of memory, and {_gib(most["there"])} are '
            f'free: lower runtime.jobs to {fit}.'
        )
    return found


def _lower(recipe: Recipe, fits: Advice, processes: int) -> str:
    if fits.side is None:
        return 'the weights alone do not fit. A smaller detector, or more memory, is needed.'
    scale = f'image.scale to {scaled_image(recipe.cfg.image.scale, fits.side)}'
    if fits.images:
        return f'lower schedule.batch_size to {fits.images}, or {scale}.'
    return f'lower schedule.batch_size to {processes} and {scale}.'


def _wanted(row: dict) -> int:
    return row['wanted']


def forecast_text(recipe: Recipe, run_dir: Path, found: dict) -> dict[str, str]:
    """What is left of a run will take: its ``time`` and ``memory``, in words."""
    most = max(row['wanted'] for row in found['trainings'].values())
    seconds = seconds_left(recipe, run_dir, found)
    time = f'{seconds / 60:.0f} minutes' if seconds < 7200 else f'{seconds / 3600:.1f} hours'
    return {
        'time': f'about {time}, more where other programs are at work',
        'memory': f'{_gib(most)} a training',
    }


def seconds_left(recipe: Recipe, run_dir: Path, found: dict) -> float:
    """About what is left of a run takes: its trainings, evaluations and notebooks. `found`: `forecast`'s."""
    workers, cpu = data_workers(recipe), recipe_device(recipe) == 'cpu'
    seconds, measured = NOTEBOOKS * STEP, set()
    for training in (t for t in planned_trainings(recipe, run_dir) if not t.done):
        row = found['trainings'][training.title]
        # Data workers load beside the training; on the CPU they take their time from it.
        beside = row['seconds'] + row['data']
        if workers and not cpu:
            beside = max(row['seconds'], row['data'] / workers)
        done = read_json_if_whole(training.folder / 'training.json', {}).get('update', 0)
        seconds += max(0, training.updates - done) * beside + STEP
        measured.add((training.folder, training.detector))
    for name in recipe.detectors:
        folder = run_dir / 'detectors' / name
        if recipe.checkpoint(name) and not (folder / 'metrics.json').is_file():
            measured.add((folder, name))
    images = recipe.cfg.data.scenes.val
    if recipe.cfg.data.root is not None:
        images = len(coco.read_annotations(recipe.split('val')[0])['images'])
    return seconds + sum(found['images'][detector] * images for _, detector in measured)


def _gib(size: int) -> str:
    return f'{size / GIB:.1f} GiB'


# Room on disk for the checkpoints that trainings leave.


def disk_problems(
    recipe: Recipe,
    trainings: Iterable[Training],
    folder: Path,
    free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
) -> list[str]:
    """Whether `folder` can't be written to, or lacks room for what the trainings still have to write; one text or none."""
    place = nearest_existing(folder)
    if not accepts_files(place):
        return [f'{place} cannot be written to. Choose another folder with --work-dir.']
    needed, room = bytes_to_come(recipe, trainings), free(place)
    if needed <= room:
        return []
    return [
        f'the checkpoints still to come take {_gb(needed)}, and {folder} has {_gb(room)} free: free some, or choose '
        'another disk with --work-dir.'
    ]


def bytes_to_come(recipe: Recipe, trainings: Iterable[Training]) -> int:
    """Bytes of the checkpoints that the trainings still have to write.

    Each leaves a latest.pth and the detector in it; while it is at work there are two resumable checkpoints.
    """
    total, largest = 0, 0
    sizes = functools.cache(functools.partial(checkpoint_sizes, recipe))
    for training in trainings:
        if training.done:
            continue
        latest, final = sizes(training.detector, training.teacher)
        there = sum(path.stat().st_size for path in training.folder.glob('*.pth'))
        total += max(0, latest + final - there)
        largest = max(largest, latest)
    return total + largest * recipe.cfg.runtime.jobs


def checkpoint_sizes(recipe: Recipe, detector: str, teacher: str | None) -> tuple[int, int]:
    """Bytes of a training's latest.pth, and of the detector in it, without what a file has beside its numbers."""
    cfg = recipe.model(detector)
    model, losses = build_detector(ConfigDict(cfg)), nn.ModuleDict()
    if teacher:
        taught_by = recipe.model(teacher)
        settings = distill_cfg(recipe, cfg, taught_by)
        losses = nn.ModuleDict(build_losses(settings, model, build_detector(ConfigDict(taught_by))))
    optimizer = recipe.cfg.schedule.optimizer
    still = optimizer.type == 'SGD' and not optimizer.get('momentum')
    moments = 0 if still else memory.optimizer_moments(optimizer.type)
    trained = sum(
        p.nbytes for part in (model, losses) for p in part.parameters() if p.requires_grad
    )
    final, more = (sum(t.nbytes for t in part.state_dict().values()) for part in (model, losses))
    return final + more + moments * trained, final


def _gb(size: int) -> str:
    return f'{size / 1e9:.1f} GB' if size >= 1e8 else f'{size / 1e6:.1f} MB'
