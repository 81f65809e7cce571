"""`mtpd diagnose`: what makes a student worse is measured, and each provoked fault is caught."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import json
import math
import re
from pathlib import Path

import pytest
import torch
from mmcv import ConfigDict
from mmcv.parallel import collate
from mmdet.models import build_detector

from helpers.tiny_training import MINI
from mtpd.config.recipe import load_recipe
from mtpd.distill.distiller import Distiller
from mtpd.engine.distill_config import distill_cfg
from mtpd.engine.evaluation import evaluate
from mtpd.pipeline import doctor
from mtpd.preflight import diagnosis, trial
from mtpd.runtime import checkpoints
from mtpd.utils.files import file_sha256, write_json
from mtpd.utils.paths import ROOT

SETTINGS = {
    'schedule.batch_size': 2,
    'runtime.workers': 0,
    'runtime.threads': 1,
    'teachers.rx101.checkpoint': None,  # not trained: half the work
    'student.checkpoint': None,  # nor is the student
    'student.config': 'configs/_base_/models/pocket_retinanet.py',
}
R101 = ROOT / 'configs/mini/teachers/r101/model.pth'


def tiny_recipe(**options):
    return load_recipe(
        MINI, SETTINGS | {key.replace('__', '.'): value for key, value in options.items()}
    )


def diagnosed(tmp_path, **options):
    return diagnosis.diagnose_recipe(tiny_recipe(**options), tmp_path / 'run')


def of_subject(result, subject):
    (finding,) = [item for item in result.findings if item.subject == subject]
    return finding


@pytest.fixture
def teacher():
    """The shipped teacher's checkpoint, to be spoilt."""
    return checkpoints.load_checkpoint(R101)


@pytest.fixture
def put_teacher(tmp_path):
    def put(checkpoint: dict) -> str:
        torch.save(checkpoint, tmp_path / 'teacher.pth')
        return str(tmp_path / 'teacher.pth')

    return put


@pytest.mark.long
def test_the_shipped_recipe_gives_no_finding(tmp_path):
    result = diagnosed(tmp_path)
    assert result.findings == []
    assert 'teacher r101: AP 40.5, as measured before' in result.measured
    assert 'teacher rx101: not measured: it is not trained yet' in result.unmeasured


# The balance of distillation and detection.


def hand_measured(recipe, model, folder) -> list[dict]:
    """Losses and, by `backward`, gradients of the batches that `measure_balance` takes."""
    data = trial.example_images(recipe, folder, 2, 6, masks=False)
    batches = list(zip(range(4), trial.example_batches(data, 2), strict=False))[1:]
    rows = []
    for number, images in batches:
        diagnosis.seed_all(recipe.seed, number - 1, 0, diagnosis.MODEL_DRAWS)
        batch = collate([data[index] for index in images], 2)
        batch = {key: value.data[0] for key, value in batch.items()}
        state = torch.get_rng_state()
        row = {}
        for kind in ('distillation', 'detection'):
            torch.set_rng_state(state)
            model.zero_grad()
            losses = {
                key: sum(value) if isinstance(value, list) else value
                for key, value in model.forward_train(**batch).items()
                if 'loss' in key
            }
            chosen = [v for k, v in losses.items() if ('mgd' in k) == (kind == 'distillation')]
            sum(chosen).backward()
            row[kind] = float(sum(chosen).detach())
            for part in ('neck', 'backbone'):
                grads = [p.grad for p in getattr(model.student, part).parameters()]
                flat = torch.cat([g.flatten() for g in grads if g is not None])
                row[kind, part] = float(flat.norm())
        rows.append(row)
    return rows


def distiller(recipe, teacher=R101):
    torch.manual_seed(5)
    student, model = recipe.model('student'), recipe.model('r101')
    cfg = distill_cfg(recipe, student, model)
    return Distiller(student, model, cfg, teacher_checkpoint=str(teacher))


def small(recipe, tmp_path):
    scenes = {'data.scenes.train': 8, 'data.scenes.val': 2, 'data.cache': str(tmp_path / 'data')}
    return load_recipe(recipe, scenes)


@pytest.mark.long
def test_losses_and_gradients_are_those_of_backward(tmp_path):
    recipe = small(tiny_recipe(), tmp_path)
    balance = diagnosis.measure_balance(recipe, distiller(recipe).eval(), 'r101', 'cpu', tmp_path)
    rows = hand_measured(recipe, distiller(recipe).train(), tmp_path)
    mean = {key: sum(row[key] for row in rows) / 3 for key in rows[0]}
    assert balance.detection == pytest.approx(mean['detection'], rel=1e-4)
    assert sum(balance.levels.values()) == pytest.approx(mean['distillation'], rel=1e-4)
    for part in ('neck', 'backbone'):
        expected = mean['distillation', part], mean['detection', part]
        assert getattr(balance, part) == pytest.approx(expected, rel=1e-3)
    assert balance.levels.keys() == balance.variation.keys() == {0, 1, 2}


@pytest.mark.long
@pytest.mark.parametrize(('alpha', 'low', 'high'), [(2e-3, 20, 1000), (2e-8, 1e-4, 0.02)])
def test_an_alpha_far_off_is_named_with_the_one_that_gives_1(tmp_path, alpha, low, high):
    """100 times too large, 1000 times too small. The student is untrained, so the losses are judged."""
    result = diagnosed(tmp_path, distill__settings__mgd__alpha=alpha)
    finding = of_subject(result, 'student taught by r101')
    assert finding.severity == 'warning' and finding.usual == '0.1 to 10'
    ratio = float(re.search(r'is (\S+) times the detection loss', finding.measured)[1])
    assert low < ratio < high
    named = float(re.search(r'distill\.settings\.mgd\.alpha=(\S+):', finding.change)[1])
    assert named == pytest.approx(alpha / ratio, rel=0.1)
    result = diagnosed(tmp_path, distill__settings__mgd__alpha=named)
    assert result.findings == []
    (line,) = [line for line in result.measured if 'taught' in line]
    assert float(re.search(r'is (\S+) times', line)[1]) == pytest.approx(1, abs=0.15)


def test_of_a_trained_student_the_gradient_in_the_neck_is_judged():
    recipe = tiny_recipe(distill__method='fgd')
    balance = diagnosis.Balance(
        1.2, {0: 400.0, 1: 34.0}, (50.0, 0.5), (3.0, 2.0), {0: 0.9, 1: 0.9}, 0.03
    )
    (finding,) = diagnosis.balance_findings(
        recipe, 'a stage', 'r101', balance, 'at its start', 'gradients in the neck'
    )
    assert finding.measured == (
        'at its start, the distillation loss is 360 times the detection loss (430 against 1.2), its gradient 100 times in the '
        'neck and 1.5 times in the backbone'
    )
    # FGD's four weights together, a hundredth each.
    assert finding.change == (
        'Set --cfg-options distill.settings.fgd.alpha=1e-05 distill.settings.fgd.beta=5e-06 '
        'distill.settings.fgd.gamma=5e-06 distill.settings.fgd.relation=5e-08: the gradients in the neck are then equal.'
    )
    assert balance.level_text == 'losses by level: level 0 330, level 1 28'
    usual = balance._replace(neck=(0.2, 0.5))
    assert not diagnosis.balance_findings(recipe, '', 'r101', usual, '', 'gradients in the neck')


@pytest.mark.parametrize(
    ('method', 'names'),
    [
        ('mgd', ['alpha']),
        ('cwd', ['weight']),
        ('pkd', ['weight']),
        ('mse', ['weight']),
        ('fgd', ['alpha', 'beta', 'gamma', 'relation']),
    ],
)
def test_a_loss_is_proportional_to_its_scale_settings(method, names):
    from mtpd.distill.losses import build_distill_loss

    recipe = tiny_recipe()
    settings = recipe.cfg.distill.settings[method].to_dict()
    settings.pop('levels', None)
    assert list(diagnosis.method_weights(settings)) == names

    def value(factor):
        scaled = settings | {name: factor * settings[name] for name in names}
        torch.manual_seed(1)
        loss = build_distill_loss(dict(scaled, student_channels=4, teacher_channels=4))
        features = torch.randn(2, 2, 4, 8, 8)
        metas = [dict(pad_shape=(64, 64, 3))] * 2
        boxes = [torch.tensor([[4.0, 4, 30, 40]])] * 2
        return loss(*features, gt_bboxes=boxes, img_metas=metas).item()

    assert value(7) == pytest.approx(7 * value(1), rel=1e-5)


@pytest.mark.long
def test_a_loss_that_would_end_the_training_is_an_error_for_doctor(tmp_path):
    recipe = tiny_recipe(distill__settings__mgd__alpha=1e20)
    checks = list(doctor.check_findings(recipe, tmp_path / 'run'))
    assert {check.state for check in checks} == {'fail'}
    assert 'the distillation loss is' in checks[0].found and 'mgd.alpha=' in checks[0].fix


# Teachers.


@pytest.mark.long
def test_an_untrained_teacher(tmp_path, put_teacher):
    recipe = tiny_recipe()
    model = build_detector(ConfigDict(recipe.model('r101')))
    model.init_weights()
    path = put_teacher({'state_dict': model.state_dict(), 'meta': {}})
    result = diagnosed(tmp_path, teachers__r101__checkpoint=path)
    assert len(result.findings) == 1  # and none about alpha
    finding = of_subject(result, 'teacher r101')
    assert (
        finding.measured == 'AP is 0.0 on 32 images' and 'train the teacher here' in finding.change
    )


def test_a_teacher_of_another_normalisation_is_a_finding_beside_others(
    tmp_path, teacher, put_teacher
):
    """Two errors and a warning: none hides another."""
    caffe = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
    teacher['meta']['config'] = f'steps = [{ {"type": "Normalize"} | caffe }]'
    del teacher['state_dict']['neck.fpn_convs.0.conv.weight']
    options = dict(teachers__r101__checkpoint=put_teacher(teacher), distill__teacher_mode='train')
    result = diagnosed(tmp_path, **options)
    assert [item.severity for item in result.findings] == ['error', 'error', 'warning']
    partial, other_norm, mode = result.findings
    assert 'lacks for example neck.fpn_convs.0.conv.weight' in partial.measured
    assert 'the recipe makes images with mean [123.675,116.28,103.53]' in other_norm.measured
    assert other_norm.usual == (
        'as teacher.pth says, mean [103.53,116.28,123.675], std [1,1,1], to_rgb False'
    )
    assert 'image.to_rgb=False' in other_norm.change
    assert mode.subject == 'distill.teacher_mode' and mode.usual == "'eval'"


@pytest.mark.long
def test_a_teacher_whose_images_are_made_in_another_way(tmp_path):
    """Its checkpoint does not say how; its AP is measured, and not read from a file."""
    options = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
    result = diagnosed(
        tmp_path, **{f'teachers__r101__image__{key}': value for key, value in options.items()}
    )
    finding = of_subject(result, 'teacher r101')
    assert 'and was 40.5 on images made in another way' in finding.measured
    assert 'teachers.r101.image (mean, std, to_rgb, scale)' in finding.change
    assert not any('as measured before' in line for line in result.measured if 'r101' in line)


def test_a_half_loaded_teacher(tmp_path, teacher, put_teacher):
    state = teacher['state_dict']
    parts = [key for key in state if key.startswith(('backbone.', 'neck.'))]
    weights = [key for key in parts if not key.endswith('num_batches_tracked')]
    for key in weights[::2]:
        del state[key]
    result = diagnosed(tmp_path, teachers__r101__checkpoint=put_teacher(teacher))
    finding = of_subject(result, 'teacher r101')
    total = len(weights)
    assert finding.severity == 'error' and finding.usual == f'{total} of {total}'
    assert (
        f'has {total - len(weights[::2])} of {total} of the weights of its backbone'
        in finding.measured
    )
    assert 'teacher r101: not measured: its checkpoint has errors' in result.unmeasured


def test_a_shuffled_class_order(tmp_path, teacher, put_teacher):
    teacher['meta']['CLASSES'] = tuple('1023456789')
    result = diagnosed(tmp_path, teachers__r101__checkpoint=put_teacher(teacher))
    finding = of_subject(result, 'teacher r101')
    assert finding.severity == 'error'
    assert (
        "its class 0 is '1', the dataset's '0' (the same classes in another order)"
        in finding.measured
    )


@pytest.mark.long
def test_a_shuffled_class_order_that_the_checkpoint_does_not_state(tmp_path, teacher, put_teacher):
    """The head's outputs one place further: objects are seen, and named wrong."""
    for key in ('bbox_head.retina_cls.weight', 'bbox_head.retina_cls.bias'):
        value = teacher['state_dict'][key]
        by_anchor = value.reshape(2, 10, *value.shape[1:])
        teacher['state_dict'][key] = by_anchor.roll(1, dims=1).reshape(value.shape)
    teacher['meta'] = {}
    result = diagnosed(tmp_path, teachers__r101__checkpoint=put_teacher(teacher))
    finding = of_subject(result, 'teacher r101')
    assert 'in another order' in finding.change
    ap, any_class = map(float, re.findall(r'(\d+\.\d)', finding.measured))
    assert ap < 5 and any_class > 20


@pytest.mark.long
def test_features_that_hardly_vary(tmp_path, teacher, put_teacher):
    """The output convolutions give their biases, but for level 1."""
    for level in (0, 2):
        teacher['state_dict'][f'neck.fpn_convs.{level}.conv.weight'] *= 0
    recipe = small(tiny_recipe(), tmp_path)
    model = distiller(recipe, put_teacher(teacher))
    balance = diagnosis.measure_balance(recipe, model, 'r101', 'cpu', tmp_path)
    assert balance.variation[0] < 1e-9 and balance.variation[2] < 1e-9
    assert balance.variation[1] > 0.5
    findings = diagnosis.balance_findings(recipe, 'a stage', 'r101', balance, '', 'losses')
    (finding,) = [item for item in findings if item.subject == 'teacher r101']
    assert 'at level 0' in finding.measured and 'at level 2' in finding.measured
    assert 'level 1' not in finding.measured and finding.usual == '0.1 to 1'


def test_the_share_that_varies_by_hand():
    """A channel 1, 1, 1, 1 and a channel 0, 2, 0, 2: mean square 1.5, variances 0 and 1."""
    feature = torch.tensor([[[[1.0, 1], [1, 1]], [[0.0, 2], [0, 2]]]])
    assert diagnosis._variation(feature) == pytest.approx(0.5 / 1.5)
    assert diagnosis._variation(torch.zeros(1, 2, 2, 2)) == 0


@pytest.mark.parametrize(
    ('text', 'factor'),
    [("dict(type='Resize', img_scale=(64, 64))", 2), ("{'img_scale': [(64, 48), (96, 72)]}", 1.5)],
)
def test_images_larger_than_those_of_the_teachers_training(tmp_path, teacher, text, factor):
    """Area 128 x 128 against 64 x 64, and 96 x 72: sides 2 and 1.54 times."""
    teacher['meta']['config'] = f'pipeline = [{text}]'
    finding = diagnosis._size_finding(
        tiny_recipe(), 'r101', 'teacher r101', Path('t.pth'), teacher['meta']
    )
    assert f'the images are {factor} times as large' in finding.measured
    teacher['meta']['config'] = 'pipeline = [dict(img_scale=[(64, 64), (256, 256)])]'
    arguments = ('r101', 'teacher r101', Path('t.pth'), teacher['meta'])
    assert diagnosis._size_finding(tiny_recipe(), *arguments) is None  # between both


# The learning rate.


@pytest.mark.parametrize(('rate', 'expected'), [(2e-3, None), (2e-2, 'arm_lr=0.002')])
def test_a_learning_rate_times_ten(rate, expected):
    """AdamW's first update changes each weight by the rate: by hand rate * sqrt(n) / |w|."""
    recipe = tiny_recipe(schedule__lr__max_lr=rate)
    model = build_detector(ConfigDict(recipe.model('student')))
    weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.dim() > 1]).double()
    update = diagnosis._update_share(recipe, model, torch.zeros(()))
    expected_share = rate * math.sqrt(len(weights)) / float(weights.norm())
    assert update == pytest.approx(expected_share, rel=1e-6)
    finding = diagnosis.rate_finding(recipe, update)
    assert (finding is None) if expected is None else (expected in finding.change)


def test_sgd_changes_weights_by_the_clipped_gradient():
    optimizer = dict(_delete_=True, type='SGD', lr=0.02, momentum=0.9)
    recipe = tiny_recipe(
        schedule__optimizer=optimizer,
        schedule__lr=dict(_delete_=True, policy='step', step=[0.5]),
        schedule__grad_clip=dict(max_norm=3.0),
    )
    student = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.constant_(student.weight, 1.0)  # |w| = 2
    loss = 4 * student.weight.sum()  # |g| = 8, clipped to 3
    share = diagnosis._update_share(recipe, student, loss)
    assert share == pytest.approx(0.02 * 3 / 0.1 / 2)


@pytest.mark.parametrize(
    ('batch', 'rate', 'found_one'),
    [(16, 0.01, False), (4, 0.0025, False), (16, 0.1, True), (2, 0.01, True)],
)
def test_a_learning_rate_that_was_not_scaled(batch, rate, found_one):
    """mmdet's config has 0.01 for 16 images."""
    recipe = load_recipe(
        'configs/paper/retinanet_r50__r101_rx101.py',
        {'schedule.batch_size': batch, 'schedule.lr_batch_size': batch, 'schedule.optimizer.lr': rate},
    )  # fmt: skip
    finding = diagnosis._rate_finding(recipe)
    assert (finding is not None) == found_one
    if finding:
        assert 'schedule.lr_batch_size=16 schedule.optimizer.lr=0.01' in finding.change


@pytest.mark.long
def test_a_teacher_of_other_images_is_measured_on_its_own(tmp_path):
    """Larger and normalised its way: its AP and the stage are measured, and nothing is refused."""
    result = diagnosed(
        tmp_path,
        teachers__r101__image__scale=192,
        teachers__r101__image__mean=[103.53, 116.28, 123.675],
        teachers__r101__image__std=[1.0, 1.0, 1.0],
        teachers__r101__image__to_rgb=False,
    )
    assert [line.partition(':')[0] for line in result.unmeasured] == ['teacher rx101']
    assert any(line.startswith('student taught by r101, ') for line in result.measured)
    assert not [item for item in result.findings if item.severity == 'error']


@pytest.mark.long
def test_a_teacher_of_features_alone_has_no_ap(tmp_path):
    result = diagnosed(tmp_path, teachers__r101__features_only=True, distill__start='random')
    assert not any('teacher r101: AP' in line for line in result.measured)
    assert any(line.startswith('student taught by r101, ') for line in result.measured)


def test_ap_is_read_where_the_checkpoint_is_the_one_that_was_measured(tmp_path):
    """Of the run first, then beside the file; a smoke run's is not read, nor that of other annotations."""
    few = {'data.scenes.train': 4, 'data.scenes.val': 2, 'data.cache': str(tmp_path)}
    recipe, path = load_recipe(MINI, SETTINGS | few), tmp_path / 'r101.pth'
    path.write_bytes(b'weights')
    of_run, beside = tmp_path / 'run/detectors/r101/metrics.json', tmp_path / 'metrics.json'
    about = {'sha256': file_sha256(path)}
    write_json(of_run, {'bbox_mAP': 0.6, **about})
    write_json(beside, {'bbox_mAP': 0.4, **about})

    def known():
        return diagnosis.known_ap(recipe, tmp_path / 'run', 'r101', path)

    assert known() == (60, True)
    write_json(of_run, {'bbox_mAP': 0.6, **about, 'annotations_sha256': 'of others'})
    assert known() == (40, True)
    write_json(of_run, {'bbox_mAP': 0.5, **about, 'annotations_sha256': file_sha256(recipe.split('val')[0])})  # fmt: skip
    assert known() == (50, True)
    write_json(tmp_path / 'run' / 'run.json', {'smoke': True})
    assert known() == (40, True)
    path.write_bytes(b'others')
    assert known() == (None, True)


def test_ap_is_of_the_images_that_its_file_states(tmp_path):
    """By what `evaluate` writes, not by what the command line overrides."""
    few = {'data.scenes.train': 4, 'data.scenes.val': 2, 'data.cache': str(tmp_path)}
    recipe = load_recipe(MINI, SETTINGS | few)
    evaluate(recipe, R101, detector='r101', out=tmp_path / 'run/detectors/r101')
    metrics = json.loads((tmp_path / 'run/detectors/r101/metrics.json').read_text())
    assert metrics['image']['scale'] == [128, 128] and metrics['image']['to_rgb'] is True
    assert metrics['image']['mean'] == [123.675, 116.28, 103.53]

    def same_images(**options):
        changed = load_recipe(MINI, SETTINGS | few | options)
        return diagnosis.known_ap(changed, tmp_path / 'run', 'r101', R101)[1]

    assert same_images() and same_images(
        **{'image.flip': 0.5, 'image.mean': [123.675, 116.28, 103.53]}
    )
    assert not same_images(**{'image.scale': 96})
    assert not same_images(**{'teachers.r101.image.to_rgb': False})
    assert same_images(**{'teachers.rx101.image.to_rgb': False})
