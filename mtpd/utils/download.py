"""Files from the web: gone on with where a connection broke off, checked, written whole or not at all."""

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
from . import files
from .files import check_disk_space

RETRY_WAITS = (1, 4, 10)  # seconds before each attempt that follows one without progress
MAX_SIZE = (
    20 * 10**9
)  # bytes of a file whose size is not known; the largest detectors have a tenth of it


def fetch_file(
    url: str,
    target: str | Path,
    sha256: str | None = None,
    size: int | None = None,
    waits: tuple[float, ...] | None = None,
) -> Path:
    """Fetches a file unless it is there.

    What arrives goes to ``<target>.part``, which an interrupted fetch leaves and the next one goes on with; the
    whole, checked file gets the target's name. Processes that want the same file take turns.

    Args:
        url: https, and so whatever it redirects to; proxies of the environment are used.
        target: the file to be; its folder is made.
        sha256: the file's SHA-256 in hexadecimal, or the start of it.
        size: the file's length in bytes.
        waits: seconds before each attempt that follows one without progress (default: ``WAITS``); after that
            many it gives up.

    Returns:
        The target.

    Raises:
        MtpdError: it can't be had, is another file, or can't be written. What was in the target's place stays.
    """
    target = Path(target)
    if is_complete(target, sha256, size):
        return target
    part = PartialFile(url, target)
    refuse_unsafe_url(url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f'.{target.name}.lock')):
            if not is_complete(target, sha256, size):  # else another process was first
                _request_until_complete(part, size, RETRY_WAITS if waits is None else waits)
                _check_file(part, sha256, size)
                part.path.replace(target)
                part.remove()
    except OSError as error:
        raise MtpdError(
            f'{target} cannot be written ({error.strerror or error}): check permissions and free space, '
            'or choose another folder.'
        ) from error
    return target


def is_complete(path: Path, sha256: str | None = None, size: int | None = None) -> bool:
    """Whether the file is there and, as far as that is known, the one that is meant."""
    if not path.is_file() or size not in (None, path.stat().st_size):
        return False
    return sha256 is None or files.file_sha256(path).startswith(sha256)


def _request_until_complete(part: PartialFile, size: int | None, waits: tuple[float, ...]) -> None:
    """Requests until the part is whole, as long as they make progress, and ``len(waits)`` more."""
    most, idle = part.size, 0
    while True:
        try:
            return request_part(part, size, MAX_SIZE)
        except RequestException as error:
            reason = error.args[0] if error.args else type(error).__name__
            idle = 0 if part.size > most else idle + 1
            most = max(most, part.size)
            if idle > len(waits):
                kept = f' What came is kept in {part.path}.' if part.size else ''
                raise MtpdError(
                    f'{part.url} cannot be fetched: {idle} attempts in a row brought nothing new ({_root_cause(reason)}). '
                    f'Check the network and its proxy, then repeat; or put the file to {part.target}.{kept}'
                ) from error
            wait = waits[max(idle - 1, 0)] if waits else 0
            print(
                f'{part.target.name}: {_root_cause(reason)}; again in {wait:g} s', file=sys.stderr
            )
            time.sleep(wait)


def _root_cause(reason: object) -> str:
    """The cause of urllib3's errors, which wrap one another: "Failed to resolve 'host'"."""
    reason = getattr(reason, 'reason', reason)
    text = str(reason).split(': ', 1)[-1] if isinstance(reason, Exception) else str(reason)
    return text if len(text) <= 120 else f'{text[:117]}...'


def _check_file(part: PartialFile, sha256: str | None, size: int | None) -> None:
    """Raises MtpdError, and removes the part, where it is not the file that is meant."""
    if is_complete(part.path, sha256, size):
        return
    if size not in (None, part.size):
        wrong = f'{part.size} bytes came, {size} are expected'
    else:
        wrong = (
            f'its sha256 begins {files.file_sha256(part.path)[: len(sha256)]}, {sha256} is expected'
        )
    part.remove()
    raise MtpdError(
        f'{part.url} is not the file that is meant: {wrong}. '
        'It was damaged on its way or replaced on the server: try again, or give another source.'
    )


# One request for a file, or for the rest of one that broke off.


TIMEOUT = (15, 60)  # seconds to connect, and between two pieces of an answer
CHUNK_SIZE = 1 << 14  # bytes; fewer than these are fetched twice where a connection breaks off
MAX_REDIRECTS = 10
LOCAL_HOSTS = ('localhost', '127.0.0.1', '::1')  # what comes from this machine needs no https
RETRIED_STATUSES = (
    408,
    425,
    429,
    500,
    502,
    503,
    504,
)  # HTTP errors that another attempt may not meet
HEADERS = {'User-Agent': f'mtpd/{__version__}', 'Accept-Encoding': 'identity'}


class IncompleteDownload(RequestException):
    """A request ended early; another one may go on."""


class PartialFile:
    """The unfinished file beside a target, and a note of what it is part of.

    The note (``<target>.part.json``) holds the URL, the file's length in bytes (`total`) and what tells its version
    from others (`validator`: ETag or Last-Modified). Without it the part is not gone on with.
    """

    def __init__(self, url: str, target: Path):
        self.url = url
        self.target = target
        self.path = target.with_name(f'{target.name}.part')
        self.note = target.with_name(f'{target.name}.part.json')

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def state(self) -> dict:
        """The note; empty where the part can't be gone on with."""
        note = files.read_json(self.note, {})
        return note if self.size and note.get('url') == self.url else {}

    def begin(self, answer: Response, total: int | None) -> None:
        """Drops what is there, for an answer that brings the file from its start."""
        self.remove()
        validator = _validator(answer)
        if validator and total:
            note = {'url': self.url, 'validator': validator, 'total': total}
            files.write_json(self.note, note)

    def remove(self) -> None:
        self.note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def request_part(part: PartialFile, size: int | None = None, limit: int | None = None) -> None:
    """Brings the part to the file's end by one request.

    Args:
        size: the file's length in bytes, where it is known.
        limit: more bytes than these are not taken (default: `size`).

    Raises:
        RequestException: it ended early, and another request may do better.
        MtpdError: none will: no such file, a web page, not `size` bytes, too large, no https, no space. The part stays.
    """
    limit = limit if size is None else size
    state = part.state()
    have = part.size if state else 0
    if state and have == state['total']:
        return
    headers = dict(HEADERS)
    if state:
        headers |= {'Range': f'bytes={have}-', 'If-Range': state['validator']}
    with _open_response(part.url, headers) as answer:
        start, total = _content_range(answer, part, state)
        if None not in (size, total) and size != total:
            raise MtpdError(
                f'{part.url} has {total} bytes, and {size} are expected: the server has another file. '
                'Give another source.'
            )
        if limit is not None and (total or 0) > limit:
            raise _too_large_error(part, limit)
        files.check_disk_space(part.path.parent, (total or 0) - start, part.url)
        pieces = answer.iter_content(CHUNK_SIZE)
        first = next(pieces, b'')
        _refuse_page(answer, first)
        if not start:
            part.begin(answer, total)
        if not _append_chunks(part.path, itertools.chain([first], pieces), start, total, limit):
            part.remove()
            raise _too_large_error(part, limit)
    if total is not None and part.size != total:
        raise IncompleteDownload(f'{part.size} of {total} bytes came')


def refuse_unsafe_url(url: str, origin: str = '') -> None:
    """Raises MtpdError for what is no https address (or http of this machine); `origin` led to it."""
    with contextlib.suppress(ValueError):
        place = urlsplit(url)
        if place.hostname and (
            place.scheme == 'https' or (place.scheme == 'http' and place.hostname in LOCAL_HOSTS)
        ):
            return
    told = f'{origin} leads to {url}' if origin else url
    raise MtpdError(
        f'{told}, which is no https address: anybody on the way could change the file. Give its https address, or fetch '
        'it yourself and give the file.'
    )


def _open_response(url: str, headers: dict) -> Response:
    """The server's answer, through redirects that stay https. Raises as `transfer`."""
    origin = ''
    with requests.Session() as session:
        for _ in range(MAX_REDIRECTS):
            refuse_unsafe_url(url, origin)
            answer = session.get(
                url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False
            )
            if not answer.is_redirect:
                return answer
            answer.close()
            origin, url = origin or url, urljoin(url, answer.headers['Location'])
    raise MtpdError(
        f'{origin} leads in circles: {MAX_REDIRECTS} redirects. Give the address of the file itself.'
    )


def _too_large_error(part: PartialFile, limit: int) -> MtpdError:
    return MtpdError(
        f'{part.url} is larger than the {limit / 1e9:.3g} GB that are expected at most, and is not taken: it is another '
        f'file, or a trap. If it is right, fetch it yourself and put it to {part.target}.'
    )


def _content_range(answer: Response, part: PartialFile, state: dict) -> tuple[int, int | None]:
    """Where in the file the answer's bytes begin, and the file's length as announced."""
    if answer.status_code == 200:
        length = answer.headers.get('Content-Length', '')
        return 0, int(length) if length.isdigit() else None
    if answer.status_code == 206 and state:
        offered = re.match(r'bytes (\d+)-\d+/(\d+)$', answer.headers.get('Content-Range', ''))
        wanted = (part.size, state['total'])
        same = _validator(answer) in (None, state['validator'])
        if same and offered and (int(offered[1]), int(offered[2])) == wanted:
            return wanted
    if answer.status_code in (206, 416):
        part.note.unlink(missing_ok=True)  # the next request is for the whole file
        raise IncompleteDownload('the rest that the server has does not belong to what is here')
    if answer.status_code in RETRIED_STATUSES:
        raise IncompleteDownload(f'HTTP {answer.status_code} {answer.reason}')
    raise MtpdError(
        f'{part.url}: the server answers {answer.status_code} {answer.reason}. '
        'Check the address, and your access to it.'
    )


def _validator(answer: Response) -> str | None:
    """What tells this version of the file from others, in the form that If-Range takes."""
    tag = answer.headers.get('ETag', '')
    return tag if tag.startswith('"') else answer.headers.get('Last-Modified')


def _refuse_page(answer: Response, first: bytes) -> None:
    kind = answer.headers.get('Content-Type', '')
    head = first[:256].lstrip().lower()
    if kind.startswith('text/html') or head.startswith((b'<!doctype html', b'<html')):
        raise MtpdError(
            f'{answer.url} is a web page, not a file: a login or a proxy may stand before it. '
            'Open it in a browser, or give the address of the file itself.'
        )


def _append_chunks(
    path: Path, pieces: Iterator[bytes], start: int, total: int | None, limit: int | None
) -> bool:
    """Writes the pieces; returns whether they kept within `limit`, beyond which nothing is written."""
    with (
        path.open('ab' if start else 'wb') as file,
        tqdm(
            desc=path.stem,
            total=total,
            initial=start,
            unit='B',
            unit_scale=True,
            mininterval=0.1 if sys.stderr.isatty() else 30,  # in a log, two lines a minute
        ) as bar,
    ):
        for piece in pieces:
            start += len(piece)
            if limit is not None and start > limit:
                return False
            file.write(piece)
            bar.update(len(piece))
    return True


# Zip archives, unpacked safely, and gone on with where that was interrupted.


DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def unpack_zip(archive: Path, root: Path, prefix: str = '') -> int:
    """Unpacks the members whose names begin with `prefix`, except those that are there with the right size.

    Each is compared with its CRC-32 and gets its name when it is whole.

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
            todo = [
                member
                for member in members
                if member.filename.startswith(prefix)
                and not _is_unpacked(root / member.filename, member)
            ]
            check_disk_space(
                root, sum(member.file_size for member in todo), f'Unpacking {archive.name}'
            )
            slow = 0.1 if sys.stderr.isatty() else 30
            for member in tqdm(todo, f'unpacking {archive.name}', unit='file', mininterval=slow):
                _write_member(zipped, member, root / member.filename)
    except DAMAGED_ZIP as error:
        raise MtpdError(
            f'{archive} is damaged or no zip file ({error}): remove it and repeat, and it is fetched again.'
        ) from error
    except OSError as error:
        raise MtpdError(
            f'{archive} cannot be unpacked to {root} ({error.strerror or error}): check permissions and free '
            'space, and repeat; what is unpacked stays.'
        ) from error
    return len(todo)


def _refuse_unsafe_member(archive: Path, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was made on Windows
    outside = path.is_absolute() or '..' in path.parts
    if outside or kind not in (0, stat.S_IFREG):
        what = 'would lie outside the folder' if outside else 'is a link or a device'
        raise MtpdError(
            f'{archive} is not unpacked: its member {member.filename!r} {what}. '
            'It is not what it should be; remove it.'
        )


def _is_unpacked(path: Path, member: zipfile.ZipInfo) -> bool:
    return path.is_file() and path.stat().st_size == member.file_size


def _write_member(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    with zipped.open(member) as source, part.open('wb') as target:
        shutil.copyfileobj(source, target)
    part.replace(path)
