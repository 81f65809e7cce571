"""RepPoints' loss and its targets, of a whole batch at once.

Functions that take `original` first replace mmdet's of that name, see `target_assignment`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from mmdet.core import multi_apply
from mmdet.core.bbox.assigners import MaxIoUAssigner, PointAssigner
from mmdet.core.bbox.iou_calculators import BboxOverlaps2D
from mmdet.core.bbox.samplers import PseudoSampler
from mmdet.models.dense_heads import RepPointsHead
from torch import Tensor

from .anchors import valid_flags
from .assigners import assigned_objects, by_level, matched_objects


def image_points(
    original: Callable,
    self: RepPointsHead,
    featmap_sizes: list[tuple],
    img_metas: list[dict],
    device: torch.device | str,
) -> tuple[list, list]:
    """Points `(n, 4)` of x, y and strides, and which are valid, by image and level.

    mmdet makes the flags on 'cuda', also without a GPU.
    """
    points = self.prior_generator.grid_priors(featmap_sizes, device=device, with_stride=True)
    flags = valid_flags(self.prior_generator, featmap_sizes, img_metas, device)
    return [list(points) for _ in img_metas], flags


def shifted_points(
    original: Callable,
    self: RepPointsHead,
    center_list: list[list[Tensor]],
    pred_list: list[Tensor],
) -> list[Tensor]:
    """Points of each level, `(images, cells, 2 * points)` of x and y in pixels.

    Args:
        center_list: by image and level, the cells' `(cells, 4)` of x, y and strides.
        pred_list: by level, `(images, 2 * points, height, width)` of y and x in strides.
    """
    levels = []
    for level, (shifts, stride) in enumerate(zip(pred_list, self.point_strides, strict=True)):
        shifts = shifts.permute(0, 2, 3, 1).reshape(len(shifts), -1, self.num_points, 2).flip(-1)
        centers = torch.stack([image[level][:, None, :2] for image in center_list])
        levels.append((shifts * stride + centers).flatten(2))
    return levels


def point_loss(
    original: Callable,
    self: RepPointsHead,
    cls_scores: list[Tensor],
    pts_preds_init: list[Tensor],
    pts_preds_refine: list[Tensor],
    gt_bboxes: list[Tensor],
    gt_labels: list[Tensor],
    img_metas: list[dict],
    gt_bboxes_ignore: list[Tensor] | None = None,
) -> dict[str, list[Tensor]]:
    """mmdet's loss. It makes the second stage's boxes of a batch at once; mmdet makes all of them for each image anew."""
    sizes = [scores.shape[-2:] for scores in cls_scores]
    points, valid = self.get_points(sizes, img_metas, cls_scores[0].device)
    by_distance = self.train_cfg.init.assigner['type'] == 'PointAssigner'
    boxes = []
    for level, shifts in enumerate(pts_preds_init):
        shifts = self.points2bbox(shifts).detach() * self.point_strides[level]
        centers = torch.stack([image[level][:, :2] for image in points]).repeat(1, 1, 2)
        boxes.append(centers + shifts.permute(0, 2, 3, 1).reshape(*centers.shape))
    targets = [
        # Lists of their own, as mmdet's `get_targets` changes them.
        self.get_targets(
            proposals, list(valid), gt_bboxes, img_metas, gt_bboxes_ignore, gt_labels, stage
        )
        for stage, proposals in (
            ('init', list(points) if by_distance else self.centers_to_bboxes(points)),
            ('refine', [list(levels) for levels in zip(*boxes, strict=True)]),
        )
    ]
    (
        (_, _, init_boxes, _, init_weights, *init_counts),
        (labels, label_weights, refine_boxes, _, refine_weights, *refine_counts),
    ) = targets
    losses = multi_apply(
        self.loss_single,
        cls_scores,
        self.offset_to_pts(points, pts_preds_init),
        self.offset_to_pts(points, pts_preds_refine),
        labels,
        label_weights,
        init_boxes,
        init_weights,
        refine_boxes,
        refine_weights,
        self.point_strides,
        num_total_samples_init=sum(init_counts) if self.sampling else init_counts[0],
        num_total_samples_refine=sum(refine_counts) if self.sampling else refine_counts[0],
    )
    return dict(zip(('loss_cls', 'loss_pts_init', 'loss_pts_refine'), losses, strict=True))


def point_targets(
    original: Callable,
    self: RepPointsHead,
    proposals_list: list[list[Tensor]],
    valid_flag_list: list[list[Tensor]],
    gt_bboxes_list: list[Tensor],
    img_metas: list[dict],
    gt_bboxes_ignore_list: list[Tensor] | None = None,
    gt_labels_list: list[Tensor] | None = None,
    stage: str = 'init',
    label_channels: int = 1,
    unmap_outputs: bool = True,
) -> tuple | None:
    """Targets of a batch's points or, in the second stage, boxes, where all that are valid are taken; as `anchor_targets`."""
    assigner = self.init_assigner if stage == 'init' else self.refine_assigner
    simple = (
        type(self)._point_target_single is RepPointsHead._point_target_single
        and type(assigner) in (MaxIoUAssigner, PointAssigner)
        and type(getattr(assigner, 'iou_calculator', None)) in (BboxOverlaps2D, type(None))
        and getattr(assigner, 'gpu_assign_thr', -1) <= 0
        and type(self.sampler) is PseudoSampler
        and gt_bboxes_ignore_list is None
        and gt_labels_list is not None
        and unmap_outputs
    )
    if not simple:
        return original(
            self, proposals_list, valid_flag_list, gt_bboxes_list, img_metas, gt_bboxes_ignore_list,
            gt_labels_list, stage, label_channels, unmap_outputs,
        )  # fmt: skip
    proposals = [torch.cat(levels) for levels in proposals_list]
    valid = [torch.cat(flags) for flags in valid_flag_list]
    gt_inds = assigned_objects(assigner, proposals, valid, gt_bboxes_list)
    matched, labels, weights, counts = matched_objects(
        gt_inds, gt_bboxes_list, gt_labels_list, self.num_classes, self.train_cfg[stage].pos_weight
    )
    positive = (gt_inds > 0)[:, :, None]
    targets = (
        labels.masked_fill(~torch.stack(valid), 0),  # as mmdet; their weight is 0
        weights,
        matched.masked_fill(~positive, 0),
        torch.stack(proposals).masked_fill(~positive, 0),
        positive.float().expand(-1, -1, 4),
    )
    return (*by_level(targets, proposals_list[0]), *counts)
