"""Proposals of a batch at once are those that mmdet makes image by image."""

from __future__ import annotations

import pytest
import torch

from mtpd.runtime import proposals, target_assignment

# isort: split
from mmcv import ConfigDict
from mmcv.ops import nms
from mmdet.models import build_head
from mmdet.models.dense_heads import RPNHead
from torch import Tensor

HEAD = dict(
    type='RPNHead',
    in_channels=8,
    feat_channels=8,
    anchor_generator=dict(
        type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16]
    ),
)
SIZES = [(40, 56), (20, 28), (10, 14)]
METAS = [{'img_shape': (160 - 7 * k, 220 - 5 * k, 3), 'scale_factor': 1} for k in range(3)]


def settings(**changes) -> ConfigDict:
    plain = dict(nms_pre=200, max_per_img=100, nms=dict(type='nms', iou_threshold=0.7))
    return ConfigDict(plain | {'min_bbox_size': 0} | changes)


def outputs(device: str = 'cpu') -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    scores = [torch.randn(3, 3, *size, device=device) for size in SIZES]
    return scores, [torch.randn(3, 12, *size, device=device) for size in SIZES]


def greedy(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """By mmcv's operator, a set at a time."""
    stays = torch.zeros_like(valid)
    for k, flags in enumerate(valid):
        places = flags.nonzero()[:, 0]
        if len(places):
            ranks = torch.linspace(1, 0.1, len(places), device=boxes.device)
            stays[k, places[nms(boxes[k, places], ranks, threshold)[1]]] = True
    return stays


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'nms_pre': -1},
        {'nms_pre': 500},  # more than the smallest level has
        {'max_per_img': 10_000},  # more than there are
        {'min_bbox_size': 25},  # some boxes are smaller
        {'min_bbox_size': 1000},  # all are
        {'min_bbox_size': -1},
        {'nms': dict(type='nms', iou_threshold=0.2)},
    ],
    ids=str,
)
def test_they_are_mmdets(changes):
    head, cfg = build_head(HEAD), settings(**changes)
    theirs = head.get_bboxes(*outputs(), img_metas=METAS, cfg=cfg)
    ours = proposals.batch_proposals(head, *outputs(), METAS, cfg, greedy)
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(b, a)


@pytest.mark.parametrize('count', [1, 5, 100, 2000])
@pytest.mark.gpu
def test_the_kernel_suppresses_as_mmcv_does(count):
    pytest.importorskip('triton')
    from mtpd.runtime.suppression import kept_boxes

    torch.manual_seed(count)
    corners, sizes = torch.rand(6, count, 2) * 300, torch.rand(6, count, 2) * 150
    boxes = torch.cat([corners, corners + sizes], dim=2).cuda()
    valid = torch.rand(6, count, device='cuda') < 0.9
    for threshold in (0.1, 0.5, 0.7):
        stays = kept_boxes(boxes, valid, threshold)
        torch.testing.assert_close(stays, greedy(boxes, valid, threshold))
        assert stays.any() and (count < 100 or not stays[valid].all())


@pytest.mark.gpu
def test_on_a_gpu_the_head_makes_them_at_once(monkeypatch):
    pytest.importorskip('triton')
    target_assignment.patch_target_assignment()
    head, cfg, calls = build_head(HEAD), settings(), []
    plain = proposals.batch_proposals
    monkeypatch.setattr(proposals, 'batch_proposals', lambda *args: calls.append(1) or plain(*args))
    ours = head.get_bboxes(*outputs('cuda'), img_metas=METAS, cfg=cfg)
    assert calls
    theirs = RPNHead.get_bboxes.__wrapped__(head, *outputs('cuda'), img_metas=METAS, cfg=cfg)
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(b, a)


def test_other_settings_are_left_to_mmdet():
    head = build_head(HEAD)
    assert proposals._is_simple(head, settings())
    for other in (dict(type='soft_nms', iou_threshold=0.5), dict(type='nms', iou_thr=0.5)):
        assert not proposals._is_simple(head, settings(nms=other))
