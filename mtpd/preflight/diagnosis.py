"""`mtpd diagnose`: what makes a student worse, from a recipe, its checkpoints and a few batches of its training data."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmcv import ConfigDict
from mmcv.parallel import collate
from mmcv.runner import CheckpointLoader
from mmdet.models import build_detector
from mmdet.utils import get_root_logger
from torch import Tensor, nn

from ..config.files import mmdet_config
from ..config.findings import (
    USELESS_AP,
    USUAL_RATE,
    USUAL_RATIO,
    USUAL_SIDE,
    USUAL_UPDATE,
    USUAL_VARIATION,
    Finding,
    ap_finding,
    balance_finding,
    is_outside,
    number_text,
    range_text,
    refusal,
    student_finding,
    teacher_mode_finding,
    unique,
    warning,
)
from ..config.plan import detector_training, stage_dir
from ..config.recipe import Recipe, detector_key, load_recipe
from ..data import coco
from ..data.seeded_loader import MODEL_DRAWS, seed_all
from ..distill.distiller import Distiller
from ..distill.losses import DISTILL_LOSSES
from ..engine import learning_rate, loop, memory, pipelines
from ..engine.distill_config import distill_cfg
from ..engine.evaluation import DetectionTask, coco_evaluator, evaluate_model, load_detector
from ..engine.hooks import LARGEST_LOSS
from ..errors import MtpdError
from ..runtime import checkpoints
from ..utils.files import file_sha256, read_json_if_valid
from ..utils.paths import resolve_path
from ..utils.progress import log_level
from . import checks, detectors, trial

BATCHES = 3
IMAGES = 8  # of a batch at most
TESTED_IMAGES = 32  # of the validation split, where a detector's AP is not known
USUAL_BATCH = (
    16  # images of an update for which mmdet states learning rates, where a config doesn't
)


class Balance(NamedTuple):
    """What a stage's student is trained by, means over a few batches.

    Attributes:
        detection: the detection loss.
        levels: the distillation loss by level of the neck.
        neck, backbone: the gradient's norm of distillation, and of detection, in these parts of the student.
        variation: by level, the share of the teacher's mean square that varies over cells and images, 0 to 1.
        update: by how much of their size the first update at the peak learning rate changes the student's weights; None where the
            optimizer is neither SGD nor Adam.
    """

    detection: float
    levels: dict[int, float]
    neck: tuple[float, float]
    backbone: tuple[float, float]
    variation: dict[int, float]
    update: float | None

    @property
    def loss_ratio(self) -> float:
        """The distillation loss divided by the detection loss."""
        return _ratio(sum(self.levels.values()), self.detection)

    @property
    def text(self) -> str:
        """The measured ratios in words."""
        return (
            f'the distillation loss is {number_text(self.loss_ratio)} times the detection loss '
            f'({number_text(sum(self.levels.values()))} against {number_text(self.detection)}), its gradient '
            f'{number_text(_ratio(*self.neck))} times in the neck and {number_text(_ratio(*self.backbone))} times in the backbone'
        )

    @property
    def level_text(self) -> str:
        """The distillation loss of each level divided by the detection loss."""
        levels = (
            f'level {level} {number_text(_ratio(loss, self.detection))}'
            for level, loss in self.levels.items()
        )
        return f'losses by level: {", ".join(levels)}'


@dataclass
class Diagnosis:
    """The result of `diagnose_recipe`.

    Attributes:
        findings: errors first.
        measured: a line for each measurement.
        unmeasured: why a measurement was not made, a line each.
    """

    findings: list[Finding] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)


def diagnose_recipe(
    recipe: Recipe, work_dir: str | Path | None = None, fetch: bool = True
) -> Diagnosis:
    """All that may make the students of a recipe worse. Nothing is trained, and nothing written into the run directory.

    Measured are the weights that a stage begins with: the baseline in the run directory, if it is trained, and the teachers'
    checkpoints; and the weights of the first stage with each teacher that has ended. A batch has `IMAGES` images at most.

    Args:
        fetch: whether checkpoints that are named by a URL are fetched.

    Raises:
        MtpdError: a checkpoint can't be fetched.
    """
    diagnosis = Diagnosis()
    teachers = _teachers(recipe)
    weights = {name: _weights(recipe, name, work_dir, fetch) for name in ('student', *teachers)}
    refused = _recipe_refusals(recipe, weights)
    diagnosis.findings += refused
    for name, path in weights.items():
        if _has_model(recipe, name):
            diagnosis.findings += detector_findings(recipe, name, path)
    diagnosis.findings += settings_findings(recipe)
    if refused:
        diagnosis.unmeasured.append('nothing was measured: the recipe has errors')
    else:
        unfit = {item.subject for item in diagnosis.findings if item.severity == 'error'}
        get_root_logger(log_level=log_level())
        with tempfile.TemporaryDirectory() as folder:
            _measure(_small(recipe, folder), work_dir, weights, unfit, Path(folder), diagnosis)
    diagnosis.findings = unique(diagnosis.findings)
    return diagnosis


def _teachers(recipe: Recipe) -> list[str]:
    """The teachers of the recipe's arms, each once; of an arm whose teachers are to be chosen all."""
    names: dict[str, None] = {}
    for arm in recipe.arms.values():
        names |= dict.fromkeys(arm.teachers or recipe.pool)
    return [name for name in names if name is not None]


def _weights(recipe: Recipe, name: str, work_dir: Any, fetch: bool) -> Path | None:
    """A detector's checkpoint that is on this machine: the recipe's, or the one that was trained in the run directory."""
    path = recipe.fetch(name) if fetch else recipe.checkpoint(name)
    if path is None:
        training = detector_training(recipe, name, work_dir)
        path = training.folder / training.final
    return path if path.is_file() else None


def _small(recipe: Recipe, folder: str) -> Recipe:
    """The recipe with as few DigitScenes as are needed here."""
    if recipe.cfg.data.root is not None:
        return recipe
    scenes = {'data.scenes.train': (1 + BATCHES) * IMAGES, 'data.scenes.val': TESTED_IMAGES}
    return load_recipe(recipe, scenes | {'data.cache': folder})


# The recipe and its checkpoints.


def _recipe_refusals(recipe: Recipe, weights: dict[str, Path | None]) -> list[Finding]:
    """What a run of the recipe would be refused for, but for what `detector_findings` says."""
    names = list(weights)
    problems, _ = checks.recipe_problems(recipe, names, [])
    problems += recipe.checkpoint_problems([name for name in names if not weights[name]])
    as_findings = {
        text
        for name in names
        if _has_model(recipe, name)
        and detectors.has_foreign_weights(recipe.detectors[name], recipe.model(name))
        for text in detectors.normalisation_problems(
            recipe,
            name,
            detectors.config_normalisation(recipe, name),
            recipe.detectors[name].config,
        )
    }
    return [refusal('recipe', text) for text in dict.fromkeys(problems) if text not in as_findings]


def _has_model(recipe: Recipe, name: str) -> bool:
    try:
        recipe.model(name)
    except MtpdError:
        return False
    return True


def detector_findings(recipe: Recipe, name: str, path: Path | None) -> list[Finding]:
    """Whether a detector fits the recipe: weights, classes, normalisation, size of the images.

    Args:
        path: its checkpoint; None: it is not trained yet.
    """
    subject, meta = 'student' if name == 'student' else f'teacher {name}', {}
    rows: list[Finding | None] = []
    if path:
        try:
            checkpoint = checkpoints.load_checkpoint(path)
            state = checkpoints.student_state(checkpoint, path)
            checkpoints.check_finite(state, path)
        except MtpdError as error:
            return [refusal(subject, str(error))]
        meta = checkpoint.get('meta')
        meta = meta if isinstance(meta, dict) else {}
        rows.append(_weights_finding(recipe, name, subject, path, state))
        rows.append(_class_finding(recipe, name, subject, path, meta))
    rows.append(_normalisation_finding(recipe, name, subject, path, meta))
    if name != 'student' and path:
        rows.append(_size_finding(recipe, name, subject, path, meta))
    return [row for row in rows if row]


def _weights_finding(
    recipe: Recipe, name: str, subject: str, path: Path, state: dict
) -> Finding | None:
    parts = ('',) if name == 'student' else detectors.TEACHER_PARTS
    model = build_detector(ConfigDict(recipe.model(name))).state_dict()
    wanted = {
        key: value
        for key, value in model.items()
        if key.startswith(parts) and not key.endswith('num_batches_tracked')
    }
    fitting = [key for key in wanted if key in state and state[key].shape == wanted[key].shape]
    if len(fitting) == len(wanted):
        return None
    what = 'of its weights' if name == 'student' else 'of the weights of its backbone and neck'
    absent = next(key for key in wanted if key not in fitting)
    return refusal(
        subject,
        f'{path} has {len(fitting)} of {len(wanted)} {what}, and lacks for example {absent}',
        f'{len(wanted)} of {len(wanted)}',
        f'Give a checkpoint of exactly this config, or correct {detector_key(name)}.config.',
    )


def _class_finding(
    recipe: Recipe, name: str, subject: str, path: Path, meta: dict
) -> Finding | None:
    difference = detectors.class_difference(recipe, meta.get('CLASSES'))
    if difference is None or recipe.is_features_only(name):
        return None
    key = detector_key(name)
    return refusal(
        subject,
        f'{path} was trained on other classes: {difference}',
        "the dataset's classes in their order",
        'Give a checkpoint of these classes in this order, or train it here from those weights: '
        f'--cfg-options {key}.checkpoint=None {key}.init={path}',
    )


def _normalisation_finding(
    recipe: Recipe, name: str, subject: str, path: Path | None, meta: dict
) -> Finding | None:
    """The recipe's normalisation against that of the checkpoint's own config, and of the detector's config."""
    spec = recipe.detectors[name]
    norms = [(path.name, detectors.checkpoint_normalisation(meta))] if path else []
    if detectors.has_foreign_weights(spec, recipe.model(name)):
        norms.append((spec.config, detectors.config_normalisation(recipe, name)))
    for source, norm in norms:
        if norm and not detectors.same_normalisation(norm, recipe.image(name)):
            return refusal(
                subject,
                f'the recipe makes images with {detectors.normalisation_text(recipe.image(name))}',
                f'as {source} says, {detectors.normalisation_text(norm)}',
                detectors.normalisation_fix(name, norm),
            )
    return None


def _size_finding(
    recipe: Recipe, name: str, subject: str, path: Path, meta: dict
) -> Finding | None:
    source, scales = path.name, checkpoint_scales(meta)
    if not scales:
        source = recipe.detectors[name].config
        cfg = mmdet_config(resolve_path(source, recipe.source))
        scales = list(_pipeline_scales((cfg.get('data') or {}).get('train')))
    if not scales:
        return None
    side = math.sqrt(math.prod(pipelines.image_scale(recipe.image(name))))
    factors = [side / math.sqrt(math.prod(scale)) for scale in scales]
    factor = min(factors, key=lambda value: abs(math.log(value)))
    if min(factors) < 1 < max(factors) or not is_outside(factor, USUAL_SIDE):
        return None
    return warning(
        subject,
        f'the images are {number_text(factor)} times as large as its training images ({scales[0][0]} x {scales[0][1]} in '
        f'{source})',
        f'{range_text(USUAL_SIDE)} times',
        f"Set --cfg-options 'teachers.{name}.image.scale=({scales[0][0]},{scales[0][1]})', or give a teacher that was trained on such "
        'images.',
    )


def checkpoint_scales(meta: dict) -> list[tuple[int, int]]:
    """The sizes of images in the pipelines of a checkpoint's own config, which is read and never run."""
    try:
        nodes = list(ast.walk(ast.parse(str(meta.get('config')))))
    except (SyntaxError, ValueError, RecursionError):
        return []
    values = []
    for node in nodes:
        if isinstance(node, ast.keyword) and node.arg == 'img_scale':
            values.append(node.value)
        elif isinstance(node, ast.Dict):
            keys = [getattr(key, 'value', None) for key in node.keys]
            values += [node.values[keys.index('img_scale')]] if 'img_scale' in keys else []
    scales: list[tuple[int, int]] = []
    for value in values:
        with contextlib.suppress(ValueError, TypeError):
            scales += _scales(ast.literal_eval(value))
    return list(dict.fromkeys(scales))


def _pipeline_scales(node: Any) -> Iterator[tuple[int, int]]:
    """The sizes that a training pipeline in an mmdet config resizes to."""
    if isinstance(node, dict):
        yield from _scales(node.get('img_scale'))
        node = list(node.values())
    for item in node if isinstance(node, (list, tuple)) else ():
        yield from _pipeline_scales(item)


def _scales(value: Any) -> list[tuple[int, int]]:
    """`img_scale` of mmdet's Resize, a pair or a list of pairs."""
    pairs = value if isinstance(value, (list, tuple)) else []
    if len(pairs) == 2 and all(isinstance(side, int) for side in pairs):
        pairs = [pairs]
    return [
        tuple(pair)
        for pair in pairs
        if isinstance(pair, (list, tuple))
        and len(pair) == 2
        and all(isinstance(side, int) and side > 0 for side in pair)
    ]


# Settings.


def settings_findings(recipe: Recipe) -> list[Finding]:
    """What shows in the settings alone: a teacher in train mode, a learning rate that was not scaled."""
    rows = [teacher_mode_finding(recipe.cfg.distill.teacher_mode), _rate_finding(recipe)]
    return [row for row in rows if row]


def _rate_finding(recipe: Recipe) -> Finding | None:
    """The stages' learning rate against that of the student's own config, scaled linearly to the batch."""
    cfg = mmdet_config(resolve_path(recipe.cfg.student.config, recipe.source))
    stated, optimizer = cfg.get('optimizer') or {}, recipe.cfg.schedule.optimizer
    rate = peak_rate(recipe)
    if stated.get('type') != optimizer.type or not stated.get('lr') or rate is None:
        return None
    batch = recipe.cfg.schedule.batch_size
    meant = (cfg.get('auto_scale_lr') or {}).get('base_batch_size') or USUAL_BATCH
    usual = stated['lr'] * batch / meant
    if not is_outside(rate / usual, USUAL_RATE):
        return None
    low, high = (number_text(limit * usual) for limit in USUAL_RATE)
    return warning(
        'schedule.optimizer.lr',
        f'the learning rate is {number_text(rate)} with {batch} images an update',
        f'{low} to {high}: {recipe.cfg.student.config} has {number_text(stated["lr"])} for {meant}',
        f'Set --cfg-options schedule.lr_batch_size={meant} schedule.optimizer.lr={stated["lr"]:g}, which scales it to the batch.',
    )


def peak_rate(recipe: Recipe) -> float | None:
    """The largest learning rate of a stage, scaled to the batch; None where it is not one number."""
    schedule = recipe.cfg.schedule
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it scales
        optimizer, policy = learning_rate.optimizer_and_policy(
            schedule, schedule.arm, schedule.get('arm_lr')
        )
    rate = learning_rate.peak_rate(optimizer, policy)
    return rate if isinstance(rate, (int, float)) and rate > 0 else None


# Measurements.


def _measure(
    recipe: Recipe,
    work_dir: Any,
    weights: dict[str, Path | None],
    unfit: set[str],
    folder: Path,
    diagnosis: Diagnosis,
) -> None:
    """Adds findings about what is measured: AP where it is not known, then each stage's losses, gradients and features.

    Args:
        unfit: subjects whose checkpoint does not fit.
    """
    run_dir, device = recipe.run_dir(work_dir), loop.recipe_device(recipe)
    loop.set_threads(device, recipe.cfg.runtime.threads)
    teachers = [name for name in weights if name != 'student']
    fit = {
        name: path
        for name, path in weights.items()
        if path and not unfit & {name, f'teacher {name}'}
    }
    aps = _add_aps(recipe, run_dir, fit, folder, diagnosis)
    rates: list[Finding] = []
    for teacher in teachers:
        if teacher not in fit:
            reason = 'its checkpoint has errors' if weights[teacher] else 'it is not trained yet'
            diagnosis.unmeasured.append(f'teacher {teacher}: not measured: {reason}')
            continue
        for title, start, ap, build in _states(recipe, teacher, fit, work_dir, aps.get('student')):
            judged = 'losses' if ap is not None and ap < USELESS_AP else 'gradients in the neck'
            try:
                balance = measure_balance(recipe, build(), teacher, device, folder)
            except (MtpdError, MemoryError, RuntimeError) as error:
                reason = str(error).partition('\n')[0].partition('. ')[0]
                diagnosis.unmeasured.append(f'{title}, {start}: not measured: {reason}')
                continue
            diagnosis.measured.append(f'{title}, {start}: {balance.text}; {balance.level_text}')
            findings = balance_findings(recipe, title, teacher, balance, start, judged)
            if aps.get(teacher, math.inf) < USELESS_AP:  # no weight makes such a teacher good
                findings = [finding for finding in findings if finding.subject != title]
            diagnosis.findings += findings
            if rate := rate_finding(recipe, balance.update):
                rates.append(rate)
    diagnosis.findings += rates[:1]  # of all states


def balance_findings(
    recipe: Recipe, title: str, teacher: str, balance: Balance, start: str, judged: str
) -> list[Finding]:
    """What is out of its range in a stage.

    Args:
        title, start: the stage, and the weights at which it was measured, in words.
        judged: 'gradients in the neck' or, of a student that has learned nothing yet, whose detection loss has far larger
            gradients than later, 'losses'.
    """
    method = recipe.cfg.distill.method
    ratio = _ratio(*balance.neck) if judged != 'losses' else balance.loss_ratio
    rows = [
        balance_finding(
            title,
            ratio,
            f'{start}, {balance.text}',
            judged,
            method,
            method_weights(recipe.cfg.distill.settings[method].to_dict()),
        )
    ]
    if rows[0] and max(balance.detection, *balance.levels.values()) > LARGEST_LOSS:
        rows = [rows[0]._replace(severity='error')]  # the training would end in its first update
    dull = {k: v for k, v in balance.variation.items() if v < USUAL_VARIATION}
    if dull:
        by_level = ', '.join(f'{number_text(v)} at level {k}' for k, v in dull.items())
        rows.append(
            warning(
                f'teacher {teacher}',
                f'its features hardly vary over cells and images: their variance is {by_level} of their mean square',
                f'{USUAL_VARIATION:g} to 1',
                'Such features have nothing to teach. Give a trained checkpoint, leave these levels out of '
                'distill.levels, or compare other modules (distill.teacher_module=auto).',
            )
        )
    return [row for row in rows if row]


def rate_finding(recipe: Recipe, update: float | None) -> Finding | None:
    """Whether updates at the peak learning rate are too large; `update`: of `Balance`."""
    if update is None or update <= USUAL_UPDATE:
        return None
    rate = peak_rate(recipe)
    factor = 10 ** math.ceil(math.log10(update / USUAL_UPDATE))
    return warning(
        'learning rate',
        f"at the peak of {number_text(rate)} an update changes the student's weights by {number_text(update)} of their size",
        f'up to {USUAL_UPDATE:g}',
        f'Set --cfg-options schedule.arm_lr={rate / factor:.2g}.',
    )


def method_weights(settings: dict) -> dict[str, float]:
    """The settings of a method, as a recipe has them, that its loss is proportional to."""
    names = DISTILL_LOSSES.get(settings['type']).scale_settings
    return {name: settings[name] for name in names if name in settings}


def balanced_weights(recipe: Recipe, teacher: str) -> tuple[dict[str, float], str] | None:
    """A method's weights that balance distillation and detection at a stage's start, and the measured ratio in words.

    The weights are empty where the recipe's are in their usual range.

    Returns:
        None where weights or data are not on this machine, or the stage cannot be measured.
    """
    weights = {name: _weights(recipe, name, None, fetch=False) for name in ('student', teacher)}
    fit = {name: path for name, path in weights.items() if path}
    if teacher not in fit or recipe.data_problems():
        return None
    device = loop.recipe_device(recipe)
    with tempfile.TemporaryDirectory() as folder:
        small = _small(recipe, folder)
        try:
            _, start, ap, build = next(_states(small, teacher, fit, None, None))
            balance = measure_balance(small, build(), teacher, device, Path(folder))
        except (MtpdError, MemoryError, RuntimeError):
            return None
    ratio = balance.loss_ratio if ap is not None and ap < USELESS_AP else _ratio(*balance.neck)
    if not is_outside(ratio, USUAL_RATIO) or not 0 < ratio < math.inf:
        return {}, f'{start}, {balance.text}'
    method = recipe.cfg.distill.method
    settings = method_weights(recipe.cfg.distill.settings[method].to_dict())
    return (
        {name: float(f'{value / ratio:.2g}') for name, value in settings.items()},
        f'{start}, {balance.text}',
    )


def _states(
    recipe: Recipe,
    teacher: str,
    weights: dict[str, Path],
    work_dir: Any,
    student_ap: float | None,
) -> Iterator[tuple[str, str, float | None, Any]]:
    """The weights at which a student beside a teacher is measured.

    Yields:
        The stage and the weights in words, their AP (points; None where it is not known), and what builds the `Distiller`.
    """
    title = f'student taught by {teacher}'
    student, model = recipe.model('student'), recipe.model(teacher)
    cfg, distill = distill_cfg(recipe, student, model), recipe.cfg.distill
    common = dict(
        teacher_checkpoint=str(weights[teacher]),
        teacher_mode=distill.teacher_mode,
        teacher_norm=recipe.own_normalisation(teacher),
    )

    def build(student_cfg=student, **options):
        return Distiller(student_cfg, model, cfg, **common, **options)

    initial, lacks = _initial_student(recipe)
    if distill.start == 'inherit':
        allow = tuple(distill.inherit_allow)
        where = f"at a stage's start, with the teacher's neck{lacks}"
        yield (
            *(title, where, 0.0 if lacks else None),
            lambda: build(initial, init_student=True, inherit_allow=allow),
        )
    elif distill.start == 'baseline' and 'student' in weights:
        path = str(weights['student'])
        yield (
            *(title, "at a stage's start, from the baseline", student_ap),
            lambda: build(student_checkpoint=path),
        )
    else:
        yield title, f'with an untrained student{lacks}', 0.0, lambda: build(initial)
    for arm in recipe.arms.values():
        for stage, name in enumerate(arm.teachers, 1):
            out = stage_dir(recipe, arm, stage, work_dir)
            files = [str(out / 'student.pth'), str(out / 'latest.pth')]
            if name == teacher and all(Path(file).is_file() for file in files):
                where = f'at the end of {arm.name}, stage {stage}'
                ap = read_json_if_valid(out / 'metrics.json', {}).get('bbox_mAP')
                yield (
                    *(title, where, None if ap is None else 100 * ap),
                    lambda files=files: build(
                        student_checkpoint=files[0], adapters_checkpoint=files[1]
                    ),
                )
                return


def _initial_student(recipe: Recipe) -> tuple[ConfigDict, str]:
    """The student's model config, without the pretrained weights of its backbone where these can't be had; and that in words."""
    cfg = recipe.model('student')
    origin = cfg.backbone.get('init_cfg') or {}
    if isinstance(origin, dict) and origin.get('type') == 'Pretrained':
        try:
            CheckpointLoader.load_checkpoint(origin['checkpoint'], 'cpu', None)
        except Exception:  # of a dozen types, by where they are
            cfg.backbone.init_cfg = None
            return cfg, ' and without its pretrained backbone, which cannot be fetched'
    return cfg, ''


def measure_balance(
    recipe: Recipe, model: Distiller, teacher: str, device: str, folder: Path
) -> Balance:
    """Losses and gradients of a stage's model on a few batches of the training data, in full precision, without a step.

    A batch that takes longer than `trial.SLOW_BATCH` is the last one.

    Args:
        teacher: its name in the recipe, whose images the model also needs where they are of another size.
        folder: for the annotations of the batches' images.
    """
    size = min(IMAGES, recipe.cfg.schedule.batch_size)
    masks = pipelines.needs_masks(recipe, recipe.model('student'))
    data = trial.example_images(recipe, folder, size, BATCHES * size, masks, teacher=teacher)
    model.train()
    wrapped = loop.data_parallel(model, device)
    rows: list[tuple[list[float], list[float], dict[int, float]]] = []
    update, began = None, time.perf_counter()
    with _teacher_features(model) as features:
        for number, images in enumerate(islice(trial.example_batches(data, size), 1, 1 + BATCHES)):
            seed_all(recipe.seed, number, 0, MODEL_DRAWS)  # also for the images' flips
            batch = collate([data[index] for index in images], size)
            losses = _scalar_losses(wrapped(**batch))
            levels = {name: losses.pop(name) for name in model.distill_losses}
            detection, distillation = sum(losses.values()), sum(levels.values())
            norms = [
                gradient_norm(loss, getattr(model.student, part))
                for part in ('neck', 'backbone')
                for loss in (distillation, detection)
            ]
            if update is None:
                update = _update_share(recipe, model.student, distillation + detection)
            variation = {_level(name): _variation(value) for name, value in features.items()}
            values = [detection.detach(), *(loss.detach() for loss in levels.values())]
            rows.append(([float(value) for value in values], norms, variation))
            if time.perf_counter() - began > trial.SLOW_BATCH:
                break
    losses_mean, norms_mean = (
        torch.tensor([row[k] for row in rows], dtype=torch.float64).mean(0).tolist() for k in (0, 1)
    )
    names = [_level(name) for name in model.distill_losses]
    return Balance(
        losses_mean[0],
        dict(zip(names, losses_mean[1:], strict=True)),
        (norms_mean[0], norms_mean[1]),
        (norms_mean[2], norms_mean[3]),
        {level: min(row[2][level] for row in rows) for level in rows[0][2]},
        update,
    )


def _level(name: str) -> int:
    """The level in a loss's name, as `engine.distill_config` makes it."""
    return int(name.rpartition('_')[2])


def _scalar_losses(losses: dict[str, Any]) -> dict[str, Tensor]:
    """Of what a detector's `forward_train` returns what mmdet trains, each a scalar."""
    return {
        name: sum(item.mean() for item in value) if isinstance(value, list) else value.mean()
        for name, value in losses.items()
        if 'loss' in name
    }


@contextlib.contextmanager
def _teacher_features(model: Distiller) -> Iterator[dict[str, Tensor]]:
    """A dict that forward passes fill: name of a loss -> the teacher's feature map `(N, C, H, W)`."""
    features: dict[str, Tensor] = {}

    def note(name: str):
        def keep(loss: nn.Module, args: tuple) -> None:
            features[name] = args[1].detach().float()

        return keep

    hooks = [
        loss.register_forward_pre_hook(note(name)) for name, loss in model.distill_losses.items()
    ]
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()


def _variation(feature: Tensor) -> float:
    """The share of the mean square of `(N, C, H, W)` that varies over N, H, W: 0 where each channel is constant."""
    square = float(feature.pow(2).mean())
    spread = float(feature.var((0, 2, 3), unbiased=False).mean())
    return spread / square if square > 0 else 0.0


def gradient_norm(loss: Tensor, part: nn.Module) -> float:
    """The L2 norm of a loss's gradient over the trained parameters of a part, 0 where it has none. The graph stays."""
    parameters = [p for p in part.parameters() if p.requires_grad]
    if not parameters or not loss.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(g.double().pow(2).sum()) for g in gradients if g is not None))


def _update_share(recipe: Recipe, student: nn.Module, loss: Tensor) -> float | None:
    """As `Balance.update`: by SGD with momentum, or by Adam, whose first updates have the size of the learning rate."""
    optimizer, rate = recipe.cfg.schedule.optimizer, peak_rate(recipe)
    weights = [p for p in student.parameters() if p.requires_grad and p.dim() > 1]
    if rate is None or not weights:
        return None
    size = math.sqrt(sum(float(p.detach().double().pow(2).sum()) for p in weights))
    if optimizer.type.startswith('Adam'):
        return _ratio(rate * math.sqrt(sum(p.numel() for p in weights)), size)
    if optimizer.type != 'SGD':
        return None
    norm = gradient_norm(loss, student)
    clip = (recipe.cfg.schedule.grad_clip or {}).get('max_norm', math.inf)
    return _ratio(rate * min(norm, clip), (1 - optimizer.get('momentum', 0)) * size)


def _ratio(a: float, b: float) -> float:
    return a / b if b else (math.inf if a else 0.0)


# Average precision.


def _add_aps(
    recipe: Recipe,
    run_dir: Path,
    weights: dict[str, Path],
    folder: Path,
    diagnosis: Diagnosis,
) -> dict[str, float]:
    """Adds what AP says of student and teachers: as measured before, else on a few validation images, all alike.

    Returns:
        AP (points) by detector, of those that are known or were measured.
    """
    # A teacher of features alone has no AP.
    weights = {name: path for name, path in weights.items() if not recipe.is_features_only(name)}
    measured = {name: known_ap(recipe, run_dir, name, path) for name, path in weights.items()}
    before = {name: ap for name, (ap, _) in measured.items()}
    known = {name: ap if same_images else None for name, (ap, same_images) in measured.items()}
    teachers = [name for name in weights if name != 'student']
    few: dict[str, tuple[float, float, int]] = {}
    for name in weights if None in known.values() else ():
        try:
            few[name] = measure_ap(recipe, name, weights[name], folder)
        except (MtpdError, MemoryError, RuntimeError) as error:
            first = str(error).partition('\n')[0]
            diagnosis.unmeasured.append(f'{name}: AP was not measured: {first}')
    student_ap, on = known.get('student'), ''
    if student_ap is None and 'student' in few:
        student_ap, _, images = few['student']
        on = f' on {images} images'
    if student_ap is not None:
        diagnosis.measured.append(f'student: AP {student_ap:.1f}{on}, before distillation')
        diagnosis.findings += filter(None, [student_finding(student_ap)])
    for name in teachers:
        if known[name] is not None and known.get('student', 0.0) is not None:
            diagnosis.measured.append(f'teacher {name}: AP {known[name]:.1f}, as measured before')
            diagnosis.findings += filter(
                None, [ap_finding(name, known[name], known.get('student'))]
            )
        elif name in few:
            ap, any_class, images = few[name]
            diagnosis.measured.append(f'teacher {name}: AP {ap:.1f} on {images} images')
            beside = few['student'][0] if 'student' in few else None
            diagnosis.findings += filter(
                None,
                [
                    class_order_finding(name, ap, any_class, images)
                    or image_finding(name, ap, before[name], images)
                    or ap_finding(name, ap, beside, images)
                ],
            )
    return {name: ap for name, (ap, _, _) in few.items()} | {
        name: ap for name, ap in known.items() if ap is not None
    }


def image_finding(teacher: str, ap: float, before: float | None, images: int) -> Finding | None:
    """Whether a teacher has lost half of its AP (points) by images that are made in another way than before."""
    if before is None or ap > before / 2:
        return None
    return warning(
        f'teacher {teacher}',
        f'AP is {ap:.1f} on {images} images, and was {before:.1f} on images made in another way',
        'about as before',
        f'Make its images as in its training: correct image or teachers.{teacher}.image (mean, std, to_rgb, scale).',
    )


def class_order_finding(teacher: str, ap: float, any_class: float, images: int) -> Finding | None:
    """Whether a teacher finds the objects but names them wrong; AP (points) with and without classes."""
    if any_class < 5 or any_class < 3 * ap:
        return None
    return warning(
        f'teacher {teacher}',
        f'AP is {ap:.1f} on {images} images, and {any_class:.1f} where classes do not count',
        'below 3 times AP',
        "Its classes are in another order than the dataset's. Give a checkpoint of these classes in this order.",
    )


def known_ap(recipe: Recipe, run_dir: Path, name: str, path: Path) -> tuple[float | None, bool]:
    """AP (points) of a checkpoint as a metrics.json of it says, and whether its images were made as they are now.

    The run's file is read first, then the one beside the checkpoint; None where neither has it. A smoke run measures on too
    few images. Metrics of other annotations do not count.
    """
    files = [run_dir / 'detectors' / name / 'metrics.json', path.with_name('metrics.json')]
    smoke = read_json_if_valid(run_dir / 'run.json', {}).get('smoke')
    split = pipelines.dataset_config(recipe, 'val', detector=name)
    annotations = coco.fingerprint(Path(split['ann_file']))
    for file in files[1:] if smoke else files:
        metrics = read_json_if_valid(file, {})
        if metrics.get('bbox_mAP') is None or metrics.get('sha256') != file_sha256(path):
            continue
        if metrics.get('annotations_sha256', annotations) != annotations:
            continue
        if 'image' in metrics:
            same_images = metrics['image'] == pipelines.image_settings(split)
        else:  # of an earlier version: they are taken to be the recipe's
            keys = ('image.', f'{detector_key(name)}.image.')
            same_images = not any(key.startswith(keys) for key in recipe.overrides)
        return 100 * metrics['bbox_mAP'], same_images
    return None, True


def measure_ap(recipe: Recipe, name: str, path: Path, folder: Path) -> tuple[float, float, int]:
    """AP on a few validation images: with classes, without classes (points 0 to 100), and how many images.

    Raises:
        MtpdError: the checkpoint does not load.
    """
    model = load_detector(recipe, path, name)
    split = pipelines.dataset_config(recipe, 'val', detector=name) | {'classes': model.CLASSES}
    table = coco.read_annotations(Path(split['ann_file']))
    step = max(1, len(table['images']) // TESTED_IMAGES)
    images = table['images'][::step][:TESTED_IMAGES]
    ids = {image['id'] for image in images}
    objects = [item for item in table['annotations'] if item['image_id'] in ids]
    file = folder / 'tested.json'
    file.write_text(json.dumps({**table, 'images': images, 'annotations': objects}))
    split['ann_file'] = str(file)
    batch = dict(samples_per_gpu=recipe.cfg.evaluation.batch_size, workers_per_gpu=0)
    device = loop.recipe_device(recipe)
    names = memory.recipe_setting_names(recipe.cfg, 1)
    task = DetectionTask(split, batch, device, 1, recipe.corrupt_limit, names)
    with contextlib.redirect_stdout(io.StringIO()):
        numbers = evaluate_model(model, task, path, ('bbox',), folder / 'tested')
        any_class = _ap_of_any_class(split, folder / 'tested' / 'detections.json')
    return 100 * (numbers['bbox_mAP'] or 0.0), any_class, len(images)


def _ap_of_any_class(split: dict, detections: Path) -> float:
    """AP in points, all objects and detections taken for one class."""
    truth = pipelines.quiet_dataset(split).coco
    boxes = json.loads(detections.read_text(encoding='utf-8'))
    if not boxes:
        return 0.0
    evaluator = coco_evaluator('pycocotools')(truth, truth.loadRes(boxes), 'bbox')
    evaluator.params.useCats = 0
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return 100 * max(0.0, float(evaluator.stats[0]))
