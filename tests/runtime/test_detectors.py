"""Each adaptation of mtpd.runtime.detectors: what it is for works, and would not without it."""

from __future__ import annotations

from mmcv import ConfigDict
from mmcv.cnn import build_conv_layer
from mmdet.models import build_backbone, build_head
from mmdet.models.dense_heads import RepPointsHead

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


def test_points_have_flags_on_the_device_that_is_asked_for():
    head = build_head(
        ConfigDict(type='RepPointsHead', num_classes=2, in_channels=4, point_strides=[8, 16])
    )
    meta = dict(pad_shape=(32, 32, 3))
    for device in ('cpu', 'meta'):
        points, flags = head.get_points([(4, 4), (2, 2)], [meta, meta], device)
        assert [len(image) for image in points] == [2, 2]
        assert {flag.device.type for image in flags for flag in image} == {device}
        assert [len(flag) for flag in flags[0]] == [16, 4]
    assert 'valid_flags' not in vars(head.prior_generator)


def test_applying_again_changes_nothing():
    before = RepPointsHead.get_points
    detectors.patch_detectors()
    assert RepPointsHead.get_points is before
    layer = build_conv_layer(dict(type='DCN', deform_groups=1), 4, 4, 3)
    layer.conv_offset.weight.data.fill_(1)
    layer.init_weights()
    assert not layer.conv_offset.weight.any()
