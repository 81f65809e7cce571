"""The pocket-size twins of the paper's five sequences: what they are, and one update of every stage and method."""

from __future__ import annotations

import json
import re

import pytest

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split

import torch
from mmcv import ConfigDict
from mmcv.parallel import collate
from mmdet.models import build_detector

from mtpd import load_recipe
from mtpd.analysis.run import load_run, split_loss
from mtpd.distill.initialization import warm_start
from mtpd.engine import pipelines
from mtpd.pipeline.run import run_recipe
from mtpd.pipeline.stages import _stage_builder, _stage_start, train_stage
from mtpd.report.run import make_report
from mtpd.runtime.checkpoints import load_checkpoint, save_atomic
from mtpd.utils.paths import ROOT

TWINS = sorted(path.stem for path in (ROOT / 'configs' / 'paper').glob('*.py'))
METHODS = tuple(load_recipe('configs/mini/retinanet_r50__r101_rx101.py').cfg.distill.settings)
# Deformable convolutions need at least 3 x 3 cells, at stride 32.
SMALL = {'data.scenes.train': 2, 'data.scenes.val': 2, 'data.scenes.size': 96, 'image.scale': 96}
# What a teacher takes from the shipped detector that its training begins with.
TAKEN = {
    'mask_rcnn_r50__cascade_r50dcn_rx101dcn': {
        'cascade_r50dcn': ('backbone.conv1.', 'neck.'),
        'cascade_rx101dcn': ('backbone.', 'neck.'),
    },
    'mask_rcnn_r50__swint_swins': dict.fromkeys(('swint', 'swins'), ('neck.fpn_convs.',)),
    'reppoints_r50__r101_rx101dcn': dict.fromkeys(
        ('r101', 'rx101dcn'), ('backbone.', 'neck.', 'bbox_head.cls_convs', 'bbox_head.reg_convs')
    ),
    'retinanet_r50__swint_swins': dict.fromkeys(
        ('swint', 'swins'), ('neck.fpn_convs.', 'bbox_head.')
    ),
}


def built(recipe, name):
    torch.manual_seed(0)
    model = build_detector(ConfigDict(recipe.model(name)))
    model.init_weights()
    return model


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('scenes')


@pytest.fixture(scope='module', params=TWINS)
def twin(request, cache, tmp_path_factory):
    return prepared(request.param, cache, tmp_path_factory.mktemp('checkpoints'))


def prepared(name, cache, folder):
    """A recipe on tiny scenes with an untrained checkpoint for each of its detectors, and a batch of two images."""
    recipe = load_recipe(f'configs/mini/{name}.py', SMALL | {'data.cache': str(cache), 'seed': 0})
    named = {}
    for name in recipe.detectors:
        path = folder / f'{name}.pth'
        save_atomic({'state_dict': built(recipe, name).state_dict()}, path)
        named['student' if name == 'student' else f'teachers.{name}'] = str(path)
    recipe = load_recipe(recipe, {f'{name}.checkpoint': path for name, path in named.items()})
    masks = pipelines.needs_masks(recipe, recipe.model('student'))
    data = pipelines.quiet_dataset(pipelines.dataset_config(recipe, 'train', masks=masks))
    batch = collate([data[0], data[1]], samples_per_gpu=2)
    return recipe, {key: value.data[0] for key, value in batch.items()}


def one_update(model, batch, names):
    """Losses by name, after an update of which every distillation loss took part."""
    model.train()
    losses = model.forward_train(**batch)
    first = next(model.student.backbone.parameters())
    for name in names:
        (gradient,) = torch.autograd.grad(losses[name], first, retain_graph=True)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0, name
    total, logged = model._parse_losses(losses)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    total.backward()
    optimizer.step()
    assert all(value.isfinite().all() for value in model.student.state_dict().values())
    return logged


def test_there_is_a_twin_for_each_of_the_papers_sequences():
    assert len(TWINS) == 5
    for name in TWINS:
        mini, paper = (load_recipe(f'configs/{kind}/{name}.py') for kind in ('mini', 'paper'))
        assert mini.name == f'mini_{name}'
        assert {key: arm.teachers for key, arm in mini.arms.items()} == {
            key: arm.teachers for key, arm in paper.arms.items()
        }
        assert mini.cfg.evaluation.metrics == paper.cfg.evaluation.metrics
        assert {'mgd', 'cwd', 'fgd', 'pkd', 'mse'} <= set(mini.cfg.distill.settings) == set(METHODS)
        assert not mini.checkpoint_problems()


def test_the_detectors_are_of_the_papers_kinds(twin):
    """Type, head, backbone and deformable convolutions; mmdet's configs of the paper's recipes are the reference."""
    mini = twin[0]
    paper = load_recipe(f'configs/paper/{mini.name.removeprefix("mini_")}.py')
    for name in mini.detectors:
        spec = paper.detectors[name]
        full = load_recipe(paper, {'data.root': None}).model(name)
        ours = mini.model(name)
        assert ours.type == full.type, spec
        assert ours.backbone.type == full.backbone.type
        assert bool(ours.backbone.get('dcn')) == bool(full.backbone.get('dcn'))
        for head in ('bbox_head', 'roi_head', 'rpn_head'):
            assert ours.get(head, {}).get('type') == full.get(head, {}).get('type')


@pytest.mark.parametrize('method', METHODS)
def test_an_update_of_each_stage(twin, method):
    recipe, batch = twin
    recipe = load_recipe(recipe, {'distill.method': method})
    arm, student = recipe.arm('progressive'), recipe.checkpoint('student')
    names = {f'loss_{method}_fpn_{level}' for level in range(3)}
    for stage, teacher in enumerate(arm.teachers, 1):
        start, origin = (
            (student, 'previous stage') if stage > 1 else _stage_start(recipe, arm, 1, None)
        )
        assert start == student and origin == ('baseline', 'previous stage')[stage - 1]
        model = _stage_builder(recipe, teacher, start, origin, None)[0]()
        logged = one_update(model, batch, names)
        assert {name for name in logged if name.startswith(f'loss_{method}')} == names
        assert all(torch.isfinite(torch.tensor(value)) for value in logged.values())
        detection, distillation = split_loss(logged)
        assert detection > 0 and distillation > 0
        assert detection + distillation == pytest.approx(logged['loss'], rel=1e-4)


def test_the_pool_is_diverse_and_each_teacher_teaches(cache, tmp_path):
    """Depths and widths of ResNet, ResNeXt, Swin, deformable convolutions; the study of three is a part of it."""
    recipe, batch = prepared('pool', cache, tmp_path)
    backbones = {name: recipe.model(name).backbone for name in recipe.cfg.teachers}
    kinds = [
        (b.type, b.get('depth'), b.get('base_channels', b.get('embed_dims')))
        for b in backbones.values()
    ]
    assert sorted(kinds[:3]) == [('ResNet', 18, 16), ('ResNet', 34, 16), ('ResNet', 50, 8)]
    assert kinds[3:5] == [('ResNeXt', 50, 16), ('SwinTransformer', None, 24)]
    assert backbones['r50dcn'].dcn.type == 'DCN' and len(backbones) == 6
    names = [f'loss_mgd_fpn_{level}' for level in range(3)]
    for teacher in backbones:
        model = _stage_builder(recipe, teacher, recipe.checkpoint('student'), 'baseline', None)[0]()
        one_update(model, batch, names)
    reduced, whole = (load_recipe(f'configs/mini/{name}.py') for name in ('pool_reduced', 'pool'))
    assert list(reduced.cfg.teachers) == ['r34', 'x50', 'swin']
    for name, spec in reduced.cfg.teachers.items():
        assert spec == whole.cfg.teachers[name]
    assert all(whole.cfg.schedule.arm % stages == 0 for stages in (1, 2, 3))
    assert reduced.cfg.distill.settings.mgd.alpha == whole.cfg.distill.settings.mgd.alpha


def test_a_student_that_inherits(twin):
    """Neck and head are the teacher's; of a cascade its first stage, boxes repeated for each of the ten classes."""
    recipe, batch = twin
    recipe = load_recipe(recipe, {'distill.start': 'inherit'})
    for arm in (recipe.arm('progressive'), recipe.arm('direct')):
        teacher = arm.teachers[0]
        start, origin = _stage_start(recipe, arm, 1, None)
        assert (start, origin) == (None, 'inherit')
        model = _stage_builder(recipe, teacher, start, origin, None)[0]()
        theirs = load_checkpoint(recipe.checkpoint(teacher))['state_dict']
        mine = model.student.state_dict()
        for key, value in mine.items():
            if key.startswith('backbone.') or 'lateral_convs' in key:
                continue
            source = key
            if recipe.model(teacher).type == 'CascadeRCNN':
                source = re.sub(r'^(roi_head\.\w+_head\.)', r'\g<1>0.', key)
            expected = theirs[source]
            if 'fc_reg' in key and expected.shape != value.shape:
                assert expected.shape[0] == 4
                expected = torch.cat([expected] * 10)
            assert torch.equal(value, expected), key
        skipped = [k for k in model.inherit_report.skipped if k in mine]
        same_widths = recipe.model('student').neck.in_channels == recipe.model(teacher).neck.in_channels
        assert all('lateral_convs' in key for key in skipped)
        assert len(skipped) == (0 if same_widths else 3)
        one_update(model, batch, [f'loss_mgd_fpn_{level}' for level in range(3)])


@pytest.mark.parametrize('name', TAKEN)
def test_teachers_begin_with_the_shipped_weights_that_fit(name):
    recipe = load_recipe(f'configs/mini/{name}.py')
    for teacher, parts in TAKEN[name].items():
        origin = recipe.checkpoint(teacher, 'init')
        model, shipped = built(recipe, teacher), load_checkpoint(origin)['state_dict']
        count = warm_start(model, origin).copied
        mine = model.state_dict()
        for part in parts:
            keys = [key for key in shipped if key.startswith(part)]
            assert keys and count >= len(keys), part
            for key in keys:
                assert torch.equal(mine[key], shipped[key].to(mine[key].dtype)), key
        # A deformable convolution without offsets is a plain one: nothing is lost at the start.
        offsets = [value for key, value in mine.items() if 'conv_offset' in key]
        assert bool(offsets) == teacher.endswith('dcn') and not any(map(torch.any, offsets))


@pytest.mark.slow
def test_both_stages_train_and_are_measured(twin, tmp_path):
    recipe = load_recipe(
        twin[0],
        {
            'schedule.batch_size': 2,
            'schedule.arm': 2,
            'runtime.workers': 0,
            'runtime.threads': 1,
        },
    )
    made = train_stage(recipe, 2, 'progressive', tmp_path)
    assert made['stage']['start'] == 'previous stage' and made['stage']['updates'] == 1
    for metric in recipe.cfg.evaluation.metrics:
        assert 0 <= made['metrics'][f'{metric}_mAP'] <= 1


@pytest.mark.slow
@pytest.mark.parametrize('name', TAKEN)
def test_the_whole_recipe_runs(name, tmp_path):
    """Every step with next to no training: baseline, teachers, all four arms, notebooks, report."""
    recipe = load_recipe(f'configs/mini/{name}.py', {'data.cache': str(tmp_path / 'data')})
    run_dir = run_recipe(recipe, tmp_path / 'run', smoke=True)
    run = load_run(run_dir)
    assert run.state == 'complete'
    masks = 'segm' in recipe.cfg.evaluation.metrics
    assert all((row['mask_AP'] is not None) == masks for row in run.results())
    assert ('Mask AP' in make_report(run_dir).read_text()) == masks
    shown = json.loads((run_dir / 'notebooks' / '05_evaluate.ipynb').read_text())
    assert any('| Mask AP |' in str(cell.get('outputs')) for cell in shown['cells']) == masks
