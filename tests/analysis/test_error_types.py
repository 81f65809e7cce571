"""Kinds of errors, by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mtpd import load_recipe, plots
from mtpd.analysis import dataset
from mtpd.analysis.error_types import (
    ERROR_TYPES,
    ErrorCounts,
    box_iou,
    classify_detections,
    count_errors,
    objects_found_and_lost,
)

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'


def test_overlap_by_hand():
    a = np.array([[0, 0, 10, 10], [0, 0, 0, 0]], float)
    b = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], float)
    assert box_iou(a, b).tolist() == [[1, pytest.approx(50 / 150), 0], [0, 0, 0]]
    assert box_iou(a, np.zeros((0, 4))).shape == (2, 0)


@pytest.fixture
def recipe(tmp_path, tiny_coco):
    """Two validation images; objects of classes 1 (cat) and 2 (dog), and a crowd."""
    root = tiny_coco(tmp_path / 'coco')
    file = root / 'annotations' / 'val.json'
    table = json.loads(file.read_text())
    table['images'] = table['images'][:2]
    first, second = (image['id'] for image in table['images'])
    cat, dog = (item['id'] for item in table['categories'])
    boxes = [
        (first, cat, [0, 0, 20, 20], 0),
        (first, dog, [40, 0, 20, 20], 0),
        (first, cat, [0, 40, 20, 20], 0),
        (second, dog, [0, 0, 20, 20], 0),
        (second, cat, [30, 30, 20, 20], 1),
    ]
    table['annotations'] = [
        dict(id=k, image_id=i, category_id=c, bbox=b, area=400, iscrowd=crowd, segmentation=[])
        for k, (i, c, b, crowd) in enumerate(boxes, 1)
    ]
    file.write_text(json.dumps(table))
    return load_recipe(MINI, {'data.root': str(root)}), (first, second), (cat, dog)


def test_each_kind_by_hand(recipe, tmp_path):
    plan, (first, second), (cat, dog) = recipe
    detections = [
        (first, cat, [0, 0, 20, 20], 0.9),  # the first cat
        (first, cat, [1, 1, 20, 20], 0.8),  # again: duplicate
        (first, cat, [40, 0, 20, 20], 0.7),  # on the dog: classification
        (first, cat, [0, 52, 20, 20], 0.6),  # IoU 8 / 32 with the second cat: localisation
        (first, dog, [8, 12, 20, 20], 0.5),  # 96 / 704 with a cat: both
        (first, dog, [100, 100, 9, 9], 0.4),  # background
        (second, dog, [0, 0, 20, 20], 0.1),  # the second image's dog
    ]
    path = tmp_path / 'found.json'
    items = [dict(image_id=i, category_id=c, bbox=b, score=s) for i, c, b, s in detections]
    path.write_text(json.dumps(items))
    truth = dataset.objects_by_image(plan, 'val')
    everything = dataset.read_detections(path, plan, list(truth))
    judged = classify_detections(truth[first], everything[first], 0.3)
    kinds = ['correct', 'duplicate', 'classification', 'localisation', 'both', 'background']
    assert judged.kinds == kinds and judged.matched == {0}
    assert judged.touched == {1, 2}  # the dog, and the second cat
    assert classify_detections(truth[second], everything[second], 0.3) == ([''], set(), set())
    assert classify_detections(truth[second], everything[second], 0.1).matched == {0}
    # Four objects (the crowd does not count), so the best four detections: those above 0.5.
    counted = count_errors(plan, path)
    expected = dict.fromkeys(kinds[:4], 1) | {'both': 0, 'background': 0, 'missed': 1}
    assert counted.counts == expected and counted.objects == {(first, 0)}
    path.write_text('[]')
    assert count_errors(plan, path).counts == dict.fromkeys(ERROR_TYPES, 0) | {'missed': 4}


def test_found_and_lost_by_hand():
    before, after = (
        ErrorCounts({}, {(1, 0), (1, 1), (2, 0)}),
        ErrorCounts({}, {(1, 1), (3, 0), (3, 1)}),
    )
    one, two = objects_found_and_lost({'baseline': before, 'taught': after})
    assert list(one.values()) == ['baseline', 3, 0, 0] and list(two.values()) == ['taught', 3, 2, 2]
    assert objects_found_and_lost({}) == []


def test_the_better_scored_takes_the_object(recipe, tmp_path):
    plan, (first, _), (cat, _) = recipe
    path = tmp_path / 'found.json'
    boxes = ([0, 0, 20, 20], 0.5), ([2, 0, 20, 20], 0.9)
    items = [dict(image_id=first, category_id=cat, bbox=b, score=s) for b, s in boxes]
    path.write_text(json.dumps(items))
    counts = count_errors(plan, path).counts
    assert (counts['correct'], counts['duplicate'], counts['missed']) == (1, 1, 3)


def test_the_figure_names_every_number():
    before = dict(zip(ERROR_TYPES, range(10, 17), strict=True))
    after = dict(zip(ERROR_TYPES, range(20, 27), strict=True))
    fig = plots.error_types({'before': before, 'after': after}, 99)
    texts = {text.get_text() for text in fig.axes[0].texts}
    assert {str(n) for n in (*range(10, 17), *range(20, 27))} <= texts
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == list(ERROR_TYPES)
    assert 'before: 10 correct' in fig.alt and '99 objects' in fig.alt
    assert plots.error_types({}, 0).alt == 'No detections yet.'
