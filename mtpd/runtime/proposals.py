"""RPN's proposals of all images of a batch at once, on a GPU.

mmdet makes them image by image, and mmcv goes through an image's thousands of boxes in one block of threads, for which the CPU
waits. Here each level of each image has a block, and the CPU waits once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmdet.core.bbox.coder import DeltaXYWHBBoxCoder
from mmdet.models.dense_heads import RPNHead
from torch import Tensor
from torch.nn import functional as F

from .gpu_ops import triton_kernels

Suppression = Callable[[Tensor, Tensor, float], Tensor]


def get_proposals(
    original: Callable,
    self: RPNHead,
    cls_scores: list[Tensor],
    bbox_preds: list[Tensor],
    score_factors: Any = None,
    img_metas: list[dict] | None = None,
    cfg: Any = None,
    *args: Any,
    **kwargs: Any,
) -> list[Tensor]:
    """In place of mmdet's `RPNHead.get_bboxes`."""
    settings = self.test_cfg if cfg is None else cfg
    suppression = cls_scores[0].is_cuda and triton_kernels('mtpd.runtime.suppression')
    if not (suppression and _is_simple(self, settings)):
        return original(
            self, cls_scores, bbox_preds, score_factors, img_metas, cfg, *args, **kwargs
        )
    kept_boxes = suppression.kept_boxes
    return batch_proposals(self, cls_scores, bbox_preds, img_metas, settings, kept_boxes)


def _is_simple(head: RPNHead, cfg: Any) -> bool:
    return (
        type(head)._get_bboxes_single is RPNHead._get_bboxes_single
        and type(head)._bbox_post_process is RPNHead._bbox_post_process
        and head.use_sigmoid_cls
        and type(head.bbox_coder) is DeltaXYWHBBoxCoder
        and head.bbox_coder.clip_border
        and set(cfg.nms) == {'type', 'iou_threshold'}
        and cfg.nms.type == 'nms'
    )


@torch.no_grad()
def batch_proposals(
    head: RPNHead,
    cls_scores: list[Tensor],
    bbox_preds: list[Tensor],
    img_metas: list[dict],
    cfg: Any,
    kept_boxes: Suppression,
) -> list[Tensor]:
    """The proposals of each image, `(n, 5)`: x1, y1, x2, y2 in pixels and the score, the best first.

    Args:
        cls_scores: of each level `(N, anchors, H, W)`.
        bbox_preds: of each level `(N, 4 * anchors, H, W)`.
        cfg: mmdet's settings of proposals.
        kept_boxes: `mtpd.runtime.suppression.kept_boxes`, or what does the same.
    """
    images, nms_pre = len(img_metas), cfg.get('nms_pre', -1)
    sizes, first = [scores.shape[-2:] for scores in cls_scores], cls_scores[0]
    priors = head.prior_generator.grid_priors(sizes, dtype=first.dtype, device=first.device)
    by_level: list[tuple[Tensor, ...]] = []
    for level_scores, level_deltas, anchors in zip(cls_scores, bbox_preds, priors, strict=True):
        scores = level_scores.permute(0, 2, 3, 1).reshape(images, -1).sigmoid()
        deltas = level_deltas.permute(0, 2, 3, 1).reshape(images, -1, 4)
        scores, places = scores.topk(min(nms_pre if nms_pre > 0 else 1 << 30, len(anchors)))
        by_level.append((scores, deltas.gather(1, _of_boxes(places)), anchors[places]))
    most = max(scores.shape[1] for scores, *_ in by_level)
    scores = torch.stack([F.pad(s, (0, most - s.shape[1]), value=-1) for s, *_ in by_level], dim=1)
    deltas, anchors = (
        torch.stack([F.pad(level[k], (0, 0, 0, most - level[k].shape[1])) for level in by_level], 1)
        for k in (1, 2)
    )
    boxes = head.bbox_coder.decode(anchors.view(-1, 4), deltas.view(-1, 4)).view(images, -1, 4)
    limits = first.new_tensor([(m['img_shape'][1], m['img_shape'][0]) * 2 for m in img_metas])
    boxes = torch.minimum(boxes.clamp(min=0), limits[:, None])
    valid = scores.flatten(1) >= 0
    if cfg.min_bbox_size >= 0:
        valid &= (boxes[..., 2:] - boxes[..., :2] > cfg.min_bbox_size).all(dim=2)
    stays = kept_boxes(boxes.view(-1, most, 4), valid.view(-1, most), cfg.nms.iou_threshold)
    scores = scores.flatten(1).masked_fill(~stays.view(images, -1), -1)
    scores, places = scores.topk(min(cfg.max_per_img, scores.shape[1]))
    detections = torch.cat([boxes.gather(1, _of_boxes(places)), scores[..., None]], dim=2)
    counts = (scores >= 0).sum(dim=1).tolist()
    return [image[:count] for image, count in zip(detections, counts, strict=True)]


def _of_boxes(places: Tensor) -> Tensor:
    return places[..., None].expand(*places.shape, 4)
