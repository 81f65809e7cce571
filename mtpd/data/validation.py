"""What is wrong inside a COCO-format annotation file: ids, names, sizes, boxes, masks. What COCO itself has passes.

That is: images without objects, crowds, tiny boxes, boxes that stick out of their image, and two objects of 860,001 in
train2017 whose box has no height, which mmdet leaves out.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ..utils.progress import progress_bar

MAX_CLASSES = 50_000  # V3Det has 13,204; a head of more does not fit into memory
MIN_TRAINING_SIDE = 32  # pixels; mmdet trains on no smaller ones
MAX_EMPTY_BOX_SHARE = 1e-4  # the share of boxes without area that passes


class Faults:
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


def annotation_problems(table: dict, where: str) -> list[str]:
    """Findings in a table with the lists `images`, `annotations` and `categories`, one text per kind of fault.

    Args:
        where: begins each text, such as the file's name.
    """
    found = Faults(where)
    for key in ('images', 'annotations', 'categories'):
        if not table[key]:
            found.add(f'it lists no {key}', 'export it again')
    images = _check_images(table['images'], found)
    classes = _check_categories(table['categories'], found)
    _check_annotations(table['annotations'], images, classes, found)
    return found.texts()


def _check_images(items: list, found: Faults) -> dict[int, tuple[float, float]]:
    """Width and height by id."""
    sizes: dict[int, tuple[float, float]] = {}
    for place, item in enumerate(items):
        name = item.get('file_name') if isinstance(item, dict) else None
        if not (isinstance(item, dict) and is_id(item.get('id'))):
            found.add(
                'an image is no dict with a whole number as its id',
                f'images[{place}] is {abbreviate(item)}',
            )
            continue
        if item['id'] in sizes:
            found.add('an image id is given twice', f'{item["id"]}')
        if not is_text(name):
            found.add('an image has no file_name', f'image {item["id"]}: {abbreviate(name)}')
        size = item.get('width'), item.get('height')
        if not all(is_number(side) and side >= 1 for side in size):
            found.add(
                'an image has no width and height in pixels',
                f'image {item["id"]}: {abbreviate(size)}',
            )
            size = (math.inf, math.inf)
        sizes[item['id']] = size
    if sizes and all(min(size) < MIN_TRAINING_SIDE for size in sizes.values()):
        found.add(
            f'all images have a side under {MIN_TRAINING_SIDE} pixels, and mmdet trains on none of them',
            'enlarge them, with their boxes',
        )
    return sizes


def _check_categories(items: list, found: Faults) -> set[int]:
    ids, names = set(), set()
    if len(items) > MAX_CLASSES:
        found.add(
            f'it has {len(items):,} categories, and {MAX_CLASSES:,} are the most',
            'one category is a class, not an object; is it one per object here?',
        )
        items = items[:MAX_CLASSES]
    for place, item in enumerate(items):
        if not (isinstance(item, dict) and is_id(item.get('id'))):
            found.add(
                'a category lacks its id, a whole number',
                f'categories[{place}] is {abbreviate(item)}',
            )
            continue
        name = item.get('name')
        if not is_text(name):
            found.add('a category lacks its name', f'category {item["id"]}: {abbreviate(name)}')
        elif name in names:
            found.add('a class name appears twice', abbreviate(name))
        if item['id'] in ids:
            found.add('a category id is given twice', f'{item["id"]}')
        ids.add(item['id'])
        names.add(name if isinstance(name, str) else None)
    return ids


def _check_annotations(items: list, images: dict, classes: set, found: Faults) -> None:
    ids: set[int] = set()
    empty, small, boxes = Faults(found.where), 0, 0
    for place, item in enumerate(progress_bar('annotations', items)):
        if not (isinstance(item, dict) and is_id(item.get('id'))):
            found.add(
                'an annotation is no dict with a whole number as its id',
                f'annotations[{place}] is {abbreviate(item)}',
            )
            continue
        name = f'annotation {item["id"]}'
        if item['id'] in ids:
            found.add('an annotation id is given twice', f'{item["id"]}')
        ids.add(item['id'])
        size = _check_reference(item, 'image_id', images, 'images', name, found)
        _check_reference(item, 'category_id', classes, 'categories', name, found)
        if item.get('iscrowd', 0) not in (0, 1):
            found.add('iscrowd is neither 0 nor 1', f'{name}: {abbreviate(item["iscrowd"])}')
        width, height = images[item['image_id']] if size else (math.inf, math.inf)
        _check_segmentation(item.get('segmentation'), width, height, name, found)
        if not _check_box(item, width, height, name, found, empty):
            continue
        boxes += 1
        small += item['bbox'][2] <= 1 and item['bbox'][3] <= 1
    if empty.counts.total() > MAX_EMPTY_BOX_SHARE * len(items):
        for kind, count in empty.counts.items():
            found.counts[kind], found.first[kind] = count, empty.first[kind]
    elif boxes and small == boxes:
        found.add(
            'no box is larger than 1 x 1',
            'pixels are needed, [x, y, width, height]; are these fractions of the image?',
        )


def _check_reference(item: dict, key: str, known: Any, what: str, name: str, found: Faults) -> bool:
    if is_id(item.get(key)) and item[key] in known:
        return True
    found.add(f'{key} is not among the {what}', f'{name}: {abbreviate(item.get(key))}')
    return False


def _check_box(item: dict, width: float, height: float, name: str, found: Faults, empty: Faults):
    """Whether the box and its area are numbers; what is wrong with them goes to `found`, or `empty`."""
    box, area = item.get('bbox'), item.get('area')
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        found.add('bbox is not four numbers [x, y, width, height]', f'{name}: {abbreviate(box)}')
        return False
    if not is_number(area):
        found.add('area is no number (of square pixels)', f'{name}: {abbreviate(area)}')
        return False
    x, y, w, h = box
    if w < 0 or h < 0 or area < 0:
        text = f'{name}: bbox {abbreviate(box)}, area {abbreviate(area)}'
        found.add('a box has a negative width, height or area', text)
    elif w == 0 or h == 0 or area == 0:
        empty.add(
            'a box has no width, height or area',
            f'{name}: bbox {abbreviate(box)}, area {abbreviate(area)}',
        )
    elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
        size = f'{width:g} x {height:g}'
        found.add('a box lies outside its image', f'{name}: bbox {abbreviate(box)}, image {size}')
    return True


def _check_segmentation(mask: Any, width: float, height: float, name: str, found: Faults) -> None:
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
                f'{name}: {abbreviate(mask)}',
            )
    elif not rle_is_valid(mask, width, height):
        found.add(
            'a segmentation in run lengths does not fit its image (size [height, width], counts that add up to it)',
            f'{name}: {abbreviate(mask)}',
        )


# Image files: a sample of a split is decoded as training does it, and compared with the annotation file.


SAMPLE_SIZE = 64  # images of a split
MAX_PIXELS = 178_956_970  # Pillow's limit: 0.5 GB decoded, in each data worker


def image_problems(items: list[dict], folder: Path, limit: int = 0) -> list[str]:
    """Images of the list that can't be trained on: the smallest and largest by what it says, and some in between.

    Args:
        items: the annotation file's images, checked (`validation.annotation_problems`), whose files are there.
        limit: as many that are corrupt are no problem.
    """
    large = [item for item in items if item['width'] * item['height'] > MAX_PIXELS]
    if large:
        return [_too_large_problem(large[0]['file_name'], large[0]['width'], large[0]['height'])]
    ordered = sorted(items, key=lambda item: item['width'] * item['height'])
    step = max(1, (len(items) - 1) / (SAMPLE_SIZE - 1))
    chosen = {round(k * step) for k in range(SAMPLE_SIZE) if round(k * step) < len(items)}
    found = [_image_problem(ordered[place], folder) for place in sorted(chosen)]
    found = [text for text in found if text]
    corrupt = [text for text in found if isinstance(text, Corrupt)]
    if len(corrupt) <= limit:
        found = [text for text in found if not isinstance(text, Corrupt)]
        corrupt = []
    if len(found) > 5:
        found = [
            *found[:5],
            f'{len(found) - 5} more of {len(chosen)} images looked at in {folder}.',
        ]
    if corrupt:
        found[-1] += (
            f' data.corrupt_limit is {limit}: {len(corrupt)} or more leaves such images out.'
        )
    return found


class Corrupt(str):
    """What is wrong with a file that cannot be decoded, as opposed to one that does not fit the annotations."""


def _image_problem(item: dict, folder: Path) -> str | None:
    path = folder / item['file_name']
    try:
        told = path.stat()
    except OSError as error:
        return Corrupt(f'image {path} cannot be read ({error.strerror}).')
    return _decoding_problem(path, (told.st_mtime_ns, told.st_size), item['width'], item['height'])


@lru_cache(maxsize=4 * SAMPLE_SIZE)
def _decoding_problem(path: Path, changed: tuple[int, int], width: int, height: int) -> str | None:
    """What is wrong with one image file. OpenCV, which training reads with, takes half an image for a whole one."""
    if not changed[1]:
        return Corrupt(f'image {path} is empty (0 bytes). Fetch or export it again.')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    return _too_large_problem(path, *image.size)
                image.load()
    except Image.DecompressionBombError:
        return f'image {path} has more than {MAX_PIXELS:,} pixels, which are the most: cut it into smaller ones.'
    except Exception as error:  # by its format, each has its own
        return Corrupt(
            f'image {path} is damaged, cut short or no image ({error}). Fetch or export it again.'
        )
    try:
        pixels = cv2.imread(str(path))
    except cv2.error:
        pixels = None
    if pixels is None:
        return Corrupt(
            f'image {path} is of a kind that OpenCV cannot read. Convert it to JPEG or PNG.'
        )
    if (pixels.shape[1], pixels.shape[0]) != (width, height):
        return (
            f'image {path} is {pixels.shape[1]} x {pixels.shape[0]} pixels, turned as its EXIF data says, and the '
            f'annotation file says {width:g} x {height:g}: its boxes would lie elsewhere. Correct its size there, or '
            'turn the image.'
        )
    return None


def _too_large_problem(name: str | Path, width: float, height: float) -> str:
    return f'image {name} has {width:g} x {height:g} pixels, {MAX_PIXELS:,} are the most: cut it into smaller ones.'


# COCO's run lengths of masks, looked at before pycocotools goes wrong on them.


def rle_is_valid(mask: Any, width: float, height: float) -> bool:
    """Whether they are ones, size (height, width) and counts, of a mask of that size in pixels (infinite: unknown)."""
    if not isinstance(mask, dict) or not isinstance(mask.get('size'), list):
        return False
    if mask['size'] != [height, width] and math.isfinite(width):
        return False
    if len(mask['size']) != 2 or not all(is_id(side) and side > 0 for side in mask['size']):
        return False
    counts = mask.get('counts')
    if isinstance(counts, str):
        counts = decode_rle(counts)
    if not isinstance(counts, list) or not all(is_id(count) and count >= 0 for count in counts):
        return False
    return sum(counts) == mask['size'][0] * mask['size'][1]


def decode_rle(text: str) -> list[int] | None:
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


# What a value of a JSON file is, and how much of it is shown.


def is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_text(value: Any) -> bool:
    """Something to be read, which can be a file's name and be printed."""
    return (
        isinstance(value, str)
        and bool(value.strip())
        and '\0' not in value
        and not re.search('[\ud800-\udfff]', value)
    )


def is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**53


def are_finite(values: list) -> bool:
    """Whether all are finite numbers, by their sum: a large file has tens of millions of them."""
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def abbreviate(value: Any) -> str:
    text = repr(_abridge(value))
    return text if len(text) <= 80 else f'{text[:77]}...'


def _abridge(value: Any) -> Any:
    """No more of a large value than is shown."""
    if isinstance(value, (str, bytes)):
        return value[:80]
    if isinstance(value, int) and abs(value) > 2**64:
        return 'a huge number'
    if isinstance(value, (list, tuple)):
        return type(value)(_abridge(item) for item in value[:8])
    if isinstance(value, dict):
        return {_abridge(key): _abridge(item) for key, item in _first(value.items(), 8)}
    return value


def _first(items: Iterable, count: int) -> list:
    return [item for item, _ in zip(items, range(count), strict=False)]
