"""Config files of mmcv: read, overridden, written; and what mmdet's model configs in them need."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import ast
import copy
import pprint
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmcv import Config, ConfigDict

from ..errors import RecipeError
from ..utils.paths import find_config_file
from .schema import parse_overrides


def read_config(path: str | Path) -> tuple[Path, Config]:
    """The file of a recipe or an mmdet config (see `paths.config_file`), and its values.

    Raises:
        RecipeError: no such file, or one that does not load.
    """
    source = find_config_file(path)
    if problems := config_file_problems(source):
        raise RecipeError(source, problems)
    try:
        return source, Config.fromfile(str(source.resolve()))
    except Exception as error:  # a recipe is Python: anything can go wrong in it
        raise _load_error(source, error) from error


def is_plain_config(cfg: Config) -> bool:
    """Whether it is a plain mmdet config rather than a recipe."""
    return 'model' in cfg and 'student' not in cfg


def as_overrides(overrides: dict | str | None) -> dict:
    """Overrides by dotted keys, from any of the forms that `load_recipe` takes. Raises RecipeError."""
    try:
        return parse_overrides(overrides) if isinstance(overrides, str) else overrides or {}
    except ValueError as error:
        raise RecipeError('an override', [str(error)]) from None


def override_values(cfg: Config, overrides: dict, source: Path) -> None:
    """Overrides a config's values by dotted keys. Raises RecipeError where they don't fit in."""
    try:
        cfg.merge_from_dict(copy.deepcopy(overrides))
    except Exception as error:  # mmcv raises several types
        raise _load_error(source, error) from error


def _load_error(source: Path, error: Exception) -> RecipeError:
    return RecipeError(source, [f'it does not load: {type(error).__name__}: {error}'])


def format_config(values: dict, wide: int | None = None) -> str:
    """A config file's text, without mmcv's long-winded formatting.

    Args:
        wide: characters of a line; None: a line for each key.
    """
    lines = []
    for key, value in values.items():
        text = pprint.pformat(value, width=wide, sort_dicts=False) if wide else repr(value)
        lines.append(f'{key} = {text}\n')
    return ''.join(lines)


# Model configs


def pretrained_as_init_cfg(model: ConfigDict) -> None:
    """Moves `pretrained`, the older name of a backbone's weights, into the backbone's `init_cfg`.

    mmdet refuses both together, and some of its configs state the one and inherit the other (RetinaNet R101's 3x
    config). An `init_cfg` of None stays: random weights.
    """
    pretrained = model.pop('pretrained', None)
    if pretrained and model.backbone.get('init_cfg', pretrained) is not None:
        model.backbone.init_cfg = ConfigDict(type='Pretrained', checkpoint=pretrained)


def set_class_count(node: Any, count: int) -> None:
    """Sizes all heads of a model config for `count` classes."""
    if isinstance(node, dict):
        if 'num_classes' in node:
            node['num_classes'] = count
        node = list(node.values())
    for item in node if isinstance(node, (list, tuple)) else ():
        set_class_count(item, count)


# Files before mmcv runs them


def config_file_problems(source: Path) -> list[str]:
    """What is wrong with a config file and the `_base_` files that it builds on.

    Missing files, circles of files, files that don't parse, and dicts that state a key twice, of which Python would
    drop the first.
    """
    return list(dict.fromkeys(_file_problems(source.resolve(), ())))


def _file_problems(path: Path, parents: tuple[Path, ...]) -> Iterator[str]:
    if path in parents:
        circle = ' → '.join(str(item) for item in (*parents[parents.index(path) :], path))
        yield f'the files named by _base_ go in a circle: {circle}. Remove one of them.'
        return
    try:
        tree = ast.parse(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        yield f'_base_ of {parents[-1]}: {path} is missing. Correct the path, which is relative to that file.'
        return
    except SyntaxError as error:
        if path.suffix == '.py':  # mmcv names others
            yield f'it does not load: SyntaxError: {path}, line {error.lineno}: {error.msg}'
        return
    except (OSError, ValueError, RecursionError, MemoryError):
        return  # left to mmcv, which names them
    yield from _repeated_keys(path, tree)
    for base in _base_names(tree):
        yield from _file_problems((path.parent / base).resolve(), (*parents, path))


def _base_names(tree: ast.Module) -> list[str]:
    for line in tree.body:
        if isinstance(line, ast.Assign) and getattr(line.targets[0], 'id', '') == '_base_':
            try:
                value = ast.literal_eval(line.value)
            except (ValueError, TypeError):
                return []
            bases = [value] if isinstance(value, str) else value
            return [base for base in bases if isinstance(base, str) and '{{' not in base]
    return []


def _repeated_keys(path: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        keys = [getattr(key, 'value', None) for key in getattr(node, 'keys', ())]
        for key in {key for key in keys if isinstance(key, str) and keys.count(key) > 1}:
            yield f'{path}, line {node.lineno}: {key!r} is given twice in one dict. Remove or rename one.'
