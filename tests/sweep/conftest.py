"""The demo's recipe, and a sweep of it in which nothing has run."""

import pytest

from helpers.tiny_sweep import MINI
from mtpd import load_recipe
from mtpd.sweep.folder import open_sweep
from mtpd.sweep.plan import CONTROL


@pytest.fixture(scope='module')
def recipe():
    return load_recipe(MINI)


@pytest.fixture
def sweep(recipe, tmp_path):
    orders = [CONTROL, ('r101', 'rx101'), ('r101', 'r101')]
    return open_sweep(recipe, tmp_path / 'sweep', orders, ['mgd', 'cwd'], [0])
