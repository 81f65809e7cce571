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
from ..utils.progress import progress_bar
from . import pipelines
from .evaluation import load_detector
from .loop import evaluation_loader, recipe_device


def image_batches(
    recipe: Recipe, count: int, split: str = 'val', first: int = 0, step: int = 1
) -> Iterator[tuple[Tensor, list[dict]]]:
    """The first `count` images of a split in file order, each `step`-th from `first` on, as in testing.

    Yields:
        Images (N, 3, H, W), normalised and padded to a common size, and mmdet's img_metas.

    Raises:
        RecipeError: the dataset is missing or broken.
    """
    pipelines.check_data(recipe)
    data = pipelines.dataset_config(recipe, split)
    data |= dict(pipeline=pipelines.test_pipeline(recipe.cfg.image), test_mode=True)
    images = loading.SkipCorrupt(pipelines.quiet_dataset(data), recipe.corrupt_limit)
    loader = build_dataloader(
        Subset(images, range(first, min(count, len(images)), step)),
        **evaluation_loader(recipe),
        dist=False,
        shuffle=False,
    )
    for batch in progress_bar('features', loader):
        yield batch['img'][0].data[0], batch['img_metas'][0].data[0]


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
        model = build_detector(recipe.model(name)).to(device).eval()
        features[name] = features_by_stride(neck_features(model, blank), 256)
    return features


def load_detectors(
    recipe: Recipe, checkpoints: dict[str, tuple[str, Path]]
) -> dict[str, nn.Module]:
    """Detectors by label, from {label: (name in the recipe, checkpoint)}, on the recipe's device."""
    device = recipe_device(recipe)
    return {
        label: load_detector(recipe, path, name).to(device)
        for label, (name, path) in checkpoints.items()
    }
