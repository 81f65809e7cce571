"""The report of a run: HTML files that need nothing else, not even a network.

A content security policy in each page lets the browser load nothing but what is inside the file.
Formulas in notebooks become MathML, which browsers draw by themselves.
"""

from __future__ import annotations

from pathlib import Path

from .. import plots
from ..analysis.run import Run, load_run
from ..analysis.study import Study, comparable_runs, load_study
from ..analysis.verdict import study_summary, study_verdict
from ..plots import Figure
from ..utils import statistics
from ..utils.files import read_json, write_json, write_text
from ..utils.statistics import format_interval, printed_difference
from .html import encode_figures, fill_template, render_pages, run_pages
from .tables import format_duration

ROW_GROUPS = ('Student before distillation', 'Student after training in each arm', 'Teachers')
HEADLINES = {
    'complete': 'Complete.',
    'failed': 'Failed.',
    'running': 'In progress.',
    'stopped': 'Stopped before its end.',
    'unknown': 'No status was recorded.',
}


def make_report(run_dir: str | Path) -> Path:
    """Write `report/index.html`, a page for each notebook, and `results.json`; returns the index.

    Also for runs that failed or are under way: the report says so. Raises MtpdError when `run_dir`
    is no run.
    """
    run = load_run(run_dir)
    folder = run.path / 'report'
    folder.mkdir(exist_ok=True)
    pages = run_pages(run)
    for href, html in render_pages(pages):
        write_text(folder / href, html)
    write_text(folder / 'index.html', _index_page(run, pages))
    kept = {'run': run.info, 'environment': run.environment, 'results': run.results()}
    write_json(run.path / 'results.json', kept)
    return folder / 'index.html'


def _index_page(run: Run, pages: list[dict]) -> str:
    results, study = run.results(), load_study(run)
    recipe = run.path / 'recipe.py'
    return fill_template(
        'index.html.j2',
        title=run.info.get('title') or run.info['name'],
        info=run.info,
        facts=_facts(run),
        state=run.state,
        headline=HEADLINES[run.state],
        detail=_progress_text(run) + _corrupt_text(run),
        missing=[step for step in run.steps if step['state'] != 'done'],
        answer='' if run.info.get('smoke') else study_summary(study),
        questions={}
        if run.info.get('smoke') or not results
        else study_verdict(study) | _paper_finding(run.info),
        commands=_commands(run),
        rows=_result_rows(run, results, study),
        seeds=len(study.seeds),
        groups=ROW_GROUPS,
        paper_shown=bool(run.info.get('paper')),
        masks_shown=any(row['mask_AP'] is not None for row in results),
        figures=_run_figures(run, results, study),
        pages=pages,
        environment=run.environment,
        recipe=recipe.read_text(encoding='utf-8') if recipe.is_file() else None,
    )


def _facts(run: Run) -> list[str]:
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
    done = sum(step['state'] == 'done' for step in run.steps)
    count = f'{done} of {len(run.steps)} steps are done'
    if run.state == 'complete':
        time = format_duration(run.info.get('seconds'))
        return f'All {done} steps are done.' if time == '–' else f'All {done} steps, {time}.'
    if run.state == 'running':
        return f'{count}; this page shows what there is so far.'
    if run.state == 'unknown':
        return 'This page shows what there is.'
    return f'{count}. The command below goes on from there.'


def _corrupt_text(run: Run) -> str:
    """What was left out of the data."""
    found = [read_json(path) for path in run.path.glob('[ds]*/**/metrics.json')]
    tested = max((numbers.get('corrupt_images', 0) for numbers in found), default=0)
    trained = max((numbers.get('corrupt_training_images', 0) for numbers in found), default=0)
    if not tested and not trained:
        return ''
    return f' Corrupt images were left out: {tested} of the validation images, {trained} of a training’s.'


def _result_rows(run: Run, results: list[dict], study: Study) -> list[dict]:
    paper = run.info.get('paper') or {}
    base = next((r['AP'] for r in results if r['role'] == 'baseline'), None)
    aps = [round(r['AP'], 1) for r in results if r['role'] == 'arm' and r['AP'] is not None]
    best = max(aps) if aps and aps.count(max(aps)) == 1 else None  # of several nobody is
    means = {order.name: order.mean for order in study.evaluated}
    starts = statistics.mean_interval(list(study.baseline.values()))
    said_by = {order.name: order.mean.value for order in study.evaluated}
    said = {'baseline': 'baseline', 'direct': 'direct', 'progressive': 'result'}
    return [
        row
        | {
            'group': ('baseline', 'arm', 'teacher').index(row['role']),
            'paper': paper.get(said.get(row['kind'] or row['role'])),
            'mean': format_interval(
                {'arm': means.get(row['name']), 'baseline': starts}.get(row['role'])
            ),
            'best': row['role'] == 'arm' and row['AP'] is not None and round(row['AP'], 1) == best,
            'weights': ((run.metrics('detector', row['name']) or {}).get('sha256') or '')[:8]
            if row['role'] != 'arm'
            else '',
            'gain': '–'
            if row['role'] != 'arm' or None in (row['AP'], base)
            else printed_difference(
                said_by.get(row['name'], row['AP']), base if starts is None else starts.value
            ),
        }
        for row in results
    ]


def study_figures(study: Study) -> list[tuple[Figure, str]]:
    """AP versus order over seeds, and what adaptation costs foretold; with captions, as `gallery` takes them."""
    rows = study.table()
    return [
        (
            plots.ap_versus_order(rows, study.start),
            'AP versus teacher order. Every arm continues the same baselines for the same number of updates.',
        ),
        (
            plots.predicted_and_measured(rows, study.correlation()),
            'What the adaptation costs foretold: if cheap paths make good students, the points fall from left to right.',
        ),
    ]


def _paper_finding(info: dict) -> dict[str, str]:
    paper = info.get('paper') or {}
    if not {'result', 'direct'} <= set(paper):
        return {}
    ahead = printed_difference(paper['result'], paper['direct'])
    return {
        'What does the paper find?': f'On COCO, with detectors and schedules of full size, {ahead} AP for the sequence '
        f'against the last teacher alone ({paper["result"]} against {paper["direct"]}).'
    }


def _commands(run: Run) -> list[dict]:
    """Of the run and of those of other seeds that are read with it."""
    runs, _ = comparable_runs(run)
    return [
        {
            'command': other.info.get('command') or f'mtpd run {other.info.get("recipe")}',
            'seed': seed,
            'commit': other.environment.get('git_commit'),
        }
        for seed, other in sorted(runs.items(), key=lambda item: str(item[0]))
    ]


def _run_figures(run: Run, results: list[dict], study: Study) -> list[dict]:
    costs = read_json(run.path / 'order' / 'costs.json', {'detectors': [], 'cost': []})
    names = [run.label(name) for name in costs['detectors']]
    drawn = study_figures(study) if len(study.seeds) > 1 else []
    of = f'Seed {run.info.get("seed")}: ' if drawn else ''
    drawn += [
        (
            plots.ap_over_stages(run.stage_aps()),
            f'{of}AP from the common baseline over the stages of each arm; lines join what was measured.',
        ),
        (
            plots.ap_by_arm(results),
            f'{of}Final AP of each arm, and its gain over the baseline; vertical lines are references.',
        ),
        (
            plots.loss_curves(run.curves()),
            f'{of}Losses on the training data: thin as logged, thick smoothed; stages are shaded. Each stage begins its '
            'learning rate schedule anew, which lifts the detection loss at first.',
        ),
        (
            plots.paper_next_to_ours(
                run.info.get('paper') or {},
                run.walkthrough(),
                run.info.get('dataset') or 'this run',
            ),
            f'{of}Gains over the baseline, the paper’s beside ours. Dataset, detectors and schedules '
            'differ, so compare the pattern and not the heights. The paper’s walk-through and its '
            'table are different trainings.',
        ),
        (
            plots.ap_versus_cost(results),
            f'{of}AP against what a detector costs to run: distillation moves the student up and leaves its size as it is. '
            'Milliseconds follow GFLOPs only loosely: what a layer takes depends on how well it suits the processor.',
        ),
        (
            plots.cost_matrix(names, costs['cost']),
            f'{of}Adaptation cost: how much of a detector’s features (column) a linear map from '
            'another’s (row) leaves unexplained. Low means close.',
        ),
    ]
    return encode_figures(drawn)
