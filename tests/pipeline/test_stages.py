"""Training runs on four tiny images: baseline, stages, resuming, and what they leave on disk."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from helpers.tiny_training import MINI, SMALL
from mtpd import load_recipe
from mtpd.analysis.run import split_loss
from mtpd.engine.distill_config import distill_cfg
from mtpd.engine.evaluation import COCO_NUMBERS, evaluate, model_cost
from mtpd.engine.loop import training_config
from mtpd.errors import MtpdError, RecipeError
from mtpd.pipeline.detectors import prepare_detector, train_detector_run
from mtpd.pipeline.run_dir import claim_run_dir
from mtpd.pipeline.stages import train_stage
from mtpd.runtime import checkpoints
from mtpd.utils.files import file_sha256, read_json, write_json


@pytest.fixture(scope='module')
def recipe(tmp_path_factory, tiny_coco):
    root = tiny_coco(tmp_path_factory.mktemp('coco'))
    arms = {'arms.direct.teachers': ['r101'], 'arms.progressive.teachers': ['r101', 'r101']}
    return load_recipe(MINI, SMALL | arms | {'data.root': str(root)})


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('run')


@pytest.fixture(scope='module')
def progressive(recipe, run_dir):
    """Both stages; the second call makes the baseline, the teacher and stage 1 on its way."""
    return train_stage(recipe, 2, 'progressive', run_dir)


def rows(folder):
    return [json.loads(line) for line in (folder / 'log.json').read_text().splitlines()]


def test_a_stage_makes_what_comes_before_it_and_leaves_its_files(recipe, run_dir, progressive):
    for name in ('student', 'r101'):
        assert (run_dir / 'detectors' / name / 'model.pth').is_file()
    for folder in ('1_r101', '2_r101'):
        stage = run_dir / 'stages' / 'progressive' / folder
        for file in ('latest.pth', 'student.pth', 'metrics.json', 'log.json', 'stage.json'):
            assert (stage / file).is_file(), file
    assert progressive['stage']['start'] == 'previous stage'
    first = json.loads((run_dir / 'stages/progressive/1_r101/stage.json').read_text())
    assert (first['start'], first['updates'], first['teacher']) == ('baseline', 2, 'r101')


@pytest.mark.long
def test_the_lines_of_a_training_have_a_heading(recipe, run_dir, progressive, capsys):
    arms = {'arms.more.teachers': ['r101'], 'arms.blank.teachers': [None]}
    for arm, company in (
        ('more', f'with {recipe.cfg.teachers.r101.label}'),
        ('blank', 'without a'),
    ):
        capsys.readouterr()
        train_stage(load_recipe(recipe, arms), 1, arm, run_dir)
        heading, *lines = capsys.readouterr().out.splitlines()
        assert heading.startswith(f'training {arm}, stage 1 of 1, {company}')
        assert lines[0].startswith('update 2/')


def test_a_stage_that_another_arm_has_trained_is_taken_over(
    recipe, run_dir, progressive, tmp_path, capsys
):
    half, shared = load_recipe(recipe, {'arms.half.teachers': ['r101', None]}), tmp_path / 'shared'
    shutil.copytree(run_dir, shared)
    made = train_stage(half, 2, 'half', shared)
    output = capsys.readouterr().out
    assert 'half, stage 1 of 2' in output and 'the same training as in progressive' in output
    assert 'training half, stage 1' not in output and 'training half, stage 2' in output
    first = shared / 'stages/half/1_r101'
    theirs = shared / 'stages/progressive/1_r101'
    assert sorted(path.name for path in first.iterdir()) == sorted(p.name for p in theirs.iterdir())
    info, wanted = (read_json(folder / 'stage.json') for folder in (first, theirs))
    assert info == wanted | {'arm': 'half', 'same_as': 'progressive'}
    assert made['stage']['start'] == 'previous stage'
    # Trained alone it is the same to the bit.
    alone = tmp_path / 'alone'
    shutil.copytree(run_dir / 'detectors', alone / 'detectors')
    again = torch.load(train_stage(half, 1, 'half', alone)['checkpoint'])['state_dict']
    taken = torch.load(first / 'student.pth')['state_dict']
    assert all(torch.equal(value, again[key]) for key, value in taken.items())


def test_a_stage_of_another_teachers_weights_is_not_taken_over(
    recipe, run_dir, progressive, tmp_path, capsys
):
    half = load_recipe(recipe, {'arms.half.teachers': ['r101', None]})
    shutil.copytree(run_dir, tmp_path / 'run')
    file = tmp_path / 'run/detectors/r101/model.pth'
    checkpoint = torch.load(file)
    checkpoint['state_dict']['neck.fpn_convs.0.conv.weight'] *= 2
    torch.save(checkpoint, file)
    assert 'same_as' not in train_stage(half, 1, 'half', tmp_path / 'run')['stage']
    assert 'training half, stage 1 of 2' in capsys.readouterr().out


def test_adapters_of_a_stage_are_kept_on_demand(recipe, run_dir, progressive, tmp_path):
    """`run_dir` has the same first stage."""
    first = run_dir / 'stages/progressive/1_r101/latest.pth'
    assert progressive['stage']['adapters'] == 'new'
    going_on = load_recipe(recipe, {'distill.keep_adapters': True, 'schedule.arm_lr': 1e-12})
    shutil.copytree(run_dir / 'detectors', tmp_path / 'detectors')
    shutil.copytree(first.parent, tmp_path / 'stages/progressive/1_r101')
    made = train_stage(going_on, 2, 'progressive', tmp_path)
    assert made['stage']['adapters'] == 'kept'
    # With next to no learning rate the weights are still those of the first stage, adapters and student.
    before, after = (
        checkpoints.load_checkpoint(path)['state_dict']
        for path in (first, tmp_path / 'stages/progressive/2_r101/latest.pth')
    )
    trained = [key for key in before if key.endswith('.weight') and 'bn' not in key]
    assert any('distill_losses' in key for key in trained)
    assert all(torch.allclose(before[key], after[key], atol=1e-9) for key in trained)
    new = checkpoints.load_checkpoint(run_dir / 'stages/progressive/2_r101/latest.pth')
    key = next(key for key in trained if 'distill_losses' in key)
    assert not torch.allclose(before[key], new['state_dict'][key], atol=1e-2)


def test_the_log_has_every_loss_term(recipe, run_dir, progressive):
    log = rows(run_dir / 'stages/progressive/1_r101')
    assert [row['update'] for row in log] == [2]
    names = {'loss_cls', 'loss_bbox'} | {f'loss_mgd_fpn_{level}' for level in range(3)}
    assert names <= set(log[0])
    assert log[0]['loss'] == pytest.approx(sum(log[0][name] for name in names), rel=1e-4)
    # The interval 2 does not divide 3 updates: the rest is logged too.
    assert [row['update'] for row in rows(run_dir / 'detectors/student')] == [2, 3]


def test_the_checkpoint_has_the_originals_layout_and_no_teacher(run_dir, progressive):
    latest = torch.load(run_dir / 'stages/progressive/2_r101/latest.pth', weights_only=True)
    assert {key.split('.')[0] for key in latest['state_dict']} == {'student', 'distill_losses'}
    assert latest['meta']['iter'] == 2 and 'optimizer' in latest
    student = torch.load(progressive['checkpoint'], weights_only=True)
    assert set(student['state_dict']) == {
        key.removeprefix('student.') for key in latest['state_dict'] if key.startswith('student.')
    }
    assert tuple(student['meta']['CLASSES']) == ('cat', 'dog')


def test_a_student_says_by_which_stages_it_was_made(recipe, run_dir, progressive):
    """Of each stage so far; also in what the resumable checkpoint is exported to later."""
    teacher = file_sha256(run_dir / 'detectors/r101/model.pth')
    common = {'recipe': recipe.name, 'arm': 'progressive', 'teacher': 'r101', 'updates': 2}
    common |= {'teacher_sha256': teacher, 'method': 'mgd'}
    wanted = [
        common | {'stage': 1, 'start': 'baseline'},
        common | {'stage': 2, 'start': 'previous stage'},
    ]
    folder = run_dir / 'stages/progressive'
    meta = checkpoints.load_checkpoint(progressive['checkpoint'])['meta']
    assert meta['stages'] == wanted and (meta['arm'], meta['stage']) == ('progressive', 2)
    first = checkpoints.load_checkpoint(folder / '1_r101/student.pth')['meta']
    assert first['stages'] == wanted[:1]
    assert (
        'stages' not in checkpoints.load_checkpoint(run_dir / 'detectors/student/model.pth')['meta']
    )
    later = checkpoints.publish_student(folder / '2_r101/latest.pth', run_dir / 'later.pth')
    assert checkpoints.load_checkpoint(later)['meta'] == meta
    later.unlink()


def test_a_students_config_is_one_that_mmdet_reads(recipe, progressive, tmp_path):
    from mmcv import Config
    from mmdet.apis import inference_detector, init_detector

    path = tmp_path / 'student.py'
    path.write_text(checkpoints.load_checkpoint(progressive['checkpoint'])['meta']['config'])
    assert Config.fromfile(str(path)).model == recipe.model('student')
    model = init_detector(str(path), str(progressive['checkpoint']), device='cpu')
    assert tuple(model.CLASSES) == ('cat', 'dog')
    image = recipe.split('val')[1] / '000000.png'
    assert len(inference_detector(model, str(image))) == 2


def test_stage_two_starts_from_the_student_of_stage_one(recipe, run_dir, progressive, tmp_path):
    """With a learning rate of next to nothing, the student stays what stage 1 made it."""
    frozen = load_recipe(
        recipe, {'schedule.lr.max_lr': 1e-12, 'schedule.optimizer.weight_decay': 0.0}
    )
    for folder in ('detectors', 'stages/progressive/1_r101'):
        (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder).symlink_to(run_dir / folder)
    second = train_stage(frozen, 2, 'progressive', tmp_path)
    before = torch.load(run_dir / 'stages/progressive/1_r101/student.pth', weights_only=True)
    after = torch.load(second['checkpoint'], weights_only=True)['state_dict']
    baseline = torch.load(run_dir / 'detectors/student/model.pth', weights_only=True)['state_dict']
    key = 'backbone.conv1.weight'
    torch.testing.assert_close(after[key], before['state_dict'][key], atol=1e-6, rtol=0)
    assert not torch.allclose(after[key], baseline[key], atol=1e-6)


def test_what_is_done_is_not_done_again(recipe, run_dir, progressive):
    before = progressive['checkpoint'].stat().st_mtime_ns
    again = train_stage(recipe, 2, 'progressive', run_dir)
    assert again['checkpoint'].stat().st_mtime_ns == before
    assert again['metrics'] == progressive['metrics']


@pytest.mark.long
def test_an_interrupted_training_resumes_at_its_checkpoint(recipe, tmp_path):
    whole = train_detector_run(recipe, 'student', tmp_path / 'whole')
    folder = tmp_path / 'cut' / 'detectors' / 'student'
    short = load_recipe(recipe, {'schedule.baseline': 2})
    train_detector_run(short, 'student', tmp_path / 'cut')
    (folder / 'model.pth').unlink()
    (folder / 'metrics.json').unlink()
    resumed = train_detector_run(recipe, 'student', tmp_path / 'cut')
    assert [row['update'] for row in rows(folder)] == [2, 3]
    assert torch.load(folder / 'latest.pth', weights_only=True)['meta']['iter'] == 3
    assert set(resumed['metrics']) == set(whole['metrics'])


@pytest.mark.long
def test_the_same_seed_gives_the_same_student_and_another_seed_another(recipe, tmp_path):
    made = [
        train_detector_run(load_recipe(recipe, seed=seed), 'student', tmp_path / str(k))
        for k, seed in enumerate((0, 0, 1))
    ]
    weights = [torch.load(m['checkpoint'], weights_only=True)['state_dict'] for m in made]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]['backbone.conv1.weight'], weights[2]['backbone.conv1.weight'])


def test_a_stage_without_a_teacher_trains_the_plain_student_on(recipe, run_dir):
    made = train_stage(recipe, 1, 'none', run_dir)
    latest = torch.load(made['dir'] / 'latest.pth', weights_only=True)['state_dict']
    assert not any(key.startswith(('student.', 'distill')) for key in latest)
    assert made['stage']['updates'] == 4 and made['stage']['teacher'] is None
    assert 'loss_mgd_fpn_0' not in rows(made['dir'])[-1]


def test_inheriting_is_reported_and_needs_no_baseline(recipe, run_dir, progressive, tmp_path):
    teacher = str(run_dir / 'detectors/r101/model.pth')
    plan = load_recipe(
        recipe,
        {
            'distill.start': 'inherit',
            'distill.inherit_allow': ['neck.lateral_convs.*.conv.weight'],
            'teachers.r101.checkpoint': teacher,
        },
    )
    made = train_stage(plan, 1, 'direct', tmp_path)
    assert made['stage']['start'] == 'inherit' and made['stage']['copied'] > 20
    assert set(made['stage']['skipped']) == {
        f'neck.lateral_convs.{level}.conv.weight' for level in range(3)
    }
    assert not (tmp_path / 'detectors' / 'student').exists()
    strict = load_recipe(plan, {'distill.inherit_allow': []})
    with pytest.raises(MtpdError, match=r'lateral_convs\.0\.conv\.weight: other shape'):
        train_stage(strict, 1, 'direct', tmp_path / 'strict')


def test_a_warm_start_takes_what_fits(recipe, run_dir, progressive, tmp_path):
    model = checkpoints.load_checkpoint(run_dir / 'detectors/r101/model.pth')
    warm = load_recipe(recipe, {'student.init': str(run_dir / 'detectors/r101/model.pth')})
    frozen = load_recipe(warm, {'schedule.lr.max_lr': 1e-12, 'schedule.baseline': 1})
    made = train_detector_run(frozen, 'student', tmp_path)
    got = torch.load(made['checkpoint'], weights_only=True)['state_dict']
    key = 'bbox_head.retina_cls.weight'
    torch.testing.assert_close(got[key], model['state_dict'][key], atol=1e-6, rtol=0)
    assert got['backbone.conv1.weight'].shape != model['state_dict']['backbone.conv1.weight'].shape


def test_metrics_have_the_twelve_numbers_and_classes(recipe, run_dir, progressive):
    metrics = json.loads((run_dir / 'stages/progressive/2_r101/metrics.json').read_text())
    for name in COCO_NUMBERS:
        value = metrics[f'bbox_{name}']
        assert value is None or 0 <= value <= 1
    assert metrics['bbox_mAP_l'] is None  # no object of the tiny images is that large
    assert set(metrics['per_class']['bbox']) == {'cat', 'dog'}
    assert metrics['num_images'] == 4
    assert metrics['sha256'] == file_sha256(progressive['checkpoint'])


def test_size_of_a_detector_by_hand(recipe):
    cost = model_cost(recipe, 'student', images=2)
    model = recipe.model('student')
    assert cost['input'] == [64, 64]
    # The stem alone: 7 x 7 x 3 weights for each of 8 channels at 32 x 32 positions.
    assert cost['gflops'] > 7 * 7 * 3 * 8 * 32 * 32 / 1e9
    assert cost['parameters'] > 7 * 7 * 3 * model.backbone.base_channels
    assert cost['ms_per_image'] > 0


def test_distillation_settings_in_the_originals_form(recipe):
    cfg = distill_cfg(recipe, recipe.model('student'), recipe.model('r101'))
    assert [item['student_module'] for item in cfg] == [
        f'neck.fpn_convs.{level}.conv' for level in range(3)
    ]
    method = cfg[1]['methods'][0]
    assert method['name'] == 'loss_mgd_fpn_1' and method['type'] == 'MGD'
    assert method['student_channels'] == method['teacher_channels'] == 64


@pytest.mark.parametrize('method', [*load_recipe(MINI).cfg.distill.settings])
def test_a_method_is_one_override_and_its_losses_count_as_distillation(recipe, method):
    plan = load_recipe(recipe, {'distill.method': method, 'distill.levels': [0, 2, 4]})
    cfg = distill_cfg(plan, plan.model('student'), plan.model('r101'))
    reach = plan.cfg.distill.settings[method].get('levels', [0, 2, 4])  # some stop at level 3
    levels = [k for k in (0, 2, 4) if k in reach]
    assert [item['teacher_module'] for item in cfg] == [f'neck.fpn_convs.{k}.conv' for k in levels]
    names = [item['methods'][0]['name'] for item in cfg]
    assert names == [f'loss_{method}_fpn_{k}' for k in levels]
    row = {'loss_cls': 1.0, 'loss_bbox': 2.0} | dict.fromkeys(names, 0.5)
    assert split_loss(row) == (3.0, 0.5 * len(levels))


def test_a_checkpoint_of_other_classes_is_refused_with_both_numbers(recipe, tmp_path):
    ten = load_recipe(
        MINI,
        {
            'student.config': recipe.cfg.student.config,
            'data.scenes.train': 4,
            'data.scenes.val': 2,
            'data.scenes.size': 64,
            'data.cache': str(tmp_path),
        },
    )
    from mmcv import ConfigDict
    from mmdet.models import build_detector

    path = tmp_path / 'ten.pth'
    checkpoints.save_atomic(
        {'state_dict': build_detector(ConfigDict(ten.model('student'))).state_dict()}, path
    )
    with pytest.raises(MtpdError, match='the model has 2 classes and the file 10'):
        evaluate(recipe, path)


def test_a_missing_teacher_checkpoint_is_named(recipe, tmp_path):
    plan = load_recipe(recipe, {'teachers.r101.checkpoint': str(tmp_path / 'none.pth')})
    with pytest.raises(RecipeError, match=r'none\.pth is missing'):
        prepare_detector(plan, 'r101', tmp_path)


def test_masks_are_not_asked_of_a_box_detector(recipe, run_dir, progressive):
    with pytest.raises(RecipeError, match='predicts no masks'):
        evaluate(recipe, progressive['checkpoint'], ('bbox', 'segm'))


def test_a_gpu_that_is_not_there_is_refused(recipe, tmp_path):
    with pytest.raises(RecipeError, match='torch sees no GPU'):
        train_detector_run(load_recipe(recipe, {'runtime.device': 'cuda'}), 'student', tmp_path)


@pytest.mark.gpu
def test_a_stage_trains_on_the_gpu(recipe, tmp_path):
    made = train_stage(load_recipe(recipe, {'runtime.device': 'cuda'}), 1, 'direct', tmp_path)
    assert made['metrics']['num_images'] == 4


def test_the_learning_rate_follows_batch_and_length(tmp_path, capsys):
    options = {'schedule.batch_size': 4, 'teachers.r101.checkpoint': None, 'data.root': '.'}
    coco = load_recipe('configs/coco/retinanet_r50__r101.py', options)
    for updates, steps in ((12 * 7330, [58640, 80630]), (24, [16, 22])):
        cfg = training_config(coco, {}, {}, tmp_path, updates, 0, 'cpu')
        assert cfg.lr_config.step == steps
        assert cfg.optimizer.lr == pytest.approx(0.01 * 4 / 16)
    assert 'learning rate 0.0025' in capsys.readouterr().out
    assert coco.cfg.schedule.optimizer.lr == 0.01


@pytest.mark.long
def test_pretrained_weights_out_of_reach(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    origin = dict(type='Pretrained', checkpoint='http://127.0.0.1:9/resnet18.pth')
    plan = load_recipe(recipe, {'student.model.backbone.init_cfg': origin})
    fix = r'127\.0\.0\.1:9/resnet18\.pth .* --cfg-options student\.model\.backbone\.init_cfg=None'
    with pytest.raises(MtpdError, match=fix):
        train_detector_run(plan, 'student', tmp_path)


@pytest.mark.parametrize('updates', [1, 2, 3, 10, 19, 20, 500])
def test_the_learning_rate_rises_and_falls_in_any_number_of_updates(recipe, updates, tmp_path):
    """mmcv's own hook, for each update: never a division by zero, and its peak is the recipe's."""
    from mmcv.runner.hooks import OneCycleLrUpdaterHook

    cfg = training_config(recipe, {}, {}, tmp_path, updates, 0, 'cpu').lr_config.to_dict()
    assert cfg.pop('policy') == 'OneCycle'
    hook = OneCycleLrUpdaterHook(**cfg)
    runner = SimpleNamespace(
        max_iters=updates, iter=0, optimizer=SimpleNamespace(param_groups=[{}])
    )
    hook.lr_phases.append([hook.pct_start * updates - 1, 1, hook.div_factor])
    hook.lr_phases.append([updates - 1, hook.div_factor, 1 / hook.final_div_factor])
    rates = []
    for runner.iter in range(updates):
        rates.append(hook.get_lr(runner, cfg['max_lr'] / hook.div_factor))
    assert all(0 <= rate <= cfg['max_lr'] * 1.001 for rate in rates)
    if updates > 2:
        assert max(rates) == pytest.approx(cfg['max_lr'], rel=0.1)


POOL = dict.fromkeys(('teachers.rx101.checkpoint', 'teachers.rx101.init'))
POOL |= {'teachers.rx101.updates': 1, 'order.images': 4}


@pytest.mark.long
def test_an_arm_is_trained_without_the_choice_that_another_arm_waits_for(recipe, tmp_path):
    """A pool of two teachers, of which `direct` needs one; nothing is chosen, so nothing else is trained."""
    auto = {'arms.auto.label': 'chosen', 'arms.auto.teachers': 'auto'}
    pool = load_recipe(recipe, POOL | auto)
    made = train_stage(pool, 1, 'direct', tmp_path)
    assert made['stage']['teacher'] == 'r101'
    assert sorted(path.name for path in (tmp_path / 'detectors').iterdir()) == ['r101', 'student']
    assert [path.name for path in (tmp_path / 'stages').iterdir()] == ['direct']
    assert not (tmp_path / 'order').exists()
    write_json(tmp_path / 'order' / 'sequence.json', {'sequence': ['r101']})
    chosen = train_stage(pool, 1, 'auto', tmp_path)
    assert chosen['dir'] == tmp_path / 'stages/auto/1_r101'
    assert sorted(path.name for path in (tmp_path / 'detectors').iterdir()) == ['r101', 'student']
    claim_run_dir(tmp_path / 'recipe.py', pool.text)  # still of the recipe that says 'auto'


@pytest.mark.long
def test_an_arm_that_says_auto_gets_its_choice_made(recipe, tmp_path):
    options = {'arms': {'_delete_': True, 'auto': {'label': 'chosen', 'teachers': 'auto'}}}
    pool = load_recipe(recipe, POOL | options | {'order.max_length': 1})
    train_stage(pool, 1, 'auto', tmp_path)
    sequence = read_json(tmp_path / 'order' / 'sequence.json')['sequence']
    assert [path.name for path in (tmp_path / 'stages/auto').iterdir()] == [f'1_{sequence[0]}']
    names = sorted(path.name for path in (tmp_path / 'detectors').iterdir())
    assert names == ['r101', 'rx101', 'student']
    assert "'auto'" in (tmp_path / 'recipe.py').read_text()
