"""Tables in notebooks, as Markdown: they render in JupyterLab, in papermill's output and in HTML.

What comes from data (class names, files' names, error texts) is shown as it is written: it is no markup.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from IPython.display import Markdown

from ..analysis.run import ap_points
from ..config.plan import stage_dir
from ..config.recipe import Recipe
from ..pipeline.detectors import init_label, prepare_detector
from ..utils.files import read_json


def markdown_table(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None
) -> Markdown:
    """Rows as a table: numbers with one decimal or as integers, None as a dash.

    Args:
        columns: {key of a row: heading}, in order; all keys of the first row by default. Without rows there is no
            table either.
    """
    if not rows:
        return Markdown('')
    columns = columns or {key: key for key in rows[0]}
    lines = [_line(map(escape_markdown, columns.values())), _line('---' for _ in columns)]
    lines += [_line(escape_markdown(cell_text(row.get(key))) for key in columns) for row in rows]
    return Markdown('\n'.join(lines))


def show_sentences(*sentences: str) -> Markdown:
    """A paragraph of computed sentences, in which **, _ and ` are markup, and nothing else is."""
    return Markdown(escape_markdown(' '.join(sentences), keep='*_`'))


def escape_markdown(value: Any, keep: str = '') -> str:
    """Text in which Markdown and HTML find nothing to obey; characters of `keep` excepted."""
    escaped = html.escape(str(value), quote=False)
    marks = ''.join(mark for mark in '\\`*_[]|~$!' if mark not in keep)
    return re.sub('([' + re.escape(marks) + '])', r'\\\1', escaped).replace('\n', ' ')


def cell_text(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return '–'
    if isinstance(value, float):
        return f'{value:.1f}' if abs(value) >= 1 or value == 0 else f'{value:.3f}'
    if isinstance(value, int) and not isinstance(value, bool):
        return f'{value:,}'
    return str(value)


def _line(cells) -> str:
    return '| ' + ' | '.join(cells) + ' |'


# Rows of tables in notebooks: the detectors before any distillation, and the student along the stages of an arm.


SHOWN = {'AP': 'AP', 'AP50': 'AP50', 'AP75': 'AP75', 'AP small': 'AP_s', 'mask AP': 'mask_AP'}


def detector_rows(recipe: Recipe, work_dir: str | Path | None = None) -> list[dict]:
    """The student's baseline, then the teachers; what is missing is trained now.

    Keys: name, label, role ('baseline', 'teacher'), AP AP50 AP75 AP_s AP_m AP_l mask_AP (points), parameters (count),
    gflops, ms_per_image; updates, scenes and init (`detectors.init_label`), as the recipe says of their training.

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
                'init': init_label(recipe, name),
                **_points(found['metrics']),
                **found['model'],
            }
        )
    return rows


def detector_headings(recipe: Recipe) -> dict[str, str]:
    """Of `of_detectors`, those that say something of this recipe."""
    found = {'label': 'detector', 'role': 'role', 'AP': 'AP', 'AP50': 'AP50'}
    found |= {'mask_AP': 'mask AP'} if 'segm' in recipe.cfg.evaluation.metrics else {}
    found |= {'parameters': 'parameters', 'gflops': 'GFLOPs', 'ms_per_image': 'ms an image'}
    scenes = {'updates': 'updates', 'scenes': 'training scenes', 'init': 'began from'}
    return found | ({} if recipe.cfg.data.root else scenes)


def stage_rows(
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
    found = ap_points(metrics)
    return found | {'AP': found['AP'] or 0.0}
