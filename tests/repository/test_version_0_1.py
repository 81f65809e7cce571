"""A run directory and a recipe of version 0.1: read, reported, resumed and compared (tests/fixtures/v0_1/README.md)."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mtpd import load_recipe, load_run
from mtpd.cli.main import main

FIXTURE = Path(__file__).parents[1] / 'fixtures' / 'v0_1'
STAGE = 'stages/progressive/2_large'  # at update 41 of 60

# By hand from the fixture's files: AP and AP50 in points, updates, seconds, parameters.
RESULTS = {
    'student': (0.5787128712871287, 1.981848184818482, 300, 10.5, 7678),
    'small': (3.0553164012053373, 11.3511025015545, 600, 21.9, 11323),
    'large': (0.8396982555398397, 2.191183404054691, 1000, 34.6, 22669),
    'none': (0.7570957095709571, 2.5610561056105614, 120, 4.6, 7678),
    'direct': (0.6587458745874587, 2.008800880088008, 120, 8.6, 7678),
    'auto': (1.066849448102705, 2.98533142787963, 120, 2.9 + 2.7, 7678),
    'progressive': (None, None, 60 + 41, 1.5 + 2.5, 7678),
}


def mtpd(*arguments) -> str:
    """What the command prints."""
    done = CliRunner().invoke(main, [str(item) for item in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def rows(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def table(page: Path) -> dict[str, list[str]]:
    """The cells of an HTML page's table rows by the first one's text."""
    cells = [
        [
            re.sub(r'<[^>]+>', '', cell).strip()
            for cell in re.findall(r'<t[hd].*?</t[hd]>', row, re.S)
        ]
        for row in re.findall(r'<tr.*?</tr>', page.read_text('utf-8'), re.S)
    ]
    return {row[0]: row[1:] for row in reversed(cells) if row}  # the first of equal ones


def settings(recipe: str) -> dict:
    """The values that a resolved recipe assigns, by dotted key."""
    lines = ast.parse(recipe).body
    nodes = [(line.targets[0].id, ast.literal_eval(line.value)) for line in lines]
    values = {}
    while nodes:
        key, value = nodes.pop()
        if isinstance(value, dict):
            nodes += [(f'{key}.{name}', item) for name, item in value.items()]
        else:
            values[key] = value
    return values


def finished_files(run: Path) -> dict[Path, tuple]:
    """What the finished trainings and the order left, and when it was written."""
    return {
        path.relative_to(run): (path.read_bytes(), path.stat().st_mtime_ns)
        for folder in ('detectors', 'order', 'stages')
        for path in (run / folder).rglob('*')
        if path.is_file() and path.parent != run / STAGE
    }


@pytest.fixture
def stopped(tmp_path):
    """The run directory as version 0.1 left it."""
    return shutil.copytree(FIXTURE / 'run', tmp_path / 'stopped')


@pytest.fixture(scope='module')
def resumed(tmp_path_factory):
    """A copy in which `mtpd train` went on with the stopped stage; what it printed, and the finished files before."""
    folder = tmp_path_factory.mktemp('version_0_1')
    run = shutil.copytree(FIXTURE / 'run', folder / 'resumed')
    before = finished_files(run)
    stage = ('--arm', 'progressive', '--stage', 2, '--work-dir', run)
    printed = mtpd(
        'train', run / 'recipe.py', *stage, '--cfg-options', f'data.cache={folder / "data"}'
    )
    return run, printed, before


def test_the_run_is_read_with_the_numbers_in_its_files(stopped):
    run = load_run(stopped)
    read = {row['name']: row for row in run.results()}
    assert list(read) == list(RESULTS)
    for name, row in read.items():
        keys = ('AP', 'AP50', 'updates', 'seconds', 'parameters')
        assert tuple(row[key] for key in keys) == pytest.approx(RESULTS[name]), name
    assert [read[arm]['kind'] for arm in ('none', 'direct', 'progressive')] == [
        'control', 'direct', 'progressive'
    ]  # fmt: skip
    assert run.state == 'stopped'
    assert [step['name'] for step in run.steps if step['state'] == 'interrupted'] == [
        '04_distill_stage__progressive_2'
    ]
    assert [row['AP'] for row in run.stage_aps('auto')] == pytest.approx(
        [0.5787128712871287, 1.2857142857142856, 1.066849448102705]
    )
    curve = [(row['update'], row['stage'], row['detection']) for row in run.curves('progressive')]
    losses = [
        (offset + row['update'], stage, row['loss_cls'] + row['loss_bbox'])
        for stage, offset, folder in ((1, 0, 'stages/progressive/1_small'), (2, 60, STAGE))
        for row in rows(stopped / folder / 'log.json')
    ]
    assert [update for update, *_ in losses] == [20, 40, 60, 80, 100]
    assert curve == [pytest.approx(point) for point in losses]


def test_its_report_is_made(stopped):
    index = Path(mtpd('report', stopped).strip())
    assert index == stopped / 'report' / 'index.html'
    text, cells = index.read_text('utf-8'), table(index)
    assert 'Stopped before its end.' in text and '9 of 12 steps are done' in text
    assert cells['student: width 2'][:2] == ['0.6', '–']
    assert cells['teacher 1: width 3'][0] == '3.1'
    assert cells['teacher 2 only'][:2] == ['0.7', '+0.1']
    assert cells['teacher 1 → teacher 2'][:2] == ['–', '–']
    assert 'mtpd run tests/fixtures/v0_1/tiny.py' in text
    page = index.with_name('04_distill_stage__none_1.html').read_text('utf-8')
    assert 'update 120/120' in page and 'data:image/png' in page
    results = json.loads((stopped / 'results.json').read_text())['results']
    assert {row['name']: row['AP'] for row in results} == {k: row[0] for k, row in RESULTS.items()}


def test_the_stopped_stage_goes_on_at_its_update(resumed):
    run, printed, _ = resumed
    assert re.findall(r'update (\d+)/(\d+)', printed) == [('60', '60')]
    log = run / STAGE / 'log.json'
    before = (FIXTURE / 'run' / STAGE / 'log.json').read_text()
    assert log.read_text().startswith(before) and len(rows(log)) == len(before.splitlines()) + 1
    went_on = json.loads((FIXTURE / 'resumed.json').read_text())  # with version 0.1's code
    for key in ('update', 'updates', 'lr', 'loss_cls', 'loss_bbox', 'loss_mgd_fpn_0', 'grad_norm'):
        assert rows(log)[-1][key] == pytest.approx(went_on['log'][-1][key], rel=1e-3), key
    assert json.loads((run / STAGE / 'training.json').read_text())['update'] == 60
    student = torch.load(run / STAGE / 'student.pth', weights_only=True)
    stages = [(s['stage'], s['teacher'], s['updates']) for s in student['meta']['stages']]
    assert stages == [(1, 'small', 60), (2, 'large', 60)]
    ap = json.loads((run / STAGE / 'metrics.json').read_text())['bbox_mAP']
    assert ap == pytest.approx(went_on['metrics']['bbox_mAP'], abs=0.002)  # eight images
    assert load_run(run).metrics('arm', 'progressive')['bbox_mAP'] == ap


def test_what_is_finished_is_not_trained_again(resumed):
    run, _, before = resumed
    assert len(before) > 50 and finished_files(run) == before
    options = ('--work-dir', run, '--cfg-options', f'data.cache={run.parent / "data"}')
    printed = mtpd('train', run / 'recipe.py', '--arm', 'auto', '--stage', 2, *options)
    assert printed.split() == ['AP', '1.1', str(run / 'stages/auto/2_small/student.pth')]
    assert finished_files(run) == before


@pytest.mark.long
def test_it_is_compared_with_another_run(stopped, resumed, tmp_path):
    mtpd('compare', stopped, resumed[0], '--out', tmp_path / 'comparison.html')
    cells = table(tmp_path / 'comparison.html')
    assert cells['student: width 2'] == ['0.6', '0.6']
    assert cells['teacher 1: width 3'] == ['3.1', '3.1']
    assert cells['chosen by adaptation cost: large → small'] == ['1.1', '1.1']
    ap = json.loads((resumed[0] / STAGE / 'metrics.json').read_text())['bbox_mAP']
    assert cells['teacher 1 → teacher 2'] == ['–', f'{100 * ap:.1f}']
    assert 'None: the runs were made with the same settings.' in (
        tmp_path / 'comparison.html'
    ).read_text('utf-8')


@pytest.mark.parametrize('file', ['tiny.py', 'run/recipe.py'])
def test_a_recipe_means_what_it_meant(file):
    """As its author wrote it, and as a run kept it, resolved."""
    recipe = load_recipe(FIXTURE / file)
    assert [arm.teachers for arm in recipe.arms.values()] == [
        (None,), ('large',), (), ('small', 'large')
    ]  # fmt: skip
    assert recipe.model('large')['neck']['in_channels'] == [5, 10, 20]
    meant, means = settings((FIXTURE / 'run/recipe.py').read_text()), settings(recipe.text)
    assert len(meant) > 100 and {key: means.get(key) for key in meant} == meant


@pytest.mark.slow
def test_the_whole_run_goes_on(stopped, tmp_path):
    """`mtpd run`, for a user who has moved the images."""
    recipe = stopped / 'recipe.py'
    text = recipe.read_text().replace("'cache': 'data'", f"'cache': {str(tmp_path / 'data')!r}")
    recipe.write_text(text)
    before = finished_files(stopped)
    printed = mtpd('run', recipe, '--work-dir', stopped)
    done_before = re.findall(r'^\[\d+/12\] (\S+): done before$', printed, re.M)
    assert done_before == [
        step['name']
        for step in json.loads((FIXTURE / 'run/status.json').read_text())['steps']
        if step['state'] == 'done'
    ]
    assert len(done_before) == 9 and finished_files(stopped) == before
    run = load_run(stopped)
    assert run.state == 'complete' and None not in [row['AP'] for row in run.results()]
    assert rows(stopped / STAGE / 'log.json')[-1]['update'] == 60
    assert 'Complete.' in (stopped / 'report/index.html').read_text('utf-8')
