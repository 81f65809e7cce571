"""Losses from settings: one, or all of a stage."""

from __future__ import annotations

import difflib
import inspect

from torch import nn

from ...errors import MtpdError
from .base import DISTILL_LOSSES


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
        raise MtpdError(f'unknown distillation loss {kind!r}{meant} (there is {", ".join(known)})')
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
