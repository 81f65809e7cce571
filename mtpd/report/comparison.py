"""Runs side by side on one page: their AP, the settings that differ, and their curves overlaid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import plots
from ..analysis.run import Run, load_run
from ..config.settings import differing_settings, read_settings
from ..errors import MtpdError
from ..plots import Figure
from ..utils.files import flatten, json_value, write_text
from ..utils.paths import display_path
from .html import encode_figures, fill_template
from .tables import COLUMNS, Column


def compare_runs(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Writes one page about several run directories, complete or not; returns the file.

    Raises:
        MtpdError: fewer than two, or folders that are no runs: all of them in one message.
    """
    by_path, problems = {}, []
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        try:
            by_path[display_path(folder)] = load_run(folder)
        except MtpdError as error:
            problems.append(str(error))
    if problems:
        raise MtpdError('\n'.join(problems))
    if len(by_path) < 2:
        raise MtpdError('one run cannot be compared: name two run directories or more.')
    runs = list(by_path.values())
    names = [chr(ord('A') + k) if len(runs) <= 26 else str(k + 1) for k in range(len(runs))]
    partial = any(run.state != 'complete' for run in runs)
    differences = run_differences(runs)
    other_images = any(key.startswith(('data.', 'image.', 'evaluation.')) for key, _ in differences)
    label, ap = (next(c for c in COLUMNS if c.key == key) for key in ('label', 'AP'))
    html = fill_template(
        'beside.html.j2',
        title=f'{len(runs)} runs',
        facts=list(dict.fromkeys(run.info['name'] for run in runs)),
        state='stopped' if partial else 'complete',
        headline='Not all runs are complete.' if partial else 'Complete.',
        detail='',
        names=names,
        runs=[
            {'name': name, 'path': path, 'state': run.state, 'info': run.info}
            for name, (path, run) in zip(names, by_path.items(), strict=True)
        ],
        columns=[label, *(Column(name, name, ap.format) for name in names)],
        rows=_ap_rows(dict(zip(names, runs, strict=True))),
        same_images=not other_images,
        differences=differences,
        figures=encode_figures(_run_figures(dict(zip(names, runs, strict=True)))),
        environment=_joint_environment(runs),
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, html)
    return out


def run_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings by dotted key whose values are not the same in all runs, and the value of each; – where it has none."""
    settings = [_stated_settings(run) for run in runs]
    keys = {key for other in settings[1:] for key in differing_settings(settings[0], other)}
    flat = [dict(flatten(json_value(values))) for values in settings]
    return [
        (key, [repr(values[key]) if key in values else '–' for values in flat])
        for key in sorted(keys)
    ]


def _stated_settings(run: Run) -> dict:
    """What recipe.py states; nothing of it is run."""
    try:
        settings = read_settings(run.path / 'recipe.py')
    except MtpdError:
        return {'recipe.py': 'not as the kit writes it'}
    return {'recipe.py': 'missing'} if settings is None else settings


def _ap_rows(runs: dict[str, Run]) -> list[dict]:
    """A row for each detector and arm that any run has: its label, its AP (points) by name of the run, and 'best', the
    names of those with the highest, where they differ."""
    rows: dict[tuple, dict] = {}
    for name, run in runs.items():
        for result in run.results():
            key = result['role'], result['label']
            rows.setdefault(key, {'label': result['label']})[name] = result['AP']
    for row in rows.values():
        aps = {name: round(row[name], 1) for name in runs if row.get(name) is not None}
        highest = max(aps.values(), default=None)
        best = [name for name, ap in aps.items() if ap == highest]
        row['best'] = best if len(best) < len(aps) else []
    return list(rows.values())


def _joint_environment(runs: list[Run]) -> dict[str, str]:
    """What they ran on: one value where it was the same."""
    keys = dict.fromkeys(key for run in runs for key in run.environment)
    return {
        key: ' / '.join(dict.fromkeys(str(run.environment.get(key)) for run in runs))
        for key in keys
    }


def _run_figures(runs: dict[str, Run]) -> list[tuple[Figure, str]]:
    curves: dict[str, dict[str, list[dict]]] = {}
    for name, run in runs.items():
        for arm in run.arms:
            rows = run.curves(arm['name'])
            if rows:
                curves.setdefault(arm['name'], {})[name] = rows
    stages = {
        f'{name}: {label}': rows
        for name, run in runs.items()
        for label, rows in run.stage_aps().items()
    }
    return [
        (plots.overlaid_curves(curves), 'Losses of each arm on the training data, run by run.'),
        (plots.ap_over_stages(stages), 'AP from the baseline over the stages of each run’s arms.'),
    ]
