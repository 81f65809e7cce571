"""What a run ran on, kept beside its results: a number without it can't be repeated."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from .. import __version__
from .files import read_own, write_json
from .machine import cores, find_torch, gpus
from .paths import ROOT

PACKAGES = ('torch', 'torchvision', 'mmcv-full', 'mmdet', 'numpy', 'pycocotools', 'scikit-learn')


def describe(threads: int = 0) -> dict:
    """Versions, processor, GPUs and commit as flat values. `threads`: of a run; 0: one per core."""
    git = ['git', '-C', str(ROOT)]
    commit = subprocess.run([*git, 'rev-parse', 'HEAD'], capture_output=True, text=True)
    changed = subprocess.run([*git, 'status', '--porcelain'], capture_output=True, text=True)
    torch = find_torch()
    return {
        'mtpd': __version__,
        'python': platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        'cuda': torch.cuda if torch else None,
        'device': ', '.join(name for name, _, _ in gpus()) or 'CPU',
        'processor': _processor(),
        'cpu_count': cores(),
        'threads': threads or cores(),
        'platform': platform.platform(),
        'git_commit': commit.stdout.strip() or None,
        'git_changed_files': len(changed.stdout.splitlines()),
    }


def write(path: str | Path, threads: int = 0, **more: str) -> dict:
    """`describe()` and `more`, as environment.json keeps them from the time when it was first written: a notebook that is
    opened later does not change what a run ran on."""
    if kept := read_own(Path(path)):
        return kept
    found = describe(threads) | more
    write_json(path, found)
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':', 1)[1].strip() for line in lines if 'model name' in line)
    except (OSError, StopIteration):
        return platform.machine()
