"""Which functions of mmdet are replaced by ours: of training targets, RPN's proposals, RepPoints' loss and the focal loss.

Importing this module replaces them, for every training of the process, whatever its `speed` switches. They give what mmdet's
give in less time, but for what `random_choice` draws on a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from mmdet.core.bbox.assigners import MaxIoUAssigner, PointAssigner
from mmdet.core.bbox.samplers import PseudoSampler, RandomSampler
from mmdet.models.dense_heads import AnchorHead, RepPointsHead, RPNHead

from .anchors import anchor_targets, image_anchors
from .assigners import match_by_distance, match_by_overlap, random_choice, sample_all
from .focal_loss import sigmoid_focal_loss
from .mask_targets import mask_targets
from .proposals import get_proposals
from .reppoints import image_points, point_loss, point_targets, shifted_points

_originals: dict[tuple[Any, str], Callable] = {}


def patch_target_assignment() -> None:
    """Replaces mmdet's functions by ours. A second call changes nothing."""
    if _originals:
        return
    for owner, name, work in (
        (MaxIoUAssigner, 'assign_wrt_overlaps', match_by_overlap),
        (PointAssigner, 'assign', match_by_distance),
        (PseudoSampler, 'sample', sample_all),
        (RandomSampler, 'random_choice', random_choice),
        (AnchorHead, 'get_anchors', image_anchors),
        (AnchorHead, 'get_targets', anchor_targets),
        (RepPointsHead, 'get_points', image_points),
        (RepPointsHead, 'offset_to_pts', shifted_points),
        (RepPointsHead, 'get_targets', point_targets),
        (RepPointsHead, 'loss', point_loss),
        (RPNHead, 'get_bboxes', get_proposals),
        # As attributes of their packages these are functions.
        (sys.modules['mmdet.core.mask.mask_target'], 'mask_target_single', mask_targets),
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
    """In the block mmdet's functions are its own, for comparison; but for two that fail without a GPU, or on one."""
    failing = (PointAssigner, 'assign'), (RepPointsHead, 'get_points')
    ours = {key: getattr(*key) for key in _originals if key not in failing}
    for owner, name in ours:
        setattr(owner, name, _originals[owner, name])
    try:
        yield
    finally:
        for (owner, name), work in ours.items():
            setattr(owner, name, work)


patch_target_assignment()
