"""Runs side by side on one page: their AP, what their settings differ in, their curves overlaid."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from .. import plots
from ..analysis.run import Run, load_run
from ..errors import MtpdError
from ..utils.files import flatten, write_text
from ..utils.paths import display_path
from .html import encode_figures, fill_template


def compare_runs(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Writes one page about several run directories, also of partial ones, which it says; returns the file.

    Raises:
        MtpdError: fewer than two, or folders that are no runs: all of them in one message.
    """
    runs, problems = {}, []
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        try:
            runs[display_path(folder)] = load_run(folder)
        except MtpdError as error:
            problems.append(str(error))
    if problems:
        raise MtpdError('\n'.join(problems))
    if len(runs) < 2:
        raise MtpdError(
            'one run has nothing to be compared with: name two run directories or more.'
        )
    names = [chr(ord('A') + k) if len(runs) <= 26 else str(k + 1) for k in range(len(runs))]
    states = [run.state for run in runs.values()]
    partial = any(state != 'complete' for state in states)
    apart = run_differences(list(runs.values()))
    same_images = not any(key.startswith(('data.', 'image.', 'evaluation.')) for key, _ in apart)
    html = fill_template(
        'beside.html.j2',
        title=f'{len(runs)} runs',
        facts=[run.info['name'] for run in {r.info['name']: r for r in runs.values()}.values()],
        state='stopped' if partial else 'complete',
        headline='Not all are complete.' if partial else 'Complete.',
        detail='',
        names=names,
        runs=[
            (name, path, state, run.info.get('smoke'))
            for name, state, (path, run) in zip(names, states, runs.items(), strict=True)
        ],
        rows=_ap_rows(list(runs.values())),
        same_images=same_images,
        differences=apart,
        figures=encode_figures(_run_figures(dict(zip(names, runs.values(), strict=True)))),
        commands=[run.info.get('command') for run in runs.values()],
        environment=_joint_environment(list(runs.values())),
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, html)
    return out


def run_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings by dotted key whose values are not the same in all runs, and the value of each; – where it has none."""
    flat = [dict(flatten(_stated_settings(run))) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    found = []
    for key in keys:
        values = [repr(values[key]) if key in values else '–' for values in flat]
        if len(set(values)) > 1:
            found.append((key, values))
    return found


def _stated_settings(run: Run) -> dict:
    """What recipe.py states; nothing of it is run."""
    path = run.path / 'recipe.py'
    try:
        lines = ast.parse(path.read_text(encoding='utf-8')).body
        return {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
    except (OSError, SyntaxError, ValueError, AttributeError):
        return {'recipe.py': 'not as the kit writes it'}


def _ap_rows(runs: list[Run]) -> list[dict]:
    """A row for each detector and arm that any run has: its AP in each, and the best of them."""
    rows: dict[tuple, dict] = {}
    for place, run in enumerate(runs):
        for row in run.results():
            kept = rows.setdefault(
                (row['role'], row['label']), {'label': row['label'], 'AP': [None] * len(runs)}
            )
            kept['AP'][place] = row['AP']
    for row in rows.values():
        there = [round(ap, 1) for ap in row['AP'] if ap is not None]
        row['best'] = max(there) if len(set(there)) > 1 else None
    return list(rows.values())


def _joint_environment(runs: list[Run]) -> dict[str, str]:
    """What they ran on: one value where it was the same."""
    keys = dict.fromkeys(key for run in runs for key in run.environment)
    found = {}
    for key in keys:
        values = dict.fromkeys(str(run.environment.get(key)) for run in runs)
        found[key] = ' / '.join(values)
    return found


def _run_figures(runs: dict[str, Run]):
    arms = dict.fromkeys(arm['name'] for run in runs.values() for arm in run.arms)
    curves: dict = {}
    for arm in arms:
        there = {
            name: run.curves(arm)
            for name, run in runs.items()
            if arm in [own['name'] for own in run.arms]
        }
        curves[arm] = {name: rows for name, rows in there.items() if rows}
    stages = {
        f'{name}: {label}': rows
        for name, run in runs.items()
        for label, rows in run.stage_aps().items()
    }
    return [
        (plots.overlaid_curves(curves), 'Losses of each arm on the training data, run by run.'),
        (plots.ap_over_stages(stages), 'AP from the baseline over the stages of each run’s arms.'),
    ]
