"""The checkout, the cache, and the files that recipes name."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from ..errors import RecipeError, did_you_mean
from .files import nearest_existing_folder, sha256_in_name

# The checkout: configs/, notebooks/ and runs/ lie in it.
ROOT = Path(__file__).resolve().parents[2]


def cache_dir() -> Path:
    """MTPD_CACHE, or `mtpd` in the user's cache folder, which all checkouts share."""
    if folder := os.environ.get('MTPD_CACHE'):
        return Path(folder).expanduser().absolute()
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mtpd'


def user_path(path: str | Path) -> Path:
    """A path as a user writes it: `~` and `~name` at its beginning are home folders."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  (pathlib's raises where there is no such user)


def is_url(path: str) -> bool:
    return path.startswith(('http://', 'https://'))


def cached_checkpoint(url: str) -> Path:
    """The path in the cache for the checkpoint of a URL, whether it was fetched or not.

    A name without a checksum gets that of the URL in front, so that two `student.pth` have two paths.
    """
    name = PurePosixPath(urlsplit(url).path).name
    if not sha256_in_name(name):
        name = f'{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}'
    return cache_dir() / 'checkpoints' / name


def find_config_file(path: str | Path) -> Path:
    """The file of a recipe or an mmdet config: relative to the working directory or the checkout, or `mmdet::x.py`.

    Raises:
        RecipeError: there is no such file; the message names the nearest one.
    """
    if str(path).startswith('mmdet::'):
        return resolve_path(str(path), Path(path))
    for file in (user_path(path), ROOT / path):
        if file.is_file():
            return file
    known = sorted(str(file.relative_to(ROOT)) for file in (ROOT / 'configs').glob('[!_]*/*.py'))
    raise RecipeError(path, [f'no such file. {did_you_mean(str(path), known)}'])


def resolve_path(path: str, source: Path, working_directory: Path | None = None) -> Path:
    """A path that the recipe `source` names.

    `mmdet::x.py` is one of mmdet's packaged configs. `~` is the home folder. A relative path is looked for in the
    working directory, the recipe's folder and the checkout; where none of them has it, the result lies in the working
    directory.

    Args:
        working_directory: in place of this process's.

    Raises:
        RecipeError: mmdet has no such config.
    """
    if str(path).startswith('mmdet::'):
        configs, name = packaged_configs(), path.removeprefix('mmdet::')
        if not (configs / name).is_file():
            known = [str(file.relative_to(configs)) for file in configs.glob('[!_]*/*.py')]
            close = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"Did you mean 'mmdet::{close[0]}'?" if close else f'Its configs lie in {configs}.'
            )
            raise RecipeError(source, [f'{path}: mmdet has no such config. {hint}'])
        return configs / name
    path, here = user_path(path), working_directory or Path.cwd()
    for folder in (here, source.parent, ROOT):
        if (folder / path).exists():
            return folder / path
    return here / path


def missing_file_text(path: Path) -> str:
    """What is wrong with a path that is no file, and the one or two that may be meant."""
    if path.is_dir():
        return f'{path} is a folder, but a file is needed.'
    if not path.parent.is_dir():
        return f'{path}: neither the file nor its folder exists.{_near_folders_text(path.parent)}'
    return f'{path}: no such file.{_near_text(path, [file for file in path.parent.iterdir() if file.is_file()])}'


def missing_folder_text(path: Path) -> str:
    """What is wrong with a path that is no folder, and the one or two folders that may be meant."""
    if path.is_file():
        return f'{path} is a file, but a folder is needed.'
    return f'{path}: no such folder.{_near_folders_text(path)}'


def _near_folders_text(path: Path) -> str:
    parent = nearest_existing_folder(path)
    missing, *rest = path.relative_to(parent).parts
    try:
        folders = [entry for entry in parent.iterdir() if entry.is_dir()]
    except OSError:  # not to be listed
        folders = []
    return _near_text(parent / missing, folders, rest)


def _near_text(path: Path, known: list[Path], rest: Iterable[str] = ()) -> str:
    """A question after the paths of `known` that are named most like `path`, with `rest` behind them where that exists."""
    names = {other.name.casefold(): other for other in sorted(known)}
    close = difflib.get_close_matches(path.name.casefold(), names, n=2)
    near = [whole for name in close if (whole := names[name].joinpath(*rest)).exists()]
    near = near or [names[name] for name in close]
    return f' Did you mean {" or ".join(map(str, near))}?' if near else ''


def packaged_configs() -> Path:
    """The folder of the configs that mmdet brings."""
    package = Path(find_spec('mmdet').origin).parent  # importing mmdet takes seconds
    return package / '.mim' / 'configs'


def nearest_config(path: Path, configs: Path) -> Path | None:
    """The file below `configs` with the name of `path` and, of several, with most of its folders' names; None where there is none."""

    def shared_parts(file: Path) -> int:
        pairs = zip(reversed(file.parts), reversed(path.parts), strict=False)
        return next((count for count, (a, b) in enumerate(pairs) if a != b), 0)

    return max(sorted(configs.rglob(path.name)), key=shared_parts, default=None)


def display_path(path: Path) -> str:
    """The path as messages show it: relative to the checkout where it lies in there, else as it is."""
    path = Path(os.path.normpath(path))
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
