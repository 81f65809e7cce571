"""mmcv hooks of a training run: its random numbers, its log, its resumable checkpoint."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import json
import time
from datetime import timedelta
from pathlib import Path

from mmcv.runner import HOOKS, Hook, LoggerHook, get_dist_info, master_only, weights_to_cpu
from mmcv.runner.checkpoint import get_state_dict

from ..data.replay import MODEL, seed_all
from ..runtime.checkpoints import save_atomic
from ..utils import stopping
from ..utils.files import plain, read_log, read_own, write_json, write_text
from . import guards


@HOOKS.register_module()
class SeedUpdate(Hook):
    """Before each update: what the model draws in it (masks, dropped paths) depends on `seed` and its number alone."""

    def __init__(self, seed: int):
        self.seed = seed

    def before_train_iter(self, runner) -> None:
        seed_all(self.seed, runner.iter, get_dist_info()[0], MODEL)


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
        self._cut(runner)

    @master_only
    def _cut(self, runner) -> None:
        kept = [row for row in read_log(self.path) if row['update'] <= runner.iter]
        write_text(self.path, ''.join(json.dumps(row) + '\n' for row in kept))

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
        past = read_own(self.path.with_name('training.json'), {}) if runner.iter else {}
        self.began = time.time() - past.get('seconds', 0)

    def after_train_iter(self, runner) -> None:
        due = self.every_n_iters(runner, self.interval) or self.is_last_iter(runner)
        # At an epoch's end what happens there comes first. After the last update the training ends by itself, with its
        # last row in the log, which going on from this checkpoint would never write.
        ends = self.is_last_iter(runner) or (self.by_epoch and self.end_of_epoch(runner))
        stop = stopping.asked() and not ends
        if stop or (due and not self.by_epoch):
            # A signal is rank 0's alone.
            guards.of(runner).check_weights(runner, runner.iter + 1, due and not self.by_epoch)
            self._save(runner, runner.iter + 1, runner.epoch, self.is_last_iter(runner))
        if stop:
            stopping.stop()

    def after_train_epoch(self, runner) -> None:
        due = self.every_n_epochs(runner, self.interval) or self.is_last_epoch(runner)
        if self.by_epoch and (due or stopping.asked()):
            guards.of(runner).check_weights(runner, runner.iter, due)
            self._save(runner, runner.iter, runner.epoch + 1, self.is_last_epoch(runner))
        if stopping.asked():
            stopping.stop()

    @master_only
    def _save(self, runner, done: int, epochs: int, last: bool) -> None:
        previous, part = self.path.with_name('previous.pth'), self.path.with_suffix('.part')
        checkpoint = {
            'meta': {**(runner.meta or {}), 'iter': done, 'epoch': epochs},
            'state_dict': weights_to_cpu(get_state_dict(runner.model)),
            'optimizer': runner.optimizer.state_dict(),
        }
        previous.unlink(missing_ok=True)  # room for the new one
        save_atomic(checkpoint, part)
        if self.path.is_file() and not last:
            self.path.replace(previous)
        part.replace(self.path)
        seconds = round(time.time() - self.began, 1)
        write_json(self.path.with_name('training.json'), {'update': done, 'seconds': seconds})
