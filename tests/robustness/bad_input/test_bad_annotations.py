"""Annotation files that are refused, and what COCO itself contains, which passes."""

import copy
import json
import re

import numpy as np
import pytest
from pycocotools import mask as masks

from helpers.place import MINI, edited, passes, refuse
from mtpd.data import coco
from mtpd.data.annotations import decode_rle, parse_annotations

PAPER = 'configs/paper/mask_rcnn_r50__cascade_r50dcn_rx101dcn.py'


def text(content: str | bytes):
    def make(place):
        place.json.write_bytes(content.encode() if isinstance(content, str) else content)
        return place.train()

    return make


def changed(kind: str, place: int = 0, **values):
    """Other values in one image, annotation or category; `...` takes a key away."""

    def change(table):
        item = table[kind][place]
        item.update(values)
        for key in [key for key, value in values.items() if value is ...]:
            del item[key]

    return edited(change)


def box(*values):
    return changed('annotations', bbox=list(values))


def gone(place):
    place.json.unlink()
    return place.train()


def cut(place):
    place.json.write_bytes(place.json.read_bytes()[:-100])
    return place.train()


def in_validation(place):
    table = json.loads((place.coco / 'annotations/val.json').read_text())
    table['annotations'][0]['bbox'][2] = -1
    (place.coco / 'annotations/val.json').write_text(json.dumps(table))
    return place.train()


def many_classes(table):
    table['categories'] = [{'id': k, 'name': f'c{k}'} for k in range(10**6)]


def corners(table):
    for item in table['annotations']:
        x, y, w, h = item['bbox']
        item['bbox'] = [x, y, x + w, y + h]


def two_faults(table):
    table['annotations'][0]['image_id'] = 99
    table['annotations'][1]['category_id'] = 99


def for_masks(*words: str):
    """The paper's Mask R-CNN, on data without masks; nothing is fetched for it."""
    return lambda place: [
        *words,
        '--work-dir',
        place.run,
        '--cfg-options',
        f'data.root={place.coco}',
    ]


def of_boxes(*words: str):
    """Masks measured of a detector that predicts none, on data that has them."""

    def make(place):
        for split in ('train', 'val'):
            path = place.coco / f'annotations/{split}.json'
            table = json.loads(path.read_text())
            for item in table['annotations']:
                item['segmentation'] = [[4, 6, 24, 6, 24, 36]]
            path.write_text(json.dumps(table))
        return place.command(*words, **{'evaluation.metrics': "['bbox','segm']"})

    return make


NO_MASKS = (
    r'(?s)metrics has segm, and 5 of 5 annotations of.*val\.json'
    r'.*student has a mask head, and 5 of 5 annotations of.*train\.json'
)
NO_HEAD = 'evaluation.metrics has segm, and student predicts no masks: leave segm out'
ROWS = {
    'missing': (gone, r'train\.json: no such file'),
    'empty file': (text(''), r'train\.json is not JSON'),
    'truncated': (cut, r'train\.json is not JSON .*Fetch or export it again'),
    'not JSON': (text('a,b\n1,2\n'), 'is not JSON'),
    'not UTF-8': (text('{"n": "é"}'.encode('latin-1')), 'is not UTF-8 .*at byte 7'),
    'nested too deeply': (text('[' * 100_000), 'is not JSON'),
    'a list at the top': (text('[]'), 'not in COCO format: no list images'),
    'no categories': (edited(lambda t: t.pop('categories')), 'no list categories'),
    'annotations a dict': (edited(lambda t: t.update(annotations={})), 'no list annotations'),
    'no images': (edited(lambda t: t.update(images=[])), 'it lists no images'),
    'no objects': (edited(lambda t: t.update(annotations=[])), 'it lists no annotations'),
    'no classes': (edited(lambda t: t.update(categories=[])), 'it lists no categories'),
    'a million classes': (edited(many_classes), '1,000,000 categories, more than the limit of 50,000'),
    'image id twice': (changed('images', 1, id=0), 'an image id is given twice.*: 0'),
    'annotation id twice': (changed('annotations', 1, id=1), 'an annotation id is given twice.*: 1'),
    'category id twice': (changed('categories', 1, id=5), 'a category id is given twice.*: 5'),
    'class name twice': (changed('categories', 1, name='cat'), "a class name appears twice.*: 'cat'"),
    'class without a name': (changed('categories', name=...), 'a category has no name'),
    'class name a number': (changed('categories', name=7), 'a category has no name, or one that is no text: category 5: 7'),
    'category a text': (edited(lambda t: t.update(categories=['cat'])), 'a category has no id'),
    'image a text': (edited(lambda t: t['images'].append('a.jpg')), r'images\[4\] is .a\.jpg'),
    'image id null': (changed('images', id=None), r'an image has no id\. .*images\[0\] is'),
    'image id a fraction': (changed('images', id=0.5), r'an image has no id\. .*images\[0\] is'),
    'image id a text and a number': (changed('images', 1, id='0'), "an image id is given twice.*: '0'"),
    'file name twice': (
        changed('images', 1, file_name='000000.png'), r"a file_name is given twice\. .*: '000000.png'"
    ),
    'image without a name': (changed('images', file_name=...), 'an image has no file_name.*: image 0'),
    'image name with a null': (changed('images', file_name='a\0'), 'an image has no file_name'),
    'image name half a character': (changed('images', file_name='\ud800'), 'has no file_name'),
    'image name too long': (changed('images', file_name='x' * 5000), '1 of 4 images .* are not in'),
    'image without a size': (changed('images', width=...), 'no width and height in pixels.*: image 0'),
    'image of no size': (changed('images', width=0), 'no width and height in pixels'),
    'annotation a number': (edited(lambda t: t['annotations'].append(3)), r'\[5\] is 3'),
    'dangling image': (changed('annotations', image_id=99), 'image_id is not among the images.*: 99'),
    'dangling category': (changed('annotations', category_id=1), 'category_id is not among the .*: 1'),
    'image id a list': (changed('annotations', image_id=[0]), r'image_id is not among .*\[0\]'),
    'no box': (changed('annotations', bbox=...), r'bbox is not four numbers.*annotation 1: None'),
    'three numbers': (box(1, 2, 3), r'bbox is not four numbers .*\[1, 2, 3\]'),
    'box of texts': (box('1', '2', '3', '4'), 'bbox is not four numbers'),
    'box NaN': (box(1, 2, float('nan'), 4), r'bbox is not four numbers .*nan'),
    'box infinite': (box(1, 2, float('inf'), 4), 'bbox is not four numbers .*inf'),
    'box huge': (box(1, 2, 10**400, 4), "bbox is not four numbers .*'a huge number'"),
    'box negative': (box(4, 6, -20, 30), 'negative width, height or area.*: annotation 1'),
    'box without width': (box(4, 6, 0, 30), 'no width or no height. Leave it out: annotation 1: bbox'),
    'box outside': (box(100, 6, 20, 30), r'outside its image.*: .*\[100, 6, 20, 30\], image 64 x 64'),
    'boxes fractions': (
        edited(lambda t: [o.update(bbox=[0.1, 0.1, 0.5, 0.5]) for o in t['annotations']]),
        'no box is larger than 1 x 1.*fractions',
    ),
    'area a text': (changed('annotations', area='600'), "area is not a number .*annotation 1: '600'"),
    'boxes as corners': (edited(corners), r'look like corners .*: \[4, 6, 24, 36\] in an image of 64 x 64'),
    'area negative': (changed('annotations', area=-1), 'negative width, height or area'),
    'iscrowd 2': (changed('annotations', iscrowd=2), 'iscrowd is neither 0 .*: annotation 1: 2'),
    'in the validation split': (in_validation, r'val\.json: a box has a negative width'),
    'two faults': (edited(two_faults), r'(?s)image_id is not among.*category_id is not among'),
    'all images tiny': (
        edited(lambda t: [i.update(width=9, height=9) for i in t['images']]), 'side under 32 pixels'
    ),
    'no masks, run': (for_masks('run', PAPER), NO_MASKS),
    'no masks, train': (for_masks('train', PAPER), NO_MASKS),
    'no masks, train an arm': (for_masks('train', PAPER, '--arm', 'direct'), NO_MASKS),
    'masks of boxes, run': (of_boxes('run', MINI), NO_HEAD),
    'masks of boxes, train': (of_boxes('train', MINI), NO_HEAD),
    'masks of boxes, train an arm': (of_boxes('train', MINI, '--arm', 'direct'), NO_HEAD),
}  # fmt: skip


@pytest.mark.parametrize('name', ROWS)
def test_it_is_refused(name, place):
    refuse(place, *ROWS[name])


# Masks matter to detectors with masks alone

MASKS = {
    'two points': ([[1, 2, 3, 4]], 'a polygon of two points. A polygon needs three or more, a rectangle four: annotation 1'),
    'odd numbers': ([[1, 2, 3, 4, 5, 6, 7]], 'not a list of polygons'),
    'NaN': ([[1, 2, 3, 4, 5, float('nan')]], 'not a list of polygons'),
    'a text': ('all of it', 'neither a list of polygons nor run lengths'),
    'of another size': ({'size': [9, 9], 'counts': [81]}, r'does not fit its image: .*\[9, 9\]'),
    'counts negative': ({'size': [64, 64], 'counts': [-4, 4100]}, 'does not fit its image'),
    'counts too few': ({'size': [64, 64], 'counts': [3, 4]}, 'does not fit its image'),
    'counts garbage': ({'size': [64, 64], 'counts': '~~~'}, 'does not fit its image'),
    'text too short': (
        {'size': [64, 64], 'counts': masks.encode(np.ones((32, 64), np.uint8, 'F'))['counts'].decode()},
        'does not fit its image',
    ),
    'text cut': ({'size': [64, 64], 'counts': '0PP'}, 'does not fit its image'),
}  # fmt: skip


@pytest.mark.parametrize('name', MASKS)
def test_a_bad_mask_stops_detectors_with_masks_alone(name, place):
    mask, message = MASKS[name]
    place.edit(lambda table: table['annotations'][0].update(segmentation=mask))
    (problem,) = coco.mask_problems(place.json)
    assert re.search(message, problem)
    assert coco.split_problems(place.coco, 'train') == []
    assert coco.read_annotations(place.json)['annotations'][0]['segmentation'] is None


@pytest.mark.parametrize('nothing', ['', [], {}, None, [[]], [[], []]])
def test_an_empty_mask_is_none(nothing, place):
    place.edit(lambda table: table['annotations'][0].update(segmentation=nothing))
    assert coco.mask_problems(place.json) == [
        f'5 of 5 annotations of {place.json} have no mask (segmentation).'
    ]


def test_bad_masks_are_refused_where_they_are_used_and_pass_where_not(place):
    place.edit(lambda table: table['annotations'][0].update(segmentation=[[1, 2, 3, 4]]))
    refuse(place, for_masks('train', PAPER), 'student has a mask head, and .*polygon of two points')
    passes(place)


# What passes


def test_what_coco_has_passes(place):
    """Images without objects, crowds, tiny boxes, boxes over the edge, masks of both kinds."""
    filled = np.zeros((64, 64), np.uint8)
    filled[10:40, 5:50] = 1
    packed = masks.encode(np.asfortranarray(filled))
    packed = {'size': packed['size'], 'counts': packed['counts'].decode()}

    def change(table):
        first, crowd, tiny, over, *_ = table['annotations']
        first['segmentation'] = [[4, 6, 24, 6, 24, 36.5], [1, 1, 3, 1, 3, 3, 1, 3]]
        crowd.update(iscrowd=1, segmentation={'size': [64, 64], 'counts': [100, 50, 3946]})
        tiny.update(bbox=[3.5, 4.25, 0.6, 0.4], area=0.1, segmentation=packed)
        over.update(bbox=[-0.5, 10, 64.9, 54.5])
        table['images'][0].update(license=3, coco_url='x', date_captured='')
        table |= {'info': {}, 'licenses': []}

    place.edit(change)
    passes(place)


def test_two_boxes_without_height_in_a_million_pass():
    """COCO's train2017 has two in 860,001: annotations 918 and 2206849's image."""
    images = [{'id': 0, 'file_name': 'a.jpg', 'width': 64, 'height': 64}]
    one = {'image_id': 0, 'category_id': 1, 'bbox': [1, 1, 5, 5], 'area': 25, 'iscrowd': 0}
    objects = [one | {'id': k} for k in range(30_000)]
    objects[918] |= {'bbox': [29, 38, 1.03, 0.0], 'area': 0.0}
    table = {'images': images, 'annotations': objects, 'categories': [{'id': 1, 'name': 'a'}]}
    assert parse_annotations(copy.deepcopy(table), 'x').problems == ()
    for k in range(3):
        objects[k] = objects[918] | {'id': k}
    assert parse_annotations(table, 'x').problems == (
        'x: a box has no width or no height. Leave it out, 4 times, first annotation 0: bbox [29, 38, 1.03, 0.0], area 0.0.',
    )


@pytest.mark.parametrize('seed', range(5))
def test_compressed_run_lengths_are_read_as_pycocotools_reads_them(seed):
    pixels = np.random.default_rng(seed).random((37, 23)) < 0.1 + 0.2 * seed
    packed = masks.encode(np.asfortranarray(pixels.astype(np.uint8)))
    counts = decode_rle(packed['counts'].decode())
    flat = pixels.T.ravel()
    expected = [[]]
    for value in flat:
        if bool(len(expected) % 2) == value:
            expected.append([])
        expected[-1].append(value)
    assert counts == [len(run) for run in expected]
