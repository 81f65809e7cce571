"""A few real updates of what a recipe trains: their memory with the largest images, and their time."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial, reduce
from itertools import cycle, islice
from pathlib import Path

import torch
from mmcv import ConfigDict, rescale_size
from mmcv.parallel import collate
from mmcv.runner import build_optimizer
from mmdet.models import build_detector
from mmdet.utils import get_root_logger
from torch import nn

from ..config.files import pretrained_keys
from ..config.plan import training_title
from ..config.recipe import Recipe, load_recipe
from ..data import coco
from ..data.annotations import MIN_TRAINING_SIDE
from ..data.loading import SkipCorrupt
from ..distill.distiller import Distiller
from ..engine import loop, memory, pipelines, speed
from ..engine.distill_config import distill_cfg
from ..engine.memory import is_out_of_memory
from ..utils.progress import log_level

TIMED_UPDATES = 3
SLOW_BATCH = 20.0  # seconds; where a batch takes longer, it is the only one that is tried
SLOWEST_BATCH = 120.0  # seconds; where one image makes a batch seem to take longer, none is tried


def measure_updates(
    source: str,
    overrides: dict,
    batch: int,
    kinds: list[tuple[str, str | None]],
    evaluated: list[str],
) -> dict:
    """Tries one image, the largest batch, and `TIMED_UPDATES` usual ones of each kind of training, with random weights.

    Args:
        source, overrides: of the recipe.
        batch: images of an update in this process.
        kinds: a detector, and the teacher that distils it or None.
        evaluated: detectors whose time on a validation image is measured.

    Returns:
        ``{'trainings': {'student taught by r101': row}, 'images': {detector: seconds}}``; of rows see
        `_measure_training`.
    """
    get_root_logger(log_level=log_level())
    recipe = load_recipe(source, overrides)
    device = loop.recipe_device(recipe)
    loop.set_threads(device, recipe.cfg.runtime.threads)
    with tempfile.TemporaryDirectory() as folder:
        if recipe.cfg.data.root is None:  # as many scenes as are needed here
            scenes = {
                'data.scenes.train': (1 + TIMED_UPDATES) * batch,
                'data.scenes.val': 2 * recipe.cfg.evaluation.batch_size,
            }
            recipe = load_recipe(recipe, scenes | {'data.cache': folder})
        rows = {
            training_title(*kind): _measure_training(recipe, *kind, batch, device, Path(folder))
            for kind in kinds
        }
        images = {name: _measure_evaluation(recipe, name, device) for name in evaluated}
    return {'trainings': rows, 'images': images}


def _measure_training(
    recipe: Recipe, detector: str, teacher: str | None, batch: int, device: str, folder: Path
) -> dict:
    """A row of a training.

    Returns:
        ``seconds`` of an update, ``processor``, those of them in which its thread had a core, and ``data``, those to load
        its images by one process (all None where it would not fit); and bytes: ``there`` (which the process can have),
        ``fixed`` (without images), ``wanted`` (with the largest batch).
    """
    memory.reset_peak(device)
    masks = pipelines.needs_masks(recipe, recipe.model(detector))
    data = example_images(recipe, folder, batch, TIMED_UPDATES * batch, masks, detector, teacher)
    switches = speed.resolve_speed(recipe.cfg.get('speed'), device)
    _, _, available = memory.memory_used(device)
    too_much = int(1.1 * available)
    # Until more is measured: the weights alone are too much, then one image.
    row = {
        'there': available,
        'fixed': available,
        'wanted': too_much,
        'seconds': None,
        'processor': None,
        'data': None,
    }
    try:
        update = Update(untrained_detector(recipe, detector, teacher), recipe, switches, device)
        fixed = memory.memory_used(device)[0] + update.bytes_kept()
        row |= {'fixed': fixed, 'wanted': fixed + batch * max(0, too_much - fixed)}
        seconds = update(collate([data[0]], 1))
        # The first update of a process may be slow for other reasons.
        if seconds * batch > SLOW_BATCH:
            seconds = update(collate([data[0]], 1))
        _, peak, available = memory.memory_used(device)
        row |= {'there': available, 'wanted': fixed + batch * max(0, peak - fixed)}
        if device == 'cpu' and row['wanted'] > available:  # to try it could end other programs
            return row
        return row | _measure_batches(update, data, batch, seconds)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return row | {'wanted': max(row['wanted'], int(1.1 * row['there']))}


def _measure_batches(update: Update, data: SkipCorrupt, batch: int, image_seconds: float) -> dict:
    """What the largest batch and usual ones add to a row; where one image took too long, by that image alone.

    An image by itself tells little of a batch: where other programs are at work, a batch may take hardly longer.
    """
    if image_seconds * batch > SLOWEST_BATCH:
        processor = update.processor_seconds * batch
        return {'seconds': image_seconds * batch, 'processor': processor, 'data': 0.0}
    loads, updates, processor = [], [], []
    for number, images in enumerate(islice(example_batches(data, batch), 1 + TIMED_UPDATES)):
        began = time.perf_counter()
        items = collate([data[index] for index in images], batch)
        loads.append(time.perf_counter() - began)
        seconds = update(items)
        if number or seconds > SLOW_BATCH:  # the largest batch comes first, and is not typical
            updates.append(seconds)
            processor.append(update.processor_seconds)
        if seconds > SLOW_BATCH:
            break
    # The fastest: what else the machine does comes on top.
    peak = memory.memory_used(update.device)[1]
    seconds = {'seconds': min(updates), 'processor': min(processor), 'data': min(loads)}
    return seconds | {'wanted': peak}


def _without_pretrained(cfg: ConfigDict) -> ConfigDict:
    """Pretrained weights are fetched by the training."""
    for *parents, key in list(pretrained_keys(cfg)):
        reduce(lambda node, name: node[name], parents, cfg)[key] = None
    return cfg


def untrained_detector(recipe: Recipe, detector: str, teacher: str | None) -> nn.Module:
    """A detector, or the `Distiller` of it and a teacher, with random weights; nothing is fetched."""
    cfg = _without_pretrained(recipe.model(detector))
    if teacher:
        teacher_cfg = _without_pretrained(recipe.model(teacher))
        settings = distill_cfg(recipe, cfg, teacher_cfg)
        norm = recipe.own_normalisation(teacher)
        model = Distiller(
            cfg, teacher_cfg, settings, teacher_checkpoint='random', teacher_norm=norm
        )
        model.teacher.init_weights()
        return model
    model = build_detector(ConfigDict(cfg))
    model.init_weights()
    return model


class Update:
    """Called with a batch, makes an update of `model`, as mmcv's runner and optimizer hook do, and returns its seconds.

    The learning rate is 0: without its warm-up a training may diverge, and only time and memory are of interest.

    Attributes:
        processor_seconds: of the last update. On the CPU those in which the calling thread had a core: it works all the
            time, so the others are those of other programs. On a GPU all.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, switches: speed.Speed, device: str):
        model = speed.apply_speed(model.to(device).train(), switches, device)
        optimizer = dict(recipe.cfg.schedule.optimizer, lr=0.0)
        optimizer = speed.optimizer_config(optimizer, switches)
        self.model = loop.data_parallel(model, device)
        self.optimizer = build_optimizer(model, optimizer)
        self.grad_clip, self.device = recipe.cfg.schedule.grad_clip, device
        self.precision = switches.precision
        self.processor_seconds = 0.0

    def bytes_kept(self) -> int:
        """Bytes that stay from update to update beside the weights, by the optimizer's type: gradients and its state."""
        trained = sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        return memory.fixed_bytes(0, trained, type(self.optimizer).__name__)

    def steps(self, batch: dict) -> list[Callable[[], None]]:
        """An update as three functions to be called in turn: the loss, its gradients, and the optimizer's step."""
        return [partial(self._compute_loss, batch), self._compute_gradients, self._optimize]

    def _compute_loss(self, batch: dict) -> None:
        self.loss = self.model.train_step(batch, self.optimizer)['loss']

    def _compute_gradients(self) -> None:
        self.optimizer.zero_grad()
        self.loss.backward()
        del self.loss

    def _optimize(self) -> None:
        if self.grad_clip:
            weights = [p for p in self.model.parameters() if p.grad is not None]
            nn.utils.clip_grad_norm_(weights, **self.grad_clip)
        self.optimizer.step()

    def __call__(self, batch: dict) -> float:
        began, began_processor = time.perf_counter(), time.thread_time()
        with speed.tf32_products(self.precision):
            for step in self.steps(batch):
                step()
        if self.device == 'cuda':
            torch.cuda.synchronize()
        processor = time.thread_time() - began_processor
        seconds = time.perf_counter() - began
        self.processor_seconds = seconds if self.device == 'cuda' else processor
        return seconds


@torch.no_grad()
def _measure_evaluation(recipe: Recipe, detector: str, device: str) -> float:
    """Seconds for a validation image, by the second of two batches."""
    data = pipelines.quiet_dataset(pipelines.dataset_config(recipe, 'val', detector=detector))
    data = SkipCorrupt(data, recipe.corrupt_limit)
    batch = recipe.cfg.evaluation.batch_size
    model = build_detector(ConfigDict(_without_pretrained(recipe.model(detector))))
    model.init_weights()
    wrapped = loop.data_parallel(model.to(device).eval(), device)
    indices = cycle(range(len(data)))
    for _ in range(2):
        items = collate([data[index] for index in islice(indices, batch)], batch)
        began = time.perf_counter()
        wrapped(return_loss=False, rescale=True, **items)
        seconds = time.perf_counter() - began
    return seconds / batch


# Example images


def example_images(
    recipe: Recipe,
    folder: Path,
    most: int,
    others: int,
    masks: bool,
    detector: str = 'student',
    teacher: str | None = None,
) -> SkipCorrupt:
    """Images of the training split as training loads them: `most` that need most memory, then `others` at random.

    mmdet makes batches of one format, high or wide, padded to the widest and the highest image after resizing. First
    come the widest and the highest image of the format with the larger batches, then those with the most objects.

    Args:
        folder: gets the annotation file.
        masks: with the objects' masks.
        detector, teacher: whose images they are, see `pipelines.dataset_config`.

    Returns:
        A dataset of `most` + `others` images, fewer where the split has fewer.
    """
    annotations, _ = recipe.split('train')
    table = coco.read_annotations(annotations)
    count = Counter(item['image_id'] for item in table['annotations'] if not item.get('iscrowd'))
    images = [
        item
        for item in table['images']
        if count[item['id']] and min(item['width'], item['height']) >= MIN_TRAINING_SIDE
    ]
    scale = pipelines.image_scale(recipe.image(detector))
    sizes = {i['id']: rescale_size((i['width'], i['height']), scale) for i in images}
    formats = [[i for i in images if (i['width'] > i['height']) == wide] for wide in (True, False)]
    largest = max(formats, key=lambda group: _padded_pixels([sizes[i['id']] for i in group]))
    ranks = (lambda i: sizes[i['id']], lambda i: sizes[i['id']][::-1], lambda i: count[i['id']])
    by_width, by_height, by_objects = (sorted(largest, key=rank, reverse=True) for rank in ranks)
    drawn = random.Random(0).sample(images, min(len(images), others))
    ordered = [*by_width[:1], *by_height[:1], *by_objects[:most], *drawn]
    chosen = list({item['id']: item for item in ordered}.values())[: most + others]
    ids = {item['id'] for item in chosen}
    objects = [item for item in table['annotations'] if item['image_id'] in ids]
    path = folder / 'examples.json'
    path.write_text(json.dumps({**table, 'images': chosen, 'annotations': objects}))
    cfg = pipelines.dataset_config(recipe, 'train', masks=masks, detector=detector, teacher=teacher)
    data = pipelines.quiet_dataset(cfg | {'ann_file': str(path)})
    return SkipCorrupt(data, recipe.corrupt_limit)


def example_batches(data: SkipCorrupt, size: int) -> Iterator[list[int]]:
    """Indices of `example_images` with `most` = `size`, in batches of `size`: the largest, then the others without end.

    Images of a batch are all high or all wide, as mmdet's sampler groups them; a batch of both would be padded to a
    square. Where a format has too few images, they come again.
    """
    same_format = [index for index in range(len(data)) if data.flag[index] == data.flag[0]]
    yield list(islice(cycle(same_format), size))
    groups: dict[int, list[int]] = defaultdict(list)
    for index in cycle([*range(size, len(data)), *range(min(size, len(data)))]):
        group = groups[data.flag[index]]
        group.append(index)
        if len(group) == size:
            yield groups.pop(data.flag[index])


def _padded_pixels(sizes: list[tuple[int, int]]) -> int:
    """Pixels of an image that is as wide as the widest and as high as the highest."""
    return max((w for w, _ in sizes), default=0) * max((h for _, h in sizes), default=0)
