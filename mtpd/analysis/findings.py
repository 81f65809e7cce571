"""Why a student is worse: what a run directory's logs and numbers show, and `mtpd diagnose`, which also measures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.findings import (
    Finding,
    ap_finding,
    balance_finding,
    count_text,
    divergence_finding,
    number_text,
    regime_finding,
    rise_finding,
    student_finding,
    teacher_mode_finding,
    unique,
)
from ..config.settings import read_settings
from ..errors import MtpdError
from ..utils.paths import user_path
from .run import DISTILLATION_LOSS, Run, ap_points, is_run, load_run
from .study import Study, load_study

if TYPE_CHECKING:
    from ..config.recipe import Recipe
    from ..preflight.diagnosis import Diagnosis


def diagnose(
    path: str | Path,
    overrides: dict | None = None,
    seed: int | None = None,
    work_dir: str | Path | None = None,
) -> Diagnosis:
    """All findings about a run directory, a folder of `mtpd train`, or a recipe and what is trained of it.

    Args:
        path: a folder or a recipe's file.
        overrides, seed, work_dir: of a recipe.

    Raises:
        MtpdError: neither a run nor a recipe, or a recipe that does not load.
    """
    from ..config.recipe import load_recipe
    from ..preflight.diagnosis import Diagnosis, diagnose_recipe

    folder = user_path(path)
    if not folder.is_dir():
        recipe = load_recipe(path, overrides, seed)
        diagnosis = diagnose_recipe(recipe, work_dir)
        if is_run(recipe.run_dir(work_dir)):
            _add_run(diagnosis, load_run(recipe.run_dir(work_dir)))
        return diagnosis
    run = load_run(folder)
    diagnosis = Diagnosis()
    if read_settings(folder / 'recipe.py'):  # literals alone: to load it runs no code
        try:
            recipe = load_recipe(folder / 'recipe.py', overrides, seed)
        except MtpdError as error:  # of another version, or its detectors' configs are gone
            diagnosis.unmeasured.append(f'losses and gradients: {error}')
        else:
            diagnosis = diagnose_recipe(recipe, folder)
    _add_run(diagnosis, run)
    return diagnosis


def format_diagnosis(diagnosis: Diagnosis) -> str:
    """What `mtpd diagnose` prints: measurements, then each finding with its usual range and what to change, then their number."""
    lines = [f'measured      {text}' for text in diagnosis.measured]
    lines += [f'not measured  {text}' for text in diagnosis.unmeasured]
    for finding in diagnosis.findings:
        lines += ['', f'{finding.severity}: {finding.subject}', f'  measured  {finding.measured}']
        lines += [f'  usual     {finding.usual}'] if finding.usual else []
        lines += [f'  change    {finding.change}'] if finding.change else []
    return '\n'.join([*lines, '', f'{count_text(diagnosis.findings)}'])


def _add_run(diagnosis: Diagnosis, run: Run) -> None:
    if run.info.get('smoke'):
        diagnosis.unmeasured.append(
            f'{run.path}: it is a smoke run, whose numbers mean nothing. A run without --smoke can be judged.'
        )
        return
    diagnosis.findings = unique([*diagnosis.findings, *run_findings(run)])
    diagnosis.measured += [text for name in _arm_names(run) for text in stage_texts(run, name)]
    for row in run.results() if not run.arms else ():
        if row['AP'] is not None:
            diagnosis.measured.append(f'{row["label"]}: AP {row["AP"]:.1f}')


def run_findings(run: Run, study: Study | None = None) -> list[Finding]:
    """What is out of its usual range in a run directory: AP of teachers, each stage's losses, the regime index, settings.

    A smoke run's numbers mean nothing, and give no finding.

    Args:
        study: the run and those of other seeds, where they are read already.
    """
    if run.info.get('smoke'):
        return []
    study = study or load_study(run)
    index = study.regime_index
    baseline = ap_points(run.metrics('detector', run.student) if run.student else None)['AP']
    rows = [
        *(finding for name in _arm_names(run) for finding in stage_findings(run, name)),
        *_detector_findings(run),
        student_finding(baseline) if run.arms and baseline is not None else None,
        teacher_mode_finding(_distill_settings(run).get('teacher_mode', 'eval')),
        regime_finding(index.value) if index else None,
    ]
    return unique(row for row in rows if row)


def stage_findings(run: Run, arm: str, stage: int | None = None) -> list[Finding]:
    """What is out of its usual range in the losses of an arm's finished stages, and in the AP of their teachers.

    Args:
        stage: that one alone, counted from 1.
    """
    rows: list[Finding | None] = []
    aps = {row['stage']: row['AP'] for row in run.stage_aps(arm)}
    teachers = next(item['teachers'] for item in run.arms if item['name'] == arm)
    folders = run.stage_dirs(arm)
    for k, losses in _stage_losses(run, arm, stage):
        # At a stage's start the learning rate rises and generation layers are untrained: too early to judge.
        if not any((folders[k - 1] / name).is_file() for name in ('student.pth', 'metrics.json')):
            continue
        detection = [row['detection'] for row in losses]
        # A row is a mean over the log's interval; of the end there are several.
        end = statistics.fmean(detection[-max(1, len(detection) // 10) :])
        subject = f'{arm}, stage {k}'
        if len(detection) > 1:
            known = (aps[k - 1], aps[k]) if k - 1 in aps and k in aps else None
            has_teacher = teachers[k - 1] is not None
            rows.append(rise_finding(subject, detection[0], end, known, has_teacher))
        rows.append(_balance_finding(run, subject, losses))
    if stage:
        teachers = teachers[stage - 1 : stage]
    rows += [_teacher_finding(run, name) for name in dict.fromkeys(teachers) if name]
    return unique(row for row in rows if row)


def stage_texts(run: Run, arm: str) -> list[str]:
    """The losses of an arm's stages at their start and end, a line each."""
    return [
        f'{arm}, stage {k}: {_losses_text(losses[0])} at the start, {_losses_text(losses[-1])} at the end'
        for k, losses in _stage_losses(run, arm)
    ]


def stage_sentences(
    recipe: Recipe, arm: str, stage: int, work_dir: str | Path | None = None
) -> list[str]:
    """For a notebook: the findings about a stage, or that there are none."""
    run = load_run(recipe.run_dir(work_dir))
    findings = [] if run.info.get('smoke') else stage_findings(run, arm, stage)
    findings = [finding for finding in findings if finding.severity != 'note']
    if not findings:
        return ['Losses and AP are in their usual range.']
    return [f'**To look at:** {finding.text}' for finding in findings]


def _stage_losses(run: Run, arm: str, stage: int | None = None) -> Iterable[tuple[int, list[dict]]]:
    """Numbers of an arm's stages, and the rows of their logs that have losses."""
    rows = [row for row in run.curves(arm) if row['detection'] is not None]
    for k in sorted({row['stage'] for row in rows}):
        if stage in (None, k):
            yield k, [row for row in rows if row['stage'] == k]


def _balance_finding(run: Run, subject: str, rows: Sequence[dict]) -> Finding | None:
    distill = _distill_settings(run)
    pairs = [
        (row['distillation'], row['detection']) for row in rows if row['distillation'] is not None
    ]
    ratios = [distillation / detection for distillation, detection in pairs if detection]
    if not ratios or 'method' not in distill:
        return None
    from ..preflight.diagnosis import method_weights

    settings = distill['settings'][distill['method']]
    text = f'{_losses_text(rows[0])} at the start, {_losses_text(rows[-1])} at the end'
    median = statistics.median(ratios)
    text = f'the distillation loss is {number_text(median)} times the detection loss, by the median; {text}'
    weights = method_weights(settings)
    return balance_finding(subject, median, text, 'losses', distill['method'], weights)


def _losses_text(row: dict) -> str:
    """A log row's losses: 'distillation 434 against detection 1.2 (level 0 360 times, ...)'."""
    detection = f'{number_text(row["detection"])}'
    if row['distillation'] is None:
        return f'detection {detection}'
    levels = {
        match[1]: value / row['detection']
        for key, value in row.items()
        if (match := DISTILLATION_LOSS.fullmatch(key)) and row['detection']
    }
    by_level = ', '.join(f'level {k} {number_text(value)}' for k, value in levels.items())
    return f'distillation {number_text(row["distillation"])} against detection {detection} (times: {by_level})'


def _detector_findings(run: Run) -> list[Finding]:
    """Of detectors that were trained on their own here, whether their loss rose."""
    rows = []
    for label, log in run.detector_curves().items():
        losses = [row['detection'] for row in log if row['detection'] is not None]
        if len(losses) > 1:
            rows.append(divergence_finding(label, losses[0], losses[-1]))
    return [row for row in rows if row]


def _teacher_finding(run: Run, teacher: str) -> Finding | None:
    aps = {row['name']: row['AP'] for row in run.results() if row['role'] != 'arm'}
    ap = aps.get(teacher)
    return None if ap is None else ap_finding(teacher, ap, aps.get(run.student))


def _arm_names(run: Run) -> list[str]:
    return [arm['name'] for arm in run.arms]


def _distill_settings(run: Run) -> dict:
    """The distillation settings that recipe.py states; empty where there is none, or it is not as the kit writes it."""
    try:
        return (read_settings(run.path / 'recipe.py') or {}).get('distill') or {}
    except MtpdError:
        return {}
