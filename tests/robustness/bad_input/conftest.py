"""The place of a bad input."""

from contextlib import ExitStack

import pytest


@pytest.fixture
def place(tmp_path, tiny_coco, monkeypatch):
    from helpers.place import Place

    monkeypatch.setenv('MTPD_CACHE', str(tmp_path / 'cache'))
    with ExitStack() as after:
        yield Place(tmp_path, tiny_coco(tmp_path / 'coco'), monkeypatch, after)
