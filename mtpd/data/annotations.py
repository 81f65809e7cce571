"""Annotation files in COCO's format, read once: what is wrong, what is taken for granted, and one form for all that follows.

Tools write the format in many ways. `parse_annotations` gives the same table for all of them:

- Ids of images, categories and objects count from 1. pycocotools takes an object with id 0 for one that was missed.
  Images are numbered by their file names, so that no number depends on the ids or the order in the file.
- Images and categories keep the file's id as `file_id`. detections.json is written with it.
- `iscrowd` and `area` are there. An object's `segmentation` is polygons or run lengths, or None.

What COCO itself has is legal: images without objects, crowds, tiny boxes, boxes that stick out of their image, and two
objects of 860,001 in train2017 whose box has no height, which mmdet leaves out.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from itertools import islice
from typing import Any, NamedTuple

from pycocotools import mask as coco_masks

from ..utils.progress import progress_bar

MAX_CLASSES = 50_000  # V3Det has 13,204; a head of more does not fit into memory
MIN_TRAINING_SIDE = 32  # pixels; mmdet trains on no smaller images
MAX_EMPTY_BOX_SHARE = 1e-4  # of boxes without area
# Boxes are taken for corners, [x1, y1, x2, y2], where all can be, and as [x, y, width, height] this share sticks out ...
CORNERS_OUTSIDE_SHARE = 0.25
CORNERS_OUTSIDE_BY = 0.05  # ... by this share of the image's side or more ...
CORNERS_MIN_BOXES = 4  # ... of at least so many boxes.
# They are, too, where this share of the areas that tell is that of corners.
CORNERS_AREA_SHARE = 0.9
CORNERS_AREA_TOLERANCE = 0.02

Id = int | str


class Annotations(NamedTuple):
    """An annotation file's content.

    Attributes:
        table: `images`, `categories` and `annotations` in one form, see the module. Not to be used where there are problems.
        problems: what stops every detector, a text for each kind of fault.
        mask_problems: what stops detectors that use masks.
        notes: what was taken for granted.
    """

    table: dict
    problems: tuple[str, ...]
    mask_problems: tuple[str, ...]
    notes: tuple[str, ...]


class Kinds:
    """Kinds of faults or notes of a file: how many there are of each, and where the first one is."""

    def __init__(self, file: str):
        self.file = file
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, kind: str, example: str) -> None:
        self.counts[kind] += 1
        self.first.setdefault(kind, example)

    def merge(self, other: Kinds) -> None:
        self.counts += other.counts
        self.first = other.first | self.first

    def texts(self) -> tuple[str, ...]:
        return tuple(
            f'{self.file}: {kind}, {count} times, first {self.first[kind]}.'
            if count > 1
            else f'{self.file}: {kind}: {self.first[kind]}.'
            for kind, count in self.counts.items()
        )


def parse_annotations(content: dict, file: str) -> Annotations:
    """Reads a table with the lists `images`, `annotations` and `categories`. It takes over its items, and changes them.

    Args:
        file: what the texts call it.
    """
    return _Reader(file).read(content)


class _Reader:
    """One reading of a file; `images` and `category_ids`: by the file's id."""

    def __init__(self, file: str):
        self.file = file
        self.faults, self.mask_faults, self.notes = Kinds(file), Kinds(file), Kinds(file)
        self.empty_boxes = Kinds(file)
        self.images: dict[Id, dict] = {}
        self.category_ids: dict[Id, int] = {}
        self.object_ids: set[Id] = set()
        self.largest = 0.0  # box side
        self.corners = CornerEvidence()

    def read(self, content: dict) -> Annotations:
        for key in ('images', 'annotations', 'categories'):
            if not content[key]:
                self.faults.add(f'it lists no {key}', 'export it again')
        self._read_images(content['images'])
        categories = self._read_categories(content['categories'], content['annotations'])
        objects = progress_bar('annotations', content['annotations'])
        annotations = [item for place, item in enumerate(objects) if self._read_object(item, place)]
        self._look_at_all_boxes(annotations)
        table = {
            'images': [*self.images.values()],
            'categories': categories,
            'annotations': annotations,
        }
        _number(table)
        return Annotations(table, self.faults.texts(), self.mask_faults.texts(), self.notes.texts())

    # Images

    def _read_images(self, images: list) -> None:
        for place, image in enumerate(images):
            key = read_id(image.get('id')) if isinstance(image, dict) else None
            if key is None:
                kind = 'an image has no id. Give it one, a whole number or a text: its objects refer to it by image_id'
                self.faults.add(kind, f'images[{place}] is {abbreviate(image)}')
                continue
            self._note_id(image['id'])
            if key in self.images:
                kind = 'an image id is given twice. Each image needs an id of its own, to which image_id of its objects refers'
                self.faults.add(kind, abbreviate(image['id']))
            if not is_text(image.get('file_name')):
                kind = 'an image has no file_name. Give its file, relative to the image folder'
                self.faults.add(kind, f'image {key}: {abbreviate(image.get("file_name"))}')
                image['file_name'] = ''
            size = [_whole_if_equal(image.get(side)) for side in ('width', 'height')]
            if not all(is_number(side) and side >= 1 for side in size):
                kind = 'an image has no width and height in pixels. Give those of its file'
                self.faults.add(kind, f'image {key}: {abbreviate(size)}')
                size = [math.inf, math.inf]
            image['file_id'] = image['id']
            image['width'], image['height'] = size
            self.images[key] = image
        names = Counter(image['file_name'] for image in self.images.values() if image['file_name'])
        for name in (name for name, count in names.items() if count > 1):
            kind = 'a file_name is given twice. Make one image of the entries, with the objects of both'
            self.faults.add(kind, abbreviate(name))
        sizes = [(image['width'], image['height']) for image in self.images.values()]
        if sizes and all(min(size) < MIN_TRAINING_SIDE for size in sizes):
            self.faults.add(
                f'all images have a side under {MIN_TRAINING_SIDE} pixels, and mmdet trains on none of them',
                'enlarge them, with their boxes',
            )

    def _note_id(self, value: Any) -> None:
        if isinstance(value, float):
            self.notes.add('an id is a decimal number, and is read as a whole number', f'{value}')
        elif isinstance(value, str) and isinstance(read_id(value), int):
            self.notes.add('an id is a text, and is read as a number', f'{value!r}')

    # Categories

    def _read_categories(self, categories: list, objects: list) -> list[dict]:
        """The classes, in the file's order, without a group that has none of the objects."""
        if len(categories) > MAX_CLASSES:
            self.faults.add(
                f'it has {len(categories):,} categories, more than the limit of {MAX_CLASSES:,}',
                'a category is a class: does the file have a category for each object?',
            )
        classes: dict[Id, dict] = {}
        for place, category in enumerate(categories[:MAX_CLASSES]):
            key = read_id(category.get('id')) if isinstance(category, dict) else None
            if key is None:
                kind = 'a category has no id. Give it one, a whole number or a text: its objects refer to it by category_id'
                self.faults.add(kind, f'categories[{place}] is {abbreviate(category)}')
                continue
            self._note_id(category['id'])
            if key in classes:
                kind = 'a category id is given twice. Each class needs an id of its own'
                self.faults.add(kind, abbreviate(category['id']))
            name = category.get('name')
            if is_text(name):
                category['name'] = read_name(name)
            else:
                kind = 'a category has no name, or one that is no text'
                self.faults.add(kind, f'category {key}: {abbreviate(name)}')
                category['name'] = None
            category['file_id'] = category['id']
            classes[key] = category
        group = _group_without_objects(classes, objects)
        if group is not None:
            self.notes.add(
                'a category without objects is the supercategory of all others, as in files of Roboflow, and is not taken as a class',
                abbreviate(classes.pop(group)['name']),
            )
        names = Counter(item['name'] for item in classes.values() if item['name'] is not None)
        for name in (name for name, count in names.items() if count > 1):
            kind = 'a class name appears twice. Give its objects one category, or the classes different names'
            self.faults.add(kind, abbreviate(name))
        self.category_ids = {key: number for number, key in enumerate(classes, 1)}
        return [*classes.values()]

    # Objects

    def _read_object(self, item: Any, place: int) -> bool:
        """Checks an object and settles its values. Returns False where it has to be left out, after a fault."""
        if not isinstance(item, dict):
            self.faults.add(
                'an annotation is not a dict', f'annotations[{place}] is {abbreviate(item)}'
            )
            return False
        number = item.get('id')
        name = f'annotation {number if type(number) is int else abbreviate(number)}'
        self._check_object_id(item)
        image = self.images.get(read_id(item.get('image_id')))
        if image is None:
            kind = 'image_id is not among the images. List its image, or leave the object out'
            self.faults.add(kind, f'{name}: {abbreviate(item.get("image_id"))}')
        category = self.category_ids.get(read_id(item.get('category_id')))
        if category is None:
            kind = (
                'category_id is not among the categories. List its class, or leave the object out'
            )
            self.faults.add(kind, f'{name}: {abbreviate(item.get("category_id"))}')
        size = (image['width'], image['height']) if image else (math.inf, math.inf)
        self._read_crowd(item, name)
        self._read_mask(item, size, name)
        self._read_box(item, size, name)
        item['image'], item['category_id'] = image, category
        return image is not None and category is not None

    def _check_object_id(self, item: dict) -> None:
        key = read_id(item.get('id'))
        if key is None:  # nothing refers to it
            return
        if key in self.object_ids:
            kind = 'an annotation id is given twice. Is an object listed twice, or were files joined? Number them from 1 on'
            self.faults.add(kind, abbreviate(item['id']))
        self.object_ids.add(key)

    def _read_crowd(self, item: dict, name: str) -> None:
        crowd = item.get('iscrowd')
        if crowd is None:
            crowd = 0
            self.notes.add('an object has no iscrowd, and is taken as no crowd', name)
        elif crowd not in (0, 1):
            kind = 'iscrowd is neither 0 (one object) nor 1 (a crowd)'
            self.faults.add(kind, f'{name}: {abbreviate(crowd)}')
            crowd = 0
        item['iscrowd'] = int(crowd)

    def _read_mask(self, item: dict, size: tuple[float, float], name: str) -> None:
        mask = item.get('segmentation')
        if not mask or (isinstance(mask, list) and not any(mask)):
            mask = None
        elif problem := mask_problem(mask, *size):
            self.mask_faults.add(problem, f'{name}: {abbreviate(mask)}')
            mask = None
        item['segmentation'] = mask

    def _read_box(self, item: dict, size: tuple[float, float], name: str) -> None:
        box, area = item.get('bbox'), item.get('area')
        width, height = size
        mask = item['segmentation'] if math.isfinite(width) else None
        if not box and mask:
            item['bbox'] = box = _mask_box(mask, width, height)
            self.notes.add('an object has no bbox, and gets the box of its mask', name)
        if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
            kind = 'bbox is not four numbers [x, y, width, height]'
            self.faults.add(kind, f'{name}: {abbreviate(box)}')
            self.largest = math.inf
            return
        x, y, w, h = box
        self.largest = max(self.largest, w, h)
        self.corners.add(box, size, None if mask else area)
        if w < 0 or h < 0 or (is_number(area) and area < 0):
            kind = 'a box has a negative width, height or area. x and y are the upper left corner; area may be left out'
            self.faults.add(kind, f'{name}: bbox {abbreviate(box)}, area {abbreviate(area)}')
            return
        if area is not None and not is_number(area):
            kind = 'area is not a number (of square pixels). It may be left out'
            self.faults.add(kind, f'{name}: {abbreviate(area)}')
            return
        if not w or not h:
            values = f'{name}: bbox {abbreviate(box)}, area {abbreviate(area)}'
            self.empty_boxes.add('a box has no width or no height. Leave it out', values)
        elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
            values = f'{name}: bbox {abbreviate(box)}, image {width:g} x {height:g}'
            self.faults.add(
                'a box lies outside its image. Boxes must be in pixels of the image', values
            )
        if not area and w and h:
            area = _mask_area(mask, width, height) if mask else w * h
            source = 'its mask' if mask else 'its box'
            self.notes.add(f'an object has no area, and gets the area of {source}', name)
        item['area'] = area or 0

    def _look_at_all_boxes(self, annotations: list[dict]) -> None:
        if self.empty_boxes.counts.total() > MAX_EMPTY_BOX_SHARE * len(annotations):
            self.faults.merge(self.empty_boxes)
        elif annotations and self.largest <= 1:
            self.faults.add(
                'no box is larger than 1 x 1',
                'boxes must be [x, y, width, height] in pixels; are these fractions of the image?',
            )
        elif example := self.corners.example():
            self.faults.add(
                'boxes look like corners [x1, y1, x2, y2], but must be [x, y, width, height]. '
                'Write x2 - x1 and y2 - y1 in the last two places. An example',
                example,
            )


class CornerEvidence:
    """Whether boxes are written as corners: as [x, y, width, height] they stick out, or do not fit their areas."""

    def __init__(self) -> None:
        self.boxes = self.outside = self.areas = self.corner_areas = 0
        self.all_can_be = True
        self.first = ''

    def add(self, box: list[float], size: tuple[float, float], area: Any) -> None:
        """`area`: None where it is a mask's, which says nothing."""
        x, y, w, h = box
        width, height = size
        self.boxes += 1
        self.all_can_be = self.all_can_be and 0 <= x < w <= width + 1 and 0 <= y < h <= height + 1
        if not self.all_can_be:
            return
        outside = max((x + w) / width, (y + h) / height) >= 1 + CORNERS_OUTSIDE_BY
        fits_corners = fits_sides = False
        if is_number(area) and area > 0:
            fits_corners = abs((w - x) * (h - y) - area) <= CORNERS_AREA_TOLERANCE * area
            fits_sides = abs(w * h - area) <= CORNERS_AREA_TOLERANCE * area
        self.outside += outside
        self.areas += fits_corners != fits_sides
        self.corner_areas += fits_corners and not fits_sides
        if (outside or (fits_corners and not fits_sides)) and not self.first:
            self.first = f'{abbreviate(box)} in an image of {width:g} x {height:g}'

    def example(self) -> str:
        """A box that shows it, or an empty text."""
        by_area = self.areas and self.corner_areas >= CORNERS_AREA_SHARE * self.areas
        sticks_out = (
            self.boxes >= CORNERS_MIN_BOXES and self.outside >= CORNERS_OUTSIDE_SHARE * self.boxes
        )
        return self.first if self.all_can_be and (by_area or sticks_out) else ''


def _number(table: dict) -> None:
    """Numbers images by their file names, categories and objects by their places, from 1 on; objects' `image` -> `image_id`."""
    for number, image in enumerate(sorted(table['images'], key=lambda item: item['file_name']), 1):
        image['id'] = number
    for number, category in enumerate(table['categories'], 1):
        category['id'] = number
    for number, item in enumerate(table['annotations'], 1):
        item['id'], item['image_id'] = number, item.pop('image')['id']


def _group_without_objects(classes: dict[Id, dict], objects: list) -> Id | None:
    """The id of a category that is the supercategory of all others and has no objects, if there is one."""
    members = Counter(read_name(str(item.get('supercategory'))) for item in classes.values())
    for key, category in classes.items():
        own_group = read_name(str(category.get('supercategory')))
        is_group = own_group != category['name'] and members[category['name']] == len(classes) - 1
        if len(classes) > 1 and is_group:
            with_class = (item.get('category_id') for item in objects if isinstance(item, dict))
            return None if any(read_id(value) == key for value in with_class) else key
    return None


# Masks


def mask_problem(mask: Any, width: float, height: float) -> str:
    """What is wrong with an object's segmentation, with the fix; empty for polygons in pixels, or run lengths of the image's size."""
    if isinstance(mask, list):
        if all(map(is_polygon, mask)):
            return ''
        if any(isinstance(part, list) and len(part) == 4 for part in mask):
            return 'a segmentation has a polygon of two points. A polygon needs three or more, a rectangle four'
        return 'a segmentation is not a list of polygons [x1, y1, x2, y2, x3, y3, ...]. Correct it, or leave it out'
    if isinstance(mask, dict):
        if not math.isfinite(width) or rle_is_valid(mask, width, height):
            return ''
        return (
            'a segmentation in run lengths does not fit its image: size must be [height, width], and counts must add up to it. '
            'Export it again'
        )
    return (
        'a segmentation is neither a list of polygons nor run lengths. Correct it, or leave it out'
    )


def _encoded(mask: list | dict, width: int, height: int) -> dict:
    """A valid mask as pycocotools' compressed run lengths."""
    if isinstance(mask, list):
        return coco_masks.merge(coco_masks.frPyObjects(mask, height, width))
    return mask if isinstance(mask['counts'], str) else coco_masks.frPyObjects(mask, height, width)


def _mask_box(mask: list | dict, width: int, height: int) -> list[float]:
    """Left, top, width and height in pixels."""
    if isinstance(mask, list):
        xs = [x for polygon in mask for x in polygon[::2]]
        ys = [y for polygon in mask for y in polygon[1::2]]
        return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return coco_masks.toBbox(_encoded(mask, width, height)).tolist()


def _mask_area(mask: list | dict, width: int, height: int) -> int:
    return int(coco_masks.area(_encoded(mask, width, height)))


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


# Values of a JSON file


def read_id(value: Any) -> Id | None:
    """The form in which ids are compared: 7, 7.0 and '7' are the same. None for anything else."""
    if type(value) is int:
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and value.strip():
        text = value.strip()
        return int(text) if re.fullmatch('0|-?[1-9][0-9]{0,99}', text) else text
    return None


def read_name(text: str) -> str:
    """The form in which class names are compared: one of Unicode's forms, without spaces around it."""
    return unicodedata.normalize('NFC', text.strip())


def _whole_if_equal(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**53


def is_text(value: Any) -> bool:
    """Whether it is a text that can be a file's name and be printed."""
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
