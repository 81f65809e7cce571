"""Rows of tables in notebooks: the detectors before any distillation, and the student along the stages of an arm."""

from __future__ import annotations

from pathlib import Path

from ..analysis.runs import points
from ..config.recipe import Recipe
from ..config.trainings import stage_dir
from ..pipeline.train import began_from, prepare_detector
from ..utils.files import read_json

SHOWN = {'AP': 'AP', 'AP50': 'AP50', 'AP75': 'AP75', 'AP small': 'AP_s', 'mask AP': 'mask_AP'}


def of_detectors(recipe: Recipe, work_dir: str | Path | None = None) -> list[dict]:
    """The student's baseline, then the teachers; what is missing is trained now.

    Keys: name, label, role ('baseline', 'teacher'), AP AP50 AP75 AP_s AP_m AP_l mask_AP (points), parameters (count),
    gflops, ms_per_image; updates, scenes and init (`train.began_from`), as the recipe says of their training.

    Raises:
        RecipeError: from `prepare_detector`.
    """
    rows = []
    for name, spec in recipe.detectors.items():
        found = prepare_detector(recipe, name, work_dir)
        rows.append(
            {
                'name': name,
                'label': spec.get('label', name),
                'role': 'baseline' if name == 'student' else 'teacher',
                'updates': spec.get('updates', recipe.cfg.schedule.baseline),
                'scenes': spec.get('scenes', recipe.cfg.data.scenes.train),
                'init': began_from(recipe, name),
                **_points(found['metrics']),
                **found['model'],
            }
        )
    return rows


def headings(recipe: Recipe) -> dict[str, str]:
    """Of `of_detectors`, those that say something of this recipe."""
    found = {'label': 'detector', 'role': 'role', 'AP': 'AP', 'AP50': 'AP50'}
    found |= {'mask_AP': 'mask AP'} if 'segm' in recipe.cfg.evaluation.metrics else {}
    found |= {'parameters': 'parameters', 'gflops': 'GFLOPs', 'ms_per_image': 'ms an image'}
    scenes = {'updates': 'updates', 'scenes': 'training scenes', 'init': 'began from'}
    return found | ({} if recipe.cfg.data.root else scenes)


def of_stages(
    recipe: Recipe, arm: str, last: int, work_dir: str | Path | None = None
) -> list[dict]:
    """The student at the baseline and after each stage of an arm up to the `last`, which are trained: AP points by
    `SHOWN`, mask AP where the recipe measures it.

    Raises:
        RecipeError: from `prepare_detector`.
    """
    plan = recipe.arm(arm, last)
    found = {'baseline': prepare_detector(recipe, 'student', work_dir)['metrics']}
    for stage in range(1, last + 1):
        folder = stage_dir(recipe, plan, stage, work_dir)
        found[f'after stage {stage}'] = read_json(folder / 'metrics.json')
    masks = 'segm' in recipe.cfg.evaluation.metrics
    columns = {title: key for title, key in SHOWN.items() if masks or key != 'mask_AP'}
    return [
        {'student': name} | {title: _points(metrics)[key] for title, key in columns.items()}
        for name, metrics in found.items()
    ]


def _points(metrics: dict | None) -> dict:
    """As `points`; the AP of a split without objects is 0, so that it can be compared."""
    found = points(metrics)
    return found | {'AP': found['AP'] or 0.0}
