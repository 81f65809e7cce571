"""The paper's five sequences and its rival: every setting against mmdet's own configs and the paper's table."""

from importlib import resources

import pytest
import torch
from mmcv import Config

from helpers.loss_cases import value_of
from helpers.tiny import batch, large_batch
from mtpd.config.recipe import load_recipe
from mtpd.distill.distiller import Distiller
from mtpd.engine.distill_config import distill_cfg
from mtpd.engine.evaluation import model_cost
from mtpd.engine.loop import training_config
from mtpd.engine.pipelines import test_pipeline as pipeline_of_val
from mtpd.engine.pipelines import train_pipeline
from mtpd.pipeline.mmdet_config import load_config
from mtpd.utils.paths import ROOT

RIVAL = 'retinanet_r50__pkd_mask_rcnn_swin'
EPOCH = 7330  # updates of 16 images: COCO's 117,266 training images with objects
# name: student, teachers (mmdet's configs), learning rate, alpha, mask ratio, FPN levels, masks
TABLE = {
    'retinanet_r50__r101_rx101': (
        'retinanet/retinanet_r50_fpn_1x_coco',
        [
            'retinanet/retinanet_r101_fpn_mstrain_640-800_3x_coco',
            'retinanet/retinanet_x101_64x4d_fpn_1x_coco',
        ],
        (0.01, 2e-5, 0.65, 5, False),
    ),
    'retinanet_r50__swint_swins': (
        'retinanet/retinanet_r50_fpn_1x_coco',
        ['swin/retinanet_swin-t-p4-w7_fpn_1x_coco', None],  # Swin-S: the tests below
        (0.01, 2e-5, 0.65, 5, False),
    ),
    'mask_rcnn_r50__cascade_r50dcn_rx101dcn': (
        'mask_rcnn/mask_rcnn_r50_fpn_1x_coco',
        [
            'dcn/cascade_mask_rcnn_r50_fpn_dconv_c3-c5_1x_coco',
            'dcn/cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco',
        ],
        (0.02, 5e-7, 0.45, 4, True),
    ),
    'mask_rcnn_r50__swint_swins': (
        'mask_rcnn/mask_rcnn_r50_fpn_1x_coco',
        [
            'swin/mask_rcnn_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco',
            'swin/mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco',
        ],
        (0.02, 5e-7, 0.45, 4, True),
    ),
    'reppoints_r50__r101_rx101dcn': (
        'reppoints/reppoints_moment_r50_fpn_gn-neck+head_1x_coco',
        [
            'reppoints/reppoints_moment_r101_fpn_gn-neck+head_2x_coco',
            'reppoints/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck+head_2x_coco',
        ],
        (0.01, 2e-5, 0.65, 5, False),
    ),
}


def of_mmdet(name):
    return Config.fromfile(str(resources.files('mmdet') / '.mim' / 'configs' / f'{name}.py'))


def swin_s():
    """RetinaNet on Swin-S: on Swin-T, with the third stage and the weights of Swin-S."""
    model = of_mmdet('swin/retinanet_swin-t-p4-w7_fpn_1x_coco').model
    theirs = of_mmdet('swin/mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco').model.backbone
    model.backbone.update(depths=[2, 2, 18, 2], init_cfg=theirs.init_cfg)
    assert {**theirs, 'out_indices': (1, 2, 3)} == model.backbone
    return model


@pytest.fixture(params=TABLE)
def row(request, tiny_coco, tmp_path):
    root = tiny_coco(tmp_path / 'coco', tuple(f'class {k}' for k in range(80)))
    recipe = load_recipe(f'configs/paper/{request.param}.py', {'data.root': str(root)})
    return recipe, *TABLE[request.param]


def test_there_is_a_recipe_for_each():
    assert {path.stem for path in (ROOT / 'configs' / 'paper').glob('*.py')} == {*TABLE, RIVAL}


def test_schedule_and_pipeline_are_mmdets(row, tmp_path):
    recipe, student, _, (lr, *_, masks) = row
    theirs = of_mmdet(student)
    ours = training_config(
        recipe, {}, {}, tmp_path, recipe.arm('progressive').stage_updates, 0, 'cpu'
    )
    assert ours.runner.max_iters == theirs.runner.max_epochs * EPOCH
    assert ours.optimizer == theirs.optimizer and ours.optimizer.lr == lr
    assert ours.find_unused_parameters  # where several processes train
    assert ours.optimizer_config.grad_clip == {'max_norm': 35, 'norm_type': 2}
    steps = [epoch * EPOCH for epoch in theirs.lr_config.step]
    assert ours.lr_config == {**theirs.lr_config, 'step': steps}
    image, val = recipe.cfg.image, theirs.data.val.pipeline
    assert pipeline_of_val(image)[0] == val[0]
    augmentation, wanted = pipeline_of_val(image)[1], val[1]
    assert augmentation['img_scale'] == wanted.img_scale and augmentation['flip'] == wanted.flip
    # mmdet writes ImageToTensor where ours has the bundle: both make a tensor of the image.
    assert augmentation['transforms'][:4] == wanted.transforms[:4]
    ours_train = train_pipeline(image, masks)
    assert ours_train[1].pop('with_mask') == theirs.data.train.pipeline[1].pop('with_mask', False)
    assert ours_train == theirs.data.train.pipeline


def test_models_are_mmdets(row):
    recipe, student, teachers, _ = row
    for name, config in zip(recipe.detectors, [student, *teachers], strict=True):
        if config:
            wanted = of_mmdet(config).model
            if origin := wanted.pop('pretrained', None):  # mmdet would refuse it beside init_cfg
                wanted.backbone.init_cfg.checkpoint = origin
            assert recipe.model(name) == wanted, name
    if None in teachers:
        assert recipe.model('swins') == swin_s()


def test_a_config_that_names_two_pretrained_backbones_builds(tiny_coco, tmp_path):
    """mmdet's own of RetinaNet R101 states R101's weights and inherits R50's, which mmdet refuses to build."""
    from mmdet.models import build_detector

    config = of_mmdet('retinanet/retinanet_r101_fpn_mstrain_640-800_3x_coco').model
    assert config.pretrained and config.backbone.init_cfg
    options = {'data.root': str(tiny_coco(tmp_path / 'coco'))}
    recipe = load_recipe('configs/paper/retinanet_r50__r101_rx101.py', options)
    model = build_detector(recipe.model('r101'))
    assert model.backbone.init_cfg['checkpoint'] == 'torchvision://resnet101'


def test_distillation_is_the_papers(row):
    recipe, _, _, (_, alpha, ratio, levels, masks) = row
    for teacher in recipe.cfg.teachers:
        cfg = distill_cfg(recipe, recipe.model('student'), recipe.model(teacher))
        assert len(cfg) == levels
        for level, item in enumerate(cfg):
            place = f'neck.fpn_convs.{level}.conv'
            assert (item['student_module'], item['teacher_module']) == (place, place)
            method = dict(type='MGD', name=f'loss_mgd_fpn_{level}', alpha=alpha, mask_ratio=ratio)
            assert item['methods'] == [method | dict(student_channels=256, teacher_channels=256)]
    assert recipe.cfg.distill.start == 'inherit' and recipe.cfg.distill.teacher_mode == 'eval'
    assert recipe.cfg.evaluation.metrics == ['bbox', 'segm'][: 1 + masks]
    assert recipe.arm('progressive').teachers == tuple(recipe.cfg.teachers)


@pytest.mark.parametrize('size', 'ts')
def test_the_teachers_on_swin_are_trained_as_mmdets_mask_rcnn_on_swin(size):
    name = f'swin-{size}-p4-w7_fpn_fp16_ms-crop-3x_coco.py'
    ours = load_config(f'configs/teachers/retinanet_{name}').cfg
    mask_rcnn = of_mmdet(f'swin/mask_rcnn_{name.removesuffix(".py")}')
    boxes = of_mmdet('swin/retinanet_swin-t-p4-w7_fpn_1x_coco')
    assert ours.model == (boxes.model if size == 't' else swin_s())
    for key in ('optimizer', 'optimizer_config', 'lr_config', 'runner', 'fp16'):
        assert ours[key] == mask_rcnn[key], key
    assert ours.optimizer.type == 'AdamW' and ours.optimizer.lr == 1e-4
    assert ours.runner.max_epochs == 36 and ours.lr_config.step == [27, 33]
    assert ours.fp16.loss_scale.init_scale == 512
    theirs = mask_rcnn.data.train.pipeline
    assert theirs[1].pop('with_mask') and theirs[-1]['keys'].pop() == 'gt_masks'
    assert ours.data.train.pipeline == theirs
    assert ours.data.test.pipeline == boxes.data.test.pipeline and ours.evaluation.metric == 'bbox'
    assert ours.auto_scale_lr == {'enable': True, 'base_batch_size': 16}


@pytest.mark.long
def test_mmdets_own_tools_read_the_teachers_configs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = ROOT / 'configs/teachers/retinanet_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco.py'
    cfg = Config.fromfile(str(path))
    cfg.dump(str(tmp_path / 'dumped.py'))  # as tools/train.py does
    assert Config.fromfile(str(tmp_path / 'dumped.py')).model == swin_s()


@pytest.mark.parametrize('name', ['reppoints_r50__r101_rx101dcn', 'retinanet_r50__r101_rx101'])
def test_pkd_compares_the_necks_outputs(name, tiny_coco, tmp_path):
    """In RepPoints these come after a group norm that the hooked convolutions lack, and the paper's MGD stays there."""
    options = {'data.root': str(tiny_coco(tmp_path / 'coco'))}
    options |= {f'{who}.model.backbone.init_cfg': None for who in ('student', 'teachers.r101')}
    recipe = load_recipe(f'configs/paper/{name}.py', options | {'distill.method': 'pkd'})
    models = recipe.model('student'), recipe.model('r101')
    torch.manual_seed(0)
    distiller = Distiller(*models, distill_cfg(recipe, *models), teacher_checkpoint='random')
    data = batch(num_classes=2)
    student = distiller.student  # its head and own losses have no part in this
    student.forward_train = lambda img, *_, **__: {'loss': 0 * student.extract_feat(img)[0].sum()}
    losses = distiller.forward_train(**data)
    with torch.no_grad():
        outputs = [
            [level.double().numpy() for level in model.neck(model.backbone(data['img']))]
            for model in (distiller.student, distiller.teacher)
        ]
    for level in range(4):
        loss = distiller.distill_losses[f'loss_pkd_fpn_{level}']
        wanted = value_of(loss, {}, outputs[0][level], outputs[1][level])
        assert losses[f'loss_pkd_fpn_{level}'].item() == pytest.approx(wanted, rel=1e-4)
    assert 'loss_pkd_fpn_4' not in losses
    others = load_recipe(recipe, {'distill.method': 'mgd'})
    paths = {item['student_module'] for item in distill_cfg(others, *models)}
    assert paths == {f'neck.fpn_convs.{level}.conv' for level in range(5)}


@pytest.mark.long
def test_size_of_a_two_stage_detector(tiny_coco, tmp_path):
    """mmdet's dummy pass draws proposals that RoIAlign refuses on the CPU."""
    options = {'data.root': str(tiny_coco(tmp_path / 'coco')), 'image.scale': 64}
    recipe = load_recipe('configs/paper/mask_rcnn_r50__swint_swins.py', options)
    cost = model_cost(recipe, 'student', images=1)
    # A thousand proposals, each 256 x 7 x 7 features to 1024 and these to 1024; a hundred masks from four convolutions
    # and a 2 x 2 one that doubles their size. Backbone, neck and proposals are small at 64 pixels.
    boxes = 1000 * (256 * 7 * 7 * 1024 + 1024 * 1024)
    masks = 100 * 256 * 256 * (4 * 9 + 4) * 14 * 14
    assert cost['gflops'] == pytest.approx((boxes + masks) / 1e9, rel=0.03)
    assert cost['input'] == [64, 64] and cost['ms_per_image'] > 0


@pytest.fixture
def rival(tiny_coco, tmp_path):
    root = tiny_coco(tmp_path / 'coco', tuple(f'class {k}' for k in range(80)))
    return load_recipe(f'configs/paper/{RIVAL}.py', {'data.root': str(root)})


def test_the_rival_is_one_stage_of_24_epochs_by_pkd(rival, tmp_path):
    theirs = of_mmdet('retinanet/retinanet_r50_fpn_2x_coco')
    updates = rival.arm('direct').stage_updates
    ours = training_config(rival, {}, {}, tmp_path, updates, 0, 'cpu')
    assert ours.runner.max_iters == theirs.runner.max_epochs * EPOCH == updates
    assert ours.optimizer == theirs.optimizer
    steps = [epoch * EPOCH for epoch in theirs.lr_config.step]
    assert ours.lr_config == {**theirs.lr_config, 'step': steps}
    assert rival.model('student') == of_mmdet('retinanet/retinanet_r50_fpn_2x_coco').model
    for size in 'st':
        name = f'swin/mask_rcnn_swin-{size}-p4-w7_fpn_fp16_ms-crop-3x_coco'
        assert rival.model(f'swin{size}') == of_mmdet(name).model
        spec = rival.detectors[f'swin{size}']
        assert f'/{name}/mask_rcnn_swin-{size}-p4' in spec.checkpoint
    assert rival.cfg.distill.start == 'random'


def test_the_rivals_levels_match_by_stride(rival):
    student, teacher = rival.model('student'), rival.model('swins')
    entries = distill_cfg(rival, student, teacher)
    pairs = [(item['student_module'], item['teacher_module']) for item in entries]
    assert pairs == [(f'neck:{level}', f'neck:{level + 1}') for level in range(4)]
    for item in entries:
        (method,) = item['methods']
        assert (method['type'], method['weight']) == ('PKD', 6.0)
        assert method['student_channels'] == method['teacher_channels'] == 256


@pytest.mark.long
def test_the_rivals_loss_is_pkd_of_the_necks_maps(rival):
    """Levels of 8 to 64 pixels, the teacher's last a pooling of the one before."""
    models = rival.model('student'), rival.model('swint')
    for model in models:
        model.backbone.init_cfg = None
    torch.manual_seed(0)
    distiller = Distiller(*models, distill_cfg(rival, *models), teacher_checkpoint='random')
    data = large_batch(False)
    losses = distiller.forward_train(**data)
    with torch.no_grad():
        of_student, of_teacher = (
            [level.double().numpy() for level in model.neck(model.backbone(data['img']))]
            for model in (distiller.student, distiller.teacher)
        )
    assert [level.shape[2] for level in of_student] == [16, 8, 4, 2, 1]
    assert [level.shape[2] for level in of_teacher] == [32, 16, 8, 4, 2]
    for level in range(4):
        loss = distiller.distill_losses[f'loss_pkd_fpn_{level}']
        wanted = value_of(loss, {}, of_student[level], of_teacher[level + 1])
        assert losses[f'loss_pkd_fpn_{level}'].item() == pytest.approx(wanted, rel=1e-4)
