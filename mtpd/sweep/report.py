"""The report of a sweep: one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from .. import plots
from ..analysis.run import load_run
from ..analysis.verdict import study_verdict
from ..report.html import encode_figures, fill_template
from ..report.run import study_figures
from ..report.tables import study_rows
from ..utils.files import write_text
from .folder import Sweep, load_sweep
from .results import collect_results, job_table, sweep_studies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..analysis.run import Run
    from ..analysis.study import Study


def make_sweep_report(path: str | Path) -> Path:
    """Collects a sweep and writes its ``report/index.html``, also of one that is not complete; returns that file.

    Raises:
        MtpdError: `path` is no sweep.
    """
    sweep = load_sweep(path)
    results = collect_results(path)
    run = load_run(sweep.path / sweep.info['methods'][0] / str(sweep.info['seeds'][0]))
    jobs = job_table(sweep)
    not_done = [row | {'name': row['job']} for row in jobs if row['state'] != 'done']
    if any(row['state'] == 'running' for row in jobs):
        state, headline = 'running', 'In progress.'
    elif not_done:
        state, headline = 'stopped', 'Not complete.'
    else:
        state, headline = 'complete', 'Complete.'
    facts = [sweep.info['name'], f'{len(jobs)} jobs']
    if results['environment']:
        facts.append(results['environment']['device'])
    html = fill_template(
        'sweep.html.j2',
        title=run.info['title'],
        facts=facts,
        state=state,
        headline=headline,
        detail=f'{len(jobs) - len(not_done)} of {len(jobs)} jobs are done.',
        missing=not_done,
        studies=[_study_section(method, study) for method, study in sweep_studies(sweep).items()],
        teachers=_detector_table(results, run),
        costs=encode_figures(_cost_figures(sweep, results)),
        command=results['command'],
        recipe=sweep.info['text'],
        environment=results['environment'],
    )
    folder = sweep.path / 'report'
    folder.mkdir(exist_ok=True)
    write_text(folder / 'index.html', html)
    return folder / 'index.html'


def _study_section(method: str, study: Study) -> dict:
    """What the template shows of a method; curves of the chosen sequence, else of the best with several teachers."""
    control = study.control.ap if study.control else None
    several = [row for row in study.table() if len(row['teachers']) > 1]
    chosen = [row for row in several if row['chosen']]
    figures = list(study_figures(study))
    for row in chosen or several[:1]:
        figure = plots.walk_through(study.order(row['name']).curves, control)
        caption = f'AP along {row["label"]}: a thin line for each seed, a thick line for the mean.'
        figures.append((figure, caption))
    return {
        'method': method,
        'findings': study_verdict(study),
        'left_out': study.left_out,
        'rows': study_rows(study),
        'figures': encode_figures(figures),
    }


def _detector_table(results: dict, run: Run) -> list[dict]:
    """A row for the student's baseline, mean AP over the seeds, and one for each teacher."""
    baseline_ap = [row['AP'] for row in results['rows'] if row['order'] == 'baseline']
    rows = [{'name': 'student', 'AP': mean(baseline_ap)}] if baseline_ap else []
    models = {row['name']: row for row in run.results() if row['role'] != 'arm'}
    return [
        {
            'detector': run.label(row['name']),
            'name': row['name'],
            'AP': row['AP'],
            'parameters (millions)': (models[row['name']]['parameters'] or 0) / 1e6 or None,
            'GFLOPs': models[row['name']]['gflops'],
        }
        for row in rows + results['teachers']
    ]


def _cost_figures(sweep: Sweep, results: dict) -> list[tuple[Figure, str]]:
    """The figure of the adaptation costs and its caption; none where they were not measured."""
    costs = results['costs']
    if not costs:
        return []
    figure = plots.cost_matrix(costs['detectors'], costs['cost'], (costs['low'], costs['high']))
    caption = (
        'Adaptation cost: the share of a detector’s features (column) that the best linear map from another’s (row) '
        'leaves unexplained, with 95 % intervals.'
    )
    suggested = (sweep.info.get('suggested') or {}).get('orders', [])
    if suggested:
        caption += f' Suggested: {"; ".join(" → ".join(order) for order in suggested)}.'
    return [(figure, caption)]
