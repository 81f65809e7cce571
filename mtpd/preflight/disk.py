"""Room on disk for the checkpoints that trainings leave."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import functools
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from mmcv import ConfigDict
from mmdet.models import build_detector
from torch import nn

from ..config.recipe import Recipe
from ..config.trainings import Training, distill_cfg
from ..distill.losses import build_losses
from ..engine import memory
from ..utils.files import existing, takes_files


def problems(
    recipe: Recipe,
    trainings: Iterable[Training],
    folder: Path,
    free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
) -> list[str]:
    """Whether `folder` can't be written to, or lacks room for what the trainings still have to write; one text or none."""
    place = existing(folder)
    if not takes_files(place):
        return [f'{place} cannot be written to. Choose another folder with --work-dir.']
    needed, room = to_come(recipe, trainings), free(place)
    if needed <= room:
        return []
    return [
        f'the checkpoints still to come take {_gb(needed)}, and {folder} has {_gb(room)} free: free some, or choose '
        'another disk with --work-dir.'
    ]


def to_come(recipe: Recipe, trainings: Iterable[Training]) -> int:
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
    moments = 0 if still else memory.moments(optimizer.type)
    trained = sum(
        p.nbytes for part in (model, losses) for p in part.parameters() if p.requires_grad
    )
    final, more = (sum(t.nbytes for t in part.state_dict().values()) for part in (model, losses))
    return final + more + moments * trained, final


def _gb(size: int) -> str:
    return f'{size / 1e9:.1f} GB' if size >= 1e8 else f'{size / 1e6:.1f} MB'
