"""Each adaptation of mtpd.runtime.detectors: what it is for works, and would not without it."""

from __future__ import annotations

import pytest
import torch

from helpers import tiny
from mtpd.engine import speed
from mtpd.runtime import detectors

# isort: split
from mmcv import Config
from mmcv.cnn import build_conv_layer
from mmcv.ops import DeformConv2dPack, deform_conv2d
from mmdet.models import build_backbone, build_detector
from mmdet.models.dense_heads import tood_head

from mtpd.utils.paths import find_config_file


def test_a_deformable_backbone_begins_as_a_plain_one():
    dcn = dict(type='DCN', deform_groups=1)
    model = build_backbone(
        dict(
            type='ResNet', depth=50, base_channels=8, dcn=dcn, stage_with_dcn=(False,) * 3 + (True,)
        )
    )
    model.init_weights()
    offsets = {key: value for key, value in model.state_dict().items() if 'conv_offset' in key}
    assert len(offsets) == 3 * 2  # weight and bias in each block of the last stage
    assert not any(value.any() for value in offsets.values())
    assert model.layer4[0].conv2.weight.any() and model.layer4[0].conv1.weight.std() > 0.05


def test_applying_again_changes_nothing():
    before = DeformConv2dPack.init_weights
    detectors.patch_detectors()
    assert DeformConv2dPack.init_weights is before
    layer = build_conv_layer(dict(type='DCN', deform_groups=1), 4, 4, 3)
    layer.conv_offset.weight.data.fill_(1)
    layer.init_weights()
    assert not layer.conv_offset.weight.any()


def test_toods_head_samples_in_full_precision_whatever_is_around_it():
    """mmcv's deformable convolution takes no bfloat16; by zero offsets it is a plain convolution."""
    x = torch.randn(1, 4, 6, 6)
    weight, offset = torch.randn(4, 4, 1, 1), torch.zeros(1, 2, 6, 6)
    wanted = torch.nn.functional.conv2d(x.bfloat16().float(), weight.bfloat16().float())
    with torch.autocast('cpu', torch.bfloat16):
        ours = tood_head.deform_conv2d(x.bfloat16(), offset, weight.bfloat16(), 1, 0, 1, 1, 1)
    assert ours.dtype == torch.float32 and torch.allclose(ours, wanted, atol=1e-5)
    full = tood_head.deform_conv2d(x, offset, weight, 1, 0, 1, 1, 1)
    assert torch.equal(full, deform_conv2d(x, offset, weight, 1, 0, 1, 1, 1))


@pytest.mark.long
def test_tood_trains_in_bfloat16_on_the_cpu():
    cfg = Config.fromfile(str(find_config_file('mmdet::tood/tood_r50_fpn_1x_coco.py')))
    cfg.model.backbone.update(depth=18, init_cfg=None)
    cfg.model.neck.in_channels = [64, 128, 256, 512]
    cfg.model.bbox_head.num_classes = 3
    torch.manual_seed(0)
    model = build_detector(cfg.model).train()
    model = speed.apply_speed(model, speed.Speed(precision='bf16'), 'cpu')
    _, gradients = tiny.gradients(model)
    assert gradients and all(value.isfinite().all() for value in gradients.values())
