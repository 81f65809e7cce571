"""Do a recipe's detectors fit its data, its images and its metrics? Seen before anything is trained."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmcv import ConfigDict
from mmdet.models import build_detector

from ..config.recipe import Recipe
from ..data import coco
from ..distill.inherit import warm_start
from ..errors import MtpdError
from ..runtime import checkpoints
from ..utils.files import sha256, stated_sha256
from . import normalisation

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
        if normalisation.weights_from_elsewhere(spec, model):
            theirs = normalisation.of_config(recipe, name)
            found += normalisation.problems(recipe, name, theirs, spec.config)
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
        without, count = coco.without_masks(path)
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
        checkpoint = checkpoints.load(path)
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
    return found + normalisation.problems(recipe, name, normalisation.of_meta(meta), path.name)


def distillation_problems(recipe: Recipe, teachers: Iterable[str]) -> list[str]:
    """What is wrong with `distill` for these teachers: levels that an FPN lacks, modules, losses and their settings."""
    from ..config.trainings import distill_cfg
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
        what = f'it knows {len(theirs)} classes ({_few(known)}), the dataset has {len(ours)} ({_few(recipe.classes)})'
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


def _few(names: Iterable[str]) -> str:
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
