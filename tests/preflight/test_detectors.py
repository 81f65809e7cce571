"""Whether detectors fit a recipe's images, by their mmdet configs."""

from __future__ import annotations

import re

import pytest

from mtpd.preflight import detectors

# isort: split
from mtpd.config.recipe import load_recipe

PAPER = 'configs/paper/retinanet_r50__r101_rx101.py'
YOLOX = 'mmdet::yolox/yolox_tiny_8x8_300e_coco.py'


@pytest.mark.long
@pytest.mark.parametrize('name', ['student', 'r101'])
def test_a_detector_of_raw_pixels_is_refused_with_the_settings_that_it_needs(
    name, tiny_coco, tmp_path
):
    """YOLOX's configs have no Normalize step."""
    key = name if name == 'student' else f'teachers.{name}'
    options = {
        f'{key}.config': YOLOX,
        f'{key}.checkpoint': 'yolox.pth',
        'data.root': str(tiny_coco(tmp_path)),
    }
    recipe = load_recipe(PAPER, options)
    (problem,) = detectors.settings_problems(recipe, [name])
    assert 'mean [0,0,0], std [1,1,1], to_rgb False' in problem
    assert YOLOX in problem
    fixed = dict(re.findall(r'(image\.\w+)=([^\s\']+)', problem))
    fixed = {
        k: [float(n) for n in v[1:-1].split(',')] if v[0] == '[' else v == 'True'
        for k, v in fixed.items()
    }
    assert detectors.settings_problems(load_recipe(recipe, fixed), [name]) == []


def test_a_config_without_data_says_nothing_of_normalisation():
    recipe = load_recipe('configs/mini/retinanet_r50__r101_rx101.py')
    assert detectors.config_normalisation(recipe, 'student') is None


def test_an_unknown_method_is_no_problem_of_the_detectors():
    """It is one of the recipe's values, told once."""
    recipe = load_recipe('configs/mini/retinanet_r50__r101_rx101.py')
    recipe.cfg.distill.method = 'mgt'
    assert detectors.distillation_problems(recipe, recipe.cfg.teachers) == []
