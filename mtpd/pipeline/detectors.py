"""One detector on its own, the student's baseline or a teacher: trained or loaded, and measured."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
from functools import partial
from pathlib import Path

from mmcv import ConfigDict
from mmdet.models import build_detector
from torch import nn

from ..config.plan import detector_training
from ..config.recipe import Recipe
from ..distill.initialization import initialise_weights, warm_start
from ..engine.evaluation import evaluate, metrics_of_checkpoint, model_cost
from ..engine.loop import train_model
from ..errors import RecipeError
from ..preflight.checks import check_before_training
from ..runtime import checkpoints
from ..utils.files import file_sha256, read_json, write_json
from .mmdet_config import recipe_as_mmdet
from .run_dir import recorded_settings, refuse_other_data


def train_detector_run(
    recipe: Recipe, detector: str = 'student', work_dir: str | Path | None = None
) -> dict:
    """Trains and evaluates the student's baseline or a teacher into ``detectors/<name>/``.

    It starts from scratch, or from those weights of its `init` that fit. A training or evaluation that is done is not
    repeated. An interrupted training resumes at its last checkpoint.

    Args:
        detector: 'student', or a teacher's name.

    Returns:
        As `prepare_detector`.

    Raises:
        RecipeError: the dataset or the detector does not fit the recipe.
    """
    refuse_other_data(recipe, recipe.run_dir(work_dir))
    spec, training = recipe.detector(detector), detector_training(recipe, detector, work_dir)
    out, final = training.folder, training.folder / training.final
    if not checkpoints.is_finished(final):
        check_before_training(recipe, [detector], (), [training], out)
        print(f'training {spec.get("label", detector)}')
        cfg = recipe.model(detector)
        build = partial(_initial_detector, cfg, detector, recipe.fetch(detector, 'init'))
        meta = checkpoint_meta(recipe, detector)
        with recorded_settings(recipe, recipe.run_dir(work_dir), out):
            train_model(
                recipe,
                build,
                cfg,
                out,
                training.updates,
                recipe.seed,
                scenes=spec.get('scenes'),
                meta=meta,
                detector=detector,
            )
        checkpoints.export_student(out / 'latest.pth', final)
    return measured_detector(recipe, detector, out, final)


def prepare_detector(recipe: Recipe, name: str, work_dir: str | Path | None = None) -> dict:
    """The student's baseline or a teacher, evaluated: the recipe's checkpoint, else trained as `train_detector_run`.

    Returns:
        ``{'dir', 'checkpoint', 'metrics', 'model'}``: paths, and the contents of metrics.json and
        model.json in ``detectors/<name>/``.

    Raises:
        RecipeError: the recipe's checkpoint is missing.
    """
    if recipe.checkpoint(name) is None:
        return train_detector_run(recipe, name, work_dir)
    out = detector_training(recipe, name, work_dir).folder
    return measured_detector(recipe, name, out, detector_checkpoint(recipe, name, work_dir))


def detector_checkpoint(recipe: Recipe, name: str, work_dir: str | Path | None = None) -> Path:
    """The checkpoint of a detector: the recipe's, fetched where it is a URL; else this run's, trained if it is missing.

    Raises:
        RecipeError: the recipe's checkpoint is missing.
        MtpdError: the recipe's checkpoint can't be fetched.
    """
    named = recipe.fetch(name)
    if named is None:
        return train_detector_run(recipe, name, work_dir)['checkpoint']
    if not named.is_file():
        raise RecipeError(recipe.source, recipe.checkpoint_problems())
    return named


def init_label(recipe: Recipe, name: str) -> str | None:
    """Whose weights a detector's training begins with: another detector's label, else the file's name.

    None where it begins from scratch.
    """
    init = recipe.checkpoint(name, 'init')
    if init is None:
        return None
    for other, spec in recipe.detectors.items():
        if recipe.checkpoint(other) == init:
            return spec.get('label', other)
    return init.name


def measured_detector(recipe: Recipe, detector: str, out: Path, checkpoint: Path) -> dict:
    """A detector's metrics and size, as `prepare_detector` returns them.

    metrics.json is written unless `out` has it for this checkpoint, and model.json unless it is there: it depends on
    the detector's config alone. Of a teacher with `features_only` there is no AP: it is not evaluated.
    """
    wanted = recipe.cfg.evaluation.metrics

    def measure() -> dict:
        if not recipe.is_features_only(detector):
            return evaluate(recipe, checkpoint, wanted, detector, out)
        about = {'checkpoint': Path(checkpoint).name, 'sha256': file_sha256(checkpoint)}
        write_json(out / 'metrics.json', about | {'features_only': True})
        return read_json(out / 'metrics.json')

    metrics = metrics_of_checkpoint(out, checkpoint, recipe.split('val')[0], measure)
    if not (out / 'model.json').is_file():
        write_json(out / 'model.json', model_cost(recipe, detector))
    model = read_json(out / 'model.json')
    return {'dir': out, 'checkpoint': checkpoint, 'metrics': metrics, 'model': model}


def checkpoint_meta(recipe: Recipe, detector: str, **more) -> dict:
    """The entries that describe a detector in the `meta` of its checkpoint, and `more`."""
    return {
        # Not under `config`: mmdet, where it resumes, executes that entry. `export_student` renames it.
        'student_config': recipe_as_mmdet(recipe, detector),
        'recipe': recipe.name,
        'detector': detector,
        'seed': recipe.seed,
        **more,
    }


def _initial_detector(cfg: dict, name: str, weights: Path | None) -> nn.Module:
    """A detector as its training begins: initialised, with those tensors of `weights` that fit.

    It has to pickle, for several processes: it is a function of this module.
    """
    model = build_detector(ConfigDict(cfg))
    key = name if name == 'student' else f'teachers.{name}'
    initialise_weights(model, cfg['backbone'], f'{key}.model')
    if weights:
        print(f'{name}, from {weights}: {warm_start(model, weights)}')
    return model
