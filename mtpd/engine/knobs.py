"""The settings that a training which cannot go on refers to, by the keys that its config has for them."""

from __future__ import annotations

from typing import NamedTuple


class Knobs(NamedTuple):
    """Keys, and the values that advice is calculated from.

    Attributes:
        batch: of the images of an update, of which there are `images`, shared evenly by `sharing` processes.
        rate: how the learning rate follows another batch.
        side: of the images' side; `scale` is its value, None where it stands in several places.
        evaluated: images of a process at a time in evaluation, by the key `evaluation`.
        workers: of the data workers; `lr`: of the learning rate; `clip`: of gradient clipping.
    """

    batch: str
    images: int
    sharing: int
    rate: str
    side: str
    scale: int | tuple[int, int] | None
    evaluation: str
    evaluated: int
    workers: str
    lr: str
    clip: str

    @property
    def lower(self) -> str:
        """What helps against losses that grow."""
        return f'lower the learning rate ({self.lr}), or clip gradients to less ({self.clip})'


def of_recipe(cfg: dict, processes: int) -> Knobs:
    """Those of a recipe's values."""
    schedule, scale = cfg.schedule, cfg.image.scale
    if schedule.get('lr_batch_size') is None:
        rate = f'schedule.lr_batch_size={schedule.batch_size} scales the learning rate with it'
    else:
        rate = 'schedule.lr_batch_size scales the learning rate'
    return Knobs(
        batch='schedule.batch_size',
        images=schedule.batch_size,
        sharing=processes,
        rate=rate,
        side='image.scale',
        scale=scale if isinstance(scale, int) else tuple(scale),
        evaluation='evaluation.batch_size',
        evaluated=cfg.evaluation.batch_size,
        workers='runtime.workers',
        lr='schedule.lr.max_lr' if 'max_lr' in schedule.lr else 'schedule.optimizer.lr',
        clip='schedule.grad_clip',
    )


def of_plain(data: dict, batch: str, evaluation: str) -> Knobs:
    """Those of a plain mmdet config's `data`, in mmdet's newer layout.

    Args:
        batch: the key of the batch in the file, which may have the older layout.
        evaluation: 'val_dataloader' (during training) or 'test_dataloader'.
    """
    return Knobs(
        batch=batch,
        images=data.train_dataloader.get('samples_per_gpu', 2),
        sharing=1,
        rate='auto_scale_lr.enable=True scales the learning rate',
        side="img_scale in the pipelines' Resize",
        scale=None,
        evaluation=f'data.{evaluation}.samples_per_gpu',
        evaluated=data[evaluation].get('samples_per_gpu', 1),
        workers=f'{batch.rpartition(".")[0]}.workers_per_gpu',
        lr='optimizer.lr',
        clip='optimizer_config.grad_clip',
    )
