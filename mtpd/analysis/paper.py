"""What the paper reports, and whether one's own numbers may be held against it."""

from __future__ import annotations

from pathlib import Path

from ..config.recipe import Recipe
from ..data import coco

# AP points on COCO: (direct, the last teacher only; progressive), read off the paper's bar chart to about 0.05.
_CHART = {
    'RetinaNet R50': {'box': {'CWD': (39.8, 40.2), 'FGD': (40.7, 41.5), 'MGD': (41.0, 41.4)}},
    'RepPoints R50': {'box': {'CWD': (42.0, 42.4), 'FGD': (42.0, 42.5), 'MGD': (42.3, 42.9)}},
    'Mask R-CNN R50': {
        'box': {'CWD': (41.0, 41.2), 'FGD': (42.1, 42.4), 'MGD': (42.4, 42.5)},
        'mask': {'CWD': (37.0, 37.2), 'FGD': (37.8, 38.0), 'MGD': (38.1, 38.2)},
    },
}
VAL2017 = 5000, 80  # images and categories


def chart(student: str | None) -> dict:
    """The paper's bars of a student ('RetinaNet R50'): {'box' or 'mask': {method: {'direct', 'progressive'}}}.

    AP points on COCO; empty for a student that the chart does not have.
    """
    return {
        metric: {
            method: dict(zip(('direct', 'progressive'), pair, strict=True))
            for method, pair in methods.items()
        }
        for metric, methods in _CHART.get(student, {}).items()
    }


def dataset(recipe: Recipe) -> str:
    """What a recipe's AP is measured on: 'COCO' (val2017 whole, told by its content), 'DigitScenes', else the folder's name."""
    if recipe.cfg.data.root is None:
        return 'DigitScenes'
    table = coco.read(recipe.split('val')[0])
    if (len(table['images']), len(table['categories'])) == VAL2017:
        return 'COCO'
    return Path(recipe.data_root()).name
