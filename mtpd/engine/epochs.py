"""mmcv's runner that counts epochs, able to go on inside one."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import time

from mmcv.runner import RUNNERS, EpochBasedRunner


@RUNNERS.register_module()
class WithinEpoch(EpochBasedRunner):
    """As `EpochBasedRunner`, whose `train` takes every epoch for one that begins; here the loader has only its rest."""

    def train(self, data_loader, **kwargs) -> None:
        self.model.train()
        self.mode = 'train'
        self.data_loader = data_loader
        self._max_iters = self._max_epochs * len(data_loader)
        done = self.iter - self.epoch * len(data_loader)
        self.call_hook('before_train_epoch')
        time.sleep(2)  # as there: workers of the epoch before come to their end
        for self._inner_iter, self.data_batch in enumerate(data_loader, done):
            self.call_hook('before_train_iter')
            self.run_iter(self.data_batch, train_mode=True, **kwargs)
            self.call_hook('after_train_iter')
            del self.data_batch
            self._iter += 1
        self.call_hook('after_train_epoch')
        self._epoch += 1
