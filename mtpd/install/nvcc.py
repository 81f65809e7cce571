"""The CUDA compiler: an installed one, or pip's, which is fetched into the kit's cache.

pip's CUDA builds of torch bring CUDA's libraries and headers, without the compiler. NVIDIA publishes the compiler on
PyPI from CUDA 13 on; the `-cu12` packages of that name hold ptxas and no nvcc.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import MtpdError
from ..utils import machine
from ..utils.files import check_disk_space
from ..utils.paths import cache_dir
from . import build

USUAL_HOME = Path('/usr/local/cuda')
OLDEST_ON_PYPI = 13
# The parts of PyPI's cuda-toolkit that compile a CUDA file.
TOOLKIT_EXTRAS = 'cccl,crt,cudart,nvcc,nvvm'
NVCC_DISK = machine.GIB  # 0.15 of wheels and 0.3 of files exist side by side for a while
FROM_CONDA = 'conda install -c conda-forge cuda-nvcc cuda-libraries-dev'


class Nvcc(NamedTuple):
    """An nvcc: its path and its CUDA release, such as '13.0'."""

    path: Path
    release: str

    @property
    def home(self) -> Path:
        """The value of CUDA_HOME for it."""
        return self.path.parents[1]


def find_compiler(cuda: str) -> tuple[Nvcc | None, str]:
    """The compiler for a torch of the CUDA release `cuda`, or None and why there is none.

    One of the same release is preferred to one of the same major number, which will do.
    """
    compilers = list(installed_compilers(cuda))
    fitting = [nvcc for nvcc in compilers if major_number(nvcc.release) == major_number(cuda)]
    if fitting:
        return next((nvcc for nvcc in fitting if nvcc.release == cuda), fitting[0]), ''
    if compilers:
        first = compilers[0]
        return None, f'{first.path} is of CUDA {first.release}, torch of CUDA {cuda}'
    return None, f"no nvcc found (torch needs CUDA {cuda}'s)"


def installed_compilers(cuda: str) -> Iterator[Nvcc]:
    """The CUDA compilers of this machine: of CUDA_HOME, this environment, PATH, /usr/local/cuda and the kit's cache."""
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    homes = [sys.prefix, USUAL_HOME, f'{USUAL_HOME}-{cuda}', cached_home(cuda)]
    paths = [Path(folder, 'bin', 'nvcc') for folder in homes]
    if on_path := shutil.which('nvcc'):
        paths.insert(1, Path(on_path))
    if home:
        paths.insert(0, Path(home, 'bin', 'nvcc'))
    for path in dict.fromkeys(paths):
        if release := nvcc_release(path):
            yield Nvcc(path, release)


def nvcc_release(nvcc: Path) -> str | None:
    """The CUDA release of an nvcc; None where there is no such program, or it does not run."""
    try:
        done = subprocess.run([nvcc, '--version'], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'release (\d+\.\d+)', done.stdout)
    return match[1] if match else None


def obstacle_to_fetching(torch: machine.Torch) -> str | None:
    """Why pip has no compiler for this torch, and what to do instead; None where it has one."""
    if not list(torch.folder.parent.glob('nvidia/*/include/cusparse.h')):
        return (
            f"torch {torch.version} has no CUDA headers, unlike pip's CUDA builds. "
            f'Install the CUDA {torch.cuda} toolkit and set CUDA_HOME (in a conda environment: `{FROM_CONDA}`)'
        )
    if major_number(torch.cuda) < OLDEST_ON_PYPI:
        return (
            f'pip has nvcc for CUDA {OLDEST_ON_PYPI} and newer, not for {torch.cuda}. Install the CUDA {torch.cuda} '
            'toolkit and set CUDA_HOME, or a torch for CUDA 13 (`pip install --upgrade torch torchvision`)'
        )
    return None


def cached_home(cuda: str) -> Path:
    """The folder of the fetched compiler of a CUDA release, for this kind of machine: kinds may share a cache."""
    return cache_dir() / 'nvcc' / f'{cuda}-{platform.machine()}' / f'nvidia/cu{major_number(cuda)}'


def fetch_compiler(torch: machine.Torch, echo: Callable = print) -> Nvcc:
    """Fetches the compiler of torch's CUDA release with pip, whole or not at all.

    Raises MtpdError where there is no disk space or no network, or the compiler does not run on this machine.
    """
    home = cached_home(torch.cuda)
    folder = home.parents[1]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        check_disk_space(
            folder.parent,
            NVCC_DISK + build.BUILD_DISK,
            'nvcc, and the build after it,',
            'set MTPD_CACHE to a folder on another disk',
        )
        with tempfile.TemporaryDirectory(prefix='build-nvcc-', dir=cache_dir()) as work:
            echo(f'Fetching nvcc of CUDA {torch.cuda} with pip (about 150 MB) into {folder} ...')
            pip_install_into(
                f'cuda-toolkit[{TOOLKIT_EXTRAS}]=={torch.cuda}.*', Path(work, 'new'), torch
            )
            add_linker_names(Path(work, 'new', home.relative_to(folder)))
            shutil.rmtree(folder, ignore_errors=True)
            Path(work, 'new').rename(folder)
    except OSError as error:
        raise MtpdError(
            f'nvcc could not be put into {folder} ({error}). Set MTPD_CACHE to a writable folder.'
        ) from None
    nvcc = home / 'bin' / 'nvcc'
    if not (release := nvcc_release(nvcc)):
        raise MtpdError(f'The nvcc that pip fetched does not run on this machine ({nvcc}).')
    return Nvcc(nvcc, release)


def pip_install_into(requirement: str, folder: Path, torch: machine.Torch) -> None:
    """Installs a package and its dependencies into `folder`. Raises MtpdError with pip's reason."""
    command = [sys.executable, '-m', 'pip', 'install', '--disable-pip-version-check', '--retries=2']
    command += ['--no-cache-dir', '--only-binary=:all:', '--target', str(folder), requirement]
    # A configuration that says `user` can't be combined with a target.
    env = {**os.environ, 'PIP_USER': '0'}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        lines = build.last_errors(done.stdout + done.stderr, 1)
        raise MtpdError(
            f'pip could not fetch nvcc of CUDA {torch.cuda} ({lines[-1] if lines else "no reason given"}). '
            f"Check the network and pip's index (`pip config list`), or install the CUDA {torch.cuda} toolkit "
            'and set CUDA_HOME.'
        )


def add_linker_names(home: Path) -> None:
    """Gives pip's libraries the names that a linker looks for: `libcudart.so` for `libcudart.so.13`."""
    for library in home.glob('lib/*.so.*'):
        link = library.with_name(library.name.split('.so.')[0] + '.so')
        if not link.exists():
            link.symlink_to(library.name)
    if not (home / 'lib64').exists():
        (home / 'lib64').symlink_to('lib')


def major_number(release: str) -> int:
    return int(release.split('.')[0])
