"""The report of a sweep: one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from .. import plots
from ..analysis.run import load_run
from ..analysis.verdict import study_rows, study_verdict
from ..report.html import fill_template, gallery
from ..report.run import study_figures
from ..utils.files import read_json, write_text
from .folder import Sweep, load_sweep
from .plan import shared_run
from .results import collect_results, job_table, sweep_studies

if TYPE_CHECKING:
    from ..analysis.study import Study


def make_sweep_report(path: str | Path) -> Path:
    """Collects a sweep and writes its ``report/index.html``, also of one that is not complete; returns that file.

    Raises:
        MtpdError: `path` is no sweep.
    """
    sweep = load_sweep(path)
    found = collect_results(path)
    first = load_run(sweep.path / sweep.info['methods'][0] / str(sweep.info['seeds'][0]))
    jobs = job_table(sweep)
    open_jobs = [row | {'name': row['job']} for row in jobs if row['state'] != 'done']
    states = {row['state'] for row in jobs}
    state = 'running' if 'running' in states else 'complete' if states == {'done'} else 'stopped'
    html = fill_template(
        'sweep.html.j2',
        title=first.info['title'],
        facts=[sweep.info['name'], f'{len(jobs)} jobs', *_device_fact(found['environment'])],
        state=state,
        headline={'running': 'In progress.', 'complete': 'Complete.'}.get(state, 'Not complete.'),
        detail=f'{len(jobs) - len(open_jobs)} of {len(jobs)} jobs are done.',
        missing=open_jobs,
        studies=[_study_section(method, study) for method, study in sweep_studies(sweep).items()],
        teachers=_detector_table(found, first),
        costs=gallery(_cost_figures(sweep, first)),
        command=found['command'],
        recipe=sweep.info['text'],
        environment=found['environment'],
    )
    folder = sweep.path / 'report'
    folder.mkdir(exist_ok=True)
    write_text(folder / 'index.html', html)
    return folder / 'index.html'


def _device_fact(environment: dict) -> list[str]:
    return [environment['device']] if environment else []


def _study_section(method: str, study: Study) -> dict:
    rows = study.table()
    control = study.control.ap if study.control else None
    several = [row for row in rows if len(row['teachers']) > 1]
    walks = [row for row in several if row['chosen']] or several[:1]
    drawn = [
        *study_figures(study),
        *(
            (
                plots.walk_through(study.order(row['name']).curves, control),
                f'Along {row["label"]}: thin lines are seeds, the thick one is their mean.',
            )
            for row in walks
        ),
    ]
    return {
        'method': method,
        'findings': study_verdict(study),
        'left_out': study.left_out,
        'rows': study_rows(study),
        'figures': gallery(drawn),
    }


def _detector_table(found: dict, run) -> list[dict]:
    baselines = [row for row in found['rows'] if row['order'] == 'baseline']
    rows = [{'name': 'student', 'AP': mean(row['AP'] for row in baselines)}] if baselines else []
    rows += found['teachers']
    models = {row['name']: row for row in run.results() if row['role'] != 'arm'}
    return [
        {
            'detector': run.label(row['name']),
            'name': row['name'],
            'AP': row['AP'],
            'parameters (millions)': (models[row['name']]['parameters'] or 0) / 1e6 or None,
            'GFLOPs': models[row['name']]['gflops'],
        }
        for row in rows
    ]


def _cost_figures(sweep: Sweep, run) -> list[tuple]:
    costs = read_json(sweep.path / shared_run(sweep.info['seed']) / 'order' / 'costs.json')
    if not costs:
        return []
    figure = plots.cost_matrix(costs['detectors'], costs['cost'], (costs['low'], costs['high']))
    text = 'Adaptation cost: the share of a detector’s features (column) that the best linear map from another’s (row) '
    suggested = (sweep.info.get('suggested') or {}).get('orders', [])
    text += 'leaves unexplained, with 95 % intervals. '
    text += (
        f'Suggested: {"; ".join(" → ".join(order) for order in suggested)}.' if suggested else ''
    )
    return [(figure, text)]
