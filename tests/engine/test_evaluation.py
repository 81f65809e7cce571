"""COCO's numbers: the same by pycocotools and by faster-coco-eval, and those of mmdet."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from mtpd import load_recipe
from mtpd.engine import evaluation, pipelines
from mtpd.errors import MtpdError

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
BOTH = pytest.mark.parametrize('library', ['pycocotools', 'faster_coco_eval'])


@BOTH
def test_perfect_detections_score_one(library, tiny_coco, tmp_path):
    """The numbers come in pycocotools' order: ground truth as detections gives AP 1."""
    recipe = load_recipe(MINI, {'data.root': str(tiny_coco(tmp_path / 'coco'))})
    data = pipelines.quiet_dataset(pipelines.dataset_config(recipe, 'val'))
    detections = [
        {k: a[k] for k in ('image_id', 'category_id', 'bbox')} | {'score': 0.9}
        for a in data.coco.dataset['annotations']
    ]
    numbers = evaluation.coco_metrics(data, {'bbox': detections}, ('bbox',), library)
    assert numbers['bbox_mAP'] == numbers['bbox_mAP_50'] == numbers['bbox_AR_100'] == 1
    assert numbers['per_class']['bbox'] == {'cat': 1, 'dog': 1}
    numbers = evaluation.coco_metrics(data, {'bbox': []}, ('bbox',), library)
    assert numbers['bbox_mAP'] == 0 and numbers['bbox_mAP_l'] is None


@BOTH
def test_mask_numbers_are_mmdets(library, tmp_path):
    """Also by size, where pycocotools would take a detection's box for its mask."""
    scenes = {'data.scenes.train': 1, 'data.scenes.val': 6, 'data.cache': str(tmp_path)}
    recipe = load_recipe(MINI, scenes)
    data = pipelines.quiet_dataset(pipelines.dataset_config(recipe, 'val'))
    results = []
    for image in data.img_ids:
        boxes, masks = [[] for _ in data.CLASSES], [[] for _ in data.CLASSES]
        for k, truth in enumerate(data.coco.load_anns(data.coco.get_ann_ids(image))):
            x, y, w, h = truth['bbox']
            mask, line = data.coco.annToMask(truth), np.zeros((128, 128), np.uint8)
            line[y : y + 2, x : x + w] = (
                1  # of a large box and a small mask, scored above the object
            )
            for sure, detection in ((0.5 - k / 50, mask), (0.9 - k / 50, line)):
                label = data.cat2label[truth['category_id']]
                boxes[label].append([x, y, x + w, y + h, sure])
                masks[label].append(rle.encode(np.asfortranarray(detection)))
        results.append(
            ([np.array(detection, np.float32).reshape(-1, 5) for detection in boxes], masks)
        )
    detections = data.detections(results)
    ours = evaluation.coco_metrics(data, detections, ('bbox', 'segm'), library)
    theirs = data.evaluate(results, metric=['bbox', 'segm'])
    names = [key for key in theirs if 'copypaste' not in key]
    assert {'segm_mAP', 'segm_mAP_s', 'segm_mAP_m', 'bbox_mAP_s'} <= set(names)
    for key in names:
        assert ours[key] == (None if theirs[key] < 0 else pytest.approx(theirs[key], abs=6e-4)), key
    assert 0 < ours['segm_mAP'] < 1


@pytest.mark.parametrize('seed', range(4))
def test_both_libraries_give_the_same_numbers(seed, tmp_path):
    """On random boxes and masks of all sizes, with crowds, equal scores, and a class that no image has."""
    rng, truth, detections = np.random.default_rng(seed), [], []
    for image in range(24):
        for _ in range(rng.integers(0, 9)):
            x, y, w, h = (int(v) for v in rng.integers((0, 0, 4, 4), (120, 120, 136, 136)))
            kind, crowd = int(rng.integers(3)), int(rng.random() < 0.1)
            truth.append(_item(image, kind, (x, y, w, h), id=len(truth) + 1, iscrowd=crowd))
            for _ in range(rng.integers(0, 4)):
                box = [int(v) for v in np.array([x, y, w, h]) + rng.integers(-4, 5, 4)]
                box = [max(box[0], 0), max(box[1], 0), max(box[2], 2), max(box[3], 2)]
                sure = round(float(rng.random()), 1)
                detections.append(_item(image, int(rng.integers(4)), box, score=sure))
    images = [dict(id=i, file_name=f'{i}.png', width=256, height=256) for i in range(24)]
    kinds = [dict(id=i, name=f'kind {i}') for i in range(4)]
    table = dict(images=images, annotations=truth, categories=kinds)
    (tmp_path / 'truth.json').write_text(json.dumps(table))
    cfg = dict(
        type='CocoDataset',
        ann_file=str(tmp_path / 'truth.json'),
        classes=[kind['name'] for kind in kinds],
        pipeline=[],
        test_mode=True,
    )
    data = pipelines.quiet_dataset(cfg)
    numbers = {i['file_id']: i['id'] for i in data.data_infos}
    for item in detections:  # from the file's ids to the dataset's
        item.update(image_id=numbers[item['image_id']], category_id=item['category_id'] + 1)
    counted = dict.fromkeys(('bbox', 'segm'), detections)
    ours, theirs = (
        evaluation.coco_metrics(data, counted, ('bbox', 'segm'), library)
        for library in ('faster_coco_eval', 'pycocotools')
    )
    per_class = ours.pop('per_class'), theirs.pop('per_class')
    assert len(theirs) == 24
    assert 0 < theirs['bbox_mAP'] < 1 and theirs['bbox_mAP_s'] != theirs['bbox_mAP_l']
    assert theirs['bbox_mAP'] != theirs['segm_mAP']
    assert ours == pytest.approx(theirs, abs=1e-12)
    for metric in ('bbox', 'segm'):
        assert per_class[0][metric] == pytest.approx(per_class[1][metric], abs=1e-12)
        assert per_class[1][metric]['kind 3'] is None


def _item(image: int, kind: int, box, **more) -> dict:
    """An annotation or detection: a box x, y, w, h, and an ellipse in it as a mask."""
    x, y, w, h = box
    rows, columns = np.mgrid[:256, :256]
    ellipse = ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1
    mask = rle.encode(np.asfortranarray(ellipse.astype(np.uint8)))
    mask['counts'] = mask['counts'].decode()
    item = dict(image_id=image, category_id=kind, bbox=list(box), segmentation=mask)
    return item | dict(area=float(ellipse.sum())) | more


def test_without_the_faster_library_auto_is_pycocotools_and_asking_for_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, 'faster_coco_eval', None)
    assert evaluation.coco_evaluator('auto') is evaluation.COCOeval
    with pytest.raises(MtpdError, match='pip install faster-coco-eval'):
        evaluation.coco_evaluator('faster_coco_eval')


def test_recipes_on_coco_count_as_published_numbers_are_counted():
    from mtpd.utils.paths import ROOT

    for path in (ROOT / 'configs/paper').glob('*.py'):
        assert load_recipe(path).cfg.evaluation.library == 'pycocotools'
    assert load_recipe(MINI).cfg.evaluation.library == 'auto'
    assert evaluation.coco_evaluator('auto') is not evaluation.COCOeval  # it is among the packages


def test_a_checkpoint_for_images_of_another_size_is_noted(tmp_path):
    path, text = tmp_path / 'student.pth', "data = {'test': [{'img_scale': (160, 96)}]}"
    torch.save({'meta': {'recipe': 'x', 'config': text}, 'state_dict': {}}, path)
    note = evaluation.image_size_note(load_recipe(MINI, {'image.scale': 128}), path)
    assert 'for images of (160, 96), and is measured on images of (128, 128).' in note
    assert note.endswith('--cfg-options "image.scale=(160,96)"')
    assert not evaluation.image_size_note(load_recipe(MINI, {'image.scale': (160, 96)}), path)
    torch.save({'meta': {'config': text}, 'state_dict': {}}, path)  # of another tool
    assert not evaluation.image_size_note(load_recipe(MINI), path)
