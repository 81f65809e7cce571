"""What kind of errors a detector makes, after Bolya et al., *TIDE* (ECCV 2020), by counts instead of AP."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from .data import view
from .recipe import Recipe
from .runs import Run

HIT, NEAR = 0.5, 0.1  # IoU: a match; overlaps at all
TYPES = ('correct', 'localisation', 'classification', 'both', 'duplicate', 'background', 'missed')


class Found(NamedTuple):
    """Counts by `TYPES`, and the objects that were found, by (image id, place in the image).

    A detection is *correct* where it matches an object of its class (IoU at least 0.5) that no higher scored one has
    matched, else *duplicate* where one has. Of its class but badly placed (IoU 0.1 to 0.5): *localisation*. On an object
    of another class (IoU at least 0.5): *classification*; neither (0.1 to 0.5, another class): *both*; on none:
    *background*. *missed* are objects that no detection matches, nor errs on by localisation or classification.
    """

    counts: dict[str, int]
    objects: set[tuple[int, int]]


def error_types(recipe: Recipe, detections: str | Path, threshold: float = 0.3) -> Found:
    """Of a detections.json on the recipe's validation split, scores of at least `threshold`."""
    truth = view.objects(recipe, 'val')
    found = view.detections(detections, recipe, list(truth))
    counts, objects = dict.fromkeys(TYPES, 0), set()
    for image, there in truth.items():
        kinds, matched, touched = _of_image(there, found[image], threshold)
        for kind in kinds:
            counts[kind] += 1
        counts['missed'] += len(there['labels']) - len(matched | touched)
        objects |= {(image, place) for place in matched}
    return Found(counts, objects)


def _of_image(truth: dict, found: dict, threshold: float) -> tuple[list[str], set[int], set[int]]:
    """Types of the detections by falling score; objects that are matched; those that others err on."""
    kept = np.flatnonzero(found['scores'] >= threshold)
    order = kept[np.argsort(-found['scores'][kept], kind='stable')]
    overlaps = iou(found['boxes'], truth['boxes'])
    kinds: list[str] = []
    matched: set[int] = set()
    touched: set[int] = set()
    for k in order:
        row = overlaps[k]
        same = truth['labels'] == found['labels'][k]
        own, other = np.where(same, row, 0.0), np.where(same, 0.0, row)
        free = [place for place in np.flatnonzero(own >= HIT) if place not in matched]
        if free:
            best = int(max(free, key=own.__getitem__))
            matched.add(best)
            kinds.append('correct')
        elif own.max(initial=0) >= HIT:
            kinds.append('duplicate')
        elif own.max(initial=0) >= NEAR:
            touched.add(int(own.argmax()))
            kinds.append('localisation')
        elif other.max(initial=0) >= HIT:
            touched.add(int(other.argmax()))
            kinds.append('classification')
        else:
            kinds.append('both' if other.max(initial=0) >= NEAR else 'background')
    return kinds, matched, touched


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (N, M) of boxes (N, 4) and (M, 4), xyxy."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inside = np.clip(high - low, 0, None).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    return inside / np.maximum(areas[0][:, None] + areas[1][None] - inside, 1e-9)


def errors_by_detector(recipe: Recipe, run: Run) -> dict[str, Found]:
    """Of the student's baseline and each arm that is evaluated, by label."""
    files = {'baseline': run.path / 'detectors' / 'student' / 'detections.json'}
    for arm in run.arms:
        if folders := run.stage_dirs(arm['name']):
            files[arm.get('label') or arm['name']] = folders[-1] / 'detections.json'
    return {label: error_types(recipe, path) for label, path in files.items() if path.is_file()}


def count_objects(recipe: Recipe) -> int:
    """Of the validation split, without crowds."""
    return sum(len(there['labels']) for there in view.objects(recipe, 'val').values())


def found_and_lost(found: dict[str, Found]) -> str:
    """In words, how many objects each detector finds that the first one does not, and which of its it has lost."""
    if not found:
        return ''
    (first, before), *others = found.items()
    return ' '.join(
        f'**{label}** finds {len(after.objects - before.objects)} objects that the {first} does not, and loses '
        f'{len(before.objects - after.objects)} of its {len(before.objects)}.'
        for label, after in others
    )
