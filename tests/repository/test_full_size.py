"""The paper's detectors and stages at full width: they build, and each stage makes an update on real images."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from mtpd.config.recipe import load_recipe
from mtpd.utils.paths import ROOT, resolve_path

pytestmark = pytest.mark.slow

RETINANET, REPPOINTS = 'retinanet_r50__r101_rx101', 'reppoints_r50__r101_rx101dcn'
RETINANET_SWIN, MASK_SWIN = 'retinanet_r50__swint_swins', 'mask_rcnn_r50__swint_swins'
MASK_CASCADE = 'mask_rcnn_r50__cascade_r50dcn_rx101dcn'
R50, R101 = 23_508_032, 42_500_160  # torchvision's, without the classifier
RX101_64, RX101_32 = 81_406_272, 42_128_704


def offsets(blocks: tuple[int, ...], widths: tuple[int, ...]) -> int:
    """Of deformable 3 x 3 convolutions: a 3 x 3 convolution from `width` to 18 channels in each block."""
    return sum(n * (9 * width * 18 + 18) for n, width in zip(blocks, widths, strict=True))


SWIN_T, SWIN_S = 28_288_354 - 769_000, 49_606_258 - 769_000  # without the classifier
DCN_R50 = offsets((4, 6, 3), (128, 256, 512))
DCN_RX101 = offsets((4, 23, 3), (256, 512, 1024))
BACKBONES = {
    RETINANET: (R50, R101, RX101_64),
    RETINANET_SWIN: (R50, SWIN_T, SWIN_S),
    MASK_CASCADE: (R50, R50 + DCN_R50, RX101_32 + DCN_RX101),
    MASK_SWIN: (R50, SWIN_T, SWIN_S),
    REPPOINTS: (R50, R101, RX101_32 + DCN_RX101),
}
# Swin as a backbone has a norm at each output instead of one at the end (768 channels, weight and bias).
NORMS = {RETINANET_SWIN: 2 * (192 + 384 + 768) - 2 * 768, MASK_SWIN: 2 * 96 + 2 * (192 + 384)}
DETECTOR_LOSSES = {
    'retinanet': {'loss_cls', 'loss_bbox'},
    'mask': {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask'},
    'reppoints': {'loss_cls', 'loss_pts_init', 'loss_pts_refine'},
}


@pytest.mark.parametrize('name', BACKBONES)
def test_student_and_teachers_build_at_full_width(name, shared_data):
    from mmcv import ConfigDict
    from mmdet.models import build_detector

    root = {'data.root': str(shared_data / 'coco_tiny')}
    recipe = load_recipe(f'configs/paper/{name}.py', root)
    for detector, size in zip(recipe.detectors, BACKBONES[name], strict=True):
        model = build_detector(ConfigDict(recipe.model(detector)))
        count = sum(p.numel() for p in model.backbone.parameters())
        assert count == size + (NORMS.get(name, 0) if detector != 'student' else 0), detector
        assert model.neck.fpn_convs[0].conv.weight.shape == (256, 256, 3, 3)
        heads = [m.num_classes for m in model.modules() if hasattr(m, 'num_classes')]
        assert set(heads) - {1} == {80}, detector  # 1: a proposal head's


@pytest.fixture(scope='module', params=BACKBONES)
def both(request, shared_data, tmp_path_factory):
    """The two stages of a recipe, one update each, by the committed script."""
    out = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, str(ROOT / 'benchmarks' / 'full_size.py'), '--recipe', request.param]
    command += ['--data', str(shared_data / 'coco_tiny'), '--device', 'cpu']
    command += ['--work-dir', str(out), '--out', str(out / 'rows.json')]
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    subprocess.run(command, env=env, check=True, timeout=1200)
    report = json.loads((out / 'rows.json').read_text())
    return request.param, report['rows'], out / request.param


def test_a_stage_makes_an_update(both):
    name, rows, folder = both
    levels = range(4 if name.startswith('mask') else 5)
    assert [row['start'] for row in rows] == ['inherit', 'previous stage']
    for row, teacher in zip(
        rows, load_recipe(f'configs/paper/{name}.py').cfg.teachers, strict=True
    ):
        losses = dict(row['losses'])
        total = losses.pop('loss')
        detector_losses = DETECTOR_LOSSES[name.split('_')[0]]
        assert set(losses) == detector_losses | {f'loss_mgd_fpn_{level}' for level in levels}
        assert all(math.isfinite(value) and value > 0 for value in losses.values())
        assert total == pytest.approx(sum(losses.values()), rel=1e-4)
        assert row['updates'] == 1 and row['memory_mib'] < 10 * 1024

        for part in ('backbone', 'neck', 'head', 'distill_losses'):
            gradients = row['gradients'][part]
            assert gradients['reached'] == gradients['trained'] > 0, part
            assert 0 < gradients['norm'] < math.inf, part
        assert row['gradients']['teacher'] == {'trained': 0, 'reached': 0, 'norm': 0}

        stage = folder / 'stages' / 'progressive' / f'{row["stage"]}_{teacher}'
        latest = torch.load(stage / 'latest.pth', weights_only=True)
        student = torch.load(stage / 'student.pth', weights_only=True)['state_dict']
        of_student = {k[8:] for k in latest['state_dict'] if k.startswith('student.')}
        assert of_student == set(student)
        others = set(latest['state_dict']) - {f'student.{key}' for key in student}
        assert others == {
            f'distill_losses.loss_mgd_fpn_{level}.generation.{layer}.{kind}'
            for level in levels
            for layer in (0, 2)
            for kind in ('weight', 'bias')
        }
        weights = 4 * sum(value.numel() for value in student.values())
        assert (stage / 'student.pth').stat().st_size == pytest.approx(weights, rel=0.02)
        # One momentum for each trained weight, of the student (a quarter million are frozen) and of the losses.
        whole = 2 * (weights + 4 * len(levels) * 2 * (256 * 256 * 9 + 256))
        assert (stage / 'latest.pth').stat().st_size == pytest.approx(whole, rel=0.02)


def test_stage_one_inherits_neck_and_head_at_full_width(both):
    """The first learning rate is a hundred-thousandth: after one update the weights are still the teacher's."""
    name, rows, folder = both
    teacher = next(iter(load_recipe(f'configs/paper/{name}.py').cfg.teachers))
    stage = folder / 'stages' / 'progressive' / f'1_{teacher}'
    ours = torch.load(stage / 'student.pth', weights_only=True)['state_dict']
    theirs = torch.load(folder / f'{teacher}.pth', weights_only=True)['state_dict']
    pairs = {'neck.fpn_convs.0.conv.weight': 'neck.fpn_convs.0.conv.weight'}
    if name.startswith('mask'):
        cascade = '0.' if name == MASK_CASCADE else ''
        for key in ('bbox_head.{}shared_fcs.0.weight', 'mask_head.{}convs.0.conv.weight'):
            pairs[f'roi_head.{key.format("")}'] = f'roi_head.{key.format(cascade)}'
    else:
        pairs['bbox_head.cls_convs.0.conv.weight'] = 'bbox_head.cls_convs.0.conv.weight'
    for mine, other in pairs.items():
        torch.testing.assert_close(ours[mine], theirs[other], atol=1e-4, rtol=0)
    assert bool(rows[0]['inherited']['adapted']) is (name == MASK_CASCADE)
    if name == MASK_CASCADE:  # its boxes are class-agnostic: repeated for each of 80 classes
        mine = ours['roi_head.bbox_head.fc_reg.weight'].view(80, 4, -1)
        agnostic = theirs['roi_head.bbox_head.0.fc_reg.weight']
        torch.testing.assert_close(mine, agnostic.expand(80, 4, -1), atol=1e-4, rtol=0)


def test_the_student_loads_in_mmdet_alone(both):
    from mmcv.runner import load_checkpoint
    from mmdet.apis import init_detector
    from mmdet.datasets import CocoDataset

    name, _, folder = both
    recipe = load_recipe(f'configs/paper/{name}.py')
    path = next(folder.glob('stages/progressive/2_*/student.pth'))
    options = {'model.backbone.init_cfg': None}
    config = str(resolve_path(recipe.cfg.student.config, recipe.source))
    model = init_detector(config, device='cpu', cfg_options=options)
    meta = load_checkpoint(model, str(path), map_location='cpu', strict=True)['meta']
    assert list(meta['CLASSES']) == list(CocoDataset.CLASSES)
