"""What every distillation loss has: its place in the registry, matching channels, full precision."""

from __future__ import annotations

import difflib
import inspect

import torch
from mmcv.utils import Registry
from torch import Tensor, nn

from ...errors import MtpdError

DISTILL_LOSSES = Registry('distillation loss')


class FeatureLoss(nn.Module):
    """Base of the distillation losses: a loss sets itself up and implements `compare`.

    Args:
        student_channels: C of the student's feature map; `align`, a 1x1 convolution, maps it to
            the teacher's where they differ.
        teacher_channels: C of the teacher's feature map.

    Attributes:
        scale_settings: the arguments that the loss is proportional to, all together.
    """

    scale_settings: tuple[str, ...] = ('weight',)

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        same = student_channels == teacher_channels
        self.align = None if same else nn.Conv2d(student_channels, teacher_channels, 1)

    def forward(
        self,
        student_feature: Tensor,
        teacher_feature: Tensor,
        *,
        gt_bboxes: list[Tensor] | None = None,
        img_metas: list[dict] | None = None,
    ) -> Tensor:
        """The loss, a scalar in float32 at least, of `(N, C_s, H, W)` against `(N, C_t, H, W)`.

        Args:
            student_feature, teacher_feature: outputs of the hooked modules, of any precision.
            gt_bboxes: for each image its boxes `(n, 4)`, xyxy, pixels of the network's input.
            img_metas: for each image mmdet's dict of its sizes.

        Raises:
            MtpdError: shapes that differ from those the loss was built for, or from each other;
                boxes or sizes missing in a loss that needs them.
        """
        check_features(
            student_feature, teacher_feature, self.student_channels, self.teacher_channels
        )
        student, teacher = as_float32(student_feature), as_float32(teacher_feature)
        if self.align is not None:
            student = as_float32(self.align(student))
        return self.compare(student, teacher, gt_bboxes, img_metas)

    def compare(
        self,
        student: Tensor,
        teacher: Tensor,
        gt_bboxes: list[Tensor] | None,
        img_metas: list[dict] | None,
    ) -> Tensor:
        """The loss of two maps `(N, C_t, H, W)` in full precision; the rest as in `forward`."""
        raise NotImplementedError


def as_float32(feature: Tensor) -> Tensor:
    """`feature` in float32 at least: a sum over C, H, W overflows half precision."""
    return feature.to(torch.promote_types(feature.dtype, torch.float32))


def check_features(student: Tensor, teacher: Tensor, student_channels: int, teacher_channels: int):
    """Raises an MtpdError unless both are `(N, C, H, W)` of the stated C and the same N, H, W."""
    for who, feature, channels in (
        ('student', student, student_channels),
        ('teacher', teacher, teacher_channels),
    ):
        if feature.dim() != 4 or feature.shape[1] != channels:
            raise MtpdError(
                f"the {who}'s feature map has shape {tuple(feature.shape)}, but the distillation "
                f'loss was built with {who}_channels={channels}: correct {who}_channels or '
                f'{who}_module in the distillation config'
            )
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise MtpdError(
            f'the feature maps differ in size: student {tuple(student.shape)}, teacher '
            f'{tuple(teacher.shape)} (N, C, H, W): hook modules of the same stride in both'
        )


def check_settings(loss: str, positive: dict | None = None, **weights: float) -> None:
    """Raises an MtpdError that names the first of `positive` not above 0, or of `weights` below 0."""
    for name, value in (positive or {}).items():
        if not value > 0:
            raise MtpdError(f'{loss}: {name} must be above 0, not {value}')
    for name, value in weights.items():
        if not value >= 0:
            raise MtpdError(f'{loss}: {name} must not be negative, but is {value}')


# Losses from settings: one, or all of a stage.


def module_path(path: str) -> str:
    """The module of a hooked path: 'neck' of 'neck:4', which is the fifth of the maps that it gives."""
    return path.partition(':')[0]


def build_distill_loss(cfg: dict) -> nn.Module:
    """The loss that `cfg` describes, e.g. `dict(type='MGD', student_channels=64, ...)`.

    A `name` in `cfg` (the key in the loss dict, see `mtpd.distill.distiller`) is left aside.

    Raises:
        MtpdError: an unknown type, an unknown argument, or a value out of range.
    """
    args = {key: value for key, value in cfg.items() if key != 'name'}
    known = sorted(DISTILL_LOSSES.module_dict)
    kind = args.get('type')
    if kind not in known:
        near = difflib.get_close_matches(str(kind), known, n=1, cutoff=0.4)
        meant = f'; did you mean {near[0]!r}?' if near else ''
        raise MtpdError(f'unknown distillation loss {kind!r}{meant} (known: {", ".join(known)})')
    takes = [*inspect.signature(DISTILL_LOSSES.get(kind)).parameters]
    for name in sorted(set(args) - {'type', *takes}):
        near = difflib.get_close_matches(name, takes, n=1)
        meant = f' Did you mean {near[0]!r}?' if near else ''
        raise MtpdError(f'distillation loss {kind}: unknown setting {name!r}.{meant}')
    try:
        return DISTILL_LOSSES.build(args)
    except TypeError as error:
        raise MtpdError(f'distillation loss {kind}: wrong arguments ({error})') from error


def build_losses(
    distill_cfg: list[dict], student: nn.Module, teacher: nn.Module
) -> dict[str, nn.Module]:
    """The losses of a `Distiller`'s `distill_cfg` by name.

    Raises:
        MtpdError: everything wrong with it at once: keys, modules that the models lack, names, settings.
    """
    losses, problems = {}, []
    for item in distill_cfg:
        if set(item) != {'student_module', 'teacher_module', 'methods'}:
            given = ', '.join(item)
            problems.append(
                f'an entry must have student_module, teacher_module, methods, not: {given}'
            )
        for who, model in (('student', student), ('teacher', teacher)):
            path, paths = item.get(f'{who}_module'), [name for name, _ in model.named_modules()][1:]
            if module_path(str(path)) not in paths:
                near = difflib.get_close_matches(str(path), paths) or [
                    n for n, _ in model.named_children()
                ]
                problems.append(
                    f'the {who} has no module {path!r}; near: {", ".join(near)}. In a recipe distill.{who}_module=auto finds one.'
                )
        for method in item.get('methods', ()):
            name = str(method.get('name'))
            if 'loss' not in name or name == 'loss' or '.' in name:
                problems.append(
                    f"loss name {name!r}: give one like 'loss_mgd_fpn_0' (mmdet trains only what "
                    "has 'loss' in its name and calls the sum 'loss'; a dot splits weights' names)"
                )
            if name in losses:
                problems.append(f'loss name {name!r} is given twice: make it unique')
            losses[name] = None
            try:
                losses[name] = build_distill_loss(method)
            except MtpdError as error:
                problems.append(f'{name}: {error}')
    if not losses:
        problems.append('it has no method, so nothing would be distilled')
    if problems:
        raise MtpdError('\n  '.join(['distill_cfg:', *problems]))
    return losses
