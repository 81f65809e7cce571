"""Losses in a training's log.json: what is of detection, and what of distillation."""

from __future__ import annotations

import re
from pathlib import Path

from ..utils.files import read_log

# A loss with its FPN level, as `trainings.distill_cfg` names them, by any method.
DISTILLATION = re.compile(r'loss_.+_fpn_(\d+)')


def split_loss(row: dict) -> tuple[float | None, float | None]:
    """Detection loss and distillation loss of a log row (None: not in the row).

    What mmdet trains is what has 'loss' in its name: also a cascade's ``s0.loss_cls``.
    """
    parts = {k: v for k, v in row.items() if 'loss' in k and k != 'loss' and v is not None}
    distillation = [v for k, v in parts.items() if DISTILLATION.fullmatch(k)]
    detection = [v for k, v in parts.items() if not DISTILLATION.fullmatch(k)]
    if detection:
        total = sum(detection)
    else:
        total = None if row.get('loss') is None else row['loss'] - sum(distillation)
    return total, (sum(distillation) if distillation else None)


def loss_rows(log: str | Path, teacher: str | None = None) -> list[dict]:
    """Rows of one training run's log.json for `plots.loss_curves`."""
    rows = []
    for row in read_log(Path(log)):
        detection, distillation = split_loss(row)
        rows.append(
            row
            | {'stage': 1, 'teacher': teacher}
            | {'detection': detection, 'distillation': distillation}
        )
    return rows
