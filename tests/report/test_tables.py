"""Tables and sentences of notebooks: their rows; what comes from data is text, in Markdown and in the HTML made of it."""

import subprocess
from html.parser import HTMLParser

import pytest
from nbconvert.filters import markdown2html

from helpers.fake_run import make_run, metrics, put
from helpers.page import Page
from mtpd import load_recipe
from mtpd.analysis.run import load_run
from mtpd.pipeline import detectors
from mtpd.report import tables
from mtpd.report.run import make_report
from mtpd.report.tables import Column, markdown_table, show_sentences, table_columns
from mtpd.utils.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
EVIL = [
    '<script>alert(1)</script>',
    '<img src=x onerror=alert(1)>',
    '[a](javascript:alert(1))',
    '![a](http://example.org/x.png)',
    '`</code><script>alert(1)</script>`',
    'a|b\n\n<iframe src=x>',
    '\\<b>\\',
    '**bold** _x_ ~~y~~',
    '&lt;script&gt;',
    '\\(x\\) \\\\[y\\\\]',
    '$x$ a_b^{c %s {0}',
]


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ''
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        # An address in plain sight may be followed; nothing is loaded for it.
        assert all(key == 'href' and value.startswith('http') for key, value in attrs)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize('evil', EVIL)
def test_markup_from_data_is_text_in_a_table(evil):
    page = Tags(markdown2html(markdown_table([{'class': evil, evil: 1.5}]).data))
    assert set(page.tags) <= {'table', 'thead', 'tbody', 'tr', 'th', 'td', 'a'}
    assert page.text.count(evil.replace('\n', ' ').split('  ')[0]) == 2


@pytest.mark.parametrize('evil', EVIL)
def test_markup_from_data_is_no_html_in_a_sentence(evil):
    page = Tags(markdown2html(show_sentences('**Conclusion.**', evil).data))
    assert set(page.tags) <= {'p', 'strong', 'em', 'code', 'a'} and 'strong' in page.tags


def test_nothing_turns_jupyters_authentication_off():
    """No tracked file sets an empty token or password, or lets other sites in."""
    words = r"(token|password)\s*=\s*['\"]{2}|allow_unauthenticated|disable_check_xsrf|allow_origin"
    matches = subprocess.run(
        ['git', 'grep', '-nE', words, '--', ':!tests', ':!*.ipynb'], cwd=ROOT, capture_output=True
    )
    assert matches.stdout == b''


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A recipe of whose detectors `prepare_detector` finds all there."""
    aps = {'student': 6.0, 'r101': 40.5, 'rx101': 55.9}

    def prepared(recipe, name, work_dir=None):
        return {'metrics': metrics(aps[name]), 'model': {'parameters': 7, 'gflops': 0.5}}

    monkeypatch.setattr(tables, 'prepare_detector', prepared)
    return load_recipe(MINI, {'student.checkpoint': str(tmp_path / 'student.pth')})


def test_detectors_with_their_training(measured, tmp_path):
    rows = tables.detector_rows(measured)
    assert [row['name'] for row in rows] == ['student', 'r101', 'rx101']
    assert [round(row['AP'], 6) for row in rows] == [6.0, 40.5, 55.9]
    # Of a checkpoint that is given it is known only where the recipe says so.
    assert [row['updates'] for row in rows] == [None, 4000, 7000]
    trained_here = load_recipe(MINI, {'student.checkpoint': None})
    assert tables.detector_rows(trained_here)[0]['updates'] == 6000
    assert [row['scenes'] for row in rows] == [3000, 24000, 24000]
    assert [row['init'] for row in rows] == [None, None, 'teacher 1: ResNet-34, width 16']
    assert rows[1]['AP50'] == pytest.approx(1.7 * 40.5) and rows[1]['parameters'] == 7
    headings = [column.heading for column in table_columns('detectors', rows)]
    assert headings[:4] == ['Detector', 'Role', 'AP', 'AP50'] and 'Mask AP' not in headings
    assert headings[-3:] == ['Updates', 'Training scenes', 'Began from']


def test_of_other_data_no_training_on_scenes_is_told(measured, tmp_path, tiny_coco):
    root = tiny_coco(tmp_path / 'coco')
    recipe = load_recipe(MINI, {'data.root': str(root), 'student.checkpoint': 'student.pth'})
    rows = tables.detector_rows(recipe)
    keys = [column.key for column in table_columns('detectors', rows)]
    assert not {'updates', 'scenes', 'init'} & set(keys) and 'ms_per_image' in keys


def test_what_a_training_began_from(tmp_path):
    plan = load_recipe(MINI, {'teachers.r101.init': str(tmp_path / 'other.pth')})
    assert detectors.init_label(plan, 'r101') == 'other.pth'
    assert detectors.init_label(plan, 'rx101') == 'teacher 1: ResNet-34, width 16'
    assert detectors.init_label(plan, 'student') is None


def test_stages_up_to_the_last(measured, tmp_path):
    for folder, ap in (('1_r101', 9.8), ('2_rx101', 12.0)):
        put(tmp_path / 'stages/progressive' / folder / 'metrics.json', metrics(ap))
    rows = tables.stage_rows(measured, 'progressive', 2, tmp_path)
    assert [row['label'] for row in rows] == ['baseline', 'after stage 1', 'after stage 2']
    assert [row['AP'] for row in rows] == pytest.approx([6.0, 9.8, 12.0])
    assert rows[2]['AP_s'] == pytest.approx(6.0)
    assert len(tables.stage_rows(measured, 'progressive', 1, tmp_path)) == 2
    lines = markdown_table(rows, 'stages').data.splitlines()
    assert lines[0] == '| Detector | AP | AP50 | AP75 | AP small |'
    assert lines[-1] == '| after stage 2 | 12.0 | 20.4 | 10.8 | 6.0 |'


@pytest.mark.long
def test_a_column_is_one_entry_of_the_list(tmp_path, monkeypatch):
    """The page's table, the one of notebook 05 and their widths follow from COLUMNS alone."""
    run = make_run(tmp_path / 'mini' / '0')
    before = Page(make_report(run).read_text('utf-8'))
    kind = Column('kind', 'Kind', str.upper, 'report results')
    monkeypatch.setattr(tables, 'COLUMNS', (*tables.COLUMNS, kind))
    page = Page(make_report(run).read_text('utf-8'))
    assert page.row('Detector') == [*before.row('Detector'), 'Kind']
    assert page.row('No teacher') == [*before.row('No teacher'), 'CONTROL']
    assert page.row('Student')[-1] == '–'
    spans = {int(a['colspan']) for _, a in page.tags if a.get('scope') == 'rowgroup'}
    assert spans == {len(page.row('Detector'))}
    rows = load_run(run).results()
    assert markdown_table(rows, 'results').data.splitlines()[0].endswith('| Updates | Kind |')


def test_a_column_that_nobody_has_a_value_of_is_left_out_if_it_may_be():
    rows = [{'label': 'a', 'AP': None, 'mask_AP': None}]
    assert [column.key for column in table_columns('report', rows)] == [
        *('label', 'AP', 'gain', 'AP50', 'AP75', 'seconds'),
    ]
    keys = [column.key for column in table_columns('report', [{'mask_AP': 1.0, 'paper': 2.0}])]
    assert {'mask_AP', 'paper'} < set(keys)
