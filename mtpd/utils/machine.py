"""This machine, its Python and its torch, without importing torch, which takes seconds; environment.json of a run."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import runpy
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
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
NEEDED_MMDET = (2, 28)
# Set for the self-test of mmcv's ops, which needs no mmdet.
OPS_ONLY_VARIABLE = 'MTPD_OPS_ONLY'
# Distributions whose package has another name.
MODULES = {'mmcv-full': 'mmcv', 'scikit-learn': 'sklearn', 'opencv-python-headless': 'cv2'}
TESTED_TORCH = {'CPU': (2, 13), 'CUDA': (2, 11)}
GIB = 1024**3


class Torch(NamedTuple):
    """The installed torch: `version` such as '2.13.0+cpu', `cuda` such as '13.0' or None, the package's `folder`."""

    version: str
    cuda: str | None
    folder: Path

    @property
    def release(self) -> tuple[int, int]:
        return major_minor(self.version)


class Package(NamedTuple):
    """A package as `import` finds it.

    Attributes:
        version: by its version.py; None where that states none.
        folder: of its files.
        origin: what makes Python take it, such as 'PYTHONPATH'; None where it is installed in this environment.
        remedy: what to do to have the installed one; '' where it is that.
    """

    version: str | None
    folder: Path
    origin: str | None = None
    remedy: str = ''

    @property
    def text(self) -> str:
        """The version; of a package that is not installed in this environment also folder and origin."""
        version = self.version or 'of an unknown version'
        return f'{version} ({self.folder}, by {self.origin})' if self.origin else version


class Gpu(NamedTuple):
    """An NVIDIA GPU as nvidia-smi lists it: 'NVIDIA H200', '143771 MiB', compute capability '9.0'."""

    name: str
    memory: str
    capability: str


def major_minor(version: str) -> tuple[int, int]:
    """Major and minor number of a version: '2.13.0+cpu' -> (2, 13)."""
    major, minor = re.match(r'(\d+)\.(\d+)', version).groups()
    return int(major), int(minor)


def find_torch() -> Torch | None:
    """The torch that `import torch` would import, or None."""
    spec = importlib.util.find_spec('torch')
    if spec is None or not spec.origin:
        return None
    folder = Path(spec.origin).parent
    version = runpy.run_path(str(folder / 'version.py'))
    return Torch(version['__version__'], version.get('cuda'), folder)


def find_package(name: str) -> Package | None:
    """The package that `import name` would import, or None."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin:
        return None
    folder = Path(spec.origin).parent
    try:
        text = (folder / 'version.py').read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError):
        text = ''
    version = re.search(r'^__version__ *= *[\'"](\d+\.\d[^\'"]*)', text, re.MULTILINE)
    return Package(version and version[1], folder, *_origin_and_remedy(name, folder.parent))


def _origin_and_remedy(name: str, parent: Path) -> tuple[str | None, str]:
    """As of `Package`, for a package whose folder lies in `parent`."""
    installed = [sysconfig.get_path('purelib'), sysconfig.get_path('platlib')]
    installed += [*site.getsitepackages(), site.getusersitepackages()]
    if _is_one_of(parent, installed):
        return None, ''
    if _is_one_of(parent, filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))):
        return 'PYTHONPATH', f'Take {parent} out of PYTHONPATH.'
    if _is_one_of(parent, [Path.cwd()]):
        return 'the working directory', 'Start in another folder.'
    if name in pinned_versions():
        return 'an editable installation', install_hint(name)
    names = ' '.join([name, *(key for key, module in MODULES.items() if module == name)])
    remedy = f'Run `{sys.executable} -m pip uninstall {names}`, then `make env`.'
    return 'an editable installation', remedy


def _is_one_of(folder: Path, others: Iterable[str | Path]) -> bool:
    return folder.resolve() in {Path(other).resolve() for other in others}


def pinned_versions() -> dict[str, str]:
    """Package -> version of requirements/base.txt."""
    text = (ROOT / 'requirements' / 'base.txt').read_text()
    return dict(re.findall(r'^([\w-]+)==(\S+)', text, re.MULTILINE))


def install_hint(name: str) -> str:
    """A sentence with the command that installs a package's pinned version; of one without a pin `make env`."""
    pin = pinned_versions().get(name)
    if not pin:
        return 'Run `make env`.'
    return f'Run `{sys.executable} -m pip install --force-reinstall --no-deps {name}=={pin}`.'


def check_mmdet(mmdet: Package | None) -> None:
    """Raises MtpdError where there is no mmdet, or one of another release than 2.28."""
    if mmdet is None:
        raise MtpdError(f'mmdet is not installed in this Python. {install_hint("mmdet")}')
    if mmdet.version is None or major_minor(mmdet.version) != NEEDED_MMDET:
        raise MtpdError(
            f'mmdet is {mmdet.text}, and the kit needs 2.28. {mmdet.remedy or install_hint("mmdet")}'
        )


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> None:
    """Raises MtpdError for a Python that the kit does not support."""
    if not SUPPORTED_PYTHON[0] <= tuple(version) <= SUPPORTED_PYTHON[1]:
        raise MtpdError(
            f'Python {version[0]}.{version[1]} is not supported: mmcv 1.7 and the pinned packages need '
            'Python 3.11 or 3.12. Install one and set the environment up again, for example '
            '`rm -rf .venv && make env PYTHON=python3.11`.'
        )


def check_torch(torch: Torch | None) -> str | None:
    """A warning for a torch that the kit was not tested with, None for a tested one.

    Raises MtpdError where there is no torch, or an older one than 2.6.
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
        f'(2.13 on CPU, 2.11 on CUDA 13); it is tried nevertheless.'
    )


def cpu_cores() -> int:
    """The number of CPU cores that this process may use, by its affinity and the container's quota."""
    affinity = getattr(os, 'sched_getaffinity', None)  # Linux
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _cgroup_values('cpu.max')  # microseconds in a period, and the period; 'max': no limit
    if quota and quota[0] != 'max':
        count = min(count, max(1, int(quota[0]) // int(quota[1])))
    return count


def free_memory() -> int:
    """Bytes of memory that are free without swapping, within the container's limit."""
    free = psutil.virtual_memory().available
    limit, used = _cgroup_values('memory.max'), _cgroup_values('memory.current')
    if limit and used and limit[0] != 'max':
        free = min(free, max(0, int(limit[0]) - int(used[0])))
    return free


def _cgroup_values(name: str) -> list[str]:
    """The words of a file of the container's control group (version 2); none where there is no such file."""
    try:
        return Path('/sys/fs/cgroup', name).read_text().split()
    except OSError:
        return []


def nvidia_gpus() -> list[Gpu]:
    """The NVIDIA GPUs by nvidia-smi; none where that is missing or fails."""
    if not shutil.which('nvidia-smi'):
        return []
    query = ['nvidia-smi', '--query-gpu=name,memory.total,compute_cap', '--format=csv,noheader']
    try:
        out = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[field.strip() for field in line.split(',')] for line in out.splitlines()]
    return [Gpu(*row) for row in rows if len(row) == 3]


def supports_capability(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code for `architectures`, such as '8.0;9.0+PTX', runs on a GPU of this compute capability.

    Compiled code runs on GPUs of the same major number and no lower minor number. '+PTX' adds all later GPUs. '9.0a' is
    for 9.0 alone. Source: CUDA C++ Programming Guide, "Application Compatibility".
    """
    return any(_runs_on(architecture, capability) for architecture in architectures.split(';'))


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    version, _, ptx = architecture.partition('+')
    if version.endswith('a'):
        return major_minor(version) == capability
    older = major_minor(version) <= capability
    return older and (bool(ptx) or major_minor(version)[0] == capability[0])


# What a run ran on, beside its results: without it a number can't be repeated.

RECORDED_PACKAGES = (
    'torch',
    'torchvision',
    'mmcv-full',
    'mmdet',
    'numpy',
    'pycocotools',
    'scikit-learn',
)


def write_environment(path: str | Path, threads: int = 0, **more: str) -> dict:
    """`describe_environment` and `more`, which are written to `path` unless it exists: then its content.

    So a notebook that is opened later does not change what a run ran on.
    """
    if recorded := read_json_if_valid(Path(path)):
        return recorded
    environment = describe_environment(threads) | more
    write_json(path, environment)
    return environment


def describe_environment(threads: int = 0) -> dict:
    """Versions, processor, GPUs and git commit as flat values. `threads`: those of a run; 0: one per core."""
    torch = find_torch()
    return {
        'mtpd': __version__,
        'python': platform.python_version(),
        **{name: package_version(name) for name in RECORDED_PACKAGES},
        'cuda': torch.cuda if torch else None,
        'device': ', '.join(gpu.name for gpu in nvidia_gpus()) or 'CPU',
        'processor': _processor_name(),
        'cpu_count': cpu_cores(),
        'threads': threads or cpu_cores(),
        'platform': platform.platform(),
        'git_commit': _git_output('rev-parse', 'HEAD').strip() or None,
        'git_changed_files': len(_git_output('status', '--porcelain').splitlines()),
    }


def _git_output(*arguments: str) -> str:
    command = ['git', '-C', str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:  # git is not installed
        return ''


def package_version(name: str) -> str | None:
    """The version of a distribution's package as it is imported, with its folder where that is another installation.

    None where it is not installed.
    """
    package = find_package(MODULES.get(name, name))
    if package and package.version:
        return package.text
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor_name() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':', 1)[1].strip() for line in lines if 'model name' in line)
    except (OSError, StopIteration):
        return platform.machine()
