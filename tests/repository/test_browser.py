"""Markup in data, in a real browser: it is shown as text, runs nothing and asks nobody for anything."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import json

import nbformat
import pytest
from click.testing import CliRunner
from nbformat import v4

from helpers.browsing import Seen
from helpers.fake_run import MINI, PNG, make_run, put
from helpers.tiny_sweep import SMALL
from mtpd import load_recipe
from mtpd.cli.main import main
from mtpd.report.run import make_report
from mtpd.report.tables import markdown_table, show_sentences
from mtpd.sweep.folder import open_sweep
from mtpd.sweep.plan import CONTROL
from mtpd.sweep.report import make_sweep_report

pytestmark = pytest.mark.browser

EVIL = [
    '<script>window.hit = 1; alert(1)</script>',
    '<img src=x onerror="window.hit = 2">',
    '"><svg onload="window.hit = 3">',
    "'><svg/onload='window.hit = 4'>",
    '[a](javascript:window.hit=5)',
    '<a href="javascript:window.hit=6">b</a>',
    '![a](https://example.org/7.png)',
    '</script></style></title></textarea><script>window.hit = 8</script>',
    '<iframe src="https://example.org/9"></iframe>',
    '<meta http-equiv="refresh" content="0;url=https://example.org/10">',
    '<base href="https://example.org/"><link rel="stylesheet" href="11.css">',
    '{{ 12 }} ${window.hit = 12} <!-- ',
    '$\\href{javascript:window.hit=13}{x}$',
]
ALL = ' '.join(EVIL)


def outputs(*data: dict) -> list:
    return [v4.new_code_cell('1', outputs=[v4.new_output('display_data', one)]) for one in data]


def shown(path) -> None:
    """A notebook with what the kit's own cells show of data, and what they print."""
    rows = markdown_table([{'class': evil, evil: 1.5} for evil in EVIL], {'class': ALL})
    image = v4.new_output('display_data', {'image/png': PNG})
    image.metadata = {'image/png': {'alt': ALL, 'width': '1" onload="window.hit = 20'}}
    failed = v4.new_output('error', ename=EVIL[0], evalue=ALL, traceback=[f'\x1b[31m{ALL}\x1b[0m'])
    cells = [
        v4.new_markdown_cell('# Shown'),
        v4.new_code_cell(f'name = {ALL!r}', metadata={'tags': ['injected-parameters']}),
        *outputs(
            {'text/markdown': rows.data},
            {'text/markdown': show_sentences(*EVIL).data},
            {'text/plain': ALL},
        ),
        v4.new_code_cell('1', outputs=[image]),
        v4.new_code_cell('1', outputs=[v4.new_output('stream', name='stdout', text=ALL)]),
        v4.new_code_cell('1', outputs=[v4.new_output('stream', name='stderr', text=ALL * 30)]),
        v4.new_code_cell('1', outputs=[failed]),
    ]
    nbformat.write(v4.new_notebook(cells=cells), path)


def hostile(path) -> None:
    """A notebook that means it: markup where it is allowed."""
    cells = [v4.new_markdown_cell(evil) for evil in (f'# {EVIL[7]}', *EVIL)]
    cells += outputs(
        *({'text/html': evil} for evil in EVIL),
        {
            'text/html': '<form action="https://example.org"><button autofocus onfocus="window.hit = 21">'
        },
        {
            'text/html': '<iframe srcdoc="&lt;meta http-equiv=refresh content=&quot;0;url=https://example.org/24&quot;>">'
        },
        {'text/html': '<LINK rel="preconnect" href="https://example.org">'},
        {'application/javascript': 'window.hit = 22'},
        {
            'image/svg+xml': '<svg xmlns="http://www.w3.org/2000/svg"><script>window.hit = 23</script></svg>'
        },
        {'text/latex': EVIL[-1]},
        {'application/vnd.jupyter.widget-view+json': {'model_id': '1'}, 'text/plain': EVIL[0]},
    )
    nbformat.write(v4.new_notebook(cells=cells), path)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run that failed, with markup in labels, classes, files, errors, the command, the environment and the recipe."""
    run = make_run(tmp_path_factory.mktemp('runs') / 'mini' / '0', done=False)
    info = json.loads((run / 'run.json').read_text())
    items = [*info['arms'], *info['detectors']]
    for item, evil in zip(items, [EVIL[-1], *EVIL], strict=False):
        item['label'] = evil
    put(run / 'run.json', info | {'title': ALL, 'command': ALL, 'classes': EVIL, 'name': EVIL[2]})
    put(run / 'environment.json', {evil: evil for evil in EVIL} | {'device': EVIL[1]})
    (run / 'recipe.py').write_text(f'title = {ALL!r}\n')
    for path in run.rglob('metrics.json'):
        numbers = json.loads(path.read_text())
        put(path, numbers | {'per_class': {'bbox': dict.fromkeys(EVIL, 0.1)}})
    status = json.loads((run / 'status.json').read_text())
    for step in status['steps']:
        step['reason'] = ALL if step['state'] == 'failed' else None
    put(run / 'status.json', status)
    shown(run / 'notebooks' / f'98_{EVIL[1]}.ipynb')
    hostile(run / 'notebooks' / '99_hostile.ipynb')
    return make_report(run)


def test_the_markup_works(tmp_path, browser):
    """Otherwise the tests below would prove nothing."""
    for k, part in (
        (0, 'hit'),
        (1, 'hit'),
        (2, 'hit'),
        (5, 'hit'),
        (6, 'asked'),
        (8, 'asked'),
        (9, 'asked'),
    ):
        path = tmp_path / f'{k}.html'
        path.write_text(EVIL[k] if k != 6 else '<img src="https://example.org/7.png">')
        page = Seen(browser, path)
        with pytest.raises(AssertionError):
            page.did_nothing()
        assert page.hit is not None if part == 'hit' else len(page.asked) > 1


def test_a_runs_report(run, browser, request):
    page = Seen(browser, run, request.config.getoption('--screenshot'))
    page.is_text(*EVIL, f'title = {ALL!r}')


def test_its_notebooks(run, browser):
    pages = sorted(path for path in run.parent.iterdir() if path.name != 'index.html')
    assert len(pages) > 5
    for path in pages:
        page = Seen(browser, path)
        if path.name == '99_hostile.html':  # the browser tells what the page's policy forbids
            page.did_nothing()
        else:
            page.is_text(*(EVIL if path.name.startswith('98_') else ()))


def test_a_sweeps_report(tmp_path, browser):
    labels = {'title': ALL, 'student.label': EVIL[0]}
    labels |= {'teachers.r101.label': EVIL[1], 'teachers.rx101.label': EVIL[2]}
    orders = [CONTROL, ('rx101',), ('r101', 'rx101')]
    sweep = open_sweep(load_recipe(MINI, labels), tmp_path / 'sweep', orders, ['mgd'], [0, 1])
    for name in ('r101', 'rx101'):
        put(sweep.path / f'shared/0/detectors/{name}/metrics.json', {'bbox_mAP': 0.4})
    for k, job in enumerate(sweep.jobs.values()):
        if job.kind in ('order', 'control'):
            for folder in job.folders:
                put(sweep.path / folder / 'metrics.json', {'bbox_mAP': 0.1 + k / 100})
                put(sweep.path / folder / 'stage.json', {'updates': job.updates, 'seconds': 1.0})
    put(sweep.path / 'jobs/mgd-1-r101-rx101/status.json', {'state': 'failed', 'reason': ALL})
    page = Seen(browser, make_sweep_report(sweep.path))
    page.is_text(ALL, EVIL[1], EVIL[2])


@pytest.mark.slow
def test_a_run_on_data_with_markup_in_its_names(tmp_path, tiny_coco, browser):
    """From the annotation file's class names and image names to all pages of the report."""
    classes = (EVIL[0], ''.join(EVIL[k] for k in (2, 6, 9, -1)))
    root = tiny_coco(tmp_path / 'coco', classes=classes)
    for split in ('train', 'val'):
        path = root / f'annotations/{split}.json'
        content = json.loads(path.read_text())
        for image in content['images']:
            name = f'{EVIL[1]}{image["id"]}.png'
            (root / split / image['file_name']).rename(root / split / name)
            image['file_name'] = name
        path.write_text(json.dumps(content))
    settings = SMALL | {'data.root': root, 'arms.direct.label': json.dumps(EVIL[3])}
    options = ' '.join(f'{key}={value}' for key, value in settings.items())
    command = ['run', MINI, '--work-dir', str(tmp_path / 'run'), '--cfg-options', options]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    pages = {path.name: Seen(browser, path) for path in (tmp_path / 'run/report').iterdir()}
    assert len(pages) == 15
    for page in pages.values():
        page.is_text()
    for name in ('01_data.html', '05_evaluate.html'):
        pages[name].is_text(*classes)
    pages['index.html'].is_text(EVIL[3])
