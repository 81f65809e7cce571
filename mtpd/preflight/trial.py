"""A few real updates of what a recipe trains, before it trains: their memory at the largest images, and their time."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import torch
from mmcv import ConfigDict, rescale_size
from mmcv.parallel import collate
from mmcv.runner import build_optimizer
from mmdet.models import build_detector
from mmdet.utils import get_root_logger
from torch import nn

from ..config.plan import distill_cfg
from ..config.recipe import Recipe, load_recipe
from ..data import coco
from ..data.loading import SkipCorrupt
from ..data.validation import MIN_TRAINING_SIDE
from ..distill.distiller import Distiller
from ..engine import loop, memory, pipelines, speed
from ..engine.memory import is_out_of_memory
from ..utils.progress import log_level

TIMED = 3  # updates
PATIENCE = 20.0  # seconds for a batch: where one takes longer, it is the only one
LONGEST = 120.0  # where one image makes a batch seem to take longer, none is tried


def measure_updates(
    source: str,
    overrides: dict,
    batch: int,
    kinds: list[tuple[str, str | None]],
    evaluated: list[str],
) -> dict:
    """Tries one image, the largest batch, and `TIMED` usual ones of each kind of training, with random weights.

    Args:
        source, overrides: of the recipe.
        batch: images of an update in this process.
        kinds: a detector, and the teacher that distils it or None.
        evaluated: detectors whose time on a validation image is measured.

    Returns:
        ``{'trainings': {'student taught by r101': row}, 'images': {detector: seconds}}``; of rows see `_try`.
    """
    get_root_logger(log_level=log_level())
    recipe = load_recipe(source, overrides)
    device = loop.recipe_device(recipe)
    loop.use_threads(device, recipe.cfg.runtime.threads)
    with tempfile.TemporaryDirectory() as folder:
        if recipe.cfg.data.root is None:  # as many scenes as are needed here
            few = {'train': (1 + TIMED) * batch, 'val': 2 * recipe.cfg.evaluation.batch_size}
            few = {f'data.scenes.{split}': count for split, count in few.items()}
            recipe = load_recipe(recipe, few | {'data.cache': folder})
        rows = {}
        for detector, teacher in kinds:
            title = f'{detector} taught by {teacher}' if teacher else detector
            rows[title] = _try(recipe, detector, teacher, batch, device, Path(folder))
        images = {name: _evaluation(recipe, name, device) for name in evaluated}
    return {'trainings': rows, 'images': images}


def _try(recipe: Recipe, detector: str, teacher: str | None, batch: int, device: str, folder: Path):
    """A row: ``seconds`` of an update, ``data``: those to load its images by one process (both None where it would not
    fit), and bytes: ``there``, ``fixed`` (with no image at work), ``wanted`` (with the largest batch).
    """
    memory.reset_peak(device)
    cfg = recipe.model(detector)
    data = example_images(recipe, folder, batch, TIMED * batch, pipelines.needs_masks(recipe, cfg))
    switches = speed.resolve_speed(recipe.cfg.get('speed'), device)
    there = memory.memory_used(device)[2]
    row = {'there': there, 'seconds': None, 'data': None}
    lacking = {'fixed': there, 'wanted': int(1.1 * there)}  # where it has no room for the weights
    try:
        update = Update(untrained_detector(recipe, detector, teacher), recipe, switches, device)
        before = memory.memory_used(device)[0]
        fixed = before + update.to_stay()
        lacking = {'fixed': fixed, 'wanted': fixed + batch * max(0, int(1.1 * there) - fixed)}
        one = update(collate([data[0]], 1))
        if one * batch > PATIENCE:  # the first update of a process may be slow for other reasons
            one = update(collate([data[0]], 1))
        _, peak, there = memory.memory_used(device)
        fixed = before + update.kept()
        foretold = fixed + batch * max(0, peak - fixed)
        row |= {'there': there, 'fixed': fixed, 'wanted': foretold}
        if device == 'cpu' and foretold > there:  # to try it could end other programs
            return row
        lacking = {'wanted': max(foretold, int(1.1 * there))}
        return row | _timed(update, data, batch, one)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return row | lacking


def _timed(update: Update, data: SkipCorrupt, batch: int, one: float) -> dict:
    """Of a row what the largest batch and usual ones show, unless `one` image took too long.

    An image by itself tells little of a batch: where other programs are at work, a batch may take hardly longer.
    """
    loads, updates = [], []
    for number, images in enumerate(islice(example_batches(data, batch), 1 + TIMED)):
        if one * batch > LONGEST:
            updates = [one * batch]
            break
        began = time.perf_counter()
        items = collate([data[place] for place in images], batch)
        loads.append(time.perf_counter() - began)
        seconds = update(items)
        if number or seconds > PATIENCE:  # the largest batch comes first, and is not typical
            updates.append(seconds)
        if seconds > PATIENCE:
            break
    # The fastest: what else the machine does comes on top.
    row = {'seconds': min(updates), 'data': min(loads or [0.0])}
    return row | ({'wanted': memory.memory_used(update.device)[1]} if loads else {})


def _untrained(cfg: ConfigDict) -> ConfigDict:
    cfg.backbone.init_cfg = None  # pretrained weights are fetched by the training
    return cfg


def untrained_detector(recipe: Recipe, detector: str, teacher: str | None) -> nn.Module:
    """A detector, or the `Distiller` of it and a teacher, with random weights; nothing is fetched."""
    cfg = _untrained(recipe.model(detector))
    if teacher:
        taught_by = _untrained(recipe.model(teacher))
        settings = distill_cfg(recipe, cfg, taught_by)
        return Distiller(cfg, taught_by, settings, teacher_checkpoint='random')
    model = build_detector(ConfigDict(cfg))
    model.init_weights()
    return model


class Update:
    """A training of `model` as the recipe and `switches` say; called with a batch, it makes an update, as mmcv's runner
    and optimizer hook do, and returns its seconds.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, switches: speed.Speed, device: str):
        model = speed.apply_speed(model.to(device).train(), switches, device)
        optimizer = speed.optimizer_config(dict(recipe.cfg.schedule.optimizer), switches)
        self.model, self.optimizer = (
            loop.data_parallel(model, device),
            build_optimizer(model, optimizer),
        )
        self.grad_clip, self.device = recipe.cfg.schedule.grad_clip, device
        self.precision = switches.precision

    def kept(self) -> int:
        """Bytes that stay from update to update beside the weights: gradients, and what the optimizer keeps."""
        grads = (p.grad for p in self.model.parameters() if p.grad is not None)
        state = (item for entry in self.optimizer.state.values() for item in entry.values())
        return sum(t.nbytes for t in (*grads, *state) if isinstance(t, torch.Tensor))

    def to_stay(self) -> int:
        """As `kept`, by the optimizer's type, before an update was made."""
        trained = sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        return memory.fixed_bytes(0, trained, type(self.optimizer).__name__)

    def steps(self, batch: dict) -> Iterator[Callable[[], object]]:
        """An update as three functions to be called in turn: losses, their gradients, and the optimizer's step."""
        losses: list[torch.Tensor] = []
        yield lambda: losses.append(self.model.train_step(batch, self.optimizer)['loss'])
        self.optimizer.zero_grad()
        yield losses.pop().backward
        yield self._step

    def _step(self) -> None:
        if self.grad_clip:
            weights = [p for p in self.model.parameters() if p.grad is not None]
            nn.utils.clip_grad_norm_(weights, **self.grad_clip)
        self.optimizer.step()

    def __call__(self, batch: dict) -> float:
        began = time.perf_counter()
        with speed.tf32_products(self.precision):
            for step in self.steps(batch):
                step()
        if self.device == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter() - began


@torch.no_grad()
def _evaluation(recipe: Recipe, detector: str, device: str) -> float:
    """Seconds for a validation image, by the second of two batches."""
    data = pipelines.quiet_dataset(pipelines.dataset_config(recipe, 'val'))
    data = SkipCorrupt(data, recipe.cfg.data.get('corrupt_limit', 0))
    batch = recipe.cfg.evaluation.batch_size
    model = build_detector(ConfigDict(_untrained(recipe.model(detector))))
    model.init_weights()
    wrapped = loop.data_parallel(model.to(device).eval(), device)
    places = cycle(range(len(data)))
    for _ in range(2):
        items = collate([data[place] for place in islice(places, batch)], batch)
        began = time.perf_counter()
        wrapped(return_loss=False, rescale=True, **items)
        seconds = time.perf_counter() - began
    return seconds / batch


# Images of a training split to try things out on: those that need most memory first, then any.


def example_images(recipe: Recipe, folder: Path, most: int, others: int, masks: bool):
    """A dataset of `most` + `others` images (fewer where the split has fewer), as training loads them, corrupt ones as there.

    First come those of the format, high or wide, with the larger batches: mmdet makes batches of one, padded to the
    widest and the highest image after resizing. Of it these two are the first, then those with the most objects. The
    others are a random choice.

    Args:
        folder: gets the annotation file.
        masks: with the objects' masks.
    """
    annotations, _ = recipe.split('train')
    table = coco.read_annotations(annotations)
    count = Counter(item['image_id'] for item in table['annotations'] if not item.get('iscrowd'))
    images = [
        item
        for item in table['images']
        if count[item['id']] and min(item['width'], item['height']) >= MIN_TRAINING_SIDE
    ]
    scale = pipelines.image_scale(recipe.cfg.image)
    sizes = {i['id']: rescale_size((i['width'], i['height']), scale) for i in images}
    formats = [[i for i in images if (i['width'] > i['height']) == wide] for wide in (True, False)]
    alike = max(formats, key=lambda some: _padded([sizes[i['id']] for i in some]))
    ranks = (lambda i: sizes[i['id']], lambda i: sizes[i['id']][::-1], lambda i: count[i['id']])
    by_width, by_height, by_objects = (sorted(alike, key=rank, reverse=True) for rank in ranks)
    drawn = random.Random(0).sample(images, min(len(images), others))
    ordered = [*by_width[:1], *by_height[:1], *by_objects[:most], *drawn]
    chosen = list({item['id']: item for item in ordered}.values())[: most + others]
    ids = {item['id'] for item in chosen}
    objects = [item for item in table['annotations'] if item['image_id'] in ids]
    path = folder / 'examples.json'
    path.write_text(json.dumps({**table, 'images': chosen, 'annotations': objects}))
    cfg = pipelines.dataset_config(recipe, 'train', masks=masks)
    data = pipelines.quiet_dataset(cfg | {'ann_file': str(path)})
    return SkipCorrupt(data, recipe.cfg.data.get('corrupt_limit', 0))


def example_batches(data: SkipCorrupt, size: int) -> Iterator[list[int]]:
    """Places of `examples` whose `most` was `size`, in batches of that many: the largest, then without end the others.

    Images of a batch are all high or all wide, as mmdet's sampler groups them; a batch of both would be padded to a
    square. Where there are too few of a format they come again.
    """
    alike = [place for place in range(len(data)) if data.flag[place] == data.flag[0]]
    yield list(islice(cycle(alike), size))
    waiting: dict[int, list[int]] = defaultdict(list)
    for place in cycle([*range(size, len(data)), *range(min(size, len(data)))]):
        group = waiting[data.flag[place]]
        group.append(place)
        if len(group) == size:
            yield waiting.pop(data.flag[place])


def _padded(sizes: list[tuple[int, int]]) -> int:
    """Pixels of an image that is as wide as the widest and as high as the highest."""
    return max((w for w, _ in sizes), default=0) * max((h for _, h in sizes), default=0)
