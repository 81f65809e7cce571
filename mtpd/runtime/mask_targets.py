"""Masks that a mask head learns, cut out on the device of its boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmcv.ops import roi_align
from mmdet.core import BitmapMasks
from torch import Tensor
from torch.nn.modules.utils import _pair


def mask_targets(
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
