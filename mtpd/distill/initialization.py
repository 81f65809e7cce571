"""Weights that a detector begins with: its config's, its teacher's, or those of any checkpoint that partly fits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path

import torch
from torch import nn

from ..errors import MtpdError
from ..runtime.checkpoints import check_finite, load_checkpoint, student_state


def initialise_weights(model: nn.Module, backbone: dict, key: str) -> None:
    """As its config says, which may fetch pretrained weights.

    Args:
        backbone: its config, for the message.
        key: of the detector's model config among the overrides, such as 'student.model'.

    Raises:
        MtpdError: the pretrained weights can't be had.
    """
    try:
        model.init_weights()
    except (OSError, HTTPException, MtpdError) as error:
        origin = (backbone.get('init_cfg') or {}).get('checkpoint')
        raise MtpdError(
            f'the pretrained weights cannot be had from {origin} ({error}). Train from random ones with '
            f'--cfg-options {key}.backbone.init_cfg=None, or name a file as its checkpoint'
        ) from error


def warm_start(model: nn.Module, path: str | Path) -> int:
    """Copies every weight of the same name and shape from a checkpoint; returns how many it were.

    For training on from another dataset or architecture; a stage inherits through `inherit`.

    Raises:
        MtpdError: from `load` and `student_state`, or nothing agrees.
    """
    state = student_state(load_checkpoint(path), path)
    check_finite(state, path)
    own = model.state_dict()
    alike = [key for key in own if key in state and state[key].shape == own[key].shape]
    if not alike:
        raise MtpdError(
            f'{path} has no weight in common with the detector that should start from it'
        )
    for key in alike:
        own[key].copy_(state[key])
    return len(alike)


@dataclass
class InheritReport:
    """What a student took from its teacher: keys copied, which of them adapted and how, keys skipped and why."""

    copied: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"copied {len(self.copied)} of the teacher's weights, left {len(self.skipped)}"]
        notes = {**self.adapted, **self.skipped}
        return '\n'.join(lines + [f'  {key}: {why}' for key, why in notes.items()])


def inherit_from_teacher(
    student: nn.Module, teacher_state: dict, allow: Iterable[str] = ()
) -> InheritReport:
    """Copies the teacher's neck and head (all outside `backbone.`) into the student.

    Of a cascade, a student with one stage takes the first; box regression for all classes at once
    (4 outputs) is repeated for each class where the student has its own for each.

    Args:
        student: a plain detector.
        teacher_state: weights with plain keys, from `student_state`.
        allow: patterns of weights that may be missing on either side or of another shape, and
            then stay as they are: 'neck.lateral_convs.*' where the backbones differ in width.

    Raises:
        MtpdError: a mismatch that is not allowed, or nothing to copy; nothing is copied then.
    """
    own = {k: v for k, v in student.state_dict().items() if not k.startswith('backbone.')}
    theirs = {k: v for k, v in teacher_state.items() if not k.startswith('backbone.')}
    theirs, report = _first_stage(theirs, own)
    report.copied = [key for key in own if key in theirs]
    for key in {**own, **theirs}:
        if key not in own:
            report.skipped[key] = 'the student has no such weight'
        elif key not in theirs and not key.endswith('num_batches_tracked'):
            report.skipped[key] = 'the teacher has no such weight'
        elif key in theirs and own[key].shape != theirs[key].shape:
            report.copied.remove(key)
            shapes = tuple(own[key].shape), tuple(theirs[key].shape)
            report.skipped[key] = f'other shape (student {shapes[0]}, teacher {shapes[1]})'
    barred = [k for k in report.skipped if not any(fnmatch(k, pattern) for pattern in allow)]
    if barred or not report.copied:
        lines = ["the student cannot inherit the teacher's neck and head:"]
        lines += [f'  {key}: {report.skipped[key]}' for key in barred] or ['  nothing agrees']
        lines += ['make both alike, allow these weights to differ, or do not inherit']
        raise MtpdError('\n'.join(lines))
    for key in report.copied:
        own[key].copy_(theirs[key])
    return report


def _first_stage(theirs: dict, own: dict) -> tuple[dict, InheritReport]:
    """The teacher's weights under the names, and in the shapes, of a student without a cascade."""
    found, report = {}, InheritReport()
    for key, value in theirs.items():
        stage = re.fullmatch(r'(roi_head\.\w+_head\.)(\d+)\.(.+)', key)
        single = stage[1] + stage[3] if stage else key
        if key in own or not stage or not any(name.startswith(stage[1]) for name in own):
            found[key] = value
            continue
        if stage[2] != '0':
            continue  # the later stages have no counterpart
        report.adapted[single] = f'from {key}, the first stage of a cascade'
        mine = own.get(single, value)
        if '.fc_reg.' in single and value.shape[0] == 4 < mine.shape[0]:
            times = mine.shape[0] // 4
            value = torch.cat([value] * times)
            report.adapted[single] += f', repeated for {times} classes'
        found[single] = value
    return found, report
