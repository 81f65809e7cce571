"""Recipes: every shipped one loads; arms, checkpoints and heads follow from it."""

import hashlib
import re
from importlib import resources

import pytest
import yaml
from mmcv import Config

from mtpd.config.recipe import load_recipe
from mtpd.distill.losses import DISTILL_LOSSES, build_distill_loss
from mtpd.errors import MtpdError, RecipeError
from mtpd.pipeline.detectors import detector_checkpoint
from mtpd.pipeline.mmdet_config import PlainConfig, load_config
from mtpd.utils.files import sha256_in_name
from mtpd.utils.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
RECIPES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / 'configs').rglob('*.py')
    if not {'_base_', 'teachers'} & set(path.parts)
)
TEACHERS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'configs/teachers').glob('*.py'))


@pytest.mark.parametrize('path', RECIPES)
def test_every_shipped_recipe_loads_and_its_header_says_how_to_launch_it(path):
    recipe = load_recipe(path)
    assert recipe.name and recipe.arms
    for name in recipe.detectors:
        recipe.model(name) if recipe.cfg.data.root is None else None
    header = (ROOT / path).read_text().split('_base_')[0]
    assert re.search(f'mtpd (run|sweep) {path}', header) and 'Prerequisites' in header


@pytest.mark.parametrize('path', TEACHERS)
def test_every_shipped_teacher_is_an_mmdet_config_and_its_header_says_how_to_launch_it(path):
    assert isinstance(load_config(path), PlainConfig)
    header = (ROOT / path).read_text().split('_base_')[0]
    assert f'mtpd train {path}' in header and 'Prerequisites' in header
    with pytest.raises(RecipeError, match='not a recipe'):
        load_recipe(path)


def test_the_recipe_may_be_named_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe(MINI).source == ROOT / MINI


def test_overrides_reach_the_values_and_the_seed_has_a_short_form():
    recipe = load_recipe(MINI, 'schedule.arm=8 distill.settings.mgd.alpha=1e-3', seed=4)
    assert recipe.cfg.schedule.arm == 8 and recipe.cfg.distill.settings.mgd.alpha == 1e-3
    assert recipe.seed == 4 and recipe.run_dir().parts[-2:] == (recipe.name, '4')
    again = load_recipe(recipe, {'schedule.baseline': 3})
    assert again.cfg.schedule.arm == 8 and again.cfg.schedule.baseline == 3


def test_paths_of_overrides_are_settled_where_they_are_given(tmp_path, monkeypatch, tiny_coco):
    tiny_coco(tmp_path / 'cells')
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(MINI, 'data.root=cells')
    assert recipe.overrides == {'data.root': str(tmp_path / 'cells')}
    assert recipe.cfg.student.config == 'configs/_base_/models/pocket_retinanet.py'


def test_every_arm_gets_the_same_number_of_updates():
    arms = load_recipe(MINI).arms
    assert {arm.stage_updates * len(arm.teachers) for arm in arms.values()} == {
        load_recipe(MINI).cfg.schedule.arm
    }
    assert arms['progressive'].teachers == tuple(reversed(arms['reverse'].teachers))
    assert arms['progressive'].stage_name(2) == '2_rx101'
    assert arms['none'].stage_name(1) == '1_no_teacher'


FGD_WEIGHTS = ('alpha', 'beta', 'gamma', 'relation')


@pytest.mark.parametrize(
    ('name', 'mgd', 'fgd', 'pkd', 'levels'),
    [
        ('methods', (2e-5, 0.65), (1e-3, 5e-4, 5e-4, 5e-6), 10, 5),
        ('methods_reppoints', (2e-5, 0.65), (1.6e-3, 8e-4, 8e-4, 8e-6), 10, 5),
        ('methods_mask_rcnn', (5e-7, 0.45), (5e-5, 2.5e-5, 5e-5, 5e-7), 6, 4),
    ],
)
def test_settings_of_the_methods_are_the_published_ones_and_build(name, mgd, fgd, pkd, levels):
    distill = Config.fromfile(str(ROOT / f'configs/_base_/distill/{name}.py')).distill
    settings = distill.settings
    assert (settings.mgd.alpha, settings.mgd.mask_ratio) == mgd
    assert tuple(settings.fgd[key] for key in FGD_WEIGHTS) == fgd
    assert (settings.fgd.temperature, settings.fgd.box_scale) == (0.5, 'pad_shape')
    assert (settings.cwd.tau, settings.cwd.weight) == (1, 5)
    assert (settings.pkd.weight, settings.mse.weight) == (pkd, 1)
    assert distill.levels == list(range(levels))
    assert {key for key, value in settings.items() if 'levels' in value} == {'cwd', 'pkd'}
    assert settings.cwd.levels == settings.pkd.levels == [0, 1, 2, 3]
    kinds = set()
    for method in settings.values():
        overrides = ('levels', 'student_module', 'teacher_module')
        cfg = {key: value for key, value in method.items() if key not in overrides}
        kinds.add(type(build_distill_loss(cfg | {'student_channels': 8, 'teacher_channels': 8})))
    assert kinds == set(DISTILL_LOSSES.module_dict.values())


def test_an_arm_or_stage_that_is_not_there():
    recipe = load_recipe(MINI)
    with pytest.raises(RecipeError, match=r"unknown arm 'progresive'. Did you mean 'progressive'"):
        recipe.arm('progresive')
    with pytest.raises(RecipeError, match=r'2 stage\(s\), and stage 3'):
        recipe.arm('progressive', 3)


def test_a_missing_recipe_names_the_nearest_one():
    with pytest.raises(RecipeError, match=r'Did you mean .*retinanet_r50__r101_rx101'):
        load_recipe('configs/mini/retinanet_r50_r101_rx101.py')


def test_a_recipe_that_is_not_python_is_named(tmp_path):
    path = tmp_path / 'broken.py'
    path.write_text('name = (')
    with pytest.raises(RecipeError, match=r'broken\.py has a problem'):
        load_recipe(path)


def test_missing_checkpoints_are_listed_with_the_way_to_train_them():
    recipe = load_recipe(
        MINI, {'teachers.r101.checkpoint': 'none/a.pth', 'teachers.rx101.checkpoint': 'none/b.pth'}
    )
    problems = recipe.checkpoint_problems()
    assert len(problems) == 2
    assert 'a.pth is missing' in problems[0] and 'teachers.r101.checkpoint=None' in problems[0]


@pytest.fixture
def remote(site, tmp_path, monkeypatch):
    """MINI with a teacher from a server: its URL's path, which ends in the start of its sha256, and the overrides."""
    monkeypatch.setenv('MTPD_CACHE', str(tmp_path / 'cache'))
    path = f'/zoo/r101-{hashlib.sha256(b"weights").hexdigest()[:8]}.pth'
    site.files[path] = b'weights'
    return path, {'teachers.r101.checkpoint': f'{site.url}{path}'}


def test_a_checkpoint_of_a_url_is_fetched_when_it_is_used_and_shared(remote, site, tmp_path):
    path, overrides = remote
    recipe = load_recipe(MINI, overrides)
    assert recipe.overrides == overrides and recipe.checkpoint_problems() == []
    assert recipe.checkpoint('r101') == tmp_path / 'cache' / 'checkpoints' / path.split('/')[-1]
    assert site.asked == []
    assert detector_checkpoint(recipe, 'r101').read_bytes() == b'weights'
    again = load_recipe(MINI, overrides | {'seed': 1})
    assert detector_checkpoint(again, 'r101') == recipe.checkpoint('r101')
    assert len(site.asked) == 1


def test_a_checkpoint_of_another_sum_than_its_name_is_refused(remote, site):
    path, overrides = remote
    site.files[path] = b'other weights'
    recipe = load_recipe(MINI, overrides)
    with pytest.raises(MtpdError, match=sha256_in_name(path)):
        recipe.fetch('r101')
    assert not recipe.checkpoint('r101').exists()


def test_files_of_one_name_from_two_places_keep_apart(site, tmp_path, monkeypatch):
    monkeypatch.setenv('MTPD_CACHE', str(tmp_path))
    for place in ('a', 'b'):
        site.files[f'/{place}/student.pth'] = place.encode()
    urls = {
        f'teachers.{t}.init': f'{site.url}/{p}/student.pth'
        for t, p in (('r101', 'a'), ('rx101', 'b'))
    }
    recipe = load_recipe(MINI, urls)
    assert recipe.fetch('r101', 'init').read_bytes() == b'a'
    assert recipe.fetch('rx101', 'init').read_bytes() == b'b'


def test_urls_of_shipped_recipes_are_the_model_zoos():
    zoo = resources.files('mmdet') / '.mim' / 'configs'
    for path in RECIPES:
        recipe = load_recipe(path)
        for name, spec in recipe.detectors.items():
            if url := recipe.url(name):
                folder = spec.config.removeprefix('mmdet::').split('/')[0]
                models = yaml.safe_load((zoo / folder / 'metafile.yml').read_text())['Models']
                assert url in [model.get('Weights') for model in models]


def test_heads_follow_from_the_annotation_file(tmp_path, tiny_coco):
    recipe = load_recipe(
        MINI, {'data.root': str(tiny_coco(tmp_path, classes=('cat', 'dog', 'emu')))}
    )
    assert recipe.classes == ('cat', 'dog', 'emu')
    assert recipe.model('student').bbox_head.num_classes == 3
    assert recipe.model('rx101').bbox_head.num_classes == 3
