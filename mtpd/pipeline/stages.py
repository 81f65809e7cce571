"""What is trained: a plain detector, or one stage of distillation with what comes before it."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
from functools import partial
from pathlib import Path

from mmcv import ConfigDict
from mmdet.models import build_detector
from torch import nn

from ..config.plan import arm_trainings, detector_training, distill_cfg, stage_dir
from ..config.recipe import Arm, Recipe
from ..distill.distiller import Distiller
from ..distill.initialization import initialise, warm_start
from ..engine.evaluation import evaluate, metrics_of_checkpoint, model_cost
from ..engine.loop import train_model
from ..errors import RecipeError
from ..preflight import checks as preflight
from ..runtime import checkpoints
from ..utils.files import read_json, sha256, write_json
from .mmdet_config import recipe_as_mmdet
from .run_dir import recorded_settings
from .teacher_order import resolve_auto_arms


def train_detector_run(
    recipe: Recipe, detector: str = 'student', work_dir: str | Path | None = None
) -> dict:
    """Trains and evaluates the student's baseline or a teacher into ``detectors/<name>/``.

    It starts from scratch, or from the weights of its `init` that fit. What is done is not done again; an interrupted training resumes at its last checkpoint.

    Returns:
        As `prepare_detector`.

    Raises:
        RecipeError: the dataset or the detector does not fit the recipe.
    """
    spec, plan = recipe.detector(detector), detector_training(recipe, detector, work_dir)
    out, final = plan.folder, plan.folder / plan.final
    if not checkpoints.is_finished(final):
        preflight.check_before_training(recipe, [detector], (), [plan], out)
        print(f'training {spec.get("label", detector)}')
        cfg = recipe.model(detector)
        build = partial(_warm_detector, cfg, detector, recipe.fetch(detector, 'init'))
        about = checkpoint_meta(recipe, detector)
        with recorded_settings(recipe, recipe.run_dir(work_dir), out):
            train_model(
                recipe, build, cfg, out, plan.updates, recipe.seed, spec.get('scenes'), about
            )
        checkpoints.export_student(out / 'latest.pth', final)
    return measured_detector(recipe, detector, out, final)


def train_stage(
    recipe: Recipe, stage: int, arm: str = 'progressive', work_dir: str | Path | None = None
) -> dict:
    """One stage of an arm: stage 1 from the baseline (or as `distill.start` says), later ones from the one before.

    What comes before it and is missing is trained first; what is there and damaged stays, and is an error. A stage
    without a teacher trains the plain student on. Teachers and data are compared before anything is trained.

    Returns:
        ``{'dir', 'checkpoint', 'metrics', 'stage'}``: paths, and the contents of metrics.json and stage.json.

    Raises:
        RecipeError: no such arm or stage; dataset, teacher or student don't fit the recipe.
        MtpdError: a checkpoint is missing, broken or of another architecture.
    """
    recipe = resolve_auto_arms(recipe, work_dir)
    plan = recipe.arm(arm, stage)
    out = stage_dir(recipe, plan, stage, work_dir)
    final = out / 'student.pth'
    if not checkpoints.is_finished(final):
        _check_before_stage(recipe, plan, stage, work_dir)
        start, origin = _stage_start(recipe, plan, stage, work_dir)
        teacher = plan.teachers[stage - 1]
        model, cfg = _stage_builder(recipe, teacher, start, origin, work_dir)
        about = checkpoint_meta(recipe, 'student', arm=arm, stage=stage, teacher=teacher)
        about['stages'] = _stage_history(recipe, plan, stage, start, origin, work_dir)
        seed = recipe.seed * 1000 + stage
        with recorded_settings(recipe, recipe.run_dir(work_dir), out):
            report = train_model(recipe, model, cfg, out, plan.stage_updates, seed, meta=about)
        write_json(
            out / 'stage.json',
            {
                'arm': arm,
                'stage': stage,
                'teacher': teacher,
                'updates': plan.stage_updates,
                'seconds': read_json(out / 'training.json')['seconds'],
                'start': origin,
                'copied': len(report.copied) if report else 0,
                'adapted': report.adapted if report else {},
                'skipped': report.skipped if report else {},
            },
        )
        checkpoints.export_student(out / 'latest.pth', final)
    return {
        **measured_detector(recipe, 'student', out, final),
        'stage': read_json(out / 'stage.json'),
    }


def prepare_detector(recipe: Recipe, name: str, work_dir: str | Path | None = None) -> dict:
    """The student's baseline or a teacher, ready: loaded where the recipe names a checkpoint, else trained.

    Returns:
        ``{'dir', 'checkpoint', 'metrics', 'model'}``: paths, and the contents of metrics.json and
        model.json in ``detectors/<name>/``.

    Raises:
        RecipeError: the recipe's checkpoint is missing.
    """
    if recipe.checkpoint(name) is None:
        return train_detector_run(recipe, name, work_dir)
    checkpoint = detector_checkpoint(recipe, name, work_dir)
    return measured_detector(
        recipe, name, recipe.run_dir(work_dir) / 'detectors' / name, checkpoint
    )


def init_label(recipe: Recipe, name: str) -> str | None:
    """The label of the detector with whose checkpoint the training of another began; its file's name, or None, where there
    is no such detector."""
    init = recipe.checkpoint(name, 'init')
    for other, spec in recipe.detectors.items():
        if init and recipe.checkpoint(other) == init:
            return spec.get('label', other)
    return init and init.name


def detector_checkpoint(recipe: Recipe, name: str, work_dir: str | Path | None = None) -> Path:
    """The checkpoint of a detector: the recipe's (fetched now, if need be), or the one trained in this run (likewise).

    Raises:
        RecipeError: the recipe's checkpoint is missing.
        MtpdError: it can't be fetched.
    """
    if named := recipe.fetch(name):
        if not named.is_file():
            raise RecipeError(recipe.source, recipe.checkpoint_problems())
        return named
    return train_detector_run(recipe, name, work_dir)['checkpoint']


def _check_before_stage(recipe: Recipe, arm: Arm, stage: int, work_dir) -> None:
    """Raises what is wrong with the detectors of the stages to be trained for this one, before hours of training."""
    plan = arm_trainings(recipe, arm, range(1, stage + 1), work_dir)
    first = stage
    while first > 1 and not plan[first - 2].done:
        first -= 1
    plan = plan[first - 1 :]
    teachers = dict.fromkeys(training.teacher for training in plan if training.teacher)
    baseline = ['student'] if first == 1 and recipe.cfg.distill.start == 'baseline' else []
    plan += [
        detector_training(recipe, name, work_dir)
        for name in (*baseline, *teachers)
        if not recipe.checkpoint(name)
    ]
    names = ['student', *teachers]
    preflight.check_before_training(
        recipe, names, [*baseline, *teachers], plan, recipe.run_dir(work_dir)
    )


def _stage_start(recipe: Recipe, arm: Arm, stage: int, work_dir) -> tuple[Path | None, str]:
    """The student's checkpoint that a stage begins with, and its origin in a word."""
    if stage > 1:
        return train_stage(recipe, stage - 1, arm.name, work_dir)['checkpoint'], 'previous stage'
    origin = recipe.cfg.distill.start
    if origin == 'inherit' and arm.teachers[0] is None:
        origin = 'random'  # nobody to inherit from: as its own config initialises it
    if origin != 'baseline':
        return None, origin
    return detector_checkpoint(recipe, 'student', work_dir), 'baseline'


def _stage_builder(recipe: Recipe, teacher: str | None, start: Path | None, origin: str, work_dir):
    """A function that builds the stage's model, and the student's config."""
    student = recipe.model('student')
    if teacher is None:
        return partial(_plain_student, student, start), student
    taught_by = recipe.model(teacher)
    weights = detector_checkpoint(recipe, teacher, work_dir)
    distill = recipe.cfg.distill
    build = partial(
        Distiller,
        student,
        taught_by,
        distill_cfg(recipe, student, taught_by),
        student_checkpoint=str(start) if start else None,
        teacher_checkpoint=str(weights),
        init_student=origin == 'inherit',
        teacher_mode=distill.teacher_mode,
        inherit_allow=tuple(distill.inherit_allow),
    )
    return build, student


# What `fit` builds are functions of this module, as several processes get them by name.


def _warm_detector(cfg: dict, name: str, origin: Path | None) -> nn.Module:
    model = build_detector(ConfigDict(cfg))
    key = name if name == 'student' else f'teachers.{name}'
    initialise(model, cfg['backbone'], f'{key}.model')
    if origin:
        print(f'{name}: {warm_start(model, origin)} tensors from {origin}')
    return model


def _plain_student(cfg: dict, start: Path | None) -> nn.Module:
    model = build_detector(ConfigDict(cfg))
    if start:
        checkpoints.load_student(model, start)
    else:
        initialise(model, cfg['backbone'], 'student.model')
    return model


def checkpoint_meta(recipe: Recipe, detector: str, **more) -> dict:
    """What a checkpoint's `meta` says of the detector in it."""
    # mmdet's resuming runs what stands under `config`; export_student gives it that name.
    about = {'student_config': recipe_as_mmdet(recipe, detector), 'recipe': recipe.name}
    return {**about, 'detector': detector, 'seed': recipe.seed, **more}


def _stage_history(recipe: Recipe, arm: Arm, stage: int, start: Path | None, origin: str, work_dir):
    """The stages that make a student: those of the checkpoint it starts from, and this one."""
    before = checkpoints.load_checkpoint(start).get('meta') or {} if start else {}
    teacher = arm.teachers[stage - 1]
    weights = sha256(detector_checkpoint(recipe, teacher, work_dir)) if teacher else None
    this = {'recipe': recipe.name, 'arm': arm.name, 'stage': stage, 'teacher': teacher}
    this |= {'teacher_sha256': weights, 'method': recipe.cfg.distill.method if teacher else None}
    this |= {'updates': arm.stage_updates, 'start': origin}
    return [*before.get('stages', ()), this]


def measured_detector(recipe: Recipe, detector: str, out: Path, checkpoint: Path) -> dict:
    """A detector's metrics and size in `out`, measured unless they are there for this checkpoint."""
    wanted = recipe.cfg.evaluation.metrics
    metrics = metrics_of_checkpoint(
        out, checkpoint, lambda: evaluate(recipe, checkpoint, wanted, detector, out)
    )
    if not (out / 'model.json').is_file():
        write_json(out / 'model.json', model_cost(recipe, detector))
    model = read_json(out / 'model.json')
    return {'dir': out, 'checkpoint': checkpoint, 'metrics': metrics, 'model': model}
