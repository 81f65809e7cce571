"""What a recipe trains: its detectors and its arms' stages, where each lies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from .recipe import Arm, Recipe


class Training(NamedTuple):
    """One training: a detector on its own (`teacher` is None), or a stage of distillation.

    `folder` gets ``latest.pth`` and, at the end, `final`.
    """

    detector: str
    teacher: str | None
    updates: int
    folder: Path
    final: str = 'student.pth'

    @property
    def title(self) -> str:
        return training_title(self.detector, self.teacher)

    @property
    def done(self) -> bool:
        return (self.folder / self.final).is_file()


def training_title(detector: str, teacher: str | None) -> str:
    return f'{detector} taught by {teacher}' if teacher else detector


def planned_trainings(recipe: Recipe, work_dir: str | Path | None = None) -> list[Training]:
    """Everything that a run of the recipe trains; what several arms begin with is there once.

    For teachers that are still to be chosen the first of the pool stand, as many as may be chosen.
    """
    trainings = [
        detector_training(recipe, name, work_dir)
        for name in recipe.detectors
        if recipe.checkpoint(name) is None
    ]
    seen = set()
    for arm in recipe.arms.values():
        if not arm.teachers:
            arm = replace(arm, teachers=tuple(recipe.pool[: recipe.cfg.order.max_length]))
        for stage, training in enumerate(
            arm_trainings(recipe, arm, range(1, len(arm.teachers) + 1), work_dir), 1
        ):
            beginning = arm.teachers[:stage], arm.stage_updates
            if beginning not in seen:
                trainings.append(training)
            seen.add(beginning)
    return trainings


def arms_that_share(recipe: Recipe, arm: Arm, stage: int) -> list[Arm]:
    """The other arms whose stages up to `stage`, counted from 1, are the same trainings as those of `arm`."""
    return [
        other
        for other in recipe.arms.values()
        if other.name != arm.name
        and other.teachers[:stage] == arm.teachers[:stage]
        and other.stage_updates == arm.stage_updates
    ]


def detector_training(recipe: Recipe, name: str, work_dir: str | Path | None = None) -> Training:
    """The training of the student's baseline, or of a teacher."""
    schedule = recipe.cfg.schedule
    default = schedule.baseline if name == 'student' else schedule.teacher
    updates = recipe.detector(name).get('updates', default)
    folder = recipe.run_dir(work_dir) / 'detectors' / name
    return Training(name, None, updates, folder, 'model.pth')


def arm_trainings(
    recipe: Recipe, arm: Arm, stages: Iterable[int], work_dir: str | Path | None = None
) -> list[Training]:
    """The trainings of an arm's stages, counted from 1."""
    return [
        Training(
            'student',
            arm.teachers[stage - 1],
            arm.stage_updates,
            stage_dir(recipe, arm, stage, work_dir),
        )
        for stage in stages
    ]


def stage_dir(recipe: Recipe, arm: Arm, stage: int, work_dir: str | Path | None = None) -> Path:
    """Where an arm's stage, counted from 1, lies."""
    return recipe.run_dir(work_dir) / 'stages' / arm.name / arm.stage_name(stage)
