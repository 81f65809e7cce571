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

from ..errors import MtpdError
from ..utils import machine
from ..utils.files import read_json, write_json
from ..utils.paths import cache_dir
from . import build, nvcc
from .build import Target


def install_ops(
    cuda_arch: str | None = None,
    rebuild: bool = False,
    retry: bool = True,
    echo: Callable = print,
) -> dict:
    """Install mmcv-full with working ops; a few seconds where they are there already.

    Where torch has CUDA and a GPU is here, they are CUDA ops for it. nvcc is fetched with pip if there is none. If CUDA
    ops can't be built, CPU ops take their place, with a warning.

    Args:
        cuda_arch: GPU architectures for CUDA ops, as '9.0' or '8.0;9.0', for GPUs that are elsewhere; 'cpu' for CPU ops.
        rebuild: build even where a wheel is in the cache.
        retry: try CUDA ops also where they could not be built before.
        echo: takes the lines to show.

    Returns:
        `action` ('kept', 'installed' from the cache, 'built'), `ops` ('CPU' or 'CUDA 13.0 (9.0)'),
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
    target, failed = choose_target(torch, cuda_arch), None
    if target.cuda and not (retry or cuda_arch or rebuild):
        failed, reason = earlier_failure(wheel_key(torch, target))
        target = Target(reason, idle_gpu=True) if failed else target
    try:
        result = ensure_ops(torch, target, rebuild, cuda_arch is None, echo)
    except MtpdError as error:
        if cuda_arch or not target.cuda:
            raise
        echo(f'No CUDA ops: {error}\nCPU ops take their place.')
        failed, target = wheel_key(torch, target), Target(failure_summary(error), idle_gpu=True)
        result = ensure_ops(torch, target, False, True, echo)
    warning = None
    if target.idle_gpu and not suit_gpus():
        note_failure(failed, target.reason)
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
    """CUDA ops where torch, nvcc (or pip's) and a GPU (or `cuda_arch`) allow them, else CPU ops, and why.

    Raises MtpdError where `cuda_arch` is given and CUDA ops can't be built, or is no architecture.
    """
    if cuda_arch == 'cpu':
        return Target('CPU ops were asked for')
    if cuda_arch and not re.fullmatch(r'\d+\.\da?(\+PTX)?([; ,]\d+\.\da?(\+PTX)?)*', cuda_arch):
        raise MtpdError(
            f"--cuda-arch {cuda_arch!r} is not an architecture: write '9.0', '8.0;9.0' or 'cpu'."
        )
    gpus = machine.nvidia_gpus() if torch.cuda and not cuda_arch else []
    if not torch.cuda:
        missing = f'torch {torch.version} is built without CUDA'
    elif not cuda_arch and not gpus:
        missing = 'no NVIDIA GPU found (--cuda-arch 9.0 builds for one that is not here)'
    else:
        compiler, missing = nvcc.find_compiler(torch.cuda)
        if compiler is None and (obstacle := nvcc.obstacle_to_fetching(torch)):
            missing = f'{missing}; {obstacle}'
        else:
            arch = cuda_arch or ';'.join(sorted({gpu[2] for gpu in gpus}))
            origin = f'nvcc {compiler.release} of {compiler.home}' if compiler else 'nvcc from pip'
            path = str(compiler.path) if compiler else None
            return Target(origin, torch.cuda, re.sub('[ ,]', ';', arch), path)
    if cuda_arch:
        raise MtpdError(f'CUDA ops for {cuda_arch} cannot be built: {missing}.')
    return Target(missing, idle_gpu=bool(gpus))


def suit_gpus() -> bool:
    """Whether the installed ops are CUDA ops for all GPUs that are here."""
    cuda, architectures, _ = recorded_target()
    here = [machine.major_minor(gpu[2]) for gpu in machine.nvidia_gpus()]
    return bool(cuda and architectures) and all(machine.runs_on(architectures, one) for one in here)


def failure_summary(error: MtpdError) -> str:
    """A failed build's likely cause and log in one line; of another error its first line."""
    text = str(error)
    cause = re.search(r'^Likely cause: (.*)$', text, re.MULTILINE)
    log = re.search(r'^The whole log: (.*)$', text, re.MULTILINE)
    line = cause[1] if cause else text.splitlines()[0]
    return line.rstrip('.') + (f' (log: {log[1]})' if log else '')


def wheel_key(torch: machine.Torch, target: Target) -> str:
    """What a wheel depends on: mmcv, torch, CUDA and architecture, Python, machine."""
    kind = f'cuda{target.cuda}-sm{target.arch}' if target.cuda else 'cpu'
    python = f'cp{sys.version_info.major}{sys.version_info.minor}'
    text = f'mmcv{build.mmcv_version()}-torch{torch.version}-{kind}-{python}-{sysconfig.get_platform()}'
    return re.sub(r'[^\w.+-]', '_', text)


def check_installed(torch: machine.Torch, target: Target, keep_cuda: bool) -> dict:
    """`action` and `ops` if what is installed works and is what is wanted, else nothing.

    CUDA ops run on the CPU too: with `keep_cuda` they stay where CPU ops would do, so that a visit
    from a machine without GPU doesn't cost the next run on one.
    """
    try:
        marker = read_marker() or adopt_installed(torch, target)
        here = Target('', *marker['cuda'])
        keep = [target] + ([here] if keep_cuda and here.cuda and not target.cuda else [])
        if marker['key'] not in [wheel_key(torch, one) for one in keep]:
            return {}
        self_test(full=False)
    except (MtpdError, KeyError, TypeError, AttributeError):
        return {}
    return {'action': 'kept', 'ops': here.ops}


def adopt_installed(torch: machine.Torch, target: Target) -> dict:
    """The marker for an mmcv-full that somebody else installed, if its ops work here."""
    version = metadata.version('mmcv-full')
    if version != build.mmcv_version():
        raise MtpdError(f'mmcv-full {version} is installed, not {build.mmcv_version()}.')
    cuda = self_test()['cuda']
    return write_marker(torch, Target('', torch.cuda, target.arch) if cuda else Target(''))


def write_marker(torch: machine.Torch, target: Target) -> dict:
    marker = {'key': wheel_key(torch, target), 'cuda': [target.cuda, target.arch]}
    marker['extension'] = file_fingerprint(find_extension())
    write_json(marker_file(), marker)
    return marker


def read_marker() -> dict:
    """What `install` noted of the ops that are installed; nothing if it did not install them.

    Raises MtpdError if there are none.
    """
    marker = read_json(marker_file(), {})
    return marker if marker.get('extension') == file_fingerprint(find_extension()) else {}


def note_failure(failed: str | None, reason: str) -> None:
    """Note beside the installed ops why they are not for the GPU, and the key of the wheel that could not be built."""
    marker = read_marker()
    if marker and (marker.get('failed'), marker.get('reason')) != (failed, reason):
        write_json(marker_file(), {**marker, 'failed': failed, 'reason': reason})


def earlier_failure(wanted: str) -> tuple[str | None, str]:
    """The key `wanted`, and why its wheel could not be built; None if nobody has tried."""
    try:
        marker = read_marker()
    except MtpdError:
        marker = {}
    return (wanted, marker['reason']) if marker.get('failed') == wanted else (None, '')


def recorded_target() -> tuple[str | None, str | None, str | None]:
    """CUDA release and architectures of the installed ops, and why they are not for the GPU; None where nothing is noted."""
    try:
        marker = read_marker()
        return (*marker['cuda'], marker.get('reason'))
    except (MtpdError, KeyError, TypeError, AttributeError):
        return None, None, None


def ensure_ops(
    torch: machine.Torch, target: Target, rebuild: bool, keep_cuda: bool, echo: Callable
) -> dict:
    """See that the ops for `target` are installed: `action` and `ops`, as `install` returns them."""
    if not rebuild and (current := check_installed(torch, target, keep_cuda)):
        return current
    return {'action': put_in_place(torch, target, rebuild, echo), 'ops': target.ops}


def put_in_place(torch: machine.Torch, target: Target, rebuild: bool, echo: Callable) -> str:
    """Install the wheel for `target` from the cache, built first if need be, and check its ops."""
    refuse_plain_mmcv()
    folder = cache_dir() / 'wheels' / wheel_key(torch, target)
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


def file_fingerprint(extension: Path) -> list:
    stat = extension.stat()
    return [str(extension), stat.st_size, stat.st_mtime_ns]


def self_test(full: bool = True) -> dict:
    """Run the compiled ops on known values in a fresh Python, and on a GPU that they can use against the CPU.

    Not `full`: nms of the compiled library alone.

    Returns:
        `cuda`, the CUDA release they were built with, or None. `full` has `device`, what `auto` is here; `ops`, those
        that were checked there; `obstacle`, why not on the GPU that torch sees, or None; `gpu`, its name, or None.

    Raises:
        MtpdError: the ops don't load, or give other values.
    """
    root = Path(__file__).parents[2]
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    done = subprocess.run(
        [
            sys.executable,
            '-W',
            'ignore',
            '-m',
            'mtpd.runtime.selftest',
            *(['full'] if full else []),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': paths},
    )
    if done.returncode:
        lines = (done.stderr.strip() or f'it ended with code {done.returncode}').splitlines()
        raise MtpdError(
            f"mmcv's compiled ops do not work: {lines[-1]} Run `mtpd install-ops --rebuild`."
        )
    return json.loads(done.stdout.splitlines()[-1])
