"""What several processes run in the tests: a stage that writes down each of its updates, and failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split

import torch
import torch.distributed as dist
from mmcv.runner import get_dist_info

from mtpd.distill.distiller import Distiller
from mtpd.errors import MtpdError
from mtpd.runtime import distributed


class Spied(Distiller):
    """Saves, for each update, what it starts from, and the gradients that the update before it ended with."""

    def train_step(self, data, optimizer):
        rank, _ = get_dist_info()
        self.updates = getattr(self, 'updates', 0) + 1
        masks = {}
        for name, loss in self.distill_losses.items():

            def keep(module, args, name=name):
                masks[name] = (args[0] == 0).all(dim=1)

            loss.generation.register_forward_pre_hook(keep)
        saved = {
            'weights': {key: value.clone() for key, value in self.state_dict().items()},
            'teacher': {key: value.clone() for key, value in self.teacher.state_dict().items()},
            'random': torch.get_rng_state(),
            'data': data,
            'gradients': gradients(self),
        }
        outputs = super().train_step(data, optimizer)
        path = Path(self.folder, f'rank{rank}_update{self.updates}.pt')
        torch.save({**saved, 'masks': masks}, path)
        return outputs


def mmdet_file() -> str:
    import mmdet

    return mmdet.__file__


def gradients(model) -> dict:
    return {
        name: None if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def spied(folder: str, build) -> Spied:
    model = build()
    model.__class__, model.folder = Spied, folder
    return model


def refuse(rank: int) -> None:
    """A user's mistake that one process alone finds, while the others wait for it."""
    if dist.get_rank() == rank:
        raise MtpdError('this disk is full')
    dist.barrier()


def die(rank: int) -> None:
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def killed(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash(rank: int) -> None:
    if dist.get_rank() == rank:
        raise ZeroDivisionError('a bug')
    dist.barrier()


def wait(folder: str) -> None:
    """Waits for SIGTERM, after which it takes its time, as a training does that writes a checkpoint."""
    file = Path(folder, f'{dist.get_rank()}')

    def end(*_) -> None:
        time.sleep(1)
        file.with_suffix('.ended').touch()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    file.with_suffix('.pid').write_text(str(os.getpid()))
    time.sleep(120)


def place(text: str) -> list:
    places = [None, None]
    dist.all_gather_object(places, f'{text} {os.environ["LOCAL_RANK"]}')
    return places


def speak() -> list:
    """Writes in each way there is; gives what the kit's own `gather` brings from each rank."""
    print('from print')
    sys.stderr.write(f'error of rank {dist.get_rank()}\n')
    subprocess.run(['echo', f'from a child of rank {dist.get_rank()}'], check=True)
    return distributed.gather((dist.get_rank(), os.environ['OMP_NUM_THREADS']))
