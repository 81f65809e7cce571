"""Corrupt images that a training left out: named, counted over all processes, recorded in its corrupt.json."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
from pathlib import Path

from mmcv.runner import HOOKS, Hook, get_dist_info

from ..data import readable
from ..runtime import distributed
from ..utils.files import read_own, write_json


@HOOKS.register_module()
class RecordCorrupt(Hook):
    """Before each update: the corrupt images that others in its batches stand for are recorded in corrupt.json.

    Rows: ``file``, ``problem``, ``update`` (in which it would have been first). Those beyond the update at which a
    training goes on are dropped, as it comes to them again.

    Args:
        limit: more different images end the training with CorruptImage, in all processes.
    """

    def __init__(self, folder: str, limit: int):
        self.path, self.limit = Path(folder, 'corrupt.json'), limit

    def before_run(self, runner) -> None:
        rows = read_own(self.path, []) if runner.iter else []
        self.rows = {row['file']: row for row in rows if row['update'] <= runner.iter}
        self.rows = distributed.gather(self.rows)[0]
        self._write()

    def before_train_iter(self, runner) -> None:
        if not self.limit:  # then the dataset itself has refused
            return
        new = {}
        for found in distributed.gather(readable.told(runner.data_batch)):
            new |= {path: wrong for path, wrong in found.items() if path not in self.rows}
        if not new:
            return
        for path, wrong in sorted(new.items()):
            self.rows[path] = {'file': path, 'problem': wrong, 'update': runner.iter + 1}
            print(f'image {path} {wrong}: another takes its place', flush=True)
        if len(self.rows) > self.limit:
            found = {path: row['problem'] for path, row in self.rows.items()}
            raise readable.too_many(found, self.limit)
        self._write()

    def _write(self) -> None:
        if get_dist_info()[0]:
            return
        if self.rows:
            write_json(self.path, list(self.rows.values()))
        else:
            self.path.unlink(missing_ok=True)


def count(folder: Path) -> int:
    """How many images the training in a folder left out."""
    return len(read_own(folder / 'corrupt.json', []))
