"""Hook points of necks, and levels of two detectors matched by stride."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import pytest
import torch
from mmcv import ConfigDict

from helpers.tiny import retinanet
from mtpd import load_recipe
from mtpd.distill.distiller import Distiller, Teacher
from mtpd.distill.hook_points import measured_outputs
from mtpd.engine.distill_config import distill_cfg
from mtpd.errors import MtpdError

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
RESNET = dict(type='ResNet', depth=18, base_channels=8)
C3, C4, C5 = 16, 32, 64
FPN = dict(type='FPN', in_channels=[C3, C4, C5], out_channels=12, start_level=0, num_outs=4)


def model(neck, outputs=(1, 2, 3)):
    return dict(backbone=RESNET | dict(out_indices=outputs), neck=neck)


def paths(neck, **options):
    return {level.stride: level.module for level in measured_outputs(model(neck, **options)).levels}


@pytest.mark.parametrize(
    ('neck', 'wanted'),
    [
        (
            FPN | dict(add_extra_convs='on_output'),
            {8 * 2**k: f'neck.fpn_convs.{k}.conv' for k in range(4)},
        ),
        # The fourth level is a pooled third.
        (FPN, {8 * 2**k: f'neck.fpn_convs.{k}.conv' for k in range(3)} | {64: None}),
        (
            FPN | dict(type='PAFPN', num_outs=3),
            {
                8: 'neck.fpn_convs.0.conv',
                16: 'neck.pafpn_convs.0.conv',
                32: 'neck.pafpn_convs.1.conv',
            },
        ),
        (
            dict(type='YOLOXPAFPN', in_channels=[C3, C4, C5], out_channels=8, num_csp_blocks=1),
            {8 * 2**k: f'neck.out_convs.{k}.conv' for k in range(3)},
        ),
        (
            dict(type='ChannelMapper', in_channels=[C3, C4, C5], out_channels=8, num_outs=4),
            {8 * 2**k: f'neck.convs.{k}.conv' for k in range(3)} | {64: 'neck.extra_convs.0.conv'},
        ),
        (
            [
                FPN | dict(num_outs=3),
                dict(type='BFP', in_channels=12, num_levels=3, refine_level=1),
            ],
            {8 * 2**k: f'neck.0.fpn_convs.{k}.conv' for k in range(3)},
        ),
        (None, {8: 'backbone.layer2', 16: 'backbone.layer3', 32: 'backbone.layer4'}),
    ],
    ids=lambda item: str(item.get('type')) if isinstance(item, dict) and 'type' in item else None,
)
def test_modules_that_give_the_levels(neck, wanted):
    assert paths(neck) == wanted


def test_an_encoder_of_one_level_is_its_last_block():
    neck = dict(type='DilatedEncoder', in_channels=C5, out_channels=16, block_mid_channels=8, num_residual_blocks=2, block_dilations=[2, 4])  # fmt: skip
    (level,) = measured_outputs(model(neck, (3,))).levels
    assert level == (32, 'neck.dilated_encoder_blocks', 16, ())


def test_what_comes_behind_a_hooked_convolution():
    norm = dict(type='GN', num_groups=4, requires_grad=True)
    levels = measured_outputs(model(FPN | dict(norm_cfg=norm, act_cfg=dict(type='ReLU')))).levels
    assert levels[0].behind == ('GroupNorm', 'ReLU') and levels[0].channels == 12


@pytest.mark.parametrize(
    'neck', [FPN, FPN | dict(norm_cfg=dict(type='BN'))], ids=['FPN', 'with norms']
)
def test_a_hooked_module_gives_the_level_or_what_norms_are_applied_to(neck):
    cfg, seen = model(neck), []
    torch.manual_seed(0)
    detector = Teacher(ConfigDict(cfg)).eval()
    level = measured_outputs(cfg).levels[1]
    detector.get_submodule(level.module).register_forward_hook(lambda *args: seen.append(args[2]))
    feature = detector(torch.rand(2, 3, 64, 64))[1]
    norm = detector.neck.fpn_convs[1].norm if level.behind else torch.nn.Identity()
    assert torch.equal(norm(seen[0]), feature)


def test_measuring_draws_no_random_numbers():
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    measured_outputs(model(FPN | dict(out_channels=20)))
    assert torch.equal(torch.rand(2), wanted)


def test_a_neck_that_does_not_fit_is_named():
    with pytest.raises(MtpdError, match='backbone and neck take no image'):
        measured_outputs(model(FPN | dict(in_channels=[C3, C4, C5 + 1])))


def faster(start):
    """A backbone and neck as of Faster R-CNN: strides 4 to 32, and 64 by pooling."""
    neck = dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=5)
    return dict(
        backbone=RESNET | dict(out_indices=(0, 1, 2, 3)), neck=neck | dict(start_level=start)
    )


def test_levels_are_matched_by_stride():
    recipe = load_recipe(MINI, {'distill.levels': [0, 1, 2]})
    student, teacher = retinanet(), faster(0)
    strides = [level.stride for level in measured_outputs(student).levels[:3]]
    assert strides == [8, 16, 32]
    cfg = distill_cfg(recipe, student, teacher)
    assert [item['student_module'] for item in cfg] == [
        f'neck.fpn_convs.{k}.conv' for k in range(3)
    ]
    assert [item['teacher_module'] for item in cfg] == [
        f'neck.fpn_convs.{k + 1}.conv' for k in range(3)
    ]
    (method,) = cfg[0]['methods']
    assert (method['student_channels'], method['teacher_channels']) == (16, 16)
    auto = load_recipe(recipe, {'distill.student_module': 'auto', 'distill.teacher_module': 'auto'})
    assert distill_cfg(auto, student, teacher) == cfg
    torch.manual_seed(0)
    model = Distiller(student, teacher, cfg, teacher_checkpoint='random')
    images, seen = torch.rand(1, 3, 64, 64), {}
    for who, part in (('student', model.student), ('teacher', model.teacher)):
        for item in cfg:
            path = item[f'{who}_module']
            part.get_submodule(path).register_forward_hook(
                lambda *args, key=(who, path): seen.update({key: tuple(args[2].shape[2:])})
            )
    model.student.extract_feat(images), model.teacher(images)
    for item, side in zip(cfg, (8, 4, 2), strict=True):
        sizes = {seen[who, item[f'{who}_module']] for who in ('student', 'teacher')}
        assert sizes == {(side, side)}


def test_a_level_without_a_counterpart_is_refused_with_those_that_have_one():
    recipe = load_recipe(MINI, {'distill.levels': [0, 1, 2]})
    with pytest.raises(MtpdError) as error:
        distill_cfg(recipe, faster(0), retinanet())
    text = str(error.value)
    assert 'level 0 of the student has stride 4, and the teacher has strides 8, 16, 32' in text
    assert 'set distill.levels=[1, 2, 3' in text


def test_a_pooled_level_has_no_module():
    recipe = load_recipe(MINI, {'distill.levels': [3], 'distill.student_module': 'auto'})
    student = model(FPN)
    with pytest.raises(MtpdError, match='level 3: no module of the student gives this level alone'):
        distill_cfg(recipe, student, student)


@pytest.mark.skipif(torch.cuda.is_available(), reason='the operator works on a GPU')
def test_an_operator_that_needs_a_gpu_is_named():
    upsampling = dict(
        type='carafe',
        up_kernel=5,
        up_group=1,
        encoder_kernel=3,
        encoder_dilation=1,
        compressed_channels=8,
    )
    neck = FPN | dict(type='FPN_CARAFE', upsample_cfg=upsampling)
    with pytest.raises(MtpdError, match='mmcv has the operator carafe for GPUs alone'):
        measured_outputs(model(neck))
