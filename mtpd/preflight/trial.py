"""A few real updates of what a recipe trains, before it trains: their memory at the largest images, and their time."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import torch
from mmcv import ConfigDict
from mmcv.parallel import collate
from mmcv.runner import build_optimizer
from mmdet.models import build_detector
from mmdet.utils import get_root_logger
from torch import nn

from ..config.recipe import Recipe, load_recipe
from ..config.trainings import distill_cfg
from ..data.readable import Readable
from ..distill.distiller import Distiller
from ..engine import loop, memory, pipelines, precision, speed
from ..engine.exhausted import is_exhausted
from ..utils.progress import log_level
from .examples import batches, examples

TIMED = 3  # updates
PATIENCE = 20.0  # seconds for a batch: where one takes longer, it is the only one
LONGEST = 120.0  # where one image makes a batch seem to take longer, none is tried


def measure(
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
    device = loop.device_of(recipe)
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
    memory.forget(device)
    cfg = recipe.model(detector)
    data = examples(recipe, folder, batch, TIMED * batch, pipelines.with_masks(recipe, cfg))
    switches = speed.settled(recipe.cfg.get('speed'), device)
    there = memory.used(device)[2]
    row = {'there': there, 'seconds': None, 'data': None}
    lacking = {'fixed': there, 'wanted': int(1.1 * there)}  # where it has no room for the weights
    try:
        update = Update(untrained(recipe, detector, teacher), recipe, switches, device)
        before = memory.used(device)[0]
        fixed = before + update.to_stay()
        lacking = {'fixed': fixed, 'wanted': fixed + batch * max(0, int(1.1 * there) - fixed)}
        one = update(collate([data[0]], 1))
        if one * batch > PATIENCE:  # the first update of a process may be slow for other reasons
            one = update(collate([data[0]], 1))
        _, peak, there = memory.used(device)
        fixed = before + update.kept()
        foretold = fixed + batch * max(0, peak - fixed)
        row |= {'there': there, 'fixed': fixed, 'wanted': foretold}
        if device == 'cpu' and foretold > there:  # to try it could end other programs
            return row
        lacking = {'wanted': max(foretold, int(1.1 * there))}
        return row | _timed(update, data, batch, one)
    except (MemoryError, RuntimeError) as error:
        if not is_exhausted(error):
            raise
        return row | lacking


def _timed(update: Update, data: Readable, batch: int, one: float) -> dict:
    """Of a row what the largest batch and usual ones show, unless `one` image took too long.

    An image by itself tells little of a batch: where other programs are at work, a batch may take hardly longer.
    """
    loads, updates = [], []
    for number, images in enumerate(islice(batches(data, batch), 1 + TIMED)):
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
    return row | ({'wanted': memory.used(update.device)[1]} if loads else {})


def _untrained(cfg: ConfigDict) -> ConfigDict:
    cfg.backbone.init_cfg = None  # pretrained weights are fetched by the training
    return cfg


def untrained(recipe: Recipe, detector: str, teacher: str | None) -> nn.Module:
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
        model = speed.prepare(model.to(device).train(), switches, device)
        optimizer = speed.optimizer(dict(recipe.cfg.schedule.optimizer), switches)
        self.model, self.optimizer = loop.parallel(model, device), build_optimizer(model, optimizer)
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
        return memory.fixed(0, trained, type(self.optimizer).__name__)

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
        with precision.float32_rounded(self.precision):
            for step in self.steps(batch):
                step()
        if self.device == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter() - began


@torch.no_grad()
def _evaluation(recipe: Recipe, detector: str, device: str) -> float:
    """Seconds for a validation image, by the second of two batches."""
    data = pipelines.build(pipelines.dataset(recipe, 'val'))
    data = Readable(data, recipe.cfg.data.get('corrupt_limit', 0))
    batch = recipe.cfg.evaluation.batch_size
    model = build_detector(ConfigDict(_untrained(recipe.model(detector))))
    model.init_weights()
    wrapped = loop.parallel(model.to(device).eval(), device)
    places = cycle(range(len(data)))
    for _ in range(2):
        items = collate([data[place] for place in islice(places, batch)], batch)
        began = time.perf_counter()
        wrapped(return_loss=False, rescale=True, **items)
        seconds = time.perf_counter() - began
    return seconds / batch
