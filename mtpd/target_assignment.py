"""mmdet's target assignment, the same targets in less time: fewer operations, and a CUDA stream of its own.

Assignment is many small operations and waits for each image. On a GPU the forward pass is queued and still running when it
begins: on a stream of its own it needs not wait for that.
"""

from __future__ import annotations

from . import compat  # noqa: F401  (before mmcv)

# isort: split
import functools
from typing import Any

import torch
from mmdet.core.bbox.assigners import AssignResult, MaxIoUAssigner
from mmdet.core.bbox.samplers import PseudoSampler, SamplingResult
from mmdet.models.dense_heads.anchor_head import AnchorHead
from torch import Tensor, nn

from .streams import stream


def apply() -> None:
    """Replaces two methods of mmdet by ones of the same results; again changes nothing."""
    match_without_loops()
    sample_without_sorting()


def match_without_loops() -> None:
    """`MaxIoUAssigner` gives each object its best anchors by a loop over objects, which waits for the GPU at each."""
    original = MaxIoUAssigner.assign_wrt_overlaps
    if hasattr(original, '__wrapped__'):
        return

    @functools.wraps(original)
    def assign_wrt_overlaps(
        self: MaxIoUAssigner, overlaps: Tensor, gt_labels: Tensor | None = None
    ) -> AssignResult:
        if not (self.match_low_quality and self.gt_max_assign_all and overlaps.numel()):
            return original(self, overlaps, gt_labels)
        self.match_low_quality = False
        try:
            result = original(self, overlaps)
        finally:
            self.match_low_quality = True
        best = overlaps.amax(dim=1, keepdim=True)
        best = best.masked_fill(best < self.min_pos_iou, torch.inf)
        numbers = torch.arange(1, len(overlaps) + 1, device=overlaps.device)[:, None]
        last = ((overlaps == best) * numbers).amax(dim=0)  # a later object wins
        result.gt_inds = torch.where(last > 0, last, result.gt_inds)
        if gt_labels is not None:
            of_object = gt_labels[(result.gt_inds - 1).clamp(min=0)]
            result.labels = torch.where(result.gt_inds > 0, of_object, -1)
        return result

    MaxIoUAssigner.assign_wrt_overlaps = assign_wrt_overlaps


def sample_without_sorting() -> None:
    """`PseudoSampler` sorts positions that are sorted and different: those of non-zero elements."""
    original = PseudoSampler.sample
    if hasattr(original, '__wrapped__'):
        return

    @functools.wraps(original)
    def sample(
        self: PseudoSampler,
        assign_result: AssignResult,
        bboxes: Tensor,
        gt_bboxes: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> SamplingResult:
        positive, negative = (
            torch.nonzero(flags).squeeze(-1)
            for flags in (assign_result.gt_inds > 0, assign_result.gt_inds == 0)
        )
        flags = bboxes.new_zeros(len(bboxes), dtype=torch.uint8)
        return SamplingResult(positive, negative, bboxes, gt_bboxes, assign_result, flags)

    PseudoSampler.sample = sample


def assign_beside(detector: nn.Module) -> None:
    """Lets a detector's anchor heads make their targets on a stream of its own, beside its forward pass.

    Only heads with `AnchorHead`'s own anchors and targets, which depend on no output of the network. On the CPU nothing
    changes.
    """
    heads = [
        module
        for module in detector.modules()
        if isinstance(module, AnchorHead)
        and type(module).get_anchors is AnchorHead.get_anchors
        and type(module).get_targets is AnchorHead.get_targets
    ]
    if heads:
        detector.backbone.register_forward_pre_hook(_mark_inputs)
    for head in heads:
        for name in ('get_anchors', 'get_targets'):
            # A partial of the class's function: it is copied and pickled along with the head.
            setattr(head, name, functools.partial(_on_stream, name, head))


_inputs: dict[int, torch.cuda.Event] = {}  # by device: when the images and boxes of the update were there


def _mark_inputs(module: nn.Module, args: tuple) -> None:
    if args[0].is_cuda:
        _inputs[args[0].get_device()] = torch.cuda.current_stream().record_event()


def _on_stream(name: str, head: AnchorHead, *args: Any, **kwargs: Any) -> Any:
    work = getattr(type(head), name)
    current = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
    inputs = _inputs.get(current.device_index) if current else None
    if inputs is None:
        return work(head, *args, **kwargs)
    beside = stream('targets', priority=-1)
    beside.wait_event(inputs)
    with torch.cuda.stream(beside):
        results = work(head, *args, **kwargs)
    current.wait_stream(beside)
    _record(results, current)
    return results


def _record(item: Any, user: torch.cuda.Stream) -> None:
    """Keeps the memory of tensors in nested lists and tuples until `user` has done with them."""
    if isinstance(item, Tensor):
        if item.is_cuda:
            item.record_stream(user)
    elif isinstance(item, (list, tuple)):
        for part in item:
            _record(part, user)


apply()
