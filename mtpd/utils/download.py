"""Files from the web: gone on with where a connection broke off, checked, written whole or not at all."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from filelock import FileLock
from requests import RequestException

from ..errors import MtpdError
from . import files
from .transfer import Part, check_url, transfer

WAITS = (1, 4, 10)  # seconds before each attempt that follows one without progress
LIMIT = (
    20 * 10**9
)  # bytes of a file whose size is not known; the largest detectors have a tenth of it


def fetch(
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
    if fits(target, sha256, size):
        return target
    part = Part(url, target)
    check_url(url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f'.{target.name}.lock')):
            if not fits(target, sha256, size):  # else another process was first
                _complete(part, size, WAITS if waits is None else waits)
                _check(part, sha256, size)
                part.path.replace(target)
                part.remove()
    except OSError as error:
        raise MtpdError(
            f'{target} cannot be written ({error.strerror or error}): check permissions and free space, '
            'or choose another folder.'
        ) from error
    return target


def fits(path: Path, sha256: str | None = None, size: int | None = None) -> bool:
    """Whether the file is there and, as far as that is known, the one that is meant."""
    if not path.is_file() or size not in (None, path.stat().st_size):
        return False
    return sha256 is None or files.sha256(path).startswith(sha256)


def _complete(part: Part, size: int | None, waits: tuple[float, ...]) -> None:
    """Requests until the part is whole, as long as they make progress, and ``len(waits)`` more."""
    most, idle = part.size, 0
    while True:
        try:
            return transfer(part, size, LIMIT)
        except RequestException as error:
            reason = error.args[0] if error.args else type(error).__name__
            idle = 0 if part.size > most else idle + 1
            most = max(most, part.size)
            if idle > len(waits):
                kept = f' What came is kept in {part.path}.' if part.size else ''
                raise MtpdError(
                    f'{part.url} cannot be fetched: {idle} attempts in a row brought nothing new ({_short(reason)}). '
                    f'Check the network and its proxy, then repeat; or put the file to {part.target}.{kept}'
                ) from error
            wait = waits[max(idle - 1, 0)] if waits else 0
            print(f'{part.target.name}: {_short(reason)}; again in {wait:g} s', file=sys.stderr)
            time.sleep(wait)


def _short(reason: object) -> str:
    """The cause of urllib3's errors, which wrap one another: "Failed to resolve 'host'"."""
    reason = getattr(reason, 'reason', reason)
    text = str(reason).split(': ', 1)[-1] if isinstance(reason, Exception) else str(reason)
    return text if len(text) <= 120 else f'{text[:117]}...'


def _check(part: Part, sha256: str | None, size: int | None) -> None:
    """Raises MtpdError, and removes the part, where it is not the file that is meant."""
    if fits(part.path, sha256, size):
        return
    if size not in (None, part.size):
        wrong = f'{part.size} bytes came, {size} are expected'
    else:
        wrong = f'its sha256 begins {files.sha256(part.path)[: len(sha256)]}, {sha256} is expected'
    part.remove()
    raise MtpdError(
        f'{part.url} is not the file that is meant: {wrong}. '
        'It was damaged on its way or replaced on the server: try again, or give another source.'
    )
