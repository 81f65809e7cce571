"""`mtpd compare`: runs side by side on one page."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from helpers.fake_run import make_run, put, stage, trained
from mtpd import plots
from mtpd.analysis.run import load_run
from mtpd.cli.main import main
from mtpd.errors import MtpdError
from mtpd.report.comparison import compare_runs, run_differences


def test_the_page_has_each_runs_ap_and_what_differs(tmp_path):
    trained(tmp_path / 'a', none=9.0, direct=11.0, progressive=10.0)
    trained(tmp_path / 'b', 'fgd', seed=3, options={'schedule.arm': 800}, none=9.5, direct=10.5)
    out = compare_runs([tmp_path / 'a', tmp_path / 'b'], tmp_path / 'page' / 'c.html')
    html = out.read_text(encoding='utf-8')
    rows = {
        re.search('row">(.*?)</th>', row)[1]: re.findall('<td>(.*?)</td>', row)
        for row in re.findall('<tr>(.*?)</tr>', html, re.DOTALL)
        if '<td>' in row
    }
    assert rows['no teacher'] == ['9.0', '<strong>9.5</strong>']
    assert rows['teacher 2 only'] == ['<strong>11.0</strong>', '10.5']
    assert rows['teacher 1 → teacher 2'] == ['10.0', '–']
    assert 'Not all runs are complete.' in html and f'{tmp_path}/a' in html
    assert (
        '<code>distill.method</code>' in html
        and 'http' not in html.split('<main')[1].split('<footer')[0]
    )


def test_runs_on_other_images_and_smoke_runs_are_said(tmp_path):
    trained(tmp_path / 'a', none=9.0)
    b = trained(tmp_path / 'b', options={'data.scenes.val': 16}, none=9.5)
    put(b.path / 'run.json', b.info | {'smoke': True})
    html = compare_runs([tmp_path / 'a', tmp_path / 'b'], tmp_path / 'c.html').read_text('utf-8')
    assert 'columns cannot be compared' in html and '<td><strong>' not in html
    assert html.count('a smoke run, its numbers mean nothing') == 1


def test_differences_are_those_of_the_recipes(tmp_path):
    a = trained(tmp_path / 'a', none=1.0)
    b = trained(tmp_path / 'b', 'fgd', seed=3, options={'schedule.arm': 800}, none=1.0)
    c = trained(tmp_path / 'c', none=1.0)
    assert run_differences([a, c]) == []
    assert dict(run_differences([a, b, c])) == {
        'seed': ['0', '3', '0'],
        'distill.method': ["'mgd'", "'fgd'", "'mgd'"],
        'schedule.arm': ['1200', '800', '1200'],
    }


def test_a_recipe_that_is_no_recipe_is_not_run(tmp_path):
    a, b = (trained(tmp_path / name, none=1.0) for name in 'ab')
    mark = tmp_path / 'ran'
    (b.path / 'recipe.py').write_text(f'__import__("pathlib").Path({str(mark)!r}).touch()')
    differences = dict(run_differences([a, b]))
    assert differences['recipe.py'] == ['–', "'not as the kit writes it'"] and not mark.exists()


def test_curves_of_runs_lie_in_one_figure(tmp_path):
    first, second = (load_run(make_run(tmp_path / name)) for name in 'ab')
    fig = plots.overlaid_curves(
        {arm: {'A': first.curves(arm), 'B': second.curves(arm)} for arm in ('none', 'progressive')}
    )
    none, progressive, empty, distillation = fig.axes
    assert len(none.lines) == 2 + 2 and len(progressive.lines) == 2  # two for the legend
    assert not empty.lines and len(distillation.lines) == 2
    assert 'progressive, B: from' in fig.alt
    assert 'No training log' in plots.overlaid_curves({'none': {'A': []}}).alt


def test_partial_runs_have_a_page_too_and_markup_stays_text(tmp_path):
    make_run(tmp_path / 'a', done=False)
    make_run(tmp_path / 'b')
    stage(tmp_path / 'a', 'direct', 1)
    info = {**load_run(tmp_path / 'b').info, 'command': '<script>alert(1)</script>'}
    put(tmp_path / 'b' / 'run.json', info)
    html = compare_runs([tmp_path / 'a', tmp_path / 'b'], tmp_path / 'c.html').read_text()
    assert '(failed)' in html and '(complete)' in html
    assert '<script' not in html and '&lt;script&gt;' in html


def test_what_is_no_run_is_named_all_at_once(tmp_path):
    make_run(tmp_path / 'a')
    with pytest.raises(MtpdError) as error:
        compare_runs([tmp_path / 'a', tmp_path / 'x', tmp_path / 'y'], tmp_path / 'c.html')
    assert str(tmp_path / 'x') in str(error.value) and str(tmp_path / 'y') in str(error.value)
    done = CliRunner().invoke(main, ['compare', str(tmp_path / 'a')])
    assert isinstance(done.exception, SystemExit) and 'two run directories or more' in done.output
