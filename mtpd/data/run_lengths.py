"""COCO's run lengths of masks, looked at before pycocotools goes wrong on them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .values import is_id


def fit(mask: Any, width: float, height: float) -> bool:
    """Whether they are ones, size (height, width) and counts, of a mask of that size in pixels (infinite: unknown)."""
    if not isinstance(mask, dict) or not isinstance(mask.get('size'), list):
        return False
    if mask['size'] != [height, width] and math.isfinite(width):
        return False
    if len(mask['size']) != 2 or not all(is_id(side) and side > 0 for side in mask['size']):
        return False
    counts = mask.get('counts')
    if isinstance(counts, str):
        counts = decoded(counts)
    if not isinstance(counts, list) or not all(is_id(count) and count >= 0 for count in counts):
        return False
    return sum(counts) == mask['size'][0] * mask['size'][1]


def decoded(text: str) -> list[int] | None:
    """The run lengths of pycocotools' compressed text; None where it is none, on which pycocotools would go wrong.

    Five bits a character, least first, the sixth for "goes on"; from the third number on differences to the last but one.
    """
    codes = np.frombuffer(text.encode('utf-8', 'replace'), np.uint8).astype(int) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    counts: list[int] = []
    value = shift = 0
    for code in codes.tolist():
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        counts.append(value)
        value = shift = 0
    return counts
