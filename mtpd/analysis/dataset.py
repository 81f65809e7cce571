"""Example images of a dataset with their objects, and its counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO

from ..config.recipe import Recipe
from ..data import coco
from ..data.loading import CorruptImage, read_image


def _index_annotations(
    recipe: Recipe, split: str
) -> tuple[list[dict], dict[int, list[dict]], dict[int, int]]:
    """Images by name, annotations by image, and label by category id. Ids are the table's, see `data.annotations`."""
    table = coco.read_annotations(recipe.split(split)[0])
    by_image: dict[int, list[dict]] = {}
    for item in table['annotations']:
        by_image.setdefault(item['image_id'], []).append(item)
    labels = {name: label for label, name in enumerate(recipe.classes)}
    return (
        sorted(table['images'], key=lambda item: item['id']),
        by_image,
        {item['id']: labels[item['name']] for item in table['categories']},
    )


def sample_images(recipe: Recipe, split: str = 'val', count: int = 8, skip: int = 0) -> list[dict]:
    """`count` images of a split in the order of their names, with their objects; corrupt ones are left out.

    Returns:
        Dicts of ``id`` (the annotation file's), ``name``, ``image`` (H, W, 3) RGB uint8, ``boxes`` (n, 4) xyxy in pixels,
        ``labels`` (n,) class indices, ``masks`` (n, H, W) bool or None.

    Raises:
        CorruptImage: an image is corrupt, and the recipe leaves none out.
    """
    folder = recipe.split(split)[1]
    images, by_image, index = _index_annotations(recipe, split)
    samples: list[dict] = []
    for item in images[skip:]:
        if len(samples) == count:
            break
        try:
            pixels = read_image(folder / item['file_name'])
        except CorruptImage:
            if not recipe.corrupt_limit:
                raise
            continue
        objects = _without_crowds(by_image, item['id'])
        samples.append(
            {
                'id': item['file_id'],
                'name': item['file_name'],
                'image': pixels,
                **_boxes_and_labels(objects, index),
                'masks': _object_masks(objects, pixels.shape[:2]),
            }
        )
    return samples


def objects_by_image(recipe: Recipe, split: str = 'val') -> dict[int, dict]:
    """Each image's objects without crowds: {id in the annotation file: boxes (n, 4) xyxy in pixels, labels (n,)}."""
    images, by_image, index = _index_annotations(recipe, split)
    return {
        item['file_id']: _boxes_and_labels(_without_crowds(by_image, item['id']), index)
        for item in images
    }


def _without_crowds(by_image: dict[int, list[dict]], image: int) -> list[dict]:
    return [item for item in by_image.get(image, []) if not item.get('iscrowd')]


def _boxes_and_labels(items: list[dict], index: dict[int, int]) -> dict[str, np.ndarray]:
    boxes = np.array([item['bbox'] for item in items], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return {'boxes': boxes, 'labels': np.array([index[i['category_id']] for i in items], int)}


def _object_masks(objects: list[dict], shape: tuple[int, int]) -> np.ndarray | None:
    if not objects or not all(o.get('segmentation') for o in objects):
        return None
    table = COCO()
    table.imgs = {o['image_id']: {'height': shape[0], 'width': shape[1]} for o in objects}
    return np.stack([table.annToMask(o).astype(bool) for o in objects])


def dataset_statistics(recipe: Recipe) -> dict[str, dict]:
    """Per split: ``images``, ``objects``, ``sizes`` (width x height -> images), ``areas`` in square
    pixels, ``counts`` of objects per class, ``crowds`` (regions that hold many objects).
    """
    statistics = {}
    for split in ('train', 'val'):
        images, by_image, index = _index_annotations(recipe, split)
        objects = [o for items in by_image.values() for o in items]
        single = [o for o in objects if not o.get('iscrowd')]
        counts = Counter(index[o['category_id']] for o in single)
        statistics[split] = {
            'images': len(images),
            'objects': len(single),
            'crowds': len(objects) - len(single),
            'sizes': dict(Counter(f'{i["width"]} x {i["height"]}' for i in images).most_common(5)),
            'areas': [o['area'] for o in single],
            'counts': [counts[i] for i in range(len(index))],
        }
    return statistics


def read_detections(
    path: str | Path, recipe: Recipe, image_ids: list[int], masks: bool = False
) -> dict[int, dict]:
    """The detections of a detections.json in some images: {id: boxes (n, 4) xyxy, labels (n,), scores (n,)}.

    Args:
        masks: where it has them all, ``masks`` (n, H, W) bool, too.
    """
    table = coco.read_annotations(recipe.split('val')[0])
    sizes = {item['file_id']: (item['height'], item['width']) for item in table['images']}
    labels = {item['file_id']: recipe.classes.index(item['name']) for item in table['categories']}
    wanted: dict[int, list[dict]] = {image: [] for image in image_ids}
    for item in json.loads(Path(path).read_text()):
        if item['image_id'] in wanted:
            wanted[item['image_id']].append(item)
    detections = {}
    for image, items in wanted.items():
        scores = np.array([item['score'] for item in items], float)
        detections[image] = _boxes_and_labels(items, labels) | {'scores': scores}
        if masks and (drawn := _object_masks(items, sizes[image])) is not None:
            detections[image]['masks'] = drawn
    return detections
