"""Neck features of detectors on the same images: what adaptation costs and feature maps are made of."""

from __future__ import annotations

from . import compat  # noqa: F401  (before mmcv)

# isort: split
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from mmdet.datasets import build_dataloader
from mmdet.models import build_detector
from torch import Tensor, nn
from torch.utils.data import Subset

from .data import pipelines, readable
from .errors import RecipeError
from .evaluate import load_detector
from .loop import device_of, evaluation_batch
from .progress import bar
from .recipe import Recipe


def batches(
    recipe: Recipe, count: int, split: str = 'val', first: int = 0, step: int = 1
) -> Iterator[tuple[Tensor, list[dict]]]:
    """Of the first `count` images of a split in file order each `step`-th from `first` on, as detectors see them in testing.

    Yields:
        Images (N, 3, H, W), normalised and padded to a common size, and mmdet's img_metas.
    """
    data = pipelines.dataset(recipe, split)
    data |= dict(pipeline=pipelines.test_pipeline(recipe.cfg.image), test_mode=True)
    images = readable.Readable(pipelines.build(data), recipe.corrupt_limit)
    loader = build_dataloader(
        Subset(images, range(first, min(count, len(images)), step)),
        **evaluation_batch(recipe),
        dist=False,
        shuffle=False,
    )
    for batch in bar('features', loader):
        yield batch['img'][0].data[0], batch['img_metas'][0].data[0]


@torch.no_grad()
def neck_features(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Features per FPN level, each (N, C, H_l, W_l), of images (N, 3, H, W); on the model's device."""
    return tuple(model.extract_feat(images.to(next(model.parameters()).device)))


def by_stride(levels: Iterable[Tensor], height: int) -> dict[int, Tensor]:
    """Neck features (N, C, H_l, W_l) of images of that height by their stride in pixels, a power of two."""
    return {2 ** round(math.log2(height / level.shape[2])): level for level in levels}


def blank_features(recipe: Recipe) -> dict[str, dict[int, Tensor]]:
    """What the necks of untrained detectors make of a blank image, by stride: the shapes of the trained ones."""
    blank, device, found = torch.zeros(1, 3, 256, 256), device_of(recipe), {}
    for name in recipe.detectors:
        model = build_detector(recipe.model(name)).to(device).eval()
        found[name] = by_stride(neck_features(model, blank), 256)
    return found


def load_all(recipe: Recipe, checkpoints: dict[str, tuple[str, Path]]) -> dict[str, nn.Module]:
    """Detectors by label, from {label: (name in the recipe, checkpoint)}, on the recipe's device."""
    device = device_of(recipe)
    return {
        label: load_detector(recipe, path, name).to(device)
        for label, (name, path) in checkpoints.items()
    }


def stage_checkpoints(
    recipe: Recipe, arm: str, work_dir: str | Path | None = None
) -> dict[str, tuple[str, Path]]:
    """The student before and after each stage of an arm, at the end of the arm without a teacher if there is one that is
    trained, then the teachers; for `load_all`."""
    from .order import settled
    from .train import detector_checkpoint, train_stage
    from .trainings import stage_dir

    recipe = settled(recipe, work_dir)
    plan = recipe.arm(arm)
    found = {'student before': ('student', detector_checkpoint(recipe, 'student', work_dir))}
    for stage in range(1, len(plan.teachers) + 1):
        found[f'after stage {stage}'] = (
            'student',
            train_stage(recipe, stage, arm, work_dir)['checkpoint'],
        )
    for other in recipe.arms.values():
        trained = stage_dir(recipe, other, 1, work_dir) / 'student.pth'
        if other.name != arm and other.teachers == (None,) and trained.is_file():
            found[other.label] = ('student', trained)
    for name, spec in recipe.cfg.teachers.items():
        found[spec.get('label', name)] = (name, detector_checkpoint(recipe, name, work_dir))
    return found


def feature_rows(
    recipe: Recipe, checkpoints: dict[str, tuple[str, Path]], count: int, level: int
) -> list[list[tuple[str, Tensor]]]:
    """A row per image, in it (label, features (C, H, W)) per detector, for `mtpd.feature_views`.

    Raises:
        RecipeError: the necks have no such level.
    """
    models = load_all(recipe, checkpoints)
    rows: list[list] = []
    for images, _ in batches(recipe, count):
        found = {label: neck_features(model, images) for label, model in models.items()}
        levels = min(len(features) for features in found.values())
        if not 0 <= level < levels:
            raise RecipeError(
                recipe.source, [f'level {level}: the necks have levels 0 to {levels - 1}.']
            )
        rows += [
            [(label, features[level][i]) for label, features in found.items()]
            for i in range(len(images))
        ]
    return rows
