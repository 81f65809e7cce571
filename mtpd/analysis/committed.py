"""Committed results of a recipe: copies of a run's results.json, and summaries by benchmarks/seeds.py."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from ..config.recipe import Recipe, load_recipe
from ..config.schema import parse_overrides
from ..errors import MtpdError
from ..utils.files import read_json
from ..utils.paths import shown
from .conclusion import arm_kinds
from .setups import Setup, of_recipe


def committed(recipe: Recipe, arms: list[dict], folder: Path) -> Iterator[tuple[Setup, list[dict]]]:
    """Every seed in `folder`'s JSON files, single runs first: its setup, and rows as `Run.results()` gives them.

    The setup is that of today's recipe with the overrides of the command in the file.

    Args:
        arms: those of the run to compare with, as in run.json. Files with other arms or updates are passed over.
    """
    kinds = arm_kinds(arms)
    labels = {arm.get('label') or arm['name']: arm for arm in arms}
    files = [(path, read_json(path)) for path in sorted(folder.glob('*.json'))]
    files = [(path, content) for path, content in files if isinstance(content, dict)]
    for path, content in files:
        if {'run', 'results'} <= content.keys() and not content['run'].get('smoke'):
            info = content['run']
            if _plan(info['arms']) == _plan(arms):
                yield from _setup(recipe, info['command'], info['seed'], path, content['results'])
    for path, content in files:
        if {'seeds', 'rows', 'commands'} <= content.keys():
            known = [
                (row, labels[row['label']]) for row in content['rows'] if row['label'] in labels
            ]
            if any(row.get('updates', arm['updates']) != arm['updates'] for row, arm in known):
                continue
            for k, seed in enumerate(content['seeds']):
                rows = [{'kind': kinds[arm['name']], 'AP': row['AP'][k]} for row, arm in known]
                yield from _setup(recipe, content['commands'][k], seed, path, rows)


def _plan(arms: list[dict]) -> list[tuple]:
    return [(arm['name'], arm['teachers'], arm['updates']) for arm in arms]


def _setup(recipe: Recipe, command: str, seed: int, path: Path, rows: list[dict]) -> Iterator:
    words = shlex.split(command)
    start = words.index('--cfg-options') + 1 if '--cfg-options' in words else len(words)
    given = takewhile(lambda word: not word.startswith('--'), words[start:])
    try:
        same = load_recipe(recipe.source, parse_overrides(' '.join(given)))
    except (MtpdError, ValueError):  # overrides that the recipe does not know any more
        return
    yield replace(of_recipe(same, shown(path)), seed=seed), rows
