"""mmdet's data pipelines and datasets for a recipe."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

import numpy as np
import torch
from mmcv.runner import get_dist_info
from mmdet.datasets import PIPELINES, build_dataset
from mmdet.datasets.pipelines import Normalize

from ..config.recipe import Recipe
from ..data import coco, dataset, loading  # noqa: F401  (dataset, loading: registered with mmdet)
from ..errors import RecipeError


def image_scale(image: dict) -> tuple[int, int]:
    """Longer and shorter side in pixels that an image is resized into; `image`: a recipe's settings."""
    return (image.scale, image.scale) if isinstance(image.scale, int) else tuple(image.scale)


def input_size(image: dict) -> tuple[int, int]:
    """Height and width in pixels of a full-size input that is not upright, padded to the divisor."""
    width, height = (-(-side // image.divisor) * image.divisor for side in image_scale(image))
    return height, width


def train_pipeline(image: dict, masks: bool = False) -> list[dict]:
    """Load, resize (aspect ratio kept, within `image.scale` pixels), flip, normalise, pad."""
    keys = ['img', 'gt_bboxes', 'gt_labels', *(['gt_masks'] if masks else [])]
    return [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=masks),
        dict(type='Resize', img_scale=image_scale(image), keep_ratio=True),
        dict(type='RandomFlip', flip_ratio=image.flip),
        *_normalise_and_pad(image),
        dict(type='DefaultFormatBundle'),
        dict(type='Collect', keys=keys),
    ]


def test_pipeline(image: dict) -> list[dict]:
    """As in training, without annotations and flips; boxes come back in the original image's pixels."""
    steps = [
        dict(type='Resize', keep_ratio=True),
        dict(type='RandomFlip'),
        *_normalise_and_pad(image),
        dict(type='DefaultFormatBundle'),
        dict(type='Collect', keys=['img']),
    ]
    return [
        dict(type='LoadImageFromFile'),
        dict(type='MultiScaleFlipAug', img_scale=image_scale(image), flip=False, transforms=steps),
    ]


def _normalise_and_pad(image: dict) -> list[dict]:
    norm = dict(mean=list(image.mean), std=list(image.std), to_rgb=image.to_rgb)
    return [dict(type='Normalize', **norm), dict(type='Pad', size_divisor=image.divisor)]


# Batches of bytes, which the device normalises.

NORMALISED = ('LoadImageFromFile', 'LoadAnnotations', 'Resize', 'RandomFlip', 'Normalize', 'Pad', 'DefaultFormatBundle', 'Collect')  # fmt: skip


@PIPELINES.register_module()
class NormalizeLater(Normalize):
    """Takes the place of `Normalize`, and leaves the work to `normalise_batch`."""

    def __call__(self, results: dict) -> dict:
        results['img_norm_cfg'] = dict(mean=self.mean, std=self.std, to_rgb=self.to_rgb)
        return results


def with_byte_batches(cfg: dict) -> dict:
    """mmdet's config of a training dataset, its images a quarter of the size: bytes, for `normalise_batch`.

    A dataset whose steps are not those of `train_pipeline` is returned as it is.
    """
    steps = cfg.get('pipeline') or []
    if tuple(step['type'] for step in steps) != NORMALISED:
        return cfg
    *first, norm, pad, bundle, collect = steps
    later, bundle = {**norm, 'type': 'NormalizeLater'}, {**bundle, 'img_to_float': False}
    return type(cfg)({**cfg, 'pipeline': [*first, later, pad, bundle, collect]})


def normalise_batch(model: torch.nn.Module, args: tuple, batch: dict) -> tuple[tuple, dict]:
    """A detector's forward pre-hook: images as mmdet's `Normalize` and `Pad` make them, to the bit.

    Args:
        batch: of `with_byte_batches`: `img`, uint8 (N, 3, H, W), and `img_metas`. Other images stay as they are.
    """
    images = batch.get('img')
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8:
        return args, batch
    norm = batch['img_metas'][0]['img_norm_cfg']
    normalised = torch.empty_like(images, dtype=torch.float32)
    for channel, (mean, std) in enumerate(zip(norm['mean'], norm['std'], strict=True)):
        pixels = images[:, 2 - channel if norm['to_rgb'] else channel].float()
        # OpenCV rounds the difference to float32, and multiplies in float64.
        normalised[:, channel] = pixels.sub_(float(mean)).double().mul_(1 / np.float64(std))
    for image, meta in zip(normalised, batch['img_metas'], strict=True):
        height, width = meta['img_shape'][:2]
        image[:, height:], image[:, :, width:] = 0, 0
    return args, {**batch, 'img': normalised}


def check_data(recipe: Recipe, training: bool = True) -> None:
    """Raises RecipeError with all that is wrong with the recipe's dataset, and prints what is taken for granted.

    For entries that no preflight check comes before: it looks for every image; without `training`, of val alone.
    """
    if problems := recipe.data_problems(training):
        raise RecipeError(recipe.source, problems)
    print_notes(recipe.data_notes(training=False))


_printed_notes: set[str] = set()


def print_notes(notes: list[str]) -> None:
    """Each note once, on stderr: stdout is for the numbers of `mtpd eval`."""
    if get_dist_info()[0] == 0:
        for note in dict.fromkeys(notes):
            if note not in _printed_notes:
                print(f'note: {note}', file=sys.stderr)
    _printed_notes.update(notes)


def dataset_config(
    recipe: Recipe, split: str, scenes: int | None = None, masks: bool = False
) -> dict:
    """mmdet's CocoDataset config for 'train' or 'val', its classes those of the training annotations.

    It looks at no image, see `check_data`.

    Args:
        scenes: number of training scenes, if not the recipe's.
        masks: a training split is loaded with its objects' masks.

    Raises:
        MtpdError: the training annotations can't be read.
    """
    annotations, images = recipe.split(split, scenes)
    image = recipe.cfg.image
    training = split == 'train'
    return dict(
        type='CocoDataset',
        ann_file=str(annotations),
        img_prefix=str(images),
        classes=recipe.classes,
        pipeline=train_pipeline(image, masks) if training else test_pipeline(image),
        test_mode=not training,
    )


def quiet_dataset(cfg: dict):
    """mmdet's dataset of a config, built without pycocotools' output.

    The dataset raises CorruptImage for an image that is missing, cut short or no image. Of a training split it leaves out images
    without objects.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        return build_dataset(cfg)


def needs_masks(recipe: Recipe, model: dict) -> bool:
    """Whether a detector trains on masks. Raises RecipeError where it does and the data has none."""
    if not has_mask_head(model):
        return False
    if problems := coco.mask_problems(recipe.split('train')[0]):
        raise RecipeError(
            recipe.source, [f'the detector has a mask head, and {problem}' for problem in problems]
        )
    return True


def has_mask_head(model: Any) -> bool:
    """Whether mmdet's config of a detector has one, at any depth."""
    if isinstance(model, dict):
        return bool(model.get('mask_head')) or any(map(has_mask_head, model.values()))
    return isinstance(model, (list, tuple)) and any(map(has_mask_head, model))
