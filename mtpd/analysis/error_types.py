"""What kind of errors a detector makes, after Bolya et al., *TIDE* (ECCV 2020), by counts instead of AP."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..config.recipe import Recipe
from . import dataset
from .run import Run

MATCH_IOU, TOUCH_IOU = 0.5, 0.1  # IoU: a match; overlaps at all
ERROR_TYPES = (
    'correct',
    'localisation',
    'classification',
    'both',
    'duplicate',
    'background',
    'missed',
)


class ErrorCounts(NamedTuple):
    """Counts by `ERROR_TYPES`, and the objects that are matched, by (image id, place in the image).

    A detection is *correct* where it matches an object of its class (IoU at least 0.5) that no higher scored one has
    matched, else *duplicate* where one has. Of its class but badly placed (IoU 0.1 to 0.5): *localisation*. On an object
    of another class (IoU at least 0.5): *classification*; neither (0.1 to 0.5, another class): *both*; on none:
    *background*. *missed* are objects that no detection matches, nor errs on by localisation or classification.
    """

    counts: dict[str, int]
    objects: set[tuple[int, int]]


def count_errors(recipe: Recipe, detections: str | Path) -> ErrorCounts:
    """Counts the errors of a detections.json's best scored detections on the validation split, as many as there are objects.

    So all detectors are judged by equally many: a score to be reached would favour the one that is surer of itself.
    """
    truth = dataset.objects_by_image(recipe, 'val')
    by_image = dataset.read_detections(detections, recipe, list(truth))
    scores = sorted((s for items in by_image.values() for s in items['scores']), reverse=True)
    scores = scores[: sum(len(objects['labels']) for objects in truth.values())]
    threshold = scores[-1] if scores else 0.0
    counts, matched = dict.fromkeys(ERROR_TYPES, 0), set()
    for image, objects in truth.items():
        classified = classify_detections(objects, by_image[image], threshold)
        for kind in filter(None, classified.kinds):
            counts[kind] += 1
        counts['missed'] += len(objects['labels']) - len(classified.matched | classified.touched)
        matched |= {(image, place) for place in classified.matched}
    return ErrorCounts(counts, matched)


class ClassifiedDetections(NamedTuple):
    """One image's detections.

    Attributes:
        kinds: each detection's type, '' below the threshold.
        matched: places of the objects that a detection matches.
        touched: places of those that one errs on by localisation or classification.
    """

    kinds: list[str]
    matched: set[int]
    touched: set[int]


def classify_detections(truth: dict, detections: dict, threshold: float) -> ClassifiedDetections:
    """Compares one image's detections, scored at least `threshold`, with its objects; see `ErrorCounts`.

    Args:
        truth: boxes (n, 4) xyxy, labels (n,).
        detections: the same of m detections, with scores (m,).
    """
    scores = detections['scores']
    scored = np.flatnonzero(scores >= threshold)
    order = scored[np.argsort(-scores[scored], kind='stable')]
    overlaps = box_iou(detections['boxes'], truth['boxes'])
    kinds = [''] * len(scores)
    matched: set[int] = set()
    touched: set[int] = set()
    for k in order:
        same_class = truth['labels'] == detections['labels'][k]
        same = np.where(same_class, overlaps[k], 0.0)
        other = np.where(same_class, 0.0, overlaps[k])
        free = [place for place in np.flatnonzero(same >= MATCH_IOU) if place not in matched]
        if free:
            matched.add(int(max(free, key=same.__getitem__)))
            kinds[k] = 'correct'
        elif same.max(initial=0) >= MATCH_IOU:
            kinds[k] = 'duplicate'
        elif same.max(initial=0) >= TOUCH_IOU:
            touched.add(int(same.argmax()))
            kinds[k] = 'localisation'
        elif other.max(initial=0) >= MATCH_IOU:
            touched.add(int(other.argmax()))
            kinds[k] = 'classification'
        else:
            kinds[k] = 'both' if other.max(initial=0) >= TOUCH_IOU else 'background'
    return ClassifiedDetections(kinds, matched, touched)


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (N, M) of boxes (N, 4) and (M, 4), xyxy."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inside = np.clip(high - low, 0, None).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    return inside / np.maximum(areas[0][:, None] + areas[1][None] - inside, 1e-9)


def errors_by_detector(recipe: Recipe, run: Run) -> dict[str, ErrorCounts]:
    """The errors of the student's baseline and of each arm that is evaluated, by label."""
    files = {'baseline': run.path / 'detectors' / 'student' / 'detections.json'}
    for arm in run.arms:
        if folders := run.stage_dirs(arm['name']):
            files[arm.get('label') or arm['name']] = folders[-1] / 'detections.json'
    return {label: count_errors(recipe, path) for label, path in files.items() if path.is_file()}


def count_objects(recipe: Recipe) -> int:
    """How many objects the validation split has, without crowds."""
    return sum(len(item['labels']) for item in dataset.objects_by_image(recipe, 'val').values())


def objects_found_and_lost(errors: dict[str, ErrorCounts]) -> list[dict]:
    """A row for each detector: how many objects it finds, and how many of them are new or lost against the first one."""
    if not errors:
        return []
    first, before = next(iter(errors.items()))
    return [
        {
            'student': label,
            'objects found': len(after.objects),
            f'that the {first} does not find': len(after.objects - before.objects),
            f'lost of those of the {first}': len(before.objects - after.objects),
        }
        for label, after in errors.items()
    ]
