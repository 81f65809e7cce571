"""A one-stage detector as an ONNX file: backbone, neck, head and decoded boxes. `mtpd.edge` chooses among the boxes."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import torch
from mmcv import Config
from mmdet.core.bbox.coder import DeltaXYWHBBoxCoder, TBLRBBoxCoder
from mmdet.models.dense_heads.anchor_head import AnchorHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor, nn

from ..edge import import_onnx_package
from ..errors import MtpdError

OPSET = 17


class DecodedDetector(nn.Module):
    """A detector with an `AnchorHead`, without the choice among its boxes.

    Raises MtpdError for a head that gives more than scores and deltas of anchors.

    It maps images (1, 3, H, W), normalised, to boxes (N, 4), xyxy in their pixels, and scores (N, classes) after the
    sigmoid, FPN level by level.
    """

    def __init__(self, detector: nn.Module, height: int, width: int):
        super().__init__()
        self.detector, head = detector, detector.bbox_head
        with torch.no_grad():
            blank = torch.zeros(1, 3, height, width)
            outputs = head(detector.extract_feat(blank))
        if len(outputs) != 2:  # as with ATSS, whose scores are multiplied by a centerness
            raise MtpdError(_refusal(detector))
        scores, _ = outputs
        sizes = [level.shape[-2:] for level in scores]
        anchors = head.prior_generator.grid_priors(sizes, device='cpu')
        self.levels = [len(level) for level in anchors]
        self.grids = [list(size) for size in sizes]
        self.register_buffer('anchors', torch.cat(anchors))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        head = self.detector.bbox_head
        scores, deltas = head(self.detector.extract_feat(image))
        scores = torch.cat([_rows_by_anchor(level, head.cls_out_channels) for level in scores])
        deltas = torch.cat([_rows_by_anchor(level, 4) for level in deltas])
        return head.bbox_coder.decode(self.anchors, deltas), scores.sigmoid()


def _rows_by_anchor(level: Tensor, columns: int) -> Tensor:
    """(1, A x columns, H, W) as mmdet orders anchors: (H x W x A, columns)."""
    return level.permute(0, 2, 3, 1).reshape(-1, columns)


def export_onnx(detector: nn.Module, out: str | Path) -> Path:
    """Writes `detector` (as `predict.detector` gives it) for images of one size, that of its config's test pipeline.

    Returns:
        `out`. Its input is ``image`` (1, 3, H, W), its outputs are ``boxes`` (N, 4) and ``scores`` (N, classes). Its
        metadata have, under ``mtpd``, what `mtpd.edge` needs besides.

    Raises:
        MtpdError: a detector of another kind, or the packages are not installed.
    """
    onnx = import_onnx_package('onnx')
    _check_exportable(detector)
    detector, image = detector.cpu().eval(), image_preparation(detector.cfg)
    wide, high = image['scale']
    height, width = (-(-side // image['divisor']) * image['divisor'] for side in (high, wide))
    # In eval mode as a whole: the exporter gives the mode back that it finds.
    network, test = DecodedDetector(detector, height, width).eval(), detector.test_cfg
    metadata = {
        'classes': list(detector.CLASSES),
        'input': [height, width],
        'scale': [high, wide],
        'levels': network.levels,
        'grids': network.grids,  # rows and columns of cells
        'divisor': image['divisor'],
        **{key: list(map(float, image[key])) for key in ('mean', 'std')},
        'to_rgb': bool(image['to_rgb']),
        'score_thr': test.score_thr,
        'nms_pre': test.nms_pre,
        'iou_threshold': test.nms.iou_threshold,
        'max_per_img': test.max_per_img,
    }
    out = Path(out)
    part = out.with_name(f'.{out.name}.{os.getpid()}')
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')  # on what is fixed by the size, as it is meant
            torch.onnx.export(
                network,
                (torch.zeros(1, 3, height, width),),
                os.fspath(part),
                input_names=['image'],
                output_names=['boxes', 'scores'],
                opset_version=OPSET,
                dynamo=False,
            )
        model = onnx.load(os.fspath(part))
        model.metadata_props.add(key='mtpd', value=json.dumps(metadata))
        onnx.checker.check_model(model)
        onnx.save(model, os.fspath(part))
        return part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def image_preparation(cfg: Config) -> dict:
    """How a config's test pipeline prepares images.

    Returns:
        ``scale`` (width, height), ``mean``, ``std``, ``to_rgb`` and ``divisor``.

    Raises:
        MtpdError: it has several sizes, or does not normalise.
    """
    (outer,) = [step for step in cfg.data.test.pipeline if 'transforms' in step]
    steps = {step['type']: step for step in outer['transforms']}
    scale, norm = outer['img_scale'], steps.get('Normalize')
    if isinstance(scale, list) or norm is None:
        raise MtpdError(
            "the config's test pipeline has several sizes, or no normalisation: ONNX needs one size, and a normalisation."
        )
    return {
        'scale': scale,
        'mean': norm['mean'],
        'std': norm['std'],
        'to_rgb': norm.get('to_rgb', True),
        'divisor': steps.get('Pad', {}).get('size_divisor') or 1,
    }


def _refusal(detector: nn.Module) -> str:
    return (
        f'{type(detector).__name__} cannot be exported to ONNX: only one-stage detectors whose head gives scores and deltas of '
        'anchors can, such as RetinaNet. A name that does not end in .onnx writes a plain mmdet checkpoint.'
    )


def _check_exportable(detector: nn.Module) -> None:
    head = getattr(detector, 'bbox_head', None)
    kind = type(detector).__name__
    if (
        not isinstance(head, AnchorHead)
        or not head.use_sigmoid_cls
        or not isinstance(head.bbox_coder, (DeltaXYWHBBoxCoder, TBLRBBoxCoder))
        or any(  # TOOD, PAA and others choose among their boxes in another way
            getattr(type(head), name) is not getattr(BaseDenseHead, name)
            for name in ('get_bboxes', '_get_bboxes_single')
        )
    ):
        raise MtpdError(_refusal(detector))
    deformable = [
        name for name, module in detector.named_modules() if 'DeformConv' in type(module).__name__
    ]
    if deformable:
        raise MtpdError(
            f'{deformable[0]} is a deformable convolution, which ONNX lacks: {kind} cannot be exported.'
        )
