"""Whether detectors fit a recipe's images, by their mmdet configs."""

from __future__ import annotations

import re

import pytest

from mtpd.preflight import detectors

# isort: split
from mtpd.config.recipe import load_recipe

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
PAPER = 'configs/paper/retinanet_r50__r101_rx101.py'
YOLOX = 'mmdet::yolox/yolox_tiny_8x8_300e_coco.py'


def advice(problem):
    """What a problem's text says to add to --cfg-options."""
    return re.search(r"--cfg-options '([^']+)'", problem)[1]


@pytest.mark.parametrize('caffe', ['student', 'r101', 'both'])
def test_advice_on_normalisation_leads_to_a_recipe_without_problems(caffe, tiny_coco, tmp_path):
    """A caffe student, teacher or pair: each keeps its own, in as many steps as there are detectors."""
    options = {'data.root': str(tiny_coco(tmp_path))}
    for name, key, depth in (('student', 'student', 50), ('r101', 'teachers.r101', 101)):
        if caffe in (name, 'both'):
            options[f'{key}.config'] = f'mmdet::retinanet/retinanet_r{depth}_caffe_fpn_1x_coco.py'
    recipe = load_recipe(PAPER, options)
    for _ in recipe.detectors:
        if problems := detectors.settings_problems(recipe, recipe.detectors):
            assert all('its features would be wrong' in problem for problem in problems)
            recipe = load_recipe(recipe, ' '.join(map(advice, problems)))
    assert detectors.settings_problems(recipe, recipe.detectors) == []
    means = {name: recipe.image(name).mean[0] for name in recipe.detectors}
    rgb, bgr = 123.675, 103.53
    assert means == {
        'student': rgb if caffe == 'r101' else bgr,
        'r101': rgb if caffe == 'student' else bgr,
        'rx101': rgb,
    }


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
    fixed = load_recipe(recipe, advice(problem))
    assert detectors.settings_problems(fixed, [name]) == []


def test_a_config_without_data_says_nothing_of_normalisation():
    recipe = load_recipe('configs/mini/retinanet_r50__r101_rx101.py')
    assert detectors.config_normalisation(recipe, 'student') is None


def test_an_unknown_method_is_no_problem_of_the_detectors():
    """It is one of the recipe's values, told once."""
    recipe = load_recipe('configs/mini/retinanet_r50__r101_rx101.py')
    recipe.cfg.distill.method = 'mgt'
    assert detectors.distillation_problems(recipe, recipe.cfg.teachers) == []


def test_a_detector_that_trains_on_semantic_maps_is_refused_before_it_does(tiny_coco, tmp_path):
    options = {'data.root': str(tiny_coco(tmp_path)), 'student.model.roi_head.mask_head': None}
    htc = {'student.config': 'mmdet::htc/htc_r50_fpn_1x_coco.py'}
    recipe = load_recipe(PAPER, {**options, **htc})
    problems = detectors.settings_problems(recipe, ['student'])
    assert any('student trains on semantic maps' in problem for problem in problems)
    without = {'student.config': 'mmdet::htc/htc_without_semantic_r50_fpn_1x_coco.py'}
    problems = detectors.settings_problems(load_recipe(PAPER, {**options, **without}), ['student'])
    assert not any('semantic maps' in problem for problem in problems)


def test_a_module_that_a_list_of_necks_lacks_is_named(tiny_coco, tmp_path):
    """Libra R-CNN has two necks in a list: there is no neck.fpn_convs."""
    options = {
        'data.root': str(tiny_coco(tmp_path)),
        'student.config': 'mmdet::libra_rcnn/libra_retinanet_r50_fpn_1x_coco.py',
        'distill.start': 'random',
    }
    recipe = load_recipe(PAPER, options)
    problems = detectors.distillation_problems(recipe, ['r101'])
    assert "no module 'neck.fpn_convs.0.conv'" in problems[0] and 'TypeError' not in str(problems)
    assert 'distill.student_module=auto finds one' in problems[0]
    auto = load_recipe(recipe, {'distill.student_module': 'auto'})
    assert detectors.distillation_problems(auto, ['r101']) == []


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        ('rpn/rpn_r50_fpn_1x_coco.py', 'the model (RPN) proposes boxes without classes'),
        ('panoptic_fpn/panoptic_fpn_r50_fpn_1x_coco.py', 'segments stuff, too (panoptic)'),
        ('ld/ld_r18_gflv1_r101_fpn_coco_1x.py', 'has a teacher of its own'),
        ('fast_rcnn/fast_rcnn_r50_fpn_1x_coco.py', 'takes proposals from a file'),
    ],
)
def test_what_detects_no_objects_is_told(config, words):
    config = f'mmdet::{config}'
    few = {'data.scenes.train': 2, 'data.scenes.val': 2}
    recipe = load_recipe(MINI, few | {'student.config': config, 'student.checkpoint': None})
    assert any(words in text for text in detectors.settings_problems(recipe, ['student']))
    teacher = {'teachers.r101.config': config}
    teacher |= {'teachers.r101.model': {'_delete_': True}}
    recipe = load_recipe(MINI, few | teacher)
    (problem,) = [text for text in detectors.settings_problems(recipe, ['r101']) if words in text]
    (key, value) = re.search(r'--cfg-options ([\w.]+)=(\w+)', problem).groups()
    recipe = load_recipe(recipe, {key: value == 'True'})
    assert not any(words in text for text in detectors.settings_problems(recipe, ['r101']))
