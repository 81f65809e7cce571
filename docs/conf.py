"""Sphinx's settings of the site. `docs/make_site.py` gathers the pages and calls it."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
from docutils.nodes import SkipNode

from mtpd import __version__
from mtpd.report.html import mathml

project = 'MTPD reproduction kit'
author = 'The MTPD reproduction kit contributors'
copyright = f'{author}. Apache-2.0'
version = release = __version__
language = 'en'

extensions = ['myst_nb']
root_doc = 'index'
myst_enable_extensions = ['colon_fence', 'dollarmath']
myst_heading_anchors = 4
# The notebooks have their outputs from a run. Controls need a kernel, and are left out.
nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'  # with tables
nb_ipywidgets_js = {}
nb_output_stderr = 'remove'
nb_merge_streams = True
suppress_warnings = [
    'myst.header',  # a notebook's heading may skip a level
    'misc.highlighting_failure',
    'mystnb.mime_priority',
]

html_theme = 'sphinx_book_theme'
html_title = project
html_favicon = '_static/favicon.svg'
html_static_path = ['_static']
html_css_files = ['site.css']
html_js_files = ['site.js']
html_context = {'default_mode': 'auto'}
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_last_updated_fmt = None
html_theme_options = {
    'home_page_in_toc': True,
    'navbar_persistent': [],  # its search is in the sidebar
    'show_navbar_depth': 1,
    'show_toc_level': 2,
    'use_download_button': False,
    'use_fullscreen_button': False,
    'pygments_light_style': 'a11y-high-contrast-light',
    'pygments_dark_style': 'a11y-high-contrast-dark',
}
html_math_renderer = 'mathml'


def visit_math(translator, node):
    translator.body.append(mathml(node.astext()))
    raise SkipNode


def visit_displaymath(translator, node):
    translator.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise SkipNode


def setup(app):
    """Browsers draw MathML by themselves, as in the reports."""
    app.add_html_math_renderer('mathml', (visit_math, None), (visit_displaymath, None))
