"""One form of annotation files, whichever tool wrote them."""

import copy
import json

import numpy as np
import pytest
from pycocotools import mask as masks

from mtpd.data.annotations import parse_annotations, read_id

IMAGE = {'id': 7, 'file_name': 'b.png', 'width': 64, 'height': 48}
OTHER = {'id': 3, 'file_name': 'a.png', 'width': 64, 'height': 48}
OBJECT = {'id': 1, 'image_id': 7, 'category_id': 5, 'bbox': [4, 6, 20, 30], 'area': 600, 'iscrowd': 0}  # fmt: skip
CLASSES = [{'id': 5, 'name': 'cat'}, {'id': 2, 'name': 'dog'}]


def parse(images=(IMAGE, OTHER), objects=(OBJECT,), categories=tuple(CLASSES)):
    content = {'images': images, 'annotations': objects, 'categories': categories}
    return parse_annotations(json.loads(json.dumps(content)), 'x')


def first_object(**values) -> dict:
    parsed = parse(objects=[OBJECT | values])
    assert parsed.problems == ()
    return parsed.table['annotations'][0]


def test_ids_count_from_one_images_by_their_names():
    parsed = parse(
        objects=[OBJECT | {'id': 0}, OBJECT | {'id': -4, 'image_id': 3, 'category_id': 2}]
    )
    table = parsed.table
    assert [(i['file_name'], i['id'], i['file_id']) for i in table['images']] == [
        ('b.png', 2, 7),
        ('a.png', 1, 3),
    ]
    assert [(c['name'], c['id'], c['file_id']) for c in table['categories']] == [
        ('cat', 1, 5),
        ('dog', 2, 2),
    ]
    objects = [(o['id'], o['image_id'], o['category_id']) for o in table['annotations']]
    assert objects == [(1, 2, 1), (2, 1, 2)]
    assert parsed.notes == parsed.mask_problems == ()


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        (0, 0),
        (-3, -3),
        (20240115093000123, 20240115093000123),
        (4.0, 4),
        ('17', 17),
        (' 17 ', 17),
        ('007', '007'),
        ('img_1', 'img_1'),
        (0.5, None),
        (float('nan'), None),
        (float('inf'), None),
        (True, None),
        (None, None),
        ('', None),
        ([1], None),
    ],
)
def test_what_is_an_id(value, expected):
    assert read_id(value) == expected and type(read_id(value)) is type(expected)


def test_ids_of_one_file_may_be_numbers_and_texts():
    images = [IMAGE | {'id': 7.0}, OTHER | {'id': 'left/a'}]
    objects = [
        OBJECT | {'image_id': '7'},
        OBJECT | {'id': 'x', 'image_id': 'left/a', 'category_id': '5'},
    ]
    parsed = parse(images, objects)
    assert parsed.problems == ()
    assert [o['image_id'] for o in parsed.table['annotations']] == [2, 1]
    assert [i['file_id'] for i in parsed.table['images']] == [7.0, 'left/a']
    assert parsed.notes == ('x: an id is a decimal number, and is read as a whole number: 7.0.',)


def test_an_object_needs_no_id():
    nameless = {key: OBJECT[key] for key in OBJECT if key != 'id'}
    parsed = parse(objects=[nameless, nameless])
    assert parsed.problems == () and [o['id'] for o in parsed.table['annotations']] == [1, 2]


def test_iscrowd_and_area_are_filled_in_and_said():
    bare = {key: OBJECT[key] for key in ('image_id', 'category_id', 'bbox')}
    parsed = parse(objects=[bare])
    assert parsed.problems == ()
    assert (
        parsed.table['annotations'][0] | {'area': 600, 'iscrowd': 0}
        == parsed.table['annotations'][0]
    )
    assert parsed.notes == (
        'x: an object has no iscrowd, and is taken as no crowd: annotation None.',
        'x: an object has no area, and gets the area of its box: annotation None.',
    )
    assert first_object(iscrowd=True)['iscrowd'] == 1
    assert first_object(area=0)['area'] == first_object(area=None)['area'] == 600
    assert first_object(area=12.5)['area'] == 12.5


def test_area_and_box_of_a_mask():
    """A mask's area is its pixels, as COCO states it; a polygon's box are its corners."""
    triangle = [[4, 6, 24, 6, 24, 36]]
    pixels = masks.decode(masks.merge(masks.frPyObjects(triangle, 48, 64)))
    assert first_object(segmentation=triangle, area=None)['area'] == pixels.sum() < 600
    assert first_object(segmentation=triangle, bbox=None)['bbox'] == [4, 6, 20, 30]
    filled = np.zeros((48, 64), np.uint8)
    filled[10:20, 5:9] = 1
    packed = masks.encode(np.asfortranarray(filled))
    runs = {'size': [48, 64], 'counts': packed['counts'].decode()}
    item = first_object(segmentation=runs, bbox=None, area=None)
    assert item['bbox'] == [5, 10, 4, 10] and item['area'] == 40
    # A mask that is wrong gives none: the box does.
    item = first_object(segmentation=[[1, 2, 3, 4]], area=None)
    assert item['segmentation'] is None and item['area'] == 600


def test_sizes_as_decimals_are_whole_numbers():
    (image, _) = parse(images=[IMAGE | {'width': 64.0, 'height': 48.0}, OTHER]).table['images']
    assert (image['width'], image['height']) == (64, 48) and type(image['width']) is int


def test_class_names_are_compared_in_one_form_of_unicode():
    (category,) = parse(categories=[{'id': 5, 'name': ' gru\u0308n '}]).table['categories']
    assert category['name'] == 'grün'


def roboflow(*names: str, group: str = 'things') -> list[dict]:
    classes = [
        {'id': 4 + k, 'name': name, 'supercategory': group} for k, name in enumerate(names, 1)
    ]
    return [{'id': 4, 'name': group, 'supercategory': 'none'}, *classes]


def test_a_group_without_objects_is_no_class():
    parsed = parse(categories=roboflow('cat', 'dog'))
    assert [c['name'] for c in parsed.table['categories']] == ['cat', 'dog']
    assert parsed.problems == () and 'the supercategory of all others' in parsed.notes[0]
    # Also where it has the name of the only class ...
    parsed = parse(categories=roboflow('cat', group='cat'))
    assert [c['name'] for c in parsed.table['categories']] == ['cat'] and parsed.problems == ()
    # ... but not with objects, or where another class is of another group.
    with_object = [OBJECT, OBJECT | {'id': 2, 'category_id': 4}]
    assert (
        len(parse(objects=with_object, categories=roboflow('cat', 'dog')).table['categories']) == 3
    )
    other = [*roboflow('cat', 'dog'), {'id': 9, 'name': 'sea', 'supercategory': 'water'}]
    assert len(parse(categories=other).table['categories']) == 4


def corners(objects: list[dict]) -> list[dict]:
    """The same boxes, written as x1 y1 x2 y2."""
    written = copy.deepcopy(objects)
    for item in written:
        x, y, w, h = item['bbox']
        item['bbox'] = [x, y, x + w, y + h]
    return written


@pytest.mark.parametrize('with_area', [True, False])
def test_boxes_as_corners_are_noticed_and_others_are_not(with_area):
    rng = np.random.default_rng(0)
    objects = []
    for k in range(40):
        w, h = rng.integers(4, 24, 2).tolist()
        x, y = int(rng.integers(0, 64 - w)), int(rng.integers(0, 48 - h))
        objects.append(
            OBJECT | {'id': k, 'bbox': [x, y, w, h], 'area': w * h if with_area else None}
        )
    assert parse(objects=objects).problems == ()
    (problem,) = parse(objects=corners(objects)).problems
    assert 'boxes look like corners [x1, y1, x2, y2]' in problem
    # Boxes of whole images, and boxes that stick out, are none.
    whole = [OBJECT | {'id': k, 'bbox': [0, 0, 64, 48], 'area': None} for k in range(9)]
    beyond = [OBJECT | {'id': k, 'bbox': [k, 2, 70, 52], 'area': None} for k in range(9)]
    assert parse(objects=whole).problems == parse(objects=beyond).problems == ()


def test_one_small_box_as_corners_is_noticed_by_its_area():
    item = OBJECT | {'bbox': [4, 6, 24, 36]}
    assert 'look like corners' in parse(objects=[item]).problems[0]
    assert parse(objects=[item | {'area': None}]).problems == ()  # nothing tells
