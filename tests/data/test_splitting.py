"""One dataset becomes train and val: whole images, by the seed, nothing copied or overwritten."""

import json

import pytest

from helpers.arranged import SINGLE, Files, arranged
from mtpd import load_recipe
from mtpd.data.splitting import split_dataset
from mtpd.errors import MtpdError

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'


def tables(out):
    return [json.loads((out / f'annotations/{name}.json').read_text()) for name in ('train', 'val')]


def names(table):
    return {image['file_name'] for image in table['images']}


def objects_by_image(table):
    return {
        image['file_name']: [a for a in table['annotations'] if a['image_id'] == image['id']]
        for image in table['images']
    }


@pytest.mark.parametrize('tool', SINGLE)
def test_each_image_is_in_one_split_with_all_its_objects(tmp_path, tiny_coco, tool):
    files = SINGLE[tool]
    root = arranged(tiny_coco(tmp_path / 'coco'), tmp_path / 'data', val=files)
    before = (root / files.annotations).read_bytes()
    text = split_dataset(root, tmp_path / 'out', val=0.25)
    assert (root / files.annotations).read_bytes() == before
    whole, (train, val) = json.loads(before), tables(tmp_path / 'out')
    assert len(names(train)) == 3 and len(names(val)) == 1 and not names(train) & names(val)
    assert objects_by_image(train) | objects_by_image(val) == objects_by_image(whole)
    assert train['categories'] == val['categories'] == whole['categories']
    assert (tmp_path / 'out/images').is_symlink()
    objects = [len(part['annotations']) for part in (train, val)]  # five in all
    assert f'train 3 images, {objects[0]} objects' in text and sum(objects) == 5
    recipe = load_recipe(MINI, {'data.root': str(tmp_path / 'out')})
    assert recipe.data_problems() == []
    assert recipe.split('train')[1].resolve() == (root / files.images).resolve()


def test_the_seed_decides_and_not_the_order_in_the_file(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path / 'coco')
    (root / 'annotations/val.json').unlink()  # train alone is split, too
    file = root / 'annotations/train.json'
    splits = {}
    for seed in range(8):
        split_dataset(root, tmp_path / f'{seed}', val=0.5, seed=seed)
        splits[seed] = names(tables(tmp_path / f'{seed}')[1])
    assert len({frozenset(part) for part in splits.values()}) > 1
    table = json.loads(file.read_text())
    table['images'].reverse()
    file.write_text(json.dumps(table))
    split_dataset(root, tmp_path / 'turned', val=0.5, seed=3)
    assert names(tables(tmp_path / 'turned')[1]) == splits[3]


@pytest.mark.parametrize(('share', 'count'), [(0.01, 1), (0.5, 2), (0.7, 3), (0.99, 3)])
def test_neither_split_is_empty(tmp_path, tiny_coco, share, count):
    root = tiny_coco(tmp_path / 'coco')
    file, seed = root / 'annotations/train.json', 1 if count == 3 else 0
    split_dataset(file, tmp_path / 'out', share, seed, images=root / 'train')
    assert len(names(tables(tmp_path / 'out')[1])) == count


def test_a_split_without_objects_is_refused(tmp_path, tiny_coco):
    """The fourth image has none; some seed puts it alone into val."""
    root = tiny_coco(tmp_path / 'coco')
    refused = []
    for seed in range(20):
        try:
            split_dataset(root / 'annotations/train.json', tmp_path / f'{seed}', 0.25, seed)
        except MtpdError as error:
            refused.append(str(error))
            assert not (tmp_path / f'{seed}').exists()
        else:
            assert all(part['annotations'] for part in tables(tmp_path / f'{seed}'))
    assert 0 < len(refused) < 20 and set(refused) == {
        'val would have no objects: give another --val or --seed.'
    }


def test_classes_without_objects_are_named(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path / 'coco', classes=('cat', 'dog', 'emu'))
    text = split_dataset(root / 'annotations/train.json', tmp_path / 'out', images=root / 'train')
    assert 'none of emu' in text.split('; ')[0]


def test_what_is_there_is_not_overwritten(tmp_path, tiny_coco):
    root = arranged(tiny_coco(tmp_path / 'coco'), tmp_path / 'data', val=SINGLE['CVAT'])
    (tmp_path / 'out').mkdir()
    split_dataset(root, tmp_path / 'out')  # an empty folder is taken
    before = (tmp_path / 'out/annotations/val.json').read_bytes()
    for out in (tmp_path / 'out', root, root / SINGLE['CVAT'].annotations):
        with pytest.raises(MtpdError, match='nothing is overwritten'):
            split_dataset(root, out, seed=1)
    assert (tmp_path / 'out/annotations/val.json').read_bytes() == before


def test_what_cannot_be_split_is_said(tmp_path, tiny_coco):
    root, out = tiny_coco(tmp_path / 'coco'), tmp_path / 'out'
    with pytest.raises(MtpdError, match=r'is split already: .*train\.json.*val\.json'):
        split_dataset(root, out)
    with pytest.raises(
        MtpdError, match=r'has no annotation file of a known layout.*--images FOLDER'
    ):
        split_dataset(root / 'train', out)
    file = root / 'annotations/train.json'
    table = json.loads(file.read_text())
    file.write_text(json.dumps(table | {'images': table['images'][:1], 'annotations': []}))
    with pytest.raises(MtpdError, match=r'one image|no annotations'):
        split_dataset(file, out, images=root / 'train')
    table['annotations'][0]['image_id'] = 99
    table['annotations'][1]['bbox'] = [1, 2, -3, 4]
    file.write_text(json.dumps(table))
    with pytest.raises(MtpdError, match=r'(?s)2 problems.*not among the images') as error:
        split_dataset(file, out, images=root / 'train')
    assert 'negative width' in str(error.value)
    arranged(root, tmp_path / 'far/away', val=Files('x/labels.json', 'y/images'))
    with pytest.raises(MtpdError, match=r'not near it.*--images FOLDER'):
        split_dataset(tmp_path / 'far/away/x/labels.json', out)
    assert not out.exists()
