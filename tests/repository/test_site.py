"""`make docs`: the site is whole, works offline, and can be searched, seen and read by everybody."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import functools
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from helpers.fake_run import make_run
from helpers.page import Page
from mtpd.report.run import make_report
from mtpd.utils.paths import ROOT

pytestmark = pytest.mark.slow
NOTEBOOKS = sorted(path.stem for path in (ROOT / 'notebooks').glob('*.py'))


def executed(run: Path) -> None:
    """The seven notebooks in a run, with outputs of each kind and a control."""
    image = {'image/png': PIXEL, 'text/plain': '<Figure>'}
    outputs = [
        {'output_type': 'execute_result', 'execution_count': 1, 'metadata': {}, 'data': {'text/markdown': '| AP |\n|---|\n| 12.5 |'}},
        {'output_type': 'display_data', 'metadata': {}, 'data': {'text/markdown': '', 'text/plain': '<Markdown object>'}},
        {'output_type': 'display_data', 'metadata': {'image/png': {'alt': 'a figure of the run'}}, 'data': image},
        {'output_type': 'display_data', 'metadata': {}, 'data': {'application/vnd.jupyter.widget-view+json': {'model_id': '1'}}},
    ]  # fmt: skip
    for path in (ROOT / 'notebooks').glob('*.ipynb'):
        notebook = json.loads(path.read_text(encoding='utf-8'))
        cell = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code'][1]
        cell['outputs'] = outputs
        ending = '__progressive_1' if path.stem.startswith('04') else ''
        (run / 'notebooks' / f'{path.stem}{ending}.ipynb').write_text(json.dumps(notebook))


PIXEL = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='


def built(run: Path, out: Path) -> Path:
    pytest.importorskip('sphinx', reason='needs pip install -r requirements/docs.txt')
    command = [sys.executable, ROOT / 'docs/make_site.py', '--run', run, '--out', out]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'WARNING' not in done.stderr
    return out / 'html'


@pytest.fixture(scope='module')
def html(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp('runs') / 'mini' / '0')
    for path in (run / 'notebooks').glob('*.ipynb'):
        path.unlink()
    executed(run)
    make_report(run)
    return built(run, tmp_path_factory.mktemp('site'))


@pytest.fixture(scope='module')
def pages(html):
    return {path: Page(path.read_text(encoding='utf-8')) for path in html.rglob('*.html')}


def test_all_pages_are_there(html):
    names = [f'docs/{path.stem}' for path in (ROOT / 'docs').glob('*.md')]
    names += [f'notebooks/{name}' for name in NOTEBOOKS]
    names += ['index', 'report/index', 'benchmarks/README', 'CHANGELOG', 'CONTRIBUTING', 'search']
    for name in names:
        assert (html / f'{name}.html').is_file(), name


def test_every_link_leads_somewhere(pages):
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link or '')
            if parts.scheme or link == '#':
                assert parts.scheme in ('', 'https'), link
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), (path.name, link)
            if parts.fragment and target in pages:
                ids = {attrs.get('id') for _, attrs in pages[target].tags}
                assert {parts.fragment, unquote(parts.fragment)} & ids, (path.name, link)


def test_nothing_is_loaded_from_elsewhere(pages):
    for path, page in pages.items():
        loads = [load for load in page.loads if load and load.startswith(('http', '//'))]
        assert loads == [], path
        assert 'https://cdn' not in page.script, path


def test_notebooks_have_the_runs_outputs_and_say_where_from(html, pages):
    for name in NOTEBOOKS:
        page = pages[html / f'notebooks/{name}.html']
        assert ['12.5'] in page.rows and 'Markdown object' not in page.text, name
        assert f'notebooks/{name}.py' in page.text and 'Outputs: mtpd run' in page.text
        assert [
            image['alt'] for image in page.images if 'figure of the run' in (image['alt'] or '')
        ]
        assert 'widget-view' not in page.text
    math = (html / 'notebooks/03_teacher_order.html').read_text(encoding='utf-8')
    assert '<math' in math and 'lVert' not in pages[html / 'notebooks/03_teacher_order.html'].text


def test_without_a_run_pages_name_the_command(tmp_path):
    html = built(tmp_path / 'none', tmp_path / 'site')
    assert not (html / 'report').exists()
    assert 'make demo' in Page((html / 'notebooks/05_evaluate.html').read_text()).text
    start = Page((html / 'index.html').read_text())
    assert 'report/index.html' not in start.links


# In the browser


@contextmanager
def served(folder: Path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_address[1]}'
    finally:
        server.shutdown()
        server.server_close()


LOOKED_AT = ['index', 'docs/course', 'docs/exercises', 'docs/recipes', 'docs/provenance', 'search']
LOOKED_AT += [f'notebooks/{name}' for name in NOTEBOOKS]


@contextmanager
def opened(browser, scheme: str, width: int = 1280):
    """A page whose network is this machine, and what was asked of it and went wrong."""
    context = browser.new_context(color_scheme=scheme, viewport={'width': width, 'height': 900})
    page, seen = context.new_page(), {'asked': [], 'errors': []}
    context.on('request', lambda request: seen['asked'].append(request.url))
    page.on('pageerror', lambda error: seen['errors'].append(str(error)))
    page.on('console', lambda m: seen['errors'].append(m.text) if m.type == 'error' else None)
    yield page, seen
    context.close()


@pytest.mark.browser
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_nobody_is_shut_out_and_nothing_is_asked_elsewhere(html, browser, scheme, request):
    axe = pytest.importorskip('axe_playwright_python.sync_playwright').Axe()
    with served(html) as url, opened(browser, scheme) as (page, seen):
        for name in LOOKED_AT:
            page.goto(f'{url}/{name}.html')
            page.wait_for_timeout(300)
            assert page.evaluate('document.documentElement.dataset.theme') == scheme
            assert seen['errors'] == [], name
            violations = axe.run(page).response['violations']
            seen['errors'].clear()  # axe looks for imported style sheets at another place
            bad = [
                (rule['id'], [node['html'][:200] for node in rule['nodes']][:3])
                for rule in violations
                if rule['impact'] in ('serious', 'critical')
            ]
            assert bad == [], name
            width = page.evaluate('document.documentElement.scrollWidth')
            assert width <= 1280, name
        assert {urlsplit(asked).hostname for asked in seen['asked']} == {'127.0.0.1'}


@pytest.mark.browser
def test_on_a_telephone_nothing_is_wider_than_the_page(html, browser):
    with served(html) as url, opened(browser, 'light', 390) as (page, _):
        for name in LOOKED_AT:
            page.goto(f'{url}/{name}.html')
            assert page.evaluate('document.documentElement.scrollWidth') <= 390, name


@pytest.mark.browser
@pytest.mark.parametrize('way', ['a server', 'files'])
def test_the_search_works_offline(html, browser, way):
    with served(html) as url, opened(browser, 'light') as (page, seen):
        page.goto(f'{html.as_uri() if way == "files" else url}/search.html?q=adaptation')
        page.wait_for_selector('#search-results li')
        links = page.eval_on_selector_all('#search-results li a', 'all => all.map((a) => a.href)')
        assert any('03_teacher_order.html' in link for link in links)
        assert any('docs/teacher-order.html' in link for link in links)
        assert {urlsplit(asked).hostname for asked in seen['asked']} <= {'127.0.0.1', None, ''}
        assert seen['errors'] == []


@pytest.mark.browser
def test_solutions_are_folded(html, browser):
    with opened(browser, 'light') as (page, _):
        page.goto((html / 'docs/exercises.html').as_uri())
        solutions = page.locator('article details')
        assert solutions.count() == 3
        for k in range(3):
            inside = solutions.nth(k).locator('p').first
            assert not inside.is_visible()
            solutions.nth(k).locator('summary').click()
            assert inside.is_visible()
