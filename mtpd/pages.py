"""The notebooks of a run as HTML pages, code folded, each with links to its neighbours."""

from __future__ import annotations

import base64
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .runs import Run

TEMPLATES = Path(__file__).parent / 'templates'
# A page loads nothing but what is inside the file; of scripts only those named here.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {}"


def pages_of(run: Run) -> list[dict[str, Any]]:
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
        page['notebook'] = _read(page['path'])
        page['href'] = f'{page["path"].stem}.html' if page['notebook'] else None
        page['title'] = _title(page, run)
    return pages


def _read(path: Path):
    import nbformat

    if not path.is_file():
        return None
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception:  # half-written by a run in progress, or damaged: the report goes without it
        return None
    tag = 'papermill-error-cell-tag'
    notebook.cells = [c for c in notebook.cells if tag not in c.metadata.get('tags', [])]
    return notebook


def _title(page: dict, run: Run) -> str:
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
    return f'{title} · {label}, stage {stage}'


def render(pages: list[dict]) -> Iterator[tuple[str, str]]:
    """File name and HTML of each page that has a notebook."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    shown = [page for page in pages if page['href']]
    # Widgets and scripts are left out: they would need a live kernel or the network.
    kinds = ['text/html', 'text/markdown', 'image/svg+xml', 'image/png', 'image/jpeg', 'text/plain']
    exporter = HTMLExporter(
        template_name='notebook',
        extra_template_basedirs=[str(TEMPLATES)],
        config=Config(NbConvertBase={'display_data_priority': kinds}),
    )
    script = (TEMPLATES / 'fold.js').read_text(encoding='utf-8')
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    for k, page in enumerate(shown):
        resources = {
            'metadata': {'name': page['title']},
            'policy': POLICY.format(f"'sha256-{digest}'"),
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
