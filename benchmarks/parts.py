"""The time of an update by its parts, for `distill_step.py`."""

import time

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import torch
from torch import nn

from mtpd.engine.speed import is_head, tf32_products
from mtpd.preflight.trial import Update


class Parts:
    """Measures updates with the device waited for at every border, so that they are slower as a whole."""

    def __init__(self, update: Update):
        self.update, self.seconds, self.began = update, {}, []
        model = update.model.module
        self.handles: list = []
        for who in (model.teacher, model.student):
            part = 'teacher forward' if who is model.teacher else 'student forward'
            for module in (who.backbone, who.neck):
                self.watch(module, part)
        for name, module in model.student.named_modules():
            if is_head(name, module):
                self.watch(module, 'student forward')

    def now(self) -> float:
        if self.update.device == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter()

    def add(self, part: str, seconds: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def watch(self, module: nn.Module, part: str) -> None:
        def enter(*_):
            self.began.append(self.now())

        def leave(*_):
            self.add(part, self.now() - self.began.pop())

        self.handles.append(module.register_forward_pre_hook(enter))
        self.handles.append(module.register_forward_hook(leave))

    def measure(self, batches: list) -> dict[str, float]:
        """Milliseconds of an update by part, means over `batches`."""
        names = ('forward', 'backward', 'optimizer')
        for batch in batches:
            marks = [self.now()]
            with tf32_products(self.update.precision):
                for step in self.update.steps(batch):
                    step()
                    marks.append(self.now())
            for name, begin, end in zip(names, marks, marks[1:], strict=False):
                self.add(name, end - begin)
        for handle in self.handles:
            handle.remove()
        forward = self.seconds.pop('forward')
        inside = self.seconds['teacher forward'] + self.seconds['student forward']
        self.seconds['losses'] = forward - inside
        order = ('teacher forward', 'student forward', 'losses', 'backward', 'optimizer')
        return {name: 1e3 * self.seconds[name] / len(batches) for name in order}
