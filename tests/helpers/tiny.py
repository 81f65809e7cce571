"""Detectors small enough for a unit test, and a batch for them."""

from __future__ import annotations

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split

import numpy as np
import torch
from mmcv import ConfigDict
from mmdet.core import BitmapMasks
from mmdet.models import build_detector
from torch import nn

# Overrides of the demo's recipe: trainings of one or two updates, its teachers' among them.
SMALL = {
    'image.scale': 64,
    'schedule.batch_size': 2,
    'schedule.baseline': 1,
    'schedule.arm': 2,
    'schedule.log_interval': 1,
    'schedule.checkpoint_interval': 1,
    'runtime.workers': 0,
    'student.checkpoint': None,
    'teachers.r101.checkpoint': None,
    'teachers.rx101.checkpoint': None,
    'teachers.rx101.init': None,
}


def retinanet(depth=18, base=8, channels=16, num_classes=3) -> dict:
    """Model config of a RetinaNet with FPN levels at strides 8, 16 and 32."""
    widths = [base * 2, base * 4, base * 8]
    return dict(
        type='RetinaNet',
        backbone=dict(
            type='ResNet', depth=depth, base_channels=base, out_indices=(1, 2, 3), norm_eval=False
        ),
        neck=dict(type='FPN', in_channels=widths, out_channels=channels, num_outs=3),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=num_classes,
            in_channels=channels,
            feat_channels=channels,
            stacked_convs=1,
            anchor_generator=dict(
                type='AnchorGenerator',
                octave_base_scale=3,
                scales_per_octave=1,
                ratios=[0.7],
                strides=[8, 16, 32],
            ),
        ),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        # No threshold: an untrained head scores everything at 0.01.
        test_cfg=dict(
            nms_pre=50, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10
        ),
    )


def detector(cfg: dict, seed: int):
    """The detector with random weights and batch norm statistics that `seed` determines."""
    model = build_detector(ConfigDict(cfg))
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            fan_in = value[0].numel() if value.dim() > 1 else 4
            value.normal_(0, fan_in**-0.5, generator=generator)
            if name.endswith('running_var'):
                value.abs_().add_(0.5)
    return model.eval()


def batch(num_classes=3, images=2, boxes=2) -> dict:
    """Keyword arguments of `forward_train`: 64 x 64 images, boxes xyxy in pixels."""
    generator = torch.Generator().manual_seed(7)
    corners = torch.rand(images, boxes, 2, generator=generator) * 32
    sides = torch.rand(images, boxes, 2, generator=generator) * 24 + 6
    meta = dict(
        img_shape=(64, 64, 3), ori_shape=(64, 64, 3), pad_shape=(64, 64, 3), scale_factor=1.0
    )
    return dict(
        img=torch.randn(images, 3, 64, 64, generator=generator),
        img_metas=[dict(meta, filename=f'{i}.png', flip=False) for i in range(images)],
        gt_bboxes=list(torch.cat([corners, corners + sides], dim=2)),
        gt_labels=[torch.arange(boxes) % num_classes for _ in range(images)],
    )


def gradients(model: nn.Module, **data) -> tuple[dict, dict]:
    """Losses, and gradients by parameter, of one update's draws."""
    torch.manual_seed(1)
    losses = model.forward_train(**(data or batch()))
    flat = {k: sum(v) if isinstance(v, list) else v for k, v in losses.items() if 'loss' in k}
    sum(flat.values()).backward()
    scalars = {k: float(v.detach()) for k, v in flat.items()}
    return scalars, {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def large_batch(masks: bool) -> dict:
    """`batch` at twice the size: 128 x 128 images; a mask per box is the whole box."""
    data = batch(num_classes=10)
    data['img'] = data['img'].repeat_interleave(2, 2).repeat_interleave(2, 3)
    data['gt_bboxes'] = [2 * boxes for boxes in data['gt_bboxes']]
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (128, 128, 3))
    data['img_metas'] = [meta | shapes for meta in data['img_metas']]
    if masks:
        data['gt_masks'] = []
        for boxes in data['gt_bboxes']:
            drawn = np.zeros((len(boxes), 128, 128), np.uint8)
            for mask, (x1, y1, x2, y2) in zip(drawn, boxes.int().tolist(), strict=True):
                mask[y1 : y2 + 1, x1 : x2 + 1] = 1
            data['gt_masks'].append(BitmapMasks(drawn, 128, 128))
    return data
