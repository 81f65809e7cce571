"""JSON and text files, written whole or not at all and read with a clear message; checksums; folders and disk space."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import MtpdError


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path in the folder of `path`; what the block writes to it is at `path` afterwards.

    A reader sees the old or the new file, never half of one, even after a power cut. The folder is made. Where the
    block raises, the temporary file is removed and `path` stays as it was. Its name is ``.<name>.<pid>.part``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        yield temporary
        with temporary.open('rb+') as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # the block's own error is the one to see
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all, see `atomic`."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def write_json(path: str | Path, obj: Any, indent: int | None = 2) -> None:
    """Write `obj` as JSON, whole or not at all, see `atomic`; values as `json_value` gives them."""
    text = json.dumps(json_value(obj), indent=indent, ensure_ascii=False, allow_nan=False)
    write_text(path, f'{text}\n')


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Gives a file a second name (a hard link), or copies it where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def json_value(value: Any) -> Any:
    """A value that JSON can hold: NaN and infinities become None, numpy's and torch's values plain numbers and lists,
    paths and keys text."""
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, 'tolist'):  # numpy scalars and arrays, torch tensors
        return json_value(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def flatten(node: dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested dicts; an empty dict is a value."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def read_json(path: Path, default: Any = None) -> Any:
    """The content of a JSON file; `default` where there is no file. Raises MtpdError where it is not valid JSON."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError):
        return default
    except ValueError as error:
        raise MtpdError(
            f'{path} is not valid JSON ({error}). Remove it and repeat the step that wrote it.'
        ) from None


def read_json_if_valid(path: Path, default: Any = None) -> Any:
    """As `read_json`, for files that can be made again: `default`, and a printed line, where it is not valid JSON."""
    try:
        return read_json(path, default)
    except MtpdError:
        print(f'{path} is not valid JSON: it is ignored, and made again.', flush=True)
        return default


def read_log(path: Path) -> list[dict]:
    """The rows of a log.json (one JSON object a line) that have a number for `update` and for each loss.

    A line that a crash cut off is left out. No file: no rows.
    """
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and _is_number(row.get('update')):
            losses = [value for key, value in row.items() if 'loss' in key and value is not None]
            if all(map(_is_number, losses)):
                rows.append(row)
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def file_sha256(path: str | Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with Path(path).open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def file_version(path: Path) -> tuple[int, int]:
    """Time and size of a file or folder, for caches: another pair after it was written to."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def sha256_in_name(name: str) -> str | None:
    """The first 8 digits of its SHA-256 in a checkpoint's name, as mmdet writes it: ``retinanet-7ee888e0.pth``."""
    match = re.search(r'-([0-9a-f]{8})\.pth$', name)
    return match[1] if match else None


def stated_sha256(path: Path) -> str | None:
    """The SHA-256 that metrics.json beside a checkpoint states for it, else its start in the file's name, else None."""
    metrics = read_json(path.with_name('metrics.json'), {})
    if metrics.get('checkpoint') == path.name and metrics.get('sha256'):
        return metrics['sha256']
    return sha256_in_name(path.name)


def check_disk_space(
    folder: Path, needed: int, what: str, advice: str = 'choose a folder on another disk'
) -> None:
    """Raises MtpdError, which ends with `advice`, where the folder's disk has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MtpdError(
            f'{what} takes {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free: '
            f'free some space, or {advice}.'
        )


def nearest_existing_folder(folder: Path) -> Path:
    """The folder, or the nearest of its parents that exists."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def accepts_files(folder: Path) -> bool:
    """Whether files can be made in a folder. /proc and the like have no blocks for any."""
    return os.access(folder, os.W_OK | os.X_OK) and os.statvfs(folder).f_blocks > 0


def make_writable_folder(folder: Path, option: str = '--work-dir') -> None:
    """Makes the folder. Raises MtpdError where that fails, or where no file can be made in it; it names the option."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise MtpdError(
            f'{folder} cannot be written to ({error.strerror}). Choose another folder with {option}.'
        ) from None
