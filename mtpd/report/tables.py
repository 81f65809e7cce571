"""Tables of numbers, whose columns pages and notebooks share, and computed sentences in notebooks.

In a notebook tables and sentences are Markdown, which JupyterLab, papermill's output and HTML show. What comes from
data (class names, files' names, error texts) is escaped: it is shown as it is written.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from IPython.display import Markdown

from ..analysis.run import ap_points
from ..analysis.study import Study
from ..config.plan import detector_training, stage_dir
from ..config.recipe import Recipe
from ..pipeline.detectors import init_label, prepare_detector
from ..utils.files import read_json
from ..utils.statistics import Interval, format_interval

# Values as text.

NO_VALUE = '–'


def format_points(value: float) -> str:
    """AP points or milliseconds, with one decimal."""
    return f'{value:.1f}'


def format_count(value: int) -> str:
    """A whole number: 88,000."""
    return f'{value:,}'


def format_difference(gap: Interval) -> str:
    """A difference in AP points: '+1.8 [0.9, 2.7] *', with the star where the interval leaves out 0."""
    return format_interval(gap, sign=True, star=True)


def format_duration(seconds: float | None) -> str:
    """Seconds in words: 45 s, 13 min 32 s, 2 h 5 min; – for None."""
    if seconds is None:
        return NO_VALUE
    seconds = round(seconds)
    if seconds < 60:
        return f'{seconds} s'
    if seconds < 3600:
        return f'{seconds // 60} min {seconds % 60} s'
    return f'{seconds // 3600} h {seconds % 3600 // 60} min'


def cell_text(value: Any) -> str:
    """A value of any kind as a table shows it by default.

    A float has one decimal, or three where it is below 1; None is a dash.
    """
    if value is None:
        return NO_VALUE
    if isinstance(value, float):
        return format_points(value) if abs(value) >= 1 or value == 0 else f'{value:.3f}'
    if isinstance(value, int) and not isinstance(value, bool):
        return format_count(value)
    return str(value)


# Columns.


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        key: under which a row has its value.
        heading: what stands above the values.
        format: makes text of a value that is not None.
        tables: names of the tables that have the column, separated by spaces; see `COLUMNS`.
        optional: whether the column is left out where no row has a value.
    """

    key: str
    heading: str
    format: Callable[[Any], str] = cell_text
    tables: str = ''
    optional: bool = False

    def text(self, row: Mapping[str, Any]) -> str:
        """What the column shows of a row."""
        value = row.get(self.key)
        return NO_VALUE if value is None else self.format(value)


# The columns of the tables of detectors and arms:
#   report, costs  on a run's page; rows of `Run.results`, with what `report.run` adds
#   results        of a run, in notebook 05; rows of `Run.results`
#   detectors      before any distillation, in notebook 02; rows of `detector_rows`
#   stages         of an arm, in notebook 04; rows of `stage_rows`
COLUMNS = (
    Column('label', 'Detector', str, 'report costs results detectors stages'),
    Column('role', 'Role', str, 'results detectors'),
    Column('mean', 'AP, mean', format_interval, 'report', optional=True),
    Column('AP', 'AP', format_points, 'report results detectors stages'),
    Column('gain', 'against baseline', str, 'report'),
    Column('AP50', 'AP50', format_points, 'report results detectors stages'),
    Column('AP75', 'AP75', format_points, 'report results stages'),
    Column('AP_s', 'AP small', format_points, 'results stages', optional=True),
    Column('AP_m', 'AP medium', format_points, 'results', optional=True),
    Column('AP_l', 'AP large', format_points, 'results', optional=True),
    Column('mask_AP', 'Mask AP', format_points, 'report results detectors stages', optional=True),
    Column('parameters', 'Parameters (millions)', lambda n: f'{n / 1e6:.2f}', 'costs detectors'),
    Column('gflops', 'GFLOPs', lambda n: f'{n:.2f}', 'costs detectors'),
    Column('ms_per_image', 'ms an image', format_points, 'costs detectors'),
    Column('weights', 'Weights, SHA-256', str, 'costs'),
    Column('updates', 'Updates', format_count, 'report results detectors', optional=True),
    Column('seconds', 'Training', format_duration, 'report'),
    Column('scenes', 'Training scenes', format_count, 'detectors', optional=True),
    Column('init', 'Began from', str, 'detectors', optional=True),
    Column('paper', "Paper's AP", format_points, 'report', optional=True),
)

# The columns of the table of arms over seeds; rows of `Study.table`.
STUDY_COLUMNS = (
    Column('label', 'arm', str),
    Column('chosen', 'suggested', lambda chosen: 'yes' if chosen else ''),
    Column('mean', 'AP', format_interval),
    Column('ap', 'seeds', lambda ap: str(len(ap))),
    Column('above_control', 'against no teacher', format_difference),
    Column('above_best_teacher', 'against the strongest teacher alone', format_difference),
    Column('path_cost', 'path cost'),
)


def table_columns(table: str, rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of a table that `COLUMNS` names, without optional ones that have no value in `rows`."""
    return [
        column
        for column in COLUMNS
        if table in column.tables.split()
        and not (column.optional and all(row.get(column.key) is None for row in rows))
    ]


# Markdown in notebooks.


def markdown_table(
    rows: Sequence[Mapping[str, Any]],
    columns: str | Iterable[Column] | Mapping[str, str] | None = None,
) -> Markdown:
    """Rows as a table in a notebook; empty without rows.

    Args:
        columns: a table's name in `COLUMNS`; or columns; or {key of a row: heading}. By default the keys of the first
            row.
    """
    if not rows:
        return Markdown('')
    if isinstance(columns, str):
        columns = table_columns(columns, rows)
    if columns is None or isinstance(columns, Mapping):
        headings = columns or {key: key for key in rows[0]}
        columns = [Column(key, heading) for key, heading in headings.items()]
    columns = list(columns)
    lines = [_table_line(column.heading for column in columns)]
    lines += ['| ' + ' | '.join('---' for _ in columns) + ' |']
    lines += [_table_line(column.text(row) for column in columns) for row in rows]
    return Markdown('\n'.join(lines))


def _table_line(cells: Iterable[str]) -> str:
    return '| ' + ' | '.join(map(escape_markdown, cells)) + ' |'


def show_sentences(*sentences: str) -> Markdown:
    """A paragraph of computed sentences, in which *, _ and ` are markup, and nothing else is."""
    return Markdown(escape_markdown(' '.join(sentences), keep='*_`'))


def escape_markdown(value: Any, keep: str = '') -> str:
    """A value as one line of Markdown, in which nothing is markup; the marks in `keep` stay markup."""
    # A backslash as an entity: with a bracket after it, an escaped one begins a formula.
    escaped = html.escape(str(value), quote=False).replace('\\', '&#92;')
    marks = ''.join(mark for mark in '`*_[]|~$!' if mark not in keep)
    return re.sub('([' + re.escape(marks) + '])', r'\\\1', escaped).replace('\n', ' ')


# Rows: the arms of a study, the detectors before any distillation, the student along the stages of an arm.


def study_rows(study: Study) -> list[dict[str, str]]:
    """`Study.table` as {heading: text}, for `markdown_table` and the report of a sweep.

    AP is in points with 95 % intervals. Differences are paired by seed; a star marks those whose interval leaves out 0.
    """
    return [{column.heading: column.text(row) for column in STUDY_COLUMNS} for row in study.table()]


def detector_rows(recipe: Recipe, work_dir: str | Path | None = None) -> list[dict]:
    """The student's baseline, then the teachers; those that are missing are trained now.

    Keys: name, label, role ('baseline', 'teacher'), AP AP50 AP75 AP_s AP_m AP_l mask_AP (points), parameters (count),
    gflops, ms_per_image, and what the recipe says of their training: updates, scenes, init (`init_label`). These three
    are None where the data are not the built-in scenes.

    Raises:
        RecipeError, MtpdError: from `prepare_detector`.
    """
    rows = []
    for name, spec in recipe.detectors.items():
        detector = prepare_detector(recipe, name, work_dir)
        training = {
            'updates': spec.get('updates')
            if recipe.checkpoint(name)
            else detector_training(recipe, name, work_dir).updates,
            'scenes': spec.get('scenes', recipe.cfg.data.scenes.train),
            'init': init_label(recipe, name),
        }
        if recipe.cfg.data.root:
            training = dict.fromkeys(training)
        rows.append(
            {
                'name': name,
                'label': spec.get('label', name),
                'role': 'baseline' if name == 'student' else 'teacher',
                **training,
                **_comparable_points(detector['metrics']),
                **detector['model'],
            }
        )
    return rows


def stage_rows(
    recipe: Recipe, arm: str, last: int, work_dir: str | Path | None = None
) -> list[dict]:
    """The student's baseline, then the student after each stage of an arm.

    The stages have to be evaluated already. A missing baseline is trained now.

    Keys: label, AP AP50 AP75 AP_s AP_m AP_l mask_AP (points).

    Args:
        last: the number of stages.

    Raises:
        RecipeError, MtpdError: from `prepare_detector`.
    """
    plan = recipe.arm(arm, last)
    metrics = {'baseline': prepare_detector(recipe, 'student', work_dir)['metrics']}
    for stage in range(1, last + 1):
        folder = stage_dir(recipe, plan, stage, work_dir)
        metrics[f'after stage {stage}'] = read_json(folder / 'metrics.json')
    return [{'label': name} | _comparable_points(values) for name, values in metrics.items()]


def _comparable_points(metrics: dict | None) -> dict:
    """As `ap_points`, with 0 for an AP that is None (a split without objects): notebooks subtract APs.

    Of a teacher with `features_only` it stays None.
    """
    points = ap_points(metrics)
    if not metrics or metrics.get('features_only'):
        return points
    return points | {'AP': points['AP'] or 0.0}
