"""Weights that a student takes over: from its teacher, or from any checkpoint that it partly fits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from torch import nn

from .checkpoints import load, student_state
from .errors import MtpdError


def warm_start(model: nn.Module, path: str | Path) -> int:
    """Copies every weight of the same name and shape from a checkpoint; returns how many it were.

    For training on from another dataset or architecture; a stage inherits through `inherit`.

    Raises:
        MtpdError: from `load` and `student_state`, or nothing agrees.
    """
    state = student_state(load(path), path)
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
    """What a student took from its teacher: keys copied, and keys skipped with the reason."""

    copied: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"copied {len(self.copied)} of the teacher's weights, left {len(self.skipped)}"]
        return '\n'.join(lines + [f'  {key}: {why}' for key, why in self.skipped.items()])


def inherit(student: nn.Module, teacher_state: dict, allow: Iterable[str] = ()) -> InheritReport:
    """Copies the teacher's neck and head (all outside `backbone.`) into the student.

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
    report = InheritReport(copied=[key for key in own if key in theirs])
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
