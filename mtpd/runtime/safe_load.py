"""Checkpoint files, read without running code from them: by this kit and, through `compat`, by mmcv and mmdet."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from ..errors import MtpdError

REFUSED_OBJECT = re.compile(r'GLOBAL (\S*\w)\s|Trying to (?:call|instantiate|set) ([^.\n]+)')


class DamagedCheckpoint(MtpdError):
    """A file that is empty or ends in its middle, as a crash may leave one."""


def load_safely(path: str | Path, map_location: Any = 'cpu', trust: bool = False) -> Any:
    """What `torch.save` wrote to `path`: tensors, numbers, text and containers of them.

    Args:
        trust: take any Python object, as files of early versions hold them; **runs whatever code is in the file**.

    Raises:
        MtpdError: no such file, no checkpoint, a damaged one, or one with objects that could run code.
    """
    path = Path(path)
    if not (path.is_file() and os.access(path, os.R_OK)):
        raise MtpdError(f'checkpoint {path}: no such file, or not readable; check the path')
    with path.open('rb') as file:
        head = file.read(64).lstrip()
    if not head or head.startswith((b'<', b'version https://git-lfs')):
        kind = 'a web page' if head[:1] == b'<' else 'a Git LFS pointer' if head else 'empty'
        problem = MtpdError if head else DamagedCheckpoint
        raise problem(f'checkpoint {path} is {kind}: fetch or make the file itself again')
    try:
        return torch.load(path, map_location=map_location, weights_only=not trust)
    except Exception as error:  # torch raises a dozen types, by where the file is damaged
        if not trust and (name := _refused_object(head, str(error))):
            raise MtpdError(
                f'checkpoint {path} holds a Python object ({name}), which could run code and is not loaded. Where you '
                'trust whoever made the file: `mtpd export FILE NEW --trust-checkpoint` makes a plain one of it'
            ) from error
        cause = f' ({type(error).__name__}: {error})' if trust else ''  # a package that it needs
        raise DamagedCheckpoint(
            f'checkpoint {path} is damaged, cut short or no PyTorch file: fetch or make it again{cause}'
        ) from error


def _refused_object(head: bytes, said: str) -> str | None:
    """What made torch refuse a file, where it was not the file's damage."""
    if found := REFUSED_OBJECT.search(said):
        return found[1] or found[2]
    # torch writes protocol 2, and reads no other as plain data.
    newer = head[:2] in (b'\x80\3', b'\x80\4', b'\x80\5')
    return f'pickled by protocol {head[1]}' if newer else None


# In place of mmcv's loaders, whose first ten letters mmcv cuts off where it names them.


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """As mmcv's. Raises FileNotFoundError, and MtpdError as `read`."""
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{path} cannot be found.')
    return load_safely(path, map_location)


def load_from_http(filename: str, map_location: Any = None, model_dir: str | None = None) -> Any:
    """As mmcv's, into torch's cache; torch itself would unpickle anything here.

    Raises:
        MtpdError: it can't be fetched, as `mtpd.utils.download.fetch_file`, or not be loaded, as `read`.
    """
    from urllib.parse import urlsplit

    from ..utils.download import fetch_file
    from ..utils.files import sha256_in_name

    folder = Path(model_dir or Path(torch.hub.get_dir()) / 'checkpoints')
    path = folder / Path(urlsplit(filename).path).name
    return load_safely(fetch_file(filename, path, sha256_in_name(path.name)), map_location)
