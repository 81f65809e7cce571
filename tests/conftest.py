"""What all tests share: few threads, the optional data beside the checkout, `slow` and `gpu` tests."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

pytest.register_assert_rewrite('helpers')

os.environ.setdefault('OMP_NUM_THREADS', '1')  # read by torch when it is imported
os.environ.setdefault('MPLBACKEND', 'agg')

from mtpd.runtime import compat  # noqa: E402, F401  (before a test imports mmcv)

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # as in a shell's background, where Ctrl-C is not for us
    signal.signal(signal.SIGINT, signal.default_int_handler)

LEFT_OUT = pytest.StashKey[int]()
SHARED_DATA = Path(__file__).parents[1].parent / 'shared' / 'data'


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--all',
        action='store_true',
        help='also run the tests marked long, slow or browser: make test-all',
    )
    parser.addoption(
        '--kills', type=int, default=20, help='how often tests/robustness/faults kills a run'
    )
    parser.addoption('--kill-seed', type=int, default=0, help='of its moments')
    parser.addoption(
        '--invariance-files',
        type=int,
        default=50,
        help='how many random annotation files tests/data/test_invariance.py tries',
    )
    parser.addoption(
        '--screenshot', help='where tests/repository/test_browser.py puts one of a report'
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption('--all'):
        longer = [item for item in items if item.keywords.keys() & {'long', 'slow', 'browser'}]
        config.hook.pytest_deselected(items=longer)
        items[:] = [item for item in items if item not in set(longer)]
        config.stash[LEFT_OUT] = len(longer)
        if hasattr(config, 'workeroutput'):  # a process of xdist
            config.workeroutput['left_out'] = len(longer)
    gpu = None
    for item in items:
        if 'gpu' in item.keywords:
            gpu = _gpu() if gpu is None else gpu
            if not gpu:
                item.add_marker(pytest.mark.skip(reason='needs a CUDA GPU that torch can use'))


def pytest_testnodedown(node, error) -> None:
    node.config.stash[LEFT_OUT] = getattr(node, 'workeroutput', {}).get('left_out', 0)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session):
    """The last line says how many tests were left out."""
    result = yield
    reporter = session.config.pluginmanager.get_plugin('terminalreporter')
    left_out = session.config.stash.get(LEFT_OUT, 0)
    if reporter and left_out and not hasattr(session.config, 'workeroutput'):
        reporter.write_line(f'{left_out} tests that take longer were left out: make test-all')
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """A test is on the CPU, as where there is no GPU, unless it is marked `gpu`: it compares exactly what a GPU rounds
    anew each time. So are the processes that it starts, and fixtures that it is the first to use."""
    with pytest.MonkeyPatch.context() as patch:
        if 'gpu' not in item.keywords:
            _hide_gpus(patch)
        return (yield)


def _hide_gpus(patch: pytest.MonkeyPatch) -> None:
    patch.setenv(
        'CUDA_VISIBLE_DEVICES', ''
    )  # for processes; CUDA read it here when it was first used
    if torch := sys.modules.get('torch'):
        patch.setattr(torch.cuda, 'is_available', lambda: False)
        patch.setattr(torch.cuda, 'device_count', lambda: 0)


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """The folder with the optional real data sets, bccd and coco_tiny."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f'no real data in {SHARED_DATA}')
    return SHARED_DATA


@pytest.fixture(scope='session')
def tiny_coco():
    """A function that writes 4 + 4 images, 64 pixels high, with two boxes each as a COCO-format folder."""
    import json

    import numpy as np
    from PIL import Image

    def write(root: Path, classes: tuple[str, ...] = ('cat', 'dog'), width: int = 64) -> Path:
        rng = np.random.default_rng(0)
        for split in ('train', 'val'):
            (root / split).mkdir(parents=True)
            (root / 'annotations').mkdir(exist_ok=True)
            images, annotations = [], []
            for i in range(4):
                name = f'{i:06d}.png'
                pixels = rng.integers(0, 256, (64, width, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name)
                images.append({'id': i, 'file_name': name, 'width': width, 'height': 64})
                if i == 3:
                    continue  # an image without objects, as COCO has them
                for k, box in enumerate(([4, 6, 20, 30], [30, 10, 28, 40])[: 1 + (i > 0)]):
                    annotations.append(
                        {
                            'id': 10 * i + k + 1,
                            'image_id': i,
                            'category_id': 5 + (k % len(classes)),
                            'bbox': box,
                            'area': box[2] * box[3],
                            'iscrowd': 0,
                        }
                    )
            categories = [{'id': 5 + k, 'name': name} for k, name in enumerate(classes)]
            table = {'images': images, 'annotations': annotations, 'categories': categories}
            (root / 'annotations' / f'{split}.json').write_text(json.dumps(table))
        return root

    return write


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """A function that writes another package of a name and version, first on this process's path; returns the folder
    that it lies in."""

    def write(name: str, version: str) -> Path:
        folder = tmp_path / 'other' / name
        folder.mkdir(parents=True)
        (folder / '__init__.py').write_text('from .version import __version__\n')
        (folder / 'version.py').write_text(f"__version__ = '{version}'\n")
        for module in [word for word in sys.modules if word.partition('.')[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.syspath_prepend(folder.parent)
        return folder.parent

    return write


@pytest.fixture
def site(monkeypatch):
    """A web server on localhost (tests/helpers/web.py); no proxy comes between."""
    from helpers.web import serve

    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.setenv(name, '127.0.0.1')
    with serve() as running:
        yield running


@pytest.fixture(scope='module')
def browser():
    """Chromium (tests/helpers/browsing.py); skips where there is none."""
    from helpers.browsing import launched

    with launched() as running:
        yield running
