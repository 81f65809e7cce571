"""Where the cache and recipes' files are."""

from __future__ import annotations

from mtpd.utils import paths


def test_cache_lies_where_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('MTPD_CACHE', raising=False)
    assert paths.cache_dir() == tmp_path / 'mtpd'
    monkeypatch.setenv('MTPD_CACHE', str(tmp_path / 'mine'))
    assert paths.cache_dir() == tmp_path / 'mine'
