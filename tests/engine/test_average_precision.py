"""The tests' own count of COCO's numbers is pycocotools' on files that pycocotools reads rightly, and right by hand."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from helpers.average_precision import Detection, Object, coco_numbers


def random_box(rng, size: int) -> np.ndarray:
    """x, y, width, height, small ones as often as large ones."""
    sides = np.exp(rng.uniform(np.log(6), np.log(size * 0.9), 2))
    return np.concatenate([rng.uniform(0, size - sides), sides])


def random_case(seed: int) -> tuple[list[Object], list[Detection]]:
    """Images of 256 x 256 pixels; class 4 is only detected, class 5 only a crowd; some images have over 100 detections."""
    rng = np.random.default_rng(seed)
    objects, detections = [], []
    rows, columns = np.mgrid[:256, :256]

    def mask(box):
        x, y, w, h = box
        return ((columns - x - w / 2) * 2 / w) ** 2 + ((rows - y - h / 2) * 2 / h) ** 2 <= 1

    for image in 'abcdefgh':
        for _ in range(rng.integers(0, 8)):
            name, box = str(rng.integers(4)), random_box(rng, 256)
            crowd = bool(rng.random() < 0.15)
            shape = mask(box)
            objects.append(Object(image, name, tuple(box), float(shape.sum()), crowd, shape))
            for _ in range(rng.integers(0, 4)):
                near = box * rng.uniform(0.85, 1.15, 4)
                guess = name if rng.random() < 0.8 else str(rng.integers(5))
                detections.append(Detection(image, guess, tuple(near), 0, mask(near)))
        if rng.random() < 0.3:
            objects.append(
                Object(image, '5', tuple(box := random_box(rng, 256)), 900, True, mask(box))
            )
        for _ in range(130 if image == 'c' else 2):
            box = random_box(rng, 256)
            detections.append(Detection(image, '0', tuple(box), 0, mask(box)))
    scores = rng.permutation(len(detections)) / len(detections)
    return objects, [
        item._replace(score=float(score)) for item, score in zip(detections, scores, strict=True)
    ]


def count_by_pycocotools(objects, detections, masks: bool):
    """Normal files: whole ids from 1 on, all fields."""
    names = sorted({item.name for item in [*objects, *detections]})
    images = sorted({item.image for item in [*objects, *detections]})

    def listed(items, **more):
        table = [
            {
                'id': k + 1,
                'image_id': images.index(item.image) + 1,
                'category_id': names.index(item.name) + 1,
                'bbox': [float(value) for value in item.box],
                'segmentation': rle.encode(np.asfortranarray(item.mask, np.uint8)),
            }
            for k, item in enumerate(items)
        ]
        for entry, item in zip(table, items, strict=True):
            if isinstance(item, Object):
                entry |= {'area': item.area, 'iscrowd': int(item.crowd)}
            else:
                entry['score'] = item.score
                if masks:
                    del entry['bbox']
                else:
                    del entry['segmentation']
        return table

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            'images': [
                {'id': k + 1, 'file_name': name, 'width': 256, 'height': 256}
                for k, name in enumerate(images)
            ],
            'categories': [{'id': k + 1, 'name': name} for k, name in enumerate(names)],
            'annotations': listed(objects),
        }
        truth.createIndex()
        counter = COCOeval(truth, truth.loadRes(listed(detections)), 'segm' if masks else 'bbox')
        counter.evaluate()
        counter.accumulate()
        counter.summarize()
    precision = counter.eval['precision'][:, :, :, 0, -1]
    return counter.stats, {
        name: precision[:, :, k].mean()
        for k, name in enumerate(names)
        if (precision[:, :, k] > -1).all()
    }


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('masks', [False, True])
def test_equals_pycocotools(seed, masks):
    objects, detections = random_case(seed)
    numbers, per_class = coco_numbers(objects, detections, masks)
    theirs, theirs_per_class = count_by_pycocotools(objects, detections, masks)
    assert list(numbers.values()) == pytest.approx(list(theirs), abs=1e-9)
    assert per_class == pytest.approx(theirs_per_class, abs=1e-9)
    assert 0 < numbers['AP'] < 1 and len({round(value, 6) for value in numbers.values()}) > 8
    assert '5' not in per_class and {'0', '1', '2', '3'} <= set(per_class)


def test_by_hand():
    """Two objects, one detected with IoU 0.8, and one false detection between."""
    objects = [Object('a', 'cat', (0, 0, 10, 10), 100), Object('a', 'cat', (50, 0, 40, 40), 1600)]
    detections = [
        Detection('a', 'cat', (0, 0, 10, 8), 0.5),
        Detection('a', 'cat', (90, 90, 10, 10), 0.7),
        Detection('a', 'cat', (50, 0, 40, 40), 0.9),
    ]
    numbers, per_class = coco_numbers(objects, detections)
    # Precision 1 up to recall 1/2 (51 of 101 points), then 2/3 at the seven thresholds up to 0.8.
    assert numbers['AP50'] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert numbers['AP'] == per_class['cat'] == pytest.approx((51 + 0.7 * 50 * 2 / 3) / 101)
    assert numbers['APm'] == 1 and numbers['APl'] is None and numbers['ARl'] is None
    assert numbers['APs'] == pytest.approx(0.7 * 1 / 2)
    assert (numbers['AR1'], numbers['AR10']) == (0.5, pytest.approx(0.5 + 0.5 * 0.7))
    crowd = [item._replace(crowd=True) for item in objects]
    assert coco_numbers(crowd, detections) == (dict.fromkeys(numbers), {})
    assert coco_numbers(objects, [])[0]['AP'] == 0
