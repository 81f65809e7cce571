"""mmcv hooks of a training run: random numbers, log, resumable checkpoint, finite losses, corrupt images."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmcv.runner import (
    HOOKS,
    EMAHook,
    EpochBasedRunner,
    Hook,
    LoggerHook,
    OptimizerHook,
    get_dist_info,
    master_only,
    weights_to_cpu,
)
from mmcv.runner.checkpoint import get_state_dict
from mmdet.core.hook.ema import BaseEMAHook
from mmdet.models.detectors import YOLOX

from ..data import loading
from ..data.loading import batch_metas
from ..data.seeded_loader import MODEL_DRAWS, seed_all
from ..errors import MtpdError
from ..runtime import distributed
from ..runtime.checkpoints import resume_hint, save_atomic
from ..utils import processes
from ..utils.files import json_value, read_json_if_valid, read_log, write_json, write_text

# They keep an average of the weights, mmcv's and mmdet's.
EMA_HOOKS = (EMAHook, BaseEMAHook)


@HOOKS.register_module()
class SeedUpdate(Hook):
    """Before each update: what the model draws in it (masks, dropped paths) depends on `seed` and its number alone."""

    def __init__(self, seed: int):
        self.seed, self.models = seed, []

    def before_run(self, runner) -> None:
        self.models = [module for module in runner.model.modules() if isinstance(module, YOLOX)]

    def before_train_iter(self, runner) -> None:
        seed_all(self.seed, runner.iter, get_dist_info()[0], MODEL_DRAWS)
        for module in self.models:
            module.size_seed, module._progress_in_iter = self.seed, runner.iter


@HOOKS.register_module()
class SetEpoch(Hook):
    """Tells detectors that learn by epochs, as TOOD does, how often the training has gone through its images.

    mmdet's SetEpochInfoHook waits for an epoch's begin, which a training that is counted in updates has none of.

    Args:
        batch_size: images of an update, over all processes.
    """

    def __init__(self, batch_size: int):
        self.batch_size, self.models = batch_size, []

    def before_run(self, runner) -> None:
        modules = runner.model.modules()
        self.models = [module for module in modules if hasattr(module, 'set_epoch')]

    def before_train_iter(self, runner) -> None:
        for module in self.models:
            images = len(runner.data_loader._dataloader.dataset)
            module.set_epoch(runner.iter * self.batch_size // images)


@HOOKS.register_module()
class LoggedGradNorm(OptimizerHook):
    """mmcv's optimizer hook. It reads the gradients' norms when they are logged: each reading waits for the GPU.

    Args:
        interval: updates between two rows of the log, whether loggers count them by epoch or not.
    """

    def __init__(self, interval: int, **settings: Any):
        super().__init__(**settings)
        self.interval, self.norms = interval, []

    def after_train_iter(self, runner) -> None:
        runner.optimizer.zero_grad()
        if self.detect_anomalous_params:
            self.detect_anomalous_parameters(runner.outputs['loss'], runner)
        runner.outputs['loss'].backward()
        if self.grad_clip is not None:
            norm = self.clip_grads(runner.model.parameters())
            if norm is not None:
                self.norms.append((norm, runner.outputs['num_samples']))
        runner.optimizer.step()
        is_due = (
            self.every_n_iters(runner, self.interval)
            or self.every_n_inner_iters(runner, self.interval)
            or self.end_of_epoch(runner)
            or self.is_last_iter(runner)
        )
        if is_due:
            for norm, samples in self.norms:
                runner.log_buffer.update({'grad_norm': float(norm)}, samples)
            self.norms.clear()


@HOOKS.register_module()
class JsonLog(LoggerHook):
    """Appends a JSON object per interval to `path` and prints a line with the time left.

    Rows: ``update``, ``updates``, ``lr``, ``time`` and ``data_time`` (seconds an update), the losses (means over the
    interval); of an evaluation during training ``update`` and its metrics. Rows beyond the update at which a training
    goes on are dropped.
    """

    def __init__(self, path: str, interval: int = 20, by_epoch: bool = False):
        super().__init__(interval, by_epoch=by_epoch)
        self.path = Path(path)

    def before_run(self, runner) -> None:
        super().before_run(runner)
        self.began, self.first = time.time(), runner.iter
        self._drop_rows_beyond(runner)

    @master_only
    def _drop_rows_beyond(self, runner) -> None:
        rows = [row for row in read_log(self.path) if row['update'] <= runner.iter]
        write_text(self.path, ''.join(json.dumps(row) + '\n' for row in rows))

    def after_train_iter(self, runner) -> None:
        self.done = runner.iter + 1
        rest = self.done % self.interval
        if self.is_last_iter(runner) and rest:
            runner.log_buffer.average(rest)
        super().after_train_iter(runner)

    @master_only
    def log(self, runner) -> None:
        values, done = dict(runner.log_buffer.output), self.done
        row = {'update': done, 'updates': runner.max_iters}
        if 'loss' in values:
            row['lr'] = runner.current_lr()[0]
        with self.path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(json_value({**row, **values})) + '\n')
        if 'bbox_mAP' in values:
            print(
                f'update {done}/{runner.max_iters}  AP {100 * values["bbox_mAP"]:.1f}', flush=True
            )
        elif 'loss' in values:
            rate = (time.time() - self.began) / (done - self.first)
            left = timedelta(seconds=round(rate * (runner.max_iters - done)))
            print(
                f'update {done}/{runner.max_iters}  loss {values["loss"]:.3f}  '
                f'{rate:.2f} s/update  {left} left',
                flush=True,
            )


@HOOKS.register_module()
class SaveLatest(Hook):
    """Writes the resumable checkpoint `path` every `interval` updates, at the end, and when the training is to stop.

    previous.pth beside it is the one before, until the end; training.json says how many updates are done (`update`) and
    what they took (`seconds`).

    `by_epoch`: every `interval` epochs instead.
    """

    def __init__(self, path: str, interval: int, by_epoch: bool = False):
        self.path = Path(path)
        self.interval = interval
        self.by_epoch = by_epoch

    def before_run(self, runner) -> None:
        past = read_json_if_valid(self.path.with_name('training.json'), {}) if runner.iter else {}
        self.began = time.time() - past.get('seconds', 0)
        if runner.iter and past.get('update') != runner.iter:  # a kill came between the two files
            self._record_progress(runner.iter)

    def after_train_iter(self, runner) -> None:
        due = self.every_n_iters(runner, self.interval) or self.is_last_iter(runner)
        # At an epoch's end what happens there comes first. After the last update the training ends by itself, with its
        # last row in the log, which going on from this checkpoint would never write.
        ends = self.is_last_iter(runner) or (self.by_epoch and self.end_of_epoch(runner))
        stop = processes.stop_requested() and not ends
        if stop or (due and not self.by_epoch):
            # A signal is rank 0's alone.
            finite_loss_hook(runner).check_weights(
                runner, runner.iter + 1, due and not self.by_epoch
            )
            with averaged_weights(runner):
                self._save(runner, runner.iter + 1, runner.epoch, self.is_last_iter(runner))
        if stop:
            processes.stop_now()

    def after_train_epoch(self, runner) -> None:
        due = self.every_n_epochs(runner, self.interval) or self.is_last_epoch(runner)
        if self.by_epoch and (due or processes.stop_requested()):
            finite_loss_hook(runner).check_weights(runner, runner.iter, due)
            self._save(runner, runner.iter, runner.epoch + 1, self.is_last_epoch(runner))
        if processes.stop_requested():
            processes.stop_now()

    @master_only
    def _save(self, runner, done: int, epochs: int, last: bool) -> None:
        previous, part = self.path.with_name('previous.pth'), self.path.with_suffix('.part')
        meta = {**(runner.meta or {}), 'iter': done, 'epoch': epochs}
        if isinstance(runner, EpochBasedRunner):
            meta['epoch_updates'] = len(runner.data_loader)
        checkpoint = {
            'meta': meta,
            'state_dict': weights_to_cpu(get_state_dict(runner.model)),
            'optimizer': runner.optimizer.state_dict(),
        }
        previous.unlink(missing_ok=True)  # room for the new one
        save_atomic(checkpoint, part)
        if self.path.is_file() and not last:
            self.path.replace(previous)
        part.replace(self.path)
        self._record_progress(done)

    @master_only
    def _record_progress(self, updates: int) -> None:
        seconds = round(time.time() - self.began, 1)
        write_json(self.path.with_name('training.json'), {'update': updates, 'seconds': seconds})


@contextlib.contextmanager
def averaged_weights(runner) -> Iterator[None]:
    """In the block the model has the weights' average, where an EMA hook keeps one, as between two epochs.

    So a checkpoint from within an epoch has it in the same place as one from the end: its resuming swaps both. A runner that
    counts updates never swaps.
    """
    hooks = [
        hook
        for hook in runner.hooks
        if isinstance(hook, EMA_HOOKS) and isinstance(runner, EpochBasedRunner)
    ]
    for hook in hooks:
        hook._swap_ema_parameters()
    try:
        yield
    finally:
        for hook in hooks:
            hook._swap_ema_parameters()


# Losses and weights that are not finite end a training.


# Losses are of the order of 1, distillation losses of 100 at most where their weight is far too large.
LARGEST_LOSS = 1e10
# Updates in a row that a loss scaler may skip, until its scale has come down.
MAX_SKIPPED_UPDATES = 50


@HOOKS.register_module()
class FiniteLoss(Hook):
    """Before an update's optimizer step: raises MtpdError where a loss is NaN, infinite or absurdly large, in all processes.

    nonfinite.json in `folder` then says in which update, with which losses, learning rate and images. The losses are
    those that mmdet has brought to the CPU, over all processes, for its log. Training in half precision with a loss
    scaler, which leaves out such steps, goes on until there are 50 in a row.

    Args:
        advice: which settings may help, in words.
    """

    def __init__(self, folder: str, advice: str):
        self.folder, self.advice = Path(folder), advice
        self.skipped, self.metas = 0, []

    @master_only
    def before_run(self, runner) -> None:
        (self.folder / 'nonfinite.json').unlink(missing_ok=True)  # of a start before this one

    def after_train_iter(self, runner) -> None:
        self.metas = batch_metas(runner.data_batch)
        bad = {
            name: value
            for name, value in _logged_losses(runner).items()
            if not abs(value) < LARGEST_LOSS  # nor NaN
        }
        self.skipped = self.skipped + 1 if bad else 0
        if not bad or (self.skipped < MAX_SKIPPED_UPDATES and _has_loss_scaler(runner)):
            return
        terms = ', '.join(f'{name} {value}' for name, value in bad.items())
        images = distributed.gather(self._images(runner))
        problem = 'a loss is not finite'
        if all(map(math.isfinite, bad.values())):
            problem = f'a loss is above {LARGEST_LOSS:g}, so the training does not learn'
        raise self._end(runner, runner.iter + 1, f'{problem} ({terms})', images)

    def check_weights(self, runner, update: int, together: bool) -> None:
        """Raises MtpdError where weights are not finite, which infinite gradients of a finite loss make them.

        Args:
            update: the last one that was made.
            together: all processes call this.
        """
        state = get_state_dict(runner.model)
        bad = [name for name, value in state.items() if not _is_finite(value)]
        if together:
            bad = next(filter(None, distributed.gather(bad)), [])
        if bad:
            images = self._images(runner)
            images = distributed.gather(images) if together else [images]
            problem = f'{len(bad)} of {len(state)} weights are not finite after it (first {bad[0]})'
            raise self._end(runner, update, problem, images, bad)

    def _images(self, runner) -> list[dict]:
        """File name and COCO image id of this process's images in the last update, and its own loss."""
        names = [meta.get('ori_filename', meta.get('filename')) for meta in self.metas]
        infos = _image_infos(runner.data_loader)
        ids = {info['filename']: info.get('file_id', info.get('id')) for info in infos}
        rank, loss = get_dist_info()[0], _json_number(float(runner.outputs['loss'].detach()))
        return [{'file': name, 'id': ids.get(name), 'rank': rank, 'loss': loss} for name in names]

    def _end(
        self,
        runner,
        update: int,
        problem: str,
        images_by_rank: list[list[dict]],
        weights: Sequence[str] = (),
    ) -> MtpdError:
        """Writes nonfinite.json and returns the error. `weights`: names of those that are not finite."""
        images = [image for images in images_by_rank for image in images]
        path = self.folder / 'nonfinite.json'
        content = {'update': update, 'updates': runner.max_iters, 'lr': runner.current_lr()[0]}
        content['losses'] = {
            name: _json_number(value) for name, value in _logged_losses(runner).items()
        }
        content |= {'weights': list(weights)} if weights else {}
        if get_dist_info()[0] == 0:
            write_json(path, {**content, 'images': images})
        return MtpdError(
            f'training ended in update {update} of {runner.max_iters}: {problem}.\n{resume_hint(self.folder)}, '
            f'and ends the same way unless something changes: look at the boxes of the {len(images)} image(s) that {path} names; '
            f'{self.advice}. Other settings need another --work-dir.'
        )


def finite_loss_hook(runner) -> FiniteLoss:
    """The `FiniteLoss` among a training's hooks."""
    return next(hook for hook in runner.hooks if isinstance(hook, FiniteLoss))


def _logged_losses(runner) -> dict[str, float]:
    """What mmdet has brought to the CPU; of a model that logs nothing, the sum alone."""
    logged = runner.outputs.get('log_vars', {})
    losses = {name: value for name, value in logged.items() if 'loss' in name}
    return losses or {'loss': float(runner.outputs['loss'].detach())}


def _image_infos(loader: Any) -> Iterator[dict]:
    """What the annotation files say of a training's images."""
    datasets = [getattr(loader, '_dataloader', loader).dataset]
    while datasets:
        data = datasets.pop()
        wrapped = vars(data).get('datasets') or [vars(data).get('dataset')]
        if wrapped[0] is None:
            yield from getattr(data, 'data_infos', ())
        else:
            datasets += wrapped


def _json_number(value: float) -> float | str:
    """A number for JSON, which has no NaN."""
    return value if math.isfinite(value) else str(value)


def _is_finite(value: torch.Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _has_loss_scaler(runner) -> bool:
    scalers = [hook.loss_scaler for hook in runner.hooks if hasattr(hook, 'loss_scaler')]
    return any(scaler.is_enabled() for scaler in scalers)


# Corrupt images that a training leaves out.


@HOOKS.register_module()
class RecordCorrupt(Hook):
    """Before each update: records in corrupt.json the corrupt images whose places others take in its batches.

    Rows: ``file``, ``problem``, ``update`` (in which it would have been first). Those beyond the update at which a
    training goes on are dropped, as it comes to them again.

    Args:
        limit: more different images end the training with CorruptImage, in all processes.
    """

    def __init__(self, folder: str, limit: int):
        self.path, self.limit = Path(folder, 'corrupt.json'), limit

    def before_run(self, runner) -> None:
        rows = read_json_if_valid(self.path, []) if runner.iter else []
        self.rows = {row['file']: row for row in rows if row['update'] <= runner.iter}
        self.rows = distributed.gather(self.rows)[0]
        self._write()

    def before_train_iter(self, runner) -> None:
        if not self.limit:  # then the dataset itself has refused
            return
        new = {}
        for problems in distributed.gather(loading.corrupt_in_batch(runner.data_batch)):
            new |= {path: text for path, text in problems.items() if path not in self.rows}
        if not new:
            return
        for path, problem in sorted(new.items()):
            self.rows[path] = {'file': path, 'problem': problem, 'update': runner.iter + 1}
            print(f'image {path} {problem}: another image takes its place', flush=True)
        if len(self.rows) > self.limit:
            problems = {path: row['problem'] for path, row in self.rows.items()}
            raise loading.corrupt_images_error(problems, self.limit)
        self._write()

    def _write(self) -> None:
        if get_dist_info()[0]:
            return
        if self.rows:
            write_json(self.path, list(self.rows.values()))
        else:
            self.path.unlink(missing_ok=True)


def count_corrupt_images(folder: Path) -> int:
    """How many images the training in a folder left out."""
    return len(read_json_if_valid(folder / 'corrupt.json', []))
