"""Datasets' configs look at no image; what checks a dataset looks for each image once."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import os
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from helpers.failing import build
from helpers.tiny_training import MINI, SMALL
from mtpd import evaluate, load_recipe
from mtpd.engine import pipelines
from mtpd.engine.features import image_batches
from mtpd.engine.loop import train_model
from mtpd.errors import RecipeError
from mtpd.runtime import checkpoints


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
