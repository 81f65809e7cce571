"""Tables and sentences of notebooks: their rows; what comes from data is text, in Markdown and in the HTML made of it."""

import subprocess
from html.parser import HTMLParser

import pytest
from nbconvert.filters import markdown2html

from helpers.fake_run import metrics, put
from mtpd import load_recipe
from mtpd.pipeline import stages
from mtpd.report import tables
from mtpd.report.tables import markdown_table, show_sentences
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
    found = subprocess.run(
        ['git', 'grep', '-nE', words, '--', ':!tests', ':!*.ipynb'], cwd=ROOT, capture_output=True
    )
    assert found.stdout == b''


@pytest.fixture
def recipe(tmp_path):
    """With a student's checkpoint, so that nothing has to be trained; its metrics are there, too."""
    plan = load_recipe(MINI, {'student.checkpoint': str(tmp_path / 'student.pth')})
    aps = {'student': 6.0, 'r101': 40.5, 'rx101': 55.9}
    return plan, aps


@pytest.fixture
def measured(recipe, monkeypatch):
    """What `prepare_detector` gives where all is there."""
    plan, aps = recipe

    def ready(recipe, name, work_dir=None):
        return {'metrics': metrics(aps[name]), 'model': {'parameters': 7, 'gflops': 0.5}}

    monkeypatch.setattr(tables, 'prepare_detector', ready)
    return plan


def test_detectors_with_their_training(measured):
    found = tables.detector_rows(measured)
    assert [row['name'] for row in found] == ['student', 'r101', 'rx101']
    assert [round(row['AP'], 6) for row in found] == [6.0, 40.5, 55.9]
    assert [row['updates'] for row in found] == [1000, 4000, 7000]
    assert [row['scenes'] for row in found] == [3000, 24000, 24000]
    assert [row['init'] for row in found] == [None, None, 'teacher 1: ResNet-34, width 16']
    assert found[1]['AP50'] == pytest.approx(1.7 * 40.5) and found[1]['parameters'] == 7
    columns = tables.detector_headings(measured)
    assert {'updates', 'init', 'gflops'} < set(columns) and 'mask_AP' not in columns


def test_what_a_training_began_from(tmp_path):
    plan = load_recipe(MINI, {'teachers.r101.init': str(tmp_path / 'other.pth')})
    assert stages.began_from(plan, 'r101') == 'other.pth'
    assert stages.began_from(plan, 'rx101') == 'teacher 1: ResNet-34, width 16'
    assert stages.began_from(plan, 'student') is None


def test_stages_up_to_the_last(measured, tmp_path):
    for folder, ap in (('1_r101', 9.8), ('2_rx101', 12.0)):
        put(tmp_path / 'stages/progressive' / folder / 'metrics.json', metrics(ap))
    found = tables.stage_rows(measured, 'progressive', 2, tmp_path)
    assert [row['student'] for row in found] == ['baseline', 'after stage 1', 'after stage 2']
    assert [row['AP'] for row in found] == pytest.approx([6.0, 9.8, 12.0])
    assert found[2]['AP small'] == pytest.approx(6.0) and 'mask AP' not in found[0]
    assert len(tables.stage_rows(measured, 'progressive', 1, tmp_path)) == 2
