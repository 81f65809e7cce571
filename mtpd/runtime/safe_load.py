"""Reads checkpoint files without running code in them, for this kit and, through `compat`, for mmcv and mmdet."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..errors import MtpdError

# What torch's errors call an object that it refuses.
REFUSED_OBJECT = re.compile(r'GLOBAL (\S*\w)\s|Trying to (?:call|instantiate|set) ([^.\n]+)')


class DamagedCheckpoint(MtpdError):
    """A checkpoint that is empty or cut short, as a crash may leave one."""


def load_safely(path: str | Path, map_location: Any = 'cpu', trust: bool = False) -> Any:
    """What `torch.save` wrote to `path`: tensors, numbers, texts and containers of them.

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
        if not head:
            raise DamagedCheckpoint(f'checkpoint {path} is empty: fetch or make the file again')
        kind = 'a web page' if head.startswith(b'<') else 'a Git LFS pointer'
        raise MtpdError(f'checkpoint {path} is {kind}: fetch the file itself')
    try:
        return torch.load(path, map_location=map_location, weights_only=not trust)
    except ModuleNotFoundError as error:  # of a trusted file
        raise MtpdError(
            f'checkpoint {path} is not loaded: {_foreign_object_advice(path, str(error.name))}'
        ) from error
    except Exception as error:  # torch raises a dozen types, by where the file is damaged
        if not trust and (name := _refused_object(head, str(error))):
            package = name.partition('.')[0]
            missing = package if '.' in name and not _is_installed(package) else None
            raise MtpdError(
                f'checkpoint {path} holds a Python object ({name}), which could run code and is not loaded. If you '
                f'trust the source of the file: {_foreign_object_advice(path, missing)}'
            ) from error
        if Path(path).suffix == '.onnx':
            raise MtpdError(
                f'{path} is an ONNX file, not a checkpoint: mtpd.edge.EdgeDetector runs it, without torch'
            ) from error
        cause = f' ({type(error).__name__}: {error})' if trust else ''
        raise DamagedCheckpoint(
            f'checkpoint {path} is damaged, cut short or not a PyTorch file: fetch or make it again{cause}'
        ) from error


def _foreign_object_advice(path: Path, missing: str | None) -> str:
    """How a checkpoint with Python objects becomes a plain one; `missing`: their package, if it is not installed."""
    export = f'`mtpd export {path} NEW.pth --trust-checkpoint` makes a plain checkpoint of it'
    if missing is None:
        return export
    install = ' MMDetection 3 writes such files: `pip install mmengine`.'
    command = python_command(
        f"c = torch.load('{path}', map_location='cpu', weights_only=False)",
        "torch.save({'state_dict': c['state_dict']}, 'NEW.pth')",
    )
    return (
        f'it needs the package {missing}, which is not installed here.{install if missing == "mmengine" else ""} Then '
        f'{export}. Or make one on the machine that wrote the file: {command}'
    )


def python_command(*statements: str) -> str:
    """A command that runs statements of Python after `import torch`, which have no double quotes in them."""
    return f'python -c "{"; ".join(["import torch", *statements])}"'


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # a module without a spec, such as __main__
        return True


def _refused_object(head: bytes, message: str) -> str | None:
    """The object that torch refuses to load, by its error's message; None where the file is damaged."""
    if match := REFUSED_OBJECT.search(message):
        return match[1] or match[2]
    # torch writes protocol 2, and reads no other as plain data.
    newer = head[:2] in (b'\x80\3', b'\x80\4', b'\x80\5')
    return f'pickled by protocol {head[1]}' if newer else None


# In place of mmcv's loaders. mmcv cuts off `load_from_` where it names one.


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """As mmcv's. Raises FileNotFoundError, and MtpdError as `load_safely`."""
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{path} cannot be found.')
    return load_safely(path, map_location)


def load_from_http(filename: str, map_location: Any = None, model_dir: str | None = None) -> Any:
    """As mmcv's, into torch's cache; torch itself would unpickle anything here.

    Raises:
        MtpdError: as `mtpd.utils.download.fetch_file` and `load_safely`.
    """
    from urllib.parse import urlsplit

    from ..utils.download import fetch_file
    from ..utils.files import sha256_in_name

    folder = Path(model_dir or Path(torch.hub.get_dir()) / 'checkpoints')
    path = folder / Path(urlsplit(filename).path).name
    return load_safely(fetch_file(filename, path, sha256_in_name(path.name)), map_location)
