"""HTML pages: their frame, figures inside them, a run's notebooks with code folded and links to their neighbours."""

from __future__ import annotations

import base64
import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from ..analysis.run import Run
from ..plots import Figure
from ..utils.progress import progress_bar
from .tables import cell_text, format_duration

TEMPLATES = Path(__file__).parent / 'templates'
# A page loads nothing but what is inside the file; of scripts only those named here.
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; script-src {}"
# Tag of cells about what only a kernel behind the page can do, such as controls: a static page goes without them.
LIVE_TAG = 'live'
# What no policy forbids in a notebook's own HTML: to lead elsewhere by itself (refresh), to look up hosts (preconnect).
OUTWARD_TAGS = re.compile('<(?=/?(?:meta|link|base))', re.IGNORECASE)


def fill_template(name: str, **values: Any) -> str:
    """The page of a template; all values are escaped."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {'duration': format_duration, 'cell': cell_text}
    style = (TEMPLATES / 'style.css').read_text(encoding='utf-8')
    return environment.get_template(name).render(
        policy=CONTENT_POLICY.format("'none'"), style=style, **values
    )


def encode_figures(drawn: Iterable[tuple[Figure, str]]) -> list[dict]:
    """Figures and captions as gallery.html.j2 takes them, without those that only say there is nothing yet."""
    figures = []
    for fig, caption in drawn:
        if fig.axes:
            mime, data = fig.encoded()
            figure = {'mime': mime, 'data': base64.b64encode(data).decode(), 'alt': fig.alt}
            figures.append(figure | {'caption': caption, 'width': round(96 * fig.get_figwidth())})
    return figures


def run_pages(run: Run) -> list[dict[str, Any]]:
    """The steps in order, then notebooks that no step names; `href` is None without a notebook."""
    pages = []
    for step in run.steps:
        pages.append(
            {'name': step['name'], 'path': run.path / (step.get('notebook') or 'none')}
            | {key: step.get(key) for key in ('state', 'seconds', 'reason')}
        )
    known = {page['path'] for page in pages}
    for path in sorted((run.path / 'notebooks').glob('*.ipynb')):
        if path not in known:
            page = {'name': path.stem, 'path': path, 'state': 'done'}
            pages.append(page | {'seconds': None, 'reason': None})
    for page in pages:
        page['notebook'] = _read_notebook(page['path'])
        page['href'] = f'{page["path"].stem}.html' if page['notebook'] else None
        page['title'] = _page_title(page, run)
    return pages


def _read_notebook(path: Path):
    import nbformat

    if not path.is_file():
        return None
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception:  # half-written by a run in progress, or damaged: the report goes without it
        return None
    tags = {'papermill-error-cell-tag', LIVE_TAG}
    notebook.cells = [c for c in notebook.cells if not tags & {*c.metadata.get('tags', [])}]
    return notebook


def _page_title(page: dict, run: Run) -> str:
    cells = page['notebook'].cells if page['notebook'] else ()
    heads = [c.source for c in cells if c.cell_type == 'markdown' and c.source.startswith('# ')]
    if not heads:
        return page['name']
    title = heads[0].splitlines()[0][2:].replace('`', '').replace('*', '').strip()
    arm, _, stage = page['name'].partition('__')[2].rpartition('_')
    if not arm:
        return title
    # One notebook serves all stages, so its heading does not tell them apart.
    label = next((a.get('label') for a in run.arms if a['name'] == arm), None) or arm
    return f'{title.partition(" · ")[0]} · {label}, stage {stage}'


def _exporter():
    """nbconvert's exporter with our template."""
    from jinja2 import pass_context
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    from traitlets.config import Config

    class Renderer(IPythonRenderer):
        def inline_math(self, body):
            return mathml(body)

        def block_math(self, body):
            return mathml(body, 'block')

        def latex_environment(self, name, body):
            return mathml(f'\\begin{{{name}}}{body}\\end{{{name}}}', 'block')

    class Exporter(HTMLExporter):
        @pass_context
        def markdown2html(self, context, source):
            attached = context.get('cell', {}).get('attachments', {})
            renderer = Renderer(escape=False, attachments=attached)
            return disarm_links(MarkdownWithMath(renderer=renderer).render(source))

    # Widgets and scripts are left out: they would need a live kernel or the network.
    kinds = ['text/html', 'text/markdown', 'image/svg+xml', 'image/png', 'image/jpeg', 'text/plain']
    exporter = Exporter(
        template_name='notebook',
        extra_template_basedirs=[str(TEMPLATES)],
        config=Config(NbConvertBase={'display_data_priority': kinds}),
    )
    exporter.register_filter('stay', disarm_links)
    return exporter


def mathml(formula: str, display: str = 'inline') -> str:
    """A LaTeX formula as browsers draw it by themselves; as it was written where it is none, or leads elsewhere."""
    from latex2mathml.converter import convert

    try:
        markup = convert(formula.strip(), display=display)
    except Exception:  # each of a dozen of its own
        markup = ''
    return markup if markup and 'href' not in markup else f'<code>{escape(formula)}</code>'


def disarm_links(html: str) -> str:
    """A notebook's HTML, its elements that lead out of the page shown as text."""
    return OUTWARD_TAGS.sub('&lt;', html)


def render_pages(pages: list[dict]) -> Iterator[tuple[str, str]]:
    """File name and HTML of each page that has a notebook."""
    shown = [page for page in pages if page['href']]
    exporter = _exporter()
    script = (TEMPLATES / 'fold.js').read_text(encoding='utf-8')
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    for k, page in enumerate(progress_bar('report', shown)):
        resources = {
            'metadata': {'name': page['title']},
            'policy': CONTENT_POLICY.format(f"'sha256-{digest}'"),
            'style': (TEMPLATES / 'style.css').read_text(encoding='utf-8'),
            'script': script,
            'state': page['state'],
            'previous': shown[k - 1] if k else None,
            'next': shown[k + 1] if k + 1 < len(shown) else None,
        }
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'Your element with mimetype')  # what is left out
            html, _ = exporter.from_notebook_node(page['notebook'], resources)
        yield page['href'], html
