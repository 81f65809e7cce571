"""What all tests share: few threads, the optional data beside the checkout, `slow` and `gpu` tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '2')  # read by torch when it is imported
os.environ.setdefault('MPLBACKEND', 'agg')

SHARED_DATA = Path(__file__).parents[1].parent / 'shared' / 'data'


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--slow', action='store_true', help='also run the tests that take minutes')


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu = None
    for item in items:
        if 'slow' in item.keywords and not config.getoption('--slow'):
            item.add_marker(pytest.mark.skip(reason='takes minutes: pytest --slow'))
        if 'gpu' in item.keywords:
            gpu = _gpu() if gpu is None else gpu
            if not gpu:
                item.add_marker(pytest.mark.skip(reason='needs a CUDA GPU that torch can use'))


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """The folder with the optional real data sets, bccd and coco_tiny."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f'no real data in {SHARED_DATA}')
    return SHARED_DATA
