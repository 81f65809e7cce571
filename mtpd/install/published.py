"""Wheels of mmcv-full that a release has, in place of a build: wheels.json names them.

`url` is an https address with {release} and {key}. `wheels` has `release` and `sha256` of each, by `ops.wheel_key`. A release's
workflow runs `python -m mtpd.install.published FOLDER`, which puts the wheel of this machine there and prints its entry.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from ..errors import MtpdError
from ..utils.download import fetch_file
from ..utils.files import file_sha256, read_json
from ..utils.paths import cache_dir
from . import build

INDEX = Path(__file__).with_name('wheels.json')


def fetch_published(key: str, folder: Path, echo: Callable) -> Path | None:
    """Fetches the wheel of this key, checked by its SHA-256; None where there is none, or it can't be had.

    Args:
        key: of `ops.wheel_key`.
        folder: where to put it.
    """
    index = read_json(INDEX, {})
    entry = index.get('wheels', {}).get(key)
    if not entry or not re.fullmatch('[0-9a-f]{64}', entry['sha256']):
        return None
    url = index['url'].format(release=entry['release'], key=key)
    echo(f'Fetching the wheel of {entry["release"]} for this torch and Python ...')
    try:
        return fetch_file(url, folder / wheel_name(), entry['sha256'])
    except MtpdError as error:
        echo(f'{error}\nIt is built here.')
        return None


def wheel_name() -> str:
    """The file name by which pip takes a wheel for this Python and machine."""
    python = f'cp{sys.version_info.major}{sys.version_info.minor}'
    platform = re.sub('[-.]', '_', sysconfig.get_platform())
    return f'mmcv_full-{build.mmcv_version()}-{python}-{python}-{platform}.whl'


def collect(folder: Path) -> dict:
    """Copies the CPU wheels of the cache to FOLDER/<key>.whl; returns their entries, without the release."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = {}
    for wheel in sorted((cache_dir() / 'wheels').glob('*-cpu-*/*.whl')):
        copy = folder / f'{wheel.parent.name}.whl'
        shutil.copy(wheel, copy)
        entries[wheel.parent.name] = {'sha256': file_sha256(copy)}
    return entries


if __name__ == '__main__':
    print(json.dumps(collect(Path(sys.argv[1])), indent=2))
