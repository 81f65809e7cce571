"""How fast an update is made: the recipe's `speed` switches, settled for a device and applied to what is trained."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmdet.models.backbones import ResNet
from mmdet.models.roi_heads.base_roi_head import BaseRoIHead
from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
from torch import Tensor, nn

from ..distill.distiller import Distiller, Teacher
from ..runtime import target_assignment  # noqa: F401  (puts its functions in place)
from ..runtime.anchors import make_targets_on_own_stream
from . import deform_convs, folded_norms, fused_convs, max_pooling, window_attention

FUSED_OPTIMIZERS = ('Adam', 'AdamW', 'SGD')  # torch has a fused kernel for them on CPU and GPU
CUDA_ONLY = (
    'teacher_stream',
    'fused_convs',
    'fused_attention',
    'deform_kernels',
    'target_stream',
    'pin_memory',
)


class Speed(NamedTuple):
    """Switches of a training. All off is mmdet as `runtime` adapts it, in TF32 on a GPU as torch has it.

    Attributes:
        precision: 'fp32'; 'tf32': a GPU rounds factors to 10 bits, as the original's torch did; or 'bf16' for
            convolutions and matrix products, see `use_bfloat16`.
        channels_last: activations as (N, H, W, C) in memory.
        fold_teacher: the teacher's batch norms become part of its convolutions.
        teacher_stream: the teacher's forward pass beside the student's, on a CUDA stream of its own.
        fold_student: batch norms of the student's backbone that take no statistics become part of its convolutions in
            each update, see `mtpd.engine.folded_norms`.
        fused_convs: convolutions, their biases and the ReLUs behind them as one kernel, see `mtpd.engine.fused_convs`;
            the student's only with `fold_student`.
        fused_attention: a Swin Transformer teacher's attention as one call, see `mtpd.engine.window_attention`.
        deform_kernels: deformable convolutions by Triton, in autocast's type, see `mtpd.engine.deform_convs`.
        target_stream: target assignment beside the forward pass, on a CUDA stream of its own.
        pin_memory: batches are put into memory that is copied to a CUDA device without waiting.
        byte_batches: batches hold images as bytes, a quarter of the memory, and the device normalises them.
        fused_optimizer: the optimizer updates all weights by one kernel.
        keep_memory: on the CPU, the process keeps what tensors free for the next ones.
    """

    precision: str = 'tf32'
    channels_last: bool = False
    fold_teacher: bool = False
    teacher_stream: bool = False
    fold_student: bool = False
    fused_convs: bool = False
    fused_attention: bool = False
    deform_kernels: bool = False
    target_stream: bool = False
    pin_memory: bool = False
    byte_batches: bool = False
    fused_optimizer: bool = False
    keep_memory: bool = False


def resolve_speed(settings: dict | None, device: str) -> Speed:
    """The recipe's `speed` section for 'cpu' or 'cuda'; what is 'auto' or not there becomes what pays on it."""
    cuda = device == 'cuda'
    default = Speed(
        'bf16' if has_bfloat16(device) else 'fp32',
        channels_last=True,
        fold_teacher=True,
        teacher_stream=cuda,
        fold_student=cuda,
        fused_convs=cuda,
        fused_attention=cuda,
        deform_kernels=cuda,
        target_stream=cuda,
        pin_memory=cuda,
        byte_batches=cuda,
        fused_optimizer=True,
        keep_memory=not cuda,
    )
    chosen = {key: value for key, value in (settings or {}).items() if value != 'auto'}
    switches = default._replace(**chosen)
    return switches if cuda else switches._replace(**dict.fromkeys(CUDA_ONLY, False))


def has_bfloat16(device: str) -> bool:
    """Whether 'cpu' or 'cuda' multiplies in bfloat16 faster than in float32: by instructions of its own."""
    if device == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ('_is_avx512_bf16_supported', '_is_amx_tile_supported')
    return any(hasattr(torch.cpu, name) and getattr(torch.cpu, name)() for name in checks)


def apply_speed(model: nn.Module, speed: Speed, device: str) -> nn.Module:
    """Makes a detector or `Distiller`, weights in place and on its device, work as `speed` says; returns it.

    A teacher in train mode stays as it is, but for its precision: that mode is there to repeat the original.
    """
    student, teachers = model, []
    if isinstance(model, Distiller):
        student, teachers = model.student, [model.teacher]
        if model.teacher_mode == 'eval':
            if speed.fold_teacher and not model.hooks_teachers_backbone:
                fold_teacher(model.teacher)
            if speed.fused_convs:
                fused_convs.fuse_convs(model.teacher, model.hooked_modules)
            if speed.fused_attention:
                window_attention.fuse_window_attention(model.teacher, model.hooked_modules)
            if speed.deform_kernels:
                deform_convs.replace_deform_convs(model.teacher)
            if speed.channels_last:
                model.teacher.to(memory_format=torch.channels_last)
        model.teacher.own_stream = speed.teacher_stream
    if speed.fold_student and isinstance(student.backbone, ResNet):
        hooked = model.hooked_modules if isinstance(model, Distiller) else ()
        folded_norms.fold_norms(student.backbone, hooked)
        if speed.fused_convs:
            fused_convs.fuse_convs(student, hooked)
    if speed.deform_kernels:
        deform_convs.replace_deform_convs(student)
    if speed.target_stream:
        make_targets_on_own_stream(student)
    if speed.keep_memory:
        keep_freed_memory()
    if speed.channels_last:
        for name, part in student.named_children():
            # On the CPU, torch 2.13's backward pass of a strided 1 x 1 convolution (8 to 16 channels) in that layout
            # corrupts memory: only backbones have such.
            if device == 'cuda' or name != 'backbone':
                part.to(memory_format=torch.channels_last)
            else:
                max_pooling.pool_channels_last(part)
    if speed.precision == 'bf16':
        use_bfloat16(model, student, device, backbone=device == 'cuda')
        if device == 'cpu':
            keep_narrow_maps_in_float32(student)
    if speed.precision == 'bf16' or speed.channels_last:
        keep_operators_plain(model, *teachers, device=device)
    return model


def fold_teacher(teacher: Teacher) -> None:
    """Makes the batch norms of a teacher's backbone part of its convolutions, for good, where that changes no feature.

    The neck keeps its own, as what is distilled are its convolutions' outputs.
    """
    if merged := folded_norms.with_merged_norms(teacher.backbone):
        teacher.backbone = merged
    else:
        print(
            f'speed.fold_teacher is left out: with it {type(teacher.backbone).__name__} gives other features'
        )


def optimizer_config(cfg: dict, speed: Speed) -> dict:
    """mmcv's config of an optimizer, made a fused one where torch has that and the config does not say how it works."""
    says_how = {'fused', 'foreach', 'capturable', 'differentiable'} & set(cfg)
    if not speed.fused_optimizer or says_how or cfg['type'] not in FUSED_OPTIMIZERS:
        return cfg
    return {**cfg, 'fused': True}


def keep_freed_memory() -> None:
    """Lets glibc keep what tensors on the CPU free, instead of handing it back and asking for it in each update."""
    trim_threshold, mmap_threshold = -1, -3
    try:
        libc = ctypes.CDLL('libc.so.6')
        libc.mallopt(mmap_threshold, 32 << 20)  # the most it takes
        libc.mallopt(trim_threshold, (1 << 31) - 1)
    except (OSError, AttributeError):  # another C library
        return


# Training in bfloat16: which parts of a detector run in it, and which stay in full precision.


# mmcv's operators, or what calls them.
MMCV_OPERATORS = (DeformConv2d, ModulatedDeformConv2d, BaseRoIExtractor)
# Layers of RepPoints' head that give offsets in cells.
POINT_OFFSETS = ('reppoints_pts_init_out', 'reppoints_pts_refine_out')


def use_bfloat16(model: nn.Module, student: nn.Module, device: str, backbone: bool) -> None:
    """Puts a detector, or a `Distiller` with its teacher and losses, under autocast to bfloat16.

    Weights, gradients and the optimizer are float32, and so is a detector in eval mode. Convolutions and matrix products
    of backbone, neck and heads, and of distillation losses, run under autocast. What the losses are computed from is
    float32 again: a head's outputs, regions of interest, the points of RepPoints, the features that are compared.
    mmcv's own operators take float32 only, in the usual layout (N, C, H, W); `deform_convs` replaces some.

    Args:
        backbone: the student's too; on the CPU few channels gain nothing.
    """
    parts = [getattr(student, 'neck', None)]
    if backbone:
        parts.append(student.backbone)
    if model is not student:
        keep_in_bfloat16(model.teacher)
        AutocastScope(device, True, always=True).on(model.teacher)
        parts += model.distill_losses.values()
    for part in filter(None, parts):
        AutocastScope(device, True).on(part)
    for name, module in student.named_modules():
        if is_head(name, module):
            AutocastScope(device, True, full_output=True).on(module)
        elif name.endswith(POINT_OFFSETS):
            AutocastScope(device, False).on(module)


def keep_in_bfloat16(teacher: nn.Module) -> None:
    """Casts the weights of a frozen model once, not in each update, and keeps activations between its layers in bfloat16.

    Convolutions and matrix products give the same numbers as before. Layer norms compute in float32 still, but read and
    write bfloat16, so that the sums of a Swin Transformer's blocks are bfloat16, too.
    """
    plain = {part for op in teacher.modules() if _is_plain_operator(op) for part in op.modules()}
    for module in teacher.modules():
        casts = type(module) in (nn.Conv2d, nn.Linear) and module not in plain
        if casts or deform_convs.is_replaced(module):
            module.bfloat16()
        elif type(module) is nn.LayerNorm:
            module.bfloat16().forward = functools.partial(_layer_norm, module)


def _is_plain_operator(module: nn.Module) -> bool:
    return isinstance(module, MMCV_OPERATORS) and not deform_convs.is_replaced(module)


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        shape, weight, bias = module.normalized_shape, module.weight, module.bias
        return nn.functional.layer_norm(x.bfloat16(), shape, weight, bias, module.eps)


def keep_operators_plain(*models: nn.Module, device: str) -> None:
    """Gives mmcv's operators in detectors the inputs and weights that they take, whatever is around them."""
    for model in models:
        for module in model.modules():
            if _is_plain_operator(module):
                module.to(memory_format=torch.contiguous_format)
                AutocastScope(device, False).on(module)


def keep_narrow_maps_in_float32(student: nn.Module) -> None:
    """Lets strided convolutions compute in float32 where their input is one cell wide.

    There the gradient of the weight that torch 2.13 computes in bfloat16 on the CPU (oneDNN 3.12) reads memory that was never
    written.
    """
    for module in student.modules():
        if type(module) is nn.Conv2d and module.stride[1] > 1:
            module.forward = functools.partial(_strided_conv, module)


def _strided_conv(module: nn.Conv2d, x: Tensor) -> Tensor:
    if x.shape[-1] > 1:
        return nn.Conv2d.forward(module, x)
    with torch.autocast(x.device.type, enabled=False):
        return nn.Conv2d.forward(module, x.float())


def is_head(name: str, module: nn.Module) -> bool:
    """Whether a module of a detector predicts by itself: 'bbox_head', 'roi_head.mask_head', 'roi_head.bbox_head.0'."""
    return name.rstrip('.0123456789').endswith('_head') and not isinstance(
        module, (BaseRoIHead, nn.ModuleList)
    )


class AutocastScope:
    """A module's forward pass under autocast to bfloat16, or (`half` False) out of it on float32 inputs, contiguous.

    Scopes of modules may be nested; a module has one.

    Args:
        full_output: tensors of the output, in nested tuples, lists and dicts, become float32.
        always: also in eval mode, in which there is no autocast else.
    """

    def __init__(self, device: str, half: bool, full_output: bool = False, always: bool = False):
        self.device, self.half, self.full_output, self.always = device, half, full_output, always
        self.open: list[torch.autocast] = []

    def on(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(self.enter, with_kwargs=True)
        module.register_forward_hook(self.leave, always_call=True)

    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        enabled = self.half and (self.always or module.training)
        scope = torch.autocast(self.device, torch.bfloat16, enabled=enabled)
        scope.__enter__()
        self.open.append(scope)
        return (args, kwargs) if self.half else (as_float32(args, True), as_float32(kwargs, True))

    def leave(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if self.open:
            self.open.pop().__exit__(None, None, None)
        return as_float32(output) if self.full_output else output


def as_float32(item: Any, contiguous: bool = False) -> Any:
    """`item` with its bfloat16 tensors in float32, in nested tuples, lists and dicts; all `contiguous`, if need be."""
    if isinstance(item, Tensor):
        item = item.float() if item.dtype == torch.bfloat16 else item
        return item.contiguous() if contiguous else item
    if isinstance(item, (tuple, list)) and type(item) in (tuple, list):
        return type(item)(as_float32(part, contiguous) for part in item)
    if isinstance(item, dict):
        return {key: as_float32(value, contiguous) for key, value in item.items()}
    return item


# torch's settings for a block.


@contextlib.contextmanager
def restored_autocast(device: str) -> Iterator[None]:
    """After the block autocast is as it was before, whatever ended the block.

    What is raised between a scope's hooks, such as Ctrl-C, may leave it open. Then all that the process does later would
    run in bfloat16, with weights that autocast had kept from then.
    """
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device), _autocast_depth()
    try:
        yield
    finally:
        while _autocast_depth() > before[2]:
            torch.autocast_decrement_nesting()
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])
        if not before[2]:
            torch.clear_autocast_cache()


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


@contextlib.contextmanager
def tf32_products(precision: str) -> Iterator[None]:
    """In the block a GPU rounds the factors of float32 convolutions and matrix products to 10 bits (TF32), or does not.

    It does unless `precision` is 'fp32', as the original's torch (up to 1.11) did; today's does so for convolutions only.
    """
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = precision != 'fp32'
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
