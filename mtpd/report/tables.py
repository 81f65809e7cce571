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
from ..analysis.study import Study
from ..config.plan import stage_dir
from ..config.recipe import Recipe
from ..pipeline.stages import began_from, prepare_detector
from ..utils.files import read_json
from ..utils.statistics import format_interval


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
    lines = [
        _table_line(map(escape_markdown, columns.values())),
        _table_line('---' for _ in columns),
    ]
    lines += [
        _table_line(escape_markdown(cell_text(row.get(key))) for key in columns) for row in rows
    ]
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


def _table_line(cells) -> str:
    return '| ' + ' | '.join(cells) + ' |'


# Rows of tables in notebooks: the detectors before any distillation, and the student along the stages of an arm.


SHOWN = {'AP': 'AP', 'AP50': 'AP50', 'AP75': 'AP75', 'AP small': 'AP_s', 'mask AP': 'mask_AP'}


def detector_rows(recipe: Recipe, work_dir: str | Path | None = None) -> list[dict]:
    """The student's baseline, then the teachers; what is missing is trained now.

    Keys: name, label, role ('baseline', 'teacher'), AP AP50 AP75 AP_s AP_m AP_l mask_AP (points), parameters (count),
    gflops, ms_per_image; updates, scenes and init (`stages.began_from`), as the recipe says of their training.

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
                **_comparable_points(found['metrics']),
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
        {'student': name}
        | {title: _comparable_points(metrics)[key] for title, key in columns.items()}
        for name, metrics in found.items()
    ]


def _comparable_points(metrics: dict | None) -> dict:
    """As `points`; the AP of a split without objects is 0, so that it can be compared."""
    found = ap_points(metrics)
    return found | {'AP': found['AP'] or 0.0}


def study_rows(study: Study) -> list[dict]:
    """`Study.table` as `mtpd.report.tables.markdown_table` shows it: AP points with 95 % intervals, differences paired by seed; a star:
    the interval leaves out 0."""
    return [
        {
            'arm': row['label'],
            'suggested': 'yes' if row['chosen'] else '',
            'AP': format_interval(row['mean']),
            'seeds': len(row['ap']),
            'against no teacher': format_interval(row['above_control'], sign=True, star=True),
            'against direct, strongest teacher': format_interval(
                row['above_direct'], sign=True, star=True
            ),
            'path cost': row['path_cost'],
        }
        for row in study.table()
    ]


def format_duration(seconds: float | None) -> str:
    """Seconds in words: 45 s, 13 min 32 s, 2 h 5 min; – for None."""
    if seconds is None:
        return '–'
    seconds = round(seconds)
    if seconds < 60:
        return f'{seconds} s'
    if seconds < 3600:
        return f'{seconds // 60} min {seconds % 60} s'
    return f'{seconds // 3600} h {seconds % 3600 // 60} min'
