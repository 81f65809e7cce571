"""COCO's numbers of detections, by pycocotools or, several times faster, by faster-coco-eval."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import MtpdError

# pycocotools' `stats`, in its order.
NUMBERS = (
    'mAP',
    'mAP_50',
    'mAP_75',
    'mAP_s',
    'mAP_m',
    'mAP_l',
    'AR_1',
    'AR_10',
    'AR_100',
    'AR_s',
    'AR_m',
    'AR_l',
)


def evaluator(library: str) -> type[COCOeval]:
    """pycocotools' `COCOeval`, or what takes its place; 'auto': the faster one where it is installed.

    Raises:
        MtpdError: it is not installed.
    """
    if library == 'pycocotools':
        return COCOeval
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError:
        if library == 'auto':
            return COCOeval
        raise MtpdError(
            'evaluation.library is faster_coco_eval, which is not installed: pip install faster-coco-eval, or set it to '
            'auto or pycocotools.'
        ) from None
    return COCOeval_faster


def numbers(data, files: dict[str, str], metrics: Iterable[str], library: str = 'auto') -> dict:
    """The twelve numbers per metric and AP per class, fractions; None where there are no such objects.

    Args:
        data: mmdet's CocoDataset.
        files: by metric ('bbox', 'segm') the detections in COCO's format.
        library: one of `schema.LIBRARIES`; the numbers are the same, and pycocotools' are those that are published.
    """
    score_by = evaluator(library)
    table: dict = {'per_class': {}}
    for metric in metrics:
        found = _loaded(data.coco, files[metric], metric)
        score = score_by(data.coco, found, metric)
        score.params.catIds, score.params.imgIds = data.cat_ids, data.img_ids
        score.evaluate()
        score.accumulate()
        score.summarize()
        table |= {
            f'{metric}_{name}': None if value < 0 else float(value)
            for name, value in zip(NUMBERS, score.stats, strict=True)
        }
        precision = score.eval['precision'][
            :, :, :, 0, -1
        ]  # IoU x recall x class, all areas, 100 detections
        table['per_class'][metric] = {
            name: float(np.mean(values[values > -1])) if (values > -1).any() else None
            for name, values in zip(data.CLASSES, np.moveaxis(precision, 2, 0), strict=True)
        }
    return table


def _loaded(truth: COCO, path: str, metric: str) -> COCO:
    """Detections as pycocotools wants them; its own `loadRes` fails on an empty list."""
    found = json.loads(Path(path).read_text())
    if metric == 'segm':  # beside a box, pycocotools takes its area for the mask's
        found = [{key: item[key] for key in item if key != 'bbox'} for item in found]
    if found:
        return truth.loadRes(found)
    nothing = COCO()
    nothing.dataset = truth.dataset | {'annotations': []}
    nothing.createIndex()
    return nothing
