"""Neck features of detectors on the same images: what adaptation costs and feature maps are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from mmdet.datasets import build_dataloader
from mmdet.models import build_detector
from torch import Tensor, nn
from torch.utils.data import Subset

from ..config.recipe import Recipe
from ..data import loading
from ..distill.distiller import Teacher
from ..distill.teacher_images import on_students_grid
from ..runtime import checkpoints as weights
from ..utils.progress import progress_bar
from . import pipelines
from .evaluation import load_detector
from .loop import recipe_device


def image_batches(
    recipe: Recipe,
    count: int,
    split: str = 'val',
    first: int = 0,
    step: int = 1,
    image: dict | None = None,
) -> Iterator[tuple[Tensor, list[dict]]]:
    """The first `count` images of a split in file order, each `step`-th from `first` on, as in testing.

    Args:
        image: how they are made, where not as the student's: a teacher's `Recipe.image`.

    Yields:
        Images (N, 3, H, W), normalised and padded to a common size, and mmdet's img_metas.

    Raises:
        RecipeError: the dataset is missing or broken.
    """
    pipelines.check_data(recipe)
    data = pipelines.dataset_config(recipe, split)
    data |= dict(pipeline=pipelines.test_pipeline(image or recipe.cfg.image), test_mode=True)
    images = loading.SkipCorrupt(pipelines.quiet_dataset(data), recipe.corrupt_limit)
    # Without data workers: there are few images, and a worker's death would be raised in the caller's code.
    loader = build_dataloader(
        Subset(images, range(first, min(count, len(images)), step)),
        samples_per_gpu=recipe.cfg.evaluation.batch_size,
        workers_per_gpu=0,
        dist=False,
        shuffle=False,
    )
    for batch in progress_bar('features', loader):
        yield batch['img'][0].data[0], batch['img_metas'][0].data[0]


def feature_batches(
    recipe: Recipe, models: dict[str, nn.Module], count: int, first: int = 0, step: int = 1
) -> Iterator[tuple[dict[str, list[Tensor]], int, list[dict]]]:
    """Detectors' neck features on the same images, each prepared as for that detector (`load_detectors`).

    Features of images of another size than the student's are brought to the grid that a level of their stride has on the
    student's images.

    Args:
        models: by label, of `load_detectors`.
        count, first, step: of images, as `image_batches`.

    Yields:
        ``{label: [(N, C, H_l, W_l), ...]}``, the height of the student's padded images in pixels, and their img_metas.
    """
    images = {label: getattr(model, 'image', recipe.cfg.image) for label, model in models.items()}
    kinds = [recipe.cfg.image]  # the student's first
    kinds += [image for image in images.values() if image not in kinds]
    kinds = [kind for number, kind in enumerate(kinds) if kind not in kinds[:number]]
    batches = [image_batches(recipe, count, first=first, step=step, image=kind) for kind in kinds]
    for made in zip(*batches, strict=True):
        pixels, metas = made[0]
        features = {}
        for label, model in models.items():
            theirs, own_metas = made[kinds.index(images[label])]
            levels = neck_features(model, theirs)
            if pipelines.image_scale(images[label]) != pipelines.image_scale(recipe.cfg.image):
                levels = [
                    _resampled(level, (pixels, metas), (theirs, own_metas)) for level in levels
                ]
            features[label] = list(levels)
        yield features, pixels.shape[2], metas


def _resampled(level: Tensor, *batches: tuple[Tensor, list[dict]]) -> Tensor:
    """A level of a teacher's images at the cells that its stride has on the student's; `batches`: the student's, the teacher's."""
    canvases = tuple(tuple(pixels.shape[2:]) for pixels, _ in batches)
    (stride,) = features_by_stride([level], canvases[1][0])
    size = [-(-side // stride) for side in canvases[0]]
    shapes = tuple([meta['img_shape'] for meta in metas] for _, metas in batches)
    return on_students_grid(level, size, canvases, shapes)


@torch.no_grad()
def neck_features(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Features per FPN level, each (N, C, H_l, W_l), of images (N, 3, H, W); on the model's device."""
    return tuple(model.extract_feat(images.to(next(model.parameters()).device)))


def features_by_stride(levels: Iterable[Tensor], height: int) -> dict[int, Tensor]:
    """Neck features (N, C, H_l, W_l) of images of that height by their stride in pixels, a power of two."""
    return {2 ** round(math.log2(height / level.shape[2])): level for level in levels}


def blank_features(recipe: Recipe) -> dict[str, dict[int, Tensor]]:
    """Neck features of untrained detectors on a blank image, by detector and stride; shapes are the trained ones'."""
    blank, device, features = torch.zeros(1, 3, 256, 256), recipe_device(recipe), {}
    for name in recipe.detectors:
        build = Teacher if recipe.is_features_only(name) else build_detector
        model = build(recipe.model(name)).to(device).eval()
        features[name] = features_by_stride(neck_features(model, blank), 256)
    return features


def load_detectors(
    recipe: Recipe, checkpoints: dict[str, tuple[str, Path]]
) -> dict[str, nn.Module]:
    """Detectors by label, from {label: (name in the recipe, checkpoint)}, on the recipe's device.

    Each has its `Recipe.image` as `image`. Of teachers with `features_only` there are backbone and neck alone.
    """
    device, models = recipe_device(recipe), {}
    for label, (name, path) in checkpoints.items():
        load = load_features if recipe.is_features_only(name) else load_detector
        models[label] = load(recipe, path, name).to(device)
        models[label].image = recipe.image(name)
    return models


def load_features(recipe: Recipe, checkpoint: str | Path, teacher: str) -> Teacher:
    """Backbone and neck of a teacher with a checkpoint's weights (any layout), in eval mode on the CPU.

    Raises:
        MtpdError: the checkpoint is missing, broken, or of another architecture.
    """
    model = Teacher(recipe.model(teacher))
    state = weights.student_state(weights.load_checkpoint(checkpoint), checkpoint)
    weights.load_strictly(model, state, teacher, checkpoint, only=('backbone.', 'neck.'))
    return model.eval()
