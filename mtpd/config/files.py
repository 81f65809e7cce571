"""Config files of mmcv: read, overridden, written; and what mmdet's model configs in them need."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import ast
import contextlib
import copy
import os
import pprint
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmcv import Config, ConfigDict

from ..errors import RecipeError
from ..utils.paths import ROOT, find_config_file, nearest_config, packaged_configs, user_path
from .schema import parse_overrides

_plain_file2dict = Config._file2dict
IN_MMDET = 'mmdet::'
PATH_SETTINGS = ('root', 'config', 'checkpoint', 'init')  # of a recipe's data and detectors


def read_config(path: str | Path) -> tuple[Path, Config]:
    """The file of a recipe or an mmdet config (see `paths.find_config_file`), and its values.

    A file in `_base_` is looked for beside the file that names it, then in the checkout; `mmdet::x.py` is mmdet's. Of a recipe's paths, those to
    files beside the file that states them are absolute in the values.

    Raises:
        RecipeError: no such file, or one that does not load.
    """
    source = find_config_file(path)
    if problems := config_file_problems(source):
        raise RecipeError(source, problems)
    try:
        with _files_read_as_recipes():
            return source, Config.fromfile(str(source.resolve()))
    except Exception as error:  # a recipe is Python: anything can go wrong in it
        raise _load_error(source, error) from error


def mmdet_config(path: Path) -> Config:
    """The values of a detector's mmdet config, whose `_base_` may be in mmdet's package: `mmdet::family/name.py`."""
    with _files_read_as_recipes():
        return Config.fromfile(str(path.resolve()))


@contextlib.contextmanager
def _files_read_as_recipes() -> Iterator[None]:
    """In the block mmcv finds each `_base_` file as `base_file` does, and the paths that a file states are settled by it.

    mmcv knows bases beside a file only, and merges all files, after which nobody knows which of them stated a path.
    """
    folders: list[Path] = []

    def read_file(filename: str, *options: Any) -> tuple[dict, str]:
        file = Path(filename)
        if folders:  # mmcv joined the name in `_base_` to the folder of the file that has it
            file = base_file(folders[-1], filename.removeprefix(f'{folders[-1]}/'))
        folders.append(file.parent)
        try:
            values, text = _plain_file2dict(str(file), *options)
        finally:
            folders.pop()
        settle_stated_paths(values, file.parent)
        return values, text

    path = list(sys.path)
    Config._file2dict = staticmethod(read_file)
    try:
        yield
    finally:
        Config._file2dict = staticmethod(_plain_file2dict)
        sys.path[:] = path  # mmcv leaves a folder in it where a file raises


def base_file(folder: Path, name: str) -> Path:
    """The file that a config file in `folder` names in `_base_`: relative to `folder`, else to the checkout, or `mmdet::x.py`."""
    if name.startswith(IN_MMDET):
        return packaged_configs() / name.removeprefix(IN_MMDET)
    file = (folder / user_path(name)).resolve()
    in_checkout = (ROOT / name).resolve()
    return in_checkout if in_checkout.is_file() and not file.is_file() else file


def settle_stated_paths(values: dict, folder: Path) -> None:
    """Makes the paths absolute that a recipe's file in `folder` states, where there is such a file beside it."""
    teachers = values.get('teachers')
    teachers = teachers.values() if isinstance(teachers, dict) else ()
    for node in (values.get('data'), values.get('student'), *teachers):
        for key in PATH_SETTINGS if isinstance(node, dict) else ():
            path = node.get(key)
            if isinstance(path, str) and path and (folder / user_path(path)).exists():
                node[key] = os.path.normpath(folder / user_path(path))


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
    """Overrides a config's values by dotted keys. Raises RecipeError where that cannot be done."""
    if problems := [text for key in overrides if (text := _override_problem(cfg, key))]:
        raise RecipeError(source, problems)
    try:
        cfg.merge_from_dict(copy.deepcopy(overrides))
    except Exception as error:  # mmcv raises several types
        text = f'the overrides cannot be applied: {type(error).__name__}: {error}. Correct their keys or values.'
        raise RecipeError(source, [text]) from error


def _override_problem(cfg: Config, key: str) -> str | None:
    """What is wrong with an override below a value that has nothing below it."""
    node, parts = cfg._cfg_dict, key.split('.')
    for depth, part in enumerate(parts[:-1], 1):
        if not isinstance(node, dict) or part not in node:
            return None  # a list, which mmcv looks into, or new
        node, place = node[part], '.'.join(parts[:depth])
        if not isinstance(node, (dict, list)):
            return (
                f'{key} cannot be set: {place} is {node!r}, which has no keys. Set {place} itself.'
            )
    return None


def _load_error(source: Path, error: Exception) -> RecipeError:
    """The error of a file that mmcv could not read, with the file and its line."""
    file, line = source, None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code is _plain_file2dict.__code__:
            file, line = frame.f_locals['filename'], None
            if copy_of_file := frame.f_locals.get('temp_config_file'):
                with contextlib.suppress(
                    OSError
                ):  # its folder is gone; later, Python would print that
                    copy_of_file.close()
        elif frame.f_code.co_name == '<module>' and line is None:
            line = number  # mmcv executes a copy with the same lines
    place = f'{file}, line {line}' if line else f'{file}'
    # mmcv drops the text of the error where it can't import what `custom_imports` names.
    cause = str(error) or str(error.__context__)
    fix = 'Install what it imports, or correct' if isinstance(error, ImportError) else 'Correct'
    text = f'the config does not load: {type(error).__name__}: {cause} ({place}). {fix} that file.'
    return RecipeError(source, [text])


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


def pretrained_keys(model: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where a model config names weights that its parts begin with, such as ``('backbone', 'init_cfg')``."""
    for key, value in model.items():
        is_dict = isinstance(value, dict)
        pretrained = is_dict and value.get('type') == 'Pretrained'
        if value and (key == 'pretrained' or (key == 'init_cfg' and pretrained)):
            yield (*path, key)
        elif is_dict:
            yield from pretrained_keys(value, (*path, key))


def use_plain_batch_norm(node: Any) -> None:
    """Puts batch norm of one process in place of the synchronised one in a model config."""
    if isinstance(node, dict):
        if node.get('type') in ('SyncBN', 'MMSyncBN'):
            node['type'] = 'BN'
        node = list(node.values())
    for item in node if isinstance(node, (list, tuple)) else ():
        use_plain_batch_norm(item)


# Parts of a model config whose classes are not the objects': proposals have none, and semantic maps have their own.
CLASS_AGNOSTIC_PARTS = ('backbone', 'rpn_head', 'semantic_head')


def set_class_count(node: Any, count: int) -> None:
    """Sizes all heads of a model config for `count` classes."""
    if isinstance(node, dict):
        if 'num_things_classes' in node:
            node['num_things_classes'] = count
            _resize_class_weight(node.get('loss_cls'), count + node.get('num_stuff_classes', 0))
        elif 'num_classes' in node:
            node['num_classes'] = count
        node = [part for key, part in node.items() if key not in CLASS_AGNOSTIC_PARTS]
    for item in node if isinstance(node, (list, tuple)) else ():
        set_class_count(item, count)


def _resize_class_weight(loss: dict | None, count: int) -> None:
    """A weight for each class, all alike, and one for no object."""
    weight = (loss or {}).get('class_weight')
    if isinstance(weight, (list, tuple)) and len(set(weight[:-1])) == 1:
        loss['class_weight'] = [weight[0]] * count + [weight[-1]]


# Files before mmcv runs them


def config_file_problems(source: Path) -> list[str]:
    """What is wrong with a config file and the `_base_` files that it builds on.

    Missing files, circles of files, files that don't parse, and dicts that state a key twice, of which Python would
    drop the first.
    """
    return list(dict.fromkeys(_file_problems(source.resolve(), ())))


def works_text(path: Path) -> str:
    """A sentence that names an existing config of this name; '' where there is none."""
    for owner, folder in (('The checkout', ROOT / 'configs'), ('mmdet', packaged_configs())):
        if file := nearest_config(path, folder):
            return f' {owner} has one: {file} is a path that works.'
    return ''


def _file_problems(path: Path, parents: tuple[Path, ...]) -> Iterator[str]:
    if path in parents:
        circle = ' → '.join(str(item) for item in (*parents[parents.index(path) :], path))
        yield f'the files that _base_ names form a circle: {circle}. Remove one of them.'
        return
    try:
        tree = ast.parse(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        yield (
            f'_base_ of {parents[-1]}: {path} is missing. Correct the path, which is absolute, or relative to that file or '
            f'to {ROOT}.{works_text(path)}'
        )
        return
    except SyntaxError as error:
        if path.suffix == '.py':  # mmcv names others
            yield f'the config does not load: SyntaxError: {path}, line {error.lineno}: {error.msg}. Correct that line.'
        return
    except (OSError, ValueError, RecursionError, MemoryError):
        return  # left to mmcv, which names them
    yield from _repeated_keys(path, tree)
    yield from _base_problems(path, tree)
    for base in _base_names(tree):
        yield from _file_problems(base_file(path.parent, base), (*parents, path))


def _base_line(tree: ast.Module) -> ast.Assign | None:
    """The line that sets `_base_`."""
    for line in tree.body:
        if isinstance(line, ast.Assign) and getattr(line.targets[0], 'id', '') == '_base_':
            return line
    return None


def _base_problems(path: Path, tree: ast.Module) -> Iterator[str]:
    """mmcv takes a text or a list for `_base_`."""
    line = _base_line(tree)
    if line and isinstance(line.value, (ast.Tuple, ast.Dict, ast.Set)):
        yield f'{path}, line {line.lineno}: _base_ must be a text or a list. Write it in [ ].'


def _base_names(tree: ast.Module) -> list[str]:
    line = _base_line(tree)
    try:
        value = ast.literal_eval(line.value) if line else []
    except (ValueError, TypeError):
        return []
    bases = [value] if isinstance(value, str) else value
    return [base for base in bases if isinstance(base, str) and '{{' not in base]


def _repeated_keys(path: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        keys = [getattr(key, 'value', None) for key in getattr(node, 'keys', ())]
        for key in {key for key in keys if isinstance(key, str) and keys.count(key) > 1}:
            yield f'{path}, line {node.lineno}: {key!r} is given twice in one dict. Remove or rename one.'
