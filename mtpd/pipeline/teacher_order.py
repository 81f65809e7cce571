"""Which teachers, in which order: a recipe's adaptation costs, and the sequence that they suggest."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..config.recipe import Recipe, load_recipe
from ..distill.adaptation_cost import common_strides, costs_from_features
from ..distill.teacher_sequence import SEARCH_METHODS, choose_sequence
from ..engine.features import (
    blank_features,
    feature_batches,
    features_by_stride,
    load_detectors,
)
from ..errors import RecipeError
from ..preflight.checks import check_before_training
from ..utils.files import json_value, read_json, write_json
from .detectors import detector_checkpoint, prepare_detector


def adaptation_costs(
    recipe: Recipe, work_dir: str | Path | None = None, images: int | None = None
) -> dict:
    """How far the features of student and teachers are from each other's; see `mtpd.distill.adaptation_cost`.

    Detectors that are missing are trained first.

    Args:
        images: of the validation split, in file order and without augmentation; every second one measures what the
            others fitted. Default: the recipe's `order.images`.

    Returns:
        As `costs_from_features`; written to ``order/costs.json``, without the replicates. Arrays are lists, and
        what is not finite is None.

    Raises:
        RecipeError, MtpdError: from `check_teacher_pool`.
    """
    check_teacher_pool(recipe)
    images = images or recipe.cfg.order.images
    checkpoints = {
        name: (name, detector_checkpoint(recipe, name, work_dir)) for name in recipe.detectors
    }
    models = load_detectors(recipe, checkpoints)
    halves = [image_features(recipe, models, images, first) for first in (0, 1)]
    costs = json_value(costs_from_features(*halves))
    replicates = costs.pop('replicates')
    write_json(recipe.run_dir(work_dir) / 'order' / 'costs.json', costs)
    return costs | {'replicates': replicates}


def check_teacher_pool(recipe: Recipe) -> None:
    """Looks at the student and all teachers, before anything is trained.

    Raises:
        RecipeError, MtpdError: no teachers, one without AP, a checkpoint is missing or does not fit, or two detectors share
            no stride.
    """
    if without_ap := [name for name in recipe.pool if recipe.is_features_only(name)]:
        names = ', '.join(f'teachers.{name}' for name in without_ap)
        raise RecipeError(
            recipe.source,
            [
                f'{names} has features_only and no AP, but teachers are chosen by AP and adaptation costs. Name the sequence '
                'of teachers, or leave such teachers out.'
            ],
        )
    check_before_training(recipe, ['student', *recipe.pool])
    common_strides(blank_features(recipe))


def suggest_sequence(recipe: Recipe, costs: dict, work_dir: str | Path | None = None) -> dict:
    """The sequence for a recipe, by its `order` settings, and by the other search as a check.

    Detectors that are missing are trained first.

    Returns:
        As `choose_sequence`, with 'ap' (0..1 by detector) and 'check' (the other search's); also in
        ``order/sequence.json``.

    Raises:
        MtpdError: from `choose_sequence`.
    """
    order = recipe.cfg.order
    ap = {
        name: prepare_detector(recipe, name, work_dir)['metrics']['bbox_mAP']
        for name in recipe.detectors
    }
    limits = {'max_length': order.max_length, 'min_gain': order.min_gain}
    other_search = next(name for name in SEARCH_METHODS if name != order.method)
    choice = {
        **choose_sequence(costs, ap, method=order.method, **limits),
        'ap': ap,
        'check': choose_sequence(costs, ap, method=other_search, **limits),
    }
    write_json(_sequence_file(recipe, work_dir), choice)
    return choice


def resolve_auto_arms(recipe: Recipe, work_dir: str | Path | None = None) -> Recipe:
    """The recipe with the chosen sequence as the teachers of its arms that say 'auto'; itself where none does.

    The choice is that of ``order/sequence.json``, made now where it is missing: that trains the detectors that are
    missing.

    Raises:
        RecipeError, MtpdError: from `adaptation_costs` and `suggest_sequence`.
    """
    auto_arms = [arm for arm in recipe.arms.values() if not arm.teachers]
    if not auto_arms:
        return recipe
    choice = read_json(_sequence_file(recipe, work_dir))
    if choice is None:
        choice = suggest_sequence(recipe, adaptation_costs(recipe, work_dir), work_dir)
    path = ' → '.join(choice['sequence'])
    overrides: dict[str, Any] = {}
    for arm in auto_arms:
        overrides[f'arms.{arm.name}.teachers'] = choice['sequence']
        overrides[f'arms.{arm.name}.label'] = f'{arm.label}: {path}'
    return load_recipe(recipe, overrides)


def resolve_auto_arm(recipe: Recipe, name: str, work_dir: str | Path | None = None) -> Recipe:
    """As `resolve_auto_arms` where the arm `name` says 'auto'. Else the recipe itself: no other arm matters to it."""
    arm = recipe.arms.get(name)
    return resolve_auto_arms(recipe, work_dir) if arm and not arm.teachers else recipe


def calibration_text(costs: dict) -> str:
    """How many images the costs come from, and a warning where these are too few."""
    images, needed = costs['images'], costs['needed']
    if images >= needed:
        return f'Measured on {images} images; a stable fit takes about {needed}.'
    return (
        f'Warning: measured on {images} images, and a stable fit takes about {needed}. '
        'Raise order.images, or give a larger validation split.'
    )


def order_conclusion(choice: dict, labels: dict[str, str]) -> str:
    """What `suggest_sequence` chose, in sentences.

    Args:
        labels: of the teachers.
    """

    def path(names: list[str]) -> str:
        return ' → '.join(labels.get(name, name) for name in names)

    sequence, check = choice['sequence'], choice['check']
    if len(choice['pool']) == 1:
        return f'The pool has one teacher: direct distillation from {path(sequence)}.'
    if len(sequence) == 1:
        sentences = [
            f'The costs suggest direct distillation from {path(sequence)}: no other teacher helps before it.'
        ]
    else:
        sentences = [f'The costs suggest {path(sequence)}.']
    if choice['support'] is not None:
        sentences.append(f'{100 * choice["support"]:.0f} % of the bootstrap samples lead to it.')
    same = check['sequence'] == sequence
    verdict = 'agrees' if same else f'prefers {path(check["sequence"])}'
    sentences.append(f'The other search ({check["method"].replace("_", " ")}) {verdict}.')
    if choice['ties']:
        rivals = [f'{path(names)} ({100 * share:.0f} %)' for names, share in choice['ties']]
        sentences.append(f'On these images it is a tie with {", ".join(rivals)}.')
    return ' '.join(sentences)


def image_features(
    recipe: Recipe, models: dict[str, nn.Module], images: int, first: int
) -> Iterator[dict[str, dict[int, Tensor]]]:
    """For every second image from `first` on, each detector's features (C, H, W) by stride, without the padding."""
    for features, height, metas in feature_batches(recipe, models, images, first, step=2):
        batch = {name: features_by_stride(levels, height) for name, levels in features.items()}
        for i, meta in enumerate(metas):
            yield {
                name: {
                    stride: _without_padding(feature[i], stride, meta['img_shape'])
                    for stride, feature in levels.items()
                }
                for name, levels in batch.items()
            }


def _without_padding(feature: Tensor, stride: int, img_shape: tuple[int, ...]) -> Tensor:
    """The cells of a feature (C, H, W) that lie in the image, whose height and width are in pixels."""
    height, width = (-(-side // stride) for side in img_shape[:2])  # rounded up
    return feature[:, :height, :width]


def _sequence_file(recipe: Recipe, work_dir: str | Path | None) -> Path:
    return recipe.run_dir(work_dir) / 'order' / 'sequence.json'
