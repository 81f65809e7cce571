"""Annotation files as other tools write them, at random, each with its normal twin.

`Content` is what a file says: images, classes, objects by name. `Oddities` is how it is written down; none of them
changes what the file says. `write_split` writes content with its oddities; without any it is the normal twin.
"""

from __future__ import annotations

import json
import os
import unicodedata
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from .average_precision import Detection, Object

SIZES = ((64, 48), (128, 128), (320, 240))  # width, height in pixels
CLASSES = ('dog', 'cat', 'Löwe', 'traffic light', '3', "O'Neill $x^2$")
GROUP = 'animals'


class Content(NamedTuple):
    """What a file says, and detections on its images.

    `images`: (width, height) by the name on disk. `classes`: in the normal twin's order. A detection's box and score
    are whole float32 values, as a detector gives them; no two scores are equal.
    """

    images: dict[str, tuple[int, int]]
    classes: list[str]
    objects: list[Object]
    detections: list[Detection]
    masks: bool


@dataclass(frozen=True)
class Oddities:
    """How a file is written. The first value of each is a normal file's.

    `seed`: of what is drawn at random. `left_out`: what all objects lack, or some; 'info' is the file's. `no_mask`: of
    objects without one. `runs`: how masks are written. `numbers`: sizes, and boxes in whole pixels. `names`: how file
    names differ from those on disk. `group`: a category without objects. `val_classes`: how val's categories differ
    from train's. `config_classes`: how a plain config's do.
    """

    seed: int = 0
    image_ids: str = 'from 1'
    annotation_ids: str = 'from 1'
    category_ids: str = 'from 1'
    id_type: str = 'int'
    shuffled: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()
    no_mask: str = 'absent'
    runs: str = 'polygons'
    numbers: str = 'int'
    crowds: str = 'int'
    names: str = 'as on disk'
    encoding: str = 'utf-8'
    extra: bool = False
    group: bool = False
    val_classes: str = 'as train'
    config_classes: str = 'as train'

    def __repr__(self) -> str:
        """The oddities alone."""
        odd = [(item.name, getattr(self, item.name)) for item in fields(self)]
        odd = [(name, value) for name, value in odd if value != getattr(NORMAL, name)]
        return f'Oddities({", ".join(f"{name}={value!r}" for name, value in odd)})'


NORMAL = Oddities()
IDS = ('from 1', 'from 0', 'falling', 'negative', 'around 0', 'scattered', '17 digits', '22 digits')
CHOICES = {
    'image_ids': IDS,
    'annotation_ids': IDS,
    'category_ids': IDS,
    'id_type': ('int', 'float', 'text', 'word'),
    'shuffled': ('images', 'annotations', 'categories'),
    'left_out': ('iscrowd', 'some iscrowd', 'area', 'some area', 'bbox', 'annotation ids', 'info'),
    'no_mask': ('absent', 'empty list', 'null'),
    'runs': ('polygons', 'closed polygons', 'lists', 'text', 'mixed'),
    'numbers': ('int', 'float'),
    'crowds': ('int', 'bool'),
    'names': ('as on disk', 'subfolders', 'spaces', 'NFC', 'NFD', 'backslashes', 'other folder', 'upper case', 'lower case'),
    'encoding': ('utf-8', 'utf-8-sig'),
    'extra': (False, True),
    'group': (False, True),
    'val_classes': ('as train', 'other order', 'other ids', 'other spelling'),
    'config_classes': ('as train', 'other order'),
}  # fmt: skip
SETS = ('shuffled', 'left_out')


def oddities() -> st.SearchStrategy[Oddities]:
    """Any of them together; shrinks to the few that matter."""
    values = {
        name: st.frozensets(st.sampled_from(choices)) if name in SETS else st.sampled_from(choices)
        for name, choices in CHOICES.items()
    }
    return st.builds(Oddities, seed=st.integers(0, 2**32 - 1), **values).filter(_is_legal)


def single_oddities() -> list[Oddities]:
    """Each oddity alone."""
    return [
        Oddities(**{name: frozenset([value]) if name in SETS else value})
        for name, choices in CHOICES.items()
        for value in choices[name not in SETS :]
    ]


def _is_legal(odd: Oddities) -> bool:
    """Numbers of 17 digits are no floats; a normal file is left out."""
    schemes = (odd.image_ids, odd.annotation_ids, odd.category_ids)
    has_long_floats = odd.id_type == 'float' and any('digits' in scheme for scheme in schemes)
    return odd != NORMAL and not has_long_floats


# Content


def contents(names: str = 'as on disk') -> st.SearchStrategy[Content]:
    """Few images with objects and detections."""
    return st.builds(
        make_content,
        seed=st.integers(0, 2**32 - 1),
        images=st.integers(1, 6),
        classes=st.integers(1, len(CLASSES)),
        masks=st.booleans(),
        names=st.just(names),
    )


def make_content(
    seed: int, images: int = 5, classes: int = 4, masks: bool = False, names: str = 'as on disk'
) -> Content:
    """Content that a seed determines.

    Args:
        names: of `Oddities`: what names on disk they need.
    """
    rng = np.random.default_rng(seed)
    files = {name: SIZES[rng.integers(len(SIZES))] for name in _names_on_disk(names, images)}
    listed = [CLASSES[k] for k in rng.permutation(len(CLASSES))[:classes]]
    objects = [
        _draw_object(rng, image, size, listed, masks)
        for image, size in files.items()
        for _ in range(rng.integers(0, 7))
    ]
    if all(item.crowd for item in objects):  # a file without objects is refused
        image = next(iter(files))
        objects.append(_draw_object(rng, image, files[image], listed, masks)._replace(crowd=False))
    detections = _draw_detections(rng, files, objects, listed, masks)
    return Content(files, listed, objects, detections, masks)


def _names_on_disk(names: str, count: int) -> list[str]:
    patterns = {
        'subfolders': '{0}/image.png',
        'backslashes': 'part {1}/{0}.png',
        'spaces': 'image ({0}) of  1.png',
        'NFC': unicodedata.normalize('NFD', 'grün é 図 {0}.png'),
        'NFD': unicodedata.normalize('NFC', 'grün é 図 {0}.png'),
        'lower case': 'IMG_{0}.PNG',
    }
    pattern = patterns.get(names, '{0:06d}.png')
    return [pattern.format(k, k % 2) for k in range(8, 8 + count)]  # 10.png sorts before 9.png


def _draw_box(rng: np.random.Generator, size: tuple[int, int], whole: bool) -> np.ndarray:
    """x, y, width, height of 4 pixels or more, some out of the image by up to 2 pixels; `whole`: inside, in whole pixels."""
    sides = np.exp(rng.uniform(np.log(5), np.log(size)))
    if whole:
        sides = np.floor(sides)
        return np.concatenate([np.floor(rng.uniform(0, np.array(size) - sides + 1)), sides])
    corner = rng.uniform(0, np.array(size) - sides) + (rng.random() < 0.1) * rng.uniform(-2, 2, 2)
    return np.concatenate([corner, sides]).round(2)


def _draw_mask(rng: np.random.Generator, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The box without a corner of it, and now and then without a band across: (height, width) bool."""
    x, y, w, h = (int(value) for value in box)
    mask = np.zeros(size[::-1], bool)
    mask[y : y + h, x : x + w] = True
    mask[y : y + int(rng.integers(h)), x : x + int(rng.integers(w))] = False
    if h > 6 and rng.random() < 0.3:
        mask[y + h - 3] = False
    return mask


def _draw_object(rng, image: str, size: tuple[int, int], classes: list[str], masks: bool) -> Object:
    name, box = classes[rng.integers(len(classes))], _draw_box(rng, size, masks)
    mask = _draw_mask(rng, box, size) if masks else None
    x, y, w, h = box.tolist()
    area = float(mask.sum()) if masks else w * h
    return Object(image, name, (x, y, w, h), area, bool(rng.random() < 0.1), mask)


def _draw_detections(
    rng, files: dict, objects: list[Object], classes: list[str], masks: bool
) -> list[Detection]:
    """Some near each object, a few of another class, and false ones."""
    drawn = []
    for item in objects:
        for _ in range(rng.integers(0, 3)):
            name = item.name if rng.random() < 0.85 else classes[rng.integers(len(classes))]
            near = np.array(item.box) + np.array([*item.box[2:]] * 2) * rng.uniform(-0.12, 0.12, 4)
            drawn.append((item.image, name, near))
    for image, size in files.items():
        for _ in range(rng.integers(0, 3)):
            drawn.append((image, classes[rng.integers(len(classes))], _draw_box(rng, size, False)))
    scores = (rng.permutation(len(drawn)) + 1).astype(np.float32) / np.float32(len(drawn) + 1)
    detections = []
    for (image, name, box), score in zip(drawn, scores.tolist(), strict=True):
        x1, y1, x2, y2 = np.array([*box[:2], *(box[:2] + box[2:])], np.float32).tolist()
        mask = None
        if masks:
            sides = np.clip(box[2:].round(), 2, files[image])
            corner = np.clip(box[:2].round(), 0, files[image] - sides)
            mask = _draw_mask(rng, np.concatenate([corner, sides]), files[image])
        detections.append(Detection(image, name, (x1, y1, x2 - x1, y2 - y1), score, mask))
    return detections


# Files


def write_folder(root: Path, content: Content, odd: Oddities = NORMAL) -> dict[str, str]:
    """Writes a COCO-format folder, its splits `train` and `val` of the same content.

    Returns:
        The names of the images on disk, by the names in the annotation files.
    """
    for name, size in content.images.items():
        path = root / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(_picture(root.parent, size), path)
    (root / 'annotations').mkdir()
    for split in ('train', 'val'):
        table = annotation_table(content, odd, split)
        path = root / 'annotations' / f'{split}.json'
        path.write_text(json.dumps(table, ensure_ascii=False), encoding=odd.encoding)
    return {_listed_name(name, odd.names): name for name in content.images}


def _picture(folder: Path, size: tuple[int, int]) -> Path:
    """A PNG of this size, written once."""
    path = folder / f'{size[0]}x{size[1]}.png'
    if not path.is_file():
        Image.new('RGB', size, (90, 120, 60)).save(path)
    return path


def _listed_name(name: str, names: str) -> str:
    if names in ('NFC', 'NFD'):
        return unicodedata.normalize(names, name)
    stem, dot, ending = name.rpartition('.')
    if names == 'upper case':
        return stem + dot + ending.upper()
    if names == 'lower case':
        return stem + dot + ending.lower()
    if names == 'other folder':
        return f'/home/me/images/{name}'
    return name.replace('/', '\\') if names == 'backslashes' else name


def annotation_table(content: Content, odd: Oddities, split: str) -> dict:
    """The file's content, to be written as JSON."""
    rng = np.random.default_rng([odd.seed, split == 'val'])
    classes = list(content.classes)
    if split == 'val' and odd.val_classes == 'other order':
        classes = classes[::-1]
    entries = [{'name': name, 'supercategory': GROUP} for name in classes]
    if odd.group:
        entries.insert(0, {'name': GROUP, 'supercategory': 'none'})
    scheme = odd.category_ids
    if split == 'val' and odd.val_classes == 'other ids':
        scheme = 'falling' if scheme != 'falling' else 'from 1'
    image_ids = _ids(odd.image_ids, odd.id_type, len(content.images), rng)
    category_ids = _ids(scheme, odd.id_type, len(entries), rng)
    annotation_ids = _ids(odd.annotation_ids, odd.id_type, len(content.objects), rng)
    image_id = dict(zip(content.images, image_ids, strict=True))
    category_id = {
        entry['name']: number for entry, number in zip(entries, category_ids, strict=True)
    }
    number = float if odd.numbers == 'float' else int
    table = {
        'images': [
            {
                'id': image_id[name],
                'file_name': _listed_name(name, odd.names),
                'width': number(width),
                'height': number(height),
            }
            for name, (width, height) in content.images.items()
        ],
        'annotations': [
            _annotation(item, odd, rng)
            | {'id': key, 'image_id': image_id[item.image], 'category_id': category_id[item.name]}
            for key, item in zip(annotation_ids, content.objects, strict=True)
        ],
        'categories': [{'id': category_id[entry['name']], **entry} for entry in entries],
    }
    if 'info' not in odd.left_out:
        table = {'info': {'description': ''}, 'licenses': [], **table}
    if odd.extra:
        _add_unknown_fields(table)
    if 'annotation ids' in odd.left_out:
        for entry in table['annotations']:
            del entry['id']
    if split == 'val' and odd.val_classes == 'other spelling':
        for entry in table['categories']:
            entry['name'] = unicodedata.normalize('NFD', f' {entry["name"]} ')
    for name in sorted(odd.shuffled):
        table[name] = [table[name][k] for k in rng.permutation(len(table[name]))]
    return table


def _ids(scheme: str, kind: str, count: int, rng: np.random.Generator) -> list:
    first = {'from 0': 0, 'negative': -count - 3, 'around 0': -(count // 2), '17 digits': 20240115093000123, '22 digits': 10**21 + 1}.get(scheme, 1)  # fmt: skip
    ids = list(range(first, first + count))
    if scheme == 'falling':
        ids.reverse()
    if scheme == 'scattered':
        ids = rng.permutation(10 * count + 5)[:count].tolist()
    return [
        {'int': int, 'float': float, 'text': str, 'word': 'id{}'.format}[kind](value)
        for value in ids
    ]


def _annotation(item: Object, odd: Oddities, rng: np.random.Generator) -> dict:
    """Without ids."""
    entry: dict = {}
    without = {
        name
        for name in ('iscrowd', 'area', 'bbox')
        if name in odd.left_out or (f'some {name}' in odd.left_out and rng.random() < 0.5)
    }
    if item.crowd or 'iscrowd' not in without:
        entry['iscrowd'] = item.crowd if odd.crowds == 'bool' else int(item.crowd)
    if 'area' not in without:  # else that of its mask or box, which it is
        entry['area'] = item.area
    if item.mask is None or 'bbox' not in without:
        whole = float if odd.numbers == 'float' else int
        entry['bbox'] = [whole(value) if value == int(value) else value for value in item.box]
    if item.mask is not None:
        entry['segmentation'] = _segmentation(item, odd.runs, rng)
    elif odd.no_mask != 'absent':
        entry['segmentation'] = [] if odd.no_mask == 'empty list' else None
    return entry


def _add_unknown_fields(table: dict) -> None:
    for image in table['images']:
        image |= {'license': 1, 'date_captured': '', 'extra': {'name': 'x'}, 'coco_url': ''}
    for entry in table['annotations']:
        entry |= {'attributes': {'occluded': False, 'rotation': 0.0}, 'ignore': 0, 'score': 1.0}
    table['type'] = 'instances'


def _segmentation(item: Object, runs: str, rng: np.random.Generator) -> list | dict:
    if runs == 'mixed':
        runs = ('polygons', 'lists', 'text')[rng.integers(3)]
    if runs == 'text':
        code = rle.encode(np.asfortranarray(item.mask, np.uint8))
        return {'size': code['size'], 'counts': code['counts'].decode('ascii')}
    if runs == 'lists' or item.crowd:  # COCO's crowds are run lengths
        return {'size': list(item.mask.shape), 'counts': _run_lengths(item.mask)}
    polygons = _rectangles(item.mask)
    return [[*xy, *xy[:2]] for xy in polygons] if runs == 'closed polygons' else polygons


def _run_lengths(mask: np.ndarray) -> list[int]:
    """Down the columns, the first of what is outside."""
    flat = np.concatenate([[False], mask.ravel(order='F')])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *changes, mask.size]).tolist()


def _rectangles(mask: np.ndarray) -> list[list[int]]:
    """The mask as polygons: a rectangle for each run of equal rows."""
    polygons, top = [], 0
    for row in range(1, len(mask) + 1):
        if row < len(mask) and (mask[row] == mask[top]).all():
            continue
        flat = np.concatenate([[0], mask[top].astype(int), [0]])
        starts, ends = np.flatnonzero(np.diff(flat) > 0), np.flatnonzero(np.diff(flat) < 0)
        for left, right in zip(starts.tolist(), ends.tolist(), strict=True):
            polygons.append([left, top, right, top, right, row, left, row])
        top = row
    return polygons
