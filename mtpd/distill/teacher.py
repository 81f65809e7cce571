"""The teacher of a distillation: backbone and neck of a detector, frozen."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import contextlib
from collections.abc import Iterator

import torch
from mmcv.cnn import fuse_conv_bn
from mmdet.models import build_backbone, build_neck
from torch import Tensor, nn

from ..runtime.streams import stream


class Teacher(nn.Module):
    """Backbone and neck of the detector that `cfg` describes: distillation needs no more of it.

    `own_stream`: whether `beside` uses a CUDA stream of its own.
    """

    own_stream = False

    def __init__(self, cfg: dict):
        super().__init__()
        self.backbone = build_backbone(cfg['backbone'])
        self.neck = build_neck(cfg['neck']) if cfg.get('neck') else nn.Identity()
        self.requires_grad_(False)

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        """Features, each `(N, C, H, W)`, of images `(N, 3, H, W)`."""
        return self.neck(self.backbone(img))

    def fold(self) -> None:
        """Makes the backbone's batch norms, in eval mode, part of the convolutions before them; for good.

        The neck keeps its own, as what is distilled are its convolutions' outputs.
        """
        self.backbone = fuse_conv_bn(self.backbone).requires_grad_(False)

    @contextlib.contextmanager
    def beside(self, img: Tensor, features: dict[str, Tensor]) -> Iterator[None]:
        """A forward pass without gradients, before the block's work or, on a stream of its own, at the same time.

        Args:
            features: what hooks collect in the pass; for use after the block.
        """
        if not self.own_stream:
            with torch.no_grad():
                self(img)
            yield
            return
        current, beside = torch.cuda.current_stream(), stream('teacher')
        beside.wait_stream(current)
        img.record_stream(beside)
        # Not inference_mode: its tensors cannot be saved for the loss's backward pass.
        with torch.no_grad(), torch.cuda.stream(beside):
            self(img)
        yield
        current.wait_stream(beside)
        for feature in features.values():
            feature.record_stream(current)
