"""Detections of a checkpoint on the validation split, as COCO numbers."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from mmcv import ConfigDict
from mmcv.runner import get_dist_info
from mmdet.apis import multi_gpu_test, single_gpu_test
from mmdet.datasets import build_dataloader
from mmdet.models import build_detector

from ..config.recipe import Recipe
from ..data import coco, readable, workers
from ..errors import RecipeError
from ..runtime import checkpoints, distributed
from ..utils.files import read_own, sha256, write_json, write_text
from . import knobs, pipelines, score, skipped
from .exhausted import explained
from .loop import device_of, evaluation_batch, parallel, processes


def load_detector(
    recipe: Recipe, checkpoint: str | Path, detector: str = 'student'
) -> torch.nn.Module:
    """The recipe's detector with a checkpoint's weights (any layout), in eval mode on the CPU.

    Raises:
        MtpdError: the checkpoint is missing, broken, or of another architecture or number of classes.
    """
    model = build_detector(ConfigDict(recipe.model(detector)))
    checkpoints.load_student(model, checkpoint)
    model.CLASSES = recipe.classes
    return model.eval()


def evaluate(
    recipe: Recipe,
    checkpoint: str | Path,
    metrics: tuple[str, ...] = ('bbox',),
    detector: str = 'student',
    out: str | Path | None = None,
) -> dict:
    """COCO numbers of a checkpoint on the recipe's validation split, by mmdet and `score.numbers`.

    Args:
        metrics: 'bbox' and, for detectors with masks, 'segm'.
        detector: whose architecture the checkpoint has: 'student' or a teacher's name.
        out: a folder for metrics.json and detections.json.

    Returns:
        The twelve numbers of COCO per metric as fractions 0..1 (``bbox_mAP``, ``bbox_mAP_50``, ..., None where the
        split has no such objects), ``per_class``, ``num_images``, ``checkpoint`` and its ``sha256``; where some were
        left out ``corrupt_images`` and, of the training in `out`, ``corrupt_training_images``.

    Raises:
        RecipeError: a metric the detector or the dataset cannot give, or a broken dataset.
        MtpdError: the checkpoint does not load into the detector.
    """
    model = load_detector(recipe, checkpoint, detector)
    split = pipelines.dataset(recipe, 'val')
    check_metrics(metrics, model, Path(split['ann_file']), recipe.source)
    batch = evaluation_batch(recipe)
    device, size = device_of(recipe), processes(recipe)
    named = knobs.of_recipe(recipe.cfg, size)
    library = recipe.cfg.evaluation.get('library', 'auto')
    work = Work(split, batch, device, size, recipe.corrupt_limit, named, library)
    return measure(model, work, checkpoint, metrics, out)


def check_metrics(
    metrics: tuple[str, ...], model: torch.nn.Module, annotations: Path, source: Path
) -> None:
    """Raises RecipeError for masks that the detector doesn't predict, or the annotations don't have."""
    if 'segm' not in metrics:
        return
    if not getattr(model, 'with_mask', False):
        problem = f'{type(model).__name__} predicts no masks'
    elif not coco.has_masks(annotations):
        problem = f'{annotations} has no masks'
    else:
        return
    raise RecipeError(source, [f'metric segm: {problem}. Leave it out: --metrics bbox.'])


class Work(NamedTuple):
    """What `measure` detects on, and how.

    Attributes:
        split: mmdet's config of the dataset.
        batch: `samples_per_gpu` and `workers_per_gpu`.
        processes: how many share the images.
        corrupt_limit: how many images may be corrupt, and are left out.
        named: the config's settings, for messages.
        library: that counts, see `score.numbers`.
    """

    split: dict
    batch: dict
    device: str
    processes: int
    corrupt_limit: int
    named: knobs.Knobs
    library: str = 'pycocotools'


def measure(
    model: torch.nn.Module,
    work: Work,
    checkpoint: str | Path,
    metrics: tuple[str, ...],
    out: str | Path | None = None,
) -> dict:
    """As `evaluate`, of a detector with its weights.

    Args:
        checkpoint: where the weights are from, to be named in the result.

    Raises:
        MtpdError: more images are corrupt than may be, or memory runs out.
    """
    data = pipelines.build(work.split)
    with tempfile.TemporaryDirectory() as folder:
        task = (_detections, model, data, work, folder)
        results, corrupt = distributed.run_on_all_ranks(work.processes, work.device, *task)
    data, results = readable.without(data, results, corrupt)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        files, _ = data.format_results(results, jsonfile_prefix=str(Path(folder) / 'results'))
        numbers = score.numbers(data, files, metrics, work.library)
        if out:
            Path(out).mkdir(parents=True, exist_ok=True)
            kind = 'segm' if 'segm' in metrics else metrics[0]  # has the boxes, too
            found = Path(files[kind]).read_text(encoding='utf-8')
            write_text(Path(out) / 'detections.json', found)
    numbers |= {
        'num_images': len(data),
        'checkpoint': Path(checkpoint).name,
        'sha256': sha256(checkpoint),
    }
    numbers |= {'corrupt_images': len(corrupt)} if corrupt else {}
    if out and (left_out := skipped.count(Path(out))):
        numbers['corrupt_training_images'] = left_out
    if out:
        write_json(Path(out) / 'metrics.json', numbers)
    return numbers


def _detections(model: torch.nn.Module, data, work: Work, folder: str) -> tuple[list | None, dict]:
    """mmdet's results for each image of `data`, of one process or, on rank 0, of all; and what is wrong with those
    that are corrupt, whose results are another's, by path."""
    _, size = get_dist_info()
    data = readable.Readable(data, work.corrupt_limit)
    loader = build_dataloader(data, **work.batch, dist=size > 1, shuffle=False)
    loader = readable.noting(loader)

    def test() -> list | None:
        wrapped = parallel(model, work.device)
        if size == 1:
            return single_gpu_test(wrapped, loader)
        # Collected by way of files where there are no GPUs; mmdet removes the folder.
        cuda = work.device == 'cuda'
        return multi_gpu_test(wrapped, loader, f'{folder}/parts', gpu_collect=cuda)

    with explained(work.named, model):
        return workers.told(test), data.corrupt


def measured(out: Path, checkpoint: Path, measure: Callable[[], dict]) -> dict:
    """The metrics.json in `out`, which `measure` writes, unless it is there for this checkpoint."""
    metrics = read_own(out / 'metrics.json')
    return metrics if metrics and metrics['sha256'] == sha256(checkpoint) else measure()
