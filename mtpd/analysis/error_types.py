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
    """Counts by `TYPES`, and the objects that were found, by (image id, place in the image).

    A detection is *correct* where it matches an object of its class (IoU at least 0.5) that no higher scored one has
    matched, else *duplicate* where one has. Of its class but badly placed (IoU 0.1 to 0.5): *localisation*. On an object
    of another class (IoU at least 0.5): *classification*; neither (0.1 to 0.5, another class): *both*; on none:
    *background*. *missed* are objects that no detection matches, nor errs on by localisation or classification.
    """

    counts: dict[str, int]
    objects: set[tuple[int, int]]


def count_errors(recipe: Recipe, detections: str | Path) -> ErrorCounts:
    """Of a detections.json on the recipe's validation split, the best scored detections, as many as there are objects.

    So all detectors are judged by equally many: a score to be reached would favour the one that is surer of itself.
    """
    truth = dataset.objects_by_image(recipe, 'val')
    found = dataset.read_detections(detections, recipe, list(truth))
    best = sorted((s for items in found.values() for s in items['scores']), reverse=True)
    best = best[: sum(len(there['labels']) for there in truth.values())]
    threshold = best[-1] if best else 0.0
    counts, objects = dict.fromkeys(ERROR_TYPES, 0), set()
    for image, there in truth.items():
        judged = classify_detections(there, found[image], threshold)
        for kind in filter(None, judged.kinds):
            counts[kind] += 1
        counts['missed'] += len(there['labels']) - len(judged.matched | judged.touched)
        objects |= {(image, place) for place in judged.matched}
    return ErrorCounts(counts, objects)


class ClassifiedDetections(NamedTuple):
    """Of one image: each detection's type, '' below the threshold; the objects that are matched; those that others err on."""

    kinds: list[str]
    matched: set[int]
    touched: set[int]


def classify_detections(truth: dict, found: dict, threshold: float) -> ClassifiedDetections:
    """One image's detections, scored at least `threshold`, held against its objects; see `Found`.

    Args:
        truth: boxes (n, 4) xyxy, labels (n,).
        found: the same of m detections, with scores (m,).
    """
    kept = np.flatnonzero(found['scores'] >= threshold)
    order = kept[np.argsort(-found['scores'][kept], kind='stable')]
    overlaps = box_iou(found['boxes'], truth['boxes'])
    kinds = [''] * len(found['scores'])
    matched: set[int] = set()
    touched: set[int] = set()
    for k in order:
        row = overlaps[k]
        same = truth['labels'] == found['labels'][k]
        own, other = np.where(same, row, 0.0), np.where(same, 0.0, row)
        free = [place for place in np.flatnonzero(own >= MATCH_IOU) if place not in matched]
        if free:
            best = int(max(free, key=own.__getitem__))
            matched.add(best)
            kinds[k] = 'correct'
        elif own.max(initial=0) >= MATCH_IOU:
            kinds[k] = 'duplicate'
        elif own.max(initial=0) >= TOUCH_IOU:
            touched.add(int(own.argmax()))
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
    """Of the student's baseline and each arm that is evaluated, by label."""
    files = {'baseline': run.path / 'detectors' / 'student' / 'detections.json'}
    for arm in run.arms:
        if folders := run.stage_dirs(arm['name']):
            files[arm.get('label') or arm['name']] = folders[-1] / 'detections.json'
    return {label: count_errors(recipe, path) for label, path in files.items() if path.is_file()}


def count_objects(recipe: Recipe) -> int:
    """Of the validation split, without crowds."""
    return sum(len(there['labels']) for there in dataset.objects_by_image(recipe, 'val').values())


def objects_found_and_lost(found: dict[str, ErrorCounts]) -> list[dict]:
    """A row for each detector: how many objects it finds, and against the first one which are new and which are lost."""
    if not found:
        return []
    first, before = next(iter(found.items()))
    return [
        {
            'student': label,
            'objects found': len(after.objects),
            f'that the {first} does not find': len(after.objects - before.objects),
            f'lost of those of the {first}': len(before.objects - after.objects),
        }
        for label, after in found.items()
    ]
