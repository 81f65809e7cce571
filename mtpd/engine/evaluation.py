"""A detector's COCO numbers on a validation split, and its size and speed."""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmcv import ConfigDict
from mmcv.cnn import get_model_complexity_info
from mmcv.runner import get_dist_info
from mmdet.apis import multi_gpu_test, single_gpu_test
from mmdet.datasets import build_dataloader
from mmdet.models import build_detector
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..config.files import set_class_count
from ..config.recipe import Recipe
from ..data import coco, loading
from ..data.classes import known_classes, match_classes
from ..data.dataset import CocoDataset
from ..distill.distiller import Teacher
from ..errors import MtpdError, RecipeError
from ..runtime import checkpoints, distributed
from ..utils.files import file_sha256, read_json_if_valid, write_json, write_text
from . import hooks, memory, pipelines
from .loop import data_parallel, evaluation_loader, process_count, recipe_device
from .memory import explain_out_of_memory


def load_detector(
    recipe: Recipe,
    checkpoint: str | Path,
    detector: str = 'student',
    ignore_classes: bool = False,
) -> torch.nn.Module:
    """The recipe's detector with a checkpoint's weights (any layout), in eval mode on the CPU.

    Its `CLASSES` are the names of its outputs: the checkpoint's, in their order, all classes of the dataset among them.

    Args:
        ignore_classes: the outputs are taken for the dataset's classes, one by one, whatever the checkpoint says.

    Raises:
        MtpdError: the checkpoint is missing, broken, of another architecture, or lacks classes of the dataset.
    """
    meta = checkpoints.load_checkpoint(checkpoint).get('meta')
    trained = known_classes(meta.get('CLASSES')) if isinstance(meta, dict) else None
    classes = match_classes(recipe.classes, None if ignore_classes else trained, checkpoint)
    cfg = ConfigDict(recipe.model(detector))
    set_class_count(cfg, len(classes))
    model = build_detector(cfg)
    what = 'the student' if detector == 'student' else detector
    checkpoints.load_student(model, checkpoint, what)
    model.CLASSES = classes
    return model.eval()


def evaluate(
    recipe: Recipe,
    checkpoint: str | Path,
    metrics: tuple[str, ...] = ('bbox',),
    detector: str = 'student',
    out: str | Path | None = None,
    ignore_classes: bool = False,
) -> dict:
    """COCO numbers of a checkpoint on the recipe's validation split, by mmdet and `coco_metrics`.

    Classes of a checkpoint that names its own are matched by name.

    Args:
        metrics: 'bbox' and, for detectors with masks, 'segm'.
        detector: whose architecture the checkpoint has: 'student' or a teacher's name.
        out: a folder for metrics.json and detections.json.
        ignore_classes: as `load_detector`.

    Returns:
        The twelve numbers of COCO per metric as fractions 0..1 (``bbox_mAP``, ``bbox_mAP_50``, ..., None where the
        split has no such objects), ``per_class``, ``num_images``, ``checkpoint`` and its ``sha256``, the
        annotation file's ``annotations_sha256``, and how images were made, ``image``; where some images were left out ``corrupt_images`` and, of the training in `out`, ``corrupt_training_images``.

    Raises:
        RecipeError: a metric the detector or the dataset cannot give, or a broken dataset.
        MtpdError: the checkpoint does not load into the detector, or lacks classes of the dataset.
    """
    pipelines.check_data(recipe, training=False)
    model = load_detector(recipe, checkpoint, detector, ignore_classes)
    split = pipelines.dataset_config(recipe, 'val', detector=detector)
    split |= {'classes': model.CLASSES}
    check_metrics(metrics, model, Path(split['ann_file']), recipe.source)
    count = process_count(recipe)
    task = DetectionTask(
        split,
        evaluation_loader(recipe),
        recipe_device(recipe),
        count,
        recipe.corrupt_limit,
        memory.recipe_setting_names(recipe.cfg, count, detector),
        recipe.cfg.evaluation.get('library', 'auto'),
    )
    return evaluate_model(model, task, checkpoint, metrics, out)


def image_size_note(
    recipe: Recipe, checkpoint: str | Path, detector: str = 'student'
) -> str | None:
    """What to do where a checkpoint of this kit was trained for images of another size than the recipe has for a detector."""
    meta = checkpoints.load_checkpoint(checkpoint).get('meta') or {}
    sizes = re.findall(r"'img_scale': (\(\d+, \d+\))", str(meta.get('config')))
    ours = str(tuple(pipelines.image_scale(recipe.image(detector))))
    key = 'image' if detector == 'student' else f'teachers.{detector}.image'
    if 'recipe' not in meta or not sizes or sizes[-1] == ours:
        return None
    return (
        f'{checkpoint} was trained for images of {sizes[-1]}, and is measured on images of {ours}. To measure as trained: '
        f'--cfg-options "{key}.scale={sizes[-1].replace(" ", "")}"'
    )


def check_metrics(
    metrics: tuple[str, ...], model: torch.nn.Module, annotations: Path, source: Path
) -> None:
    """Raises RecipeError for masks that the detector doesn't predict, or the annotations don't have."""
    if 'segm' not in metrics:
        return
    if not getattr(model, 'with_mask', False):
        problem = f'{type(model).__name__} predicts no masks'
    elif problems := coco.mask_problems(annotations):
        problem = ' '.join(problems)
    else:
        return
    raise RecipeError(
        source, [f'metric segm: {problem.rstrip(".")}. Leave it out: --metrics bbox.']
    )


class DetectionTask(NamedTuple):
    """What `evaluate_model` detects on, and how.

    Attributes:
        split: mmdet's config of the dataset.
        batch: `samples_per_gpu` and `workers_per_gpu`.
        device: 'cpu' or 'cuda'.
        processes: how many share the images.
        corrupt_limit: how many images may be corrupt, and are left out.
        setting_names: the config's settings, for messages.
        library: that counts, see `coco_metrics`.
    """

    split: dict
    batch: dict
    device: str
    processes: int
    corrupt_limit: int
    setting_names: memory.SettingNames
    library: str = 'pycocotools'


def evaluate_model(
    model: torch.nn.Module,
    task: DetectionTask,
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
    data = pipelines.quiet_dataset(task.split)
    corrupt = loading.leave_out_corrupt(data, task.corrupt_limit)
    with tempfile.TemporaryDirectory() as folder:
        results = distributed.run_on_all_ranks(
            task.processes, task.device, _detect, model, data, task, folder
        )
    detections = data.detections(results)
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        metric = 'segm' if 'segm' in metrics else metrics[0]  # segm's has the boxes, too
        text = json.dumps(data.with_file_ids(detections[metric]))
        write_text(Path(out) / 'detections.json', text)
    with contextlib.redirect_stdout(io.StringIO()):
        numbers = coco_metrics(data, detections, metrics, task.library)
    numbers |= {
        'num_images': len(data),
        'checkpoint': Path(checkpoint).name,
        'sha256': file_sha256(checkpoint),
        'annotations_sha256': coco.fingerprint(Path(data.ann_file)),
    }
    if image := pipelines.image_settings(task.split):
        numbers['image'] = image
    if corrupt:
        numbers['corrupt_images'] = len(corrupt)
    if out and (left_out := hooks.count_corrupt_images(Path(out))):
        numbers['corrupt_training_images'] = left_out
    if out:
        write_json(Path(out) / 'metrics.json', numbers)
    return numbers


def _detect(model: torch.nn.Module, data, task: DetectionTask, folder: str) -> list | None:
    """mmdet's results for each image of `data`; with several processes on rank 0 alone."""
    _, size = get_dist_info()
    loader = build_dataloader(data, **task.batch, dist=size > 1, shuffle=False)
    loader.worker_init_fn = loading.init_worker

    def test() -> list | None:
        wrapped = data_parallel(model, task.device)
        if size == 1:
            return single_gpu_test(wrapped, loader)
        # Collected by way of files where there are no GPUs; mmdet removes the folder.
        cuda = task.device == 'cuda'
        return multi_gpu_test(wrapped, loader, f'{folder}/parts', gpu_collect=cuda)

    with explain_out_of_memory(task.setting_names, model):
        return loading.explain_worker_death(test)


def metrics_of_checkpoint(
    out: Path, checkpoint: Path, annotations: Path, measure: Callable[[], dict]
) -> dict:
    """The metrics.json in `out` if it is of this checkpoint and annotation file, else what `measure` returns (and writes there).

    Version 0.1 did not note the annotation file: its metrics are taken to be of this one.
    """
    metrics = read_json_if_valid(out / 'metrics.json')
    if not metrics or metrics['sha256'] != file_sha256(checkpoint):
        return measure()
    actual = coco.fingerprint(annotations)
    return metrics if metrics.get('annotations_sha256', actual) == actual else measure()


# COCO's numbers of detections, by pycocotools or, several times faster, by faster-coco-eval.


# In the order of pycocotools' `stats`.
COCO_NUMBERS = (
    'mAP',
    'mAP_50',
    'mAP_75',
    'mAP_s',
    'mAP_m',
    'mAP_l',
    'AR_1',
    'AR_10',
    'AR_100',
    'AR_s',
    'AR_m',
    'AR_l',
)


def coco_evaluator(library: str) -> type[COCOeval]:
    """pycocotools' `COCOeval`, or what takes its place; 'auto': the faster one where it is installed.

    Raises:
        MtpdError: it is not installed.
    """
    if library == 'pycocotools':
        return COCOeval
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError:
        if library == 'auto':
            return COCOeval
        raise MtpdError(
            'evaluation.library is faster_coco_eval, which is not installed: pip install faster-coco-eval, or set it to '
            'auto or pycocotools.'
        ) from None
    return COCOeval_faster


def coco_metrics(
    data: CocoDataset,
    detections: dict[str, list[dict]],
    metrics: Iterable[str],
    library: str = 'auto',
) -> dict:
    """The twelve numbers per metric and AP per class, fractions; None where there are no such objects.

    Args:
        data: what was detected on.
        detections: by metric ('bbox', 'segm'), as `data.detections` gives them.
        library: one of `schema.LIBRARIES`; the numbers are the same, and pycocotools' are those that are published.
    """
    table: dict = {'per_class': {}}
    for metric in metrics:
        counted = _load_detections(data.coco, detections[metric], metric)
        evaluator = coco_evaluator(library)(data.coco, counted, metric)
        evaluator.params.catIds, evaluator.params.imgIds = data.cat_ids, data.img_ids
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        table |= {
            f'{metric}_{name}': None if value < 0 else float(value)
            for name, value in zip(COCO_NUMBERS, evaluator.stats, strict=True)
        }
        # IoU x recall x class, all areas, 100 detections.
        precision = evaluator.eval['precision'][:, :, :, 0, -1]
        table['per_class'][metric] = {
            name: float(np.mean(values[values > -1])) if (values > -1).any() else None
            for number, name, values in zip(
                data.cat_ids, data.CLASSES, np.moveaxis(precision, 2, 0), strict=True
            )
            if number in data.file_category_ids  # a checkpoint may know more classes
        }
    return table


def _load_detections(truth: COCO, detections: list[dict], metric: str) -> COCO:
    """Detections as pycocotools wants them; its own `loadRes` fails on an empty list."""
    # Copies, which it writes into. Beside a box, it takes its area for the mask's.
    left_out = ('bbox',) if metric == 'segm' else ()
    copies = [{key: item[key] for key in item if key not in left_out} for item in detections]
    if copies:
        return truth.loadRes(copies)
    empty = COCO()
    empty.dataset = truth.dataset | {'annotations': []}
    empty.createIndex()
    return empty


# Size and speed of a detector.


def model_cost(recipe: Recipe, detector: str, images: int = 20) -> dict:
    """Size and speed: ``parameters``, ``gflops`` (multiply-adds counted as one, mmdet's convention) at ``input``
    [height, width] pixels, and ``ms_per_image``, the median of `images` single-image forward passes on this machine.

    Of a teacher with `features_only` they are backbone's and neck's.
    """
    build = Teacher if recipe.is_features_only(detector) else build_detector
    model = build(ConfigDict(recipe.model(detector))).eval().to(recipe_device(recipe))
    if hasattr(model, 'roi_head'):
        _use_box_proposals(model.roi_head)
    height, width = pipelines.input_size(recipe.image(detector))
    dummy = getattr(model, 'forward_dummy', model.forward)
    forward, model.forward = model.forward, dummy
    with contextlib.redirect_stdout(io.StringIO()):
        flops, _ = get_model_complexity_info(
            model, (3, height, width), as_strings=False, print_per_layer_stat=False
        )
    model.forward = forward
    image = torch.zeros(1, 3, height, width, device=next(model.parameters()).device)
    times = []
    with torch.no_grad():
        for _ in range(images + 3):
            began = time.perf_counter()
            dummy(image)
            if image.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    return {
        'parameters': sum(parameter.numel() for parameter in model.parameters()),
        'gflops': flops / 1e9,
        'input': [height, width],
        'ms_per_image': 1000 * float(np.median(times[3:])),
    }


def _use_box_proposals(roi_head: torch.nn.Module) -> None:
    """mmdet's dummy forward pass draws four numbers a proposal, and RoIAlign on the CPU takes boxes only."""
    forward = roi_head.forward_dummy

    def with_boxes(features, proposals):
        corner, sides = proposals[:, :2], 32 * proposals[:, 2:].abs()
        return forward(features, torch.cat([corner, corner + sides], dim=1))

    roi_head.forward_dummy = with_boxes
