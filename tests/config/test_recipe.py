"""Recipes: every shipped one loads; arms, checkpoints and heads follow from it."""

import hashlib
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

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
    assert recipe.cfg.student.config == 'configs/_base_/models/pocket_retinanet_width16.py'


# Recipes that lie elsewhere, and what their paths name


@pytest.mark.parametrize('base', [MINI, str(ROOT / MINI)])
def test_a_recipe_of_ones_own_builds_on_the_kits_from_anywhere(tmp_path, monkeypatch, base):
    """The base's paths are the kit's files, whatever the working directory has under these names."""
    folder, here = tmp_path / 'my recipes', tmp_path / 'here'
    for decoy in (folder, here):
        (decoy / 'teachers/r101').mkdir(parents=True)
    (here / 'teachers/r101/model.pth').write_text('of another recipe')
    (folder / 'my.py').write_text(f"_base_ = {base!r}\nname = 'my'\nschedule = dict(arm=8)\n")
    monkeypatch.chdir(here)
    recipe = load_recipe(folder / 'my.py')
    kit = load_recipe(MINI)
    assert (recipe.name, recipe.cfg.schedule.arm) == ('my', 8)
    assert recipe.checkpoint('r101') == kit.checkpoint('r101')
    assert recipe.checkpoint('r101') == ROOT / 'configs/mini/teachers/r101/model.pth'
    assert recipe.detectors == kit.detectors and recipe.overrides == {}
    assert recipe.model('rx101') == kit.model('rx101')


def test_a_path_is_that_of_the_file_which_states_it(tmp_path, monkeypatch):
    """Also where the recipe that builds on this file has another file of the name."""
    base, mine = tmp_path / 'base', tmp_path / 'mine'
    for folder in (base, mine):
        (folder / 'cells').mkdir(parents=True)
        (folder / 'w.pth').touch()
    teachers = "teachers = dict({}=dict(checkpoint='w.pth'))\n"
    (base / 'b.py').write_text(
        f"_base_ = {MINI!r}\nname = 'b'\ndata = dict(root='cells')\n{teachers.format('r101')}"
    )
    (mine / 'r.py').write_text(f"_base_ = ['../base/b.py']\n{teachers.format('rx101')}")
    monkeypatch.chdir(mine)
    recipe = load_recipe('r.py')
    assert recipe.checkpoint('r101') == base / 'w.pth'
    assert recipe.checkpoint('rx101') == mine / 'w.pth'
    assert recipe.ensure_data() == base / 'cells' and recipe.overrides == {}
    other = load_recipe(
        'r.py', {'teachers.r101.checkpoint': 'w.pth'}
    )  # an override is relative to here
    assert other.checkpoint('r101') == mine / 'w.pth'


def test_a_path_to_the_working_directory_is_the_same_elsewhere(tmp_path, monkeypatch):
    """A run's notebooks are executed in the checkout: they would find another file of this name, or none."""
    recipe_file, here = tmp_path / 'recipes' / 'r.py', tmp_path / 'here'
    recipe_file.parent.mkdir()
    recipe_file.write_text(f"_base_ = {MINI!r}\ndata = dict(root='configs')\n")
    (here / 'configs').mkdir(parents=True)
    monkeypatch.chdir(here)
    recipe = load_recipe(recipe_file)
    assert recipe.overrides == {'data.root': str(here / 'configs')}
    monkeypatch.chdir(ROOT)
    assert load_recipe(recipe.source, recipe.overrides).text == recipe.text
    assert load_recipe(recipe_file).ensure_data() == ROOT / 'configs'


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'cells').mkdir()
    (tmp_path / 'w.pth').touch()
    (tmp_path / 'base.py').write_text(f'_base_ = {str(ROOT / MINI)!r}\n')
    (tmp_path / 'r.py').write_text(
        "_base_ = '~/base.py'\n"
        "data = dict(root='~/cells', cache='~/cache',\n"
        "    splits=dict(train=dict(_delete_=True, annotations='~/t.json', images='~/t')))\n"
        "teachers = dict(r101=dict(checkpoint='~/w.pth'), rx101=dict(init='~/gone.pth'))\n"
    )
    for recipe in (
        load_recipe('~/r.py'),
        load_recipe(
            MINI,
            'data.root=~/cells data.cache=~/cache data.splits.train={"_delete_":True,"annotations":"~/t.json","images":"~/t"} '
            'teachers.r101.checkpoint=~/w.pth teachers.rx101.init=~/gone.pth',
        ),
    ):
        assert recipe.ensure_data() == tmp_path / 'cells'
        assert recipe.cfg.data.cache == str(tmp_path / 'cache')
        assert recipe.split('train') == (tmp_path / 't.json', tmp_path / 't')
        assert recipe.checkpoint('r101') == tmp_path / 'w.pth'
        assert recipe.checkpoint('rx101', 'init') == tmp_path / 'gone.pth'
    assert recipe.run_dir('~/run') == tmp_path / 'run'


def test_what_is_missing_is_named_with_the_places_that_were_looked_at(tmp_path):
    (tmp_path / 'r.py').write_text("_base_ = ['configs/mini/gone.py']\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / 'r.py')
    assert f'{tmp_path}/configs/mini/gone.py is missing' in str(caught.value)
    assert f'relative to that file or to {ROOT}' in str(caught.value)
    (tmp_path / 'r.py').write_text(
        f"_base_ = {MINI!r}\ndata = dict(root='none/data')\nteachers = dict(r101=dict(checkpoint='none/w.pth'))\n"
    )
    recipe = load_recipe(tmp_path / 'r.py')
    for problem in recipe.data_problems() + recipe.checkpoint_problems():
        assert f'beside the recipe, in the working directory and in {ROOT}.' in problem
    with pytest.raises(RecipeError, match=r'student\.config: .*gone\.py is missing\. .*beside the'):
        load_recipe(MINI, {'student.config': 'gone.py'})


@pytest.mark.long
def test_the_built_in_dataset_is_announced_before_it_is_made(tmp_path, capsys):
    """Not a few small scenes: those that are drawn to try some updates."""
    scenes = {'data.scenes.train': 16, 'data.scenes.val': 2, 'data.cache': str(tmp_path)}
    folder = load_recipe(MINI, scenes | {'data.scenes.size': 512}).ensure_data()
    captured = capsys.readouterr()
    assert captured.out == ''
    first_line = captured.err.splitlines()[0]  # a slow machine has a progress bar after it
    assert first_line == f'making the built-in dataset: 18 images, 11 MB, in {folder}'
    for size in (512, 64):
        load_recipe(MINI, scenes | {'data.scenes.size': size}).ensure_data()
        assert 'making' not in capsys.readouterr().err


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
    with pytest.raises(RecipeError, match=r'2 stage\(s\) and no stage 3'):
        recipe.arm('progressive', 3)


def test_a_missing_recipe_names_the_nearest_one():
    with pytest.raises(RecipeError, match=r'Did you mean .*retinanet_r50__r101_rx101'):
        load_recipe('configs/mini/retinanet_r50_r101_rx101.py')


def test_a_recipe_that_is_not_python_is_named(tmp_path):
    path = tmp_path / 'broken.py'
    path.write_text('name = (')
    with pytest.raises(RecipeError, match=r'broken\.py has a problem'):
        load_recipe(path)


@pytest.mark.long
@pytest.mark.parametrize('name', ['r.py', 'base.py'])
def test_a_file_that_raises_is_named_with_its_line_and_without_a_traceback(tmp_path, name):
    """mmcv executes a copy of the file, and Python would report at its end that the copy is gone."""
    (tmp_path / 'base.py').write_text(f'_base_ = {MINI!r}\n')
    (tmp_path / 'r.py').write_text("_base_ = ['base.py']\n")
    with (tmp_path / name).open('a') as file:
        file.write("name = '{{ fileBasename }}'\nvalue = 1 / 0\n")
    command = [sys.executable, '-m', 'mtpd.cli', 'show', str(tmp_path / 'r.py')]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.splitlines() == [
        f'mtpd: {tmp_path}/r.py has a problem:',
        '  - the config does not load: ZeroDivisionError: division by zero '
        f'({tmp_path}/{name}, line 3). Correct that file.',
    ]


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


@pytest.mark.parametrize('words', ['', '_delete_=True, '])
def test_a_recipe_file_states_its_splits(tmp_path, tiny_coco, words):
    """Without mmcv's `_delete_`, and with it, as recipes of version 0.1 needed it."""
    root = tiny_coco(tmp_path / 'coco')
    (root / 'annotations/val.json').rename(root / 'held_out.json')
    place = {'annotations': 'held_out.json', 'images': 'val'}
    model = ROOT / 'configs/_base_/models/pocket_retinanet.py'
    (tmp_path / 'r.py').write_text(
        f"_base_ = ['{ROOT / MINI}']\n"
        f"data = dict(root='{root}', splits=dict(val=dict({words}**{place})))\n"
        f"student = dict(config='{model}')\n"
        f"teachers = dict(r101=dict(config='{model}'), rx101=dict(config='{model}'))\n"
    )
    recipe = load_recipe(tmp_path / 'r.py')
    assert recipe.cfg.data.splits == {'train': 'train', 'val': place}
    assert recipe.split('val') == (root / 'held_out.json', root / 'val')
    assert recipe.data_problems() == []


def test_a_recipe_that_was_copied_elsewhere_is_told_where_its_bases_are(tmp_path):
    copied = tmp_path / 'mine.py'
    copied.write_text((ROOT / MINI).read_text())
    written = copied.read_text()
    for count in (2, 3):  # what it builds on, then the detectors' configs
        with pytest.raises(RecipeError) as caught:
            load_recipe(copied)
        assert len(caught.value.problems) == count
        for text in caught.value.problems:
            name, works = re.search(
                r'(\w+\.py) is missing\. .*checkout has one: (\S+) is', text
            ).groups()
            assert Path(works).is_file()
            written = re.sub(rf"'[^']*/{name}'", f"'{works}'", written)
        copied.write_text(written)
    assert load_recipe(copied).classes == load_recipe(MINI).classes


def test_only_several_processes_have_batch_norm_to_synchronise(monkeypatch):
    """mmcv's cannot even be built by a process alone."""
    name = 'simple_copy_paste/mask_rcnn_r50_fpn_syncbn-all_rpn-2conv_ssj_scp_32x2_90k_coco.py'
    student = {'student.config': f'mmdet::{name}', 'student.checkpoint': None}
    recipe = load_recipe(MINI, student)
    kinds = [recipe.model('student').roi_head.bbox_head.norm_cfg.type]
    monkeypatch.setenv('WORLD_SIZE', '2')
    for variable, value in (('RANK', 0), ('LOCAL_RANK', 0), ('LOCAL_WORLD_SIZE', 2)):
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv('MASTER_PORT', '29511')
    kinds.append(recipe.model('student').roi_head.bbox_head.norm_cfg.type)
    monkeypatch.undo()
    recipe = load_recipe(MINI, student | {'runtime.gpus': 2, 'runtime.device': 'cuda'})
    kinds.append(recipe.model('student').roi_head.bbox_head.norm_cfg.type)
    assert kinds == ['BN', 'MMSyncBN', 'MMSyncBN']
