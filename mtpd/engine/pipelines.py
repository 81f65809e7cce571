"""mmdet's data pipelines and datasets for a recipe."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

import mmcv
import numpy as np
import torch
from mmcv.parallel import DataContainer
from mmcv.runner import get_dist_info
from mmdet.datasets import PIPELINES, build_dataset
from mmdet.datasets.pipelines import Collect, Normalize

from ..config.recipe import Recipe, image_scale
from ..data import coco, dataset, loading  # noqa: F401  (dataset, loading: registered with mmdet)
from ..distill.teacher_images import normalise_bytes
from ..errors import RecipeError


def input_size(image: dict) -> tuple[int, int]:
    """Height and width in pixels of a full-size input that is not upright, padded to the divisor."""
    width, height = (-(-side // image.divisor) * image.divisor for side in image_scale(image))
    return height, width


def train_pipeline(image: dict, masks: bool = False, teacher: dict | None = None) -> list[dict]:
    """Load, resize (aspect ratio kept, within `image.scale` pixels), flip, normalise, pad.

    Args:
        image: a recipe's settings, or those of one of its teachers.
        masks: objects' masks are loaded.
        teacher: a teacher's settings beside the student's `image`, for a stage; see `with_teacher_images`.
    """
    keys = ['img', 'gt_bboxes', 'gt_labels', *(['gt_masks'] if masks else [])]
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=masks),
        dict(type='Resize', img_scale=image_scale(image), keep_ratio=True),
        dict(type='RandomFlip', flip_ratio=image.flip),
        *_normalise_and_pad(image),
        dict(type='DefaultFormatBundle'),
        dict(type='Collect', keys=keys),
    ]
    return with_teacher_images(steps, image, teacher) if teacher else steps


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


def image_settings(split: dict) -> dict | None:
    """How a dataset's config with `test_pipeline` makes its images: ``scale``, ``mean``, ``std``, ``to_rgb``, as JSON has them.

    None for other pipelines.
    """
    tests = [step for step in split.get('pipeline', ()) if step['type'] == 'MultiScaleFlipAug']
    norms = [part for test in tests for part in test['transforms'] if part['type'] == 'Normalize']
    if len(norms) != 1 or not isinstance(tests[0].get('img_scale'), tuple):
        return None
    lists = {key: [float(value) for value in norms[0][key]] for key in ('mean', 'std')}
    to_rgb = bool(norms[0].get('to_rgb', True))
    return {'scale': [*tests[0]['img_scale']], **lists, 'to_rgb': to_rgb}


def _normalise_and_pad(image: dict) -> list[dict]:
    norm = dict(mean=list(image.mean), std=list(image.std), to_rgb=image.to_rgb)
    return [dict(type='Normalize', **norm), dict(type='Pad', size_divisor=image.divisor)]


# Images of a teacher's size, beside the student's.


def with_teacher_images(steps: list[dict], image: dict, teacher: dict) -> list[dict]:
    """Steps that also give `teacher_img`, the picture at the teacher's size; `steps` themselves where the sizes are equal.

    The picture is resized from the file's pixels, not from the student's image, and flipped as that is. It is bytes, BGR:
    the `Distiller` normalises them.

    Args:
        steps: of `train_pipeline`.
        image, teacher: settings of the student's and the teacher's images.
    """
    scale = image_scale(teacher)
    if scale == image_scale(image):
        return steps
    load, annotations, resize, flip, *rest, collect = steps
    # The annotations' step draws nothing, and the resized image is a new array.
    larger = dict(type='TeacherImage', img_scale=scale, size_divisor=image.divisor)
    collect = {**collect, 'type': 'CollectBoth', 'keys': [*collect['keys'], 'teacher_img']}
    return [load, dict(type='KeepOriginal'), annotations, resize, flip, larger, *rest, collect]


@PIPELINES.register_module()
class KeepOriginal:
    """Keeps the loaded picture for `TeacherImage`; later steps make new arrays of `img`."""

    def __call__(self, results: dict) -> dict:
        results['teacher_img'] = results['img']
        return results


@PIPELINES.register_module()
class TeacherImage:
    """Makes the kept picture the teacher's image: resized, flipped as `img` was, and padded by 0; a stacked `DataContainer`.

    Args:
        img_scale: longer and shorter side in pixels that it is resized into, aspect ratio kept, as by mmdet's `Resize`.
        size_divisor: its canvas has sides of a multiple of this.
    """

    def __init__(self, img_scale: tuple[int, int], size_divisor: int):
        self.img_scale, self.size_divisor = tuple(img_scale), size_divisor

    def __call__(self, results: dict) -> dict:
        image = mmcv.imrescale(results['teacher_img'], self.img_scale, backend='cv2')
        if results['flip']:
            image = mmcv.imflip(image, direction=results['flip_direction'])
        results['teacher_shape'] = image.shape
        image = mmcv.impad_to_multiple(image, self.size_divisor)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        results['teacher_img'] = DataContainer(pixels, stack=True)
        return results


@PIPELINES.register_module()
class CollectBoth(Collect):
    """mmdet's `Collect`, whose `img_metas` also have `teacher_shape`: (height, width, 3) of the teacher's image unpadded."""

    def __init__(self, keys: list[str]):
        super().__init__(keys)
        self.meta_keys = (*self.meta_keys, 'teacher_shape')


# Batches of bytes, which the device normalises.

TEACHER_STEPS = ('KeepOriginal', 'TeacherImage')
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
    types = [step['type'].replace('CollectBoth', 'Collect') for step in steps]
    if tuple(kind for kind in types if kind not in TEACHER_STEPS) != NORMALISED:
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
    metas = batch['img_metas']
    shapes = [meta['img_shape'] for meta in metas]
    normalised = normalise_bytes(images, metas[0]['img_norm_cfg'], shapes)
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
    recipe: Recipe,
    split: str,
    scenes: int | None = None,
    masks: bool = False,
    detector: str = 'student',
    teacher: str | None = None,
) -> dict:
    """mmdet's CocoDataset config for 'train' or 'val', its classes those of the training annotations.

    It looks at no image, see `check_data`.

    Args:
        scenes: number of training scenes, if not the recipe's.
        masks: a training split is loaded with its objects' masks.
        detector: whose images it has: 'student', or a teacher that is trained or measured.
        teacher: a teacher whose images a training split has beside them, where they are of another size.

    Raises:
        MtpdError: the training annotations can't be read.
    """
    annotations, images = recipe.split(split, scenes)
    image, beside = recipe.image(detector), recipe.image(teacher) if teacher else None
    training = split == 'train'
    return dict(
        type='CocoDataset',
        ann_file=str(annotations),
        img_prefix=str(images),
        classes=recipe.classes,
        pipeline=train_pipeline(image, masks, beside) if training else test_pipeline(image),
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


def has_mask_head(model: Any, keys: tuple[str, ...] = ('mask_head', 'panoptic_head')) -> bool:
    """Whether mmdet's config of a detector has one, at any depth; or a head of another of `keys`."""
    if isinstance(model, dict):
        return any(map(model.get, keys)) or any(
            has_mask_head(part, keys) for part in model.values()
        )
    return isinstance(model, (list, tuple)) and any(has_mask_head(part, keys) for part in model)
