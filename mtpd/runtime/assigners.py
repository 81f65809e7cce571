"""Which object a proposal belongs to: an anchor, a point or a box. mmdet's own matches, of a whole batch at once.

mmdet matches image by image, object by object, in hundreds of small operations, some of which wait for the GPU. Functions
that take `original` first replace mmdet's of that name, see `target_assignment`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmdet.core.bbox.assigners import AssignResult, MaxIoUAssigner, PointAssigner
from mmdet.core.bbox.samplers import PseudoSampler, RandomSampler, SamplingResult
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# Of a proposal and an object, each some 40 bytes. Images are taken together up to this; one alone may have more.
PAIRS_AT_ONCE = 2**24


def assigned_objects(
    assigner: MaxIoUAssigner | PointAssigner,
    proposals: list[Tensor],
    valid: list[Tensor],
    objects: list[Tensor],
) -> Tensor:
    """The number of each proposal's object from 1 on, 0 for background, -1 for neither or not valid.

    Args:
        proposals: of each image, anchors or other boxes `(n, 4)`, or points `(n, 4)`; as many in each.
        valid: of each image, which proposals count, `(n,)`.
        objects: of each image, boxes `(k, 4)`.

    Returns:
        `(images, n)`.
    """
    assigned, begin = [], 0
    while begin < len(objects):  # a few images that follow each other, padded to the most objects
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
        return nearest_objects(assigner, proposals, boxes, usable).masked_fill(~valid, -1)
    overlaps = assigner.iou_calculator(boxes, proposals).masked_fill(~usable, -1)
    gt_inds, _ = best_objects(assigner, overlaps)
    return torch.where(real.any(dim=1, keepdim=True), gt_inds, background)


def matched_objects(
    gt_inds: Tensor,
    boxes: list[Tensor],
    labels: list[Tensor],
    background: int,
    pos_weight: float,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """What the numbers of `assigned_objects` stand for.

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


def by_level(targets: tuple[Tensor, ...], levels: list[Tensor]) -> list[list[Tensor]]:
    """Targets `(images, n, ...)` of all levels, taken apart as long as each of `levels`."""
    sizes = [len(level) for level in levels]
    return [list(target.split(sizes, dim=1)) for target in targets]


def best_objects(assigner: MaxIoUAssigner, overlaps: Tensor) -> tuple[Tensor, Tensor]:
    """mmdet's `gt_inds` of boxes, by their overlaps `(..., objects, boxes)`, and the highest overlaps.

    Numbers are of objects from 1 on; 0 is background, -1 neither.
    """
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


def nearest_objects(
    assigner: PointAssigner, points: Tensor, boxes: Tensor, usable: Tensor | None = None
) -> Tensor:
    """The numbers of the points' objects from 1 on, or 0.

    An object takes the `pos_num` nearest points of its level. A point that several take goes to the nearest of them.

    Args:
        points: `(..., n, 4)` of x, y and strides.
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


# Of one image, for heads that ask for no more.


def match_by_overlap(
    original: Callable, self: MaxIoUAssigner, overlaps: Tensor, gt_labels: Tensor | None = None
) -> AssignResult:
    """Boxes to objects by their overlaps `(objects, boxes)`, without mmdet's loop over objects."""
    if not overlaps.numel():
        return original(self, overlaps, gt_labels)
    gt_inds, highest = best_objects(self, overlaps)
    return AssignResult(len(overlaps), gt_inds, highest, labels=_object_labels(gt_inds, gt_labels))


def _object_labels(gt_inds: Tensor, gt_labels: Tensor | None) -> Tensor | None:
    if gt_labels is None:
        return None
    return torch.where(gt_inds > 0, gt_labels[(gt_inds - 1).clamp(min=0)], -1)


def match_by_distance(
    original: Callable,
    self: PointAssigner,
    points: Tensor,
    gt_bboxes: Tensor,
    gt_bboxes_ignore: Tensor | None = None,
    gt_labels: Tensor | None = None,
) -> AssignResult:
    """Points `(n, 4)` of x, y and strides to objects `(k, 4)`, without mmdet's loop over objects.

    That loop fails on a GPU: it indexes a tensor on the CPU by one on the GPU.
    """
    if not (len(points) and len(gt_bboxes)):
        return original(self, points, gt_bboxes, gt_bboxes_ignore, gt_labels)
    gt_inds = nearest_objects(self, points, gt_bboxes)
    labels = _object_labels(gt_inds, gt_labels)
    return AssignResult(len(gt_bboxes), gt_inds, None, labels=labels)


def sample_all(
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


def random_choice(original: Callable, self: RandomSampler, gallery: Any, num: int) -> Any:
    """`num` of `gallery`, drawn where it is. mmdet draws on the CPU, so the same seed draws others on a GPU.

    It does so for a fault of an earlier torch's `randperm` on GPUs. A list it draws on the current GPU.
    """
    if not isinstance(gallery, Tensor):
        return original(self, torch.tensor(gallery, dtype=torch.long), num).numpy()
    if not gallery.is_cuda:
        return original(self, gallery, num)
    return gallery[torch.randperm(len(gallery), device=gallery.device)[:num]]
