"""mmcv hooks of a training run: its log, its progress line, its resumable checkpoint."""

from __future__ import annotations

from . import compat  # noqa: F401  (before mmcv)

# isort: split
import json
import time
from datetime import timedelta
from pathlib import Path

from mmcv.runner import HOOKS, Hook, LoggerHook, master_only, save_checkpoint

from .files import plain


@HOOKS.register_module()
class JsonLog(LoggerHook):
    """Appends a JSON object per interval to `path` and prints a line with the time left.

    Rows: ``update``, ``updates``, ``lr``, ``time`` and ``data_time`` (seconds an update), the losses (means over the
    interval); of an evaluation during training ``update`` and its metrics.
    """

    def __init__(self, path: str, interval: int = 20, by_epoch: bool = False):
        super().__init__(interval, by_epoch=by_epoch)
        self.path = Path(path)

    def before_run(self, runner) -> None:
        super().before_run(runner)
        self.began, self.first = time.time(), runner.iter

    def after_train_iter(self, runner) -> None:
        self.done = runner.iter + 1
        if self.is_last_iter(runner):  # the rest, where the interval does not divide the updates
            runner.log_buffer.average(self.interval)
        super().after_train_iter(runner)

    @master_only
    def log(self, runner) -> None:
        values, done = dict(runner.log_buffer.output), self.done
        row = {'update': done, 'updates': runner.max_iters}
        if 'loss' in values:
            row['lr'] = runner.current_lr()[0]
        with self.path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(plain({**row, **values})) + '\n')
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
    """Writes the resumable checkpoint `path` every `interval` updates and at the end, whole or not at all.

    `by_epoch`: every `interval` epochs instead, as an EpochBasedRunner resumes at the start of one only.
    """

    def __init__(self, path: str, interval: int, by_epoch: bool = False):
        self.path = Path(path)
        self.interval = interval
        self.by_epoch = by_epoch

    def after_train_iter(self, runner) -> None:
        due = self.every_n_iters(runner, self.interval) or self.is_last_iter(runner)
        if due and not self.by_epoch:
            self._save(runner, runner.iter + 1, runner.epoch)

    def after_train_epoch(self, runner) -> None:
        due = self.every_n_epochs(runner, self.interval) or self.is_last_epoch(runner)
        if due and self.by_epoch:
            self._save(runner, runner.iter, runner.epoch + 1)

    @master_only
    def _save(self, runner, done: int, epochs: int) -> None:
        meta = {**(runner.meta or {}), 'iter': done, 'epoch': epochs}
        part = self.path.with_suffix('.part')
        save_checkpoint(runner.model, str(part), optimizer=runner.optimizer, meta=meta)
        part.replace(self.path)
