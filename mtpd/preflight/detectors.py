"""Whether a recipe's detectors fit its data, its images and its metrics, before anything is trained."""

from __future__ import annotations

import ast
import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmcv import ConfigDict
from mmdet.models import DETECTORS, RPN, build_detector
from torch import nn

from ..config.files import mmdet_config
from ..config.recipe import Recipe, detector_key
from ..data import coco
from ..data.classes import known_classes, list_names, same_classes
from ..distill.distiller import Teacher
from ..distill.initialization import InheritanceError, inherit_from_teacher, warm_start
from ..distill.losses import build_losses
from ..engine.distill_config import distill_cfg
from ..engine.pipelines import has_mask_head
from ..errors import MtpdError
from ..runtime import checkpoints
from ..utils.files import file_sha256, stated_sha256
from ..utils.paths import resolve_path

TEACHER_PARTS = ('backbone.', 'neck.')  # which distillation needs


def settings_problems(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """What is wrong with detectors that shows without their checkpoints: masks, metrics, image normalisation."""
    problems = []
    segm = 'segm' in recipe.cfg.evaluation.metrics
    if segm:
        problems += mask_problems(recipe, 'val', 'evaluation.metrics has segm')
    for name in names:
        model, spec = recipe.model(name), recipe.detectors[name]
        features_only = recipe.is_features_only(name)
        if (task := other_task(model)) and not features_only:
            problems.append(
                f'{name}: {task} Choose another {detector_key(name)}.config{_or_features(name)}.'
            )
        masks = has_mask_head(model) and not features_only
        if segm and not masks and not features_only:
            problems.append(
                f'evaluation.metrics has segm, and {name} predicts no masks: leave segm out.'
            )
        if masks and (name == 'student' or not spec.get('checkpoint')):
            problems += mask_problems(recipe, 'train', f'{name} has a mask head')
        if has_mask_head(model, ('semantic_head',)) and (
            name == 'student' or not spec.get('checkpoint')
        ):
            problems.append(
                f'{name} trains on semantic maps, which are not loaded here. Choose a config without them, such as '
                f'mmdet::htc/htc_without_semantic_r50_fpn_1x_coco.py: {detector_key(name)}.config.'
            )
        if has_foreign_weights(spec, model):
            norm = config_normalisation(recipe, name)
            problems += normalisation_problems(recipe, name, norm, spec.config)
    return problems


def other_task(model: ConfigDict) -> str | None:
    """What a model of mmdet does that is not done here, in a sentence; None for a detector of objects."""
    kind = model.get('type')  # a teacher's features need no head, and no detector
    detector = DETECTORS.get(kind) if kind else None
    limits = ': only boxes and masks of objects are trained and measured here.'
    if detector and issubclass(detector, RPN):
        return f'the model ({kind}) proposes boxes without classes{limits}'
    if _segments_stuff(model):
        return f'the model ({kind}) segments stuff, too (panoptic){limits}'
    if any(key.startswith('teacher_') for key in model):
        return f'the model ({kind}) has a teacher of its own (mmdet distils it), which is not used here.'
    if model.get('roi_head') and not model.get('rpn_head'):
        return f'the model ({kind}) takes proposals from a file, which is not read here.'
    return None


def _segments_stuff(node: Any) -> bool:
    if isinstance(node, dict):
        return bool(node.get('num_stuff_classes')) or any(map(_segments_stuff, node.values()))
    return isinstance(node, (list, tuple)) and any(map(_segments_stuff, node))


def _or_features(name: str) -> str:
    """The way out for a teacher whose head does not fit."""
    if name == 'student':
        return ''
    return f'; or use its features only, without AP: --cfg-options {detector_key(name)}.features_only=True'


def init_problems(recipe: Recipe, name: str, path: Path) -> list[str]:
    """What is wrong with the weights in `path` as the start of a detector's training."""
    try:
        warm_start(build_detector(ConfigDict(recipe.model(name))), path)
    except MtpdError as error:
        return [f'{name}.init: {error}']
    except Exception as error:  # mmdet raises a dozen types
        return [_build_failure(recipe, name, error)]
    return []


def mask_problems(recipe: Recipe, split: str, reason: str) -> list[str]:
    """Whether objects of 'train' or 'val' have no mask; `reason` says what needs masks."""
    if recipe.cfg.data.root is None:  # DigitScenes have masks
        return []
    path = recipe.split(split)[0]
    try:
        problems = coco.mask_problems(path)
    except MtpdError:  # reported with the data
        return []
    return [
        f'{reason}, and {problem} Correct the masks, or choose detectors and metrics without masks.'
        for problem in problems
    ]


def checkpoint_problems(recipe: Recipe, name: str, path: Path) -> list[str]:
    """What is wrong with a detector's checkpoint file: damage, checksum, classes, architecture, images."""
    try:
        checkpoint = checkpoints.load_checkpoint(path)
        state = checkpoints.student_state(checkpoint, path)
    except MtpdError as error:
        return [f'{name}: {error}']
    stated, actual = stated_sha256(path), file_sha256(path)
    if stated and not actual.startswith(stated):
        return [
            f'{name}: {path} has a SHA-256 that begins with {actual[:8]}, but {stated[:8]} is stated for it: '
            'the file was damaged or replaced. Fetch it again.'
        ]
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    problems = []
    if not recipe.is_features_only(name):
        problems = _class_problems(recipe, name, path, meta.get('CLASSES'))
    if not problems:
        problems = _architecture_problems(recipe, name, path, state)
    norm = checkpoint_normalisation(meta)
    return problems + normalisation_problems(recipe, name, norm, path.name)


def distillation_problems(recipe: Recipe, teachers: Iterable[str]) -> list[str]:
    """What is wrong with `distill` for these teachers: levels that an FPN lacks, modules, losses and their settings."""
    problems, adapters = [], {}
    if (
        recipe.cfg.distill.method not in recipe.cfg.distill.settings
    ):  # reported with the recipe's values
        return []
    for teacher in teachers:
        configs, models = [], []
        for name in ('student', teacher):
            configs.append(recipe.model(name))
            try:
                models.append(_build(recipe, name))
            except Exception as error:  # mmdet raises a dozen types
                problems.append(_build_failure(recipe, name, error))
        if len(models) < 2:
            continue
        try:
            losses = build_losses(distill_cfg(recipe, *configs), *models)
            adapters[teacher] = {
                f'{name}.{key}': tuple(weight.shape)
                for name, loss in losses.items()
                for key, weight in loss.state_dict().items()
            }
        except MtpdError as error:
            problems.append(f'student and {teacher}: {error}')
        except Exception as error:  # of settings that are no arguments of a loss, or no pattern
            text = (
                f'distill does not fit these detectors: {type(error).__name__}: {error}. Correct the settings of the method; '
                'student_module and teacher_module may contain {level}.'
            )
            problems.append(f'student and {teacher}: {text}')
    if recipe.cfg.distill.get('keep_adapters') and len(set(map(str, adapters.values()))) > 1:
        problems.append(
            f'distill.keep_adapters: the distillation losses of {", ".join(adapters)} have weights of different shapes, so '
            'a stage cannot keep those of the stage before. Leave keep_adapters out.'
        )
    return list(dict.fromkeys(problems))


def inheritance_problems(recipe: Recipe, teachers: Iterable[str]) -> list[str]:
    """Whether students that begin with their first teacher's neck and head (`distill.start='inherit'`) can take them."""
    problems = []
    arms = recipe.arms.values()
    first = dict.fromkeys(name for arm in arms for name in arm.teachers[:1] if name in teachers)
    for teacher in first if recipe.cfg.distill.start == 'inherit' else ():
        # Problems of configs and checkpoints are reported with them.
        with contextlib.suppress(Exception):
            student, model = (
                build_detector(ConfigDict(recipe.model(name))) for name in ('student', teacher)
            )
            path, state = recipe.checkpoint(teacher), model.state_dict()
            if path and path.is_file():
                state = checkpoints.student_state(checkpoints.load_checkpoint(path), path)
            try:
                inherit_from_teacher(student, state, recipe.cfg.distill.inherit_allow)
            except InheritanceError as error:
                problems.append(f'student and {teacher}: {error}')
    return problems


def _build(recipe: Recipe, name: str) -> nn.Module:
    """A detector, or backbone and neck of a teacher with `features_only`."""
    build = Teacher if recipe.is_features_only(name) else build_detector
    return build(ConfigDict(recipe.model(name)))


def _build_failure(recipe: Recipe, name: str, error: Exception) -> str:
    config, key = recipe.detectors[name].config, detector_key(name)
    return f'{name}: mmdet cannot build {config}: {error}. Correct {key}.model, or choose another {key}.config.'


# Classes and architecture


def _class_problems(recipe: Recipe, name: str, path: Path, trained: Any) -> list[str]:
    """`trained`: the checkpoint's class names, whatever it has for them."""
    difference = class_difference(recipe, trained)
    if difference is None:
        return []
    key = detector_key(name)
    fix = f'or train it here from those weights: --cfg-options {key}.checkpoint=None {key}.init={path}'
    if name != 'student' and recipe.cfg.distill.start != 'inherit':
        fix += _or_features(name)
    return [
        f'{name}: {path} was trained on other classes: {difference}. Give a checkpoint of these classes in this order, {fix}'
    ]


def class_difference(recipe: Recipe, trained: Any) -> str | None:
    """How the classes of a checkpoint differ from the dataset's, in words; None where they don't, or it has no names."""
    trained, classes = known_classes(trained), recipe.classes
    if trained is None or same_classes(classes, trained):
        return None
    if len(classes) != len(trained):
        return (
            f'it has {len(trained)} classes ({list_names(trained)}), the dataset has {len(classes)} '
            f'({list_names(classes)})'
        )
    k = next(
        k for k in range(len(classes)) if not same_classes(classes[k : k + 1], trained[k : k + 1])
    )
    difference = f"its class {k} is {trained[k]!r}, the dataset's {classes[k]!r}"
    if same_classes(sorted(classes), sorted(trained)):
        difference += ' (the same classes in another order)'
    return difference


def _architecture_problems(recipe: Recipe, name: str, path: Path, state: dict) -> list[str]:
    features_only = recipe.is_features_only(name)
    try:
        model = _build(recipe, name)
    except Exception as error:  # mmdet raises a dozen types
        return [_build_failure(recipe, name, error)]
    weights = model.state_dict()
    if features_only:
        for key in [key for key in state if not key.startswith(TEACHER_PARTS)]:
            del state[key]
    try:
        checkpoints.load_strictly(model, state, name, path)
    except MtpdError as error:
        text = str(error)
        if name != 'student' and _differs_in_head_only(state, weights):
            text += f'\n  Or use its features only, without AP: --cfg-options {detector_key(name)}.features_only=True'
        return [text]
    return []


def _differs_in_head_only(state: dict, weights: dict) -> bool:
    parts = [
        {key: value.shape for key, value in some.items() if key.startswith(TEACHER_PARTS)}
        for some in (state, weights)
    ]
    return parts[0] == parts[1]


# Image normalisation: the recipe's, and that with which a detector's weights were trained


def has_foreign_weights(spec: dict, model: dict) -> bool:
    """Whether the detector has or starts with weights that were not trained by this recipe."""
    pretrained = 'Pretrained' in str(model.backbone.get('init_cfg'))
    return bool(spec.get('checkpoint') or spec.get('init') or pretrained)


RAW_PIXELS = {'mean': [0.0, 0.0, 0.0], 'std': [1.0, 1.0, 1.0], 'to_rgb': False}


def config_normalisation(recipe: Recipe, name: str) -> dict | None:
    """The normalisation in a detector's mmdet config; `RAW_PIXELS` where its pipelines have none, as YOLOX's.

    None where the config has no data pipeline.
    """
    cfg = mmdet_config(resolve_path(recipe.detectors[name].config, recipe.source))
    data = cfg.get('data', {})
    raw = RAW_PIXELS if 'LoadImageFromFile' in str(data) else None
    return next(normalise_steps(data), cfg.get('img_norm_cfg', raw))


def normalise_steps(node: Any) -> Iterator[dict]:
    if isinstance(node, dict):
        if node.get('type') == 'Normalize':
            yield node
        node = list(node.values())
    for item in node if isinstance(node, (list, tuple)) else ():
        yield from normalise_steps(item)


def checkpoint_normalisation(meta: dict) -> dict | None:
    """The normalisation that a checkpoint's own config states, which is read and never run."""
    try:
        nodes = list(ast.walk(ast.parse(str(meta.get('config')))))
    except (SyntaxError, ValueError, RecursionError):
        return None
    steps = [step for node in nodes if (step := _literal_normalisation(node))]
    alike = all(same_normalisation(steps[0], step) for step in steps)
    # Texts of several files may state what is overridden.
    return steps[0] if steps and alike else None


def _literal_normalisation(node: ast.AST) -> dict | None:
    """The settings of a Normalize step that a node of Python's syntax writes as `dict(...)` or in braces."""
    if isinstance(node, ast.Call):
        items = {word.arg: word.value for word in node.keywords}
    elif isinstance(node, ast.Dict):
        items = {
            getattr(key, 'value', None): value
            for key, value in zip(node.keys, node.values, strict=True)
        }
    else:
        return None
    if not {'mean', 'std'} <= items.keys():
        return None
    try:
        step = {key: ast.literal_eval(value) for key, value in items.items()}
    except (ValueError, TypeError):
        return None
    lists = all(isinstance(step[key], (list, tuple)) for key in ('mean', 'std'))
    return step if lists and step.get('type', 'Normalize') == 'Normalize' else None


def normalisation_problems(
    recipe: Recipe, name: str, trained: dict | None, source: str
) -> list[str]:
    """Whether the recipe makes a detector's images in another way than it takes them.

    Args:
        trained: the normalisation that the detector was trained with, None where it is unknown.
        source: the file that states it.
    """
    image = recipe.image(name)
    if trained is None or same_normalisation(trained, image):
        return []
    return [
        f'{name} takes images with {normalisation_text(trained)} ({source}), and the recipe makes them with {normalisation_text(image)}: '
        f'its features would be wrong. {normalisation_fix(name, trained)}'
    ]


def normalisation_fix(name: str, trained: dict) -> str:
    """What to do where a detector was trained with another normalisation than the recipe's."""
    key = 'image' if name == 'student' else f'teachers.{name}.image'
    mean, std = _format_numbers(trained['mean']), _format_numbers(trained['std'])
    options = f"'{key}.mean={mean} {key}.std={std} {key}.to_rgb={trained.get('to_rgb', True)}'"
    return f'Set --cfg-options {options}; or choose another checkpoint.'


def same_normalisation(one: dict, other: dict) -> bool:
    if one.get('to_rgb', True) != other.get('to_rgb', True):
        return False
    pairs = ((a, b) for key in ('mean', 'std') for a, b in zip(one[key], other[key], strict=False))
    return all(math.isclose(a, b, abs_tol=1e-3) for a, b in pairs)


def normalisation_text(norm: dict) -> str:
    to_rgb = norm.get('to_rgb', True)
    return (
        f'mean {_format_numbers(norm["mean"])}, std {_format_numbers(norm["std"])}, to_rgb {to_rgb}'
    )


def _format_numbers(values: Iterable[float]) -> str:
    return '[' + ','.join(f'{value:g}' for value in values) + ']'
