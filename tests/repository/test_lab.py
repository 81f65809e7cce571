"""A small real run, looked at as people do: its notebooks in JupyterLab, its report in a browser without a network."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from click.testing import CliRunner

from helpers.browsing import Seen
from helpers.tiny_sweep import MINI, SMALL
from mtpd.cli.main import main
from mtpd.utils.paths import ROOT

pytestmark = pytest.mark.browser
SHOTS = ROOT / 'runs' / 'screenshots'
NAMES = [path.stem for path in sorted((ROOT / 'notebooks').glob('*.ipynb'))]
TOUCHED = {
    '05_evaluate': 'ArrowLeft',
    '06_analysis': 'ArrowRight',
}  # from the last, and from the first image


@pytest.fixture(scope='module')
def small(tmp_path_factory, tiny_coco, browser):
    """A run of a few updates on eight images, and its --cfg-options."""
    folder = tmp_path_factory.mktemp('lab')
    settings = SMALL | {'data.root': tiny_coco(folder / 'coco')}
    options = ' '.join(f'{key}={value}' for key, value in settings.items())
    command = ['run', MINI, '--work-dir', str(folder / 'run'), '--cfg-options', options]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    SHOTS.mkdir(parents=True, exist_ok=True)
    return folder / 'run', options


@pytest.fixture(scope='module')
def pages(small):
    return sorted((small[0] / 'report').glob('*.html'))


def test_the_reports_pages_show_everything_without_a_network(pages, browser):
    assert len(pages) == 15
    for path in pages:
        Seen(browser, path, SHOTS / f'report_{path.stem}.png').is_text()
    assert sum(path.stat().st_size for path in pages) < 10e6


def test_links_lead_to_pages_and_places_that_are_there(pages, browser):
    for path in pages:
        page = browser.new_page()
        page.goto(path.as_uri())
        links = page.eval_on_selector_all('a[href]', 'anchors => anchors.map((a) => a.href)')
        assert links, path.name
        for link in links:
            target, _, place = link.partition('#')
            if target.startswith('file://'):
                page.goto(target)
                assert not place or page.locator(f'[id="{place}"]').count() == 1, (path.name, link)
        page.close()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_accessible(pages, browser, scheme):
    """axe-core finds no serious or critical violation, whatever is folded away."""
    axe = pytest.importorskip('axe_playwright_python.sync_playwright').Axe()
    for path in pages:
        page = browser.new_page(color_scheme=scheme)
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        response = axe.run(page).response
        assert response['passes'], path.name
        bad = [v for v in response['violations'] if v['impact'] in ('serious', 'critical')]
        assert not bad, [(path.name, v['id'], v['nodes'][0]['html'][:200]) for v in bad]
        page.close()


def test_dark_mode_is_dark_and_prints_light(pages, browser):
    page = browser.new_page(color_scheme='dark')
    page.goto(next(path for path in pages if path.stem == 'index').as_uri())
    ground = 'getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)'
    assert max(page.evaluate(ground)) < 64
    page.emulate_media(media='print')
    assert min(page.evaluate(ground)) > 240
    page.emulate_media(media='screen', color_scheme='light')
    assert min(page.evaluate(ground)) > 192
    page.close()


def test_the_keyboard_reaches_everything(pages, browser):
    for path in pages:
        page = browser.new_page()
        page.goto(path.as_uri())
        wanted = '[...document.querySelectorAll(\'a[href], button, summary, [tabindex="0"]\')]'
        wanted += ".filter((e) => e.checkVisibility() || e.className === 'skip')"
        count = page.evaluate(f'{wanted}.length')
        for _ in range(count):
            page.keyboard.press('Tab')
            page.evaluate('document.activeElement.dataset.reached = 1')
        missed = page.evaluate(
            f'{wanted}.filter((e) => !e.dataset.reached).map((e) => e.outerHTML.slice(0, 200))'
        )
        assert count > 3 and missed == [], path.name
        page.close()


def test_code_unfolds_by_a_button(pages, browser):
    page = browser.new_page()
    page.goto(next(path for path in pages if path.stem == '05_evaluate').as_uri())
    opened = "document.querySelectorAll('details.code[open]').length"
    assert page.evaluate(opened) == 0
    page.locator('#fold').focus()
    page.keyboard.press('Enter')
    assert page.evaluate(opened) == page.locator('details.code').count() > 5
    page.keyboard.press('Enter')
    assert page.evaluate(opened) == 0
    page.close()


def test_formulas_are_drawn_by_the_browser(pages, browser):
    page = browser.new_page()
    page.goto(next(path for path in pages if path.stem == '06_analysis').as_uri())
    box = page.locator('math').first.bounding_box()
    assert box['width'] > 10 and box['height'] > 5
    prose = page.eval_on_selector_all(
        '.jp-MarkdownOutput', 'outputs => outputs.map((e) => e.innerText)'
    )
    assert prose and not any('$' in text or '\\rho' in text for text in prose)
    page.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


@pytest.fixture(scope='module')
def lab(small, tmp_path_factory):
    """JupyterLab at an address, on the notebooks with their parameters set to the small run."""
    run, options = small
    folder = tmp_path_factory.mktemp('notebooks')
    for name in NAMES:
        notebook = nbformat.read(ROOT / 'notebooks' / f'{name}.ipynb', 4)
        (cell,) = [c for c in notebook.cells if 'parameters' in c.metadata.get('tags', ())]
        for key, value in {'work_dir': str(run), 'cfg_options': options}.items():
            cell.source = re.sub(rf"^{key}: str = ''", lambda _, k=key, v=value: f'{k}: str = {v!r}', cell.source, flags=re.M)  # fmt: skip
        nbformat.write(notebook, folder / f'{name}.ipynb')
    settings = {  # all cells are drawn, not only those in sight; nobody is asked about news
        'notebook-extension/tracker': {'windowingMode': 'none'},
        'apputils-extension/notification': {'fetchNews': 'false'},
    }
    for name, values in settings.items():
        path = folder / '.settings' / '@jupyterlab' / f'{name}.jupyterlab-settings'
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    port = free_port()
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}']
    command += [f'--ServerApp.root_dir={folder}', '--IdentityProvider.token=secret']
    command += [f'--LabApp.user_settings_dir={folder / ".settings"}', '--LabApp.news_url=None']
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'JUPYTER_CONFIG_DIR': str(folder / '.config')}
    log = (folder / 'lab.log').open('w')
    server = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=ROOT)
    until = time.time() + 120
    while time.time() < until and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(('127.0.0.1', port)) == 0:
                break
        time.sleep(0.3)
    yield f'http://127.0.0.1:{port}'
    server.terminate()
    server.wait(30)


@pytest.fixture
def page(lab, browser):
    """A page of the browser; afterwards it and all kernels are gone."""
    page = browser.new_page(viewport={'width': 1300, 'height': 1000})
    yield page
    page.close()
    for kernel in _asked(f'{lab}/api/kernels', 'GET'):
        _asked(f'{lab}/api/kernels/{kernel["id"]}', 'DELETE')


def _asked(url: str, method: str):
    request = urllib.request.Request(url, method=method, headers={'Authorization': 'token secret'})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return json.loads(answer.read() or 'null')


def run_all(page, address: str) -> None:
    """Opens a notebook and runs all of its cells."""
    from playwright.sync_api import TimeoutError as Late

    page.goto(address)
    page.wait_for_selector('.jp-Notebook .jp-CodeCell', timeout=60_000)
    asks = page.locator(
        '.jp-Dialog .jp-mod-accept'
    )  # where the page is ready before the list of kernels
    ready = page.locator('.jp-Notebook-ExecutionIndicator[data-status=idle]')
    for _ in range(120):
        if asks.count():
            asks.click()
        named = page.locator('.jp-Toolbar-kernelName').all_inner_texts()
        if ready.count() and any('Python 3' in text for text in named):
            break
        page.wait_for_timeout(500)
    prompts = "[...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')]"
    for _ in range(5):  # a page that is still settling down may lose the click
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_text('Run All Cells', exact=True).click()
        with contextlib.suppress(Late):
            begun = f'{prompts}.some((p) => /\\[[\\d*]+\\]/.test(p.innerText))'
            page.wait_for_function(begun, timeout=15_000)
            break
    ended = f'{prompts}.every((p) => /\\[\\d+\\]/.test(p.innerText))'
    page.wait_for_function(ended, timeout=240_000)


def images(page) -> list[str]:
    return page.eval_on_selector_all(
        '.jp-OutputArea-output img', 'elements => elements.map((i) => i.src)'
    )


@pytest.mark.parametrize('name', NAMES)
def test_in_jupyterlab_all_cells_run_and_controls_move_the_figure(lab, page, name):
    run_all(page, f'{lab}/lab/tree/{name}.ipynb?reset&token=secret')
    page.wait_for_timeout(1000)
    failed = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    assert failed.count() == 0, failed.first.inner_text()
    shown = images(page)
    if name != '00_environment':
        assert shown, name
    if name in TOUCHED:
        slider = page.locator('.noUi-handle').first
        slider.scroll_into_view_if_needed()
        slider.focus()
        page.keyboard.press(TOUCHED[name])
        page.wait_for_function(
            "before => [...document.querySelectorAll('.jp-OutputArea-output img')]"
            '.some((image, k) => image.src !== before[k])',
            arg=shown,
            timeout=60_000,
        )
        moved = [a != b for a, b in zip(shown, images(page), strict=True)]
        assert moved.count(True) == 1
    whole = "document.querySelector('.jp-WindowedPanel-outer').scrollHeight"
    page.set_viewport_size({'width': 1300, 'height': page.evaluate(whole) + 150})
    page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
    page.wait_for_timeout(500)
    page.screenshot(path=SHOTS / f'lab_{name}.png')
