"""`mtpd install-ops`: mmcv-full, with compiled ops that fit the torch that is installed.

pip alone can't be trusted with it: without torch it builds a wheel without ops in three seconds, and
its cache hands that wheel, or one for another torch, to the next environment.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from . import build, machine
from .build import Target
from .errors import MtpdError
from .files import read_json, write_json
from .paths import cache_dir


def install(cuda_arch: str | None = None, rebuild: bool = False, echo: Callable = print) -> dict:
    """Install mmcv-full with working ops; a few seconds where they are there already.

    Args:
        cuda_arch: GPU architectures for CUDA ops, as '9.0' or '8.0;9.0'; 'cpu' for CPU ops. Default:
            CUDA ops for the GPUs that are here, if torch has CUDA and nvcc matches it; else CPU ops.
        rebuild: build even where a wheel is in the cache.
        echo: takes the lines to show.

    Returns:
        `action` ('kept', 'installed' from the cache, 'built'), `ops` ('CPU' or 'CUDA 13.0 (9.0)'),
        `reason`, `mmcv`, `torch`, `seconds`.

    Raises:
        MtpdError: torch or a tool is missing, the build fails, or the ops give wrong values.
    """
    started = time.monotonic()
    machine.check_python()
    torch = machine.find_torch()
    if warning := machine.check_torch(torch):
        echo(f'Warning: {warning}')
    target = choose_target(torch, cuda_arch)
    found = {} if rebuild else installed(torch, target, keep_cuda=cuda_arch is None)
    if not found:
        found = {'action': put_in_place(torch, target, rebuild, echo), 'ops': target.ops}
    result = {
        'mmcv': build.mmcv_version(),
        'torch': torch.version,
        'reason': target.reason,
        **found,
    }
    result['seconds'] = round(time.monotonic() - started, 1)
    echo(
        f'mmcv-full {result["mmcv"]} with {result["ops"]} ops for torch {result["torch"]} works '
        f'({result["action"]}; {result["reason"]}).'
    )
    return result


def choose_target(torch: machine.Torch, cuda_arch: str | None = None) -> Target:
    """CUDA ops where torch, nvcc and a GPU (or `cuda_arch`) allow them, else CPU ops, and why."""
    if cuda_arch == 'cpu':
        return Target('CPU ops were asked for')
    if cuda_arch and not re.fullmatch(r'\d+\.\da?(\+PTX)?([; ,]\d+\.\da?(\+PTX)?)*', cuda_arch):
        raise MtpdError(
            f"--cuda-arch {cuda_arch!r} is not an architecture: write '9.0', '8.0;9.0' or 'cpu'."
        )
    nvcc = machine.find_nvcc() if torch.cuda else None
    gpus = machine.gpus() if torch.cuda and not cuda_arch else []
    if not torch.cuda:
        missing = f'torch {torch.version} is built without CUDA'
    elif nvcc is None:
        missing = f"no nvcc found (torch needs CUDA {torch.cuda}'s; set CUDA_HOME)"
    elif nvcc[1].split('.')[0] != torch.cuda.split('.')[0]:
        missing = f'{nvcc[0]} is of CUDA {nvcc[1]}, torch of CUDA {torch.cuda}'
    elif not cuda_arch and not gpus:
        missing = 'no NVIDIA GPU found (--cuda-arch 9.0 builds for one that is not here)'
    else:
        arch = (
            re.sub('[ ,]', ';', cuda_arch)
            if cuda_arch
            else ';'.join(sorted({gpu[2] for gpu in gpus}))
        )
        return Target(f'nvcc {nvcc[1]} matches torch', torch.cuda, arch, nvcc[0])
    if cuda_arch:
        raise MtpdError(f'CUDA ops for {cuda_arch} cannot be built: {missing}.')
    return Target(missing)


def key(torch: machine.Torch, target: Target) -> str:
    """What a wheel depends on: mmcv, torch, CUDA and architecture, Python, machine."""
    kind = f'cuda{target.cuda}-sm{target.arch}' if target.cuda else 'cpu'
    python = f'cp{sys.version_info.major}{sys.version_info.minor}'
    text = f'mmcv{build.mmcv_version()}-torch{torch.version}-{kind}-{python}-{sysconfig.get_platform()}'
    return re.sub(r'[^\w.+-]', '_', text)


def installed(torch: machine.Torch, target: Target, keep_cuda: bool) -> dict:
    """`action` and `ops` if what is installed works and is what is wanted, else nothing.

    CUDA ops run on the CPU too: with `keep_cuda` they stay where CPU ops would do, so that a visit
    from a machine without GPU doesn't cost the next run on one.
    """
    try:
        marker = read_json(marker_file(), {})
        if marker.get('extension') != fingerprint(find_extension()):
            marker = adopt(torch, target)
        here = Target('', *marker['cuda'])
        keep = [target] + ([here] if keep_cuda and here.cuda and not target.cuda else [])
        if marker['key'] not in [key(torch, one) for one in keep]:
            return {}
        self_test(full=False)
    except (MtpdError, KeyError, TypeError, AttributeError):
        return {}
    return {'action': 'kept', 'ops': here.ops}


def adopt(torch: machine.Torch, target: Target) -> dict:
    """The marker for an mmcv-full that somebody else installed, if its ops work here."""
    version = metadata.version('mmcv-full')
    if version != build.mmcv_version():
        raise MtpdError(f'mmcv-full {version} is installed, not {build.mmcv_version()}.')
    cuda = self_test()
    return write_marker(torch, Target('', torch.cuda, target.arch) if cuda else Target(''))


def write_marker(torch: machine.Torch, target: Target) -> dict:
    marker = {'key': key(torch, target), 'cuda': [target.cuda, target.arch]}
    marker['extension'] = fingerprint(find_extension())
    write_json(marker_file(), marker)
    return marker


def put_in_place(torch: machine.Torch, target: Target, rebuild: bool, echo: Callable) -> str:
    """Install the wheel for `target` from the cache, built first if need be, and check its ops."""
    refuse_plain_mmcv()
    folder = cache_dir() / 'wheels' / key(torch, target)
    for action in ('installed', 'built'):
        wheel = next(iter(folder.glob('*.whl')), None)
        if action == 'built' or rebuild or wheel is None:
            action, wheel = 'built', build_into(folder, torch, target, echo)
        try:
            pip_install(build.check_wheel(wheel))
            self_test()
            break
        except MtpdError as error:
            if action == 'built':
                raise
            echo(f'The cached wheel is of no use ({error}); building another.')
    write_marker(torch, target)
    return action


def build_into(folder: Path, torch: machine.Torch, target: Target, echo: Callable) -> Path:
    """Build the wheel and put it into the cache, whole or not at all."""
    cache = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in cache.glob('build-*'):  # by a build that was killed
            if time.time() - left.stat().st_mtime > 86400:
                shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix='build-', dir=cache))
    except OSError as error:
        raise MtpdError(
            f'The cache {cache} is not writable ({error}). Set MTPD_CACHE to a folder that is.'
        ) from None
    try:
        log = cache / 'logs' / f'{folder.name}.log'
        wheel = build.build_wheel(target, torch, work, log, echo)
        for old in folder.glob('*.whl'):
            old.unlink()
        return wheel.replace(folder / wheel.name)
    except OSError as error:
        raise MtpdError(f'mmcv-full could not be built in {cache}: {error}.') from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def refuse_plain_mmcv() -> None:
    """The package `mmcv` (without ops) lies in the same folder as mmcv-full and would shadow it."""
    try:
        version = metadata.version('mmcv')
    except metadata.PackageNotFoundError:
        return
    raise MtpdError(
        f'The package mmcv {version} is installed; it and mmcv-full overwrite each other. '
        f'Run `{sys.executable} -m pip uninstall mmcv`, then repeat.'
    )


def pip_install(wheel: Path) -> None:
    command = [
        sys.executable,
        '-m',
        'pip',
        'install',
        '--no-deps',
        '--no-index',
        '--force-reinstall',
        '--quiet',
    ]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True)
    if done.returncode:
        raise MtpdError(
            f'pip could not install {wheel}:\n{(done.stderr or done.stdout).strip()[-800:]}'
        )


def marker_file() -> Path:
    """Says which wheel `install` put into this environment."""
    return Path(sys.prefix) / 'mtpd-ops.json'


def find_extension() -> Path:
    """The compiled library of the installed mmcv. Raises MtpdError if there is none."""
    places = {Path(sysconfig.get_path(name), 'mmcv') for name in ('platlib', 'purelib')}
    for place in places:
        for file in place.glob('_ext*.so'):
            return file
    raise MtpdError('mmcv has no compiled ops in this environment. Run `mtpd install-ops`.')


def fingerprint(extension: Path) -> list:
    stat = extension.stat()
    return [str(extension), stat.st_size, stat.st_mtime_ns]


def self_test(full: bool = True) -> str | None:
    """Run nms and roi_align on known values in a fresh Python; the CUDA release they were built with.

    Raises MtpdError if the ops don't load or give other values. Not `full`: only the compiled
    library itself, not mmcv's and torchvision's Python around it (half the time).
    """
    root = Path(__file__).parents[1]
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'mtpd.selftest', *(['full'] if full else [])],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': paths},
    )
    if done.returncode:
        lines = (done.stderr.strip() or f'it ended with code {done.returncode}').splitlines()
        raise MtpdError(
            f"mmcv's compiled ops do not work: {lines[-1]} Run `mtpd install-ops --rebuild`."
        )
    return json.loads(done.stdout.splitlines()[-1])['cuda']
