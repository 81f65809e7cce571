"""Other people's files: however a file is written, numbers and training targets are those of its normal twin.

A random file has random oddities (helpers/annotation_files.py). What is right is known without the kit: an independent
count (helpers/average_precision.py), and what was drawn. `pytest tests/data/test_invariance.py --invariance-files 1000`
tries more files.
"""

import contextlib
import copy
import io
import shutil
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from helpers import annotation_files as files
from helpers.average_precision import coco_numbers
from helpers.plain_config import META, TEXT
from helpers.tiny import retinanet
from mtpd import load_recipe
from mtpd.config.recipe import Recipe
from mtpd.data import coco
from mtpd.engine import evaluation, pipelines
from mtpd.pipeline import mmdet_config

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
LIBRARIES = ('pycocotools', 'faster_coco_eval')
NAMES = dict(
    zip(
        ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'AR1', 'AR10', 'AR100', 'ARs', 'ARm', 'ARl'),
        evaluation.COCO_NUMBERS,
        strict=True,
    )
)
BLOCKS = 10  # tests that share the random files
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('files')


@pytest.fixture(scope='module')
def recipe():
    return load_recipe(MINI, {'data.root': '.'})


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """A plain mmdet config's file."""
    path = tmp_path_factory.mktemp('config') / 'plain.py'
    path.write_text(TEXT.format(model=retinanet(num_classes=2), root='.', meta=META))
    return path


class Case:
    """A file's content, and what is right for it."""

    def __init__(self, content: files.Content):
        self.content = content
        self.metrics = ('bbox', 'segm') if content.masks else ('bbox',)
        self.numbers, self.per_class = {}, {}
        for metric in self.metrics:
            numbers, per_class = coco_numbers(content.objects, content.detections, metric == 'segm')
            self.numbers |= {f'{metric}_{NAMES[key]}': numbers[key] for key in numbers}
            self.per_class[metric] = {name: per_class.get(name) for name in content.classes}

    def results(self, data, names: dict[str, str]) -> list:
        """The detections as mmdet's, in the order of a dataset's images and classes; `names`: on disk, by listed name."""
        results = []
        for info in data.data_infos:
            image = names.get(info['filename'], info['filename'])
            boxes, masks = [], []
            for label in data.CLASSES:
                listed = [
                    item
                    for item in self.content.detections
                    if (item.image, item.name) == (image, label)
                ]
                corners = [
                    (x, y, x + w, y + h, item.score) for item in listed for x, y, w, h in [item.box]
                ]
                boxes.append(np.array(corners, np.float32).reshape(-1, 5))
                masks.append(
                    [
                        rle.encode(np.asfortranarray(item.mask, np.uint8))
                        for item in listed
                        if item.mask is not None
                    ]
                )
            results.append((boxes, masks) if self.content.masks else boxes)
        return results

    def targets(self) -> dict[str, dict]:
        """By image, as `targets_of`."""
        result = {}
        for image, size in self.content.images.items():
            listed = [item for item in self.content.objects if item.image == image]
            if listed:  # training leaves out empty images
                result[image] = {
                    'size': size,
                    'objects': sorted(
                        (item.name, *_corners(item.box), _digest(item.mask))
                        for item in listed
                        if not item.crowd
                    ),
                    'ignored': sorted(_corners(item.box) for item in listed if item.crowd),
                }
        return result


def targets_of(data, names: dict[str, str]) -> dict[str, dict]:
    """By image on disk what mmdet trains on: class name, corners and mask of the objects, corners of what is ignored."""
    result = {}
    for k, info in enumerate(data.data_infos):
        sample = data[k]
        labels, boxes = sample['gt_labels'].tolist(), sample['gt_bboxes'].tolist()
        masks = sample['gt_masks'].masks if 'gt_masks' in sample else [None] * len(labels)
        image = names.get(info['filename'], info['filename'])
        assert image not in result
        result[image] = {
            'size': (info['width'], info['height']),
            'objects': sorted(
                (data.CLASSES[label], *box, _digest(mask))
                for label, box, mask in zip(labels, boxes, masks, strict=True)
            ),
            'ignored': sorted(tuple(box) for box in sample['gt_bboxes_ignore'].tolist()),
        }
    return result


def _corners(box) -> tuple[float, ...]:
    x, y, w, h = box
    return tuple(np.array([x, y, x + w, y + h], np.float32).tolist())


def _digest(mask) -> str:
    return '' if mask is None else str((mask.shape, np.flatnonzero(mask).tolist()))


def splits_of(
    path: str, root, case: Case, odd: files.Oddities, recipe, config
) -> tuple[dict, dict]:
    """Dataset configs of training and validation, as a recipe or a plain config gives them."""
    masks = case.content.masks
    if path == 'recipe':
        cfg = copy.deepcopy(recipe.cfg)
        cfg.data.root = str(root)
        mine = Recipe(cfg, recipe.source)
        assert mine.data_problems() == []
        assert not masks or coco.mask_problems(mine.split('train')[0]) == []
        train = pipelines.dataset_config(mine, 'train', masks=masks)
        val = pipelines.dataset_config(mine, 'val')
    else:
        classes = case.content.classes[:: -1 if odd.config_classes == 'other order' else 1]
        overrides: dict = {}
        for leaf, split in (('train.dataset', 'train'), ('val', 'val'), ('test', 'val')):
            overrides |= {
                f'data.{leaf}.ann_file': f'{root}/annotations/{split}.json',
                f'data.{leaf}.img_prefix': f'{root}/images',
                f'data.{leaf}.classes': classes,
            }
        loaded = mmdet_config.load_config(config, overrides)
        assert mmdet_config.dataset_problems(loaded.cfg, mmdet_config.SPLITS) == []
        train, val = (
            dict(mmdet_config.dataset_leaves(loaded.cfg.data[split])[0])
            for split in ('train', 'test')
        )
        val['test_mode'] = True
    train['pipeline'] = [dict(type='LoadAnnotations', with_bbox=True, with_mask=masks)]
    return train, val


def check(content: files.Content, odd: files.Oddities, folder, recipe, config, twin=True) -> None:
    """Numbers and targets of the file are the right ones; and of its twin."""
    case = Case(content)
    root = folder / 'file'
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    names = files.write_folder(root / 'odd', content, odd)
    ways = [('odd', 'recipe'), ('odd', 'plain')]
    if twin:
        files.write_folder(root / 'twin', content)
        ways.insert(0, ('twin', 'recipe'))
    for name, path in ways:
        label = f'{name} by {path}'
        listed, written = (names, odd) if name == 'odd' else ({}, files.NORMAL)
        train, val = splits_of(path, root / name, case, written, recipe, config)
        assert targets_of(pipelines.quiet_dataset(train), listed) == case.targets(), label
        data = pipelines.quiet_dataset(val)
        for library in LIBRARIES if name == 'odd' else LIBRARIES[:1]:
            detections = data.detections(case.results(data, listed))
            with contextlib.redirect_stdout(io.StringIO()):
                numbers = evaluation.coco_metrics(data, detections, case.metrics, library)
            per_class = numbers.pop('per_class')
            assert numbers == pytest.approx(case.numbers, abs=1e-9), f'{label}, {library}'
            for metric in case.metrics:
                right = pytest.approx(case.per_class[metric], abs=1e-9)
                assert per_class[metric] == right, f'{label}, {library}, {metric}'
        if name == 'odd' and content.detections:  # without any, mmdet's evaluation gives nothing
            check_training_evaluation(data, case, listed, label)


def check_training_evaluation(data, case: Case, names: dict[str, str], label: str) -> None:
    """mmdet's own numbers, as its hook gives them during a training."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(record=True):
        numbers = data.evaluate(case.results(data, names), metric=list(case.metrics))
    for key, value in numbers.items():
        if 'copypaste' not in key:
            right = -1 if case.numbers[key] is None else case.numbers[key]
            assert value == pytest.approx(right, abs=6e-5), (label, key)


@pytest.mark.parametrize('odd', files.single_oddities(), ids=repr)
def test_one_oddity(odd, folder, recipe, config):
    for masks in (False, True):
        content = files.make_content(2, masks=masks, names=odd.names)
        check(content, odd, folder, recipe, config, twin=False)


@pytest.mark.parametrize('block', range(BLOCKS))
def test_random_files(block, folder, recipe, config, pytestconfig):
    @settings(
        max_examples=max(1, pytestconfig.getoption('--invariance-files') // BLOCKS),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @seed(block)
    @given(data=st.data())
    def checked(data):
        odd = data.draw(files.oddities())
        check(data.draw(files.contents(odd.names)), odd, folder, recipe, config)

    checked()
