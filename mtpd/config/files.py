"""Config files of mmcv: read, overridden, written; and what the model configs of mmdet in them need."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import copy
import pprint
from functools import partial
from pathlib import Path
from typing import Any

from mmcv import Config, ConfigDict

from ..errors import RecipeError
from ..utils.paths import config_file
from . import bases, schema


def read(path: str | Path) -> tuple[Path, Config]:
    """A recipe's or an mmdet config's file (see `paths.config_file`) and its values.

    Raises:
        RecipeError: no such file, or one that does not load.
    """
    source = config_file(path)
    if found := bases.problems(source):
        raise RecipeError(source, found)
    try:
        return source, Config.fromfile(str(source.resolve()))
    except Exception as error:  # a recipe is Python: anything can go wrong in it
        raise RecipeError(source, [f'it does not load: {type(error).__name__}: {error}']) from error


def is_plain(cfg: Config) -> bool:
    """Whether it is a plain mmdet config rather than a recipe."""
    return 'model' in cfg and 'student' not in cfg


def as_overrides(overrides: dict | str | None) -> dict:
    """Overrides by dotted keys, from any of the forms that `load_recipe` takes. Raises RecipeError."""
    try:
        return schema.parse_overrides(overrides) if isinstance(overrides, str) else overrides or {}
    except ValueError as error:
        raise RecipeError('an override', [str(error)]) from None


def lay_over(cfg: Config, overrides: dict, source: Path) -> None:
    """Overrides a config's values by dotted keys. Raises RecipeError where they don't fit in."""
    try:
        cfg.merge_from_dict(copy.deepcopy(overrides))
    except Exception as error:  # mmcv raises several types
        raise RecipeError(source, [f'it does not load: {type(error).__name__}: {error}']) from error


def as_python(values: dict, wide: int | None = None) -> str:
    """A config file's text, without mmcv's long-winded formatting; in lines of `wide` characters, or one per key."""
    shown = partial(pprint.pformat, width=wide, sort_dicts=False) if wide else repr
    return ''.join(f'{key} = {shown(value)}\n' for key, value in values.items())


def name_weights_once(model: ConfigDict) -> None:
    """mmdet refuses `pretrained`, the older name, beside a backbone's `init_cfg`, and some of its configs have both:
    they state the one and inherit the other (RetinaNet R101's 3x config). An `init_cfg` of None stays: random weights.
    """
    origin = model.pop('pretrained', None)
    if origin and model.backbone.get('init_cfg', origin) is not None:
        model.backbone.init_cfg = ConfigDict(type='Pretrained', checkpoint=origin)


def set_classes(node: Any, count: int) -> None:
    """Sizes all heads of a model config for `count` classes."""
    for item in (
        node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
    ):
        set_classes(item, count)
    if isinstance(node, dict) and 'num_classes' in node:
        node['num_classes'] = count
