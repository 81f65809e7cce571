"""One request for a file, or for the rest of one that broke off."""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
from requests import RequestException, Response
from tqdm import tqdm

from .. import __version__
from ..errors import MtpdError
from . import files

TIMEOUT = (15, 60)  # seconds to connect, and between two pieces of an answer
CHUNK = 1 << 14  # bytes; fewer than these are fetched twice where a connection breaks off
REDIRECTS = 10
HERE = ('localhost', '127.0.0.1', '::1')  # what comes from this machine needs no https
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP errors that another attempt may not meet
HEADERS = {'User-Agent': f'mtpd/{__version__}', 'Accept-Encoding': 'identity'}


class BrokenOff(RequestException):
    """A request ended early; another one may go on."""


class Part:
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


def transfer(part: Part, size: int | None = None, limit: int | None = None) -> None:
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
    with _answer(part.url, headers) as answer:
        start, total = _extent(answer, part, state)
        if None not in (size, total) and size != total:
            raise MtpdError(
                f'{part.url} has {total} bytes, and {size} are expected: the server has another file. '
                'Give another source.'
            )
        if limit is not None and (total or 0) > limit:
            raise _too_large(part, limit)
        files.room(part.path.parent, (total or 0) - start, part.url)
        pieces = answer.iter_content(CHUNK)
        first = next(pieces, b'')
        _refuse_page(answer, first)
        if not start:
            part.begin(answer, total)
        if not _append(part.path, itertools.chain([first], pieces), start, total, limit):
            part.remove()
            raise _too_large(part, limit)
    if total is not None and part.size != total:
        raise BrokenOff(f'{part.size} of {total} bytes came')


def check_url(url: str, origin: str = '') -> None:
    """Raises MtpdError for what is no https address (or http of this machine); `origin` led to it."""
    with contextlib.suppress(ValueError):
        place = urlsplit(url)
        if place.hostname and (
            place.scheme == 'https' or (place.scheme == 'http' and place.hostname in HERE)
        ):
            return
    told = f'{origin} leads to {url}' if origin else url
    raise MtpdError(
        f'{told}, which is no https address: anybody on the way could change the file. Give its https address, or fetch '
        'it yourself and give the file.'
    )


def _answer(url: str, headers: dict) -> Response:
    """The server's answer, through redirects that stay https. Raises as `transfer`."""
    origin = ''
    with requests.Session() as session:
        for _ in range(REDIRECTS):
            check_url(url, origin)
            answer = session.get(
                url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False
            )
            if not answer.is_redirect:
                return answer
            answer.close()
            origin, url = origin or url, urljoin(url, answer.headers['Location'])
    raise MtpdError(
        f'{origin} leads in circles: {REDIRECTS} redirects. Give the address of the file itself.'
    )


def _too_large(part: Part, limit: int) -> MtpdError:
    return MtpdError(
        f'{part.url} is larger than the {limit / 1e9:.3g} GB that are expected at most, and is not taken: it is another '
        f'file, or a trap. If it is right, fetch it yourself and put it to {part.target}.'
    )


def _extent(answer: Response, part: Part, state: dict) -> tuple[int, int | None]:
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
        raise BrokenOff('the rest that the server has does not belong to what is here')
    if answer.status_code in PASSING:
        raise BrokenOff(f'HTTP {answer.status_code} {answer.reason}')
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


def _append(
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
