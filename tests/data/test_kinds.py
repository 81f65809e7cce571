"""The kinds of annotation files that other tools write, one by one, on data small enough to count by hand.

`tiny_coco` has two cats and two dogs that matter here: cats are detected exactly, dogs with IoU 0.825, above seven of
COCO's ten thresholds. So cat has AP 1, dog 0.7, and both 0.85.
"""

import contextlib
import copy
import io
import json
import re
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mmcv import ConfigDict
from mmdet.datasets import build_dataset
from mmdet.models import build_detector

from helpers.plain_config import META, TEXT
from helpers.tiny import retinanet
from mtpd import load_recipe
from mtpd.cli.main import main
from mtpd.data import coco
from mtpd.data.digit_scenes import make_digit_scenes
from mtpd.engine import evaluation, pipelines
from mtpd.errors import MtpdError
from mtpd.pipeline import mmdet_config
from mtpd.utils.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
SPLITS = ('train', 'val')


def edit(root, change, splits=SPLITS) -> None:
    for split in splits:
        path = root / 'annotations' / f'{split}.json'
        table = json.loads(path.read_text())
        change(table)
        path.write_text(json.dumps(table))


def recipe_of(root, **more):
    return load_recipe(MINI, {'data.root': str(root), **more})


def numbers_of(data, library='pycocotools') -> dict:
    """The kit's numbers, cats detected exactly and dogs 33 pixels high in place of 40."""
    results = []
    assert len(data) == len(TRUTH)
    for k, objects in enumerate(TRUTH):
        boxes = {name: [] for name in data.CLASSES}
        for name, x, y, w, h in objects:
            high = h * 33 / 40 if name == 'dog' else h
            boxes[name].append([x, y, x + w, y + high, 0.9 - k / 100])
        results.append([np.array(boxes[name], np.float32).reshape(-1, 5) for name in data.CLASSES])
    detections = data.detections(results)
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluation.coco_metrics(data, detections, ('bbox',), library)


# By image: class, and x, y, width, height.
TRUTH = [
    [('cat', 4, 6, 20, 30)],
    [('cat', 4, 6, 20, 30), ('dog', 30, 10, 28, 40)],
    [('cat', 4, 6, 20, 30), ('dog', 30, 10, 28, 40)],
    [],
]


def targets_of(data) -> dict:
    """By image name the objects that training sees: class, and corners."""
    return {
        info['filename']: sorted(
            (data.CLASSES[label], *map(int, box))
            for label, box in zip(truth['labels'], truth['bboxes'], strict=True)
        )
        for k, info in enumerate(data.data_infos)
        for truth in [data.get_ann_info(k)]
    }


# What is taken


def renumbered(kind: str, change):
    """Other ids of images, annotations or categories, and in what refers to them."""
    key = {'images': 'image_id', 'categories': 'category_id'}.get(kind)

    def edited(table):
        for place, item in enumerate(table[kind]):
            number, item['id'] = item['id'], change(place)
            for other in table['annotations'] if key else ():
                if other[key] == number and not other.get(f'{key} changed'):
                    other |= {key: item['id'], f'{key} changed': True}

    return edited


def of_all(kind: str, **values):
    """Other values in all images, annotations or categories; `...` takes a key away."""

    def edited(table):
        for item in table[kind]:
            item.update(values)
            for key in [key for key, value in values.items() if value is ...]:
                del item[key]

    return edited


def named(change):
    def edited(table):
        for image in table['images']:
            image['file_name'] = change(image['file_name'])

    return edited


def sizes_as_decimals(table):
    for image in table['images']:
        image |= {'width': float(image['width']), 'height': float(image['height'])}


def group_first(table):
    """As Roboflow writes it."""
    for category in table['categories']:
        category['supercategory'] = 'pets'
    table['categories'].insert(0, {'id': 0, 'name': 'pets', 'supercategory': 'none'})


BIG = 2**53 + 1  # neighbours are equal as doubles
TAKEN = {
    'annotation ids from 0': renumbered('annotations', lambda k: k),
    'annotation ids below 0': renumbered('annotations', lambda k: k - 2),
    'annotation ids above 2^53': renumbered('annotations', lambda k: BIG + k),
    'no annotation ids': of_all('annotations', id=...),
    'image ids below 0': renumbered('images', lambda k: -1 - k),
    'image ids above 2^53': renumbered('images', lambda k: BIG + k),
    'image ids as decimals': renumbered('images', lambda k: float(k)),
    'image ids as texts': renumbered('images', lambda k: str(k)),
    'image ids as words': renumbered('images', lambda k: f'image-{k:02d}'),
    'category ids fall': renumbered('categories', lambda k: 9 - k),
    'category ids above 2^53': renumbered('categories', lambda k: BIG + k),
    'category ids as texts': renumbered('categories', lambda k: str(7 - k)),
    'no iscrowd': of_all('annotations', iscrowd=...),
    'iscrowd null': of_all('annotations', iscrowd=None),
    'iscrowd false': of_all('annotations', iscrowd=False),
    'no area': of_all('annotations', area=...),
    'area null': of_all('annotations', area=None),
    'sizes as decimals': sizes_as_decimals,
    'segmentation an empty text': of_all('annotations', segmentation=''),
    'segmentation an empty polygon': of_all('annotations', segmentation=[[]]),
    'segmentation two points': of_all('annotations', segmentation=[[4, 6, 24, 36]]),
    'names in another folder': named(lambda name: f'images/{name}'),
    'names with backslashes': named(lambda name: f'images\\{name}'),
    'names with drive letters': named(lambda name: f'C:\\data\\{name}'),
    'names in upper case': named(lambda name: name.upper()),
    'a group without objects': group_first,
}


@pytest.mark.parametrize('kind', TAKEN)
@pytest.mark.parametrize('library', ['pycocotools', 'faster_coco_eval'])
def test_it_is_taken(kind, library, tmp_path, tiny_coco):
    root = tiny_coco(tmp_path)
    edit(root, TAKEN[kind])
    recipe = recipe_of(root)
    assert recipe.data_problems() == [] and recipe.classes == ('cat', 'dog')
    data = pipelines.quiet_dataset(pipelines.dataset_config(recipe, 'val'))
    numbers = numbers_of(data, library)
    assert numbers['per_class']['bbox'] == pytest.approx({'cat': 1, 'dog': 0.7}, abs=1e-9)
    assert numbers['bbox_mAP'] == pytest.approx(0.85, abs=1e-9)
    train = pipelines.quiet_dataset(pipelines.dataset_config(recipe, 'train'))
    right = [
        sorted((name, x, y, x + w, y + h) for name, x, y, w, h in objects)
        for objects in TRUTH
        if objects
    ]
    assert list(targets_of(train).values()) == right
    for k in range(len(train)):  # images are decoded
        assert train[k]['img'].data.shape[-1] == 128


def test_names_in_another_form_of_unicode(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path)
    for form, other in (('NFC', 'NFD'), ('NFD', 'NFC')):
        for path in sorted((root / 'val').iterdir()):
            name = unicodedata.normalize(other, f'grün_{path.name[-10:]}')
            path.rename(path.with_name(name))
        edit(
            root,
            named(lambda name, form=form: unicodedata.normalize(form, f'grün_{name[-10:]}')),
            ['val'],
        )
        recipe = recipe_of(root)
        assert recipe.data_problems() == []
        data = pipelines.quiet_dataset(pipelines.dataset_config(recipe, 'val'))
        for k in range(len(data)):
            assert data[k]['img'][0].data.shape[-1] == 128


def test_a_group_with_the_name_of_the_only_class(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path, classes=('cat',))

    def change(table):
        table['categories'][0]['supercategory'] = 'cat'
        table['categories'].insert(0, {'id': 0, 'name': 'cat', 'supercategory': 'none'})

    edit(root, change)
    recipe = recipe_of(root)
    assert recipe.data_problems() == [] and recipe.classes == ('cat',)
    train = pipelines.quiet_dataset(pipelines.dataset_config(recipe, 'train'))
    assert [len(objects) for objects in targets_of(train).values()] == [1, 2, 2]


def reverse_categories(table):
    table['categories'].reverse()


def swap_category_ids(table):
    """The same objects and names under each other's ids."""
    swapped = {5: 6, 6: 5}
    for category in table['categories']:
        category['id'] = swapped[category['id']]
    for item in table['annotations']:
        item['category_id'] = swapped[item['category_id']]


@pytest.mark.parametrize('change', [reverse_categories, swap_category_ids])
def test_val_lists_the_classes_otherwise(change, tmp_path, tiny_coco):
    root = tiny_coco(tmp_path)
    edit(root, change, ['val'])
    recipe = recipe_of(root)
    assert recipe.data_problems() == [] and recipe.classes == ('cat', 'dog')
    data = pipelines.quiet_dataset(pipelines.dataset_config(recipe, 'val'))
    assert data.CLASSES == ('cat', 'dog')
    numbers = numbers_of(data)
    assert numbers['per_class']['bbox'] == pytest.approx({'cat': 1, 'dog': 0.7}, abs=1e-9)


def plain_config(folder, root, old='', new=''):
    """A plain config's file with `new` in place of `old`; else its classes are cat, dog."""
    path = folder / 'plain.py'
    text = TEXT.format(model=retinanet(num_classes=2), root=str(root), meta=META)
    assert old in text
    text = text.replace(old, new)
    path.write_text(text)
    return path


def test_a_plain_config_lists_the_classes_otherwise(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path / 'coco')
    other = plain_config(tmp_path, root, "('cat', 'dog')", "('dog', 'cat')")
    config = mmdet_config.load_config(other)
    assert mmdet_config.dataset_problems(config.cfg, mmdet_config.SPLITS) == []
    (leaf,) = mmdet_config.dataset_leaves(config.cfg.data.test)
    data = pipelines.quiet_dataset({**leaf, 'test_mode': True})
    assert data.CLASSES == ('dog', 'cat')
    numbers = numbers_of(data)
    assert numbers['per_class']['bbox'] == pytest.approx({'cat': 1, 'dog': 0.7}, abs=1e-9)
    (leaf,) = mmdet_config.dataset_leaves(config.cfg.data.train)
    train = pipelines.quiet_dataset(leaf)
    assert train.get_ann_info(0)['labels'].tolist() == [1]  # a cat
    assert targets_of(train)['000001.png'] == [('cat', 4, 6, 24, 36), ('dog', 30, 10, 58, 50)]


def test_joined_files_may_list_the_classes_otherwise(tmp_path, tiny_coco):
    """In one training; each with ids of its own."""
    one, two = tiny_coco(tmp_path / 'one'), tiny_coco(tmp_path / 'two')
    edit(two, reverse_categories)
    edit(two, renumbered('categories', lambda k: 40 - k))
    path = plain_config(tmp_path, one)
    text = path.read_text().replace(
        'train=dict(',
        'train=[dict(**common, ann_file=other + "/annotations/train.json", img_prefix=other + "/train/", '
        'pipeline=train_pipeline), dict(',
    )
    text = text.replace('dataset=train),', 'dataset=train)],')
    path.write_text(f'other = {str(two)!r}\n{text}')
    config = mmdet_config.load_config(path)
    assert mmdet_config.dataset_problems(config.cfg, mmdet_config.SPLITS) == []
    data = build_dataset(config.cfg.data.train)
    boxes = {
        (float(box[0]), int(label))
        for k in range(len(data))
        for sample in [data[k]]
        for box, label in zip(
            sample['gt_bboxes'].data, sample['gt_labels'].data.tolist(), strict=True
        )
    }
    assert len(data) == 3 + 2 * 3 and boxes == {(4.0, 0), (30.0, 1)}


# Classes of a checkpoint


def checkpoint_of(folder, model: dict, order: list[int], classes: list[str] | None):
    """Random weights of a RetinaNet whose outputs are those of classes 0, 1 in another order; -1: one that is new."""
    torch.manual_seed(0)
    detector = build_detector(ConfigDict(copy.deepcopy(model)))
    state = detector.state_dict()
    torch.nn.init.normal_(state['bbox_head.retina_cls.weight'])
    for part in ('weight', 'bias'):
        key = f'bbox_head.retina_cls.{part}'
        outputs = state[key].unflatten(0, (-1, 2))  # anchors x classes
        new = torch.full_like(outputs[:, :1], -3.0)
        state[key] = torch.cat([outputs, new], 1)[:, order].flatten(0, 1)
    meta = {} if classes is None else {'CLASSES': tuple(classes)}
    path = folder / f'{"_".join(classes or ["none"])}.pth'
    torch.save({'state_dict': state, 'meta': meta}, path)
    return path


@pytest.fixture(scope='module', params=['recipe', 'plain'])
def measured(request, tmp_path_factory, tiny_coco):
    """A function: what a checkpoint with these outputs detects, by class name, and its numbers."""
    folder = tmp_path_factory.mktemp(request.param)
    root = tiny_coco(folder / 'coco')
    model = retinanet(num_classes=2)
    model['test_cfg'] |= dict(nms_pre=1000, max_per_img=1000)
    path = plain_config(folder, root, repr(retinanet(num_classes=2)), repr(model))
    categories = {5: 'cat', 6: 'dog'}
    files = ['000000.png', '000001.png', '000002.png', '000003.png']

    def measure(order, classes, **options):
        out = folder / 'out'
        shutil.rmtree(out, ignore_errors=True)
        checkpoint = checkpoint_of(folder, model, order, classes)
        if request.param == 'plain':
            config = mmdet_config.load_config(path)
            numbers = mmdet_config.evaluate_config(config, checkpoint, out=out, **options)
        else:
            recipe = recipe_of(
                root, **{'student.config': str(path), 'image.scale': 64, 'runtime.workers': 0}
            )
            numbers = evaluation.evaluate(recipe, checkpoint, out=out, **options)
        detections = json.loads((out / 'detections.json').read_text())
        return numbers, sorted(
            (files[item['image_id']], categories[item['category_id']], *item['bbox'], item['score'])
            for item in detections
        )

    return measure


@pytest.mark.parametrize(
    ('order', 'classes'),
    [
        ([1, 0], ['dog', 'cat']),
        ([2, 1, 0], ['bird', 'dog', 'cat']),
        ([0, 2, 1], ['Cat', 'bird', 'dog ']),
    ],
)
def test_outputs_of_a_checkpoint_are_matched_by_name(order, classes, measured):
    right, detections = measured([0, 1], ['cat', 'dog'])
    assert {item[1] for item in detections} == {'cat', 'dog'}
    assert measured([0, 1], None)[1] == detections  # which doesn't say is taken for the dataset's
    numbers, same = measured(order, classes)
    assert [item[:2] for item in same] == [item[:2] for item in detections]
    np.testing.assert_allclose(
        [item[2:] for item in same], [item[2:] for item in detections], rtol=1e-4, atol=1e-4
    )
    assert numbers['per_class'] == {'bbox': pytest.approx(right['per_class']['bbox'], abs=1e-6)}
    assert numbers['bbox_mAP'] == pytest.approx(right['bbox_mAP'], abs=1e-6)


def test_a_checkpoint_of_other_classes_is_refused_unless_asked_for(measured):
    with pytest.raises(MtpdError, match='it lacks 1 of the 2 classes of the dataset') as error:
        measured([0, 1], ['cat', 'bird'])
    assert 'dog' in str(error.value) and 'mtpd eval --ignore-classes' in str(error.value)
    detections = measured([0, 1], ['cat', 'bird'], ignore_classes=True)[1]
    assert detections == measured([0, 1], ['cat', 'dog'])[1]
    with pytest.raises(MtpdError, match='it lacks 1 of the 2 classes of the dataset') as error:
        measured([0], ['cat'])
    assert '--ignore-classes' not in str(error.value)


# What is refused


def write_corners(table):
    for item in table['annotations']:
        x, y, w, h = item['bbox']
        item['bbox'] = [x, y, x + w, y + h]


def write_corners_without_area(table):
    write_corners(table)
    of_all('annotations', area=...)(table)


def move_into_folders(table):
    """Two images that are one file: 000001.png."""
    table['images'][0]['file_name'] = 'a/000001.png'
    table['images'][1]['file_name'] = 'b/000001.png'


def drop_dogs(table):
    del table['categories'][1]
    table['annotations'] = [item for item in table['annotations'] if item['category_id'] == 5]


REFUSED = {
    'boxes as corners': (write_corners, SPLITS, ['look like corners', 'x2 - x1']),
    'boxes as corners, no area': (write_corners_without_area, SPLITS, ['look like corners']),
    'sizes that do not fit': (of_all('images', width=80), SPLITS, ['64 x 64', '80 x 64']),
    'sizes swapped': (of_all('images', width=64, height=48), SPLITS, ['64 x 64', '64 x 48']),
    'a class missing in val': (drop_dogs, ['val'], ['lacks 1', 'dog', '"categories"']),
    'two names of one file': (
        move_into_folders,
        ['val'],
        ['a/000001.png', 'b/000001.png', 'with their folders'],
    ),
    'an image that is nowhere': (
        named(lambda name: f'x{name}'),
        ['val'],
        ['4 of 4 images', 'x000000.png', 'data.splits'],
    ),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_it_is_refused_with_the_fix(kind, tmp_path, tiny_coco):
    change, splits, words = REFUSED[kind]
    root = tiny_coco(tmp_path / 'coco')
    edit(root, change, splits)
    text = ' '.join(recipe_of(root).data_problems())
    assert text and all(word in text for word in words), text
    config = mmdet_config.load_config(plain_config(tmp_path, root))
    text = ' '.join(mmdet_config.dataset_problems(config.cfg, mmdet_config.SPLITS))
    assert text, 'taken by a plain config'


def test_wrong_sizes_of_images_without_exif_are_not_laid_on_exif(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path)
    edit(root, of_all('images', width=80))
    assert 'EXIF' not in ' '.join(recipe_of(root).data_problems())


MASK_RCNN = 'configs/mini/mask_rcnn_r50__cascade_r50dcn_rx101dcn.py'


@pytest.mark.parametrize('mask', ['', [[]], [[4, 6, 24, 36]], None])
def test_bad_masks_stop_detectors_with_masks(mask, tmp_path, tiny_coco):
    root = tiny_coco(tmp_path / 'coco')
    good = [[4, 6, 24, 6, 24, 36, 4, 36]]
    edit(root, of_all('annotations', segmentation=good))
    edit(root, lambda table: table['annotations'][1].update(segmentation=mask))
    assert recipe_of(root).data_problems() == []
    options = ['--work-dir', tmp_path / 'run', '--cfg-options', f'data.root={root}']
    result = CliRunner().invoke(main, ['train', MASK_RCNN, *map(str, options)])
    assert result.exit_code == 2 and 'Traceback' not in result.output
    assert re.search(
        'student has a mask head, and .*mask.*train.json|train.json.* segmentation', result.output
    )
    assert not (tmp_path / 'run').exists()


# End to end, with a detector that works


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    return make_digit_scenes(tmp_path_factory.mktemp('scenes'), train=1, val=6)


def detector_numbers(root, out=None) -> dict:
    recipe = recipe_of(root, **{'runtime.workers': 0, 'evaluation.batch_size': 2})
    checkpoint = ROOT / 'configs/mini/teachers/rx101/model.pth'
    return evaluation.evaluate(recipe, checkpoint, detector='rx101', out=out)


def reverse_ids(table):
    """And the lists, ids from 0 on."""
    for kind in ('categories', 'images', 'annotations'):
        count = len(table[kind])
        renumbered(kind, lambda k, count=count: count - 1 - k)(table)
        table[kind].reverse()


def test_a_detector_has_the_same_ap_on_the_twin(scenes, tmp_path):
    base = detector_numbers(scenes)
    assert base['bbox_mAP'] > 0.4
    shutil.copytree(scenes, tmp_path / 'odd')
    edit(tmp_path / 'odd', reverse_ids, ['val'])
    edit(tmp_path / 'odd', reverse_categories, ['train'])
    odd = detector_numbers(tmp_path / 'odd', tmp_path / 'out')
    assert odd.pop('annotations_sha256') != base.pop('annotations_sha256')
    assert odd.pop('per_class')['bbox'] == pytest.approx(base.pop('per_class')['bbox'], abs=1e-9)
    assert odd.pop('image') == base.pop('image')
    assert odd == pytest.approx(base, abs=1e-9)
    # detections.json has the file's ids.
    detections = json.loads((tmp_path / 'out/detections.json').read_text())
    table = json.loads((tmp_path / 'odd/annotations/val.json').read_text())
    names = {item['id']: item['name'] for item in table['categories']}
    files = {item['id']: item['file_name'] for item in table['images']}
    sure = [item for item in detections if item['score'] > 0.8]
    objects = {
        (files[item['image_id']], names[item['category_id']]) for item in table['annotations']
    }
    hits = [(files[item['image_id']], names[item['category_id']]) in objects for item in sure]
    assert len(sure) > 4 and sum(hits) > 0.8 * len(hits)
    assert coco.class_names(tmp_path / 'odd/annotations/train.json')[0] == '9'
