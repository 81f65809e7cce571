"""Where distillation's gain comes from: how well a student fits its training images, how much of that carries over to
others, and how flat the minimum is that it has found."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import torch
from mmcv import ConfigDict
from mmdet.datasets import build_dataloader
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor, nn
from torch.utils.data import Subset

from ..config.recipe import Recipe
from ..data import coco, loading
from ..engine import memory, pipelines
from ..engine.evaluation import DetectionTask, evaluate_model, load_detector
from ..engine.loop import data_parallel, evaluation_loader, recipe_device
from ..errors import MtpdError
from ..utils.files import file_sha256, read_json_if_valid, write_json
from ..utils.processes import end_with_parent
from ..utils.progress import progress_bar
from . import study
from .run import Run

PERTURBATION_SIZES = (0.05, 0.1, 0.2)  # of perturbations, relative to each filter's norm
MEASUREMENTS_FILE = Path('analysis', 'generalisation.json')


def measure_run(
    recipe: Recipe, run: Run, images: int = 200, probed: int = 64, directions: int = 4
) -> list[dict]:
    """Measures the student's baseline and its arms on training and on validation images; what is in the file is not
    measured again.

    Args:
        images: of either split, the first in file order.
        probed: training images that the perturbed students are tried on.
        directions: random perturbations of each size.

    Returns:
        A row each: ``name``, ``label``, ``train`` and ``val`` (``{'loss', 'AP'}``, AP in points or None), ``flat``
        (``{'size', 'direction', 'loss'}`` each, size 0 being the student as it is). Also in the run's
        analysis/generalisation.json, with these settings and the checkpoint's SHA-256.
    """
    file = run.path / MEASUREMENTS_FILE
    measured = read_json_if_valid(file, {})
    settings = {'images': images, 'probed': probed, 'directions': directions}
    keys, todo = {}, {}
    for name, label, checkpoint in _student_checkpoints(recipe, run):
        keys[name] = {
            **settings,
            **{'sizes': list(PERTURBATION_SIZES), 'sha256': file_sha256(checkpoint)},
            **{'name': name, 'label': label},
        }
        if not keys[name].items() <= measured.get(name, {}).items():
            todo[name] = checkpoint
    rows = _measure_students(recipe, todo, settings)
    for name, row in progress_bar('fit and flatness', rows, len(todo)):
        measured[name] = keys[name] | row
        write_json(file, measured)
    return [measured[name] for name in keys]


def measure_seeds(recipe: Recipe, run: Run, folders: Sequence[str] = ()) -> dict[int, list[dict]]:
    """`measure_run` of `run` by its seed, and what was measured of the runs that differ in the seed only
    (`study.comparable_runs`)."""
    by_seed = {run.info.get('seed'): measure_run(recipe, run)}
    for seed, other in study.comparable_runs(run, folders)[0].items():
        measured = read_json_if_valid(other.path / MEASUREMENTS_FILE, {})
        names = [row['name'] for row in other.results() if row['role'] == 'arm']
        rows = [measured[name] for name in ['baseline', *names] if name in measured]
        if rows and all(row['sizes'] == list(PERTURBATION_SIZES) for row in rows):
            by_seed.setdefault(seed, rows)
    return by_seed


def _student_checkpoints(recipe: Recipe, run: Run) -> Iterator[tuple[str, str, Path]]:
    """Name, label and checkpoint of the baseline and of each arm that is done."""
    baseline = recipe.fetch('student') or run.path / 'detectors' / 'student' / 'model.pth'
    if baseline.is_file():
        yield 'baseline', 'baseline', baseline
    for row in run.results():
        if row['role'] == 'arm' and row['AP'] is not None:
            yield row['name'], row['label'], run.stage_dirs(row['name'])[-1] / 'student.pth'


def _measure_students(
    recipe: Recipe, students: dict[str, Path], settings: dict[str, int]
) -> Iterator[tuple[str, dict]]:
    """Name and measurements of each student as they are made: on a CPU as many at a time as arms are trained there."""
    measure = partial(_measure_student, recipe, **settings)
    workers = min(len(students), recipe.cfg.runtime.jobs)
    # Forked, as torch's data workers are, they import nothing anew. A GPU, or another system, does not take that.
    if workers < 2 or recipe_device(recipe) != 'cpu' or sys.platform != 'linux':
        yield from ((name, measure(path)) for name, path in students.items())
        return
    pool = ProcessPoolExecutor(workers, get_context('fork'), initializer=_start_worker)
    try:
        names = {pool.submit(measure, path): name for name, path in students.items()}
        for done in as_completed(names):
            yield names[done], done.result()
    except BrokenProcessPool as error:
        raise MtpdError(
            'The system has ended a process that measures fit and flatness, most likely for lack of memory. What was '
            'measured is kept. Set runtime.jobs=1 to measure one student at a time.'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """One thread: what a library's other threads did ended with the fork."""
    end_with_parent()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _measure_student(
    recipe: Recipe, checkpoint: Path, images: int, probed: int, directions: int
) -> dict:
    model = load_detector(recipe, checkpoint).to(recipe_device(recipe))
    sides = {
        split: {
            'loss': detection_loss(model, training_batches(recipe, split, images)),
            'AP': _box_ap(recipe, model, checkpoint, split, images),
        }
        for split in ('train', 'val')
    }
    return sides | {
        'flat': perturbed_losses(model, training_batches(recipe, 'train', probed), directions)
    }


def training_batches(recipe: Recipe, split: str, images: int):
    """The first images of a split that have objects, with them, as mmdet's training loads them, but never flipped."""
    masks = pipelines.needs_masks(recipe, recipe.model('student'))
    pipeline = pipelines.train_pipeline(ConfigDict(recipe.cfg.image, flip=0.0), masks)
    cfg = pipelines.dataset_config(recipe, split) | dict(pipeline=pipeline, test_mode=False)
    data = loading.SkipCorrupt(pipelines.quiet_dataset(cfg), recipe.corrupt_limit)
    return build_dataloader(
        Subset(data, range(min(images, len(data)))),
        recipe.cfg.evaluation.batch_size,
        workers_per_gpu=0,
        dist=False,
        shuffle=False,
    )


def detection_loss(model: nn.Module, loader) -> float:
    """The detection loss, mean over images, of a detector in eval mode (its batch norms' running statistics).

    What a detector draws at random, such as proposals, is drawn anew from the same seed.
    """
    total = count = 0.0
    for batch in loader:
        size = len(batch['img_metas'].data[0])
        total, count = total + size * _batch_loss(model, batch), count + size
    return total / count


@torch.no_grad()
def _batch_loss(model: nn.Module, batch: dict) -> float:
    device = next(model.parameters()).device
    with (
        torch.random.fork_rng([device] if device.type == 'cuda' else []),
        _heads_in_training(model),
    ):
        torch.manual_seed(0)
        losses = data_parallel(model, device.type)(return_loss=True, **batch)
    return float(model._parse_losses(losses)[0])


@contextlib.contextmanager
def _heads_in_training(model: nn.Module) -> Iterator[None]:
    """Some heads (RepPoints, FCOS, VFNet) give what the loss takes in training mode only. Their layers stay as they are."""
    heads = {
        module: module.training for module in model.modules() if isinstance(module, BaseDenseHead)
    }
    try:
        for head in heads:
            head.training = True
        yield
    finally:
        for head, was_training in heads.items():
            head.training = was_training


def _box_ap(recipe: Recipe, model: nn.Module, checkpoint: Path, split: str, images: int):
    """Box AP, in points, on the first images of a split; None where they have no objects."""
    cfg = pipelines.dataset_config(recipe, split)
    cfg |= dict(pipeline=pipelines.test_pipeline(recipe.cfg.image), test_mode=True)
    table = coco.read_annotations(Path(cfg['ann_file']))
    ids = {item['id'] for item in table['images'][:images]}
    annotations = [item for item in table['annotations'] if item['image_id'] in ids]
    with tempfile.TemporaryDirectory() as folder:
        cfg['ann_file'] = f'{folder}/{split}.json'
        small = {**table, 'images': table['images'][:images], 'annotations': annotations}
        Path(cfg['ann_file']).write_text(json.dumps(small))
        batch = evaluation_loader(recipe)
        library = recipe.cfg.evaluation.get('library', 'auto')
        named = memory.recipe_setting_names(recipe.cfg, 1)
        work = DetectionTask(
            cfg, batch, recipe_device(recipe), 1, recipe.corrupt_limit, named, library
        )
        ap = evaluate_model(model, work, checkpoint, ('bbox',))['bbox_mAP']
    return None if ap is None else 100 * ap


def perturbed_losses(
    model: nn.Module, loader, directions: int = 4, sizes: Sequence[float] = PERTURBATION_SIZES
) -> list[dict]:
    """The loss of `model`, and of it with random weights added: the flatter the minimum, the less it rises.

    Every filter of a convolution (row of a matrix) gets a random one whose norm is `size` times its own, as in Li et
    al., Visualizing the Loss Landscape of Neural Nets, NeurIPS 2018; a network and the same one with its weights
    scaled are then as flat. Biases and normalisations stay.

    Returns:
        ``{'size', 'direction', 'loss'}`` each; size 0, direction 0 is the model as it is. It is left as it was.
    """
    perturbations = [(0.0, 0)] + [(size, k) for size in sizes for k in range(directions)]
    total, count = dict.fromkeys(perturbations, 0.0), 0
    for batch in loader:
        images = len(batch['img_metas'].data[0])
        count += images
        for size, direction in perturbations:
            with perturbed_weights(model, size, direction):
                total[size, direction] += images * _batch_loss(model, batch)
    return [
        {'size': size, 'direction': direction, 'loss': total[size, direction] / count}
        for size, direction in perturbations
    ]


@contextlib.contextmanager
def perturbed_weights(model: nn.Module, size: float, seed: int) -> Iterator[None]:
    """`model` with filters moved by `size` times their norm, in directions that follow from `seed` and their shapes."""
    weights = [weight for weight in model.parameters() if weight.dim() > 1]
    before = [weight.detach().clone() for weight in weights]
    random = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for weight in weights if size else ():
                step = torch.randn(weight.shape, generator=random).to(weight)
                weight += (
                    size * step * (_filter_norms(weight) / _filter_norms(step).clamp(min=1e-12))
                )
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


def _filter_norms(weight: Tensor) -> Tensor:
    """Of each filter, in a shape that multiplies with the weights."""
    return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)
