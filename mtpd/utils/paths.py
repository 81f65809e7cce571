"""Where things are: the checkout, the cache, and the paths that recipes name."""

from __future__ import annotations

import difflib
import hashlib
import os
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from ..errors import RecipeError, did_you_mean
from .files import sha256_in_name

# Of the checkout: configs/, notebooks/ and runs/ lie here.
ROOT = Path(__file__).resolve().parents[2]


def cache_dir() -> Path:
    """MTPD_CACHE, or `mtpd` in the user's cache folder: outside the checkout, shared by checkouts."""
    if place := os.environ.get('MTPD_CACHE'):
        return Path(place).expanduser().absolute()
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mtpd'


def is_url(path: str) -> bool:
    return path.startswith(('http://', 'https://'))


def cached_checkpoint(url: str) -> Path:
    """Where the checkpoint of a URL is kept, whether it is there or not: in the cache, shared by runs.

    A name with a checksum is its own; another gets the URL's in front, so that two `student.pth` keep apart.
    """
    name = PurePosixPath(urlsplit(url).path).name
    if not sha256_in_name(name):
        name = f'{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}'
    return cache_dir() / 'checkpoints' / name


def find_config_file(path: str | Path) -> Path:
    """A recipe's or an mmdet config's file: relative to the working directory or the checkout, or `mmdet::x.py`.

    Raises:
        RecipeError: no such file; with the nearest one.
    """
    if str(path).startswith('mmdet::'):
        return resolve_path(str(path), Path(path))
    found = next((p for p in (Path(path), ROOT / path) if p.is_file()), None)
    if found is None:
        known = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'configs').glob('[!_]*/*.py'))
        raise RecipeError(path, ['no such file. ' + did_you_mean(str(path), known)])
    return found


def resolve_path(path: str, source: Path) -> Path:
    """A path of a recipe: `mmdet::x.py` in mmdet's packaged configs, else absolute, or relative to the working
    directory, the recipe's folder or the checkout (the first that exists; else the working directory's).

    Raises:
        RecipeError: mmdet has no such packaged config.
    """
    if str(path).startswith('mmdet::'):
        package = Path(find_spec('mmdet').origin).parent  # importing it takes seconds
        root, name = package / '.mim' / 'configs', path.removeprefix('mmdet::')
        if not (root / name).is_file():
            known = [str(file.relative_to(root)) for file in root.glob('[!_]*/*.py')]
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean 'mmdet::{close[0]}'?" if close else f'Its configs lie in {root}.'
            raise RecipeError(source, [f'{path}: mmdet has no such config. {hint}'])
        return root / name
    places = [Path.cwd(), source.parent, ROOT]
    return next((place / path for place in places if (place / path).exists()), Path.cwd() / path)


def display_path(path: Path) -> str:
    """A path relative to the checkout where it lies in it, else absolute."""
    path = Path(os.path.normpath(path))
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
