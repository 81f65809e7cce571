"""One stage: the student trains, the teacher stays what it was and out of sight."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import subprocess
import sys
import types
import weakref
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch

from helpers.tiny import batch, detector, retinanet
from mtpd import load_recipe
from mtpd.distill import Distiller
from mtpd.engine.distill_config import distill_cfg
from mtpd.errors import MtpdError
from mtpd.runtime import checkpoints

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
METHODS = list(load_recipe(MINI).cfg.distill.settings)

STUDENT = retinanet()
TEACHER = retinanet(depth=34, base=12, num_classes=5)  # wider, and of other classes


def methods(levels=(0, 1), teacher_channels=16, **more) -> list[dict]:
    return [
        dict(
            student_module=f'neck.fpn_convs.{level}.conv',
            teacher_module=f'neck.fpn_convs.{level}.conv',
            methods=[
                dict(
                    type='MGD',
                    name=f'loss_mgd_fpn_{level}',
                    student_channels=16,
                    teacher_channels=teacher_channels,
                    **{'alpha': 1e-3, **more},
                )
            ],
        )
        for level in levels
    ]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Checkpoints: a student, the wide teacher, and one of the student's width and classes."""
    folder = tmp_path_factory.mktemp('checkpoints')
    models = {'student': (STUDENT, 1), 'teacher': (TEACHER, 2), 'deep': (retinanet(depth=34), 3)}
    for name, (cfg, seed) in models.items():
        torch.save({'state_dict': detector(cfg, seed).state_dict()}, folder / f'{name}.pth')
    return {name: str(folder / f'{name}.pth') for name in models}


@pytest.fixture
def distiller(files):
    return Distiller(STUDENT, TEACHER, methods(), files['student'], files['teacher'])


def message(*args, **kwargs) -> str:
    with pytest.raises(MtpdError) as error:
        Distiller(*args, **kwargs)
    return str(error.value)


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# --- losses -------------------------------------------------------------------------------------


def test_the_students_losses_are_those_of_the_bare_student(distiller):
    bare = detector(STUDENT, 1).train()
    expected = bare.forward_train(**batch())
    losses = distiller.forward_train(**batch())
    assert losses.keys() == expected.keys() | {'loss_mgd_fpn_0', 'loss_mgd_fpn_1'}
    for name, value in expected.items():
        assert all(torch.equal(a, b) for a, b in zip(losses[name], value, strict=True)), name
    assert all(losses[f'loss_mgd_fpn_{level}'].shape == () for level in (0, 1))


def test_each_loss_compares_the_right_features_of_student_and_teacher(files):
    cfg = methods(mask_ratio=0.0)
    distiller = Distiller(STUDENT, TEACHER, cfg, files['student'], files['teacher'])
    data = batch()
    # FPN has no activation: the output of its convolution is the level itself.
    of_student = detector(STUDENT, 1).train().extract_feat(data['img'])
    of_teacher = detector(TEACHER, 2).extract_feat(data['img'])
    losses = distiller.forward_train(**data)
    for level in (0, 1):
        name = f'loss_mgd_fpn_{level}'
        loss = distiller.distill_losses[name]
        right = loss(of_student[level], of_teacher[level])
        swapped = loss(of_teacher[level], of_student[level])
        assert losses[name].item() == pytest.approx(right.item(), rel=1e-5)
        assert losses[name].item() != pytest.approx(swapped.item(), rel=1e-2)


def test_train_step_trains_on_the_sum_of_all_losses(distiller):
    out = distiller.train_step(batch(), None)
    logged = out['log_vars']
    parts = [value for name, value in logged.items() if name != 'loss']
    assert len(parts) == 4 and min(parts) > 0
    assert logged['loss'] == pytest.approx(sum(parts), rel=1e-5)
    out['loss'].backward()
    for part in (distiller.student.backbone, distiller.student.neck, distiller.distill_losses):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


@pytest.mark.parametrize('channels', [16, 24])
@pytest.mark.parametrize('method', METHODS)
def test_every_method_of_the_recipes_trains_the_student(method, channels, tmp_path):
    teacher = retinanet(depth=34, base=12, channels=channels)
    torch.save({'state_dict': detector(teacher, 2).state_dict()}, tmp_path / 'teacher.pth')
    recipe = load_recipe(MINI, {'distill.method': method, 'distill.levels': [0, 1]})
    cfg = distill_cfg(recipe, STUDENT, teacher)
    distiller = Distiller(STUDENT, teacher, cfg, None, str(tmp_path / 'teacher.pth'))
    distiller.to(memory_format=torch.channels_last)
    data = batch()
    data['gt_bboxes'][1], data['gt_labels'][1] = torch.zeros(0, 4), torch.zeros(0).long()
    losses = distiller.forward_train(**data)
    for level in (0, 1):
        value = losses[f'loss_{method}_fpn_{level}']
        convolution = distiller.student.neck.fpn_convs[level].conv.weight
        (grad,) = torch.autograd.grad(value, convolution, retain_graph=True)
        assert value.item() > 0 and grad.isfinite().all() and grad.abs().sum() > 0
    out = distiller.train_step(data, None)
    out['loss'].backward()
    assert all(p.grad is not None for p in distiller.distill_losses.parameters())
    assert ('align' in str(distiller.distill_losses)) == (channels != 16)


def test_a_loss_gets_the_boxes_and_sizes_of_the_batch(files):
    cfg, data = methods((0,)), batch()
    name = 'loss_fgd_fpn_0'
    channels = dict(student_channels=16, teacher_channels=16)
    cfg[0]['methods'] = [dict(type='FGD', name=name, box_scale='img_shape', alpha=1.0, **channels)]
    data['img_metas'][1]['img_shape'] = (48, 40, 3)
    distiller = Distiller(STUDENT, TEACHER, cfg, files['student'], files['teacher'])
    of_student = detector(STUDENT, 1).train().extract_feat(data['img'])[0]
    of_teacher = detector(TEACHER, 2).extract_feat(data['img'])[0]
    loss = distiller.forward_train(**data)[name].item()

    def value(**changed):
        given = {key: data[key] for key in ('gt_bboxes', 'img_metas')} | changed
        return distiller.distill_losses[name](of_student, of_teacher, **given).item()

    assert loss == pytest.approx(value(), rel=1e-5)
    assert loss != pytest.approx(value(gt_bboxes=data['gt_bboxes'][::-1]), rel=1e-2)
    assert loss != pytest.approx(value(img_metas=batch()['img_metas']), rel=1e-2)


def test_a_batch_without_ground_truth(distiller):
    data = batch()
    data['gt_bboxes'] = [torch.zeros(0, 4)] * 2
    data['gt_labels'] = [torch.zeros(0, dtype=torch.long)] * 2
    out = distiller.train_step(data, None)
    assert np.isfinite(list(out['log_vars'].values())).all()
    out['loss'].backward()


# --- the teacher --------------------------------------------------------------------------------


def test_training_leaves_the_teacher_bit_identical_and_unseen(distiller, tmp_path):
    teacher, data = distiller.teacher, batch()
    before, student_before = snapshot(teacher), snapshot(distiller.student)
    with torch.no_grad():
        outputs = teacher(data['img'])
    modes = []
    for module in teacher.modules():
        module.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-2)
    for _ in range(3):
        distiller.train()  # as mmcv's runners do each epoch
        optimizer.zero_grad()
        distiller.train_step(batch(), optimizer)['loss'].backward()
        optimizer.step()

    assert modes and not any(modes)
    assert same(before, snapshot(teacher))
    with torch.no_grad():
        again = teacher(data['img'])
    assert all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert not same(student_before, snapshot(distiller.student)), 'the student has to learn'

    hidden = {id(t) for t in [*teacher.parameters(), *teacher.buffers(), *teacher.modules()]}
    seen = [*distiller.parameters(), *distiller.buffers(), *distiller.modules()]
    seen += [p for group in optimizer.param_groups for p in group['params']]
    assert hidden.isdisjoint(map(id, seen))
    names = [name for name, _ in distiller.named_modules()] + list(distiller.state_dict())
    assert not any('teacher' in name for name in names)

    mmcv.runner.save_checkpoint(distiller, str(tmp_path / 'latest.pth'), optimizer)
    saved = torch.load(tmp_path / 'latest.pth', weights_only=True)
    layout = ('student.', 'distill_losses.loss_mgd_fpn_')
    assert all(key.startswith(layout) for key in saved['state_dict'])
    assert len(saved['state_dict']) == len(student_before) + 2 * 4
    assert len(saved['optimizer']['state']) == len(list(distiller.parameters()))


def test_train_mode_of_the_original_is_opt_in(files):
    def statistics_after_an_update(mode):
        distiller = Distiller(
            STUDENT, TEACHER, methods(), files['student'], files['teacher'], teacher_mode=mode
        )
        distiller.train()
        assert distiller.teacher.backbone.bn1.training == (mode == 'train')
        before = snapshot(distiller.teacher)
        distiller.forward_train(**batch())
        assert not any(p.requires_grad for p in distiller.teacher.parameters())
        distiller.eval()
        assert not distiller.teacher.backbone.bn1.training
        return same(before, snapshot(distiller.teacher))

    assert statistics_after_an_update('eval')
    assert not statistics_after_an_update('train')


def test_the_teacher_moves_with_the_distiller(distiller):
    distiller.double()
    assert distiller.teacher.backbone.conv1.weight.dtype == torch.float64
    assert distiller.student.backbone.conv1.weight.dtype == torch.float64
    distiller.to('meta')
    assert distiller.teacher.neck.fpn_convs[0].conv.weight.device.type == 'meta'


def test_copies_and_pickles_work_and_have_their_own_teacher(distiller):
    distiller.forward_train(**batch())
    for other in (copy.deepcopy(distiller), pickle.loads(pickle.dumps(distiller))):
        assert other.teacher is not distiller.teacher
        torch.manual_seed(0)
        expected = distiller.train_step(batch(), None)['log_vars']
        torch.manual_seed(0)
        assert other.train_step(batch(), None)['log_vars'] == expected
        other.float().double()
        assert distiller.teacher.backbone.conv1.weight.dtype == torch.float32


def test_hooks_and_features_live_no_longer_than_the_forward_pass(distiller):
    made = []
    convs = [m.neck.fpn_convs[0].conv for m in (distiller.student, distiller.teacher)]
    hooks = [
        conv.register_forward_hook(lambda module, args, out: made.append(weakref.ref(out)))
        for conv in convs
    ]
    losses = distiller.forward_train(**batch())
    del losses
    gc.collect()
    assert [feature() for feature in made] == [None, None]
    for hook in hooks:
        hook.remove()

    with pytest.raises(TypeError):
        distiller.forward_train(batch()['img'], batch()['img_metas'])  # no ground truth
    models = (distiller, distiller.teacher)
    assert not any(module._forward_hooks for model in models for module in model.modules())


def test_the_class_count_hook_looks_at_the_student_only(distiller):
    from mmdet.datasets import NumClassCheckHook

    def check(classes):
        dataset = types.SimpleNamespace(CLASSES=classes)
        loader = types.SimpleNamespace(dataset=dataset)
        runner = types.SimpleNamespace(model=distiller, data_loader=loader)
        NumClassCheckHook().before_train_epoch(runner)

    check(('a', 'b', 'c'))
    with pytest.raises(AssertionError):
        check(('a', 'b', 'c', 'd', 'e'))  # the teacher's number


# --- configuration ------------------------------------------------------------------------------


def test_configs_are_left_as_they_are_and_nothing_is_downloaded(files):
    teacher = copy.deepcopy(TEACHER)
    nowhere = 'http://127.0.0.1:9/none.pth'
    teacher['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint=nowhere)
    student = copy.deepcopy(STUDENT)
    student['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint=nowhere)
    configs = [student, teacher, methods()]
    before = copy.deepcopy(configs)
    distiller = Distiller(*configs, files['student'], files['teacher'])
    distiller.init_weights()
    assert configs == before
    assert same(snapshot(distiller.student), snapshot(detector(STUDENT, 1)))


def test_mmdet_builds_it_and_calls_init_weights_without_harm(files):
    from mmdet.models import build_detector

    student = copy.deepcopy(STUDENT)
    outer = {name: mmcv.ConfigDict(student.pop(name)) for name in ('train_cfg', 'test_cfg')}
    cfg = dict(type='Distiller', student=student, teacher=TEACHER, distill_cfg=methods())
    cfg |= dict(student_checkpoint=files['student'], teacher_checkpoint=files['teacher'])
    distiller = build_detector(mmcv.ConfigDict(cfg), **outer)
    distiller.init_weights()
    assert same(snapshot(distiller.student), snapshot(detector(STUDENT, 1)))
    assert distiller.student.test_cfg == STUDENT['test_cfg']
    assert 'loss_cls' in distiller.forward_train(**batch())
    wanted = snapshot(detector(TEACHER, 2))
    weights = snapshot(distiller.teacher)
    assert weights.keys() == {k for k in wanted if not k.startswith('bbox_head.')}
    assert all(torch.equal(value, wanted[key]) for key, value in weights.items())


def test_all_problems_of_distill_cfg_come_at_once(files):
    cfg = [
        dict(
            student_module='neck.fpn_convs.7.conv',
            teacher_module='bbox_head.retina_cls',
            methods=[
                dict(type='MGD', name='mgd', student_channels=16, teacher_channels=16),
                dict(type='MGD', name='loss', student_channels=16, teacher_channels=16),
                dict(type='MGD', name='loss.x', student_channels=16, teacher_channels=16),
                dict(type='MDG', name='loss_a', student_channels=16, teacher_channels=16),
            ],
        ),
        *methods((0,)),
        *methods((0,)),
        dict(student_module='neck', teacher_module='neck', method=[]),
    ]
    text = message(STUDENT, TEACHER, cfg, files['student'], files['teacher']) + '\n'
    for words in (
        "student has no module 'neck.fpn_convs.7.conv'; near: neck.fpn_convs.",
        "teacher has no module 'bbox_head.retina_cls'; near: ",
        "'mgd'",
        "'loss'",
        "'loss.x'",
        "did you mean 'MGD'",
        "'loss_mgd_fpn_0' is given twice",
        'not: student_module, teacher_module, method\n',
    ):
        assert words in text, text
    assert 'nothing would be distilled' in message(STUDENT, TEACHER, [], None, files['teacher'])


def test_a_loss_named_like_one_of_the_students_is_refused(files):
    cfg = methods((0,))
    cfg[0]['methods'][0]['name'] = 'loss_bbox'
    distiller = Distiller(STUDENT, TEACHER, cfg, files['student'], files['teacher'])
    with pytest.raises(MtpdError, match="'loss_bbox'"):
        distiller.forward_train(**batch())


def test_a_module_that_gives_no_feature_map_is_named(files):
    cfg = methods((0,))
    cfg[0]['teacher_module'] = 'neck'
    distiller = Distiller(STUDENT, TEACHER, cfg, files['student'], files['teacher'])
    with pytest.raises(MtpdError, match="teacher_module 'neck' gives a tuple"):
        distiller.forward_train(**batch())


def test_contradicting_options_come_at_once(files):
    text = message(STUDENT, TEACHER, methods(), files['student'], None, True, 'training')
    for words in ("teacher_checkpoint='random'", 'overwrite', "'training'"):
        assert words in text, text
    text = message(STUDENT, TEACHER, methods(), None, 'random', init_student=True)
    assert 'nothing to inherit' in text


def test_an_untrained_teacher_is_opt_in():
    distiller = Distiller(STUDENT, TEACHER, methods(), teacher_checkpoint='random')
    assert distiller.forward_train(**batch())['loss_mgd_fpn_0'] > 0


def test_a_teacher_checkpoint_of_another_architecture_is_refused(files):
    text = message(STUDENT, TEACHER, methods(), files['student'], files['deep'])
    assert 'does not fit the teacher' in text and 'another architecture' in text


# --- start of the student -----------------------------------------------------------------------


def test_adapters_of_an_earlier_training_are_taken_whole_or_refused(distiller, tmp_path):
    path = tmp_path / 'latest.pth'
    torch.save({'state_dict': distiller.state_dict()}, path)
    again = Distiller(
        STUDENT, TEACHER, methods(), teacher_checkpoint='random', adapters_checkpoint=str(path)
    )
    assert same(snapshot(again.distill_losses), snapshot(distiller.distill_losses))
    for other in (methods(levels=(0,)), methods(teacher_channels=24)):
        with pytest.raises(MtpdError, match=r'have other weights .*keep_adapters out'):
            Distiller(
                STUDENT, TEACHER, other, teacher_checkpoint='random', adapters_checkpoint=str(path)
            )


def test_init_student_takes_neck_and_head_of_the_teacher(files):
    deep = retinanet(depth=34)

    def student(init_student):
        torch.manual_seed(0)
        return Distiller(STUDENT, deep, methods(), None, files['deep'], init_student=init_student)

    plain, inheriting = student(False), student(True)
    assert plain.inherit_report is None
    prior = plain.student.bbox_head.retina_cls.bias  # the head's own initialisation: 0.01
    assert prior.sigmoid().tolist() == pytest.approx([0.01] * len(prior), rel=1e-3)
    assert inheriting.inherit_report.skipped == {}
    theirs = snapshot(detector(deep, 3))
    for key, value in inheriting.student.state_dict().items():
        weight = plain.student.state_dict()[key]
        assert torch.equal(value, weight if key.startswith('backbone.') else theirs[key]), key


def test_init_student_from_a_teacher_that_differs(files):
    args = (STUDENT, TEACHER, methods(), None, files['teacher'], True)
    text = message(*args)
    assert 'neck.lateral_convs.0.conv.weight' in text and 'bbox_head.retina_cls.weight' in text
    allow = ('neck.lateral_convs.*', 'bbox_head.retina_cls.*')
    report = Distiller(*args, inherit_allow=allow).inherit_report
    assert len(report.skipped) == 5 and 'bbox_head.retina_reg.weight' in report.copied


# --- checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize('how', ['torch', 'mmcv'])
def test_a_checkpoint_of_the_original_code_loads(files, tmp_path, how):
    source = Distiller(STUDENT, TEACHER, methods(), files['student'], files['teacher'])
    state = snapshot(source)
    original = dict(state)
    original |= {f'teacher.{k}': v + 1 for k, v in detector(TEACHER, 2).state_dict().items()}
    original |= {f'{who}_neck_fpn_convs_0_conv': torch.ones(2) for who in ('student', 'teacher')}
    torch.manual_seed(9)
    target = Distiller(STUDENT, TEACHER, methods(), None, files['teacher'])
    teacher = snapshot(target.teacher)
    assert not same(state, snapshot(target))
    if how == 'torch':
        target.load_state_dict(original, strict=True)
    else:
        torch.save({'state_dict': original, 'meta': {}}, tmp_path / 'a.pth')
        mmcv.runner.load_checkpoint(target, str(tmp_path / 'a.pth'), strict=True)
    assert same(state, snapshot(target))
    assert same(teacher, snapshot(target.teacher))
    assert len(original) > len(state), 'the given dict stays as it is'


def test_a_plain_checkpoint_goes_to_the_student(files):
    distiller = Distiller(STUDENT, TEACHER, methods(), None, files['teacher'])
    losses = snapshot(distiller.distill_losses)
    result = distiller.load_state_dict(detector(STUDENT, 1).state_dict(), strict=False)
    assert same(snapshot(distiller.student), snapshot(detector(STUDENT, 1)))
    assert same(losses, snapshot(distiller.distill_losses))
    assert all(key.startswith('distill_losses.') for key in result.missing_keys)
    assert result.unexpected_keys == []


# --- evaluation ---------------------------------------------------------------------------------


def detections(model, data):
    with torch.no_grad():
        return model.eval()(
            return_loss=False, rescale=False, img=[data['img']], img_metas=[data['img_metas']]
        )


def test_the_exported_student_detects_bit_for_bit_the_same(distiller, tmp_path):
    distiller.train_step(batch(), None)  # batch norm statistics move
    distiller.CLASSES = ('a', 'b', 'c')
    assert distiller.student.CLASSES == ('a', 'b', 'c')
    assert distiller.with_neck and distiller.with_bbox and not distiller.with_mask
    mmcv.runner.save_checkpoint(distiller, str(tmp_path / 'latest.pth'))
    path = checkpoints.export_student(tmp_path / 'latest.pth', tmp_path / 'student.pth')

    from mmdet.apis import init_detector

    cfg = mmcv.Config(dict(model=copy.deepcopy(STUDENT)))
    plain = init_detector(cfg, str(path), device='cpu')
    assert plain.CLASSES == ('a', 'b', 'c')
    ours, theirs = detections(distiller, batch()), detections(plain, batch())
    assert sum(len(boxes) for boxes in ours[0]) == 10
    for image, other in zip(ours, theirs, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(image, other, strict=True))
    drawn = distiller.show_result(np.zeros((64, 64, 3), np.uint8), ours[0], score_thr=0.0)
    assert drawn.shape == (64, 64, 3) and drawn.any()


CONFIG = """
model = {model}
dataset_type = 'CocoDataset'
runner = dict(type='EpochBasedRunner', max_epochs=1)  # read, but not used
classes = ('a', 'b', 'c')
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug', img_scale=(64, 64), flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='Normalize', mean=[128, 128, 128], std=[64, 64, 64], to_rgb=True),
            dict(type='ImageToTensor', keys=['img']),
            dict(type='Collect', keys=['img']),
        ],
    ),
]
data = dict(
    samples_per_gpu=1, workers_per_gpu=0, train=dict(), val=dict(),
    test=dict(
        type=dataset_type, classes=classes, pipeline=pipeline,
        ann_file={root!r} + '/annotations.json', img_prefix={root!r},
    ),
)
"""


def coco_folder(folder: Path, images: int = 3) -> Path:
    """Random 64 x 64 images with one box each, and a config that tests on them."""
    rng = np.random.default_rng(0)
    entries = dict(images=[], annotations=[], categories=[])
    entries['categories'] = [dict(id=i, name=name) for i, name in enumerate('abc', start=1)]
    for i in range(images):
        mmcv.imwrite(rng.integers(0, 255, (64, 64, 3), np.uint8), str(folder / f'{i}.png'))
        entries['images'].append(dict(id=i, file_name=f'{i}.png', width=64, height=64))
        box = dict(id=i + 1, image_id=i, category_id=i + 1, bbox=[8, 8, 32, 24], area=768)
        entries['annotations'].append(dict(box, iscrowd=0))
    (folder / 'annotations.json').write_text(json.dumps(entries))
    config = folder / 'config.py'
    config.write_text(CONFIG.format(model=STUDENT, root=str(folder)))
    return config


@pytest.mark.long
def test_mmdets_own_test_tool_runs_the_exported_student(distiller, tmp_path):
    import mmdet
    from mmcv.parallel import MMDataParallel
    from mmdet.apis import single_gpu_test
    from mmdet.datasets import build_dataloader, build_dataset

    config = coco_folder(tmp_path)
    torch.save({'state_dict': distiller.state_dict(), 'meta': {}}, tmp_path / 'latest.pth')
    student = checkpoints.export_student(
        tmp_path / 'latest.pth', tmp_path / 'student.pth', meta={'CLASSES': ('a', 'b', 'c')}
    )
    tool = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'test.py'
    # The tool is run as it is; `compat` is what mmdet itself needs on today's torch.
    run = 'import runpy, sys, mtpd.runtime.compat; runpy.run_path(sys.argv.pop(1), run_name="__main__")'
    out = tmp_path / 'out.pkl'
    done = subprocess.run(
        [
            *(sys.executable, '-c', run, tool, config, student),
            *('--eval', 'bbox', '--out', out, '--work-dir', tmp_path),
        ],
        env={**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'bbox_mAP_50' in done.stdout

    dataset = build_dataset(mmcv.Config.fromfile(str(config)).data.test)
    loader = build_dataloader(dataset, 1, 0, dist=False, shuffle=False)
    ours = single_gpu_test(MMDataParallel(distiller), loader)
    for image, other in zip(ours, mmcv.load(str(out)), strict=True):
        for boxes, others in zip(image, other, strict=True):
            np.testing.assert_allclose(boxes, others, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_the_room_gives_the_distiller_and_is_light_until_then():
    code = (
        'import sys\n'
        'from mtpd.distill import adaptation_cost, teacher_sequence\n'
        "assert 'mmdet' not in sys.modules\n"
        'from mtpd.distill import Distiller\n'
        "assert Distiller.__module__ == 'mtpd.distill.distiller' and 'mmdet' in sys.modules\n"
    )
    subprocess.run([sys.executable, '-c', code], check=True)
    with pytest.raises(ImportError, match='Distillery'):
        from mtpd.distill import Distillery  # noqa: F401


def test_a_map_of_the_neck_is_hooked_by_its_number(files):
    """'neck:1' is the FPN's second level, which its second convolution gives."""
    by_number = methods()
    for level, item in enumerate(by_number):
        item['student_module'] = item['teacher_module'] = f'neck:{level}'
    one, other = (
        Distiller(STUDENT, TEACHER, cfg, files['student'], files['teacher'])
        for cfg in (methods(mask_ratio=0.0), by_number)
    )
    other.distill_losses.load_state_dict(one.distill_losses.state_dict())
    for loss in other.distill_losses.values():
        loss.mask_ratio = 0.0
    losses, same_losses = (model.forward_train(**batch()) for model in (one, other))
    for name in ('loss_mgd_fpn_0', 'loss_mgd_fpn_1'):
        assert torch.equal(losses[name], same_losses[name])
    by_number[0]['teacher_module'] = 'neck:7'
    model = Distiller(STUDENT, TEACHER, by_number, files['student'], files['teacher'])
    with pytest.raises(MtpdError, match="teacher_module 'neck:7' gives a tuple"):
        model.forward_train(**batch())
    by_number[0]['teacher_module'] = 'nick:0'
    assert "no module 'nick:0'" in message(STUDENT, TEACHER, by_number, None, 'random')
