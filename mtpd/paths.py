"""Where things are: the checkout, and the paths that recipes name."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import RecipeError

# Of the checkout: configs/, notebooks/ and runs/ lie here.
ROOT = Path(__file__).resolve().parents[1]


def resolve(path: str, source: Path) -> Path:
    """A path of a recipe: `mmdet::x.py` in mmdet's packaged configs, else absolute, or relative to the working
    directory, the recipe's folder or the checkout (the first that exists; else the working directory's).

    Raises:
        RecipeError: mmdet has no such packaged config.
    """
    if str(path).startswith('mmdet::'):
        import mmdet

        found = Path(mmdet.__file__).parent / '.mim' / 'configs' / str(path).removeprefix('mmdet::')
        if not found.is_file():
            raise RecipeError(
                source,
                [f'{path}: mmdet has no such config. Its configs lie in {found.parents[1]}.'],
            )
        return found
    places = [Path.cwd(), source.parent, ROOT]
    return next((place / path for place in places if (place / path).exists()), Path.cwd() / path)


def shown(path: Path) -> str:
    """A path relative to the checkout where it lies in it, else absolute."""
    path = Path(os.path.normpath(path))
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
