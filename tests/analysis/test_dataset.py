"""Example images of a dataset: their pixels and boxes are those that training has."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from mtpd import load_recipe
from mtpd.analysis import dataset
from mtpd.data.loading import CorruptImage
from mtpd.engine import pipelines

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'


def turned(path) -> None:
    """An image 64 x 96 pixels in its file and 96 x 64 as it is seen, its first row of pixels at the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(1).integers(0, 256, (96, 64, 3), np.uint8)
    Image.fromarray(pixels).save(path, format='JPEG', exif=exif)


def sixteen_bits(path) -> None:
    pixels = (np.arange(64 * 96, dtype=np.uint16) * 10).reshape(64, 96)
    path.write_bytes(cv2.imencode('.png', pixels)[1].tobytes())


def palette(path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(pixels).quantize(16).save(path, format='PNG')


@pytest.mark.parametrize('write', [turned, sixteen_bits, palette])
def test_examples_have_the_pixels_that_are_trained_on(write, tiny_coco, tmp_path):
    root = tiny_coco(tmp_path, width=96)
    write(root / 'val/000001.png')
    recipe = load_recipe(MINI, {'data.root': str(root)})
    assert recipe.data_problems() == []
    example = dataset.sample_images(recipe, 'val', 1, skip=1)[0]
    loaded = pipelines.quiet_dataset(
        pipelines.dataset_config(recipe, 'val') | {'pipeline': [dict(type='LoadImageFromFile')]}
    )[1]
    assert example['name'] == loaded['ori_filename'] == '000001.png'
    assert example['image'].shape == (64, 96, 3)
    np.testing.assert_array_equal(example['image'], loaded['img'][..., ::-1])
    assert example['image'].mean() < 200  # not white


def test_a_mask_is_drawn_where_a_turned_image_shows_its_object(tiny_coco, tmp_path):
    root = tiny_coco(tmp_path, width=96)
    turned(root / 'val/000000.png')
    path = root / 'annotations/val.json'
    table = json.loads(path.read_text())
    table['annotations'][0]['segmentation'] = [[70, 10, 90, 10, 90, 30, 70, 30]]
    path.write_text(json.dumps(table))
    example = dataset.sample_images(load_recipe(MINI, {'data.root': str(root)}), 'val', 1)[0]
    assert example['masks'].shape == (1, *example['image'].shape[:2]) == (1, 64, 96)
    rows, columns = np.nonzero(example['masks'][0])
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (70, 89, 10, 29)


def test_a_corrupt_example_is_named(tiny_coco, tmp_path):
    root = tiny_coco(tmp_path)
    (root / 'val/000000.png').write_bytes(b'')
    with pytest.raises(CorruptImage, match=r'000000\.png is empty, cut short'):
        dataset.sample_images(load_recipe(MINI, {'data.root': str(root)}), 'val', 1)
