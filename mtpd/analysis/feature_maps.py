"""Feature maps (C, H, W) of several detectors as pictures: strength, difference, colours."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config.plan import stage_dir
from ..config.recipe import Recipe
from ..data.loading import read_image
from ..distill.adaptation_cost import costs_from_features
from ..engine.features import feature_batches, image_batches, load_detectors
from ..errors import RecipeError
from ..pipeline.detectors import detector_checkpoint
from ..pipeline.stages import train_stage
from ..pipeline.teacher_order import image_features, resolve_auto_arms
from ..utils.statistics import Interval, format_interval

DetectorFeatures = list[
    tuple[str, Tensor]
]  # (label, features (C, H, W)) of one image, a detector each


def feature_strength(feature: Tensor) -> Tensor:
    """Mean absolute activation over channels: (H, W) of one image's (C, H, W)."""
    return feature.abs().mean(0)


def feature_strengths(rows: Sequence[DetectorFeatures]) -> list[list[tuple[str, np.ndarray]]]:
    """(label, (H, W)) per detector, for `plots.feature_maps`."""
    return [
        [(label, feature_strength(feature).cpu().numpy()) for label, feature in row] for row in rows
    ]


def feature_differences(rows: Sequence[DetectorFeatures]) -> list[list[tuple[str, np.ndarray]]]:
    """How much stronger each detector's features are than the first one's: (label, (H, W)), for
    `plots.feature_differences`. Those of another size are left out."""
    differences = []
    for (_, first), *others in rows:
        before = feature_strength(first)
        maps = [
            (label, feature_strength(feature) - before)
            for label, feature in others
            if feature.shape[1:] == first.shape[1:]
        ]
        differences.append([(label, values.cpu().numpy()) for label, values in maps])
    return differences


def pca_colours(rows: Sequence[DetectorFeatures], basis: str) -> list[list[tuple[str, np.ndarray]]]:
    """The first three principal components of one detector's features as red, green and blue, and of the others what
    the best linear map (least squares over all rows, with bias) makes of them: (label, (H, W, 3) in 0..1).

    Without the map alike features could look unlike: nothing makes two detectors keep to the same order of channels.

    Args:
        basis: the detector that the components and their scale are fitted on. Those with maps of another size are left out.
    """
    by_label = [dict(row) for row in rows]
    cells = _cell_matrix([row[basis] for row in by_label])
    mean = cells.mean(0)
    _, _, axes = torch.linalg.svd(cells - mean, full_matrices=False)
    axes = axes[:3]
    # SVD leaves the sign open: the largest weight of an axis is positive.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    target = (cells - mean) @ axes.T
    low, high = torch.quantile(target, torch.tensor([0.02, 0.98]).double(), dim=0)

    def coloured(label: str) -> list[np.ndarray]:
        features = [row[label] for row in by_label]
        values = _cell_matrix(features)
        values = torch.cat([values, torch.ones_like(values[:, :1])], 1)
        mapped = values @ torch.linalg.lstsq(values, target, driver='gelsd').solution
        scaled = ((mapped - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        parts = scaled.split([feature[0].numel() for feature in features])
        return [
            part.reshape(*feature.shape[1:], -1).numpy()
            for part, feature in zip(parts, features, strict=True)
        ]

    coloured_rows: list[list[tuple[str, np.ndarray]]] = [[] for _ in rows]
    for label, _ in rows[0]:
        if all(row[label].shape[1:] == row[basis].shape[1:] for row in by_label):
            for row, picture in zip(coloured_rows, coloured(label), strict=True):
                row.append((label, picture))
    return coloured_rows


def _cell_matrix(features: Sequence[Tensor]) -> Tensor:
    """A row for each cell of all the maps, a column for each channel."""
    return torch.cat([feature.flatten(1).T for feature in features]).double().cpu()


def stage_checkpoints(
    recipe: Recipe, arm: str, work_dir: str | Path | None = None
) -> dict[str, tuple[str, Path]]:
    """The student before and after each stage of an arm, at the end of the arm without a teacher if there is one that is
    trained, then the teachers; for `load_detectors`."""
    recipe = resolve_auto_arms(recipe, work_dir)
    plan = recipe.arm(arm)
    checkpoints = {'student before': ('student', detector_checkpoint(recipe, 'student', work_dir))}
    for stage in range(1, len(plan.teachers) + 1):
        checkpoints[f'after stage {stage}'] = (
            'student',
            train_stage(recipe, stage, arm, work_dir)['checkpoint'],
        )
    for other in recipe.arms.values():
        trained = stage_dir(recipe, other, 1, work_dir) / 'student.pth'
        if other.name != arm and other.teachers == (None,) and trained.is_file():
            checkpoints[other.label] = ('student', trained)
    for name, spec in recipe.cfg.teachers.items():
        checkpoints[spec.get('label', name)] = (name, detector_checkpoint(recipe, name, work_dir))
    return checkpoints


def feature_rows(
    recipe: Recipe, checkpoints: dict[str, tuple[str, Path]], count: int, level: int
) -> list[list[tuple[str, Tensor]]]:
    """A row per image, in it (label, features (C, H, W)) per detector, for the figures of this module.

    Raises:
        RecipeError: the necks have no such level.
    """
    models = load_detectors(recipe, checkpoints)
    rows: list[list] = []
    for by_label, _, metas in feature_batches(recipe, models, count):
        levels = min(len(features) for features in by_label.values())
        if not 0 <= level < levels:
            raise RecipeError(
                recipe.source, [f'level {level}: the necks have levels 0 to {levels - 1}.']
            )
        rows += [
            [(label, features[level][i]) for label, features in by_label.items()]
            for i in range(len(metas))
        ]
    return rows


def feature_images(recipe: Recipe, count: int) -> list[np.ndarray]:
    """The images of `feature_rows` as they are shown, in its order: each (H, W, 3), RGB, uint8."""
    metas = [meta for _, metas in image_batches(recipe, count) for meta in metas]
    return [read_image(meta['filename']) for meta in metas]


def distance_to_teachers(
    recipe: Recipe, checkpoints: dict[str, tuple[str, Path]], images: int = 128
) -> list[dict]:
    """A row for each state of the student: the adaptation cost from it to each teacher, with a 95 % interval over images.

    Args:
        checkpoints: as `feature_maps.stage_checkpoints` gives them.
        images: of the validation split, half to fit the maps, half to measure.

    Raises:
        MtpdError: from `costs_from_features`.
    """
    models = load_detectors(recipe, checkpoints)
    costs = costs_from_features(*(image_features(recipe, models, images, k) for k in (0, 1)))
    place = {label: costs['detectors'].index(label) for label in checkpoints}
    students = [label for label, (name, _) in checkpoints.items() if name == 'student']

    teachers = [label for label in checkpoints if label not in students]

    def cost_text(student: str, teacher: str) -> str:
        cell = place[student], place[teacher]
        interval = Interval(*(costs[key][cell] for key in ('cost', 'low', 'high')), images)
        return format_interval(interval, digits=3)

    return [
        {'student': student}
        | {f'to {teacher}': cost_text(student, teacher) for teacher in teachers}
        for student in students
    ]
