"""`mtpd new`: recipes for any student and teachers."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import json
import re

import pytest
import torch
from click.testing import CliRunner
from mmcv import ConfigDict
from mmdet.models import build_detector

from mtpd import load_recipe
from mtpd.cli.main import main
from mtpd.engine.distill_config import distill_cfg
from mtpd.errors import MtpdError
from mtpd.pipeline import new_recipe as new_recipe_module
from mtpd.pipeline.new_recipe import new_recipe, published_weights
from mtpd.utils.paths import ROOT

ATSS = 'mmdet::atss/atss_r{}_fpn_1x_coco.py'
RETINANET = 'mmdet::retinanet/retinanet_r{}_fpn_1x_coco.py'
YOLOX = 'mmdet::yolox/yolox_{}_8x8_300e_coco.py'
MASK_RCNN = 'mmdet::mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py'


def made(path, student, *teachers, **options):
    """A recipe's text, and the recipe that it is."""
    text = new_recipe(path / 'my.py', student, list(teachers), **options)
    return text, load_recipe(path / 'my.py')


def one_line(text):
    """A recipe's text without the breaks of its comments."""
    return ' '.join(text.replace('#', ' ').split())


def test_a_pair_of_one_family(tmp_path):
    text, recipe = made(tmp_path, ATSS.format(50), ATSS.format(101))
    assert '# student: 39.4 box AP on COCO (mmdet), SHA-256 985f7bd0.' in text
    teacher = recipe.cfg.teachers.atss_r101_fpn_1x
    assert teacher.checkpoint.endswith('atss_r101_fpn_1x_20200825-dfcadd6f.pth')
    assert recipe.cfg.distill.start == 'inherit' and list(recipe.cfg.distill.levels) == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert 'module' not in text
    schedule = recipe.cfg.schedule
    assert (schedule.baseline, schedule.arm, schedule.lr_batch_size) == (87960, 87960, 16)
    assert schedule.optimizer.lr == 0.01 and list(schedule.lr.step) == [0.6667, 0.9167]
    assert [arm.teachers for arm in recipe.arms.values()] == [(None,), ('atss_r101_fpn_1x',)]


def test_two_teachers_have_their_controls(tmp_path):
    _, recipe = made(tmp_path, RETINANET.format(18), RETINANET.format(50), RETINANET.format(101))
    one, two = 'retinanet_r50_fpn_1x', 'retinanet_r101_fpn_1x'
    teachers = {name: arm.teachers for name, arm in recipe.arms.items()}
    assert teachers == {
        'none': (None,),
        'direct': (two,),
        'repeated': (two, two),
        'progressive': (one, two),
    }
    assert recipe.arms['progressive'].stage_updates == recipe.cfg.schedule.baseline
    # A ResNet-18's FPN takes other channels.
    assert recipe.cfg.distill.start == 'random'


def test_levels_are_those_of_the_same_stride(tmp_path, tiny_coco):
    data = str(tiny_coco(tmp_path / 'coco'))
    text, recipe = made(tmp_path, RETINANET.format(50), MASK_RCNN, data=data)
    assert list(recipe.cfg.distill.levels) == [0, 1, 2]
    assert '# Compared: strides 8, 16, 32.' in text and 'strides 64, 128 of the student' in text
    student, teacher = (recipe.model(name) for name in recipe.detectors)
    links = [item['teacher_module'] for item in distill_cfg(recipe, student, teacher)]
    assert links == [f'neck.fpn_convs.{level}.conv' for level in (1, 2, 3)]


def test_what_a_config_has_and_the_recipe_does_not_is_named(tmp_path, tiny_coco):
    data = str(tiny_coco(tmp_path / 'coco'))
    text, recipe = made(tmp_path, YOLOX.format('tiny'), YOLOX.format('s'), data=data)
    notes = one_line(text)
    for words in (
        'learning rate policy YOLOX',
        'Mosaic',
        'ExpMomentumEMAHook',
        'BatchNorm2d, Swish',
    ):
        assert words in notes
    assert notes.count('Not taken from') == 1
    assert recipe.cfg.distill.student_module == recipe.cfg.distill.teacher_module == 'auto'
    assert list(recipe.cfg.image.std) == [1, 1, 1] and not recipe.cfg.image.to_rgb
    assert recipe.cfg.schedule.optimizer.nesterov and recipe.cfg.schedule.lr_batch_size == 64
    student, teacher = (recipe.model(name) for name in recipe.detectors)
    (first, *_) = distill_cfg(recipe, student, teacher)
    assert first['student_module'] == 'neck.out_convs.0.conv'
    assert (
        first['methods'][0]['student_channels'] == 96
        and first['methods'][0]['teacher_channels'] == 128
    )


def test_how_a_student_trains_is_taken_or_named(tmp_path):
    student = tmp_path / 'student.py'
    base = f'_base_ = {RETINANET.format(50)!r}\n'
    student.write_text(
        f"{base}optimizer = dict(_delete_=True, type='AdamW', lr=1e-4, paramwise_cfg=dict(norm_decay_mult=0.0))\n"
        'optimizer_config = dict(_delete_=True, grad_clip=dict(max_norm=35, norm_type=2))\nfp16 = dict(loss_scale=512.0)\n'
    )
    text, recipe = made(tmp_path, str(student), RETINANET.format(101))
    schedule = recipe.cfg.schedule
    assert schedule.optimizer.type == 'AdamW' and schedule.optimizer.lr == 1e-4
    assert schedule.optimizer.paramwise_cfg == {'norm_decay_mult': 0.0}
    assert schedule.grad_clip == {'max_norm': 35, 'norm_type': 2}
    assert 'fp16 (speed.precision takes its place)' in one_line(text)
    (tmp_path / 'my.py').unlink()
    student.write_text(f"{base}optimizer = dict(constructor='LayerDecay', lr=1e-4)\n")
    text, recipe = made(tmp_path, str(student), RETINANET.format(101))
    assert 'optimizer (LayerDecay)' in one_line(text) and recipe.cfg.schedule.optimizer.lr == 0.01


def test_repeated_epochs_count_and_other_images_are_named(tmp_path):
    student = 'mmdet::retinanet/retinanet_r50_fpn_mstrain_640-800_3x_coco.py'
    text, recipe = made(tmp_path, student, RETINANET.format(101))
    # RepeatDataset goes three times through 117,266 images.
    assert recipe.cfg.schedule.baseline == 3 * 12 * 7330
    assert '36 epochs of COCO' in text and recipe.cfg.image.scale == (1333, 800)
    words = 'images of several sizes ((1333, 640) to (1333, 800))'
    assert words in one_line(text)
    (tmp_path / 'my.py').unlink()
    text, _ = made(tmp_path, 'mmdet::ssd/ssd300_coco.py', RETINANET.format(50))
    assert 'images stretched to one shape (keep_ratio=False)' in one_line(text)


def test_a_trial_fetches_nothing(tmp_path, tiny_coco):
    data = str(tiny_coco(tmp_path / 'coco'))
    _, recipe = made(tmp_path, ATSS.format(50), ATSS.format(101), pocket=True, data=data)
    assert 'http' not in (tmp_path / 'my.py').read_text()
    assert recipe.model('student').backbone.init_cfg is None
    assert recipe.checkpoint('atss_r101_fpn_1x') is None
    assert recipe.cfg.data.root == data and recipe.cfg.schedule.arm == 10


def test_a_trial_evaluates_few_images_and_says_so(tmp_path, tiny_coco, monkeypatch):
    monkeypatch.setattr(new_recipe_module, 'POCKET_IMAGES', 2)
    data = tiny_coco(tmp_path / 'coco')
    text, recipe = made(tmp_path, ATSS.format(50), ATSS.format(101), pocket=True, data=str(data))
    annotations, images = recipe.split('val')
    whole, few = (json.loads(path.read_text()) for path in (data / 'annotations/val.json', annotations))  # fmt: skip
    assert annotations == tmp_path / 'my_val.json' and images == data / 'val'
    names = [[item['file_name'] for item in table['images']] for table in (whole, few)]
    assert names[1] == names[0][:2] and len(few['categories']) == len(whole['categories'])
    assert len(few['annotations']) == 3  # one of the first image, two of the second
    assert recipe.split('train')[0] == data / 'annotations/train.json'
    assert not recipe.data_problems()
    notes = one_line(text)
    assert '10 updates a stage' in notes and '2 of 4 validation images' in notes
    assert notes.count('AP means nothing') == 1
    (tmp_path / 'my.py').unlink()
    with pytest.raises(MtpdError, match=r'my_val.json exists. Choose another name, or remove it'):
        made(tmp_path, ATSS.format(50), ATSS.format(101), pocket=True, data=str(data))


def test_a_trial_may_be_written_before_its_data_is_here(tmp_path):
    text, recipe = made(tmp_path, ATSS.format(50), ATSS.format(101), pocket=True, data=str(tmp_path / 'no'))  # fmt: skip
    assert recipe.cfg.data.splits == {'train': 'train', 'val': 'val'}
    notes = one_line(text)
    assert 'AP means nothing' in notes and 'validation images' not in notes


def test_a_student_that_is_there(tmp_path):
    _, recipe = made(tmp_path, ATSS.format(50), ATSS.format(101), student_checkpoint='mine.pth')
    assert recipe.cfg.student.checkpoint == 'mine.pth' and recipe.cfg.distill.start == 'baseline'


def test_what_is_refused(tmp_path):
    (tmp_path / 'my.py').write_text('')
    with pytest.raises(MtpdError, match=r'my\.py exists'):
        new_recipe(tmp_path / 'my.py', ATSS.format(50), [ATSS.format(101)])
    with pytest.raises(MtpdError) as error:
        new_recipe(tmp_path / 'x.py', ATSS.format(51), ['mmdet::yolof/yolo.py'])
    assert 'atss_r51' in str(error.value) and 'yolof/yolo.py' in str(error.value)
    with pytest.raises(MtpdError, match='no stride is common to all detectors'):
        new_recipe(tmp_path / 'x.py', 'mmdet::yolof/yolof_r50_c5_8x8_1x_coco.py', ['mmdet::centernet/centernet_resnet18_140e_coco.py'])  # fmt: skip
    assert not (tmp_path / 'x.py').exists()


@pytest.mark.long
def test_where_no_module_gives_a_level_alone_the_necks_maps_are_compared(tmp_path, tiny_coco):
    """DetectoRS' recursive pyramid calls its modules twice, and adds what they give."""
    rfp = 'mmdet::detectors/cascade_rcnn_r50_rfp_1x_coco.py'
    data = str(tiny_coco(tmp_path / 'coco'))
    text, recipe = made(tmp_path, rfp, MASK_RCNN, pocket=True, data=data)
    assert 'the maps that its neck gives are compared' in one_line(text)
    models = [recipe.model(name) for name in ('student', 'mask_rcnn_r50_fpn_1x')]
    pairs = [(i['student_module'], i['teacher_module']) for i in distill_cfg(recipe, *models)]
    assert pairs == [(f'neck:{k}', f'neck.fpn_convs.{k}.conv') for k in range(4)]
    assert models[0].neck.rfp_backbone.pretrained is None  # nothing is fetched


def test_a_teacher_of_other_classes_gives_its_features_only(tmp_path, tiny_coco):
    data = str(tiny_coco(tmp_path / 'coco'))
    text, recipe = made(tmp_path, ATSS.format(50), ATSS.format(101), data=data)
    assert recipe.cfg.teachers.atss_r101_fpn_1x.features_only is True
    assert recipe.cfg.distill.start == 'random'
    assert "its classes are not the dataset's" in one_line(text)


def test_what_detects_no_objects_may_give_its_features_only(tmp_path):
    rpn = 'mmdet::rpn/rpn_r50_fpn_1x_coco.py'
    with pytest.raises(MtpdError, match=r'the model \(RPN\) proposes boxes without classes'):
        new_recipe(tmp_path / 'my.py', rpn, [RETINANET.format(50)])
    with pytest.raises(MtpdError, match='needs its weights: --teacher-checkpoints'):
        new_recipe(tmp_path / 'my.py', RETINANET.format(50), [rpn])
    weights = [str(tmp_path / 'rpn.pth')]
    text, recipe = made(tmp_path, RETINANET.format(50), rpn, teacher_checkpoints=weights)
    assert recipe.cfg.teachers.rpn_r50_fpn_1x.features_only is True
    assert 'it is no detector of objects' in one_line(text)


def test_the_command(tmp_path):
    out = tmp_path / 'my.py'
    teachers = [ATSS.format(50), ATSS.format(101)]
    words = ['new', str(out), '--teachers', *teachers, '--student', ATSS.format(50)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert f'Check: mtpd doctor {out}' in result.output
    assert [*load_recipe(out).cfg.teachers] == ['atss_r50_fpn_1x', 'atss_r101_fpn_1x']
    assert CliRunner().invoke(main, words).exit_code == 2


def test_the_index_of_published_weights():
    weights, ap = published_weights('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    assert weights.endswith('c2398f9e.pth') and ap == 36.5
    assert published_weights('my/config.py') == (None, None)


def test_a_teacher_of_another_normalisation_has_it_in_the_recipe(tmp_path):
    caffe = 'mmdet::retinanet/retinanet_r101_caffe_fpn_1x_coco.py'
    text, recipe = made(tmp_path, RETINANET.format(50), caffe, RETINANET.format(101))
    one, other = recipe.cfg.teachers.values()
    assert one.image == {'mean': [103.53, 116.28, 123.675], 'std': [1.0, 1.0, 1.0], 'to_rgb': False}
    assert 'image' not in other and 'has its own image normalisation' in text
    assert recipe.cfg.image.to_rgb and recipe.cfg.image.mean[0] == 123.675


@pytest.mark.long
def test_the_weight_is_measured_where_weights_and_data_are(tmp_path, tiny_coco):
    """A teacher of the checkout's own, and a dataset that is there: alpha is the one that gives a ratio of 1."""
    data = str(tiny_coco(tmp_path / 'coco'))
    model = str(ROOT / 'configs/_base_/models/pocket_retinanet.py')
    text, recipe = made(tmp_path, model, model, data=data)
    assert 'It was not measured' in one_line(text) and 'settings' not in text  # no weights
    teacher = tmp_path / 'teacher.pth'
    torch.manual_seed(0)
    weights = build_detector(ConfigDict(recipe.model('student'))).state_dict()
    torch.save({'state_dict': weights, 'meta': {}}, teacher)
    (tmp_path / 'my.py').unlink()
    text, recipe = made(tmp_path, model, model, data=data, teacher_checkpoints=[str(teacher)])
    name = next(iter(recipe.cfg.teachers))
    assert recipe.cfg.teachers[name].checkpoint == str(teacher)
    ratio = float(re.search(r'the distillation loss is ([\d.e-]+) times', one_line(text))[1])
    neck = float(re.search(r'its gradient ([\d.e-]+) times in the neck', one_line(text))[1])
    judged = ratio if recipe.cfg.distill.start == 'random' else neck
    alpha = recipe.cfg.distill.settings.mgd.alpha
    expected = 2e-5 if 0.1 <= judged <= 10 else 2e-5 / judged
    assert alpha == pytest.approx(expected, rel=0.06)
    with pytest.raises(MtpdError, match='1 teachers and 2 checkpoints'):
        new_recipe(tmp_path / 'x.py', model, [model], teacher_checkpoints=['a', 'b'])


def test_a_config_of_ones_own_may_build_on_mmdets(tmp_path, tiny_coco):
    """A backbone that mmdet has no such detector of; a base that is not there is named."""
    mobilenet = tmp_path / 'mobilenet.py'
    mobilenet.write_text(
        f'_base_ = {RETINANET.format(50)!r}\n'
        "model = dict(backbone=dict(_delete_=True, type='MobileNetV2', out_indices=(1, 2, 4, 7)),\n"
        '             neck=dict(in_channels=[24, 32, 96, 1280]))\n'
    )
    data = str(tiny_coco(tmp_path / 'coco'))
    _, recipe = made(tmp_path, str(mobilenet), RETINANET.format(50), data=data, pocket=True)
    model = recipe.model('student')
    assert model.type == 'RetinaNet' and model.backbone.type == 'MobileNetV2'
    assert model.bbox_head.num_classes == len(recipe.classes)
    assert list(recipe.cfg.distill.levels) == [0, 1, 2, 3, 4]
    mobilenet.write_text("_base_ = 'mmdet::retinanet/retinanet_r51.py'\n")
    with pytest.raises(MtpdError, match=r'retinanet_r51\.py is missing'):
        new_recipe(tmp_path / 'x.py', str(mobilenet), [RETINANET.format(50)])
