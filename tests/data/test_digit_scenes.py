"""DigitScenes: what is in them, that they repeat, and that train and validation share nothing."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from mtpd.data import digit_scenes
from mtpd.data.digit_scenes import SPLITS, _digits_and_photos, draw_scene
from mtpd.errors import MtpdError


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return digit_scenes.make_digit_scenes(
        tmp_path_factory.mktemp('data'), train=60, val=20, size=128, seed=3
    )


def load(folder, split):
    return json.loads((folder / 'annotations' / f'{split}.json').read_text())


def test_the_pixels_of_a_seed_are_the_same_on_every_machine():
    total = hashlib.sha256()
    for split in ('train', 'val'):
        for index in range(5):
            pixels, objects = draw_scene(split, index, size=128, seed=7)
            total.update(pixels.tobytes())
            total.update(json.dumps([(o['label'], o['bbox']) for o in objects]).encode())
    # Made with the pinned versions; a change of pixels needs a new digits.VERSION and shipped teachers.
    assert total.hexdigest() == 'dc2a2e16ec58d2e66d274c88ef738947446cefe252e526f704a5982fa6607811'


def test_a_scene_does_not_depend_on_how_many_are_made(tmp_path, made):
    few = digit_scenes.make_digit_scenes(tmp_path, train=3, val=1, size=128, seed=3)
    for name in ('000000.png', '000002.png'):
        assert (few / 'train' / name).read_bytes() == (made / 'train' / name).read_bytes()


def test_seeds_and_splits_differ():
    first = draw_scene('train', 0, seed=0)[0]
    assert not np.array_equal(first, draw_scene('train', 0, seed=1)[0])
    assert not np.array_equal(first, draw_scene('val', 0, seed=0)[0])


def test_train_and_validation_share_neither_digits_nor_photograph_regions():
    glyphs, regions = _digits_and_photos()
    seen = {split: {d.tobytes() for group in glyphs[split] for d in group} for split in SPLITS}
    assert len(seen['train']) > 1000 and len(seen['val']) > 400
    assert not seen['train'] & seen['val']
    for left, right in zip(regions['train'], regions['val'], strict=True):
        # Columns of the same photograph: together fewer than the whole, so they cannot overlap.
        assert left.shape[1] + right.shape[1] < 640
        assert not np.shares_memory(left, right)


def test_boxes_are_tight_around_the_visible_mask(made):
    for split in SPLITS:
        table = load(made, split)
        assert len(table['categories']) == 10
        for item in table['annotations']:
            mask = rle.decode(item['segmentation'])
            rows, columns = np.nonzero(mask)
            x, y, w, h = item['bbox']
            assert (x, y) == (columns.min(), rows.min())
            assert (x + w, y + h) == (columns.max() + 1, rows.max() + 1)
            assert item['area'] == mask.sum() > 0


def test_masks_of_a_scene_never_overlap():
    overlaps = cut = border = 0
    for index in range(40):
        _, objects = draw_scene('train', index)
        stacked = np.sum([o['mask'] for o in objects], axis=0)
        overlaps += int((stacked > 1).sum())
        for o in objects:
            x, y, w, h = o['bbox']
            border += x == 0 or y == 0 or x + w == 128 or y + h == 128
            boxes = [p['bbox'] for p in objects if p is not o]
            cut += any(x < a + c and a < x + w and y < b + d and b < y + h for a, b, c, d in boxes)
    assert overlaps == 0
    assert border > 5  # some touch the border
    assert cut > 20  # and many lie over each other


def test_sizes_reach_all_of_cocos_ranges_where_the_image_is_large_enough():
    areas = [o['mask'].sum() for i in range(20) for o in draw_scene('train', i, size=512)[1]]
    assert min(areas) < 32**2 and max(areas) > 96**2
    assert any(32**2 <= area < 96**2 for area in areas)


def test_a_complete_folder_is_reused_and_a_changed_file_is_found(made):
    before = (made / 'manifest.json').stat().st_mtime_ns
    assert digit_scenes.make_digit_scenes(made.parent, 60, 20, 128, 3) == made
    assert (made / 'manifest.json').stat().st_mtime_ns == before
    assert digit_scenes.changed_splits(made) == []
    path = made / 'val' / '000001.png'
    content = path.read_bytes()
    Image.fromarray(np.zeros((128, 128, 3), np.uint8)).save(path)
    assert digit_scenes.changed_splits(made) == ['val']
    path.write_bytes(content)
    assert digit_scenes.changed_splits(made) == []


def test_an_incomplete_folder_is_made_again(tmp_path):
    folder = digit_scenes.make_digit_scenes(tmp_path, 4, 2, 64, 0)
    (folder / 'train' / '000001.png').unlink()
    assert not digit_scenes.is_complete(folder, 4, 2)
    digit_scenes.make_digit_scenes(tmp_path, 4, 2, 64, 0)
    assert (folder / 'train' / '000001.png').is_file()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize('numbers', [(0, 1, 128), (1, 0, 128), (1, 1, 32)])
def test_impossible_numbers_are_refused(tmp_path, numbers):
    with pytest.raises(MtpdError, match=r'data\.scenes'):
        digit_scenes.make_digit_scenes(tmp_path, *numbers)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(MtpdError, match='could not be written'):
        digit_scenes.make_digit_scenes(tmp_path / 'file', 1, 1, 64, 0)
