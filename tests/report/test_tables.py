"""Tables and sentences of notebooks: what comes from data is text, in Markdown and in the HTML made of it."""

import subprocess
from html.parser import HTMLParser

import pytest
from nbconvert.filters import markdown2html

from mtpd.report.tables import markdown_table, show_sentences
from mtpd.utils.paths import ROOT

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
