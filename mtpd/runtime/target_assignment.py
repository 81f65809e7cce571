"""mmdet's training targets, the same ones in less time.

mmdet assigns objects in hundreds of small operations an image, some of which wait for the GPU. Here they are fewer, and
almost none waits. On a GPU they may run on their own stream, beside the forward pass.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmcv.ops import roi_align
from mmdet.core import BitmapMasks, anchor_inside_flags, images_to_levels
from mmdet.core.bbox.assigners import AssignResult, MaxIoUAssigner, PointAssigner
from mmdet.core.bbox.samplers import PseudoSampler, RandomSampler, SamplingResult
from mmdet.models.dense_heads import AnchorHead, RepPointsHead, RPNHead
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from .focal_loss import sigmoid_focal_loss
from .proposals import get_proposals
from .streams import cuda_stream

_originals: dict[tuple[Any, str], Callable] = {}


def patch_target_assignment() -> None:
    """Replaces functions of mmdet by those below. A second call changes nothing."""
    if _originals:
        return
    for owner, name, work in (
        (MaxIoUAssigner, 'assign_wrt_overlaps', _match_by_overlap),
        (PointAssigner, 'assign', _match_by_distance),
        (PseudoSampler, 'sample', _sample_all),
        (RandomSampler, 'random_choice', _random_choice),
        (AnchorHead, 'get_anchors', _image_anchors),
        (AnchorHead, 'get_targets', _anchor_targets),
        (RepPointsHead, 'get_targets', _point_targets),
        (RPNHead, 'get_bboxes', get_proposals),
        # As attributes of their packages these are functions.
        (sys.modules['mmdet.core.mask.mask_target'], 'mask_target_single', _mask_targets),
        (sys.modules['mmdet.models.losses.focal_loss'], 'sigmoid_focal_loss', sigmoid_focal_loss),
    ):
        original = _originals[owner, name] = getattr(owner, name)
        setattr(owner, name, _replacement(work, original))


def _replacement(work: Callable, original: Callable) -> Callable:
    @functools.wraps(original)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return work(original, *args, **kwargs)

    return replaced


@contextlib.contextmanager
def original_assignment() -> Iterator[None]:
    """In the block, mmdet's functions are the original ones, for comparison; not `PointAssigner`'s, which fails on a GPU."""
    ours = {key: getattr(*key) for key in _originals if key[0] is not PointAssigner}
    for owner, name in ours:
        setattr(owner, name, _originals[owner, name])
    try:
        yield
    finally:
        for (owner, name), work in ours.items():
            setattr(owner, name, work)


def _match_by_overlap(
    original: Callable, self: MaxIoUAssigner, overlaps: Tensor, gt_labels: Tensor | None = None
) -> AssignResult:
    """Boxes to objects by their overlaps `(objects, boxes)`, without mmdet's loop over objects."""
    if not overlaps.numel():
        return original(self, overlaps, gt_labels)
    highest, nearest = overlaps.max(dim=0)
    low, high = self.neg_iou_thr if isinstance(self.neg_iou_thr, tuple) else (0, self.neg_iou_thr)
    gt_inds = torch.where((highest >= low) & (highest < high), 0, -1)
    gt_inds = torch.where(highest >= self.pos_iou_thr, nearest + 1, gt_inds)
    if self.match_low_quality:
        numbers = torch.arange(1, len(overlaps) + 1, device=overlaps.device)[:, None]
        best, place = overlaps.max(dim=1, keepdim=True)
        if self.gt_max_assign_all:
            is_best = overlaps == best
        else:
            is_best = torch.zeros_like(overlaps, dtype=torch.bool).scatter_(1, place, True)
        is_best &= best >= self.min_pos_iou
        last = (is_best * numbers).amax(dim=0)  # a later object wins
        gt_inds = torch.where(last > 0, last, gt_inds)
    labels = None
    if gt_labels is not None:
        labels = torch.where(gt_inds > 0, gt_labels[(gt_inds - 1).clamp(min=0)], -1)
    return AssignResult(len(overlaps), gt_inds, highest, labels=labels)


def _match_by_distance(
    original: Callable,
    self: PointAssigner,
    points: Tensor,
    gt_bboxes: Tensor,
    gt_bboxes_ignore: Tensor | None = None,
    gt_labels: Tensor | None = None,
) -> AssignResult:
    """Points `(n, 3)` of x, y and stride to objects `(k, 4)`, without mmdet's loop over objects.

    That loop fails on a GPU: it indexes a tensor on the CPU by one on the GPU.
    """
    if not (len(points) and len(gt_bboxes)):
        return original(self, points, gt_bboxes, gt_bboxes_ignore, gt_labels)
    gt_inds = _nearest_objects(self, points, gt_bboxes)
    labels = None
    if gt_labels is not None:
        labels = torch.where(gt_inds > 0, gt_labels[(gt_inds - 1).clamp(min=0)], -1)
    return AssignResult(len(gt_bboxes), gt_inds, None, labels=labels)


def _nearest_objects(
    assigner: PointAssigner, points: Tensor, boxes: Tensor, valid: Tensor | None = None
) -> Tensor:
    """Of each point `(n, 3)` the number from 1 on of the object that it is the nearest to of the object's level, or 0."""
    levels = torch.log2(points[:, 2]).int()
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    sizes = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    wanted = (torch.log2(sizes / assigner.scale).sum(dim=1) / 2).int()
    wanted = torch.minimum(torch.maximum(wanted, levels.min()), levels.max())
    distances = ((points[None, :, :2] - centers[:, None]) / sizes[:, None]).norm(dim=2)
    others = wanted[:, None] != levels
    distances = distances.masked_fill(others if valid is None else others | ~valid, torch.inf)
    nearest, places = distances.topk(assigner.pos_num, dim=1, largest=False)
    chosen = torch.full_like(distances, torch.inf).scatter_(1, places, nearest)
    smallest, first = chosen.min(dim=0)  # of objects equally near, the first
    return torch.where(smallest < torch.inf, first + 1, 0)


def _sample_all(
    original: Callable,
    self: PseudoSampler,
    assign_result: AssignResult,
    bboxes: Tensor,
    gt_bboxes: Tensor,
    *args: Any,
    **kwargs: Any,
) -> SamplingResult:
    """All boxes; mmdet sorts their positions, which are sorted."""
    positive, negative = (
        torch.nonzero(flags).squeeze(-1)
        for flags in (assign_result.gt_inds > 0, assign_result.gt_inds == 0)
    )
    flags = bboxes.new_zeros(len(bboxes), dtype=torch.uint8)
    return SamplingResult(positive, negative, bboxes, gt_bboxes, assign_result, flags)


def _random_choice(original: Callable, self: RandomSampler, gallery: Any, num: int) -> Any:
    """`num` of `gallery`, drawn where it is; mmdet draws on the CPU, and lists on the current GPU."""
    if not isinstance(gallery, Tensor):
        return original(self, torch.tensor(gallery, dtype=torch.long), num).numpy()
    if not gallery.is_cuda:
        return original(self, gallery, num)
    return gallery[torch.randperm(len(gallery), device=gallery.device)[:num]]


def _image_anchors(
    original: Callable,
    self: AnchorHead,
    featmap_sizes: list[tuple],
    img_metas: list[dict],
    device: torch.device | str = 'cuda',
) -> tuple[list, list]:
    """Anchors and which are valid, by image; once for images of one size."""
    anchors = self.prior_generator.grid_priors(featmap_sizes, device=device)
    shapes = [tuple(meta['pad_shape']) for meta in img_metas]
    flags = {s: self.prior_generator.valid_flags(featmap_sizes, s, device) for s in set(shapes)}
    return [anchors for _ in shapes], [flags[shape] for shape in shapes]


def _anchor_targets(
    original: Callable,
    self: AnchorHead,
    anchor_list: list[list[Tensor]],
    valid_flag_list: list[list[Tensor]],
    gt_bboxes_list: list[Tensor],
    img_metas: list[dict],
    gt_bboxes_ignore_list: list[Tensor] | None = None,
    gt_labels_list: list[Tensor] | None = None,
    label_channels: int = 1,
    unmap_outputs: bool = True,
    return_sampling_results: bool = False,
) -> tuple | None:
    """Targets of all anchors, where all that are valid are taken; the original does the rest."""
    simple = (
        type(self)._get_targets_single is AnchorHead._get_targets_single
        and type(self.assigner) is MaxIoUAssigner
        and type(self.sampler) is PseudoSampler
        and self.assigner.gpu_assign_thr <= 0
        and gt_bboxes_ignore_list is None
        and gt_labels_list is not None
        and unmap_outputs
        and not return_sampling_results
    )
    if not simple:
        return original(
            self, anchor_list, valid_flag_list, gt_bboxes_list, img_metas, gt_bboxes_ignore_list,
            gt_labels_list, label_channels, unmap_outputs, return_sampling_results,
        )  # fmt: skip
    images, border = [], self.train_cfg.allowed_border
    for levels, flags, boxes, labels, meta in zip(
        anchor_list, valid_flag_list, gt_bboxes_list, gt_labels_list, img_metas, strict=True
    ):
        anchors = torch.cat(levels)
        valid = anchor_inside_flags(anchors, torch.cat(flags), meta['img_shape'][:2], border)
        images.append(_single_image_targets(self, anchors, valid, boxes, labels))
    return _targets_by_level(images, [len(level) for level in anchor_list[0]])


def _targets_by_level(images: list[tuple[Tensor, ...]], sizes: list[int]) -> tuple | None:
    """What mmdet's `get_targets` returns, with a single wait for the GPU.

    Args:
        images: the targets of each image; the last three are counts of positive, negative and valid ones.
        sizes: how many targets each level has.
    """
    counts = torch.stack([count for image in images for count in image[-3:]])
    positives, negatives, valids = counts.view(-1, 3).T.tolist()
    if not all(valids):
        return None
    levels = [
        images_to_levels(targets, sizes) for targets in zip(*(i[:-3] for i in images), strict=True)
    ]
    return (*levels, sum(max(n, 1) for n in positives), sum(max(n, 1) for n in negatives))


def _single_image_targets(
    head: AnchorHead, anchors: Tensor, valid: Tensor, boxes: Tensor, labels: Tensor
) -> tuple[Tensor, ...]:
    """Labels, their weights, box targets and theirs, of all anchors; how many are positive, negative and valid."""
    gt_inds = _assigned_objects(head.assigner, anchors, valid, boxes)
    positive, negative = gt_inds > 0, gt_inds == 0
    matched, of_object = _matched_boxes_and_labels(gt_inds, boxes, labels)
    if not head.reg_decoded_bbox:
        matched = head.bbox_coder.encode(anchors, matched)
    return (
        torch.where(positive, of_object, head.num_classes),
        _label_weights(positive, negative, head.train_cfg.pos_weight),
        matched.masked_fill(~positive[:, None], 0),
        positive.float()[:, None].expand(-1, 4),
        positive.sum(),
        negative.sum(),
        valid.sum(),
    )


def _point_targets(
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
    """Targets of all points or, in the second stage, boxes, where all that are valid are taken."""
    assigner = self.init_assigner if stage == 'init' else self.refine_assigner
    simple = (
        type(self)._point_target_single is RepPointsHead._point_target_single
        and type(assigner) in (MaxIoUAssigner, PointAssigner)
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
    images, pos_weight = [], self.train_cfg[stage].pos_weight
    for levels, flags, boxes, labels in zip(
        proposals_list, valid_flag_list, gt_bboxes_list, gt_labels_list, strict=True
    ):
        proposals, valid = torch.cat(levels), torch.cat(flags)
        gt_inds = _assigned_objects(assigner, proposals, valid, boxes)
        positive, negative = gt_inds > 0, gt_inds == 0
        matched, of_object = _matched_boxes_and_labels(gt_inds, boxes, labels)
        of_object = torch.where(positive, of_object, self.num_classes)
        images.append(
            (
                of_object.masked_fill(~valid, 0),
                _label_weights(positive, negative, pos_weight),
                matched.masked_fill(~positive[:, None], 0),
                proposals.masked_fill(~positive[:, None], 0),
                positive.float()[:, None].expand(-1, 4),
                positive.sum(),
                negative.sum(),
                valid.sum(),
            )
        )
    return _targets_by_level(images, [len(level) for level in proposals_list[0]])


def _assigned_objects(
    assigner: MaxIoUAssigner | PointAssigner, proposals: Tensor, valid: Tensor, boxes: Tensor
) -> Tensor:
    """Of each proposal the number of its object from 1 on, 0 for background, -1 for none of these or not valid."""
    if not len(boxes):
        return valid.long() - 1
    if isinstance(assigner, MaxIoUAssigner):
        overlaps = assigner.iou_calculator(boxes, proposals).masked_fill(~valid, -1)
        return assigner.assign_wrt_overlaps(overlaps).gt_inds
    return _nearest_objects(assigner, proposals, boxes, valid).masked_fill(~valid, -1)


def _matched_boxes_and_labels(
    gt_inds: Tensor, boxes: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Box and label of each proposal's object; of any, where it has none."""
    if not len(boxes):
        boxes, labels = boxes.new_zeros(1, 4), labels.new_zeros(1)
    objects = (gt_inds - 1).clamp(min=0)
    return boxes[objects], labels[objects]


def _label_weights(positive: Tensor, negative: Tensor, pos_weight: float) -> Tensor:
    return positive * (1.0 if pos_weight <= 0 else pos_weight) + negative.float()


def _mask_targets(
    original: Callable, pos_proposals: Tensor, pos_assigned_gt_inds: Tensor, gt_masks: Any, cfg: Any
) -> Tensor:
    """Objects' masks cut out by boxes `(n, 4)` on the boxes' device: `(n, height, width)`.

    mmdet makes a copy of an object's mask for each of its boxes, and takes results to the CPU and back.
    """
    if not (isinstance(gt_masks, BitmapMasks) and len(pos_proposals) and len(gt_masks)):
        return original(pos_proposals, pos_assigned_gt_inds, gt_masks, cfg)
    masks = torch.from_numpy(np.ascontiguousarray(gt_masks.masks)).to(pos_proposals.device)
    high, wide = gt_masks.height, gt_masks.width
    limits = pos_proposals.new_tensor([wide, high, wide, high])
    boxes = torch.minimum(pos_proposals.clamp(min=0), limits)
    rois = torch.cat([pos_assigned_gt_inds[:, None].to(boxes.dtype), boxes], dim=1)
    masks = masks.to(boxes.dtype)[:, None]
    targets = roi_align(masks, rois, _pair(cfg.mask_size), 1.0, 0, 'avg', True)[:, 0]
    return targets if cfg.get('soft_mask_target', False) else (targets >= 0.5).float()


def assign_on_own_stream(detector: nn.Module) -> None:
    """Lets a detector's anchor heads make their targets on their own CUDA stream, beside the forward pass.

    Only heads that inherit `AnchorHead`'s anchors and targets, which depend on no output of the network.
    """
    heads = [
        module
        for module in detector.modules()
        if isinstance(module, AnchorHead)
        and type(module).get_anchors is AnchorHead.get_anchors
        and type(module).get_targets is AnchorHead.get_targets
    ]
    if heads:
        detector.backbone.register_forward_pre_hook(_record_inputs_ready)
    for head in heads:
        for name in ('get_anchors', 'get_targets'):
            # A partial of the class's function: it is copied and pickled along with the head.
            setattr(head, name, functools.partial(_run_on_own_stream, name, head))


# By device: the moment when the images and boxes of the update had arrived.
_inputs_ready: dict[int, torch.cuda.Event] = {}


def _record_inputs_ready(module: nn.Module, args: tuple) -> None:
    if args[0].is_cuda:
        _inputs_ready[args[0].get_device()] = torch.cuda.current_stream().record_event()


def _run_on_own_stream(name: str, head: AnchorHead, *args: Any, **kwargs: Any) -> Any:
    work = getattr(type(head), name)
    current = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
    inputs = _inputs_ready.get(current.device_index) if current else None
    if inputs is None:
        return work(head, *args, **kwargs)
    stream = cuda_stream('targets', priority=-1)
    stream.wait_event(inputs)
    with torch.cuda.stream(stream):
        results = work(head, *args, **kwargs)
    current.wait_stream(stream)
    _record_stream(results, current)
    return results


def _record_stream(item: Any, user: torch.cuda.Stream) -> None:
    """Keeps the memory of tensors in nested lists and tuples until the stream `user` is done with them."""
    if isinstance(item, Tensor):
        if item.is_cuda:
            item.record_stream(user)
    elif isinstance(item, (list, tuple)):
        for part in item:
            _record_stream(part, user)


patch_target_assignment()
