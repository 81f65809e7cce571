"""Findings about a distillation: numbers that are out of their usual range, each with what to change.

The judgements here take numbers. `preflight.diagnosis` measures them by a few batches, `analysis.findings` reads them from logs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

# Distillation by detection, of losses and of gradients. With MGD at its published alpha the demo has 4 to 8 of losses and 0.4 to
# 0.8 of gradients in the neck.
USUAL_RATIO = (0.1, 10.0)
# AP points, below which a teacher has learned nothing of the data.
USELESS_AP = 1.0
# A detection loss may end so much above its start by chance.
USUAL_RISE = 1.1
# Share of a feature map's mean square that varies over cells and images. Trained teachers of the demo have 0.8 to 1, random ones 0.4.
USUAL_VARIATION = 0.1
# By how much of their size an update changes the weights: 0.03 in the demo.
USUAL_UPDATE = 0.1
# Learning rate by that of the student's own config, scaled to the batch; side of the images by that of the teacher's training.
USUAL_RATE = (0.5, 2.0)
USUAL_SIDE = (0.8, 1.25)


SEVERITIES = ('error', 'warning', 'note')


class Finding(NamedTuple):
    """A number that is out of its usual range.

    Attributes:
        subject: the detector, stage or setting that it is about.
        severity: 'error' where training would be refused, 'warning', or 'note' where nothing has to change.
        measured: what it is, a sentence without its full stop.
        usual: what it is where all is well, in the same form; may be empty.
        change: what to do, in sentences.
    """

    subject: str
    severity: str
    measured: str
    usual: str
    change: str

    @property
    def summary(self) -> str:
        """Measured value and usual range: 'AP is 0.0 (usual: above 1)'."""
        return f'{self.measured} (usual: {self.usual})' if self.usual else self.measured

    @property
    def text(self) -> str:
        facts = f'{self.subject}: {self.summary}'.rstrip('.')
        return f'{facts}. {self.change}'.strip()


def warning(subject: str, measured: str, usual: str, change: str) -> Finding:
    return Finding(subject, 'warning', measured, usual, change)


def refusal(subject: str, measured: str, usual: str = '', change: str = '') -> Finding:
    return Finding(subject, 'error', measured, usual, change)


def count_text(findings: Iterable[Finding]) -> str:
    """'no findings', '1 finding' or '3 findings'."""
    count = len(list(findings))
    return f'{count or "no"} finding{"" if count == 1 else "s"}'


def unique(findings: Iterable[Finding]) -> list[Finding]:
    """Each finding once: errors, then warnings, then notes."""
    return sorted(dict.fromkeys(findings), key=lambda finding: SEVERITIES.index(finding.severity))


def number_text(value: float) -> str:
    """Two significant digits, with an exponent only where needed: '0.0045', '360', '2e-07'."""
    if value and not 1e-4 <= abs(value) < 1e5:
        return f'{value:.1e}'.replace('e-0', 'e-').replace('e+0', 'e+').replace('.0e', 'e')
    text = f'{float(f"{value:.2g}"):f}'
    return text.rstrip('0').rstrip('.')


def range_text(limits: tuple[float, float]) -> str:
    return f'{number_text(limits[0])} to {number_text(limits[1])}'


def is_outside(value: float, limits: tuple[float, float]) -> bool:
    return not limits[0] <= value <= limits[1]


def scaled_settings(method: str, weights: Mapping[str, float], factor: float) -> str:
    """A method's weights times `factor` as overrides: 'distill.settings.mgd.alpha=2e-07'.

    Args:
        weights: the settings that the loss is proportional to, all together.
    """
    return ' '.join(
        f'distill.settings.{method}.{name}={value * factor:.2g}' for name, value in weights.items()
    )


def balance_finding(
    subject: str, judged: float, measured: str, what: str, method: str, weights: Mapping[str, float]
) -> Finding | None:
    """Whether distillation outweighs detection, or the other way round.

    Args:
        judged: distillation by detection, of `what`: the 'losses', or the 'gradients in the neck'.
        measured: the finding's `measured`.
        method, weights: as `scaled_settings`.
    """
    if not is_outside(judged, USUAL_RATIO):
        return None
    if judged > 0:
        change = f'Set --cfg-options {scaled_settings(method, weights, 1 / judged)}: the {what} are then equal.'
    else:
        change = f'Raise {", ".join(f"distill.settings.{method}.{name}" for name in weights)}: nothing is distilled.'
    return warning(subject, measured, range_text(USUAL_RATIO), change)


def ap_finding(
    teacher: str, ap: float, student_ap: float | None, images: int | None = None
) -> Finding | None:
    """Whether a teacher has less AP (points) than the student that it is to teach, or next to none.

    Args:
        images: how many images both were measured on, where these are only some of the validation split.
    """
    on = f' on {images} images' if images else ''
    margin = 2.0 if images else 0.0  # of so few images AP is not exact
    subject = f'teacher {teacher}'
    if ap < USELESS_AP:
        return warning(
            subject,
            f'AP is {ap:.1f}{on}',
            f'above {USELESS_AP:g} and above the student',
            'The checkpoint is not trained, or not for these classes. Give another one, or train the teacher here: '
            f'--cfg-options teachers.{teacher}.checkpoint=None',
        )
    if student_ap is None or ap >= student_ap - margin:
        return None
    return warning(
        subject,
        f'AP is {ap:.1f}{on}, and the student has {student_ap:.1f} before distillation',
        'above the student',
        'Choose a stronger teacher, or train it longer.',
    )


def student_finding(ap: float) -> Finding | None:
    """Whether the baseline has learned next to nothing; `ap`: AP in points."""
    if ap >= USELESS_AP:
        return None
    change = 'Train the baseline longer: schedule.baseline. Stages that start from it hardly tell teachers apart.'
    return warning(
        'student', f'AP is {ap:.1f} before distillation', f'above {USELESS_AP:g}', change
    )


def teacher_mode_finding(mode: str) -> Finding | None:
    if mode != 'train':
        return None
    return warning(
        'distill.teacher_mode',
        "it is 'train': the teacher's batch norm follows the batch, and its statistics change",
        "'eval'",
        "Set --cfg-options distill.teacher_mode=eval, unless the original code's behaviour is meant.",
    )


def rise_finding(
    subject: str,
    first: float,
    last: float,
    aps: tuple[float, float] | None = None,
    teacher: bool = True,
) -> Finding | None:
    """Whether the detection loss of a stage ends above where it began; a note where AP rose all the same.

    Args:
        aps: AP (points) before the stage and after it, where they are known.
        teacher: whether the stage has one.
    """
    if last <= USUAL_RISE * first:
        return None
    text = f'the detection loss ends at {number_text(last)}, {last / first:.2f} times where it began ({number_text(first)})'
    usual = f'up to {USUAL_RISE:g} times'
    if aps and aps[1] > aps[0]:
        text += f', and AP rises from {aps[0]:.1f} to {aps[1]:.1f}'
        change = 'The stage helps.'
        if teacher:
            change += ' A smaller weight of distillation may help more.'
        return Finding(subject, 'note', text, usual, change)
    if aps:
        text += f', and AP goes from {aps[0]:.1f} to {aps[1]:.1f}'
    change = 'Lower the learning rate of stages (schedule.arm_lr), or train longer (schedule.arm).'
    if teacher:
        change += ' Or give the distillation loss less weight.'
    return warning(subject, text, usual, change)


def divergence_finding(subject: str, first: float, last: float) -> Finding | None:
    """Whether the loss of a detector's own training ends above where it began."""
    if last <= USUAL_RISE * first:
        return None
    text = f'the loss ends at {number_text(last)}, {last / first:.2f} times where it began ({number_text(first)})'
    change = 'Lower the learning rate, and look at the annotations.'
    return warning(subject, text, f'up to {USUAL_RISE:g} times', change)


def regime_finding(index: float) -> Finding | None:
    """Whether the student gains more by training on than by a teacher; `index`: `Study.regime_index`."""
    if index <= 1:
        return None
    return warning(
        'student',
        f'training as long without a teacher brings {number_text(index)} times what distillation adds (regime index)',
        '1 or less',
        'The student has not converged, and orders of teachers cannot be judged. Train the baseline longer '
        '(schedule.baseline).',
    )
