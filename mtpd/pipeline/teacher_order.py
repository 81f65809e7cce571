"""Which teachers, in which order: a recipe's adaptation costs, and the sequence that they suggest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..config.recipe import Recipe, load_recipe
from ..distill.adaptation_cost import common_strides, costs_from_features
from ..distill.teacher_sequence import SEARCHES, choose_sequence
from ..utils.files import read_json, write_json


def adaptation_costs(
    recipe: Recipe, work_dir: str | Path | None = None, images: int | None = None
) -> dict:
    """How far the features of student and teachers are from each other's; see `mtpd.distill.adaptation_cost`.

    Args:
        images: of the validation split, in file order and without augmentation; every second one measures what the
            others fitted. Default: the recipe's `order.images`.

    Returns:
        As `costs_from_features`; written to ``order/costs.json``, without the replicates. Arrays are lists.

    Raises:
        RecipeError, MtpdError: from `check_pool`.
    """
    from ..engine.features import load_detectors
    from .detectors import detector_checkpoint

    check_teacher_pool(recipe)
    images = images or recipe.cfg.order.images
    models = load_detectors(
        recipe,
        {name: (name, detector_checkpoint(recipe, name, work_dir)) for name in recipe.detectors},
    )
    halves = (image_features(recipe, models, images, first) for first in (0, 1))
    found = costs_from_features(*halves)
    kept = {key: value for key, value in found.items() if key != 'replicates'}
    kept['levels'] = {str(k): np.where(np.isnan(v), None, v) for k, v in found['levels'].items()}
    kept = {key: _as_lists(value) for key, value in kept.items()}
    write_json(recipe.run_dir(work_dir) / 'order' / 'costs.json', kept)
    return kept | {'replicates': found['replicates'].tolist()}


def check_teacher_pool(recipe: Recipe) -> None:
    """Before anything is trained.

    Raises:
        RecipeError, MtpdError: no teachers, a checkpoint is missing or does not fit, or two detectors share no stride.
    """
    from ..engine.features import blank_features
    from ..preflight.checks import check_before_training

    check_before_training(recipe, ['student', *recipe.pool])
    common_strides(blank_features(recipe))


def calibration_text(costs: dict) -> str:
    """How many images the costs come from, and a warning where these are too few."""
    images, needed = costs['images'], costs['needed']
    if images >= needed:
        return f'Measured on {images} images; a stable fit takes about {needed}.'
    return (
        f'Warning: measured on {images} images, and a stable fit takes about {needed}. '
        'Raise order.images, or give a larger validation split.'
    )


def _as_lists(value):
    if isinstance(value, dict):
        return {key: _as_lists(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def image_features(recipe: Recipe, models: dict, images: int, first: int) -> Iterator[dict]:
    """For every second image from `first` on, each detector's features by stride, without the padding."""
    from ..engine.features import features_by_stride, image_batches, neck_features

    for pixels, metas in image_batches(recipe, images, first=first, step=2):
        height = pixels.shape[2]
        found = {
            name: features_by_stride(neck_features(model, pixels), height)
            for name, model in models.items()
        }
        for i, meta in enumerate(metas):
            yield {
                name: {
                    stride: feature[i][
                        :,
                        : -(-meta['img_shape'][0] // stride),
                        : -(-meta['img_shape'][1] // stride),
                    ]
                    for stride, feature in levels.items()
                }
                for name, levels in found.items()
            }


def suggest_sequence(recipe: Recipe, costs: dict, work_dir: str | Path | None = None) -> dict:
    """The sequence for a recipe, by its `order` settings, and by the other search as a check.

    Returns:
        As `choose_sequence`, with 'ap' (0..1 by detector) and 'check' (the other search's); also in
        ``order/sequence.json``.

    Raises:
        MtpdError: from `choose_sequence`.
    """
    from .detectors import prepare_detector

    plan = recipe.cfg.order
    metrics = {
        name: prepare_detector(recipe, name, work_dir)['metrics'] for name in recipe.detectors
    }
    ap = {name: found['bbox_mAP'] for name, found in metrics.items()}
    limits = {'max_length': plan.max_length, 'min_gain': plan.min_gain}
    other = next(name for name in SEARCHES if name != plan.method)
    found = choose_sequence(costs, ap, method=plan.method, **limits) | {'ap': ap}
    found['check'] = choose_sequence(costs, ap, method=other, **limits)
    write_json(recipe.run_dir(work_dir) / 'order' / 'sequence.json', found)
    return found


def resolve_auto_arms(recipe: Recipe, work_dir: str | Path | None = None) -> Recipe:
    """The recipe with the chosen sequence as the teachers of its arms that say 'auto'; itself where none does.

    The choice is that of ``order/sequence.json``, made now where it is missing.

    Raises:
        RecipeError, MtpdError: from `adaptation_costs` and `choose`.
    """
    open_arms = [arm for arm in recipe.arms.values() if not arm.teachers]
    if not open_arms:
        return recipe
    found = read_json(recipe.run_dir(work_dir) / 'order' / 'sequence.json')
    found = found or suggest_sequence(recipe, adaptation_costs(recipe, work_dir), work_dir)
    path = ' → '.join(found['sequence'])
    overrides: dict = {}
    for arm in open_arms:
        overrides[f'arms.{arm.name}.teachers'] = found['sequence']
        overrides[f'arms.{arm.name}.label'] = f'{arm.label}: {path}'
    return load_recipe(recipe, overrides)


def order_conclusion(found: dict, labels: dict[str, str]) -> str:
    """What `choose` found, in words.

    Args:
        labels: of the teachers.
    """

    def path(names: list[str]) -> str:
        return ' → '.join(labels.get(name, name) for name in names)

    sequence, check = found['sequence'], found['check']['sequence']
    if len(found['pool']) == 1:
        return f'The pool has one teacher: direct distillation from {path(sequence)}.'
    text = [f'The costs suggest {path(sequence)}.']
    if len(sequence) == 1:
        text = [
            f'The costs suggest direct distillation from {path(sequence)}: no teacher helps on the way.'
        ]
    if found['support'] is not None:
        text.append(f'{100 * found["support"]:.0f} % of the bootstrap samples lead to it.')
    agree = 'agrees' if check == sequence else f'prefers {path(check)}'
    text.append(f'The other search ({found["check"]["method"].replace("_", " ")}) {agree}.')
    if found['ties']:
        rivals = ', '.join(f'{path(names)} ({100 * share:.0f} %)' for names, share in found['ties'])
        text.append(f'On these images it is a tie with {rivals}.')
    return ' '.join(text)
