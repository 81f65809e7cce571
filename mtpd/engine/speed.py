"""How fast an update is made: the recipe's `speed` switches, settled for a device and applied to what is trained."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import ctypes
from typing import NamedTuple

import torch
from mmdet.models.backbones import ResNet
from torch import nn

from ..distill.distiller import Distiller
from ..runtime import target_assignment
from . import fused_convs, norms, precision

FUSED = ('Adam', 'AdamW', 'SGD')  # torch has a fused kernel for them on CPU and GPU
CUDA_ONLY = ('teacher_stream', 'fused_convs', 'target_stream', 'pin_memory')


class Speed(NamedTuple):
    """Switches of a training; all off is plain mmdet: float32 as torch has it, and nothing rearranged.

    Attributes:
        precision: 'fp32', 'tf32' (a GPU rounds factors to 10 bits, as the original's torch did; elsewhere 'fp32'), or 'bf16' for convolutions and matrix products, see `mtpd.engine.precision`.
        channels_last: activations as (N, H, W, C) in memory.
        fold_teacher: the teacher's batch norms become part of its convolutions.
        teacher_stream: the teacher's forward pass beside the student's, on a CUDA stream of its own.
        fold_student: batch norms of the student's backbone that take no statistics become part of its convolutions in each
            update, see `mtpd.engine.norms`.
        fused_convs: convolutions, their biases and the ReLUs behind them as one kernel, see `mtpd.engine.fused_convs`; the
            student's only with `fold_student`.
        target_stream: target assignment beside the forward pass, on a CUDA stream of its own.
        pin_memory: batches are put into memory that is copied to a CUDA device without waiting.
        fused_optimizer: the optimizer updates all weights by one kernel.
        keep_memory: on the CPU, the process keeps what tensors free for the next ones.
    """

    precision: str = 'tf32'
    channels_last: bool = False
    fold_teacher: bool = False
    teacher_stream: bool = False
    fold_student: bool = False
    fused_convs: bool = False
    target_stream: bool = False
    pin_memory: bool = False
    fused_optimizer: bool = False
    keep_memory: bool = False


def settled(asked: dict | None, device: str) -> Speed:
    """The recipe's `speed` section for 'cpu' or 'cuda'; what is 'auto' or not there becomes what pays on it."""
    cuda = device == 'cuda'
    default = Speed(
        'bf16' if has_bfloat16(device) else 'fp32',
        channels_last=True,
        fold_teacher=True,
        teacher_stream=cuda,
        fold_student=cuda,
        fused_convs=cuda,
        target_stream=cuda,
        pin_memory=cuda,
        fused_optimizer=True,
        keep_memory=not cuda,
    )
    found = {key: value for key, value in (asked or {}).items() if value != 'auto'}
    chosen = default._replace(**found)
    return chosen if cuda else chosen._replace(**dict.fromkeys(CUDA_ONLY, False))


def has_bfloat16(device: str) -> bool:
    """Whether 'cpu' or 'cuda' multiplies in bfloat16 faster than in float32: by instructions of its own."""
    if device == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    instructions = ('_is_avx512_bf16_supported', '_is_amx_tile_supported')
    return any(getattr(torch.cpu, name, bool)() for name in instructions)


def prepare(model: nn.Module, speed: Speed, device: str) -> nn.Module:
    """Makes a detector or `Distiller`, weights in place and on its device, work as `speed` says; returns it.

    A teacher in train mode stays as it is, but for its precision: that mode is there to repeat the original.
    """
    student, teachers = model, []
    if isinstance(model, Distiller):
        student, teachers = model.student, [model.teacher]
        if model.teacher_mode == 'eval':
            if speed.fold_teacher and not model.hooks_teachers_backbone:
                model.teacher.fold()
            if speed.fused_convs:
                fused_convs.fuse(model.teacher, model.hooked_modules)
            if speed.channels_last:
                model.teacher.to(memory_format=torch.channels_last)
        model.teacher.own_stream = speed.teacher_stream
    if speed.fold_student and isinstance(student.backbone, ResNet):
        hooked = model.hooked_modules if isinstance(model, Distiller) else ()
        norms.fold_norms(student.backbone, hooked)
        if speed.fused_convs:
            fused_convs.fuse(student, hooked)
    if speed.target_stream:
        target_assignment.assign_beside(student)
    if speed.keep_memory:
        keep_memory()
    if speed.channels_last:
        for name, part in student.named_children():
            # On the CPU, torch 2.13's backward pass of a strided 1 x 1 convolution (8 to 16 channels) in that layout
            # corrupts memory: only backbones have such.
            if device == 'cuda' or name != 'backbone':
                part.to(memory_format=torch.channels_last)
    if speed.precision == 'bf16':
        precision.use_bfloat16(model, student, device, backbone=device == 'cuda')
    if speed.precision == 'bf16' or speed.channels_last:
        precision.keep_operators_plain(model, *teachers, device=device)
    return model


def optimizer(cfg: dict, speed: Speed) -> dict:
    """mmcv's config of an optimizer, fused where it may be and does not say itself how it works."""
    own = {'fused', 'foreach', 'capturable', 'differentiable'} & set(cfg)
    if not speed.fused_optimizer or own or cfg['type'] not in FUSED:
        return cfg
    return {**cfg, 'fused': True}


def keep_memory() -> None:
    """Lets glibc keep what tensors on the CPU free, instead of handing it back and asking for it in each update."""
    trim_threshold, mmap_threshold = -1, -3
    try:
        libc = ctypes.CDLL('libc.so.6')
        libc.mallopt(mmap_threshold, 32 << 20)  # the most it takes
        libc.mallopt(trim_threshold, (1 << 31) - 1)
    except (OSError, AttributeError):  # another C library
        return
