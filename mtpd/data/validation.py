"""What is wrong with a COCO-format dataset: in its annotation file, and in a sample of its image files.

What COCO itself has passes: images without objects, crowds, tiny boxes, boxes that stick out of their image, and two objects
of 860,001 in train2017 whose box has no height, which mmdet leaves out.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from ..utils.progress import progress_bar

MAX_CLASSES = 50_000  # V3Det has 13,204; a head of more does not fit into memory
MIN_TRAINING_SIDE = 32  # pixels; mmdet trains on no smaller images
MAX_EMPTY_BOX_SHARE = 1e-4  # of boxes without area
MAX_PIXELS = 178_956_970  # Pillow's limit: 0.5 GB decoded, in each data worker
SAMPLE_SIZE = 64  # images of a split that are decoded


# Annotation files


class Faults:
    """Kinds of faults in a file: how many there are of each, and where the first one is."""

    def __init__(self, file: str):
        self.file = file
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, kind: str, example: str) -> None:
        self.counts[kind] += 1
        self.first.setdefault(kind, example)

    def merge(self, other: Faults) -> None:
        self.counts += other.counts
        self.first = other.first | self.first

    def texts(self) -> list[str]:
        return [
            f'{self.file}: {kind}, {count} times, first {self.first[kind]}.'
            if count > 1
            else f'{self.file}: {kind}: {self.first[kind]}.'
            for kind, count in self.counts.items()
        ]


def annotation_problems(table: dict, file: str) -> list[str]:
    """What is wrong in a table with the lists `images`, `annotations` and `categories`: a text for each kind of fault.

    Args:
        file: what the texts call it.
    """
    faults = Faults(file)
    for key in ('images', 'annotations', 'categories'):
        if not table[key]:
            faults.add(f'it lists no {key}', 'export it again')
    sizes = _check_images(table['images'], faults)
    category_ids = _check_categories(table['categories'], faults)
    _check_annotations(table['annotations'], sizes, category_ids, faults)
    return faults.texts()


def _check_images(images: list, faults: Faults) -> dict[int, tuple[float, float]]:
    """Returns width and height by id; infinite where the file doesn't give them."""
    sizes: dict[int, tuple[float, float]] = {}
    for place, image in enumerate(images):
        if not has_id(image):
            kind = 'an image is no dict with a whole number as its id'
            faults.add(kind, f'images[{place}] is {abbreviate(image)}')
            continue
        name, size = image.get('file_name'), (image.get('width'), image.get('height'))
        if image['id'] in sizes:
            faults.add('an image id is given twice', f'{image["id"]}')
        if not is_text(name):
            faults.add('an image has no file_name', f'image {image["id"]}: {abbreviate(name)}')
        if not all(is_number(side) and side >= 1 for side in size):
            kind = 'an image has no width and height in pixels'
            faults.add(kind, f'image {image["id"]}: {abbreviate(size)}')
            size = (math.inf, math.inf)
        sizes[image['id']] = size
    if sizes and all(min(size) < MIN_TRAINING_SIDE for size in sizes.values()):
        faults.add(
            f'all images have a side under {MIN_TRAINING_SIDE} pixels, and mmdet trains on none of them',
            'enlarge them, with their boxes',
        )
    return sizes


def _check_categories(categories: list, faults: Faults) -> set[int]:
    """Returns their ids."""
    if len(categories) > MAX_CLASSES:
        faults.add(
            f'it has {len(categories):,} categories, and {MAX_CLASSES:,} are the most',
            'one category is a class, not an object; is it one per object here?',
        )
    ids, names = set(), set()
    for place, category in enumerate(categories[:MAX_CLASSES]):
        if not has_id(category):
            kind = 'a category lacks its id, a whole number'
            faults.add(kind, f'categories[{place}] is {abbreviate(category)}')
            continue
        name = category.get('name')
        if not is_text(name):
            faults.add(
                'a category lacks its name', f'category {category["id"]}: {abbreviate(name)}'
            )
        elif name in names:
            faults.add('a class name appears twice', abbreviate(name))
        else:
            names.add(name)
        if category['id'] in ids:
            faults.add('a category id is given twice', f'{category["id"]}')
        ids.add(category['id'])
    return ids


def _check_annotations(
    annotations: list,
    sizes: dict[int, tuple[float, float]],
    category_ids: set[int],
    faults: Faults,
) -> None:
    ids: set[int] = set()
    empty_boxes, largest = Faults(faults.file), 0.0
    for place, annotation in enumerate(progress_bar('annotations', annotations)):
        if not has_id(annotation):
            kind = 'an annotation is no dict with a whole number as its id'
            faults.add(kind, f'annotations[{place}] is {abbreviate(annotation)}')
            continue
        name = f'annotation {annotation["id"]}'
        if annotation['id'] in ids:
            faults.add('an annotation id is given twice', f'{annotation["id"]}')
        ids.add(annotation['id'])
        image, category = annotation.get('image_id'), annotation.get('category_id')
        if not is_whole(image) or image not in sizes:
            faults.add('image_id is not among the images', f'{name}: {abbreviate(image)}')
            image = None
        if not is_whole(category) or category not in category_ids:
            faults.add('category_id is not among the categories', f'{name}: {abbreviate(category)}')
        if annotation.get('iscrowd', 0) not in (0, 1):
            faults.add('iscrowd is neither 0 nor 1', f'{name}: {abbreviate(annotation["iscrowd"])}')
        size = sizes.get(image, (math.inf, math.inf))
        _check_segmentation(annotation.get('segmentation'), *size, name, faults)
        longer_side = _check_box(annotation, *size, name, faults, empty_boxes)
        largest = max(largest, longer_side)
    if empty_boxes.counts.total() > MAX_EMPTY_BOX_SHARE * len(annotations):
        faults.merge(empty_boxes)
    elif annotations and largest <= 1:
        faults.add(
            'no box is larger than 1 x 1',
            'pixels are needed, [x, y, width, height]; are these fractions of the image?',
        )


def _check_box(
    annotation: dict, width: float, height: float, name: str, faults: Faults, empty_boxes: Faults
) -> float:
    """Returns the box's longer side; infinite where there is none."""
    box, area = annotation.get('bbox'), annotation.get('area')
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        kind = 'bbox is not four numbers [x, y, width, height]'
        faults.add(kind, f'{name}: {abbreviate(box)}')
        return math.inf
    x, y, w, h = box
    if not is_number(area):
        faults.add('area is no number (of square pixels)', f'{name}: {abbreviate(area)}')
    elif w <= 0 or h <= 0 or area <= 0:
        values = f'{name}: bbox {abbreviate(box)}, area {abbreviate(area)}'
        if w < 0 or h < 0 or area < 0:
            faults.add('a box has a negative width, height or area', values)
        else:
            empty_boxes.add('a box has no width, height or area', values)
    elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
        values = f'{name}: bbox {abbreviate(box)}, image {width:g} x {height:g}'
        faults.add('a box lies outside its image', values)
    return max(w, h)


def _check_segmentation(mask: Any, width: float, height: float, name: str, faults: Faults) -> None:
    """Polygons in pixels, or run lengths of the image's size."""
    if mask is None or mask == []:
        return
    if isinstance(mask, list):
        if not all(map(is_polygon, mask)):
            kind = 'a segmentation is no list of polygons [x1, y1, x2, y2, x3, y3, ...]'
            faults.add(kind, f'{name}: {abbreviate(mask)}')
    elif math.isfinite(width) and not rle_is_valid(mask, width, height):
        faults.add(
            'a segmentation in run lengths does not fit its image (size [height, width], counts that add up to it)',
            f'{name}: {abbreviate(mask)}',
        )


def rle_is_valid(mask: Any, width: float, height: float) -> bool:
    """Whether these are COCO's run lengths of a mask of the image's size.

    pycocotools raises for some that are not, decodes what lies in memory where they are too short, and crashes on sizes
    that do not fit into memory.
    """
    if not isinstance(mask, dict) or mask.get('size') != [height, width]:
        return False
    counts = mask.get('counts')
    if isinstance(counts, str):
        counts = decode_rle(counts)
    if not isinstance(counts, list) or not all(is_whole(n) and n >= 0 for n in counts):
        return False
    return sum(counts) == width * height


def decode_rle(text: str) -> list[int] | None:
    """The run lengths in pycocotools' compressed text; None where it ends within a number.

    A character holds five bits, the lowest first, and a sixth that says whether the number goes on. From the fourth number
    on they are differences to the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for byte in text.encode('utf-8', 'replace'):
        code = byte - 48
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
    return None if shift else counts


# Image files


class ImageProblem(NamedTuple):
    """What is wrong with an image file, and whether it can't be decoded: as opposed to, does not fit its annotations."""

    text: str
    corrupt: bool = False


def image_problems(images: list[dict], folder: Path, corrupt_limit: int = 0) -> list[str]:
    """What is wrong with a sample of a split's image files: the smallest, the largest, and some in between.

    Args:
        images: the annotation file's, without `annotation_problems`, whose files are there.
        corrupt_limit: how many may be corrupt.
    """
    for image in images:
        if image['width'] * image['height'] > MAX_PIXELS:
            return [_too_large_problem(image['file_name'], image['width'], image['height']).text]
    by_size = sorted(images, key=lambda image: image['width'] * image['height'])
    step = max(1, (len(images) - 1) / (SAMPLE_SIZE - 1))
    places = {round(k * step) for k in range(SAMPLE_SIZE) if round(k * step) < len(images)}
    problems = [_image_problem(by_size[place], folder) for place in sorted(places)]
    corrupt = [problem.text for problem in problems if problem and problem.corrupt]
    texts = [problem.text for problem in problems if problem and not problem.corrupt]
    if len(corrupt) > corrupt_limit:
        texts = corrupt + texts
    if len(texts) > 5:
        more = f'{len(texts) - 5} more of {len(places)} images looked at in {folder}.'
        texts = [*texts[:5], more]
    if len(corrupt) > corrupt_limit:
        texts[-1] += (
            f' data.corrupt_limit is {corrupt_limit}: {len(corrupt)} or more leaves such images out.'
        )
    return texts


def _image_problem(image: dict, folder: Path) -> ImageProblem | None:
    path = folder / image['file_name']
    try:
        stat = path.stat()
    except OSError as error:
        return ImageProblem(f'image {path} cannot be read ({error.strerror}).', corrupt=True)
    if not stat.st_size:
        text = f'image {path} is empty (0 bytes). Fetch or export it again.'
        return ImageProblem(text, corrupt=True)
    version = stat.st_mtime_ns, stat.st_size
    return _decoding_problem(path, version, image['width'], image['height'])


@lru_cache(maxsize=4 * SAMPLE_SIZE)
def _decoding_problem(
    path: Path, version: tuple[int, int], width: int, height: int
) -> ImageProblem | None:
    """Decodes an image file as training does, again after it was written to (`version`)."""
    try:
        with warnings.catch_warnings(action='ignore'), Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return _too_large_problem(path, *image.size)
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        cause = 'OpenCV cannot read it'
    except Image.DecompressionBombError:
        return ImageProblem(
            f'image {path} has more than {MAX_PIXELS:,} pixels, which are the most: cut it into smaller ones.'
        )
    except Exception as error:  # by its format, each has its own
        pixels, cause = None, error
    if pixels is None:
        text = f'image {path} is damaged, cut short or no image ({cause}). Fetch or export it again, as JPEG or PNG.'
        return ImageProblem(text, corrupt=True)
    if (pixels.shape[1], pixels.shape[0]) != (width, height):
        return ImageProblem(
            f'image {path} is {pixels.shape[1]} x {pixels.shape[0]} pixels, turned as its EXIF data says, and the '
            f'annotation file says {width:g} x {height:g}: its boxes would lie elsewhere. Correct its size there, or '
            'turn the image.'
        )
    return None


def _too_large_problem(name: str | Path, width: float, height: float) -> ImageProblem:
    return ImageProblem(
        f'image {name} has {width:g} x {height:g} pixels, {MAX_PIXELS:,} are the most: cut it into smaller ones.'
    )


# Values of a JSON file


def has_id(item: Any) -> bool:
    """Whether it is a dict with a whole number as its id."""
    return isinstance(item, dict) and is_whole(item.get('id'))


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**53


def is_text(value: Any) -> bool:
    """Whether it is something to be read, which can be a file's name and be printed."""
    return (
        isinstance(value, str)
        and bool(value.strip())
        and '\0' not in value
        and not re.search('[\ud800-\udfff]', value)
    )


def is_polygon(value: Any) -> bool:
    """Whether it is three points or more; the sum says whether all are finite: a file has tens of millions of numbers."""
    if not (isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0):
        return False
    try:
        return math.isfinite(sum(value))
    except (TypeError, OverflowError):
        return False


def abbreviate(value: Any) -> str:
    """A value's `repr` in 80 characters or fewer."""
    text = repr(_abridge(value))
    return text if len(text) <= 80 else f'{text[:77]}...'


def _abridge(value: Any) -> Any:
    """No more of a large value than `abbreviate` shows."""
    if isinstance(value, str):
        return value[:80]
    if isinstance(value, int) and abs(value) > 2**64:
        return 'a huge number'
    if isinstance(value, (list, tuple)):
        return type(value)(_abridge(item) for item in value[:8])
    if isinstance(value, dict):
        return {_abridge(key): _abridge(item) for key, item in islice(value.items(), 8)}
    return value
