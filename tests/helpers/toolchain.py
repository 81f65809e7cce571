"""Stand-ins for what `mtpd install-ops` works with: torch, nvcc, GPUs, wheels."""

from __future__ import annotations

import zipfile
from pathlib import Path

from mtpd.utils import machine

CPU = machine.Torch('2.13.0+cpu', None, Path('/nowhere/torch'))
CUDA = machine.Torch('2.11.0+cu130', '13.0', Path('/nowhere/torch'))
H200 = 'NVIDIA H200, 143771 MiB, 9.0'


def program(path: Path, output: str) -> None:
    """A program that prints `output`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "{output}"\n')
    path.chmod(0o755)


def nvcc_says(release: str) -> str:
    return f'Cuda compilation tools, release {release}, V{release}.88'


def make_wheel(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / 'mmcv_full-1.7.2-cp311-cp311-linux_x86_64.whl'
    with zipfile.ZipFile(wheel, 'w') as archive:
        for name in names:
            archive.writestr(name, f'the content of {name}')
    return wheel


def one_by_one(*results):
    """A function that returns the next of `results`, whatever it is called with."""
    remaining = iter(results)
    return lambda *args: next(remaining)
