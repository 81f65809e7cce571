"""Distillation losses between one student feature map and one teacher feature map, built from a recipe's settings."""

from __future__ import annotations

import difflib

from . import compat  # noqa: F401  (before mmcv)

# isort: split

import torch
from mmcv.utils import Registry
from torch import Tensor, nn

from .errors import MtpdError

DISTILL_LOSSES = Registry('distillation loss')


def build_distill_loss(cfg: dict) -> nn.Module:
    """The loss that `cfg` describes, e.g. `dict(type='MGD', student_channels=64, ...)`.

    A `name` in `cfg` (the key in the loss dict, see `mtpd.distiller`) is left aside.

    Raises:
        MtpdError: an unknown type, an unknown argument, or a value out of range.
    """
    args = {key: value for key, value in cfg.items() if key != 'name'}
    known = sorted(DISTILL_LOSSES.module_dict)
    kind = args.get('type')
    if kind not in known:
        near = difflib.get_close_matches(str(kind), known, n=1, cutoff=0.4)
        meant = f'; did you mean {near[0]!r}?' if near else ''
        raise MtpdError(f'unknown distillation loss {kind!r}{meant} (there is {", ".join(known)})')
    try:
        return DISTILL_LOSSES.build(args)
    except TypeError as error:
        raise MtpdError(f'distillation loss {kind}: wrong arguments ({error})') from error


def in_full(feature: Tensor) -> Tensor:
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
            f'the feature maps do not cover each other: student {tuple(student.shape)}, teacher '
            f'{tuple(teacher.shape)} (N, C, H, W): hook modules of the same stride in both'
        )


@DISTILL_LOSSES.register_module()
class MGD(nn.Module):
    """Masked generative distillation (Yang et al., ECCV 2022; github.com/yzd-v/MGD, det/).

    The student's feature map, with random cells set to zero, has to generate the teacher's:
    `alpha / N * sum((G(M * align(F_s)) - F_t) ** 2)`. The sum runs over C, H and W, so `alpha` is
    tied to the number of channels and the resolution.

    Args:
        student_channels: C of the student's feature map; `align`, a 1x1 convolution, maps it to
            the teacher's where they differ.
        teacher_channels: C of the teacher's feature map.
        alpha: weight of the loss.
        mask_ratio: share of the cells set to zero, in [0, 1).
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        alpha: float = 2e-5,
        mask_ratio: float = 0.65,
    ):
        super().__init__()
        if not 0 <= mask_ratio < 1:
            raise MtpdError(f'MGD: mask_ratio must lie in [0, 1), it is {mask_ratio}')
        if alpha < 0:
            raise MtpdError(f'MGD: alpha must not be negative, it is {alpha}')
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.alpha, self.mask_ratio = alpha, mask_ratio
        same = student_channels == teacher_channels
        self.align = None if same else nn.Conv2d(student_channels, teacher_channels, 1)
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )

    def forward(
        self,
        student_feature: Tensor,
        teacher_feature: Tensor,
        *,
        gt_bboxes: list[Tensor] | None = None,
        img_metas: list[dict] | None = None,
    ) -> Tensor:
        """The loss, a scalar, of `(N, C_s, H, W)` against `(N, C_t, H, W)`.

        `gt_bboxes` and `img_metas` are not used: every distillation loss has the same signature.

        Raises:
            MtpdError: shapes that differ from those the loss was built for, or from each other.
        """
        check_features(
            student_feature, teacher_feature, self.student_channels, self.teacher_channels
        )
        feature = student_feature if self.align is None else self.align(student_feature)
        n, _, h, w = feature.shape
        # Drawn where the feature lives: a mask from the CPU costs a transfer a level and update.
        kept = torch.rand((n, 1, h, w), device=feature.device) >= self.mask_ratio
        generated = self.generation(feature * kept.to(feature.dtype))
        return self.alpha / n * (in_full(generated) - in_full(teacher_feature)).pow(2).sum()


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
            problems.append(f'an entry has student_module, teacher_module, methods; not: {given}')
        for who, model in (('student', student), ('teacher', teacher)):
            path, paths = item.get(f'{who}_module'), [name for name, _ in model.named_modules()][1:]
            if path not in paths:
                near = difflib.get_close_matches(str(path), paths) or [
                    n for n, _ in model.named_children()
                ]
                problems.append(f'the {who} has no module {path!r}; near: {", ".join(near)}')
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
        problems.append('there is no method in it, so nothing would be distilled')
    if problems:
        raise MtpdError('\n  '.join(['distill_cfg:', *problems]))
    return losses
