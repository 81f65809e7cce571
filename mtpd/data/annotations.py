"""What is wrong inside a COCO-format annotation file: ids, names, sizes, boxes, masks. What COCO itself has passes.

That is: images without objects, crowds, tiny boxes, boxes that stick out of their image, and two objects of 860,001 in
train2017 whose box has no height, which mmdet leaves out.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from ..utils.progress import bar
from . import run_lengths
from .values import are_finite, is_id, is_number, is_text, short

MOST_CLASSES = 50_000  # V3Det has 13,204; a head of more does not fit into memory
SMALLEST_IMAGE = 32  # pixels; mmdet trains on no smaller ones
EMPTY_BOXES = 1e-4  # the share of boxes without area that passes


class Findings:
    """Kinds of faults: how many of each, and where the first one is."""

    def __init__(self, where: str):
        self.where = where
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, kind: str, example: str) -> None:
        self.counts[kind] += 1
        self.first.setdefault(kind, example)

    def texts(self) -> list[str]:
        return [
            f'{self.where}: {kind}, {count} times, first {self.first[kind]}.'
            if count > 1
            else f'{self.where}: {kind}: {self.first[kind]}.'
            for kind, count in self.counts.items()
        ]


def check(table: dict, where: str) -> list[str]:
    """Findings in a table with the lists `images`, `annotations` and `categories`, one text per kind of fault.

    Args:
        where: begins each text, such as the file's name.
    """
    found = Findings(where)
    for key in ('images', 'annotations', 'categories'):
        if not table[key]:
            found.add(f'it lists no {key}', 'export it again')
    images = _images(table['images'], found)
    classes = _categories(table['categories'], found)
    _objects(table['annotations'], images, classes, found)
    return found.texts()


def _images(items: list, found: Findings) -> dict[int, tuple[float, float]]:
    """Width and height by id."""
    sizes: dict[int, tuple[float, float]] = {}
    for place, item in enumerate(items):
        name = item.get('file_name') if isinstance(item, dict) else None
        if not (isinstance(item, dict) and is_id(item.get('id'))):
            found.add(
                'an image is no dict with a whole number as its id',
                f'images[{place}] is {short(item)}',
            )
            continue
        if item['id'] in sizes:
            found.add('an image id is given twice', f'{item["id"]}')
        if not is_text(name):
            found.add('an image has no file_name', f'image {item["id"]}: {short(name)}')
        size = item.get('width'), item.get('height')
        if not all(is_number(side) and side >= 1 for side in size):
            found.add(
                'an image has no width and height in pixels', f'image {item["id"]}: {short(size)}'
            )
            size = (math.inf, math.inf)
        sizes[item['id']] = size
    if sizes and all(min(size) < SMALLEST_IMAGE for size in sizes.values()):
        found.add(
            f'all images have a side under {SMALLEST_IMAGE} pixels, and mmdet trains on none of them',
            'enlarge them, with their boxes',
        )
    return sizes


def _categories(items: list, found: Findings) -> set[int]:
    ids, names = set(), set()
    if len(items) > MOST_CLASSES:
        found.add(
            f'it has {len(items):,} categories, and {MOST_CLASSES:,} are the most',
            'one category is a class, not an object; is it one per object here?',
        )
        items = items[:MOST_CLASSES]
    for place, item in enumerate(items):
        if not (isinstance(item, dict) and is_id(item.get('id'))):
            found.add(
                'a category lacks its id, a whole number', f'categories[{place}] is {short(item)}'
            )
            continue
        name = item.get('name')
        if not is_text(name):
            found.add('a category lacks its name', f'category {item["id"]}: {short(name)}')
        elif name in names:
            found.add('a class name appears twice', short(name))
        if item['id'] in ids:
            found.add('a category id is given twice', f'{item["id"]}')
        ids.add(item['id'])
        names.add(name if isinstance(name, str) else None)
    return ids


def _objects(items: list, images: dict, classes: set, found: Findings) -> None:
    ids: set[int] = set()
    empty, small, boxes = Findings(found.where), 0, 0
    for place, item in enumerate(bar('annotations', items)):
        if not (isinstance(item, dict) and is_id(item.get('id'))):
            found.add(
                'an annotation is no dict with a whole number as its id',
                f'annotations[{place}] is {short(item)}',
            )
            continue
        name = f'annotation {item["id"]}'
        if item['id'] in ids:
            found.add('an annotation id is given twice', f'{item["id"]}')
        ids.add(item['id'])
        size = _known(item, 'image_id', images, 'images', name, found)
        _known(item, 'category_id', classes, 'categories', name, found)
        if item.get('iscrowd', 0) not in (0, 1):
            found.add('iscrowd is neither 0 nor 1', f'{name}: {short(item["iscrowd"])}')
        width, height = images[item['image_id']] if size else (math.inf, math.inf)
        _mask(item.get('segmentation'), width, height, name, found)
        if not _box(item, width, height, name, found, empty):
            continue
        boxes += 1
        small += item['bbox'][2] <= 1 and item['bbox'][3] <= 1
    if empty.counts.total() > EMPTY_BOXES * len(items):
        for kind, count in empty.counts.items():
            found.counts[kind], found.first[kind] = count, empty.first[kind]
    elif boxes and small == boxes:
        found.add(
            'no box is larger than 1 x 1',
            'pixels are needed, [x, y, width, height]; are these fractions of the image?',
        )


def _known(item: dict, key: str, known: Any, what: str, name: str, found: Findings) -> bool:
    if is_id(item.get(key)) and item[key] in known:
        return True
    found.add(f'{key} is not among the {what}', f'{name}: {short(item.get(key))}')
    return False


def _box(item: dict, width: float, height: float, name: str, found: Findings, empty: Findings):
    """Whether the box and its area are numbers; what is wrong with them goes to `found`, or `empty`."""
    box, area = item.get('bbox'), item.get('area')
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        found.add('bbox is not four numbers [x, y, width, height]', f'{name}: {short(box)}')
        return False
    if not is_number(area):
        found.add('area is no number (of square pixels)', f'{name}: {short(area)}')
        return False
    x, y, w, h = box
    if w < 0 or h < 0 or area < 0:
        text = f'{name}: bbox {short(box)}, area {short(area)}'
        found.add('a box has a negative width, height or area', text)
    elif w == 0 or h == 0 or area == 0:
        empty.add(
            'a box has no width, height or area', f'{name}: bbox {short(box)}, area {short(area)}'
        )
    elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
        size = f'{width:g} x {height:g}'
        found.add('a box lies outside its image', f'{name}: bbox {short(box)}, image {size}')
    return True


def _mask(mask: Any, width: float, height: float, name: str, found: Findings) -> None:
    """Polygons in pixels, or run lengths of the image's size."""
    if mask is None or mask == []:
        return
    if isinstance(mask, list):
        good = all(
            isinstance(polygon, list)
            and len(polygon) >= 6
            and len(polygon) % 2 == 0
            and are_finite(polygon)
            for polygon in mask
        )
        if not good:
            found.add(
                'a segmentation is no list of polygons [x1, y1, x2, y2, x3, y3, ...]',
                f'{name}: {short(mask)}',
            )
    elif not run_lengths.fit(mask, width, height):
        found.add(
            'a segmentation in run lengths does not fit its image (size [height, width], counts that add up to it)',
            f'{name}: {short(mask)}',
        )
