"""What the tables of bad input share: the place where an input is made, and what is asserted of every row.

A row: its name, how the input is made (it gets a `Place` and returns the command), a pattern of the message.
"""

from __future__ import annotations

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from mmcv import ConfigDict
from mmdet.models import build_detector

from helpers import tiny
from mtpd import load_recipe
from mtpd.cli.main import main
from mtpd.data import coco
from mtpd.engine import pipelines

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
CAFFE = 'mmdet::retinanet/retinanet_r50_caffe_fpn_1x_coco.py'
# Both arms by teacher 1, so that a run needs no other checkpoint.
ARMS = {'arms.direct.teachers': "['r101']", 'arms.progressive.teachers': "['r101','r101']"}
SMALL = tiny.SMALL | {'runtime.threads': 1}


@dataclass(frozen=True)
class Place:
    """Where an input is made: a folder, and in it a data set of two classes that is in order."""

    folder: Path
    coco: Path
    patch: pytest.MonkeyPatch
    after: ExitStack  # closes what a row keeps open

    @property
    def json(self) -> Path:
        return self.coco / 'annotations' / 'train.json'

    @property
    def image(self) -> Path:
        return self.coco / 'train' / '000001.png'

    @property
    def run(self) -> Path:
        return self.folder / 'run'

    @property
    def settings(self) -> dict:
        return SMALL | {'data.root': str(self.coco)}

    def edit(self, change: Callable[[dict], object]) -> None:
        table = json.loads(self.json.read_text())
        change(table)
        self.json.write_text(json.dumps(table))

    def command(self, *words: str | Path, **settings) -> list:
        """A command for the run's folder with small settings and these."""
        text = ' '.join(f'{key}={value}' for key, value in (self.settings | settings).items())
        return [*words, '--work-dir', self.run, '--cfg-options', text]

    def train(self, *more: str, **settings) -> list:
        return [*self.command('train', MINI, **settings), *more]


def call(arguments: list):
    return CliRunner().invoke(main, [str(item) for item in arguments])


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below; None for a folder."""
    paths = [path for path in folder.rglob('*') if not path.is_symlink()]
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def refuse(place: Place, make: Callable, pattern: str) -> str:
    """The command of a row ends with its message and exit code 2; nothing is written, and nothing lost."""
    arguments = make(place)
    before = contents(place.folder)
    result = call(arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert 'Traceback' not in result.output
    assert re.search(pattern, result.output), result.output
    after = contents(place.folder)
    changed = {
        name for name in before.keys() | after.keys() if before.get(name, 0) != after.get(name, 0)
    }
    if str(place.run) in before:  # a run that is there keeps the status of its last command
        changed -= {str(place.run / name) for name in ('status.json', '.lock')}
    assert changed == set()
    return result.output


def passes(place: Place) -> None:
    """The training split has no problem, and each of its images is read."""
    assert coco.split_problems(place.coco, 'train') == []
    data = pipelines.quiet_dataset(
        pipelines.dataset_config(load_recipe(MINI, place.settings), 'train')
    )
    for k in range(len(data)):
        assert max(data[k]['img'].data.shape[1:]) == 64


def edited(change: Callable[[dict], object]):
    """The training split's annotations, changed."""

    def make(place):
        place.edit(change)
        return place.train()

    return make


def setting(text: str):
    """One more setting of a stage."""
    return lambda place: place.train('--arm', 'direct', '--cfg-options', text)


def stage(*options: str, **settings):
    return lambda place: place.train(*options, **settings)


def weights(name: str, settings: dict) -> dict:
    torch.manual_seed(0)
    return dict(build_detector(ConfigDict(load_recipe(MINI, settings).model(name))).state_dict())


def fitting(place: Place, name: str = 'r101') -> dict:
    """A checkpoint that fits this detector."""
    return {'meta': {'CLASSES': ('cat', 'dog')}, 'state_dict': weights(name, place.settings)}
