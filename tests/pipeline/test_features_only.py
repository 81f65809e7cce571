"""A teacher used for its features alone: other classes, no head, no AP."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import pytest
import torch

from helpers.tiny import detector
from helpers.tiny_training import MINI, SMALL
from mtpd import load_recipe
from mtpd.analysis.run import load_run
from mtpd.engine.evaluation import model_cost
from mtpd.engine.features import load_detectors
from mtpd.errors import RecipeError
from mtpd.pipeline.detectors import prepare_detector
from mtpd.pipeline.run import recipe_steps
from mtpd.pipeline.run_dir import run_info
from mtpd.pipeline.stages import train_stage
from mtpd.pipeline.teacher_order import adaptation_costs, image_features
from mtpd.preflight import trial
from mtpd.preflight.checks import check_before_training, recipe_problems
from mtpd.preflight.forecast import checkpoint_sizes
from mtpd.report.tables import detector_rows, markdown_table
from mtpd.utils.files import read_json, read_log, write_json

COCO_CLASSES = tuple(f'thing {k}' for k in range(80))
# Of the levels of the demo's student, with boxes and masks.
MASK_RCNN = {
    'teachers.r101.config': 'configs/_base_/models/pocket_mask_rcnn.py',
    'teachers.r101.model': {'backbone': {'depth': 18}},
    'distill.start': 'random',
    'student.model.backbone.init_cfg': None,
    'arms.direct.teachers': ['r101'],
}
ALONE = {'teachers.r101.features_only': True}


@pytest.fixture(scope='module')
def root(tmp_path_factory, tiny_coco):
    return tiny_coco(tmp_path_factory.mktemp('coco'), classes=('cat', 'dog', 'bird'))


@pytest.fixture(scope='module')
def weights(tmp_path_factory, tiny_coco):
    """A checkpoint of Mask R-CNN with 80 classes, which the dataset has none of."""
    folder = tmp_path_factory.mktemp('weights')
    data = tiny_coco(folder / 'coco', COCO_CLASSES)
    many = load_recipe(MINI, SMALL | MASK_RCNN | {'data.root': str(data)})
    model = detector(many.model('r101'), 0)
    meta = {'CLASSES': COCO_CLASSES}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, folder / 'mask_rcnn.pth')
    return folder / 'mask_rcnn.pth'


@pytest.fixture(scope='module')
def recipe(root, weights):
    options = {'data.root': str(root), 'teachers.r101.checkpoint': str(weights)}
    return load_recipe(MINI, SMALL | MASK_RCNN | ALONE | options)


def test_other_classes_are_refused_with_the_key_that_lets_them(recipe):
    used = load_recipe(recipe, {'teachers.r101.features_only': False})
    (problem,), _ = recipe_problems(used, ['student', 'r101'], ['r101'])
    assert 'it has 80 classes' in problem
    assert 'use its features only, without AP: --cfg-options teachers.r101.features_only=True' in problem  # fmt: skip
    check_before_training(recipe, ['student', 'r101'], ['r101'])
    # Inheriting needs the head, so that the key is no advice there.
    used.cfg.distill.start = 'inherit'
    problems, _ = recipe_problems(used, ['student', 'r101'], ['r101'])
    assert not any('features_only' in problem for problem in problems)


def test_its_backbone_and_neck_still_have_to_fit(recipe, weights, tmp_path):
    state = torch.load(weights)
    del state['state_dict']['neck.fpn_convs.1.conv.weight']
    torch.save(state, tmp_path / 'partial.pth')
    broken = load_recipe(recipe, {'teachers.r101.checkpoint': str(tmp_path / 'partial.pth')})
    with pytest.raises(RecipeError, match=r'neck\.fpn_convs\.1\.conv\.weight'):
        check_before_training(broken, ['student', 'r101'], ['r101'])


def test_it_needs_no_head(recipe, weights, tmp_path):
    config = tmp_path / 'headless.py'
    model = recipe.model('r101')
    config.write_text(
        f'model = dict(backbone={model.backbone.to_dict()!r}, neck={model.neck.to_dict()!r})'
    )
    headless = load_recipe(recipe, {'teachers.r101.config': str(config)})
    check_before_training(headless, ['student', 'r101'], ['r101'])
    loaded = [load_detectors(r, {'t': ('r101', weights)})['t'] for r in (recipe, headless)]
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        levels = [model.extract_feat(images) for model in loaded]
    assert len(levels[0]) == len(levels[1]) == 3
    assert all(torch.equal(a, b) for a, b in zip(*levels, strict=True))


def test_its_size_is_that_of_what_is_used(recipe, weights):
    whole = load_recipe(recipe, {'teachers.r101.features_only': False})
    cost = model_cost(recipe, 'r101', images=1)
    state = torch.load(weights)['state_dict']
    parameters = sum(
        value.numel()
        for key, value in state.items()
        if key.startswith(('backbone.', 'neck.'))
        and not key.endswith(('running_mean', 'running_var', 'num_batches_tracked'))
    )
    assert cost['parameters'] == parameters
    assert 0 < cost['gflops'] < model_cost(whole, 'r101', images=1)['gflops']
    assert checkpoint_sizes(recipe, 'student', 'r101') == checkpoint_sizes(whole, 'student', 'r101')


def test_no_sequence_is_chosen_by_an_ap_that_it_lacks(recipe, tmp_path):
    with pytest.raises(RecipeError, match=r'teachers\.r101 has features_only and no AP'):
        adaptation_costs(recipe, tmp_path)
    names = [step.notebook for step in recipe_steps(recipe, tmp_path)]
    assert not any('03' in name for name in names) and any('04' in name for name in names)
    with_ap = load_recipe(recipe, {'teachers.r101.features_only': False})
    assert any('03' in step.notebook for step in recipe_steps(with_ap, tmp_path))


def test_its_features_are_looked_at_as_others(recipe, weights):
    models = load_detectors(recipe, {'teacher': ('r101', weights)})
    models['student'] = trial.untrained_detector(recipe, 'student', None).eval()
    (row, *_) = image_features(recipe, models, 2, 0)
    assert row['teacher'].keys() == row['student'].keys() == {8, 16, 32}
    assert [f.shape[1:] for f in row['teacher'].values()] == [(8, 8), (4, 4), (2, 2)]


@pytest.mark.long
def test_a_stage_learns_from_it_and_reports_have_a_dash_for_its_ap(recipe, tmp_path):
    stage = train_stage(recipe, 1, 'direct', tmp_path)
    assert stage['stage']['start'] == 'random' and stage['metrics']['bbox_mAP'] is not None
    rows = read_log(stage['dir'] / 'log.json')
    assert {key for key in rows[-1] if key.startswith('loss_mgd')} == {
        f'loss_mgd_fpn_{level}' for level in range(3)
    }
    teacher = prepare_detector(recipe, 'r101', tmp_path)
    assert 'bbox_mAP' not in teacher['metrics'] and teacher['metrics']['features_only']
    assert read_json(tmp_path / 'detectors/r101/metrics.json') == teacher['metrics']
    write_json(tmp_path / 'run.json', run_info(recipe, run_dir=tmp_path))
    (row,) = [row for row in load_run(tmp_path).results() if row['name'] == 'r101']
    assert row['AP'] is None and row['parameters'] == teacher['model']['parameters']
    one = load_recipe(recipe, {'teachers.rx101.features_only': False})
    del one.cfg.teachers['rx101']
    text = markdown_table(detector_rows(one, tmp_path), 'detectors').data
    (line,) = [line for line in text.splitlines() if 'teacher 1' in line]
    assert '| – |' in line
