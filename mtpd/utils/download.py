"""Files from the web, whole and checked; a download that broke off is resumed. Zip archives, unpacked safely.

requests and urllib3 repeat a request, but neither resumes a body that broke off: `request_rest` does.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import stat
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urljoin, urlsplit

import requests
from filelock import FileLock
from requests import RequestException, Response
from tqdm import tqdm

from .. import __version__
from ..errors import MtpdError
from .files import check_disk_space, file_sha256, read_json_if_valid, write_json

RETRY_WAITS = (1, 4, 10)  # seconds before each attempt that follows one without progress
MAX_SIZE = 20 * 10**9  # bytes of a file of unknown size; the largest detectors have a tenth of it
TIMEOUT = (15, 60)  # seconds to connect, and between two chunks of a response
CHUNK_SIZE = 1 << 14  # bytes; the last incomplete chunk is lost where a connection breaks off
MAX_REDIRECTS = 10
LOCAL_HOSTS = ('localhost', '127.0.0.1', '::1')  # this machine, which needs no https
RETRIED_STATUSES = (408, 425, 429, 500, 502, 503, 504)  # another attempt may succeed
HEADERS = {'User-Agent': f'mtpd/{__version__}', 'Accept-Encoding': 'identity'}
DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def fetch_file(
    url: str, target: str | Path, sha256: str | None = None, size: int | None = None
) -> Path:
    """Fetches a file unless it is complete; returns the target.

    The bytes go to ``<target>.part``, which an interrupted fetch leaves and the next one resumes. The complete and
    checked file gets the target's name. Processes that want the same file take turns. After an attempt without
    progress it waits as `RETRY_WAITS` says, and gives up after that many.

    Args:
        url: https, and so whatever it redirects to; proxies of the environment are used.
        target: the path to write; its folder is made.
        sha256: the file's SHA-256 in hexadecimal, or the start of it.
        size: the file's length in bytes.

    Raises:
        MtpdError: it can't be fetched, is another file, or can't be written. A file at `target` stays.
    """
    target = Path(target)
    if is_complete(target, sha256, size):
        return target
    refuse_unsafe_url(url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f'.{target.name}.lock')):
            if not is_complete(target, sha256, size):  # else another process was first
                part = PartialFile(url, target)
                _request_until_complete(part, size)
                _check_part(part, sha256, size)
                part.path.replace(target)
                part.remove()
    except OSError as error:
        raise MtpdError(
            f'{target} cannot be written ({error.strerror or error}): check permissions and free space, '
            'or choose another folder.'
        ) from error
    return target


def is_complete(path: Path, sha256: str | None = None, size: int | None = None) -> bool:
    """Whether the file exists and, as far as they are given, has this size and SHA-256 (or start of it)."""
    if not path.is_file() or size not in (None, path.stat().st_size):
        return False
    return sha256 is None or file_sha256(path).startswith(sha256)


class PartialFile:
    """``<target>.part``, the unfinished file, and a note of what it is part of.

    The note, ``<target>.part.json``, holds the URL, the whole file's length in bytes (`total`) and its version
    (`validator`: ETag or Last-Modified). Without the note the part is not resumed.
    """

    def __init__(self, url: str, target: Path):
        self.url = url
        self.target = target
        self.path = target.with_name(f'{target.name}.part')
        self.note_path = target.with_name(f'{target.name}.part.json')

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def note(self) -> dict:
        """The note; empty where the part can't be resumed."""
        note = read_json_if_valid(self.note_path, {})
        return note if self.size and note.get('url') == self.url else {}

    def begin(self, response: Response, total: int | None) -> None:
        """Removes the part, for a response that brings the file from its start, and notes the new one."""
        self.remove()
        validator = _validator(response)
        if validator and total:
            write_json(self.note_path, {'url': self.url, 'validator': validator, 'total': total})

    def remove(self) -> None:
        self.note_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def _request_until_complete(part: PartialFile, size: int | None) -> None:
    """Requests as long as that makes progress, and ``len(RETRY_WAITS)`` times more."""
    largest, failures = part.size, 0
    while True:
        try:
            return request_rest(part, size)
        except RequestException as error:
            cause = _root_cause(error)
            failures = 0 if part.size > largest else failures + 1
            largest = max(largest, part.size)
            if failures > len(RETRY_WAITS):
                hint = f' The part that came is kept in {part.path}.' if part.size else ''
                raise MtpdError(
                    f'{part.url} cannot be fetched: {failures} attempts in a row brought nothing new ({cause}). '
                    f'Check the network and its proxy, then repeat; or put the file at {part.target}.{hint}'
                ) from error
            wait = RETRY_WAITS[max(failures - 1, 0)] if RETRY_WAITS else 0
            print(f'{part.target.name}: {cause}; again in {wait:g} s', file=sys.stderr)
            time.sleep(wait)


def _root_cause(error: RequestException) -> str:
    """The text of the innermost of urllib3's errors, which wrap one another: "Failed to resolve 'host'"."""
    cause = error.args[0] if error.args else type(error).__name__
    cause = getattr(cause, 'reason', cause)
    text = str(cause).split(': ', 1)[-1] if isinstance(cause, Exception) else str(cause)
    return text if len(text) <= 120 else f'{text[:117]}...'


def _check_part(part: PartialFile, sha256: str | None, size: int | None) -> None:
    """Raises MtpdError, and removes the part, where it has another size or checksum."""
    if is_complete(part.path, sha256, size):
        return
    if size not in (None, part.size):
        difference = f'{part.size} bytes came, {size} are expected'
    else:
        start = file_sha256(part.path)[: len(sha256)]
        difference = f'its SHA-256 begins with {start}, {sha256} is expected'
    part.remove()
    raise MtpdError(
        f'{part.url} is not the expected file: {difference}. '
        'It was damaged on the way or replaced on the server: try again, or give another source.'
    )


# One request, for a file or for the rest of one.


class IncompleteDownload(RequestException):
    """A response ended early or is of no use; another request may succeed."""


def request_rest(part: PartialFile, size: int | None = None) -> None:
    """Completes the part by one request.

    Args:
        size: the file's length in bytes, where it is known; else no more than `MAX_SIZE` bytes are taken.

    Raises:
        RequestException: another request may succeed.
        MtpdError: none will: no such file, a web page, not `size` bytes, too large, no https, no space. The part stays,
            unless it is too large.
    """
    note, limit = part.note(), MAX_SIZE if size is None else size
    headers = dict(HEADERS)
    if note:
        if part.size == note['total']:
            return
        headers |= {'Range': f'bytes={part.size}-', 'If-Range': note['validator']}
    with _open_response(part.url, headers) as response:
        start, total = _content_range(response, part, note)
        if None not in (size, total) and size != total:
            raise MtpdError(
                f'{part.url} has {total} bytes, and {size} are expected: the server has another file. '
                'Give another source.'
            )
        if (total or 0) > limit:
            raise _too_large_error(part, limit)
        check_disk_space(part.path.parent, (total or 0) - start, part.url)
        chunks = response.iter_content(CHUNK_SIZE)
        first = next(chunks, b'')
        _refuse_page(response, first)
        if start == 0:
            part.begin(response, total)
        _append_chunks(part, itertools.chain([first], chunks), total, limit)
    if total is not None and part.size != total:
        raise IncompleteDownload(f'{part.size} of {total} bytes came')


def refuse_unsafe_url(url: str, origin: str = '') -> None:
    """Raises MtpdError where `url` is no https address, nor http of this machine. `origin`: the URL that led to it."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.hostname and parts.scheme == 'https':
            return
        if parts.hostname in LOCAL_HOSTS and parts.scheme == 'http':
            return
    address = f'{origin} leads to {url}' if origin else url
    raise MtpdError(
        f'{address}, which is not an https address: anybody on the way could change the file. Give its https address, or '
        'fetch it yourself and give the file.'
    )


def _open_response(url: str, headers: dict) -> Response:
    """The server's response, through redirects that stay https. Raises as `request_rest`."""
    origin = ''
    with requests.Session() as session:
        for _ in range(MAX_REDIRECTS):
            refuse_unsafe_url(url, origin)
            response = session.get(
                url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False
            )
            if not response.is_redirect:
                return response
            response.close()
            origin, url = origin or url, urljoin(url, response.headers['Location'])
    raise MtpdError(
        f'{origin} redirects too often: {MAX_REDIRECTS} times. Give the address of the file itself.'
    )


def _content_range(response: Response, part: PartialFile, note: dict) -> tuple[int, int | None]:
    """Where in the file the response begins, and the whole file's length where the server states it. Raises as
    `request_rest`."""
    if response.status_code == 200:
        length = response.headers.get('Content-Length', '')
        return 0, int(length) if length.isdigit() else None
    if response.status_code == 206 and note:
        content_range = response.headers.get('Content-Range', '')
        match = re.match(r'bytes (\d+)-\d+/(\d+)$', content_range)
        wanted = (part.size, note['total'])
        same_version = _validator(response) in (None, note['validator'])
        if same_version and match and (int(match[1]), int(match[2])) == wanted:
            return wanted
    if response.status_code in (206, 416):
        part.note_path.unlink(missing_ok=True)  # the next request is for the whole file
        raise IncompleteDownload('the server sent the rest of another file')
    status = f'{response.status_code} {response.reason}'
    if response.status_code in RETRIED_STATUSES:
        raise IncompleteDownload(f'HTTP {status}')
    raise MtpdError(
        f'{part.url}: the server answers {status}. Check the address, and your access to it.'
    )


def _validator(response: Response) -> str | None:
    """What identifies this version of the file, as If-Range takes it: a strong ETag, else Last-Modified."""
    tag = response.headers.get('ETag', '')
    return tag if tag.startswith('"') else response.headers.get('Last-Modified')


def _refuse_page(response: Response, first: bytes) -> None:
    """Raises MtpdError where the response, of which `first` is the first chunk, is a web page."""
    kind = response.headers.get('Content-Type', '')
    head = first[:256].lstrip().lower()
    if kind.startswith('text/html') or head.startswith((b'<!doctype html', b'<html')):
        raise MtpdError(
            f'{response.url} is a web page, not a file: a login or a proxy may answer in its place. '
            'Open it in a browser, or give the address of the file itself.'
        )


def _append_chunks(
    part: PartialFile, chunks: Iterator[bytes], total: int | None, limit: int
) -> None:
    """Appends to the part. Raises MtpdError, and removes it, where that makes it larger than `limit`."""
    size = part.size
    with (
        part.path.open('ab') as file,
        tqdm(
            desc=part.target.name,
            total=total,
            initial=size,
            unit='B',
            unit_scale=True,
            mininterval=_bar_interval(),
        ) as bar,
    ):
        for chunk in chunks:
            size += len(chunk)
            if size > limit:
                part.remove()
                raise _too_large_error(part, limit)
            file.write(chunk)
            bar.update(len(chunk))


def _bar_interval() -> float:
    """Seconds between two states of a bar; in a log two lines a minute."""
    return 0.1 if sys.stderr.isatty() else 30


def _too_large_error(part: PartialFile, limit: int) -> MtpdError:
    return MtpdError(
        f'{part.url} is larger than the limit of {limit / 1e9:.3g} GB, and is not fetched: it may be another file, or a '
        f'trap. If it is right, fetch it yourself and put it at {part.target}.'
    )


# Zip archives.


def unpack_zip(archive: Path, root: Path, prefix: str = '') -> int:
    """Unpacks the members whose names begin with `prefix`, unless they exist with the right size.

    Each is compared with its CRC-32, and gets its name when it is complete. `zipfile` alone would leave a damaged
    member with the right size.

    Returns:
        How many were written.

    Raises:
        MtpdError: no zip, or a damaged one; a member that is a link, a device or would lie outside `root` (nothing is
            unpacked then); no space, or no permission.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [member for member in zipped.infolist() if not member.is_dir()]
            for member in members:
                _refuse_unsafe_member(archive, member)
            missing = [
                member
                for member in members
                if member.filename.startswith(prefix)
                and not is_complete(root / member.filename, size=member.file_size)
            ]
            needed = sum(member.file_size for member in missing)
            check_disk_space(root, needed, f'Unpacking {archive.name}')
            for member in tqdm(
                missing, f'unpacking {archive.name}', unit='file', mininterval=_bar_interval()
            ):
                _write_member(zipped, member, root / member.filename)
    except DAMAGED_ZIP as error:
        raise MtpdError(
            f'{archive} is damaged or not a zip file ({error}): remove it and repeat, and it is fetched again.'
        ) from error
    except OSError as error:
        raise MtpdError(
            f'{archive} cannot be unpacked to {root} ({error.strerror or error}): check permissions and free '
            'space, and repeat; unpacked files stay.'
        ) from error
    return len(missing)


def _refuse_unsafe_member(archive: Path, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was made on Windows
    if path.is_absolute() or '..' in path.parts:
        fault = 'would lie outside the folder'
    elif kind not in (0, stat.S_IFREG):
        fault = 'is a link or a device'
    else:
        return
    raise MtpdError(
        f'{archive} is not unpacked: its member {member.filename!r} {fault}. '
        'It is not the expected archive: remove it.'
    )


def _write_member(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    # Not `atomic`: a hundred thousand fsyncs take minutes, and a cut file has another size.
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    with zipped.open(member) as source, part.open('wb') as target:
        shutil.copyfileobj(source, target)
    part.replace(path)
