"""The report of a run: HTML files that need nothing else, not even a network.

A content security policy in each page lets the browser load nothing but what is inside the file.
Formulas in notebooks become MathML, which browsers draw by themselves.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from .. import plots
from ..analysis.findings import run_findings
from ..analysis.published import paper_finding
from ..analysis.run import AP_KEYS, Run, load_run
from ..analysis.study import Study, comparable_runs, load_study
from ..analysis.verdict import study_summary, study_verdict
from ..plots import Figure
from ..utils import statistics
from ..utils.files import read_json, write_json, write_text
from ..utils.paths import display_path
from ..utils.statistics import printed_difference
from .html import encode_figures, fill_template, render_pages, run_pages
from .provenance import result_files, row_commands, run_command
from .tables import Column, format_duration, table_columns

# Groups of the table's rows, by the role of a row.
ROW_GROUPS = {
    'baseline': 'Student before distillation',
    'arm': 'Student after training in each arm',
    'teacher': 'Teachers',
}
HEADLINES = {
    'complete': 'Complete.',
    'failed': 'Failed.',
    'running': 'In progress.',
    'stopped': 'Stopped before its end.',
    'unknown': 'No status was recorded.',
}
# Figures of `Run.paper` by the row that they belong to: the student alone, and the paper's pair.
PAPER_KEYS = {
    'baseline': 'baseline',
    'control': 'baseline_2x',
    'direct': 'direct',
    'progressive': 'progressive',
}


def make_report(run_dir: str | Path) -> Path:
    """Write `report/index.html`, a page for each notebook, and `results.json`; returns the index.

    Also for runs that failed or are under way: the report says so.

    Raises:
        MtpdError: `run_dir` is neither a run nor a folder of `mtpd train`.
    """
    run = load_run(run_dir)
    folder = run.path / 'report'
    folder.mkdir(exist_ok=True)
    pages = run_pages(run)
    for href, html in render_pages(pages):
        write_text(folder / href, html)
    write_text(folder / 'index.html', _index_page(run, pages))
    results = {'run': run.info, 'environment': run.environment, 'results': run.results()}
    write_json(run.path / 'results.json', results)
    return folder / 'index.html'


def study_figures(study: Study) -> list[tuple[Figure, str]]:
    """AP versus teacher order over seeds, and adaptation costs against AP; with captions, as `encode_figures` takes them."""
    rows = study.table()
    return [
        (
            plots.ap_versus_order(rows, study.start),
            'AP versus teacher order. Every arm trains for the same number of updates.',
        ),
        (
            plots.predicted_and_measured(rows, study.correlation()),
            'Path cost against AP. If the adaptation costs predict AP, the points fall from left to right.',
        ),
    ]


def _index_page(run: Run, pages: list[dict]) -> str:
    results, study, smoke = run.results(), load_study(run), run.info.get('smoke')
    recipe = run.path / ('config.py' if run.info.get('is_plain') else 'recipe.py')
    no_answer = smoke or (run.info.get('is_training') and not study.evaluated)
    rows = _result_rows(run, results, study)
    runs = [other for _, other in _runs_by_seed(run)]
    groups = [
        (title, [row for row in rows if row['role'] == role]) for role, title in ROW_GROUPS.items()
    ]
    return fill_template(
        'index.html.j2',
        title=run.info.get('title') or run.info['name'],
        info=run.info,
        paper=run.paper,
        facts=_key_facts(run),
        state=run.state,
        headline=HEADLINES[run.state],
        detail=_progress_text(run) + _corrupt_text(run),
        missing=[step for step in run.steps if step['state'] != 'done'],
        answer='' if no_answer else study_summary(study),
        findings=[item for item in run_findings(run, study) if item.severity != 'note'],
        questions={}
        if no_answer or not results
        else study_verdict(study) | paper_finding(run.paper),
        commands=_commands(run),
        row_commands=row_commands(run, rows),
        files=result_files(runs),
        report_command=f'mtpd report {shlex.quote(display_path(run.path))}',
        seeds=len(study.seeds),
        groups=[(title, group) for title, group in groups if group],
        columns=_columns(run, rows, len(study.seeds)),
        detectors=[row for row in rows if row['role'] != 'arm'],
        cost_columns=table_columns('costs', rows),
        figures=_run_figures(run, results, study),
        pages=pages,
        environment=run.environment,
        recipe=recipe.read_text(encoding='utf-8') if recipe.is_file() else None,
    )


def _columns(run: Run, rows: list[dict], seeds: int) -> list[Column]:
    """The report's columns; with several seeds their headings say what is of one seed, and what of all."""
    columns = table_columns('report', rows)
    if seeds < 2:
        return [column for column in columns if column.key != 'mean']
    endings = dict.fromkeys(AP_KEYS, f', seed {run.info.get("seed")}')
    endings |= {'mean': f' of {seeds} seeds [95 %]', 'gain': ', mean'}
    return [
        column._replace(heading=column.heading + endings.get(column.key, '')) for column in columns
    ]


def _result_rows(run: Run, results: list[dict], study: Study) -> list[dict]:
    """`Run.results` with the values that the report adds: mean, gain, paper, weights, whether it is the best arm, the student's file."""
    paper = dict(run.paper)
    if 'result' in paper:  # where there is no pair, the release stands alone
        paper.setdefault('progressive', paper['result'])
    base = next((row['AP'] for row in results if row['role'] == 'baseline'), None)
    aps = [round(row['AP'], 1) for row in results if row['role'] == 'arm' and row['AP'] is not None]
    is_clear = bool(aps) and aps.count(max(aps)) == 1 and not run.info.get('smoke')
    best = max(aps) if is_clear else None
    arm_means = {order.name: order.mean for order in study.evaluated}
    baseline_mean = statistics.mean_interval(list(study.baseline.values()))
    start = baseline_mean.value if baseline_mean else base
    rows = []
    for row in results:
        added = {'mean': None, 'gain': None, 'best': False, 'weights': None, 'file': None}
        added['paper'] = paper.get(PAPER_KEYS.get(row['kind'] or row['role']))
        if row['role'] == 'baseline':
            added['mean'] = baseline_mean
        if row['role'] == 'arm' and row['AP'] is not None:
            mean = arm_means.get(row['name'])
            added |= {'mean': mean, 'best': round(row['AP'], 1) == best}
            added['file'] = (run.stage_dirs(row['name'])[-1] / 'student.pth').relative_to(run.path)
            if start is not None:
                added['gain'] = printed_difference(mean.value if mean else row['AP'], start)
        elif row['role'] == 'arm':
            added['mean'] = arm_means.get(row['name'])
        else:
            digest = (run.metrics('detector', row['name']) or {}).get('sha256')
            added['weights'] = digest[:8] if digest else None
        rows.append(row | added)
    return rows


def _key_facts(run: Run) -> list[str]:
    facts = [run.info['name'], f'seed {run.info.get("seed")}']
    if run.status.get('started'):
        facts.append(run.status['started'][:16].replace('T', ' ') + ' UTC')
    if run.environment.get('device'):
        facts.append(str(run.environment['device']))
    student = run.metrics('detector', run.student) if run.student else None
    if student and student.get('num_images'):
        facts.append(f'{student["num_images"]:,} validation images')
    return facts


def _progress_text(run: Run) -> str:
    if run.info.get('is_training'):
        return 'This folder holds single trainings, not a whole run.'
    done = sum(step['state'] == 'done' for step in run.steps)
    count = f'{done} of {len(run.steps)} steps are done'
    if run.state == 'complete':
        if run.info.get('seconds') is None:
            return f'All {done} steps are done.'
        return f'All {done} steps, {format_duration(run.info["seconds"])}.'
    if run.state == 'running':
        return f'{count}. This page shows the results so far.'
    if run.state == 'unknown':
        return 'This page shows the results that are there.'
    return f'{count}. The command below continues the run.'


def _corrupt_text(run: Run) -> str:
    """How many corrupt images were left out of the data."""
    metrics = [read_json(path) for path in run.path.glob('[ds]*/**/metrics.json')]
    tested = max((numbers.get('corrupt_images', 0) for numbers in metrics), default=0)
    trained = max((numbers.get('corrupt_training_images', 0) for numbers in metrics), default=0)
    if not tested and not trained:
        return ''
    return f' Corrupt images were left out: {tested} validation images, {trained} training images.'


def _commands(run: Run) -> list[dict]:
    """Of the run and of those of other seeds that are read with it."""
    return [
        {
            'command': run_command(other),
            'seed': seed,
            'commit': other.environment.get('git_commit'),
        }
        for seed, other in _runs_by_seed(run)
    ]


def _runs_by_seed(run: Run) -> list[tuple[int, Run]]:
    runs, _ = comparable_runs(run)
    return sorted(runs.items(), key=lambda item: str(item[0]))


def _run_figures(run: Run, results: list[dict], study: Study) -> list[dict]:
    costs = read_json(run.path / 'order' / 'costs.json', {'detectors': [], 'cost': []})
    names = [run.label(name) for name in costs['detectors']]
    drawn = study_figures(study) if len(study.seeds) > 1 else []
    prefix = f'Seed {run.info.get("seed")}: ' if drawn else ''
    if run.info.get('smoke'):
        prefix = 'Of a smoke run: '
    dataset = run.info.get('dataset') or 'this run'
    curves = run.curves()
    trained = {} if curves else run.detector_curves()
    captions = [
        (
            plots.loss_curves(trained) if trained else plots.empty(''),
            'Losses of detectors on the training data.',
        ),
        (
            plots.ap_over_stages(run.stage_aps()),
            'AP of the baseline, and after each stage of each arm. Lines join the measured values.',
        ),
        (
            plots.ap_by_arm(results),
            'Final AP of each arm, and its gain over the baseline. Vertical lines are references.',
        ),
        (
            plots.loss_curves(curves),
            'Losses on the training data: thin lines as logged, thick lines smoothed, stages shaded. Each stage starts its '
            'learning rate schedule anew, so the detection loss rises at first.',
        ),
        (
            plots.paper_next_to_ours(run.paper, run.key_aps(), dataset),
            'Gains over the baseline, the paper’s and ours. The dashed line is the gain without a teacher. Dataset, detectors '
            'and schedules differ: compare the pattern, not the heights. The paper’s students train 24 epochs, its baseline 12.',
        ),
        (
            plots.paper_walk_through(run.paper, run.key_aps(), dataset),
            'AP from the baseline over both stages, in the paper’s walk-through and in the progressive arm here.',
        ),
        (
            plots.ap_versus_cost(results),
            'AP against the cost of running a detector. Distillation raises the student’s AP and keeps its size. '
            'Milliseconds follow GFLOPs only loosely, because some layers suit a processor better than others.',
        ),
        (
            plots.cost_matrix(names, costs['cost']),
            'Adaptation cost: the share of a detector’s features (column) that the best linear map from '
            'another’s (row) leaves unexplained. Low means close.',
        ),
    ]
    return encode_figures([*drawn, *((figure, prefix + text) for figure, text in captions)])
