"""On a GPU: a convolution, its bias and norm, what is added to it, and the ReLU behind it, as one cuDNN kernel.

torch adds a convolution's bias by a kernel of its own, which with channels-last activations takes longer than most
convolutions, and the ReLU by another. cuDNN does all at once. Gradients are those of the separate operations.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from mmdet.models.dense_heads import RPNHead
from torch import Tensor, nn
from torch.nn import functional as F

from .folded_norms import weight_and_bias

_kinds_without_kernel: set[tuple] = (
    set()
)  # kinds of convolutions for which cuDNN has no such kernel


class _ConvReLU(torch.autograd.Function):
    """`relu(conv(x, weight) + bias + residual)`; all tensors of one type, on a GPU."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, *settings: Any
    ) -> Tensor:
        if residual is None:
            out = torch.cudnn_convolution_relu(x, weight, bias, *settings)
        else:
            out = torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *settings)
        ctx.save_for_backward(x, weight, out)
        ctx.settings = settings
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight, out = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        by_x, by_weight, by_bias = torch.ops.aten.convolution_backward(
            grad, x, weight, [len(weight)], stride, padding, dilation, False, [0, 0], groups,
            ctx.needs_input_grad[:3],
        )  # fmt: skip
        return by_x, by_weight, by_bias, grad if ctx.needs_input_grad[3] else None, *[None] * 4


def conv_relu(
    x: Tensor,
    conv: nn.Conv2d,
    norm: nn.Module | None = None,
    residual: Tensor | None = None,
    more_bias: Tensor | None = None,
) -> Tensor:
    """`relu(norm(conv(x)) + more_bias + residual)`, in autocast's type where that is on.

    Args:
        x: `(N, C, H, W)`.
        norm: None, an identity, or a batch norm in eval mode.
        residual: as the output, `(N, C_out, H_out, W_out)`.
        more_bias: `(C_out,)`.
    """
    weight, bias = weight_and_bias(conv, norm)
    if more_bias is not None:
        bias = more_bias if bias is None else bias + more_bias
    if bias is None:
        bias = weight.new_zeros(len(weight))
    dtype = torch.get_autocast_dtype('cuda') if torch.is_autocast_enabled('cuda') else x.dtype
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    residual = None if residual is None else residual.to(dtype)
    settings = conv.stride, conv.padding, conv.dilation, conv.groups
    kind = (conv.kernel_size, settings, dtype, residual is None)
    if kind not in _kinds_without_kernel:
        try:
            return _ConvReLU.apply(x, weight, bias, residual, *settings)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or conv.groups == 1:
                raise
            _kinds_without_kernel.add(kind)
    out = F.conv2d(x, weight, bias, *settings)
    return F.relu_(out if residual is None else out.add_(residual))


def fuse_convs(model: nn.Module, hooked: Collection[nn.Module] = ()) -> None:
    """Makes ResNet blocks, and convolutions without a norm, do convolution, bias and ReLU by one kernel on a GPU.

    Weights and their names stay. A block whose norms take statistics, or whose input is on the CPU, works as before.

    Args:
        hooked: modules whose outputs are used elsewhere. Blocks that contain one work as before, too.
    """
    for module in model.modules():
        if any(part in hooked for part in module.modules()) and not isinstance(module, ResNet):
            continue
        if _has_plain_stem(module) and module.conv1 not in hooked and module.norm1 not in hooked:
            _replace_forward(module, _resnet_forward)
        elif _is_plain_block(module, Bottleneck):
            _replace_forward(module, _bottleneck_forward)
        elif _is_plain_block(module, BasicBlock):
            _replace_forward(module, _basic_block_forward)
        elif isinstance(module, ConvModule) and _ends_in_relu(module):
            _replace_forward(module, _conv_module_forward)
        elif isinstance(module, RPNHead) and type(module.rpn_conv) is nn.Conv2d:
            _replace_forward(module.rpn_conv, _conv_relu_forward)


def _replace_forward(module: nn.Module, forward: Any) -> None:
    """Makes `forward` the module's own; it gets the module, the class's forward, and the arguments."""
    # A partial, not a closure: copied along with the module.
    module.forward = functools.partial(forward, module, type(module).forward)


def _is_plain_conv(conv: Any) -> bool:
    return (
        isinstance(conv, nn.Conv2d)
        and conv.padding_mode == 'zeros'
        and isinstance(conv.padding, tuple)
    )


def _has_plain_stem(module: nn.Module) -> bool:
    return (
        isinstance(module, ResNet)
        and type(module).forward is ResNet.forward
        and not module.deep_stem
        and _is_plain_conv(module.conv1)
    )


def _is_plain_block(module: nn.Module, kind: type) -> bool:
    return (
        isinstance(module, kind)
        and type(module).forward is kind.forward
        and _is_plain_conv(module.conv1)
        and _is_plain_conv(module.conv3 if kind is Bottleneck else module.conv2)
        and not module.with_cp
        and not getattr(module, 'with_plugins', False)
    )


def _ends_in_relu(module: ConvModule) -> bool:
    return (
        type(module).forward is ConvModule.forward
        and _is_plain_conv(module.conv)
        and module.order[-1] == 'act'
        and not module.with_norm
        and not module.with_explicit_padding
        and module.with_activation
        and type(module.activate) is nn.ReLU
    )


def _can_fuse(x: Tensor, *norms: nn.Module) -> bool:
    """Whether the input is on a GPU, and no norm takes statistics."""
    return x.is_cuda and not any(
        isinstance(norm, nn.BatchNorm2d) and norm.training for norm in norms
    )


def _resnet_forward(backbone: ResNet, plain: Any, x: Tensor) -> tuple[Tensor, ...]:
    if not _can_fuse(x, backbone.norm1):
        return plain(backbone, x)
    x = backbone.maxpool(conv_relu(x, backbone.conv1, backbone.norm1))
    outs = []
    for index, name in enumerate(backbone.res_layers):
        x = getattr(backbone, name)(x)
        if index in backbone.out_indices:
            outs.append(x)
    return tuple(outs)


def _shortcut(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """What a block adds to its last convolution's output: a tensor, and a bias by channel."""
    if block.downsample is None:
        return x, None
    *before, conv, norm = block.downsample
    if not _is_plain_conv(conv) or not _can_fuse(x, norm):
        return block.downsample(x), None
    for module in before:
        x = module(x)
    weight, bias = weight_and_bias(conv, norm)
    return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups), bias


def _bottleneck_forward(block: Bottleneck, plain: Any, x: Tensor) -> Tensor:
    if not _can_fuse(x, block.norm1, block.norm2, block.norm3):
        return plain(block, x)
    out = conv_relu(x, block.conv1, block.norm1)
    if _is_plain_conv(block.conv2):
        out = conv_relu(out, block.conv2, block.norm2)
    else:
        out = block.relu(block.norm2(block.conv2(out)))
    return conv_relu(out, block.conv3, block.norm3, *_shortcut(block, x))


def _basic_block_forward(block: BasicBlock, plain: Any, x: Tensor) -> Tensor:
    if not _can_fuse(x, block.norm1, block.norm2):
        return plain(block, x)
    out = conv_relu(x, block.conv1, block.norm1)
    return conv_relu(out, block.conv2, block.norm2, *_shortcut(block, x))


def _conv_relu_forward(conv: nn.Conv2d, plain: Any, x: Tensor) -> Tensor:
    return conv_relu(x, conv) if _can_fuse(x) else plain(conv, x)


def _conv_module_forward(
    module: ConvModule, plain: Any, x: Tensor, activate: bool = True, norm: bool = True
) -> Tensor:
    if not (activate and _can_fuse(x)):
        return plain(module, x, activate, norm)
    return conv_relu(x, module.conv)
