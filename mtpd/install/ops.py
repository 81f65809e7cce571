"""`mtpd install-ops`: mmcv-full with compiled ops that fit the installed torch.

pip alone does not ensure that: without torch it builds a wheel without ops in three seconds, and its cache hands that
wheel, or one for another torch, to the next environment.

`install_ops` chooses what to build (`choose_target`), keeps what is installed where that works (`kept_ops`), else
installs a wheel from the cache, a release's or a new one (`install_wheel`), tests it (`self_test`) and records it in a marker file.
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

from ..errors import MtpdError
from ..utils import machine
from ..utils.files import read_json, write_json
from ..utils.paths import cache_dir
from ..utils.processes import same_imports
from . import build, nvcc, published
from .build import Target

ONE_DAY = 86400  # seconds


def install_ops(
    cuda_arch: str | None = None,
    rebuild: bool = False,
    retry: bool = True,
    echo: Callable = print,
) -> dict:
    """Install mmcv-full with ops that work; a few seconds where they are installed already.

    Where torch has CUDA and this machine a GPU, they are CUDA ops for it; nvcc is fetched with pip if there is none.
    Where CUDA ops can't be built, CPU ops take their place, with a warning.

    Args:
        cuda_arch: GPU architectures, '9.0' or '8.0;9.0', for CUDA ops for GPUs of other machines; 'cpu' for CPU ops.
        rebuild: build even where a wheel is in the cache.
        retry: try CUDA ops also where they could not be built before.
        echo: takes the lines to show.

    Returns:
        `action` ('kept', 'installed' from the cache, 'fetched' from a release, 'built'), `ops` ('CPU' or 'CUDA 13.0 (9.0)'),
        `reason`, `warning` (None, or why a GPU stays unused), `mmcv`, `torch`, `seconds`.

    Raises:
        MtpdError: torch or a tool is missing, the build of CPU ops fails, or that of CUDA ops for a given `cuda_arch`,
            or the ops give wrong values.
    """
    started = time.monotonic()
    machine.check_python()
    torch = machine.find_torch()
    if warning := machine.check_torch(torch):
        echo(f'Warning: {warning}')

    target = wanted = choose_target(torch, cuda_arch)
    skip_failed = wanted.cuda and not (retry or cuda_arch or rebuild)
    if skip_failed and (reason := earlier_failure(wheel_key(torch, wanted))):
        target = Target(reason, idle_gpu=True)
    keep_cuda = cuda_arch is None
    try:
        result = ensure_ops(torch, target, rebuild, keep_cuda, echo)
    except MtpdError as error:
        if cuda_arch or not target.cuda:
            raise
        echo(f'No CUDA ops: {error}\nCPU ops are built instead.')
        target = Target(failure_summary(error), idle_gpu=True)
        result = ensure_ops(torch, target, False, keep_cuda, echo)

    warning = None
    if target.idle_gpu and not installed_ops_fit_gpus():
        record_failure(wheel_key(torch, wanted) if wanted.cuda else None, target.reason)
        warning = (
            f'there are no CUDA ops for the GPU, and `auto` takes the CPU: {target.reason}. '
            '`mtpd install-ops` tries again.'
        )
    result |= {'mmcv': build.mmcv_version(), 'torch': torch.version, 'reason': target.reason}
    result |= {'warning': warning, 'seconds': round(time.monotonic() - started, 1)}
    because = '' if warning else f'; {target.reason}'
    echo(
        f'mmcv-full {result["mmcv"]} with {result["ops"]} ops for torch {result["torch"]} works '
        f'({result["action"]}{because}).'
    )
    if warning:
        echo(f'Warning: {warning}')
    return result


def choose_target(torch: machine.Torch, cuda_arch: str | None = None) -> Target:
    """CUDA ops where torch, nvcc (installed or pip's) and a GPU or `cuda_arch` allow them, else CPU ops; and why.

    Raises MtpdError where `cuda_arch` is no architecture, or CUDA ops for it can't be built.
    """
    if cuda_arch == 'cpu':
        return Target('CPU ops were requested')
    if cuda_arch and not re.fullmatch(r'\d+\.\da?(\+PTX)?([; ,]\d+\.\da?(\+PTX)?)*', cuda_arch):
        raise MtpdError(
            f"--cuda-arch {cuda_arch!r} is not an architecture: write '9.0', '8.0;9.0' or 'cpu'."
        )
    gpus = machine.nvidia_gpus() if torch.cuda and not cuda_arch else []
    if not torch.cuda:
        missing = f'torch {torch.version} is built without CUDA'
    elif not cuda_arch and not gpus:
        missing = 'no NVIDIA GPU found (--cuda-arch 9.0 builds for a GPU of another machine)'
    else:
        compiler, missing = nvcc.find_compiler(torch.cuda)
        if compiler is None and (obstacle := nvcc.obstacle_to_fetching(torch)):
            missing = f'{missing}; {obstacle}'
        else:
            arch = cuda_arch or ';'.join(sorted({gpu.capability for gpu in gpus}))
            origin = f'nvcc {compiler.release} of {compiler.home}' if compiler else 'nvcc from pip'
            path = str(compiler.path) if compiler else None
            return Target(origin, torch.cuda, re.sub('[ ,]', ';', arch), path)
    if cuda_arch:
        raise MtpdError(f'CUDA ops for {cuda_arch} cannot be built: {missing}.')
    return Target(missing, idle_gpu=bool(gpus))


def wheel_key(torch: machine.Torch, target: Target) -> str:
    """The wheel's folder in the cache: the versions of mmcv, torch, CUDA and Python, architecture and platform."""
    kind = f'cuda{target.cuda}-sm{target.arch}' if target.cuda else 'cpu'
    python = f'cp{sys.version_info.major}{sys.version_info.minor}'
    text = f'mmcv{build.mmcv_version()}-torch{torch.version}-{kind}-{python}-{sysconfig.get_platform()}'
    return re.sub(r'[^\w.+-]', '_', text)


def failure_summary(error: MtpdError) -> str:
    """The likely cause and the log of a failed build in one line; the first line of another error."""
    text = str(error)
    cause = re.search(r'^Likely cause: (.*)$', text, re.MULTILINE)
    log = re.search(r'^The whole log: (.*)$', text, re.MULTILINE)
    summary = (cause[1] if cause else text.splitlines()[0]).rstrip('.')
    return f'{summary} (log: {log[1]})' if log else summary


def ensure_ops(
    torch: machine.Torch, target: Target, rebuild: bool, keep_cuda: bool, echo: Callable
) -> dict:
    """Installs the ops for `target` unless they are; returns `action` and `ops` as `install_ops` does."""
    if not rebuild and (current := kept_ops(torch, target, keep_cuda)):
        return current
    return {'action': install_wheel(torch, target, rebuild, echo), 'ops': target.ops}


# The ops that are installed.


def kept_ops(torch: machine.Torch, target: Target, keep_cuda: bool) -> dict:
    """`action` and `ops` where the installed ops work and are those of `target`, else an empty dict.

    With `keep_cuda` CUDA ops stay where CPU ops would do, as they run on the CPU, too: a visit from a machine without
    GPU does not cost the next run on one.
    """
    try:
        marker = read_marker() or adopt_foreign_ops(torch, target)
        installed = Target('', *marker['cuda'])
        accepted = [wheel_key(torch, target)]
        if keep_cuda and installed.cuda and not target.cuda:
            accepted.append(wheel_key(torch, installed))
        if marker['key'] not in accepted:
            return {}
        self_test(full=False)
    except (MtpdError, KeyError, TypeError, AttributeError):
        return {}
    return {'action': 'kept', 'ops': installed.ops}


def adopt_foreign_ops(torch: machine.Torch, target: Target) -> dict:
    """The marker for an mmcv-full that was installed otherwise. Raises MtpdError where it does not work here."""
    version = metadata.version('mmcv-full')
    if version != build.mmcv_version():
        raise MtpdError(f'mmcv-full {version} is installed, not {build.mmcv_version()}.')
    cuda = self_test()['cuda']
    return write_marker(torch, Target('', torch.cuda, target.arch) if cuda else Target(''))


def installed_ops_fit_gpus() -> bool:
    """Whether the installed ops are CUDA ops for all GPUs of this machine."""
    cuda, architectures, _ = recorded_target()
    if not (cuda and architectures):
        return False
    capabilities = [machine.major_minor(gpu.capability) for gpu in machine.nvidia_gpus()]
    return all(machine.supports_capability(architectures, each) for each in capabilities)


def recorded_target() -> tuple[str | None, str | None, str | None]:
    """CUDA release and architectures of the installed ops, and why they are not for the GPU; None: not recorded."""
    try:
        marker = read_marker()
        return (*marker['cuda'], marker.get('reason'))
    except (MtpdError, KeyError, TypeError, AttributeError):
        return None, None, None


def record_failure(failed_key: str | None, reason: str) -> None:
    """Adds to the marker why the ops are not for the GPU, and the key of the wheel that could not be built."""
    marker = read_marker()
    if marker and (marker.get('failed'), marker.get('reason')) != (failed_key, reason):
        write_json(marker_file(), {**marker, 'failed': failed_key, 'reason': reason})


def earlier_failure(key: str) -> str | None:
    """Why the wheel of this key could not be built before; None where no failure is recorded."""
    try:
        marker = read_marker()
    except MtpdError:
        return None
    return marker['reason'] if marker.get('failed') == key else None


def write_marker(torch: machine.Torch, target: Target) -> dict:
    marker = {'key': wheel_key(torch, target), 'cuda': [target.cuda, target.arch]}
    marker['extension'] = file_fingerprint(find_extension())
    write_json(marker_file(), marker)
    return marker


def read_marker() -> dict:
    """The marker of the installed ops; empty where `write_marker` did not record these ops.

    Raises MtpdError where there are none.
    """
    marker = read_json(marker_file(), {})
    return marker if marker.get('extension') == file_fingerprint(find_extension()) else {}


def marker_file() -> Path:
    """The file that says which wheel `install_ops` put into this environment."""
    return Path(sys.prefix) / 'mtpd-ops.json'


def find_extension() -> Path:
    """The compiled library of the installed mmcv. Raises MtpdError where there is none."""
    folders = {Path(sysconfig.get_path(name), 'mmcv') for name in ('platlib', 'purelib')}
    for folder in folders:
        for file in folder.glob('_ext*.so'):
            return file
    raise MtpdError('mmcv has no compiled ops in this environment. Run `mtpd install-ops`.')


def file_fingerprint(file: Path) -> list:
    stat = file.stat()
    return [str(file), stat.st_size, stat.st_mtime_ns]


# Wheels.


def install_wheel(torch: machine.Torch, target: Target, rebuild: bool, echo: Callable) -> str:
    """Installs the wheel for `target` from the cache, a release's, or builds it; returns 'installed', 'fetched' or 'built'."""
    refuse_plain_mmcv()
    folder = cache_dir() / 'wheels' / wheel_key(torch, target)
    cached = next(folder.glob('*.whl'), None)
    action = 'built'
    if cached and not rebuild:
        try:
            install_and_test(cached)
            action = 'installed'
        except MtpdError as error:
            echo(f'The cached wheel cannot be used ({error}); building another.')
    elif not rebuild and (wheel := published.fetch_published(folder.name, folder, echo)):
        try:
            install_and_test(wheel)
            action = 'fetched'
        except MtpdError as error:
            echo(f"The release's wheel cannot be used ({error}); building one.")
    if action == 'built':
        install_and_test(build_into_cache(folder, torch, target, echo))
    write_marker(torch, target)
    return action


def install_and_test(wheel: Path) -> None:
    pip_install_wheel(build.check_wheel(wheel))
    self_test()


def build_into_cache(folder: Path, torch: machine.Torch, target: Target, echo: Callable) -> Path:
    """Builds the wheel and moves it into `folder` of the cache, whole or not at all."""
    cache = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in cache.glob('build-*'):  # of a build that was killed
            if time.time() - leftover.stat().st_mtime > ONE_DAY:
                shutil.rmtree(leftover, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix='build-', dir=cache))
    except OSError as error:
        raise MtpdError(
            f'The cache {cache} is not writable ({error}). Set MTPD_CACHE to a folder that is.'
        ) from None
    try:
        if target.cuda and not target.nvcc:
            target = target._replace(nvcc=str(nvcc.fetch_compiler(torch, echo).path))
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
    """Raises MtpdError where an mmcv is imported that lies elsewhere, or `mmcv` (without ops) is installed.

    The latter has mmcv-full's folder.
    """
    package = machine.find_package('mmcv')
    if package and package.origin:
        raise MtpdError(f'mmcv is {package.text}. {package.remedy}')
    try:
        version = metadata.version('mmcv')
    except metadata.PackageNotFoundError:
        return
    raise MtpdError(
        f'The package mmcv {version} is installed; it and mmcv-full overwrite each other. '
        f'Run `{sys.executable} -m pip uninstall mmcv`, then repeat.'
    )


def pip_install_wheel(wheel: Path) -> None:
    command = [sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-index']
    command += ['--force-reinstall', '--quiet', str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise MtpdError(
            f'pip could not install {wheel}:\n{(done.stderr or done.stdout).strip()[-800:]}'
        )


def self_test(full: bool = True) -> dict:
    """Run the compiled ops on known values in a new Python process, and compare them on a GPU with those on the CPU.

    Not `full`: only nms of the compiled library, without mmcv's and torchvision's Python around it (half the time).

    Returns:
        `cuda`, the CUDA release they were built with, or None. `full` adds `device`, what `auto` is here; `ops`, those
        that were checked on it; `obstacle`, why not on the GPU that torch sees, or None; `gpu`, its name, or None.

    Raises:
        MtpdError: the ops don't load, or give other values.
    """
    command = [sys.executable, '-W', 'ignore', '-m', 'mtpd.runtime.selftest']
    if full:
        command.append('full')
    env = os.environ | same_imports() | {machine.OPS_ONLY_VARIABLE: '1'}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        lines = (done.stderr.strip() or f'it ended with code {done.returncode}').splitlines()
        kind, _, text = lines[-1].partition('MtpdError: ')
        if text:
            raise MtpdError(text)  # it names its fix
        raise MtpdError(
            f"mmcv's compiled ops do not work: {kind} Run `mtpd install-ops --rebuild`."
        )
    return json.loads(done.stdout.splitlines()[-1])
