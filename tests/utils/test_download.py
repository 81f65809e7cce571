"""Downloads from a server on localhost that breaks off, lies, and serves the wrong thing; zip archives."""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
import zipfile

import numpy as np
import pytest

from mtpd.errors import MtpdError
from mtpd.utils import download

PIECE = download.CHUNK_SIZE
CONTENT = np.random.default_rng(0).bytes(4 * PIECE + 123)
SUM = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download, 'RETRY_WAITS', (0, 0, 0))


@pytest.fixture
def target(site, tmp_path):
    site.files['/model.pth'] = CONTENT
    return tmp_path / 'cache' / 'model.pth'


def fetch(site, target, **more):
    return download.fetch_file(f'{site.url}/model.pth', target, **more)


def refusal(site, target, **more) -> str:
    with pytest.raises(MtpdError) as error:
        fetch(site, target, **more)
    return str(error.value)


def file_names(target) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path.suffix != '.lock')


@pytest.mark.parametrize('stated', [None, SUM, SUM[:8]])
def test_a_good_server_is_asked_once(site, target, stated):
    assert fetch(site, target, sha256=stated, size=len(CONTENT)) == target
    assert target.read_bytes() == CONTENT and file_names(target) == ['model.pth']
    fetch(site, target, sha256=stated, size=len(CONTENT))
    assert len(site.asked) == 1


def test_a_broken_connection_is_gone_on_with_and_nothing_is_fetched_twice(site, target):
    site.faults += [{'cut': PIECE}, {'cut': 2 * PIECE}]
    fetch(site, target, sha256=SUM)
    assert target.read_bytes() == CONTENT
    assert [request['Range'] for request in site.asked] == [
        None,
        f'bytes={PIECE}-',
        f'bytes={3 * PIECE}-',
    ]
    assert site.asked[1]['If-Range'].startswith('"')
    assert site.sent == [PIECE, 2 * PIECE, PIECE + 123]


def test_it_goes_on_as_long_as_there_is_progress(site, target):
    site.faults += [{'cut': PIECE}, {'cut': 0}, {'cut': 0}, {'cut': 0}] * 4
    fetch(site, target, sha256=SUM)
    assert target.read_bytes() == CONTENT


def test_a_later_call_goes_on_from_the_part(site, target):
    site.faults += [{'cut': 2 * PIECE}] + [{'cut': 0}] * 4
    assert 'The part that came is kept in' in refusal(site, target)
    assert file_names(target) == ['model.pth.part', 'model.pth.part.json']
    fetch(site, target, sha256=SUM)
    assert site.sent[-1] == len(CONTENT) - 2 * PIECE and target.read_bytes() == CONTENT


def test_the_part_of_another_address_is_not_gone_on_with(site, target):
    site.faults += [{'cut': PIECE}] + [{'cut': 0}] * 4
    refusal(site, target)
    site.files['/mirror/model.pth'] = CONTENT
    download.fetch_file(f'{site.url}/mirror/model.pth', target, SUM)
    assert site.asked[-1]['Range'] is None and target.read_bytes() == CONTENT


def test_a_server_without_ranges_begins_anew(site, target):
    site.faults += [{'cut': 2 * PIECE}, {'ranges': False}]
    fetch(site, target, sha256=SUM)
    assert site.asked[1]['Range'] and site.sent == [2 * PIECE, len(CONTENT)]
    assert target.read_bytes() == CONTENT


def test_without_a_validator_nothing_is_gone_on_with(site, target):
    site.faults += [{'cut': PIECE, 'headers': {'ETag': None}}]
    fetch(site, target, sha256=SUM)
    assert site.asked[1]['Range'] is None and target.read_bytes() == CONTENT


def test_a_weak_etag_gives_way_to_the_date(site, target):
    date = 'Fri, 02 Oct 2026 10:00:00 GMT'
    site.faults += [{'cut': PIECE, 'headers': {'ETag': 'W/"1"', 'Last-Modified': date}}]
    fetch(site, target, sha256=SUM)
    assert site.asked[1]['If-Range'] == date


@pytest.mark.parametrize('obeys', [True, False], ids=['If-Range obeyed', 'If-Range ignored'])
def test_a_file_that_changes_between_attempts_is_begun_anew(site, target, obeys):
    new = CONTENT[::-1]
    lie = {} if obeys else {'status': 206, 'ranges': False, 'body': new[PIECE:]}
    if lie:
        span = f'bytes {PIECE}-{len(new) - 1}/{len(new)}'
        lie['headers'] = {'Content-Range': span, 'ETag': '"new"'}
    site.faults += [{'cut': PIECE}, lie | {'run': lambda: site.files.update({'/model.pth': new})}]
    fetch(site, target)
    assert target.read_bytes() == new


def test_a_file_that_became_shorter_is_begun_anew(site, target):
    site.faults += [{'cut': 2 * PIECE}, {'status': 416, 'body': b'', 'ranges': False}]
    fetch(site, target, sha256=SUM)
    assert [bool(request['Range']) for request in site.asked] == [False, True, False]


@pytest.mark.parametrize('status', [429, 503])
def test_a_passing_error_is_tried_again(site, target, status):
    site.faults += [{'status': status}] * 3
    fetch(site, target, sha256=SUM)
    assert len(site.asked) == 4


# What is refused


@pytest.fixture
def older_file(target):
    """An older file in the target's place, which must stay."""
    target.parent.mkdir()
    target.write_bytes(b'older')
    yield target
    assert target.read_bytes() == b'older'


def test_more_announced_than_sent(site, older_file):
    more = {'length': len(CONTENT) + 9, 'headers': {'Accept-Ranges': 'none'}, 'ranges': False}
    site.faults += [more] * 9
    text = refusal(site, older_file, sha256=SUM)
    assert 'cannot be fetched' in text and str(older_file) in text
    assert len(site.asked) == 5  # one with progress, and RETRY_WAITS and one more without


def test_less_announced_than_there_is(site, older_file):
    site.faults += [{'length': 1000}]
    assert f'1000 bytes, and {len(CONTENT)} are expected' in refusal(
        site, older_file, size=len(CONTENT)
    )
    site.faults += [{'length': 1000}]
    assert f'SHA-256 begins with {hashlib.sha256(CONTENT[:1000]).hexdigest()[:8]}' in refusal(
        site, older_file, sha256=SUM[:8]
    )


def test_another_file(site, older_file):
    site.faults += [{'body': b'another model'}]
    text = refusal(site, older_file, sha256=SUM[:8])
    assert 'not the expected file' in text and SUM[:8] in text and 'try again' in text
    assert file_names(older_file) == ['model.pth']
    site.faults += [{'body': b'another model', 'headers': {'Content-Length': None}}]
    assert f'13 bytes came, {len(CONTENT)} are expected' in refusal(
        site, older_file, size=len(CONTENT)
    )


@pytest.mark.parametrize('kind', ['text/html; charset=utf-8', 'application/octet-stream'])
def test_a_web_page_is_no_file_and_the_part_stays(site, older_file, kind):
    site.faults += [{'cut': PIECE}] + [{'cut': 0}] * 4
    refusal(site, older_file, sha256=SUM)
    page = b'\n<!DOCTYPE html><html>Please log in</html>'
    site.faults += [{'body': page, 'headers': {'Content-Type': kind}, 'ranges': False}]
    assert 'is a web page' in refusal(site, older_file, sha256=SUM)
    assert older_file.with_name('model.pth.part').stat().st_size == PIECE


@pytest.mark.parametrize(('status', 'reason'), [(404, 'Not Found'), (403, 'Forbidden')])
def test_an_error_that_stays_is_not_tried_again(site, older_file, status, reason):
    site.faults += [{'status': status}]
    assert f'answers {status} {reason}' in refusal(site, older_file, sha256=SUM)
    assert len(site.asked) == 1


def test_no_room_is_seen_before_anything_is_written(site, older_file, monkeypatch):
    monkeypatch.setattr(download, 'MAX_SIZE', 10**19)
    site.faults += [{'length': 10**18}]
    text = refusal(site, older_file, sha256=SUM)
    assert 'takes 1000000000.0 GB' in text and 'free some' in text
    assert file_names(older_file) == ['model.pth']


def test_a_disk_that_fills_up(site, older_file, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(download, '_append_chunks', full)
    assert 'No space left on device' in refusal(site, older_file, sha256=SUM)


@pytest.mark.parametrize('announced', [True, False])
def test_more_than_is_expected_at_most_is_not_taken(site, older_file, monkeypatch, announced):
    monkeypatch.setattr(download, 'MAX_SIZE', 2 * PIECE)
    site.faults += [{} if announced else {'headers': {'Content-Length': None}}]
    text = refusal(site, older_file, sha256=SUM)
    assert 'larger than the limit of 3.28e-05 GB' in text and str(older_file) in text
    assert file_names(older_file) == ['model.pth']


def test_more_than_the_stated_size_is_not_taken(site, older_file):
    site.faults += [{'headers': {'Content-Length': None}}]
    assert 'is larger than' in refusal(site, older_file, size=PIECE)
    assert file_names(older_file) == ['model.pth'] and len(site.asked) == 1


def test_redirects_are_followed(site, target):
    site.faults += [{'status': 302, 'body': b'', 'headers': {'Location': '/model.pth'}}]
    fetch(site, target, sha256=SUM)
    assert target.read_bytes() == CONTENT and len(site.asked) == 2


@pytest.mark.parametrize('place', ['http://example.org/x', 'ftp://example.org/x', 'file:///x'])
def test_a_redirect_away_from_https_is_refused(site, older_file, place):
    site.faults += [{'status': 302, 'body': b'', 'headers': {'Location': place}}]
    text = refusal(site, older_file, sha256=SUM)
    assert f'/model.pth leads to {place}, which is not an https address' in text
    assert file_names(older_file) == ['model.pth'] and len(site.asked) == 1


def test_a_circle_of_redirects_ends(site, older_file):
    site.faults += [{'status': 302, 'body': b'', 'headers': {'Location': '/model.pth'}}] * 99
    assert 'redirects too often' in refusal(site, older_file, sha256=SUM)
    assert len(site.asked) == download.MAX_REDIRECTS


@pytest.mark.parametrize(
    'url',
    [
        'http://example.org/x',
        'http://127.0.0.1.example.org/x',
        'ftp://127.0.0.1/x',
        'model.pth',
        'http://',
        'http://[x/y',
    ],
)
def test_what_is_no_address(url, tmp_path):
    with pytest.raises(MtpdError, match='not an https address'):
        download.fetch_file(url, tmp_path / 'cache' / 'x')
    assert not (tmp_path / 'cache').exists()


def test_no_server(tmp_path):
    with pytest.raises(MtpdError, match='4 attempts in a row') as error:
        download.fetch_file('http://127.0.0.1:9/x', tmp_path / 'x')
    text = str(error.value)
    assert 'Check the network' in text and 'Connection refused' in text and len(text) < 400
    assert '.part' not in text  # nothing came


def test_a_folder_that_cannot_be_written(site, target, tmp_path):
    (tmp_path / 'cache').write_text('a file')
    assert 'cannot be written' in refusal(site, target)


# Several processes, and one that is stopped


def _in_another_process(url, target):
    sys.exit(download.fetch_file(url, target, SUM) != target)


def test_two_processes_fetch_once(site, target):
    site.faults += [{'run': lambda: time.sleep(0.2)}]
    fork = multiprocessing.get_context('fork')
    url = f'{site.url}/model.pth'
    both = [fork.Process(target=_in_another_process, args=(url, target)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert site.sent == [len(CONTENT)] and target.read_bytes() == CONTENT


def test_an_interrupted_fetch_leaves_its_part_and_the_old_file(site, older_file):
    def stop(*_):
        os.kill(os.getpid(), signal.SIGINT)

    site.faults += [{'cut': PIECE}, {'run': stop}]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background runs
    try:
        with pytest.raises(KeyboardInterrupt):
            fetch(site, older_file, sha256=SUM)
    finally:
        signal.signal(signal.SIGINT, before)
    assert older_file.with_name('model.pth.part').stat().st_size == PIECE
    assert json.loads(older_file.with_name('model.pth.part.json').read_text())['total'] == len(
        CONTENT
    )


# Zip archives


def archive(path, members: dict[str, bytes]):
    with zipfile.ZipFile(path, 'w') as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return path


def test_only_what_is_missing_is_unpacked(tmp_path):
    packed = archive(tmp_path / 'a.zip', {'a/1.jpg': b'one', 'a/2.jpg': b'two', 'b/3.jpg': b'3'})
    assert download.unpack_zip(packed, tmp_path, 'a/') == 2
    (tmp_path / 'a' / '1.jpg').write_bytes(b'cut')
    (tmp_path / 'a' / '2.jpg').write_bytes(b'tw')
    assert download.unpack_zip(packed, tmp_path, 'a/') == 1
    assert (tmp_path / 'a' / '2.jpg').read_bytes() == b'two'
    assert not (tmp_path / 'b').exists()


@pytest.mark.parametrize('name', ['../evil.jpg', 'a/../../evil.jpg', '/evil.jpg'])
def test_a_member_that_leads_outside_is_refused(tmp_path, name):
    packed = archive(tmp_path / 'a.zip', {'a/1.jpg': b'one', name: b'evil'})
    with pytest.raises(MtpdError, match='would lie outside'):
        download.unpack_zip(packed, tmp_path / 'data')
    assert not list(tmp_path.rglob('*.jpg'))


@pytest.mark.parametrize('mode', [0o120777, 0o020666, 0o060666, 0o010644, 0o140777])
def test_a_link_a_device_a_pipe_and_a_socket_are_refused(tmp_path, mode):
    link = zipfile.ZipInfo('a/link')
    link.external_attr = mode << 16
    with pytest.raises(MtpdError, match='is a link or a device'):
        download.unpack_zip(
            archive(tmp_path / 'a.zip', {'a/1.jpg': b'one', link: b'/etc'}), tmp_path
        )
    assert [path.name for path in tmp_path.iterdir()] == ['a.zip']


def test_damaged_archives(tmp_path):
    packed = archive(tmp_path / 'a.zip', {'a/1.jpg': b'the first image'})
    packed.write_bytes(packed.read_bytes().replace(b'first', b'worst', 1))
    with pytest.raises(MtpdError, match=r'damaged .*CRC'):
        download.unpack_zip(packed, tmp_path)
    assert not (tmp_path / 'a' / '1.jpg').exists()
    packed.write_bytes(b'no zip')
    with pytest.raises(MtpdError, match='not a zip file'):
        download.unpack_zip(packed, tmp_path)
