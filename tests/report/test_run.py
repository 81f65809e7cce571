"""The HTML report: right numbers, nothing from the network, nothing unescaped, honest status."""

from __future__ import annotations

import json
import shutil

import nbformat
import pytest

from helpers.fake_run import ARMS, make_run, metrics, put, trained
from helpers.page import Page
from mtpd.errors import MtpdError
from mtpd.report.run import make_report
from mtpd.report.tables import format_duration
from mtpd.utils.files import file_sha256


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp('runs') / 'mini' / '0')
    index = make_report(run)
    assert index == run / 'report' / 'index.html'
    return {path.name: Page(path.read_text('utf-8')) for path in index.parent.iterdir()}


@pytest.fixture(scope='module')
def failed(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp('runs') / 'mini' / '0', done=False)
    put(run / 'order/costs.json', {'detectors': ['r50', 'r101'], 'cost': [[0, 0.4], [0.3, 0]]})
    (run / 'notebooks' / '99_broken.ipynb').write_text('{"cells": [')
    index = make_report(run)
    return {path.name: Page(path.read_text('utf-8')) for path in index.parent.iterdir()}


def test_the_table_has_the_numbers_and_the_papers_beside_them(done):
    page = done['index.html']
    assert page.row('Student')[1:] == [
        '20.2', '–', '34.3', '18.2', '900', '–', '36.5'
    ]  # fmt: skip
    best = page.row('Teacher 1 → teacher 2')
    assert best[0].endswith('(best arm)')
    assert 'in the run directory: stages/progressive/2_rx101/student.pth' in page.text
    assert best[1:] == [
        '30.6', '+10.4', '52.0', '27.5', '800', '1 min 40 s', '41.4'
    ]  # fmt: skip
    assert page.row('Teacher 2 only')[-1] == '41.0' and page.row('No teacher')[-1] == '37.4'
    assert [
        'Teacher 1', '43.2', '–', '73.4', '38.9', '–', '–', '–'
    ] in page.rows  # fmt: skip


def test_what_detectors_cost_has_a_table_of_its_own(done):
    rows = done['index.html'].rows
    assert ['Student', '0.71', '0.31', '7.5', '–'] in rows
    assert ['Teacher 2', '5.60', '2.75', '7.5', '–'] in rows


def test_mask_ap_has_a_column_where_it_was_measured(done, tmp_path):
    assert 'Mask AP' not in done['index.html'].text
    run = make_run(tmp_path / 'mini' / '0')
    path = run / 'stages' / 'progressive' / '2_rx101' / 'metrics.json'
    put(path, json.loads(path.read_text()) | {'segm_mAP': 0.2846})
    page = Page(make_report(run).read_text('utf-8'))
    assert page.row('Detector')[3:6] == ['AP50', 'AP75', 'Mask AP']
    assert page.row('Teacher 1 → teacher 2')[1:6] == ['30.6', '+10.4', '52.0', '27.5', '28.5']
    assert page.row('Teacher 2 only')[5] == '–'
    assert 'Box AP and mask AP in points' in page.text
    groups = [a for t, a in page.tags if a.get('scope') == 'rowgroup']
    assert {a['colspan'] for a in groups} == {'9'}


def test_the_index_says_status_answer_command_and_environment(done):
    page = done['index.html']
    assert 'Complete. All 9 steps, 13 min 32 s.' in ' '.join(page.text.split())
    assert (
        'The best student comes from the arm "Teacher 1 → teacher 2": AP 30.6 (+3.0 against training on without a '
        'teacher; +10.4 against the baseline). "Teacher 1 → teacher 2", the best sequence of several '
        'teachers, is 3.0 AP above training on without a teacher and 1.6 AP above the strongest teacher alone '
        '("Teacher 2 only"). Orders can hardly be judged here: training as long without a teacher brings 5.3 times what '
        "Teacher 2 only brings on top of it (regime index; the paper's RetinaNet: 0.2)."
    ) in page.text  # (27.6 - 20.2) / (29.0 - 27.6)
    assert 'One seed cannot tell a difference from chance' in page.text
    assert 'mtpd run configs/mini/retinanet_r50__r101_rx101.py --seed 0' in page.text
    assert page.row('torch') == ['torch', '2.13.0'] and page.row('cuda') == ['cuda', 'none']
    assert "title = 'a <recipe>'" in page.text
    tags = [tag for tag, _ in page.tags]
    assert tags.count('h1') == 1 and ('html', {'lang': 'en'}) in page.tags
    assert all('scope' in attrs for tag, attrs in page.tags if tag == 'th')


def test_rows_and_figures_say_where_they_come_from(tmp_path):
    run = make_run(tmp_path / 'mini' / '0')
    page = Page(make_report(run).read_text('utf-8'))
    recipe = 'mtpd train configs/mini/retinanet_r50__r101_rx101.py --seed 0'
    rows = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert rows['Teacher 1 → teacher 2'] == f'{recipe} --arm progressive --stage 2'
    assert rows['Student'] == f'{recipe} --detector r50'
    assert (
        rows['Teacher 1'] == 'mtpd run configs/mini/retinanet_r50__r101_rx101.py --seed 0'
    )  # its checkpoint is shipped
    metrics = run / 'stages/progressive/2_rx101/metrics.json'
    assert rows['stages/progressive/2_rx101/metrics.json'] == file_sha256(metrics)
    assert page.links.count('#provenance') == len(page.images) and f'mtpd report {run}' in page.text


def test_no_page_loads_anything(done, failed):
    for name, page in [*done.items(), *failed.items()]:
        assert all(url.startswith('data:') for url in page.loads), name
        assert 'url(' not in page.css and '@import' not in page.css, name
        assert not any(word in page.script for word in ('http', 'import', 'fetch', 'src')), name
        policy = [a['content'] for t, a in page.tags if a.get('http-equiv')]
        assert len(policy) == 1 and policy[0].startswith("default-src 'none'; img-src data:"), name
        assert not [t for t, _ in page.tags if t in ('link', 'iframe', 'object', 'embed', 'base')]
        for link in page.links:
            outside = link.startswith('https://arxiv.org/')
            assert outside or link.startswith('#') or link in done, (name, link)


def test_every_image_has_a_text_that_says_something(done):
    images = [image for page in done.values() for image in page.images]
    assert len(images) >= 5 + len(done) - 1
    assert all(len(image['alt']) > 10 and image['width'] for image in images)
    assert 'A dot of "06_analysis"' in [i['alt'] for i in done['06_analysis.html'].images]


def test_notebook_pages_fold_code_and_link_to_their_neighbours(done):
    page = done['02_detectors.html']
    assert page.links.count('00_environment.html') == 2
    assert page.links.count('04_distill_stage__none_1.html') == 2
    assert page.links.count('index.html') == 2
    folds = [attrs for tag, attrs in page.tags if tag == 'details']
    assert len(folds) == 3 and not any('open' in attrs for attrs in folds)
    assert '<i>raw</i> & text' in page.text
    assert '1 < 2' in page.text.replace('\n', '')


def test_stages_of_one_notebook_are_told_apart(done):
    label = f'04_distill_stage__progressive_2 · {ARMS["progressive"][0]}, stage 2'
    assert label in done['index.html'].text


def test_a_failed_run_says_so_and_markup_in_errors_is_text(failed):
    page = failed['index.html']
    text = ' '.join(page.text.split())
    assert 'Failed. 5 of 9 steps are done.' in text
    assert '04_distill_stage__progressive_2: failed, ValueError: bad <script>alert(1)' in text
    assert '06_analysis: pending' in text
    assert page.row('Teacher 1 → teacher 2')[1:4] == ['–', '–', '–']
    assert 'Of the arms evaluated so far (still missing: "Teacher 1 → teacher 2", ' in text
    assert 'Adaptation cost' in text and '06_analysis.html' not in failed
    assert 'alert' not in page.script
    notebook_page = failed['04_distill_stage__progressive_2.html']
    assert (
        'This notebook failed.' in notebook_page.text
        and 'bad <script>alert(1)' in notebook_page.text
    )
    assert 'alert' not in notebook_page.script


def test_markup_in_any_name_is_text(tmp_path):
    evil = '<img src=x onerror=alert(1)>'
    run = make_run(tmp_path / 'mini' / '0', done=False)
    shutil.rmtree(run / 'stages')  # fewer figures to draw
    info = json.loads((run / 'run.json').read_text())
    for item in [info, *info['arms'], *info['detectors']]:
        item['title' if item is info else 'label'] = evil
    put(run / 'run.json', info | {'command': evil, 'smoke': True})
    put(run / 'environment.json', {evil: evil})
    path = run / 'notebooks' / '00_environment.ipynb'
    notebook = nbformat.read(path, 4)
    notebook.cells[0].source = f'# {evil}'
    notebook.cells[2].outputs[0].metadata['image/png'] = {'alt': f'"{evil}', 'width': '1" x="'}
    notebook.cells += [
        nbformat.v4.new_code_cell('x', outputs=[output], execution_count=9)
        for output in (
            nbformat.v4.new_output('display_data', {'application/javascript': 'alert(2)'}),
            nbformat.v4.new_output('display_data', {'text/plain': evil}),
        )
    ]
    nbformat.write(notebook, path)
    index = make_report(run)
    page = Page(index.read_text('utf-8'))
    assert page.text.count(evil) > 8 and 'A smoke run' in page.text
    assert all(image['src'].startswith('data:') for image in page.images)
    notebook_page = Page((index.parent / '00_environment.html').read_text('utf-8'))
    assert 'alert' not in notebook_page.script
    assert [image['alt'] for image in notebook_page.images if image['src'][:5] == 'data:'] == [
        f'"{evil}'
    ]


@pytest.mark.long
def test_of_equal_arms_none_is_best_and_a_smoke_run_has_no_verdict(tmp_path):
    run = make_run(tmp_path / 'mini' / '0')
    for folder in ('progressive/2_rx101', 'reverse/2_r101'):
        put(run / 'stages' / folder / 'metrics.json', metrics(30.6))
    page = Page(make_report(run).read_text('utf-8'))
    assert '(best arm)' not in page.text
    assert 'arms alike, "Teacher 1 → teacher 2", "Teacher 2 → teacher 1": AP 30.6' in page.text
    put(run / 'stages/reverse/2_r101/metrics.json', metrics(30.7))
    page = Page(make_report(run).read_text('utf-8'))
    assert (
        page.text.count('(best arm)') == 1
        and 'the arm "Teacher 2 → teacher 1": AP 30.7' in page.text
    )
    info = json.loads((run / 'run.json').read_text())
    put(run / 'run.json', info | {'smoke': True})
    smoke = make_report(run).read_text('utf-8')
    assert 'The best student' not in smoke and '(best arm)' not in smoke
    assert 'Results of a smoke run: they mean nothing' in smoke and 'Of a smoke run: AP' in smoke


def test_a_run_with_nothing_but_its_plan_has_a_report(tmp_path):
    put(tmp_path / 'run.json', {'name': 'bare', 'recipe': 'r.py', 'seed': 3})
    page = Page(make_report(tmp_path).read_text('utf-8'))
    assert 'No status was recorded.' in page.text and 'there is no answer so far' in page.text
    assert 'mtpd run r.py' in page.text and not page.images
    with pytest.raises(MtpdError, match='not a run'):
        make_report(tmp_path / 'gone')


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(None, '–'), (44.6, '45 s'), (59.9, '1 min 0 s'), (812, '13 min 32 s'), (7530, '2 h 5 min')],
)
def test_duration(seconds, text):
    assert format_duration(seconds) == text


def test_runs_of_other_seeds_are_read_with_it(tmp_path):
    for seed, ap in enumerate((10.0, 11.1, 11.9)):
        run = trained(
            tmp_path / 'runs' / str(seed), seed=seed, direct=ap, progressive=ap + 1 + seed / 10
        )
        put(run.path / 'detectors' / 'rx101' / 'metrics.json', {'bbox_mAP': 0.5})
    page = Page(make_report(run.path).read_text())
    # Differences 1.0, 1.1, 1.2: mean 1.1, t interval 1.1 -+ 4.303 x 0.1 / sqrt(3).
    assert (
        'is better than the strongest teacher alone (teacher 2 only) by 1.1 AP [0.9, 1.3], 3 seeds'
        in page.text
    )
    assert page.images[0]['alt'].startswith('Box AP by arm, mean and 95 % interval over 3 seeds')
    # The arm without a teacher was not evaluated: no difference from it is told.
    assert 'Does a teacher help?' not in page.text
    assert '+0.4 AP for the sequence against the last teacher alone (41.4 against 41.0' in page.text
    assert 'Seed 2: Final AP of each arm' in page.text
    command = 'mtpd run configs/mini/retinanet_r50__r101_rx101.py'
    assert f'{command} --seed 1' in page.text and f'{command} --seed 2' in page.text
    first = page.rows[0]
    assert first[1:4] == ['AP, mean of 3 seeds [95 %]', 'AP, seed 2', 'against baseline, mean']


def test_findings_stand_on_the_first_page(done, tmp_path):
    """The fake run's regime index is 5.3; a run whose control gains less has no such section."""
    page = done['index.html']
    assert 'To look at' in page.text
    assert 'Training as long without a teacher brings 5.3 times what distillation adds' in page.text
    run = make_run(tmp_path / 'mini' / '0')
    put(run / 'stages/none/1_no_teacher/metrics.json', metrics(21.0))
    index = make_report(run)
    assert 'To look at' not in index.read_text('utf-8')


def test_a_folder_of_mtpd_train_has_a_report(tmp_path):
    from helpers.fake_run import stage
    from mtpd.config.recipe import load_recipe

    (tmp_path / 'detectors').mkdir()
    recipe = load_recipe('configs/mini/retinanet_r50__r101_rx101.py')
    (tmp_path / 'recipe.py').write_text(recipe.text)
    put(tmp_path / 'status.json', {'state': 'done', 'command': 'mtpd train x.py --arm direct'})
    put(tmp_path / 'detectors/student/metrics.json', metrics(20.0))
    stage(tmp_path, 'direct', 1)
    page = Page(make_report(tmp_path).read_text('utf-8'))
    assert 'This folder holds single trainings, not a whole run.' in page.text
    assert 'mtpd train x.py --arm direct' in page.text
    assert page.row('teacher 2 only')[1:3] == ['29.0', '+9.0']
    assert len(page.images) >= 2


def test_a_plain_training_has_a_report(tmp_path):
    from helpers.fake_run import log

    folder = tmp_path / 'retinanet'
    log(folder / 'log.json', 100, distilled=False)
    (folder / 'config.py').write_text('optimizer = dict(lr=0.01)\n')
    put(folder / 'status.json', {'state': 'done', 'command': 'mtpd train x.py'})
    put(folder / 'metrics.json', metrics(33.0))
    page = Page(make_report(folder).read_text('utf-8'))
    assert page.row('retinanet')[1] == '33.0' and 'Every arm' not in page.text
    assert len(page.images) == 1 and 'optimizer = dict(lr=0.01)' in page.text
