"""Datasets' configs look at no image; what checks a dataset looks for each image once."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import os
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.parallel import collate
from mmcv.runner import HOOKS, OptimizerHook
from PIL import Image

from helpers.failing import build
from helpers.tiny_training import MINI, SMALL
from mtpd import evaluate, load_recipe
from mtpd.engine import pipelines
from mtpd.engine.features import image_batches
from mtpd.engine.loop import train_model
from mtpd.errors import RecipeError
from mtpd.runtime import checkpoints
from mtpd.utils.files import read_log


@pytest.fixture
def recipe(tmp_path, tiny_coco):
    return load_recipe(MINI, SMALL | {'data.root': str(tiny_coco(tmp_path / 'coco'))})


@pytest.fixture
def image_stats(monkeypatch):
    """How often each image file was looked for, by path: pathlib and os.path both call os.stat."""
    stats, original = Counter(), os.stat

    def stat(path, *args, **kwargs):
        if str(path).endswith('.png'):
            stats[str(path)] += 1
        return original(path, *args, **kwargs)

    monkeypatch.setattr(os, 'stat', stat)
    return stats


def test_a_datasets_config_looks_at_no_image(recipe, image_stats):
    for split in ('train', 'val'):
        cfg = pipelines.dataset_config(recipe, split)
        assert cfg['classes'] == ('cat', 'dog') and Path(cfg['ann_file']).name == f'{split}.json'
    assert not image_stats
    pipelines.check_data(recipe)
    assert len(image_stats) == 8  # which is how it would show


def test_a_broken_dataset_has_a_config_and_is_refused_where_it_is_checked(recipe):
    annotations, images = recipe.split('val')
    (images / '000001.png').unlink()
    assert pipelines.dataset_config(recipe, 'val')['ann_file'] == str(annotations)
    for check in (pipelines.check_data, lambda r: next(image_batches(r, 2))):
        with pytest.raises(RecipeError, match=r'1 of 4 images .* for example 000001\.png'):
            check(recipe)


def test_a_training_looks_for_no_image_and_an_evaluation_once_for_each(
    recipe, tmp_path, image_stats
):
    cfg = recipe.model('student')
    train_model(recipe, partial(build, cfg), cfg, tmp_path / 'run', 2, 0)
    assert not image_stats
    pipelines.check_data(recipe)
    once = dict(image_stats)
    image_stats.clear()
    final = tmp_path / 'student.pth'
    checkpoints.export_student(tmp_path / 'run/latest.pth', final)
    assert evaluate(recipe, final)['num_images'] == 4
    assert image_stats.keys() <= once.keys()
    assert all(count <= once[path] for path, count in image_stats.items())


@pytest.mark.parametrize('to_rgb', [True, False])
def test_batches_of_bytes_become_those_of_floats_to_the_bit(tmp_path, tiny_coco, to_rgb):
    root, rng = tiny_coco(tmp_path / 'coco'), np.random.default_rng(1)
    for number, (height, width) in enumerate([(64, 64), (40, 64), (64, 50), (64, 64)]):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(root / f'train/{number:06d}.png')
    options = {'data.root': str(root), 'image.to_rgb': to_rgb, 'image.scale': 96, 'image.flip': 1.0}
    recipe = load_recipe(MINI, SMALL | options | {'image.std': [58.395, 7.7, 99.1]})
    cfg = pipelines.dataset_config(recipe, 'train')
    floats, later = (
        collate([data[i] for i in range(len(data))], 4)
        for data in map(pipelines.quiet_dataset, (cfg, pipelines.with_byte_batches(cfg)))
    )
    ((wanted,), (metas,)), ((images,), (later_metas,)) = (
        (batch['img'].data, batch['img_metas'].data) for batch in (floats, later)
    )
    assert images.dtype == torch.uint8 and {meta['img_shape'] for meta in metas} > {(96, 96, 3)}
    _, normalised = pipelines.normalise_batch(None, (), {'img': images, 'img_metas': later_metas})
    assert normalised['img'].dtype == torch.float32 and torch.equal(normalised['img'], wanted)
    for meta, other in zip(metas, later_metas, strict=True):
        assert meta.keys() == other.keys() and meta['pad_shape'] == other['pad_shape']
        assert np.array_equal(meta['img_norm_cfg']['std'], other['img_norm_cfg']['std'])


def test_other_pipelines_keep_their_floats(recipe):
    cfg = pipelines.dataset_config(recipe, 'train')
    crop = dict(type='RandomCrop', crop_size=(32, 32))
    cfg['pipeline'].insert(3, crop)
    assert pipelines.with_byte_batches(cfg) is cfg
    floats = torch.rand(2, 3, 8, 8)
    _, batch = pipelines.normalise_batch(None, (), {'img': floats, 'img_metas': []})
    assert batch['img'] is floats


def test_a_training_by_batches_of_bytes_is_the_same(recipe, tmp_path):
    weights = []
    for name in (True, False):
        chosen = load_recipe(recipe, {'speed.byte_batches': name, 'image.flip': 0.5})
        cfg, out = chosen.model('student'), tmp_path / str(name)
        train_model(chosen, partial(build, cfg), cfg, out, 3, 0)
        weights.append(checkpoints.load_checkpoint(out / 'latest.pth')['state_dict'])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_gradient_norms_are_logged_as_by_mmcv(recipe, tmp_path, monkeypatch):
    """Five updates, a row every two."""
    rows = []
    for name in ('ours', 'mmcv'):
        if name == 'mmcv':
            plain = lambda interval, **settings: OptimizerHook(**settings)  # noqa: E731
            monkeypatch.setitem(HOOKS.module_dict, 'LoggedGradNorm', plain)
        cfg = recipe.model('student')
        train_model(recipe, partial(build, cfg), cfg, tmp_path / name, 5, 0)
        rows.append([row['grad_norm'] for row in read_log(tmp_path / name / 'log.json')])
    assert rows[0] == rows[1] and len(set(rows[0])) == 3


def test_the_last_row_of_the_log_is_of_the_rest_alone(recipe, tmp_path):
    """Five updates, a row every two, against one for each."""
    rows = []
    for interval in (2, 1):
        chosen = load_recipe(recipe, {'schedule.log_interval': interval})
        cfg, out = chosen.model('student'), tmp_path / str(interval)
        train_model(chosen, partial(build, cfg), cfg, out, 5, 0)
        rows.append([row['loss'] for row in read_log(out / 'log.json')])
    assert rows[0][-1] == rows[1][-1] and rows[0][0] == pytest.approx(sum(rows[1][:2]) / 2)


def test_a_mask_head_is_one_that_a_model_has():
    head = {'type': 'StandardRoIHead', 'mask_head': {'type': 'FCNMaskHead'}}
    assert pipelines.has_mask_head({'roi_head': head})
    assert pipelines.has_mask_head({'roi_head': {'mask_head': [{'type': 'FCNMaskHead'}] * 3}})
    assert pipelines.has_mask_head({'panoptic_head': {'type': 'Mask2FormerHead'}})
    without = {'roi_head': {'mask_head': None}, 'init_cfg': {'checkpoint': '/x/no_mask_head.pth'}}
    assert not pipelines.has_mask_head(without)


def test_how_images_are_made_is_read_where_a_config_says_it(recipe):
    made = pipelines.image_settings(pipelines.dataset_config(recipe, 'val'))
    image = recipe.cfg.image
    assert made == {
        'scale': [image.scale] * 2,
        'mean': image.mean,
        'std': image.std,
        'to_rgb': True,
    }
    norm = dict(type='Normalize', mean=[1, 2, 3], std=[1, 1, 1])
    test = dict(type='MultiScaleFlipAug', img_scale=(1333, 800), transforms=[norm])
    plain = {'scale': [1333, 800], 'mean': [1.0, 2.0, 3.0], 'std': [1.0] * 3, 'to_rgb': True}
    assert pipelines.image_settings({'pipeline': [test]}) == plain
    several = {**test, 'img_scale': [(1333, 800), (1000, 600)]}
    factor = dict(type='MultiScaleFlipAug', scale_factor=1.0, transforms=[norm])
    for split in ({'type': 'ConcatDataset', 'datasets': []}, {'pipeline': []}):
        assert pipelines.image_settings(split) is None
    for step in (several, factor, {**test, 'transforms': []}):
        assert pipelines.image_settings({'pipeline': [step]}) is None
