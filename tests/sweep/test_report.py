"""The report of a sweep, complete or not: numbers, words, nothing from the network, nothing unescaped."""

import json

import pytest
from click.testing import CliRunner

from helpers.fake_run import MINI, put
from helpers.page import Page
from mtpd import load_recipe
from mtpd.cli.main import main
from mtpd.sweep.folder import open_sweep
from mtpd.sweep.plan import CONTROL
from mtpd.sweep.results import collect_results

A, B = 'r101', 'rx101'
AP = {'none': (9.0, 10.0, 11.0), 'rx101': (10.0, 11.1, 11.9), 'r101-rx101': (11.0, 12.1, 13.0)}
HOSTILE = 'r101 <script>alert(1)</script>'


@pytest.fixture
def sweep(tmp_path):
    recipe = load_recipe(MINI, {'teachers.r101.label': HOSTILE})
    orders = [CONTROL, (B,), (A, B)]
    suggested = {'orders': [[A, B]], 'reasons': {}}
    made = open_sweep(recipe, tmp_path / 'sweep', orders, ['mgd'], [0, 1, 2], suggested)
    costs = [[0, 0.5, 0.9], [0.5, 0, 0.4], [0.9, 0.4, 0]]
    costs = {'detectors': ['student', A, B], 'cost': costs, 'low': costs, 'high': costs}
    put(made.path / 'shared/0/order/costs.json', costs)
    for name, ap in ((A, 0.4), (B, 0.55)):
        put(made.path / f'shared/0/detectors/{name}/metrics.json', {'bbox_mAP': ap})
    for job in made.jobs.values():
        for folder in job.folders:
            if job.kind in ('order', 'control'):
                put(made.path / folder / 'metrics.json', {'bbox_mAP': AP[job.arm][job.seed] / 100})
                put(made.path / folder / 'stage.json', {'updates': job.updates, 'seconds': 1.0})
    failed = {'state': 'failed', 'reason': 'RuntimeError: <img src=x onerror=alert(2)>'}
    put(made.path / 'jobs/mgd-1-r101-rx101/status.json', failed)
    return made


def report(sweep) -> Page:
    done = CliRunner().invoke(main, ['report', str(sweep.path)])
    assert done.exit_code == 0, done.output
    return Page((sweep.path / 'report/index.html').read_text())


def test_numbers_words_and_figures(sweep):
    page = report(sweep)
    # Paired differences 1.0, 1.0, 1.1 from the strongest teacher alone: mean 1.03, t interval 0.89 to 1.18.
    assert page.row('r101 → rx101')[1:7] == [
        'yes',
        '12.0 [9.5, 14.5]',
        '3',
        '+2.0 [1.9, 2.2]\N{NO-BREAK SPACE}*',
        '+1.0 [0.9, 1.2]\N{NO-BREAK SPACE}*',
        '0.410',
    ]
    assert (
        'is better than the strongest teacher alone (rx101) by 1.0 AP [0.9, 1.2], 3 seeds'
        in page.text
    )
    assert 'Every arm trained 1,200 updates' in page.text
    assert [image['alt'][:12] for image in page.images] == [
        'Box AP by ar',
        'Cost of the ',
        'AP over upda',
        'Adaptation c',
    ]
    assert page.row(HOSTILE)[1:3] == ['r101', '40.0']
    assert 'Suggested: r101 → rx101.' in page.text
    assert f'mtpd sweep {MINI} --orders' in page.text


def test_it_is_honest_and_harmless(sweep):
    page = report(sweep)
    assert 'Not complete.' in page.text and '0 of 14 jobs are done.' in page.text
    assert 'mgd-1-r101-rx101: failed, RuntimeError: <img src=x onerror=alert(2)>' in page.text
    assert not any(tag == 'script' or 'onerror' in attrs for tag, attrs in page.tags)
    assert all(source.startswith('data:') for source in page.loads)
    assert "default-src 'none'" in json.dumps(page.tags)


def test_results_hold_the_same_numbers(sweep):
    results = collect_results(sweep.path)
    (best, direct, control) = results['studies']['mgd']['orders']
    assert [row['name'] for row in (best, direct, control)] == ['r101-rx101', 'rx101', 'none']
    assert best['above_direct']['value'] == pytest.approx((1.0 + 1.0 + 1.1) / 3)
    assert best['ap'] == {0: 11.0, 1: pytest.approx(12.1), 2: 13.0}
    assert results['environment']['mmdet'] and results['costs']['cost'][0][1] == 0.5
    assert results['recipe'] == MINI
    assert results['command'].startswith(f'mtpd sweep {MINI} --orders')
    assert (
        json.loads((sweep.path / 'results.json').read_text())['studies']['mgd']['rank_correlation']
        is None
    )


def test_nothing_evaluated_yet(tmp_path):
    sweep = open_sweep(load_recipe(MINI), tmp_path / 'sweep', [CONTROL, (B,)], ['mgd', 'cwd'], [3])
    page = report(sweep)
    assert page.text.count('No arm has been evaluated yet') == 2 and not page.images
