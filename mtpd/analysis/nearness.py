"""How near a student's features come to its teachers' while it learns: adaptation costs, stage by stage."""

from __future__ import annotations

from pathlib import Path

from ..config.recipe import Recipe
from ..distill.adaptation import costs_from_features
from ..engine.features import load_all
from ..pipeline.order import image_features
from ..utils.intervals import Interval
from ..utils.numerals import bracketed


def table_rows(
    recipe: Recipe, checkpoints: dict[str, tuple[str, Path]], images: int = 128
) -> list[dict]:
    """A row for each state of the student: the adaptation cost from it to each teacher, with a 95 % interval over images.

    Args:
        checkpoints: as `feature_views.stage_checkpoints` gives them.
        images: of the validation split, half to fit the maps, half to measure.

    Raises:
        MtpdError: from `costs_from_features`.
    """
    models = load_all(recipe, checkpoints)
    found = costs_from_features(*(image_features(recipe, models, images, k) for k in (0, 1)))
    place = {label: found['detectors'].index(label) for label in checkpoints}
    students = [label for label, (name, _) in checkpoints.items() if name == 'student']

    def cost(a: str, b: str) -> str | None:
        at = place[a], place[b]
        ends = (found[key][at] for key in ('cost', 'low', 'high'))
        return bracketed(Interval(*ends, images), digits=3)

    return [
        {'student': label}
        | {
            f'to {teacher}': cost(label, teacher)
            for teacher in checkpoints
            if teacher not in students
        }
        for label in students
    ]
