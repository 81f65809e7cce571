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
    """Initialises a detector as its config says, which may fetch pretrained weights.

    Args:
        backbone: the backbone's config, for the message.
        key: the detector's model config among the overrides, such as 'student.model'.

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
    """Copies every weight of the same name and shape from a checkpoint; returns how many.

    For training on from another dataset or architecture. A stage's student takes over its teacher's neck and head by
    `inherit_from_teacher`.

    Raises:
        MtpdError: the checkpoint is missing, broken or not finite, or has no such weight.
    """
    state = student_state(load_checkpoint(path), path)
    check_finite(state, path)
    weights = model.state_dict()
    shared = [key for key in weights if key in state and state[key].shape == weights[key].shape]
    if not shared:
        raise MtpdError(
            f'{path} has no weight in common with the detector that should start from it'
        )
    for key in shared:
        weights[key].copy_(state[key])
    return len(shared)


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

    A student with one stage takes the first stage of a teacher that is a cascade. A box regression for all classes at
    once (4 outputs) is repeated for each class where the student has one per class.

    Args:
        student: a plain detector.
        teacher_state: weights with plain keys, from `student_state`.
        allow: patterns of weights that may be missing on either side or of another shape, and
            then stay as they are: 'neck.lateral_convs.*' where the backbones differ in width.

    Raises:
        MtpdError: a mismatch that is not allowed, or nothing to copy; nothing is copied then.
    """
    student_weights = {
        k: v for k, v in student.state_dict().items() if not k.startswith('backbone.')
    }
    teacher_weights = {k: v for k, v in teacher_state.items() if not k.startswith('backbone.')}
    teacher_weights, report = _first_stage(teacher_weights, student_weights)
    report.copied = [key for key in student_weights if key in teacher_weights]
    for key in {**student_weights, **teacher_weights}:
        if key not in student_weights:
            report.skipped[key] = 'the student has no such weight'
        elif key not in teacher_weights and not key.endswith('num_batches_tracked'):
            report.skipped[key] = 'the teacher has no such weight'
        elif key in teacher_weights and student_weights[key].shape != teacher_weights[key].shape:
            report.copied.remove(key)
            shapes = tuple(student_weights[key].shape), tuple(teacher_weights[key].shape)
            report.skipped[key] = f'other shape (student {shapes[0]}, teacher {shapes[1]})'
    mismatches = [k for k in report.skipped if not any(fnmatch(k, pattern) for pattern in allow)]
    if mismatches or not report.copied:
        lines = ["the student cannot inherit the teacher's neck and head:"]
        lines += [f'  {key}: {report.skipped[key]}' for key in mismatches] or ['  nothing agrees']
        lines += ['make both alike, allow these weights to differ, or do not inherit']
        raise MtpdError('\n'.join(lines))
    for key in report.copied:
        student_weights[key].copy_(teacher_weights[key])
    return report


def _first_stage(teacher_weights: dict, student_weights: dict) -> tuple[dict, InheritReport]:
    """The teacher's weights under the names, and in the shapes, of a student without a cascade."""
    weights, report = {}, InheritReport()
    for key, value in teacher_weights.items():
        stage = re.fullmatch(r'(roi_head\.\w+_head\.)(\d+)\.(.+)', key)
        single = stage[1] + stage[3] if stage else key
        if (
            key in student_weights
            or not stage
            or not any(name.startswith(stage[1]) for name in student_weights)
        ):
            weights[key] = value
            continue
        if stage[2] != '0':
            continue  # the later stages have no counterpart
        report.adapted[single] = f'from {key}, the first stage of a cascade'
        target = student_weights.get(single, value)
        if '.fc_reg.' in single and value.shape[0] == 4 < target.shape[0]:
            times = target.shape[0] // 4
            value = torch.cat([value] * times)
            report.adapted[single] += f', repeated for {times} classes'
        weights[single] = value
    return weights, report
