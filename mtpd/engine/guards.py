"""A training ends before a loss, or weights, that are not finite spoil what it has learned."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmcv.runner import HOOKS, Hook, get_dist_info, master_only
from mmcv.runner.checkpoint import get_state_dict

from ..data.readable import metas
from ..errors import MtpdError
from ..runtime import distributed
from ..runtime.resume import kept
from ..utils.files import write_json

PATIENCE = 50  # updates in a row that a loss scaler may skip, until its scale has come down


@HOOKS.register_module()
class FiniteLoss(Hook):
    """Before an update's optimizer step: raises MtpdError where a loss is NaN or infinite, in all processes.

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
        self.metas = metas(runner.data_batch)
        bad = {name: value for name, value in _losses(runner).items() if not math.isfinite(value)}
        self.skipped = self.skipped + 1 if bad else 0
        if not bad or (self.skipped < PATIENCE and _has_scaler(runner)):
            return
        terms = ', '.join(f'{name} {value}' for name, value in bad.items())
        told = distributed.gather(self._images(runner))
        raise self._end(runner, runner.iter + 1, f'a loss is not finite ({terms})', told)

    def check_weights(self, runner, update: int, together: bool) -> None:
        """Raises MtpdError where weights are not finite, which infinite gradients of a finite loss make them.

        Args:
            update: the last one that was made.
            together: all processes call this.
        """
        state = get_state_dict(runner.model)
        bad = [name for name, value in state.items() if not _is_finite(value)]
        gather = distributed.gather if together else _alone
        bad = next(filter(None, gather(bad)), [])
        if bad:
            what = f'it left {len(bad)} of {len(state)} weights not finite (first {bad[0]})'
            raise self._end(runner, update, what, gather(self._images(runner)), bad)

    def _images(self, runner) -> list[dict]:
        """File name and COCO image id of this process's images in the last update, and its own loss."""
        names = [meta.get('ori_filename', meta.get('filename')) for meta in self.metas]
        ids = {info['filename']: info.get('id') for info in _infos(runner.data_loader)}
        own = {'rank': get_dist_info()[0], 'loss': _number(float(runner.outputs['loss'].detach()))}
        return [{'file': name, 'id': ids.get(name), **own} for name in names]

    def _end(self, runner, update: int, what: str, told: list, weights=()) -> MtpdError:
        images = [image for of_rank in told for image in of_rank]
        path = self.folder / 'nonfinite.json'
        content = {'update': update, 'updates': runner.max_iters, 'lr': runner.current_lr()[0]}
        content['losses'] = {name: _number(value) for name, value in _losses(runner).items()}
        content |= {'weights': list(weights)} if weights else {}
        if get_dist_info()[0] == 0:
            write_json(path, {**content, 'images': images})
        return MtpdError(
            f'training ended in update {update} of {runner.max_iters}: {what}.\n{kept(self.folder)}, and to the same '
            f'end unless something is changed: look at the boxes of the {len(images)} image(s) that {path} names; '
            f'{self.advice}. Other settings need another --work-dir.'
        )


def of(runner) -> FiniteLoss:
    """The one among a training's hooks."""
    return next(hook for hook in runner.hooks if isinstance(hook, FiniteLoss))


def _losses(runner) -> dict[str, float]:
    logged = runner.outputs.get('log_vars', {})
    return {name: value for name, value in logged.items() if 'loss' in name}


def _infos(loader: Any) -> Iterator[dict]:
    """What the annotation files say of a training's images."""
    inside = [getattr(loader, '_dataloader', loader).dataset]
    while inside:
        data = inside.pop()
        inner = vars(data).get('datasets') or [vars(data).get('dataset')]
        if inner[0] is None:
            yield from getattr(data, 'data_infos', ())
        else:
            inside += inner


def _alone(value: Any) -> list:
    return [value]


def _number(value: float) -> float | str:
    """A number for JSON, which has no NaN."""
    return value if math.isfinite(value) else str(value)


def _is_finite(value: torch.Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _has_scaler(runner) -> bool:
    scalers = [hook.loss_scaler for hook in runner.hooks if hasattr(hook, 'loss_scaler')]
    return any(scaler.is_enabled() for scaler in scalers)
