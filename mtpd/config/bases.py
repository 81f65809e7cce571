"""A config's files before mmcv runs them: the `_base_` files they build on, and keys that are given twice."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def problems(source: Path) -> list[str]:
    """Missing files, circles of files, files that don't parse, and dicts that state a key twice, of which Python would
    drop the first."""
    return list(dict.fromkeys(_walk(source.resolve(), ())))


def _walk(path: Path, above: tuple[Path, ...]) -> Iterator[str]:
    if path in above:
        circle = ' → '.join(str(item) for item in (*above[above.index(path) :], path))
        yield f'the files named by _base_ go in a circle: {circle}. Remove one of them.'
        return
    try:
        tree = ast.parse(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        yield f'_base_ of {above[-1]}: {path} is missing. Correct the path, which is relative to that file.'
        return
    except SyntaxError as error:
        if path.suffix == '.py':  # mmcv names others
            yield f'it does not load: SyntaxError: {path}, line {error.lineno}: {error.msg}'
        return
    except (OSError, ValueError, RecursionError, MemoryError):
        return  # left to mmcv, which names them
    yield from _twice(path, tree)
    for base in _bases(tree):
        yield from _walk((path.parent / base).resolve(), (*above, path))


def _bases(tree: ast.Module) -> list[str]:
    for line in tree.body:
        named = isinstance(line, ast.Assign) and getattr(line.targets[0], 'id', '') == '_base_'
        if named:
            try:
                value = ast.literal_eval(line.value)
            except (ValueError, TypeError):
                return []
            found = [value] if isinstance(value, str) else value
            return [base for base in found if isinstance(base, str) and '{{' not in base]
    return []


def _twice(path: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        keys = [getattr(key, 'value', None) for key in getattr(node, 'keys', ())]
        for key in {key for key in keys if isinstance(key, str) and keys.count(key) > 1}:
            yield f'{path}, line {node.lineno}: {key!r} is given twice in one dict. Remove or rename one.'
