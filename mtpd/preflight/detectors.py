"""Do a recipe's detectors fit its data, its images and its metrics? Seen before anything is trained."""

from __future__ import annotations

import ast
import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmcv import Config, ConfigDict
from mmdet.models import build_detector

from ..config.recipe import Recipe
from ..data import coco
from ..distill.initialization import warm_start
from ..errors import MtpdError
from ..runtime import checkpoints
from ..utils.files import sha256, stated_sha256
from ..utils.paths import resolve_path

USED = ('backbone.', 'neck.')  # what distillation needs of a teacher


def settings_problems(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """What can be seen without a checkpoint: masks, metrics, image normalisation."""
    found = []
    segm = 'segm' in recipe.cfg.evaluation.metrics
    if segm:
        found += mask_problems(recipe, 'val', 'evaluation.metrics has segm')
    for name in names:
        model, spec = recipe.model(name), recipe.detectors[name]
        masks = 'mask_head' in str(model)
        if segm and not masks:
            found.append(
                f'evaluation.metrics has segm, and {name} predicts no masks: leave segm out.'
            )
        if masks and (name == 'student' or not spec.get('checkpoint')):
            found += mask_problems(recipe, 'train', f'{name} has a mask head')
        if weights_from_elsewhere(spec, model):
            theirs = config_normalisation(recipe, name)
            found += normalisation_problems(recipe, name, theirs, spec.config)
    return found


def init_problems(recipe: Recipe, name: str, path: Path) -> list[str]:
    """What is wrong with the weights in `path`, with which a detector's training begins."""
    try:
        warm_start(build_detector(ConfigDict(recipe.model(name))), path)
    except MtpdError as error:
        return [f'{name}.init: {error}']
    except Exception as error:  # mmdet raises a dozen types
        return [_unbuilt(recipe, name, error)]
    return []


def _unbuilt(recipe: Recipe, name: str, error: Exception) -> str:
    return f'{name}: mmdet cannot build {recipe.detectors[name].config}: {error}'


def mask_problems(recipe: Recipe, split: str, because: str) -> list[str]:
    """Objects without a mask in 'train' or 'val'; `because` says who needs them."""
    if recipe.cfg.data.root is None:  # DigitScenes have masks
        return []
    path = recipe.split(split)[0]
    try:
        without, count = coco.count_without_masks(path)
    except MtpdError:  # which the data's own problems tell
        return []
    if not without:
        return []
    return [
        f'{because}, and {without} of {count} annotations of {path} have no mask (segmentation): '
        'add them, or choose detectors and metrics without masks.'
    ]


def checkpoint_problems(recipe: Recipe, name: str, path: Path) -> list[str]:
    """What is wrong with a detector's checkpoint file: damage, checksum, classes, architecture, images."""
    try:
        checkpoint = checkpoints.load_checkpoint(path)
        state = checkpoints.student_state(checkpoint, path)
    except MtpdError as error:
        return [f'{name}: {error}']
    stated, actual = stated_sha256(path), sha256(path)
    if stated and not actual.startswith(stated):
        return [
            f'{name}: {path} has a sha256 that begins {actual[:8]}, and {stated[:8]} is stated for it: '
            'it was damaged or replaced, fetch it again.'
        ]
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    found = _class_problems(recipe, name, path, meta.get('CLASSES'))
    if not found:
        found = _architecture_problems(recipe, name, path, state)
    return found + normalisation_problems(recipe, name, checkpoint_normalisation(meta), path.name)


def distillation_problems(recipe: Recipe, teachers: Iterable[str]) -> list[str]:
    """What is wrong with `distill` for these teachers: levels that an FPN lacks, modules, losses and their settings."""
    from ..config.plan import distill_cfg
    from ..distill.losses import build_losses

    found = []
    for name in teachers:
        configs, models = [recipe.model(who) for who in ('student', name)], []
        try:
            for who, cfg in zip(('student', name), configs, strict=True):  # noqa: B007  (named below)
                models.append(build_detector(ConfigDict(cfg)))
        except Exception as error:  # as above
            found.append(_unbuilt(recipe, who, error))
            continue
        try:
            build_losses(distill_cfg(recipe, *configs), *models)
        except MtpdError as error:
            found.append(f'student and {name}: {error}')
        except Exception as error:  # of settings that are no arguments of a loss, or no pattern
            found.append(
                f'student and {name}: distill does not fit them: {type(error).__name__}: {error}'
            )
    return list(dict.fromkeys(found))


# Classes and architecture


def _class_problems(recipe: Recipe, name: str, path: Path, known: Any) -> list[str]:
    known = (known,) if isinstance(known, str) else known
    if not isinstance(known, (list, tuple)):
        return []
    ours, theirs = ([_plain(item) for item in names] for names in (recipe.classes, known))
    if ours == theirs:
        return []
    if len(ours) != len(theirs):
        what = f'it knows {len(theirs)} classes ({_first_few(known)}), the dataset has {len(ours)} ({_first_few(recipe.classes)})'
    else:
        k = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if len(set(pair)) > 1)
        order = ' (the same classes in another order)' if sorted(ours) == sorted(theirs) else ''
        what = f"its class {k} is {known[k]!r}, the dataset's {recipe.classes[k]!r}{order}"
    key = name if name == 'student' else f'teachers.{name}'
    return [
        f'{name}: {path} was trained on other classes: {what}. Give a checkpoint of these classes in this order, '
        f'or train it here from those weights: --cfg-options {key}.checkpoint=None {key}.init={path}'
    ]


def _plain(name: Any) -> str:
    return str(name).lower().replace('_', ' ').strip()  # early mmdet: traffic_light


def _first_few(names: Iterable[str]) -> str:
    names = list(map(str, names))
    return ', '.join(names[:3]) + ', ...' * (len(names) > 3)


def _architecture_problems(recipe: Recipe, name: str, path: Path, state: dict) -> list[str]:
    try:
        model = build_detector(ConfigDict(recipe.model(name)))
    except Exception as error:  # mmdet raises a dozen types
        return [_unbuilt(recipe, name, error)]
    own = model.state_dict()
    if name != 'student':  # a teacher's head may have less or more; where it is used, that is seen
        for key in [key for key in state if key not in own and not key.startswith(USED)]:
            del state[key]
        for key in [key for key in own if key not in state and not key.startswith(USED)]:
            state[key] = own[key]
    try:
        checkpoints.load_strictly(model, state, name, path)
    except MtpdError as error:
        return [str(error)]
    return []


# How a detector takes images, by its config or checkpoint, and whether a recipe makes them so.


def weights_from_elsewhere(spec: dict, model: dict) -> bool:
    """Whether somebody else's images made the weights that the detector has or starts with."""
    pretrained = 'Pretrained' in str(model.backbone.get('init_cfg'))
    return bool(spec.get('checkpoint') or spec.get('init') or pretrained)


def config_normalisation(recipe: Recipe, name: str) -> dict | None:
    """The normalisation in a detector's mmdet config; None where it has no data pipeline."""
    cfg = Config.fromfile(str(resolve_path(recipe.detectors[name].config, recipe.source)))
    return next(_steps(cfg.get('data', {})), cfg.get('img_norm_cfg'))


def _steps(node: Any) -> Iterator[dict]:
    if isinstance(node, dict):
        if node.get('type') == 'Normalize':
            yield node
        node = list(node.values())
    for item in node if isinstance(node, (list, tuple)) else ():
        yield from _steps(item)


def checkpoint_normalisation(meta: dict) -> dict | None:
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


def normalisation_problems(recipe: Recipe, name: str, theirs: dict | None, where: str) -> list[str]:
    """What is wrong with the recipe's images for a detector that takes `theirs`, which `where` states (None: unknown)."""
    image = recipe.cfg.image
    if theirs is None or _same(theirs, image):
        return []
    options = f"'image.mean={_numbers(theirs['mean'])} image.std={_numbers(theirs['std'])}"
    options += f" image.to_rgb={theirs.get('to_rgb', True)}'"
    of_student = None if name == 'student' else config_normalisation(recipe, 'student')
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
