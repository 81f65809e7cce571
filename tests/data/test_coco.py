"""COCO-format folders: found in their usual layouts, and every fault named."""

import json
import re

import numpy as np
import pytest

from mtpd import load_recipe
from mtpd.analysis import dataset
from mtpd.data import coco
from mtpd.engine import pipelines
from mtpd.errors import MtpdError

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'


def test_usual_layouts_are_found(tmp_path, tiny_coco):
    short = tiny_coco(tmp_path / 'short')
    assert coco.locate_split(short, 'train') == (short / 'annotations/train.json', short / 'train')
    long = tmp_path / 'long'
    (long / 'annotations').mkdir(parents=True)
    (long / 'train2017').mkdir()
    (long / 'annotations/instances_train2017.json').write_text('{}')
    assert coco.locate_split(long, 'train') == (
        long / 'annotations/instances_train2017.json',
        long / 'train2017',
    )
    split = {'annotations': 'labels.json', 'images': 'jpg'}
    assert coco.locate_split(tmp_path, split) == (tmp_path / 'labels.json', tmp_path / 'jpg')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'is not JSON'),
        ('{"images": [', 'is not JSON'),
        ('[]', 'not in COCO format: no list images, annotations, categories'),
        ('{"images": [], "annotations": {}, "categories": []}', 'no list annotations'),
    ],
)
def test_annotation_files_that_are_none(tmp_path, text, message):
    path = tmp_path / 'train.json'
    path.write_text(text)
    with pytest.raises(MtpdError, match=message):
        coco.read_annotations(path)


def test_findings_of_a_split(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path)
    assert coco.split_problems(root, 'train') == []
    (root / 'train' / '000001.png').unlink()
    problems = coco.split_problems(root, 'train')
    assert len(problems) == 1 and '1 of 4 images' in problems[0] and '000001.png' in problems[0]
    path = root / 'annotations' / 'val.json'
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {'categories': table['categories'] * 2}))
    assert 'a category id is given twice' in coco.split_problems(root, 'val')[0]
    path.unlink()
    assert 'val.json: no such file' in coco.split_problems(root, 'val')[0]


def test_images_in_subfolders_and_behind_links(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path)
    path, folder = root / 'annotations/train.json', root / 'train'
    table = json.loads(path.read_text())
    (folder / 'a/b').mkdir(parents=True)
    (folder / '000000.png').rename(folder / 'a/b/000000.png')
    table['images'][0]['file_name'] = 'a/b/000000.png'
    (folder / '000001.png').rename(root / 'elsewhere.png')
    (folder / '000001.png').symlink_to(root / 'elsewhere.png')
    table['images'][2]['file_name'] = './000002.png'
    path.write_text(json.dumps(table))
    assert coco.split_problems(root, 'train') == []
    (folder / '000003.png').unlink()
    (folder / '000003.png').mkdir()
    (problem,) = coco.split_problems(root, 'train')
    assert '1 of 4 images' in problem and '000003.png' in problem
    (folder / '000003.png').rmdir()
    (folder / '000003.png').symlink_to(root / 'nowhere.png')
    (root / 'elsewhere.png').rename(root / 'nowhere.png')
    (problem,) = coco.split_problems(root, 'train')
    assert '1 of 4 images' in problem and '000001.png' in problem


def test_train_and_val_must_agree_on_the_classes(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path, classes=('cat', 'dog'))
    path = root / 'annotations' / 'val.json'
    table = json.loads(path.read_text())
    table['categories'][1]['name'] = 'emu'
    path.write_text(json.dumps(table))
    (problem,) = load_recipe(MINI, {'data.root': str(root)}).data_problems()
    assert re.search(
        r'train.json and .*val.json have different classes: dog \(1\) in the first only, emu \(1\) in the second only',
        problem,
    )
    assert f'Otherwise add to the second {{"id": {free_id(table)}, "name": "dog"}}' in problem
    table['categories'][1]['name'] = 'dog'
    table['categories'].append({'id': 9, 'name': 'emu'})
    path.write_text(json.dumps(table))
    (problem,) = load_recipe(MINI, {'data.root': str(root)}).data_problems()
    assert re.search(r'train.json lacks 1 of the 3 classes of .*val.json: emu\. ', problem)
    added = json.loads(re.search(r'add ({.*?}) to its "categories"', problem)[1])
    path = root / 'annotations' / 'train.json'
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {'categories': [*table['categories'], added]}))
    assert load_recipe(MINI, {'data.root': str(root)}).data_problems() == []


def free_id(table: dict) -> int:
    return max(item['id'] for item in table['categories']) + 1


def test_a_missing_root_is_named(tmp_path):
    problems = load_recipe(MINI, {'data.root': str(tmp_path / 'none')}).data_problems()
    assert len(problems) == 1 and 'no such folder' in problems[0]


@pytest.mark.parametrize(
    ('root', 'hint'),
    [
        ('Pets', '/pet?'),
        ('pets', '/pet?'),
        ('petz/small', '/pet/small?'),
        ('petz/large', '/pet?'),
        ('zoo', ''),
        ('pet.json', 'is a file, but a folder is needed'),
    ],
)
def test_a_misspelt_root_is_named_with_its_nearest(tmp_path, root, hint):
    (tmp_path / 'pet/small').mkdir(parents=True)
    (tmp_path / 'pet.json').touch()
    (problem,) = load_recipe(MINI, {'data.root': str(tmp_path / root)}).data_problems()
    assert hint in problem and bool(hint) == ('mean' in problem or 'is a file' in problem)


@pytest.mark.parametrize(
    ('name', 'classes', 'masks'), [('coco_tiny', 80, True), ('bccd', 3, False)]
)
def test_real_data_passes_and_shows(shared_data, name, classes, masks):
    recipe = load_recipe(MINI, {'data.root': str(shared_data / name)})
    assert recipe.data_problems() == []
    assert len(recipe.classes) == classes
    examples = dataset.sample_images(recipe, 'val', 6)
    for example in examples:
        height, width = example['image'].shape[:2]
        assert example['boxes'].shape == (len(example['labels']), 4)
        assert (example['boxes'] >= -1).all()
        assert (example['boxes'][:, 2] <= width + 1).all()
        assert (example['boxes'][:, 3] <= height + 1).all()
    shown = [example for example in examples if len(example['labels'])]
    assert all((example['masks'] is not None) == masks for example in shown)
    counted = dataset.dataset_statistics(recipe)['val']
    assert sum(counted['counts']) == counted['objects'] == len(counted['areas'])


def test_samples_have_the_objects_of_the_file(tmp_path, tiny_coco):
    recipe = load_recipe(MINI, {'data.root': str(tiny_coco(tmp_path, classes=('cat', 'dog')))})
    first = dataset.sample_images(recipe, 'train', 1)[0]
    assert first['image'].shape == (64, 64, 3) and first['masks'] is None
    np.testing.assert_array_equal(first['boxes'], [[4, 6, 24, 36]])  # xyxy of xywh [4, 6, 20, 30]
    np.testing.assert_array_equal(first['labels'], [0])


def test_classes_are_numbered_by_the_training_annotations(tmp_path, tiny_coco):
    """By their places there, against the order of the category ids, and whatever the order in val."""
    root = tiny_coco(tmp_path, classes=('cat', 'dog'))
    path = root / 'annotations' / 'train.json'
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {'categories': table['categories'][::-1]}))
    recipe = load_recipe(MINI, {'data.root': str(root)})
    data = pipelines.quiet_dataset(pipelines.dataset_config(recipe, 'val'))
    assert recipe.classes == data.CLASSES == ('dog', 'cat') and recipe.data_problems() == []
    first = dataset.sample_images(recipe, 'val', 1)[0]  # its one object is a cat
    assert [recipe.classes[label] for label in first['labels']] == ['cat']
    assert data.get_ann_info(0)['labels'].tolist() == first['labels'].tolist() == [1]
