"""Fit, generalisation and flatness of students."""

from __future__ import annotations

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split

import json
import os
import signal
import time

import pytest
import torch
from mmdet.models import build_detector
from torch import nn

from helpers.fake_run import make_run
from mtpd import load_recipe, load_run, plots
from mtpd.analysis import generalisation, generalisation_gap
from mtpd.analysis.run import DISTILLATION_LOSS
from mtpd.engine.evaluation import load_detector
from mtpd.errors import MtpdError, RecipeError

RECIPE = 'configs/mini/retinanet_r50__r101_rx101.py'
TEACHER = 'configs/mini/teachers/r101/model.pth'
FEW = {
    'student.checkpoint': None,
    'data.scenes.train': 12,
    'data.scenes.val': 8,
    'evaluation.batch_size': 4,
}


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
    return load_recipe(RECIPE, FEW | {'data.cache': str(tmp_path_factory.mktemp('data'))})


@pytest.fixture(scope='module')
def teacher(recipe):
    return load_detector(recipe, TEACHER, 'r101')


def test_a_perturbation_has_the_size_asked_for_filter_by_filter_and_goes_again():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    before = [weight.detach().clone() for weight in model.parameters()]
    moved = []
    for seed in (1, 1, 2):
        with generalisation.perturbed_weights(model, 0.1, seed):
            moved.append([weight.detach().clone() for weight in model.parameters()])
    assert all(map(torch.equal, before, model.parameters()))
    assert all(map(torch.equal, moved[0], moved[1]))
    assert not torch.equal(moved[0][0], moved[2][0])
    for old, new in zip(before, moved[0], strict=True):
        if old.dim() == 1:
            assert torch.equal(old, new)
            continue
        for a, b in zip(old, new, strict=True):  # a filter
            assert float((b - a).norm()) == pytest.approx(0.1 * float(a.norm()), rel=1e-4)


def test_weights_come_back_when_what_was_measured_fails():
    model = nn.Conv2d(1, 1, 3)
    before = model.weight.detach().clone()
    with pytest.raises(ZeroDivisionError), generalisation.perturbed_weights(model, 0.5, 0):
        raise ZeroDivisionError
    assert torch.equal(model.weight, before)


def test_the_loss_is_the_detectors_own_mean_over_images(recipe, teacher):
    loader = generalisation.training_batches(recipe, 'train', 6)
    parts = []
    for batch in loader:
        inputs = {key: value.data[0] for key, value in batch.items()}
        with torch.no_grad():
            losses = teacher.forward_train(**inputs)
        total = sum(float(sum(v) if isinstance(v, list) else v) for v in losses.values())
        parts.append((len(inputs['img_metas']), total))
    assert [n for n, _ in parts] == [4, 2]
    wanted = sum(n * value for n, value in parts) / 6
    assert generalisation.detection_loss(teacher, loader) == pytest.approx(wanted, rel=1e-5)


def test_heads_that_train_otherwise_give_their_loss_too(tmp_path):
    """RepPoints' head gives boxes instead of what its loss takes, unless it is in training mode."""
    name = 'configs/mini/reppoints_r50__r101_rx101dcn.py'
    recipe = load_recipe(name, FEW | {'data.cache': str(tmp_path)})
    model = build_detector(recipe.model('student')).train()
    running = {k: v.clone() for k, v in model.state_dict().items() if 'running' in k}
    (batch, *_) = generalisation.training_batches(recipe, 'train', 4)
    inputs = {key: value.data[0] for key, value in batch.items()}
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.eval()
    with torch.no_grad():
        losses = model.forward_train(**inputs)
    wanted = sum(float(sum(v) if isinstance(v, list) else v) for v in losses.values())
    model.eval()
    assert generalisation.detection_loss(model, [batch]) == pytest.approx(wanted, rel=1e-5)
    assert not any(module.training for module in model.modules())
    assert norms and all(torch.equal(running[k], model.state_dict()[k]) for k in running)


def test_flatness_rises_with_the_perturbation_and_leaves_the_model(recipe, teacher):
    loader = generalisation.training_batches(recipe, 'train', 4)
    before = generalisation.detection_loss(teacher, loader)
    rows = generalisation.perturbed_losses(teacher, loader, directions=2, sizes=(0.1, 0.5))
    assert [(row['size'], row['direction']) for row in rows] == [
        (0, 0), (0.1, 0), (0.1, 1), (0.5, 0), (0.5, 1)
    ]  # fmt: skip
    assert rows[0]['loss'] == pytest.approx(before)
    assert generalisation.detection_loss(teacher, loader) == before
    assert min(rows[3]['loss'], rows[4]['loss']) > rows[0]['loss']


def row(name: str, train: float, val: float, rises: tuple[float, float]) -> dict:
    flat = [{'size': 0.0, 'direction': 0, 'loss': train}]
    flat += [{'size': 0.1, 'direction': k, 'loss': train + up} for k, up in enumerate(rises)]
    sides = {'train': {'loss': train, 'AP': 20.0}, 'val': {'loss': val, 'AP': None}}
    return sides | {'name': name, 'label': f'arm {name}', 'sizes': [0.1], 'flat': flat}


def test_arms_are_compared_seed_by_seed():
    one = [row('none', 0.8, 0.9, (0.1, 0.3)), row('direct', 0.7, 0.9, (0.1, 0.2))]
    two = [row('none', 0.6, 0.8, (0.2, 0.2)), row('direct', 0.5, 0.9, (0.2, 0.3))]
    assert generalisation_gap.loss_rise(one[0], 0.1) == pytest.approx(0.2)
    # Both seeds: 0.1 less in training; in validation 0 and 0.1 more, an interval that includes 0.
    lines = generalisation_gap.gap_difference_rows({0: one, 1: two}, 'none')
    shown = {line['less the arm without a teacher']: line['arm direct'] for line in lines}
    assert list(shown) == [
        title for title in generalisation_gap.MEASURES if not title.startswith('AP')
    ]
    assert shown['training loss'] == '−0.100 [−0.100, −0.100]\N{NO-BREAK SPACE}*'
    assert (
        shown['validation loss'].startswith('+0.050 [−0.') and '*' not in shown['validation loss']
    )
    sentences = generalisation_gap.gap_verdict({0: one, 1: two}, 'none')
    assert sentences[0] == 'Better fit than without a teacher: shown for arm direct.'
    assert sentences[1] == 'Better on other images than without a teacher: not shown.'
    more = [[*rows, row('far', 0.9 + k / 9, 0.9, (0.1, 0.1))] for k, rows in enumerate((one, two))]
    assert generalisation_gap.gap_verdict(dict(enumerate(more)), 'none')[0].endswith(
        ': shown for arm direct.'
    )
    worse = generalisation_gap.gap_verdict({0: one[::-1], 1: two[::-1]}, 'direct')
    assert worse[0] == 'Better fit than without a teacher: not shown, the opposite for arm none.'
    assert 'the numbers of one seed' in generalisation_gap.gap_verdict({0: one}, 'none')[0]
    assert 'nothing to compare' in generalisation_gap.gap_verdict({0: one}, None)[0]
    rows = generalisation_gap.gap_rows({0: one, 1: two})
    values = {line['mean over the seeds']: line for line in rows}
    assert values['training loss']['arm none'] == '0.700'
    assert values['loss, validation less training']['arm direct'] == '0.300'
    assert values['AP, training less validation']['arm none'] is None
    known = dict(one[0], val={'loss': 0.9, 'AP': 18.5})
    (line,) = [
        row
        for row in generalisation_gap.gap_rows({0: [known]})
        if 'AP, ' in row['mean over the seeds']
    ]
    assert line['arm none'] == '1.5'
    assert generalisation_gap.gap_difference_rows({0: one}, None) == []


def test_figures_say_the_numbers():
    values = {0: [row('none', 0.8, 0.9, (0.1, 0.3)), row('direct', 0.7, 0.75, (0.1, 0.2))]}
    fig = plots.generalisation(values)
    assert 'arm direct, detection loss: training 0.7, validation 0.75' in fig.alt
    assert 'box AP' not in fig.alt  # nobody has one on validation images
    assert 'arm none 0.200; arm direct 0.150' in plots.flatness(values).alt
    assert not plots.flatness({}).axes and not plots.generalisation({}).axes


SETTINGS = {'images': 4, 'probed': 2, 'directions': 1}


@pytest.fixture
def trained(recipe, tmp_path):
    """A run whose students all have the same weights, and a detector that has them."""
    run = load_run(make_run(tmp_path / 'recipe' / '0'))
    model = build_detector(recipe.model('student'))
    student = run.path / 'detectors' / 'student' / 'model.pth'
    student.parent.mkdir(exist_ok=True)
    for path in (student, *(run.stage_dirs(arm['name'])[-1] / 'student.pth' for arm in run.arms)):
        torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
    return run, model


def test_what_is_kept_is_not_measured_again(recipe, trained):
    (run, model), few = trained, SETTINGS
    rows = generalisation.measure_run(recipe, run, **few)
    assert [row['name'] for row in rows] == ['baseline', *(arm['name'] for arm in run.arms)]
    assert rows[0]['train'] == rows[1]['train']  # the same weights
    assert len(rows[0]['flat']) == 1 + len(generalisation.PERTURBATION_SIZES)
    path = run.path / generalisation.MEASUREMENTS_FILE
    measured = json.loads(path.read_text())
    measured['none']['train']['loss'] = measured['direct']['train']['loss'] = 123.0
    path.write_text(json.dumps(measured))
    bias = model.state_dict()['bbox_head.retina_cls.bias']
    bias += 1
    torch.save(
        {'state_dict': model.state_dict(), 'meta': {}},
        run.stage_dirs('direct')[-1] / 'student.pth',
    )
    again = {row['name']: row for row in generalisation.measure_run(recipe, run, **few)}
    assert again['none']['train']['loss'] == 123
    assert again['direct']['train']['loss'] not in (123, rows[0]['train']['loss'])
    other = generalisation.measure_run(recipe, run, **few | {'images': 5})
    assert all(row['train']['loss'] != 123 for row in other)


@pytest.mark.parametrize('jobs', [1, 2])
def test_students_measured_side_by_side_have_the_same_numbers(recipe, trained, jobs):
    run, model = trained
    recipe = load_recipe(recipe.source, recipe.overrides | {'runtime.jobs': jobs})
    rows = generalisation.measure_run(recipe, run, **SETTINGS)
    model = load_detector(recipe, run.stage_dirs('direct')[-1] / 'student.pth')
    loss = generalisation.detection_loss(model, generalisation.training_batches(recipe, 'train', 4))
    assert [row['train']['loss'] for row in rows] == pytest.approx([loss] * len(rows), rel=1e-5)
    assert [row['name'] for row in rows] == ['baseline', *(arm['name'] for arm in run.arms)]


def test_a_problem_in_a_measuring_process_is_its_message(recipe, trained, monkeypatch):
    def fail(recipe, *_):
        raise RecipeError(recipe.source, ['one is wrong', 'two is wrong'])

    monkeypatch.setattr(generalisation, '_box_ap', fail)
    with pytest.raises(RecipeError, match='has 2 problems:\n  - one is wrong\n  - two') as caught:
        generalisation.measure_run(recipe, trained[0], **SETTINGS)
    assert caught.value.problems == ['one is wrong', 'two is wrong']


def test_a_measuring_process_that_is_ended_leaves_what_is_measured(recipe, trained, monkeypatch):
    run, _ = trained
    measure = generalisation._box_ap

    def box_ap(recipe, model, checkpoint, *more):
        if 'direct' in str(checkpoint):
            time.sleep(2)  # until the others are written
            os.kill(os.getpid(), signal.SIGKILL)
        return measure(recipe, model, checkpoint, *more)

    monkeypatch.setattr(generalisation, '_box_ap', box_ap)
    with pytest.raises(MtpdError, match=r'lack of memory. What was measured is kept.*jobs=1'):
        generalisation.measure_run(recipe, run, **SETTINGS)
    measured = json.loads((run.path / generalisation.MEASUREMENTS_FILE).read_text())
    assert 'baseline' in measured and 'direct' not in measured


def test_shares_of_levels():
    rows = [
        {'update': 10, 'stage': 1, 'distillation': 4.0, 'loss_mgd_fpn_0': 3.0, 'loss_mgd_fpn_1': 1.0},
        {'update': 20, 'stage': 2, 'distillation': 2.0, 'loss_mgd_fpn_0': 0.5, 'loss_mgd_fpn_1': 1.5},
    ]  # fmt: skip
    fig = plots.level_shares(rows)
    assert 'level 0 from 75 to 25 %, level 1 from 25 to 75 %' in fig.alt
    assert DISTILLATION_LOSS.fullmatch('loss_mgd_fpn_3')[1] == '3'
    assert not plots.level_shares([{'update': 1, 'distillation': None}]).axes


def test_the_pareto_front_by_hand():
    from mtpd.plots.results import pareto_front

    points = [(1, 10), (1, 12), (2, 11), (3, 12), (4, 20), (5, 19)]
    assert pareto_front(points) == [(1, 12), (4, 20)]
