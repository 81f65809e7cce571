"""Which published figures stand together, and the gains between them; values as reference.md, section 1, has them."""

from __future__ import annotations

import pytest

from helpers.fake_run import make_run, put
from helpers.page import Page
from mtpd.analysis.published import (
    chart_notes,
    paper_chart,
    paper_figures,
    paper_finding,
    paper_gains,
)
from mtpd.analysis.run import load_run
from mtpd.config.recipe import load_recipe
from mtpd.report.run import make_report
from mtpd.utils.paths import ROOT

# By student: metric: AP alone after 12 and after 24 epochs.
ALONE = {
    'RetinaNet R50': {'box': (36.5, 37.4)},
    'Mask R-CNN R50': {'box': (38.2, 39.2), 'mask': (34.7, 35.4)},
    'RepPoints R50': {'box': (38.1, 38.6)},
}
# By recipe: its student, the release's AP by metric, the gains in box AP against 12 and 24 epochs, the chart's pair with MGD.
RECIPES = {
    'retinanet_r50__r101_rx101': (
        'RetinaNet R50', {'box': 41.7}, ('+5.2', '+4.3'), (41.0, 41.4)
    ),
    'retinanet_r50__swint_swins': ('RetinaNet R50', {'box': 42.0}, ('+5.5', '+4.6'), None),
    'mask_rcnn_r50__cascade_r50dcn_rx101dcn': (
        'Mask R-CNN R50', {'box': 42.5, 'mask': 38.2}, ('+4.3', '+3.3'), (42.4, 42.5)
    ),
    'mask_rcnn_r50__swint_swins': (
        'Mask R-CNN R50', {'box': 42.6, 'mask': 38.4}, ('+4.4', '+3.4'), None
    ),
    'reppoints_r50__r101_rx101dcn': (
        'RepPoints R50', {'box': 42.9}, ('+4.8', '+4.3'), (42.3, 42.9)
    ),
}  # fmt: skip
OLD = {'student': 'RetinaNet R50', 'baseline': 36.5, 'after_stage': [37.9, 39.9]}
OLD |= {'direct': 41.0, 'result': 41.7}  # as version 0.1 had it in recipes and run.json


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_has_what_is_published_of_its_sequence(name):
    student, released, gains, pair = RECIPES[name]
    mini, paper = (
        load_recipe(f'configs/{kind}/{name}.py').cfg.paper.to_dict() for kind in ('mini', 'paper')
    )
    assert mini == paper == paper_figures(paper)
    assert paper['student'] == student
    rows = {row['name'].split()[0]: row for row in paper_gains(paper)}
    assert {metric: row['result'] for metric, row in rows.items()} == released
    for metric, row in rows.items():
        assert (row['baseline'], row['baseline_2x']) == ALONE[student][metric]
        assert float(row['gain']) == pytest.approx(released[metric] - row['baseline'])
        assert float(row['gain_2x']) == pytest.approx(released[metric] - row['baseline_2x'])
    assert (rows['box']['gain'], rows['box']['gain_2x']) == gains
    assert (paper.get('direct'), paper.get('progressive')) == (pair or (None, None))
    if pair:
        assert tuple(paper_chart(student)['box']['MGD'].values()) == pair
    assert ('walk_through' in paper) == (name == 'retinanet_r50__r101_rx101')


def test_the_page_of_results_has_each_release_with_both_gains():
    text = (ROOT / 'docs/results.md').read_text('utf-8')
    table = text.split('<!-- paper -->')[1].split('<!-- end of paper -->')[0].strip()
    lines = [[cell.strip() for cell in line.split('|')[2:-1]] for line in table.splitlines()[2:]]
    keys = ('result', 'baseline', 'gain', 'baseline_2x', 'gain_2x')
    assert lines == [
        [str(row[key]) for key in keys]
        for name in RECIPES
        for row in paper_gains(load_recipe(f'configs/paper/{name}.py').cfg.paper)
    ]


def test_the_walk_through_is_no_part_of_another_figure():
    figures = load_recipe('configs/paper/retinanet_r50__r101_rx101.py').cfg.paper
    assert figures.walk_through == [36.5, 37.9, 39.9]
    assert figures.walk_through[-1] < figures.direct < figures.progressive < figures.result
    (text,) = paper_finding(figures).values()
    assert '41.7' in text and not any(number in text for number in ('37.9', '39.9', '+0.7'))


def test_what_the_paper_finds_is_said_by_its_pair_and_the_release_by_itself():
    text = paper_finding(load_recipe('configs/paper/retinanet_r50__r101_rx101.py').cfg.paper)
    assert list(text.values()) == [
        'On COCO, with detectors of full size and MGD, +0.4 AP for the sequence against the last teacher alone (41.4 against '
        '41.0, read off its bar chart; 12 + 12 epochs against 24). The released student has 41.7 box AP on COCO: +5.2 against '
        'the student alone after 12 epochs (36.5), +4.3 against it after 24 epochs (37.4). The release had stronger teachers '
        'than the pair, so 41.7 cannot be compared with 41.0.'
    ]
    (masks,) = paper_finding(
        load_recipe('configs/mini/mask_rcnn_r50__cascade_r50dcn_rx101dcn.py').cfg.paper
    ).values()
    assert '+0.1 AP for the sequence against the last teacher alone (42.5 against 42.4' in masks
    assert 'has 38.2 mask AP on COCO: +3.5 against' in masks and '+2.8 against it' in masks
    assert 'stronger' not in masks  # chart and release agree
    (alone,) = paper_finding({'result': 42.0}).values()
    assert alone == 'The released student has 42.0 box AP on COCO.'
    assert paper_finding({}) == paper_finding(None) == {} and paper_gains({}) == []


def test_figures_of_version_0_1_are_sorted():
    figures = paper_figures(OLD)
    assert figures['walk_through'] == [36.5, 37.9, 39.9] and 'after_stage' not in figures
    assert (figures['direct'], figures['progressive'], figures['result']) == (41.0, 41.4, 41.7)
    # What has no partner in the chart is in no comparison.
    for other in ({'student': None}, {'student': 'RepPoints R50'}, {'direct': 41.1}):
        assert not {'direct', 'progressive'} & set(paper_figures(OLD | other))
    assert OLD['after_stage'] == [37.9, 39.9] and paper_figures({}) == paper_figures(None) == {}


@pytest.mark.parametrize('student', ['RetinaNet R50', None])
def test_the_report_of_a_run_of_version_0_1_has_no_false_gain(tmp_path, student):
    path = make_run(tmp_path / 'mini' / '0')
    put(path / 'run.json', load_run(path).info | {'paper': OLD | {'student': student}})
    page = Page(make_report(path).read_text('utf-8'))
    column = [
        page.row(label)[-1] for label in ('Student', 'Teacher 2 only', 'Teacher 1 → teacher 2')
    ]
    assert column == (['36.5', '41.0', '41.4'] if student else ['36.5', '–', '41.7'])
    assert '+0.7' not in page.text
    assert ('41.4 against 41.0' in page.text) == bool(student)
    alts = [image['alt'] for image in page.images]
    assert not any('37.9' in alt and '41.' in alt for alt in alts)
    assert any('36.5 to 37.9 to 39.9.' in alt for alt in alts)


def test_the_papers_chart():
    masks = paper_chart('Mask R-CNN R50')['mask']
    assert masks['CWD'] == {'direct': 37.0, 'progressive': 37.2}
    assert paper_chart('RepPoints R50')['box']['MGD'] == {'direct': 42.3, 'progressive': 42.9}
    assert paper_chart('RetinaNet R50')['box']['FGD'] == {'direct': 40.7, 'progressive': 41.5}
    assert paper_chart('YOLO') == paper_chart(None) == {}
    gains = [
        arms['progressive'] - arms['direct']
        for student in ALONE
        for methods in paper_chart(student).values()
        for arms in methods.values()
    ]
    assert len(gains) == 12 and min(gains) > 0


def test_cwds_own_figure_is_a_footnote_of_its_bars():
    (note,) = chart_notes('RetinaNet R50')['box'].values()
    assert 'has 40.5 AP' in note and note.endswith('above both bars')
    assert max(paper_chart('RetinaNet R50')['box']['CWD'].values()) < 40.5
    assert chart_notes('RepPoints R50') == chart_notes(None) == {}
