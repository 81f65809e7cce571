"""Wheels of a release: taken where one fits and is the one that is meant, else the ops are built."""

from __future__ import annotations

import json
import re

import pytest

from helpers.toolchain import CPU, make_wheel
from mtpd.errors import MtpdError
from mtpd.install import ops, published
from mtpd.install.build import Target
from mtpd.utils.files import file_sha256

KEY = ops.wheel_key(CPU, Target(''))


@pytest.fixture
def release(bench, site, tmp_path, monkeypatch):
    """Publishes a wheel for this Python and a torch on the CPU; returns it, and the index to change."""
    monkeypatch.setattr('mtpd.utils.download.RETRY_WAITS', ())
    wheel = make_wheel(tmp_path / 'published', 'mmcv/_ext.so', 'mmcv/published.py')
    site.files[f'/v9/{KEY}.whl'] = wheel.read_bytes()
    entry = {'release': 'v9', 'sha256': file_sha256(wheel)}

    def put(**changes):
        index = {'url': f'{site.url}/{{release}}/{{key}}.whl', 'wheels': {KEY: entry | changes}}
        published.INDEX.write_text(json.dumps(index))

    put()
    return put


def install(rebuild: bool = False) -> tuple[str, str]:
    shown: list[str] = []
    return ops.install_wheel(CPU, Target(''), rebuild, shown.append), '\n'.join(shown)


def test_the_wheel_of_a_release_is_installed_and_cached(release, bench, site):
    assert install() == ('fetched', 'Fetching the wheel of v9 for this torch and Python ...')
    assert bench[0].name == published.wheel_name() and bench[0].parent.name == KEY
    assert bench[0].read_bytes() == site.files[f'/v9/{KEY}.whl']
    assert install()[0] == 'installed'
    assert len(site.asked) == 1


def test_another_file_is_not_installed(release, bench, site):
    site.files[f'/v9/{KEY}.whl'] += b'more'
    action, shown = install()
    assert action == 'built' and 'is not the expected file' in shown
    assert len(bench) == 1 and bench[0].read_bytes() != site.files[f'/v9/{KEY}.whl']


@pytest.mark.parametrize('changes', [{'sha256': ''}, {'sha256': 'abc'}])
def test_without_a_whole_checksum_nothing_is_fetched(release, site, changes):
    release(**changes)
    assert install()[0] == 'built' and not site.asked


def test_where_there_is_none_or_no_network_it_is_built(release, site):
    release(release='v10')
    assert install()[0] == 'built' and len(site.asked) == 1
    published.INDEX.unlink()
    assert install(rebuild=True)[0] == 'built' and len(site.asked) == 1


def test_a_plain_http_address_is_not_asked(release, bench, site):
    index = json.loads(published.INDEX.read_text())
    published.INDEX.write_text(json.dumps(index | {'url': 'http://example.org/{key}.whl'}))
    action, shown = install()
    assert action == 'built' and 'not an https address' in shown


def test_a_wheel_that_does_not_work_here_is_built_anew(release, bench, monkeypatch):
    results = iter([MtpdError('needs a newer glibc'), None])

    def self_test(full: bool = True):
        if error := next(results):
            raise error
        return {'cuda': None}

    monkeypatch.setattr(ops, 'self_test', self_test)
    action, shown = install()
    assert action == 'built' and 'needs a newer glibc' in shown


def test_what_a_release_attaches_is_what_is_looked_for(bench, tmp_path):
    install()
    entries = published.collect(tmp_path / 'dist')
    assert entries == {KEY: {'sha256': file_sha256(tmp_path / 'dist' / f'{KEY}.whl')}}


def test_the_committed_index_is_well_formed():
    index = json.loads(published.INDEX.read_text())
    assert set(index) == {'url', 'wheels'}
    assert not index['wheels'] or index['url'].startswith('https://')
    for key, entry in index['wheels'].items():
        assert re.match(r'mmcv[\d.]+-torch', key) and set(entry) == {'release', 'sha256'}
        assert re.fullmatch('[0-9a-f]{64}', entry['sha256'])
