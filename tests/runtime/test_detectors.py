"""Each adaptation of mtpd.runtime.detectors: what it is for works, and would not without it."""

from __future__ import annotations

from mmcv.cnn import build_conv_layer
from mmcv.ops import DeformConv2dPack
from mmdet.models import build_backbone

from mtpd.runtime import detectors


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
