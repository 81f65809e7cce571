"""What this machine and its torch are, found without importing torch (an import takes seconds)."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import psutil

from .. import __version__
from ..errors import MtpdError
from .files import read_json_if_valid, write_json
from .paths import ROOT

SUPPORTED_PYTHON = ((3, 11), (3, 12))
OLDEST_TORCH = (2, 6)
TESTED_TORCH = {'CPU': (2, 13), 'CUDA': (2, 11)}
GIB = 1024**3


class Torch(NamedTuple):
    """The installed torch: `version` as '2.13.0+cpu', `cuda` as '13.0' or None, its folder."""

    version: str
    cuda: str | None
    folder: Path

    @property
    def release(self) -> tuple[int, int]:
        return major_minor(self.version)


def major_minor(version: str) -> tuple[int, int]:
    """Major and minor number of a version: '2.13.0+cpu' -> (2, 13)."""
    major, minor = re.match(r'(\d+)\.(\d+)', version).groups()
    return int(major), int(minor)


def find_torch() -> Torch | None:
    """The torch that `import torch` would take, or None."""
    spec = importlib.util.find_spec('torch')
    if spec is None or not spec.origin:
        return None
    folder = Path(spec.origin).parent
    facts = runpy.run_path(str(folder / 'version.py'))
    return Torch(facts['__version__'], facts.get('cuda'), folder)


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> None:
    """Raises MtpdError for a Python that the kit does not run on."""
    if not SUPPORTED_PYTHON[0] <= tuple(version) <= SUPPORTED_PYTHON[1]:
        raise MtpdError(
            f'Python {version[0]}.{version[1]} is not supported: mmcv 1.7 and the pinned packages need '
            'Python 3.11 or 3.12. Install one and set the environment up again, for example '
            '`rm -rf .venv && make env PYTHON=python3.11`.'
        )


def check_torch(torch: Torch | None) -> str | None:
    """A warning for a torch that the kit was not tested with, None for a tested one.

    Raises MtpdError where there is no torch, or one older than 2.6.
    """
    if torch is None:
        raise MtpdError(
            'torch is not installed in this Python. Run `make env`, which installs the pinned one.'
        )
    if torch.release < OLDEST_TORCH:
        raise MtpdError(
            f'torch {torch.version} is too old: the kit needs torch 2.6 or newer. '
            'Run `pip install torch==2.13.0` (or remove .venv and run `make env`).'
        )
    kind = 'CUDA' if torch.cuda else 'CPU'
    if torch.release == TESTED_TORCH[kind]:
        return None
    return (
        f'torch {torch.version} ({kind}) is not a version the kit was tested with '
        f'(2.13 on CPU, 2.11 on CUDA 13); it will be tried all the same.'
    )


def cpu_cores() -> int:
    """CPU cores this process may use: its affinity mask, and the container's CPU quota."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    )
    quota = _cgroup_values('cpu.max')
    if quota and quota[0] != 'max':
        count = min(count, max(1, int(quota[0]) // int(quota[1])))
    return count


def free_memory() -> int:
    """Bytes of memory that can be taken now without swapping, within the container's limit."""
    free = psutil.virtual_memory().available
    limit, used = _cgroup_values('memory.max'), _cgroup_values('memory.current')
    if limit and used and limit[0] != 'max':
        free = min(free, max(0, int(limit[0]) - int(used[0])))
    return free


def _cgroup_values(name: str) -> list[str]:
    try:
        return Path('/sys/fs/cgroup', name).read_text().split()
    except OSError:
        return []


def nvidia_gpus() -> list[tuple[str, str, str]]:
    """Name, total memory and compute capability ('9.0') of each NVIDIA GPU, by nvidia-smi."""
    if not shutil.which('nvidia-smi'):
        return []
    query = ['nvidia-smi', '--query-gpu=name,memory.total,compute_cap', '--format=csv,noheader']
    try:
        out = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [tuple(field.strip() for field in line.split(',')) for line in out.splitlines()]
    return [row for row in rows if len(row) == 3]


def supports_capability(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code for some architectures, as '8.0;9.0+PTX', runs on a GPU of a compute capability.

    Compiled code runs on GPUs of the same major number and no lower minor one; PTX on all later ones, too; that of
    '9.0a' on 9.0 only.
    """
    for architecture in architectures.split(';'):
        version, _, ptx = architecture.partition('+')
        numbers = tuple(map(int, version.rstrip('a').split('.')))
        if version.endswith('a'):
            fits = numbers == capability
        else:
            fits = numbers <= capability and (bool(ptx) or numbers[0] == capability[0])
        if fits:
            return True
    return False


# What a run ran on, kept beside its results: a number without it can't be repeated.


RECORDED_PACKAGES = (
    'torch',
    'torchvision',
    'mmcv-full',
    'mmdet',
    'numpy',
    'pycocotools',
    'scikit-learn',
)


def describe_environment(threads: int = 0) -> dict:
    """Versions, processor, GPUs and commit as flat values. `threads`: of a run; 0: one per core."""
    git = ['git', '-C', str(ROOT)]
    commit = subprocess.run([*git, 'rev-parse', 'HEAD'], capture_output=True, text=True)
    changed = subprocess.run([*git, 'status', '--porcelain'], capture_output=True, text=True)
    torch = find_torch()
    return {
        'mtpd': __version__,
        'python': platform.python_version(),
        **{name: _package_version(name) for name in RECORDED_PACKAGES},
        'cuda': torch.cuda if torch else None,
        'device': ', '.join(name for name, _, _ in nvidia_gpus()) or 'CPU',
        'processor': _processor(),
        'cpu_count': cpu_cores(),
        'threads': threads or cpu_cores(),
        'platform': platform.platform(),
        'git_commit': commit.stdout.strip() or None,
        'git_changed_files': len(changed.stdout.splitlines()),
    }


def write_environment(path: str | Path, threads: int = 0, **more: str) -> dict:
    """`describe()` and `more`, as environment.json keeps them from the time when it was first written: a notebook that is
    opened later does not change what a run ran on."""
    if kept := read_json_if_valid(Path(path)):
        return kept
    found = describe_environment(threads) | more
    write_json(path, found)
    return found


def _package_version(name: str) -> str | None:
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
