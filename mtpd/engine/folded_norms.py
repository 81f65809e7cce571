"""Batch norms that take no statistics, as part of the convolutions before them: while both are trained, or for good.

mmdet trains ResNets with `norm_eval`. A batch norm then is `y = a * x + b`, where a and b follow from its weights and
running statistics. `conv(x, a * W) + b` gives the same outputs, and the same gradients by `W` and by the norm's weight
and bias. It saves a pass over the activations, and the norm's input need not be kept for the backward pass (You et al.,
Efficient ConvBN Blocks, ICLR 2024).
"""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn


def weight_and_bias(conv: nn.Conv2d, norm: nn.Module | None = None) -> tuple[Tensor, Tensor | None]:
    """What a convolution and the batch norm in eval mode behind it do together, as a convolution's weight and bias.

    Args:
        norm: None or an identity where there is nothing to add.
    """
    if not isinstance(norm, nn.BatchNorm2d):
        return conv.weight, conv.bias
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = norm.bias - norm.running_mean * factor
    if conv.bias is not None:
        bias = bias + conv.bias * factor
    return conv.weight * factor[:, None, None, None], bias


class _ConvWithNorm(nn.Conv2d):
    """A convolution that applies the batch norm behind it, where that is in eval mode."""

    norm: tuple[nn.BatchNorm2d]  # in a tuple, as nn.Module would register it a second time

    def forward(self, x: Tensor) -> Tensor:
        (norm,) = self.norm
        if norm.training:
            return super().forward(x)
        return self._conv_forward(x, *weight_and_bias(self, norm))


class _NormInConv(nn.BatchNorm2d):
    """A batch norm that in eval mode leaves its work to the convolution before it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x


def fold_norms(model: nn.Module, hooked: Collection[nn.Module] = ()) -> int:
    """Makes the batch norms of a backbone part of the convolutions before them, whenever they are in eval mode.

    Weights, their names and their optimizer groups stay. The output of such a convolution changes.

    Args:
        hooked: modules whose outputs are used elsewhere. Such convolutions stay as they are.

    Returns:
        How many norms have a convolution directly before them, in the order in which the model registers its modules
        (as mmcv's `fuse_conv_bn` assumes).
    """
    count, convolution = 0, None
    for module in model.children():
        if type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats:
            if convolution is not None:
                convolution.__class__, convolution.norm = _ConvWithNorm, (module,)
                module.__class__ = _NormInConv
                count += 1
            convolution = None
        elif type(module) is nn.Conv2d:
            convolution = None if module in hooked else module
        else:
            count += fold_norms(module, hooked)
    return count


MERGED_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def with_merged_norms(backbone: nn.Module) -> nn.Module | None:
    """A frozen copy of a backbone in eval mode whose batch norms are part of the convolutions' weights; None where that fails.

    A backbone without batch norms is returned itself.

    It fails where the copy gives other features: where a norm is not applied to what the convolution registered before it
    gives. Convolutions that change their weight in the forward pass (weight standardisation) keep their norms.
    """
    if not any(isinstance(module, MERGED_NORMS) for module in backbone.modules()):
        return backbone
    merged = _merge_norms(copy.deepcopy(backbone)).requires_grad_(False)
    parameter = next(backbone.parameters())
    waves = torch.arange(3 * 128 * 128, device=parameter.device).mul(0.7).sin()
    with torch.no_grad():
        pairs = zip(*(net(waves.view(1, 3, 128, 128)) for net in (backbone, merged)), strict=True)
        # A GPU may round factors to 10 bits.
        same = all((a - b).abs().max() <= 0.02 * a.abs().max() for a, b in pairs)
    return merged if same else None


def _merge_norms(model: nn.Module) -> nn.Module:
    convolution = None
    for name, module in model.named_children():
        if isinstance(module, MERGED_NORMS):
            if convolution is not None and module.track_running_stats and module.affine:
                factor = module.weight / torch.sqrt(module.running_var + module.eps)
                bias = 0 if convolution.bias is None else convolution.bias
                bias = (bias - module.running_mean) * factor + module.bias
                convolution.weight = nn.Parameter(convolution.weight * factor[:, None, None, None])
                convolution.bias = nn.Parameter(bias)
                setattr(model, name, nn.Identity())
            convolution = None
        elif isinstance(module, nn.Conv2d):
            convolution = module if type(module) is nn.Conv2d else None
        else:
            _merge_norms(module)
    return model
