"""Anchors and their targets, of a whole batch at once; on a GPU beside the forward pass, on a CUDA stream of their own.

Functions that take `original` first replace mmdet's of that name, see `target_assignment`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmdet.core import AnchorGenerator, MlvlPointGenerator
from mmdet.core.bbox.assigners import MaxIoUAssigner
from mmdet.core.bbox.iou_calculators import BboxOverlaps2D
from mmdet.core.bbox.samplers import PseudoSampler, SamplingResult
from mmdet.models.dense_heads import AnchorHead
from torch import Tensor, nn

from .assigners import assigned_objects, by_level, matched_objects
from .streams import cuda_stream


def image_anchors(
    original: Callable,
    self: AnchorHead,
    featmap_sizes: list[tuple],
    img_metas: list[dict],
    device: torch.device | str = 'cuda',
) -> tuple[list, list]:
    """Anchors and which are valid, by image."""
    generator = self.prior_generator
    if type(generator).valid_flags is not AnchorGenerator.valid_flags:
        return original(self, featmap_sizes, img_metas, device)
    anchors = generator.grid_priors(featmap_sizes, device=device)
    return [anchors] * len(img_metas), valid_flags(generator, featmap_sizes, img_metas, device)


def valid_flags(
    generator: AnchorGenerator | MlvlPointGenerator,
    sizes: list[tuple],
    img_metas: list[dict],
    device: torch.device | str,
) -> list[list[Tensor]]:
    """By image and level, which anchors or points lie within the padded image; of all images at once.

    Args:
        sizes: of each level, height and width in cells.
    """
    padded = np.array([meta['pad_shape'][:2] for meta in img_metas])
    strides = np.array([(down, across) for across, down in generator.strides])
    ends = torch.from_numpy(-(-padded // strides[:, None])).to(device)  # of padded images, in cells
    levels = []
    for size, count, last in zip(sizes, generator.num_base_priors, ends, strict=True):
        rows, columns = (
            torch.arange(side, device=device) < last[:, axis, None]
            for axis, side in enumerate(size)
        )
        flags = (rows[:, :, None] & columns[:, None]).flatten(1)
        levels.append(flags[:, :, None].expand(-1, -1, count).flatten(1).unbind())
    return [list(flags) for flags in zip(*levels, strict=True)]


def anchor_targets(
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

    mmdet returns None if an image has no valid anchor. That cannot happen here: with `allowed_border < 0` an image keeps all
    anchors whose cells are within it. Boxes are coded for all anchors, also for the padding's, of no size; what comes of those
    is not used.
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
    gt_inds = assigned_objects(self.assigner, anchors, valid, gt_bboxes_list)
    matched, labels, weights, counts = matched_objects(
        gt_inds, gt_bboxes_list, gt_labels_list, self.num_classes, self.train_cfg.pos_weight
    )
    if not self.reg_decoded_bbox:
        coded = self.bbox_coder.encode(torch.cat(anchors), matched.flatten(0, 1))
        matched = coded.view(matched.shape)
    positive = (gt_inds > 0)[:, :, None]
    targets = labels, weights, matched.masked_fill(~positive, 0), positive.float().expand(-1, -1, 4)
    return (*by_level(targets, anchor_list[0]), *counts)


def make_targets_on_own_stream(detector: nn.Module) -> None:
    """Lets a detector's anchor heads make their targets on their own CUDA stream, beside the forward pass.

    Only heads that inherit `AnchorHead`'s anchors and targets. They must not give these an output of the network.
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
    """Keeps the memory of tensors in nested lists, tuples and sampling results until the stream `user` is done with them."""
    if isinstance(item, Tensor):
        if item.is_cuda:
            item.record_stream(user)
    elif isinstance(item, (list, tuple)):
        for part in item:
            _record_stream(part, user)
    elif isinstance(item, SamplingResult):
        _record_stream([*vars(item).values()], user)
