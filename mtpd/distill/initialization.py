"""Initial weights of a detector: its config's, its teacher's, or those of a checkpoint that fits in part."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch
from mmcv.runner import CheckpointLoader
from torch import nn

from ..errors import MtpdError
from ..runtime.checkpoints import check_finite, load_checkpoint, student_state

COUNTER = 'num_batches_tracked'  # of batch norm, which is no weight


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
    except (
        OSError,
        HTTPException,
        MtpdError,
        AssertionError,
    ) as error:  # mmcv's: of a wrong prefix
        origin = (backbone.get('init_cfg') or {}).get('checkpoint')
        raise MtpdError(
            f'the pretrained weights cannot be fetched from {origin} ({error}). Train from random weights with '
            f'--cfg-options {key}.backbone.init_cfg=None, or name a file as its checkpoint'
        ) from error


class WarmStart(NamedTuple):
    """What a detector took from a checkpoint that need not fit: weights of the same name and shape.

    Attributes:
        copied: how many weights were taken.
        total: how many the detector has.
        other_shape: weights that both have, in different shapes: their names and both shapes.
        not_in_file: weights that the file lacks.
        not_in_detector: weights of the file that the detector lacks.
    """

    copied: int
    total: int
    other_shape: list[str]
    not_in_file: list[str]
    not_in_detector: list[str]

    def __str__(self) -> str:
        kinds = {
            'kept as they were, since the shapes differ, as with other classes (detector, file)': self.other_shape,
            'kept as they were, since the file lacks them': self.not_in_file,
            'of the file left out, since the detector lacks them': self.not_in_detector,
        }
        lines = [f'{self.copied} of {self.total} weights taken from the file']
        for kind, names in kinds.items():
            if names:
                more = ', ...' if len(names) > 3 else ''
                lines.append(f'{len(names)} {kind}: {", ".join(names[:3])}{more}')
        return '; '.join(lines)


def warm_start(model: nn.Module, path: str | Path) -> WarmStart:
    """Copies every weight of the same name and shape from a checkpoint of any layout into a detector.

    For training on from another dataset or architecture. A stage's student takes over its teacher's neck and head by
    `inherit_from_teacher`.

    Args:
        path: a file, or an address that mmcv knows (``https://...``, ``torchvision://resnet50``).

    Raises:
        MtpdError: the checkpoint is missing, broken or not finite, or has no such weight.
    """
    if '://' in str(path):
        checkpoint = CheckpointLoader.load_checkpoint(str(path), 'cpu')
    else:
        checkpoint = load_checkpoint(path)
    state = student_state(checkpoint, path)
    check_finite(state, path)
    weights = model.state_dict()
    shared = {
        key: None for key in weights if key in state and state[key].shape == weights[key].shape
    }
    if all(key.endswith(COUNTER) for key in shared):
        raise MtpdError(
            f'{path} has no weight in common with the detector that starts from it: the file has '
            f'{", ".join(list(state)[:3])}, ..., and the detector has {", ".join(list(weights)[:3])}, ... Give the '
            'checkpoint of a detector of the same architecture'
        )
    for key in shared:
        weights[key].copy_(state[key])
    other_shape = [
        f'{key} {tuple(weights[key].shape)} {tuple(state[key].shape)}'
        for key in weights
        if key in state and key not in shared
    ]
    # Files of early versions lack the counters of batch norm.
    absent = [key for key in weights if key not in state and not key.endswith(COUNTER)]
    foreign = [key for key in state if key not in weights]
    total = len(shared) + len(other_shape) + len(absent)
    return WarmStart(len(shared), total, other_shape, absent, foreign)


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


class InheritanceError(MtpdError):
    """A student can't take over its teacher's neck and head.

    Args:
        mismatches: weights that differ, and how; none where nothing agrees.
        allow: `distill.inherit_allow` as it is.
    """

    SHOWN = 5

    def __init__(self, mismatches: dict[str, str], allow: list[str]):
        lines = ["the student cannot inherit the teacher's neck and head:"]
        lines += [f'  {key}: {reason}' for key, reason in list(mismatches.items())[: self.SHOWN]]
        if len(mismatches) > self.SHOWN:
            lines.append(f'  and {len(mismatches) - self.SHOWN} more')
        fix = 'Start without them: --cfg-options distill.start=baseline (or random)'
        if mismatches:
            patterns = dict.fromkeys(re.sub(r'\.\d+(?=\.)', '.*', key) for key in mismatches)
            listed = ','.join(f'"{pattern}"' for pattern in [*allow, *patterns])
            fix += f"; or allow these to differ: --cfg-options 'distill.inherit_allow=[{listed}]'"
        else:
            lines.append('  no weight agrees')
        super().__init__('\n'.join([*lines, fix]))


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
        InheritanceError: a mismatch that is not allowed, or nothing to copy; nothing is copied then.
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
        elif key not in teacher_weights and not key.endswith(COUNTER):
            report.skipped[key] = 'the teacher has no such weight'
        elif key in teacher_weights and student_weights[key].shape != teacher_weights[key].shape:
            report.copied.remove(key)
            shapes = tuple(student_weights[key].shape), tuple(teacher_weights[key].shape)
            report.skipped[key] = f'other shape (student {shapes[0]}, teacher {shapes[1]})'
    mismatches = [k for k in report.skipped if not any(fnmatch(k, pattern) for pattern in allow)]
    if mismatches or not report.copied:
        raise InheritanceError({key: report.skipped[key] for key in mismatches}, list(allow))
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
