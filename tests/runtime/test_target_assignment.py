"""Targets are mmdet's own, exactly; `__wrapped__` is what mmdet does by itself."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch

from mtpd.runtime import assigners, target_assignment

# isort: split
import numpy as np
from mmcv import ConfigDict
from mmdet.core import BitmapMasks
from mmdet.core.bbox.assigners import MaxIoUAssigner, PointAssigner
from mmdet.models import build_head
from mmdet.models.dense_heads import AnchorHead, RepPointsHead

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)]
HEAD = dict(
    type='RetinaHead',
    num_classes=9,
    in_channels=8,
    anchor_generator=dict(
        type='AnchorGenerator',
        octave_base_scale=4,
        scales_per_octave=3,
        ratios=[0.5, 1.0, 2.0],
        strides=[8, 16, 32],
    ),
)
ASSIGNER = dict(
    type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1
)
SIZES = [(32, 32), (16, 16), (8, 8)]
METAS = [
    dict(pad_shape=(256, 224, 3), img_shape=(250, 220, 3)),
    dict(pad_shape=(192, 256, 3), img_shape=(190, 250, 3)),
    dict(pad_shape=(256, 224, 3), img_shape=(256, 200, 3)),
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def boxes(count: int, side: int = 200) -> torch.Tensor:
    corners = torch.rand(count, 2) * side
    return torch.cat([corners, corners + torch.rand(count, 2) * 80 + 1], 1)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('match_low_quality', [True, False])
@pytest.mark.parametrize('every_best', [True, False])
@pytest.mark.parametrize('background', [0.4, (0.1, 0.4)])
@pytest.mark.parametrize('least', [0.0, 0.3])
def test_matching_by_overlap(least, background, every_best, match_low_quality, device):
    assigner = MaxIoUAssigner(
        0.5,
        background,
        least,
        gt_max_assign_all=every_best,
        match_low_quality=match_low_quality,
    )
    for count in (0, 1, 7, 30):
        overlaps = assigner.iou_calculator(boxes(count), boxes(500))
        overlaps[:, ::7] = -1  # left out
        overlaps[:, 1::7] = overlaps[:, 2::7][:, : overlaps[:, 1::7].shape[1]]  # equally good
        labels = torch.randint(0, 9, (count,))
        wanted = MaxIoUAssigner.assign_wrt_overlaps.__wrapped__(assigner, overlaps, labels)
        result = assigner.assign_wrt_overlaps(overlaps.to(device), labels.to(device))
        for name in ('gt_inds', 'max_overlaps', 'labels'):
            assert torch.equal(getattr(wanted, name), getattr(result, name).cpu()), (count, name)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('points_an_object', [1, 3])
def test_matching_by_distance(points_an_object, device):
    levels = []
    for stride, side in ((8, 30), (16, 15), (32, 8), (64, 4)):
        xy = torch.stack(torch.meshgrid(*[torch.arange(side) * stride] * 2, indexing='ij'), -1)
        levels.append(torch.cat([xy.reshape(-1, 2), torch.full((side**2, 1), stride)], 1).float())
    points, assigner = torch.cat(levels), PointAssigner(4, points_an_object)
    for count in (0, 1, 40):
        objects, labels = boxes(count), torch.randint(0, 9, (count,))
        wanted = PointAssigner.assign.__wrapped__(assigner, points, objects, None, labels)
        result = assigner.assign(points.to(device), objects.to(device), None, labels.to(device))
        assert torch.equal(wanted.gt_inds, result.gt_inds.cpu())
        assert torch.equal(wanted.labels, result.labels.cpu())
        assert count == 0 or (wanted.gt_inds > 0).sum() > count // 2


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('border', [-1, 0])
@pytest.mark.parametrize('counts', [(3, 0, 20), (1, 5, 0)])
@pytest.mark.parametrize('images_at_once', [1, 3])
def test_targets_of_anchors(images_at_once, counts, border, device, monkeypatch):
    pairs = 0 if images_at_once == 1 else 2**24
    monkeypatch.setattr(assigners, 'PAIRS_AT_ONCE', pairs)
    train_cfg = dict(assigner=ASSIGNER, allowed_border=border, pos_weight=-1, debug=False)
    head = build_head(ConfigDict(HEAD | {'train_cfg': train_cfg}))
    objects = [boxes(n, 150) for n in counts]
    labels = [torch.randint(0, 9, (n,)) for n in counts]
    original = AnchorHead.get_anchors.__wrapped__(head, SIZES, METAS, 'cpu')
    wanted = AnchorHead.get_targets.__wrapped__(head, *original, objects, METAS, None, labels)
    anchors = head.get_anchors(SIZES, METAS, device)
    for a, b in itertools.chain(
        *(zip(x, y, strict=True) for x, y in zip(original, anchors, strict=True))
    ):
        assert all(torch.equal(x, y.cpu()) for x, y in zip(a, b, strict=True))
    objects, labels = ([item.to(device) for item in items] for items in (objects, labels))
    result = head.get_targets(*anchors, objects, METAS, None, labels)
    assert wanted[4:] == result[4:]
    assert wanted[4] >= sum(counts)
    for level, ours in zip(wanted[:4], result[:4], strict=True):
        for a, b in zip(level, ours, strict=True):
            assert a.dtype == b.dtype
            # On a GPU the coding of boxes may round otherwise.
            torch.testing.assert_close(a, b.cpu(), rtol=0 if device == 'cpu' else 1e-5, atol=0 if device == 'cpu' else 1e-6)  # fmt: skip


def point_head():
    train_cfg = dict(
        init=dict(assigner=dict(type='PointAssigner', scale=4, pos_num=1), allowed_border=-1, pos_weight=-1),
        refine=dict(assigner=ASSIGNER, allowed_border=-1, pos_weight=-1),
    )  # fmt: skip
    return build_head(
        ConfigDict(
            type='RepPointsHead', num_classes=9, in_channels=8, feat_channels=8, point_feat_channels=8,
            point_strides=[8, 16, 32], train_cfg=train_cfg,
        )
    )  # fmt: skip


COUNTS = [(3, 0, 20), (1, 5, 0), (0, 0, 0)]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('stage', ['init', 'refine'])
@pytest.mark.parametrize('counts', COUNTS)
def test_targets_of_points(counts, stage, device):
    head = point_head()
    objects = [boxes(n, 150) for n in counts]
    labels = [torch.randint(0, 9, (n,)) for n in counts]
    results = []
    for get_targets, where in (
        (RepPointsHead.get_targets.__wrapped__, 'cpu'),
        (RepPointsHead.get_targets, device),
    ):
        proposals, flags = head.get_points(SIZES, METAS, where)
        if stage == 'refine':
            shift = torch.tensor([-20.0, -14, 20, 14], device=where)
            proposals = [[p[:, [0, 1, 0, 1]] + shift for p in image] for image in proposals]
        moved = ([item.to(where) for item in items] for items in (objects, labels))
        here, classes = moved
        results.append(get_targets(head, proposals, flags, here, METAS, None, classes, stage))
    wanted, result = results
    assert wanted[5:] == result[5:]
    assert wanted[5] > 3 * (stage == 'refine') * any(counts)
    for level, ours in zip(wanted[:5], result[:5], strict=True):
        for a, b in zip(level, ours, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b.cpu())


def test_points_and_which_are_valid():
    """mmdet's own `get_points` makes the flags on 'cuda' in any case."""
    head = point_head()
    points, flags = head.get_points(SIZES, METAS, 'cpu')
    generator = head.prior_generator
    wanted = generator.grid_priors(SIZES, device='cpu', with_stride=True)
    assert len(points) == len(METAS)
    for image in points:
        assert all(torch.equal(a, b) for a, b in zip(image, wanted, strict=True))
    for image, meta in zip(flags, METAS, strict=True):
        valid = generator.valid_flags(SIZES, meta['pad_shape'], 'cpu')
        assert all(torch.equal(a, b) for a, b in zip(image, valid, strict=True))
    assert not all(level.all() for image in flags for level in image)


def test_points_have_flags_on_the_device_that_is_asked_for():
    for device in ('cpu', 'meta'):
        points, flags = point_head().get_points(SIZES, METAS, device)
        for levels in points + flags:
            assert [len(level) for level in levels] == [32 * 32, 16 * 16, 8 * 8]
            assert {level.device.type for level in levels} == {device}


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('counts', COUNTS)
def test_loss_of_points_and_its_gradients(counts, device):
    head = point_head()
    objects = [boxes(n, 150) for n in counts]
    labels = [torch.randint(0, 9, (n,)) for n in counts]
    outputs = [
        [torch.randn(3, channels, *size) for size in SIZES]
        for channels in (9, 2 * head.num_points, 2 * head.num_points)
    ]

    def losses_and_gradients(where):
        head.to(where).zero_grad()
        here = [
            [level.clone().to(where).requires_grad_() for level in levels] for levels in outputs
        ]
        moved = [[item.to(where) for item in items] for items in (objects, labels)]
        losses = head.loss(*here, *moved, METAS)
        sum(sum(levels) for levels in losses.values()).backward()
        gradients = [level.grad for levels in here for level in levels]
        return losses, [*gradients, head.moment_transfer.grad.clone()]

    with target_assignment.original_assignment():
        wanted, wanted_gradients = losses_and_gradients('cpu')
    losses, gradients = losses_and_gradients(device)
    assert list(losses) == list(wanted)
    assert all(loss > 0 for loss in losses['loss_cls'])
    exact = dict(rtol=1e-6, atol=1e-7) if device == 'cpu' else dict(rtol=1e-4, atol=1e-6)
    for name, levels in wanted.items():
        for a, b in zip(levels, losses[name], strict=True):
            torch.testing.assert_close(a, b.cpu(), **exact)
    for a, b in zip(wanted_gradients, gradients, strict=True):
        torch.testing.assert_close(a, b.cpu(), **exact)


def test_targets_of_anchors_that_differ_between_images():
    """As those of a cascade's second stage do."""
    train_cfg = dict(assigner=ASSIGNER, allowed_border=-1, pos_weight=-1, debug=False)
    head = build_head(ConfigDict(HEAD | {'train_cfg': train_cfg}))
    anchors, flags = head.get_anchors(SIZES, METAS, 'cpu')
    moved = [[level + 5 * number for level in image] for number, image in enumerate(anchors)]
    objects, labels = [boxes(4, 150)] * 3, [torch.arange(4)] * 3
    wanted, result = (
        get_targets(head, moved, flags, objects, METAS, None, labels)
        for get_targets in (AnchorHead.get_targets.__wrapped__, AnchorHead.get_targets)
    )
    for level, ours in zip(wanted[:4], result[:4], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(level, ours, strict=True))
    assert not torch.equal(result[0][0][0], result[0][0][1])


def test_no_valid_anchor_in_an_image_gives_no_targets_as_in_mmdet():
    train_cfg = dict(assigner=ASSIGNER, allowed_border=0, pos_weight=-1, debug=False)
    head = build_head(ConfigDict(HEAD | {'train_cfg': train_cfg}))
    metas = [METAS[0], dict(pad_shape=(256, 224, 3), img_shape=(2, 2, 3))]
    anchors = head.get_anchors(SIZES, metas, 'cpu')
    objects, labels = [boxes(2), boxes(2)], [torch.zeros(2, dtype=torch.long)] * 2
    for get_targets in (AnchorHead.get_targets.__wrapped__, AnchorHead.get_targets):
        assert get_targets(head, *anchors, objects, metas, None, labels) is None


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(
    'cfg', [dict(mask_size=14), dict(mask_size=(7, 11), soft_mask_target=True)]
)
def test_targets_of_masks(cfg, device):
    mask_target_single = sys.modules['mmdet.core.mask.mask_target'].mask_target_single
    masks = BitmapMasks(
        (np.random.default_rng(0).random((6, 50, 60)) > 0.5).astype(np.uint8), 50, 60
    )
    cut, objects = boxes(20, 40), torch.randint(0, 6, (20,))  # some stick out
    wanted = mask_target_single.__wrapped__(cut, objects, masks, ConfigDict(cfg))
    result = mask_target_single(cut.to(device), objects.to(device), masks, ConfigDict(cfg))
    assert result.device.type == device
    torch.testing.assert_close(wanted, result.cpu(), rtol=0 if device == 'cpu' else 1e-5, atol=0 if device == 'cpu' else 1e-5)  # fmt: skip


def test_mmdet_by_itself_where_it_is_asked_for():
    ours = AnchorHead.get_targets
    with target_assignment.original_assignment():
        assert AnchorHead.get_targets is ours.__wrapped__
    assert AnchorHead.get_targets is ours
