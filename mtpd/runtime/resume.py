"""Where a training that was cut off goes on: its newest checkpoint that is whole."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..errors import MtpdError
from ..utils.files import read_own
from . import checkpoints
from .unpickle import Damaged


class Point(NamedTuple):
    """A resumable checkpoint, and the updates done in it."""

    path: Path
    update: int


def find(folder: Path) -> Point | None:
    """The newest of latest.pth and previous.pth that is whole; says so where that is not latest.pth.

    Raises:
        MtpdError: one is whole, and no training wrote it.

    Files that were being written when a training was killed are removed.
    """
    for part in folder.glob('.*.part'):  # of a process that was killed while it wrote
        part.unlink()
    damaged = []
    for path in (folder / 'latest.pth', folder / 'previous.pth'):
        if not path.is_file():
            continue
        try:
            meta = checkpoints.load_own(path).get('meta') or {}
        except Damaged as error:
            damaged.append(str(error).splitlines()[0])
            continue
        if not isinstance(meta.get('iter'), int):
            raise MtpdError(
                f'{path} is not the checkpoint of a training: remove it, or put it back.'
            )
        _tell(damaged, f'the training goes on from {path.name}, update {meta["iter"]}')
        return Point(path, meta['iter'])
    _tell(damaged, 'the training starts afresh')
    return None


def finished(final: Path) -> bool:
    """Whether the detector that a training leaves is there; a damaged one is made again from its whole latest.pth.

    Raises:
        MtpdError: it is damaged, and there is nothing whole to make it from; or it is no checkpoint.
    """
    if not final.is_file():
        return False
    try:
        checkpoints.load_own(final)
    except Damaged as error:
        try:
            checkpoints.load(final.with_name('latest.pth'))
        except MtpdError:
            raise error from None
        _tell([str(error).splitlines()[0]], 'it is made again from latest.pth')
        return False
    return True


def kept(folder: Path) -> str:
    """What there is to go on from when a training has ended too early, as the beginning of a sentence."""
    done = read_own(folder / 'training.json', {}).get('update')
    if done is None or not (folder / 'latest.pth').is_file():
        return 'No checkpoint was written yet: the same command begins again'
    return f'latest.pth stays as update {done} left it: the same command goes on from there'


def _tell(damaged: list[str], what: str) -> None:
    if damaged:
        print('\n'.join([*damaged, what]), flush=True)
