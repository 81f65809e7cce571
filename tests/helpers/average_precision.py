"""COCO's numbers by COCO's definition (cocodataset.org, "Detection evaluation"), from plain lists.

It shares no code with pycocotools, with faster-coco-eval or with the kit, and knows no ids: images and classes are names.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0, 1, 101)
AREAS = {'all': (0, 1e10), 's': (0, 32**2), 'm': (32**2, 96**2), 'l': (96**2, 1e10)}
MAX_DETECTIONS = 100


class Object(NamedTuple):
    """An object of the truth.

    `box`: x, y, width, height in pixels. `area`: in square pixels. `mask`: (height, width) bool of its image.
    """

    image: str
    name: str
    box: tuple[float, float, float, float]
    area: float
    crowd: bool = False
    mask: np.ndarray | None = None


class Detection(NamedTuple):
    """A detection; `box` and `mask` as an object's."""

    image: str
    name: str
    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray | None = None


class Matches(NamedTuple):
    """An image's detections of a class, by falling score, and how many objects count.

    `scores`: (detections,). `hits`, `ignored`: (10 IoU thresholds, detections) bool.
    """

    scores: list[float]
    hits: np.ndarray
    ignored: np.ndarray
    objects: int


def coco_numbers(
    objects: list[Object], detections: list[Detection], masks: bool = False
) -> tuple[dict[str, float | None], dict[str, float]]:
    """The twelve numbers and AP per class, fractions 0..1. No two detections may have the same score.

    Args:
        masks: overlap and a detection's area are those of the masks, not of the boxes.

    Returns:
        AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl; None where no object counts. And AP by class
        name, for classes of which an object counts.
    """
    groups: dict[str, dict[str, tuple[list, list]]] = defaultdict(
        lambda: defaultdict(lambda: ([], []))
    )
    for item in objects:
        groups[item.name][item.image][0].append(item)
    for item in detections:
        groups[item.name][item.image][1].append(item)
    # By area range and class: precision (thresholds, recall points); recall (thresholds,) by number of detections.
    precision: dict[str, dict[str, np.ndarray]] = {area: {} for area in AREAS}
    recall: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    for name, images in groups.items():
        overlaps = {image: _overlaps(*pair, masks) for image, pair in images.items()}
        for area, limits in AREAS.items():
            matches = [_match(*images[image], overlaps[image], limits, masks) for image in images]
            count = sum(item.objects for item in matches)
            if not count:
                continue
            precision[area][name] = _precision(matches, count)
            for limit in (1, 10, 100):
                recall[area, limit].append(
                    sum(_true_positives(item)[:, :limit].sum(1) for item in matches) / count
                )
    everywhere = list(precision['all'].values())
    numbers = {
        'AP': _mean(everywhere),
        'AP50': _mean([values[0] for values in everywhere]),
        'AP75': _mean([values[5] for values in everywhere]),
        **{f'AP{area}': _mean(list(precision[area].values())) for area in 'sml'},
        **{f'AR{limit}': _mean(recall['all', limit]) for limit in (1, 10, 100)},
        **{f'AR{area}': _mean(recall[area, 100]) for area in 'sml'},
    }
    return numbers, {name: float(values.mean()) for name, values in precision['all'].items()}


def _mean(values: list[np.ndarray]) -> float | None:
    return float(np.mean(values)) if values else None


def _overlaps(objects: list[Object], detections: list[Detection], masks: bool) -> np.ndarray:
    """IoU, of a crowd the detection's share inside it: (detections by falling score, objects)."""
    ordered = sorted(detections, key=lambda item: -item.score)
    table = np.zeros((len(ordered), len(objects)))
    for row, detection in enumerate(ordered):
        for column, item in enumerate(objects):
            if masks:
                common = np.count_nonzero(detection.mask & item.mask)
                size, other = np.count_nonzero(detection.mask), np.count_nonzero(item.mask)
            else:
                common = _common_area(detection.box, item.box)
                size, other = (w * h for _, _, w, h in (detection.box, item.box))
            union = size if item.crowd else size + other - common
            table[row, column] = common / union if union else 0
    return table


def _common_area(one: tuple, other: tuple) -> float:
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _match(
    objects: list[Object],
    detections: list[Detection],
    overlaps: np.ndarray,
    limits: tuple[float, float],
    masks: bool,
) -> Matches:
    """Each detection, by falling score, takes the free object that it overlaps most, if by the threshold or more.

    Objects that count go first. Crowds and objects out of the area range don't count: a detection that takes one is
    ignored, and a crowd may be taken again and again. A detection that takes none is ignored out of the area range.
    """
    ordered = sorted(detections, key=lambda item: -item.score)[:MAX_DETECTIONS]
    low, high = limits
    counts = np.array([not item.crowd and low <= item.area <= high for item in objects], bool)
    crowd = np.array([item.crowd for item in objects], bool)
    hits = np.zeros((len(IOU_THRESHOLDS), len(ordered)), bool)
    ignored = np.zeros_like(hits)
    for step, threshold in enumerate(IOU_THRESHOLDS):
        taken = np.zeros(len(objects), bool)
        for row, detection in enumerate(ordered):
            near = (overlaps[row] >= threshold) & (~taken | crowd)
            candidates = near & counts if (near & counts).any() else near
            if candidates.any():
                best = np.argmax(np.where(candidates, overlaps[row], -1))
                taken[best], hits[step, row], ignored[step, row] = True, True, not counts[best]
            else:
                area = detection.mask.sum() if masks else detection.box[2] * detection.box[3]
                ignored[step, row] = not low <= area <= high
    return Matches([item.score for item in ordered], hits, ignored, int(counts.sum()))


def _true_positives(matches: Matches) -> np.ndarray:
    return matches.hits & ~matches.ignored


def _precision(matches: list[Matches], objects: int) -> np.ndarray:
    """The highest precision at each recall or above it, 0 where it isn't reached: (thresholds, recall points)."""
    order = np.argsort([-score for item in matches for score in item.scores])
    hits = np.concatenate([item.hits for item in matches], 1)[:, order]
    ignored = np.concatenate([item.ignored for item in matches], 1)[:, order]
    true = np.cumsum(hits & ~ignored, 1)
    false = np.cumsum(~hits & ~ignored, 1)
    precision, recall = true / np.maximum(true + false, 1), true / objects
    reached = recall[:, None, :] >= RECALL_POINTS[None, :, None]
    return np.where(reached, precision[:, None, :], 0).max(2, initial=0)
