"""Files of a run directory: JSON and text written whole or not at all, read with a clear message; checksums."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import MtpdError


def write_json(path: str | Path, obj: Any, indent: int | None = 2) -> None:
    """Write `obj` as JSON whole or not at all (temporary file, fsync, rename).

    NaN and infinities become null, numpy scalars and arrays plain numbers and lists, paths text.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json_value(obj), indent=indent, ensure_ascii=False, allow_nan=False) + '\n'
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, so that a reader sees the old or the new file and never half of it."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        with temporary.open('w', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def json_value(value: Any) -> Any:
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


def flatten(node: dict, place: str = '') -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested dicts; an empty one is a value."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f'{place}{key}.')
        else:
            yield f'{place}{key}', value


def read_json(path: Path, default: Any = None) -> Any:
    """The content of a JSON file, `default` where there is none. Raises MtpdError if it is broken."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError):
        return default
    except ValueError as error:
        raise MtpdError(
            f'{path} is not valid JSON ({error}). Remove it and repeat the step that wrote it.'
        ) from None


def read_json_if_valid(path: Path, default: Any = None) -> Any:
    """As `read_json`, of what can be made again: a broken file counts for none, which is said."""
    try:
        return read_json(path, default)
    except MtpdError:
        print(f'{path} is not valid JSON: it counts for nothing, and is made again.', flush=True)
        return default


def read_log(path: Path) -> list[dict]:
    """The rows of a log.json (one JSON object a line) that have an update and numbers for losses.

    A line cut off by a crash is left out.
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


def sha256_in_name(name: str) -> str | None:
    """The start of its SHA-256 that mmdet puts into a checkpoint's name, such as ``retinanet-7ee888e0.pth``."""
    match = re.search(r'-([0-9a-f]{8})\.pth$', name)
    return match[1] if match else None


def stated_sha256(path: Path) -> str | None:
    """The sum in metrics.json beside a checkpoint, or the start of it that mmdet puts into file names."""
    metrics = read_json(path.with_name('metrics.json'), {})
    if metrics.get('checkpoint') == path.name and metrics.get('sha256'):
        return metrics['sha256']
    return sha256_in_name(path.name)


def check_disk_space(folder: Path, needed: int, what: str) -> None:
    """Raises MtpdError where the folder's disk has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MtpdError(
            f'{what} takes {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free: '
            'free some, or choose a folder on another disk.'
        )


def nearest_existing_folder(folder: Path) -> Path:
    """The folder, or the nearest of those around it that is there."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def accepts_files(folder: Path) -> bool:
    """Whether files may be made in a folder; /proc and the like have no room for any."""
    return os.access(folder, os.W_OK | os.X_OK) and os.statvfs(folder).f_blocks > 0


def make_writable_folder(folder: Path) -> None:
    """Makes the folder. Raises MtpdError where that fails, or nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f'.{os.getpid()}'
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise MtpdError(
            f'{folder} cannot be written to ({error.strerror}). Choose another folder with --work-dir.'
        ) from None
