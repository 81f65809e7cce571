"""Image files, corrupted."""

from __future__ import annotations

from pathlib import Path


def corrupted(path: Path, how: str) -> None:
    if how == 'missing':
        path.unlink()
    elif how == 'a folder':
        path.unlink()
        path.mkdir()
    else:
        half = path.read_bytes()[:-100]
        path.write_bytes({'empty': b'', 'no image': b'<html>', 'cut': half}[how])
