"""How a detector takes images, by its config or checkpoint, and whether a recipe makes them so."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import ast
import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

from mmcv import Config

from ..config.recipe import Recipe
from ..utils.paths import resolve


def weights_from_elsewhere(spec: dict, model: dict) -> bool:
    """Whether somebody else's images made the weights that the detector has or starts with."""
    pretrained = 'Pretrained' in str(model.backbone.get('init_cfg'))
    return bool(spec.get('checkpoint') or spec.get('init') or pretrained)


def of_config(recipe: Recipe, name: str) -> dict | None:
    """The normalisation in a detector's mmdet config; None where it has no data pipeline."""
    cfg = Config.fromfile(str(resolve(recipe.detectors[name].config, recipe.source)))
    return next(_steps(cfg.get('data', {})), cfg.get('img_norm_cfg'))


def _steps(node: Any) -> Iterator[dict]:
    if isinstance(node, dict):
        if node.get('type') == 'Normalize':
            yield node
        node = list(node.values())
    for item in node if isinstance(node, (list, tuple)) else ():
        yield from _steps(item)


def of_meta(meta: dict) -> dict | None:
    """The normalisation that a checkpoint's own config states, which is read and never run."""
    try:
        nodes = list(ast.walk(ast.parse(str(meta.get('config')))))
    except (SyntaxError, ValueError, RecursionError):
        return None
    found = [step for node in nodes for step in _literals(node) if _is_normalisation(step)]
    alike = found and all(_same(found[0], item) for item in found)
    return found[0] if alike else None  # texts of several files may state what is overridden


def _literals(node: ast.AST) -> Iterator[dict]:
    """The dict that a node of Python's syntax writes, as `dict(...)` or in braces, if it is all literals."""
    if isinstance(node, ast.Call):
        items = [(word.arg, word.value) for word in node.keywords]
    elif isinstance(node, ast.Dict):
        items = [
            (getattr(key, 'value', None), item)
            for key, item in zip(node.keys, node.values, strict=True)
        ]
    else:
        return
    if {'mean', 'std'} <= {key for key, _ in items}:
        with contextlib.suppress(ValueError, TypeError):
            yield {key: ast.literal_eval(value) for key, value in items}


def _is_normalisation(step: dict) -> bool:
    numbers = [step['mean'], step['std']]
    return step.get('type', 'Normalize') == 'Normalize' and all(
        isinstance(n, (list, tuple)) for n in numbers
    )


def problems(recipe: Recipe, name: str, theirs: dict | None, where: str) -> list[str]:
    """What is wrong with the recipe's images for a detector that takes `theirs`, which `where` states (None: unknown)."""
    image = recipe.cfg.image
    if theirs is None or _same(theirs, image):
        return []
    options = f"'image.mean={_numbers(theirs['mean'])} image.std={_numbers(theirs['std'])}"
    options += f" image.to_rgb={theirs.get('to_rgb', True)}'"
    of_student = None if name == 'student' else of_config(recipe, 'student')
    if of_student and _same(of_student, image):
        fix = (
            'Choose a teacher that takes images as the student does: in mmdet, one without caffe in its name; '
            f'or, with a student of its kind, --cfg-options {options}'
        )
    else:
        fix = f'Set --cfg-options {options}, for all detectors of the recipe; or choose another checkpoint.'
    return [
        f'{name} takes images with {_text(theirs)} ({where}), and the recipe makes them with {_text(image)}: '
        f'its features would be wrong. {fix}'
    ]


def _same(one: dict, other: dict) -> bool:
    if one.get('to_rgb', True) != other.get('to_rgb', True):
        return False
    pairs = ((a, b) for key in ('mean', 'std') for a, b in zip(one[key], other[key], strict=False))
    return all(math.isclose(a, b, abs_tol=1e-3) for a, b in pairs)


def _text(norm: dict) -> str:
    to_rgb = norm.get('to_rgb', True)
    return f'mean {_numbers(norm["mean"])}, std {_numbers(norm["std"])}, to_rgb {to_rgb}'


def _numbers(values: Iterable[float]) -> str:
    return '[' + ','.join(f'{value:g}' for value in values) + ']'
