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
from mmdet.core import AnchorGenerator, BitmapMasks, multi_apply
from mmdet.core.bbox.assigners import AssignResult, MaxIoUAssigner, PointAssigner
from mmdet.core.bbox.iou_calculators import BboxOverlaps2D
from mmdet.core.bbox.samplers import PseudoSampler, RandomSampler, SamplingResult
from mmdet.models.dense_heads import AnchorHead, RepPointsHead, RPNHead
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.nn.utils.rnn import pad_sequence

from . import detectors  # noqa: F401  (its patch of `RepPointsHead.get_points` comes before this one)
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
        (RepPointsHead, 'get_points', _image_points),
        (RepPointsHead, 'offset_to_pts', _shifted_points),
        (RepPointsHead, 'get_targets', _point_targets),
        (RepPointsHead, 'loss', _point_loss),
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
    """In the block, functions are those before this module, for comparison; not `PointAssigner`'s, whose mmdet form fails on a GPU."""
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
    gt_inds, highest = _best_objects(self, overlaps)
    labels = None
    if gt_labels is not None:
        labels = torch.where(gt_inds > 0, gt_labels[(gt_inds - 1).clamp(min=0)], -1)
    return AssignResult(len(overlaps), gt_inds, highest, labels=labels)


def _best_objects(assigner: MaxIoUAssigner, overlaps: Tensor) -> tuple[Tensor, Tensor]:
    """Of boxes, by their overlaps `(..., objects, boxes)`: numbers of their objects as mmdet's, and the highest overlaps."""
    highest, nearest = overlaps.max(dim=-2)
    threshold = assigner.neg_iou_thr
    low, high = threshold if isinstance(threshold, tuple) else (0, threshold)
    gt_inds = torch.where((highest >= low) & (highest < high), 0, -1)
    gt_inds = torch.where(highest >= assigner.pos_iou_thr, nearest + 1, gt_inds)
    if assigner.match_low_quality:
        numbers = torch.arange(1, overlaps.shape[-2] + 1, device=overlaps.device)[:, None]
        best, place = overlaps.max(dim=-1, keepdim=True)
        if assigner.gt_max_assign_all:
            is_best = overlaps == best
        else:
            is_best = torch.zeros_like(overlaps, dtype=torch.bool).scatter_(-1, place, True)
        is_best &= best >= assigner.min_pos_iou
        last = (is_best * numbers).amax(dim=-2)  # a later object wins
        gt_inds = torch.where(last > 0, last, gt_inds)
    return gt_inds, highest


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
    assigner: PointAssigner, points: Tensor, boxes: Tensor, usable: Tensor | None = None
) -> Tensor:
    """Of points the numbers of their objects from 1 on, or 0.

    An object takes the `pos_num` nearest points of its level. A point that several take goes to the nearest of them.

    Args:
        points: `(..., n, 3)` of x, y and stride.
        boxes: `(..., k, 4)`.
        usable: `(..., k, n)`, the pairs that count; all by default.
    """
    levels = torch.log2(points[..., 2]).int()
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    sizes = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)
    wanted = (torch.log2(sizes / assigner.scale).sum(dim=-1) / 2).int()
    lowest, highest = levels.amin(dim=-1, keepdim=True), levels.amax(dim=-1, keepdim=True)
    wanted = torch.minimum(torch.maximum(wanted, lowest), highest)
    shifts = (points[..., None, :, :2] - centers[..., None, :]) / sizes[..., None, :]
    pairs = wanted[..., None] == levels[..., None, :]
    distances = shifts.norm(dim=-1).masked_fill(
        ~(pairs if usable is None else pairs & usable), torch.inf
    )
    nearest, places = distances.topk(assigner.pos_num, dim=-1, largest=False)
    chosen = torch.full_like(distances, torch.inf).scatter_(-1, places, nearest)
    smallest, first = chosen.min(dim=-2)  # of objects equally near, the first
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
    """Anchors and which are valid, by image; those of all images at once."""
    generator, images = self.prior_generator, len(img_metas)
    if type(generator).valid_flags is not AnchorGenerator.valid_flags:
        return original(self, featmap_sizes, img_metas, device)
    anchors = generator.grid_priors(featmap_sizes, device=device)
    padded = np.array([meta['pad_shape'][:2] for meta in img_metas])
    strides = np.array([(down, across) for across, down in generator.strides])
    ends = torch.from_numpy(-(-padded // strides[:, None])).to(device)  # of padded images, in cells
    levels = []
    for size, count, last in zip(featmap_sizes, generator.num_base_priors, ends, strict=True):
        rows, columns = (
            torch.arange(side, device=device) < last[:, axis, None]
            for axis, side in enumerate(size)
        )
        flags = (rows[:, :, None] & columns[:, None]).flatten(1)
        levels.append(flags[:, :, None].expand(-1, -1, count).flatten(1).unbind())
    return [anchors] * images, [list(flags) for flags in zip(*levels, strict=True)]


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
    """Targets of all anchors, where all that are valid are taken; the original does the rest.

    An image without a valid anchor, for which mmdet returns None, is not looked for: each has one, unless its border is
    not allowed.
    """
    simple = (
        type(self)._get_targets_single is AnchorHead._get_targets_single
        and type(self.assigner) is MaxIoUAssigner
        and type(self.assigner.iou_calculator) is BboxOverlaps2D
        and type(self.sampler) is PseudoSampler
        and self.assigner.gpu_assign_thr <= 0
        and self.train_cfg.allowed_border < 0
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
    anchors = [torch.cat(levels) for levels in anchor_list]
    valid = [torch.cat(flags) for flags in valid_flag_list]
    gt_inds = _assigned_objects(self.assigner, anchors, valid, gt_bboxes_list)
    matched, labels, weights, counts = _matched_objects(
        gt_inds, gt_bboxes_list, gt_labels_list, self.num_classes, self.train_cfg.pos_weight
    )
    if not self.reg_decoded_bbox:
        coded = self.bbox_coder.encode(torch.cat(anchors), matched.flatten(0, 1))
        matched = coded.view(matched.shape)
    positive = (gt_inds > 0)[:, :, None]
    targets = labels, weights, matched.masked_fill(~positive, 0), positive.float().expand(-1, -1, 4)
    return (*_by_level(targets, anchor_list[0]), *counts)


def _image_points(
    original: Callable,
    self: RepPointsHead,
    featmap_sizes: list[tuple],
    img_metas: list[dict],
    device: torch.device | str,
) -> tuple[list, list]:
    """Points and which are valid, by image; once for images of one size."""
    shapes = [tuple(meta['pad_shape']) for meta in img_metas]
    metas = dict(zip(shapes, img_metas, strict=True))
    points, flags = original(self, featmap_sizes, list(metas.values()), device)
    flags = dict(zip(metas, flags, strict=True))
    return [points[0] for _ in shapes], [flags[shape] for shape in shapes]


def _shifted_points(
    original: Callable,
    self: RepPointsHead,
    center_list: list[list[Tensor]],
    pred_list: list[Tensor],
) -> list[Tensor]:
    """Points of each level, `(images, cells, 2 * points)` of x and y in pixels.

    Args:
        center_list: by image and level, the cells' `(cells, 3)` of x, y and stride.
        pred_list: by level, `(images, 2 * points, height, width)` of y and x in strides.
    """
    levels = []
    for level, (shifts, stride) in enumerate(zip(pred_list, self.point_strides, strict=True)):
        shifts = shifts.permute(0, 2, 3, 1).reshape(len(shifts), -1, self.num_points, 2).flip(-1)
        centers = torch.stack([image[level][:, None, :2] for image in center_list])
        levels.append((shifts * stride + centers).flatten(2))
    return levels


def _point_loss(
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
    """Targets of a batch's points or, in the second stage, boxes, where all that are valid are taken; as `_anchor_targets`."""
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
    gt_inds = _assigned_objects(assigner, proposals, valid, gt_bboxes_list)
    matched, labels, weights, counts = _matched_objects(
        gt_inds, gt_bboxes_list, gt_labels_list, self.num_classes, self.train_cfg[stage].pos_weight
    )
    positive = (gt_inds > 0)[:, :, None]
    targets = (
        labels.masked_fill(~torch.stack(valid), 0),
        weights,
        matched.masked_fill(~positive, 0),
        torch.stack(proposals).masked_fill(~positive, 0),
        positive.float().expand(-1, -1, 4),
    )
    return (*_by_level(targets, proposals_list[0]), *counts)


# Of a batch at once. Images with fewer objects than others are padded.

PAIRS_AT_ONCE = 2**24  # of a box and an object: 0.7 GB at most


def _assigned_objects(
    assigner: MaxIoUAssigner | PointAssigner,
    proposals: list[Tensor],
    valid: list[Tensor],
    objects: list[Tensor],
) -> Tensor:
    """Of each proposal the number of its object from 1 on, 0 for background, -1 for none of these or not valid.

    Args:
        proposals: of each image, anchors or other boxes `(n, 4)`, or points `(n, 3)`; as many in each.
        valid: of each image, which proposals count, `(n,)`.
        objects: of each image, boxes `(k, 4)`.

    Returns:
        `(images, n)`.
    """
    assigned, begin = [], 0
    while begin < len(objects):
        end, most = begin + 1, len(objects[begin])
        while end < len(objects):
            most = max(most, len(objects[end]))
            if (end + 1 - begin) * most * len(valid[0]) > PAIRS_AT_ONCE:
                break
            end += 1
        batch = (torch.stack(items[begin:end]) for items in (proposals, valid))
        assigned.append(_assign_padded(assigner, *batch, objects[begin:end]))
        begin = end
    return torch.cat(assigned)


def _assign_padded(
    assigner: MaxIoUAssigner | PointAssigner,
    proposals: Tensor,
    valid: Tensor,
    objects: list[Tensor],
) -> Tensor:
    background = valid.long() - 1
    if not any(map(len, objects)):
        return background
    boxes = pad_sequence(objects, batch_first=True)
    real = pad_sequence([item.new_ones(len(item)) for item in objects], batch_first=True) > 0
    usable = real[:, :, None] & valid[:, None]
    if isinstance(assigner, PointAssigner):
        return _nearest_objects(assigner, proposals, boxes, usable).masked_fill(~valid, -1)
    overlaps = assigner.iou_calculator(boxes, proposals).masked_fill(~usable, -1)
    gt_inds, _ = _best_objects(assigner, overlaps)
    return torch.where(real.any(dim=1, keepdim=True), gt_inds, background)


def _matched_objects(
    gt_inds: Tensor,
    boxes: list[Tensor],
    labels: list[Tensor],
    background: int,
    pos_weight: float,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """What the numbers of `_assigned_objects` stand for.

    Args:
        boxes, labels: of each image's objects, `(k, 4)` and `(k,)`.
        background: the label of what has no object.
        pos_weight: the weight of labels of what has one; 0 or less: 1.

    Returns:
        Boxes `(images, n, 4)`, any where there is no object; labels and their weights `(images, n)`; how many are positive
        and negative, at least one an image. The counts are tensors: nothing waits for the GPU.
    """
    # At least one object an image, as there is nothing to take from none.
    boxes = pad_sequence([*boxes, boxes[0].new_zeros(1, 4)], batch_first=True)[:-1]
    labels = pad_sequence([*labels, labels[0].new_zeros(1)], batch_first=True)[:-1]
    positive, negative = gt_inds > 0, gt_inds == 0
    objects = (gt_inds - 1).clamp(min=0)
    return (
        boxes.gather(1, objects[:, :, None].expand(-1, -1, 4)),
        torch.where(positive, labels.gather(1, objects), background),
        positive * (1.0 if pos_weight <= 0 else pos_weight) + negative.float(),
        tuple(flags.sum(dim=1).clamp(min=1).sum() for flags in (positive, negative)),
    )


def _by_level(targets: tuple[Tensor, ...], levels: list[Tensor]) -> list[list[Tensor]]:
    """Targets `(images, n, ...)` of all levels, taken apart as long as each of `levels`."""
    sizes = [len(level) for level in levels]
    return [list(target.split(sizes, dim=1)) for target in targets]


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
