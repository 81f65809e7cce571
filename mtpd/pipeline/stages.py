"""One stage of distillation: what it needs made first, trained, and measured."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import shutil
from functools import partial
from pathlib import Path

from mmcv import ConfigDict
from mmdet.models import build_detector
from torch import nn

from ..config.plan import arm_trainings, arms_that_share, detector_training, stage_dir
from ..config.recipe import Arm, Recipe
from ..distill.distiller import Distiller
from ..distill.initialization import initialise_weights
from ..engine.distill_config import distill_cfg
from ..engine.loop import train_model
from ..errors import MtpdError
from ..preflight.checks import check_before_training
from ..runtime import checkpoints
from ..utils.files import file_sha256, link_or_copy, read_json, write_json
from .detectors import checkpoint_meta, detector_checkpoint, measured_detector
from .run_dir import recorded_settings, refuse_other_data, refuse_other_settings
from .teacher_order import resolve_auto_arm


def train_stage(
    recipe: Recipe, stage: int | None, arm: str = 'progressive', work_dir: str | Path | None = None
) -> dict:
    """Trains and evaluates one stage of an arm; what is done is not repeated.

    Stage 1 starts from the baseline, or as `distill.start` says. A later stage starts from the student of the stage
    before. A stage without a teacher trains the plain student on. What another arm of the run has trained in the same
    way, as arms do that begin with the same teacher, is taken over.

    What the stage needs and lacks is made first: earlier stages, the baseline, its teacher, and the choice of teachers
    of an arm that says 'auto'. What is wrong with the data or the detectors of all these is raised before anything is
    trained. A damaged checkpoint that can't be made again from latest.pth is an error.

    Args:
        stage: counted from 1; None: the last, and so all of them.

    Returns:
        ``{'dir', 'checkpoint', 'metrics', 'model', 'stage'}``: paths, and the contents of metrics.json, model.json and
        stage.json.

    Raises:
        RecipeError: no such arm or stage; dataset, teacher or student don't fit the recipe.
        MtpdError: a checkpoint is missing, broken or of another architecture.
    """
    refuse_other_data(recipe, recipe.run_dir(work_dir))
    plan = resolve_auto_arm(recipe, arm, work_dir).arm(arm, stage)
    stage = len(plan.teachers) if stage is None else stage
    out = stage_dir(recipe, plan, stage, work_dir)
    final = out / 'student.pth'
    if not checkpoints.is_finished(final) and not _taken_over(recipe, plan, stage, work_dir):
        _check_before_stage(recipe, plan, stage, work_dir)
        start, origin = _stage_start(recipe, plan, stage, work_dir)
        teacher = plan.teachers[stage - 1]
        adapters = _earlier_adapters(recipe, plan, stage, work_dir)
        build, student = _stage_builder(recipe, teacher, start, origin, work_dir, adapters)
        meta = checkpoint_meta(recipe, 'student', arm=arm, stage=stage, teacher=teacher)
        meta['stages'] = _stage_history(recipe, plan, stage, start, origin, work_dir)
        seed = recipe.seed * 1000 + stage  # the same in all arms
        print(f'training {_stage_text(recipe, plan, stage)}')
        with recorded_settings(recipe, recipe.run_dir(work_dir), out):
            report = train_model(
                recipe,
                build,
                student,
                out,
                plan.stage_updates,
                seed,
                meta=meta,
                peak=recipe.cfg.schedule.get('arm_lr'),
                teacher=teacher,
            )
        write_json(
            out / 'stage.json',
            {
                'arm': arm,
                'stage': stage,
                'teacher': teacher,
                'updates': plan.stage_updates,
                'seconds': read_json(out / 'training.json')['seconds'],
                'start': origin,
                'adapters': 'kept' if adapters else 'new',
                'copied': len(report.copied) if report else 0,
                'adapted': report.adapted if report else {},
                'skipped': report.skipped if report else {},
            },
        )
        checkpoints.export_student(out / 'latest.pth', final)
    measured = measured_detector(recipe, 'student', out, final)
    return {**measured, 'stage': read_json(out / 'stage.json')}


def _taken_over(recipe: Recipe, arm: Arm, stage: int, work_dir: str | Path | None) -> bool:
    """Whether another arm of the run has made the same training; its files are then those of this stage, too."""
    out = stage_dir(recipe, arm, stage, work_dir)
    for other in arms_that_share(recipe, arm, stage):
        source = stage_dir(recipe, other, stage, work_dir)
        if out.exists() or not (source / 'stage.json').is_file():
            continue
        if not checkpoints.is_finished(source / 'student.pth'):
            continue
        start, origin = _stage_start(recipe, arm, stage, work_dir)
        histories = (
            checkpoints.load_checkpoint(source / 'student.pth')['meta']['stages'],
            _stage_history(recipe, arm, stage, start, origin, work_dir),
        )
        ours, theirs = ([item | {'arm': None} for item in history] for history in histories)
        if ours != theirs:
            continue
        refuse_other_settings(recipe, recipe.run_dir(work_dir))
        part = out.with_name(f'.{out.name}.part')
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source, part, copy_function=link_or_copy)
        stage_info = read_json(source / 'stage.json') | {'arm': arm.name, 'same_as': other.name}
        write_json(part / 'stage.json', stage_info)
        part.replace(out)
        print(f'{_stage_text(recipe, arm, stage)}: the same training as in {other.name}')
        return True
    return False


def _stage_text(recipe: Recipe, arm: Arm, stage: int) -> str:
    """A stage in words, for the head of the lines about its updates."""
    teacher = arm.teachers[stage - 1]
    company = (
        f'with {recipe.detector(teacher).get("label", teacher)}' if teacher else 'without a teacher'
    )
    return f'{arm.name}, stage {stage} of {len(arm.teachers)}, {company}'


def _check_before_stage(recipe: Recipe, arm: Arm, stage: int, work_dir: str | Path | None) -> None:
    """Checks the detectors of this stage, and of the earlier ones that are to be trained for it, before all of them.

    Raises:
        RecipeError, MtpdError: as `check_before_training`.
    """
    trainings = arm_trainings(recipe, arm, range(1, stage + 1), work_dir)
    first = stage  # to be trained
    while first > 1 and not trainings[first - 2].done:
        first -= 1
    trainings = trainings[first - 1 :]
    teachers = list(dict.fromkeys(training.teacher for training in trainings if training.teacher))
    baseline = ['student'] if first == 1 and recipe.cfg.distill.start == 'baseline' else []
    loaded = [*baseline, *teachers]
    trainings += [
        detector_training(recipe, name, work_dir) for name in loaded if not recipe.checkpoint(name)
    ]
    check_before_training(
        recipe, ['student', *teachers], loaded, trainings, recipe.run_dir(work_dir)
    )


def _stage_start(
    recipe: Recipe, arm: Arm, stage: int, work_dir: str | Path | None
) -> tuple[Path | None, str]:
    """The student's checkpoint that a stage starts from, trained now where it is missing; and its origin in words.

    Without a checkpoint the origin is 'inherit' or 'random'.
    """
    if stage > 1:
        return train_stage(recipe, stage - 1, arm.name, work_dir)['checkpoint'], 'previous stage'
    origin = recipe.cfg.distill.start
    if origin == 'inherit' and arm.teachers[0] is None:
        origin = 'random'  # there is no teacher to inherit from
    if origin != 'baseline':
        return None, origin
    return detector_checkpoint(recipe, 'student', work_dir), 'baseline'


def _earlier_adapters(
    recipe: Recipe, arm: Arm, stage: int, work_dir: str | Path | None
) -> Path | None:
    """The training checkpoint of the stage before, whose distillation losses' weights this one keeps; None: they are new."""
    goes_on = recipe.cfg.distill.get('keep_adapters') and stage > 1
    if not goes_on or None in arm.teachers[stage - 2 : stage]:
        return None
    path = stage_dir(recipe, arm, stage - 1, work_dir) / 'latest.pth'
    if not path.is_file():
        raise MtpdError(
            f'{path} is missing, but with distill.keep_adapters stage {stage} needs its weights. Remove the folder '
            'to train that stage again, or leave keep_adapters out.'
        )
    return path


def _stage_builder(
    recipe: Recipe,
    teacher: str | None,
    start: Path | None,
    origin: str,
    work_dir: str | Path | None,
    adapters: Path | None = None,
) -> tuple[partial, dict]:
    """What makes the stage's model, and the student's mmdet config. A teacher that is missing is trained now.

    The first pickles, for several processes: it is a `partial` of a class or a function of this module.
    """
    student = recipe.model('student')
    if teacher is None:
        return partial(_plain_student, student, start), student
    teacher_model = recipe.model(teacher)
    teacher_checkpoint = detector_checkpoint(recipe, teacher, work_dir)
    distill = recipe.cfg.distill
    build = partial(
        Distiller,
        student,
        teacher_model,
        distill_cfg(recipe, student, teacher_model),
        student_checkpoint=str(start) if start else None,
        teacher_checkpoint=str(teacher_checkpoint),
        init_student=origin == 'inherit',
        teacher_mode=distill.teacher_mode,
        inherit_allow=tuple(distill.inherit_allow),
        adapters_checkpoint=str(adapters) if adapters else None,
        teacher_norm=recipe.own_normalisation(teacher),
    )
    return build, student


def _plain_student(cfg: dict, start: Path | None) -> nn.Module:
    """The model of a stage without a teacher."""
    model = build_detector(ConfigDict(cfg))
    if start:
        checkpoints.load_student(model, start)
    else:
        initialise_weights(model, cfg['backbone'], 'student.model')
    return model


def _stage_history(
    recipe: Recipe,
    arm: Arm,
    stage: int,
    start: Path | None,
    origin: str,
    work_dir: str | Path | None,
) -> list[dict]:
    """The stages that make a student: those in the `meta` of the checkpoint it starts from, and this one."""
    earlier: list[dict] = []
    if start:
        meta = checkpoints.load_checkpoint(start).get('meta') or {}
        earlier = meta.get('stages', [])
    teacher = arm.teachers[stage - 1]
    digest = file_sha256(detector_checkpoint(recipe, teacher, work_dir)) if teacher else None
    this_stage = {
        'recipe': recipe.name,
        'arm': arm.name,
        'stage': stage,
        'teacher': teacher,
        'teacher_sha256': digest,
        'method': recipe.cfg.distill.method if teacher else None,
        'updates': arm.stage_updates,
        'start': origin,
    }
    return [*earlier, this_stage]
