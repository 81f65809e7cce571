"""One training run by mmdet's own loop: a plain detector, or one stage of distillation."""

from __future__ import annotations

from . import compat  # noqa: F401  (before mmcv)

# isort: split
import time
from pathlib import Path
from typing import Any

import torch
from mmcv import Config, ConfigDict
from mmdet.apis import set_random_seed, train_detector
from mmdet.models import build_detector

from . import checkpoints, hooks  # noqa: F401  (hooks: registered with mmcv)
from .compat import cores
from .data import pipelines
from .distiller import Distiller
from .errors import MtpdError
from .evaluate import describe, evaluate
from .files import read_json, write_json
from .recipe import Arm, Recipe, RecipeError


def device_of(recipe: Recipe) -> str:
    """'cuda' or 'cpu', as `runtime.device` and the machine say. Raises RecipeError for a GPU that is not there."""
    asked = recipe.cfg.runtime.device
    if asked == 'auto':
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    if asked not in ('cpu', 'cuda'):
        raise RecipeError(
            recipe.source, [f'runtime.device is {asked!r}: auto, cpu or cuda is needed.']
        )
    if asked == 'cuda' and not torch.cuda.is_available():
        raise RecipeError(
            recipe.source, ['runtime.device is cuda, and torch sees no GPU. Set it to auto or cpu.']
        )
    return asked


def train_detector_run(
    recipe: Recipe, detector: str = 'student', work_dir: str | Path | None = None
) -> dict:
    """Trains the student's baseline or a teacher (from scratch, or from its `init`), evaluates it and writes `detectors/<name>/`.

    What is done is not done again; an interrupted training resumes at its last checkpoint.

    Returns:
        As `prepare_detector`.

    Raises:
        RecipeError: the dataset or the detector does not fit the recipe.
    """
    spec = recipe.detectors[detector]
    out = recipe.run_dir(work_dir) / 'detectors' / detector
    schedule = recipe.cfg.schedule
    default = schedule.baseline if detector == 'student' else schedule.teacher
    final = out / 'model.pth'
    if not final.is_file():
        cfg = recipe.model(detector)

        def build():
            model = build_detector(ConfigDict(cfg))
            model.init_weights()
            if origin := recipe.init(detector):
                print(f'{detector}: {checkpoints.warm_start(model, origin)} tensors from {origin}')
            return model

        _fit(recipe, build, cfg, out, spec.get('updates', default), recipe.seed, spec.get('scenes'))
        _export(recipe, detector, out / 'latest.pth', final)
    return _measured(recipe, detector, out, final)


def train_stage(
    recipe: Recipe, stage: int, arm: str = 'progressive', work_dir: str | Path | None = None
) -> dict:
    """One stage of an arm: stage 1 from the baseline (or as `distill.start` says), later ones from the one before.

    What comes before it and is missing is trained first. A stage without a teacher trains the plain student on.

    Returns:
        ``{'dir', 'checkpoint', 'metrics', 'stage'}``: paths, and the contents of metrics.json and stage.json.

    Raises:
        RecipeError: no such arm or stage; dataset, teacher or student don't fit the recipe.
        MtpdError: a checkpoint is missing, broken or of another architecture.
    """
    plan = recipe.arm(arm, stage)
    out = stage_dir(recipe, plan, stage, work_dir)
    final = out / 'student.pth'
    if not final.is_file():
        start, origin = _start(recipe, plan, stage, work_dir)
        teacher = plan.teachers[stage - 1]
        model, cfg = _stage_model(recipe, teacher, start, origin, work_dir)
        began = time.time()
        fitted = _fit(recipe, model, cfg, out, plan.stage_updates, recipe.seed * 1000 + stage)
        report = getattr(fitted, 'inherit_report', None)
        write_json(
            out / 'stage.json',
            {
                'arm': arm,
                'stage': stage,
                'teacher': teacher,
                'updates': plan.stage_updates,
                'seconds': round(time.time() - began, 1),
                'start': origin,
                'copied': len(report.copied) if report else 0,
                'skipped': report.skipped if report else {},
            },
        )
        _export(recipe, 'student', out / 'latest.pth', final, arm=arm, stage=stage, teacher=teacher)
    return {**_measured(recipe, 'student', out, final), 'stage': read_json(out / 'stage.json')}


def stage_dir(recipe: Recipe, arm: Arm, stage: int, work_dir: str | Path | None = None) -> Path:
    return recipe.run_dir(work_dir) / 'stages' / arm.name / arm.stage_name(stage)


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
    return _measured(recipe, name, recipe.run_dir(work_dir) / 'detectors' / name, checkpoint)


def detector_checkpoint(recipe: Recipe, name: str, work_dir: str | Path | None = None) -> Path:
    """The checkpoint of a detector: the recipe's, or the one trained in this run (now, if need be).

    Raises:
        RecipeError: the recipe's checkpoint is missing.
    """
    if named := recipe.checkpoint(name):
        if not named.is_file():
            raise RecipeError(recipe.source, recipe.checkpoint_problems())
        return named
    return train_detector_run(recipe, name, work_dir)['checkpoint']


def _start(recipe: Recipe, arm: Arm, stage: int, work_dir) -> tuple[Path | None, str]:
    """The student's checkpoint that a stage begins with, and its origin in a word."""
    if stage > 1:
        return train_stage(recipe, stage - 1, arm.name, work_dir)['checkpoint'], 'previous stage'
    origin = recipe.cfg.distill.start
    if origin == 'inherit' and arm.teachers[0] is not None:
        return None, 'inherit'
    if origin == 'random':
        return None, 'random'
    return detector_checkpoint(recipe, 'student', work_dir), 'baseline'


def _stage_model(recipe: Recipe, teacher: str | None, start: Path | None, origin: str, work_dir):
    """A function that builds the stage's model, and the student's config."""
    student = recipe.model('student')
    if teacher is None:

        def build():
            model = build_detector(ConfigDict(student))
            model.init_weights()
            if start:
                checkpoints.load_student(model, start)
            return model

        return build, student
    taught_by = recipe.model(teacher)
    weights = detector_checkpoint(recipe, teacher, work_dir)
    distill = recipe.cfg.distill

    def build():
        return Distiller(
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


def distill_cfg(recipe: Recipe, student: dict, teacher: dict) -> list[dict]:
    """The recipe's distillation settings in the original code's form: one entry per FPN level."""
    distill = recipe.cfg.distill
    settings = distill.settings[distill.method].to_dict()
    channels = dict(
        student_channels=student['neck']['out_channels'],
        teacher_channels=teacher['neck']['out_channels'],
    )
    return [
        dict(
            student_module=distill.student_module.format(level=level),
            teacher_module=distill.teacher_module.format(level=level),
            methods=[dict(name=f'loss_{distill.method}_fpn_{level}', **channels, **settings)],
        )
        for level in distill.levels
    ]


def _fit(
    recipe: Recipe,
    build,
    model_cfg: dict,
    out: Path,
    updates: int,
    seed: int,
    scenes: int | None = None,
):
    """Trains what `build` makes for `updates` optimizer steps into ``out/latest.pth``; returns it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / 'log.json').touch()
    except OSError as error:
        raise MtpdError(
            f'{out} cannot be written to ({error.strerror}). Choose another --work-dir.'
        ) from None
    device = device_of(recipe)
    if device == 'cpu':
        torch.set_num_threads(recipe.cfg.runtime.threads or cores())
    masks = pipelines.with_masks(recipe, model_cfg)
    train, val = (pipelines.dataset(recipe, split, scenes, masks) for split in ('train', 'val'))
    set_random_seed(seed)
    model, data = build(), pipelines.build(train)
    model.CLASSES = data.CLASSES
    if len(data) == 0:
        raise RecipeError(
            recipe.source, [f'{train["ann_file"]} has no image with an object to train on.']
        )
    model = model.to(device)
    latest = out / 'latest.pth'
    cfg = _mmdet_cfg(recipe, train, val, out, updates, seed, device)
    cfg.resume_from = str(latest) if latest.is_file() else None
    if cfg.resume_from is None:
        (out / 'log.json').write_text('')
    train_detector(
        model,
        data,
        cfg,
        validate=bool(recipe.cfg.schedule.eval_interval),
        meta={'CLASSES': data.CLASSES},
    )
    return model


def _mmdet_cfg(
    recipe: Recipe, train, val, out: Path, updates: int, seed: int, device: str
) -> Config:
    """The config that mmdet's `train_detector` reads."""
    schedule, runtime = recipe.cfg.schedule, recipe.cfg.runtime
    batch = dict(samples_per_gpu=schedule.batch_size, workers_per_gpu=runtime.workers)
    settings: dict[str, Any] = dict(
        data=dict(
            train=train,
            val=val,
            test=val,
            train_dataloader=dict(**batch, persistent_workers=runtime.workers > 0),
            val_dataloader=dict(
                samples_per_gpu=recipe.cfg.evaluation.batch_size, workers_per_gpu=0
            ),
        ),
        optimizer=schedule.optimizer,
        optimizer_config=dict(grad_clip=schedule.grad_clip),
        lr_config=schedule.lr,
        runner=dict(type='IterBasedRunner', max_iters=updates),
        checkpoint_config=None,
        log_config=dict(
            interval=schedule.log_interval, hooks=[dict(type='JsonLog', path=str(out / 'log.json'))]
        ),
        custom_hooks=[
            dict(
                type='SaveLatest',
                path=str(out / 'latest.pth'),
                interval=schedule.checkpoint_interval,
            )
        ],
        evaluation=dict(interval=schedule.eval_interval or updates, metric='bbox'),
        workflow=[('train', 1)],
        work_dir=str(out),
        log_level='WARNING',
        load_from=None,
        resume_from=None,
        gpu_ids=[0],
        device=device,
        seed=seed,
    )
    return Config(settings)


def _export(recipe: Recipe, detector: str, source: Path, target: Path, **provenance) -> None:
    meta = {
        'CLASSES': tuple(recipe.classes),
        'recipe': recipe.name,
        'detector': detector,
        'seed': recipe.seed,
        **provenance,
    }
    checkpoints.export_student(source, target, meta=meta)


def _measured(recipe: Recipe, detector: str, out: Path, checkpoint: Path) -> dict:
    """A detector's metrics and size in `out`, measured unless they are there for this checkpoint."""
    metrics = read_json(out / 'metrics.json')
    if metrics is None or metrics['sha256'] != checkpoints.sha256(checkpoint):
        wanted = recipe.cfg.evaluation.metrics
        metrics = evaluate(recipe, checkpoint, wanted, detector, out)
    if not (out / 'model.json').is_file():
        write_json(out / 'model.json', describe(recipe, detector))
    model = read_json(out / 'model.json')
    return {'dir': out, 'checkpoint': checkpoint, 'metrics': metrics, 'model': model}
