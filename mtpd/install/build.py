"""Build mmcv-full's wheel, with its compiled ops, from the source distribution on PyPI."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import MtpdError
from ..utils import machine

REQUIREMENT = Path(__file__).parents[2] / 'requirements' / 'mmcv.txt'
SHARED_HEADER = '#include <torch/types.h>\n'
BUILD_DISK = 2 * machine.GIB
MEMORY_PER_JOB = 2 * machine.GIB
MEMORY_PER_CUDA_JOB = 3 * machine.GIB  # 2.1 of it were seen
CUDA_FILE_COST = 6  # times as long as a C++ file
CXX20_FROM = (2, 14)  # torch


class Target(NamedTuple):
    """What to build for: CUDA's release and GPU architectures ('9.0' or '8.0;9.0'), or the CPU only.

    `nvcc`: None where it has to be fetched first. `idle_gpu`: there is a GPU, which CPU ops leave unused.
    """

    reason: str
    cuda: str | None = None
    arch: str | None = None
    nvcc: str | None = None
    idle_gpu: bool = False

    @property
    def ops(self) -> str:
        return f'CUDA {self.cuda} ({self.arch})' if self.cuda else 'CPU'


def mmcv_version() -> str:
    """The pinned version; requirements/mmcv.txt is the one place that states it."""
    return re.search(r'^mmcv-full==([\w.]+)', REQUIREMENT.read_text(), re.MULTILINE).group(1)


def build_wheel(
    target: Target, torch: machine.Torch, work: Path, log: Path, echo: Callable
) -> Path:
    """Build in the folder `work`; the output goes to `log`.

    Raises MtpdError with the last errors and the likely cause; the log stays.
    """
    compiler = find_compiler_command(work)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text('')
    echo(f'Fetching the source of mmcv-full {mmcv_version()} ...')
    source = fetch_source(work, log)
    choose_cxx_standard(source / 'setup.py', torch)
    jobs = job_count(MEMORY_PER_CUDA_JOB if target.cuda else MEMORY_PER_JOB)
    duration = 'half an hour of processor time' if target.cuda else 'a few minutes'
    echo(
        f'Compiling the {target.ops} ops with {" ".join(compiler)}, {jobs} at a time: '
        f'{duration}, once for this torch and Python.'
    )
    command = [sys.executable, 'setup.py', 'bdist_wheel', '--dist-dir', str(work / 'dist')]
    environment = build_environment(target, torch, compiler, work, jobs)
    slow = len(list(source.glob('mmcv/ops/csrc/pytorch/cuda/*.cu'))) if target.cuda else 0
    run_build(
        command, log, lambda lines: show_progress(lines, echo, slow), cwd=source, env=environment
    )
    return check_wheel(next((work / 'dist').glob('*.whl')))


def find_compiler_command(work: Path) -> list[str]:
    """The C++ compiler's command. Raises MtpdError for everything that is missing, at once."""
    problems = []
    compiler = shlex.split(os.environ.get('CXX', '')) or ['c++' if shutil.which('c++') else 'g++']
    if not shutil.which(compiler[0]):
        problems.append(f'No C++ compiler found ({compiler[0]}). {INSTALL_COMPILER}')
    if not Path(sysconfig.get_path('include'), 'Python.h').is_file():
        problems.append(f"Python's header files are missing. {INSTALL_HEADERS}")
    free = shutil.disk_usage(work).free
    if free < BUILD_DISK:
        problems.append(
            f'Only {free / machine.GIB:.1f} GiB are free for {work.parent}; the build needs '
            f'{BUILD_DISK // machine.GIB}. Free some, or set MTPD_CACHE to a folder on another disk.'
        )
    if problems:
        raise MtpdError(
            'mmcv-full cannot be built here:\n' + '\n'.join(f'- {text}' for text in problems)
        )
    return compiler


def job_count(memory: int = MEMORY_PER_JOB) -> int:
    """As many compilers as there are cores, and bytes of memory for each; MAX_JOBS overrules."""
    if os.environ.get('MAX_JOBS', '').isdigit():
        return max(1, int(os.environ['MAX_JOBS']))
    return max(1, min(machine.cpu_cores(), machine.free_memory() // memory))


def fetch_source(work: Path, log: Path) -> Path:
    """Download the source distribution (its sha256 is pinned) and unpack it."""
    command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--no-binary=:all:']
    command += ['--no-build-isolation', '--dest', str(work), '--requirement', str(REQUIREMENT)]
    run_build(command, log)
    archive = next(work.glob('mmcv-full-*.tar.gz'))
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter='data')
    return work / archive.name.removesuffix('.tar.gz')


def choose_cxx_standard(setup: Path, torch: machine.Torch) -> None:
    """mmcv's setup.py asks for C++17, which torch's headers refuse from 2.14 on."""
    if torch.release >= CXX20_FROM:
        setup.write_text(setup.read_text().replace('-std=c++17', '-std=c++20'))


def build_environment(
    target: Target, torch: machine.Torch, compiler: list[str], work: Path, jobs: int
) -> dict[str, str]:
    """The build's environment variables: no debug information, no other accelerator, our job count."""
    env = {
        key: value for key, value in os.environ.items() if not key.startswith(('FORCE_', 'MMCV_'))
    }
    cflags = f'{env.get("CFLAGS", "")} -O2 -DNDEBUG -g0 -w'.strip()
    env |= {'MMCV_WITH_OPS': '1', 'MAX_JOBS': str(jobs), 'CFLAGS': cflags, 'LDFLAGS': '-s'}
    env |= {'NINJA_STATUS': '[%f/%t] ', 'PYTHONWARNINGS': 'ignore', 'LC_ALL': 'C.UTF-8'}
    env |= {'PATH': f'{Path(sys.executable).parent}{os.pathsep}{env["PATH"]}'}  # ninja
    env |= {'CXX': compiler_command(compiler, work)}
    if target.cuda:
        env |= {'FORCE_CUDA': '1', 'TORCH_CUDA_ARCH_LIST': target.arch}
        env |= {'CUDA_HOME': str(Path(target.nvcc).parents[1])}
        # cusparse's and cublas' headers come with torch's nvidia-* wheels, not always with nvcc.
        headers = sorted(str(path) for path in torch.folder.parent.glob('nvidia/*/include'))
        headers += [str(path) for path in Path(env['CUDA_HOME']).glob('targets/*/include')]  # conda
        env |= {'CPATH': os.pathsep.join([*headers, *filter(None, [env.get('CPATH')])])}
    else:
        env |= {'CUDA_VISIBLE_DEVICES': ''}  # mmcv compiles CUDA code wherever torch sees a GPU
    return env


def compiler_command(compiler: list[str], work: Path, header: str = SHARED_HEADER) -> str:
    """The compiler itself or, for GNU's, a script that lets it share one precompiled header."""
    version = subprocess.run([*compiler, '--version'], capture_output=True, text=True).stdout
    if 'Free Software Foundation' not in version:
        return shlex.join(compiler)
    (work / 'shared.hpp').write_text(header)
    script = work / 'bin' / 'g++'
    script.parent.mkdir()
    parts = [
        sys.executable,
        '-S',
        '-E',
        str(Path(__file__).with_name('cxx.py')),
        str(work),
        *compiler,
    ]
    script.write_text(f'#!/bin/sh\nexec {shlex.join(parts)} -- "$@"\n')
    script.chmod(0o755)
    return str(script)


def run_build(command: list[str], log: Path, watch: Callable | None = None, **options) -> None:
    """Run a command, its output into `log` and past `watch`. Raises MtpdError if it fails."""
    start = log.stat().st_size
    with log.open('a', encoding='utf-8') as file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors='replace',
            **options,
        )

        def lines() -> Iterable[str]:
            for line in process.stdout:
                file.write(line)
                yield line

        try:
            (watch or list)(lines())
        finally:
            if process.poll() is None and sys.exc_info()[0]:
                process.terminate()
            process.wait()
    if process.returncode:
        text = log.read_bytes()[start:].decode('utf-8', errors='replace')
        raise MtpdError(explain_failure(text, log, process.returncode))


def show_progress(lines: Iterable[str], echo: Callable, cuda_files: int = 0) -> None:
    """Turn ninja's `[n/N]` lines into one line that is rewritten, or a line every half minute.

    `cuda_files`: how many of the files are CUDA's, which take longer.
    """
    shown = before = time.monotonic()
    seconds, files = {'c++': 0.0, 'cuda': 0.0}, {'c++': 0, 'cuda': 0}
    alive = sys.stdout.isatty()
    for line in lines:
        if not (match := re.match(r'\[(\d+)/(\d+)\] ', line)):
            continue
        done, total = int(match[1]), int(match[2])
        now = time.monotonic()
        kind = 'cuda' if re.search(r'\.cu\b', line) else 'c++'
        seconds[kind] += now - before
        files[kind] += 1
        before = now
        text = f'  {done} of {total} files'
        if done > 3:  # the first ones also make the header that speeds up the others
            each = seconds['c++'] / max(1, files['c++'])
            slow = seconds['cuda'] / files['cuda'] if files['cuda'] else CUDA_FILE_COST * each
            left = max(0, cuda_files - files['cuda'])
            text += f', {time_left(slow * left + each * (total - done - left))}'
        if alive:
            print(f'\r{text:<60}', end='' if done < total else '\n', flush=True)
        elif now - shown > 30 or done == total:
            echo(text)
            shown = now


def time_left(seconds: float) -> str:
    return f'about {seconds / 60:.0f} min left' if seconds >= 90 else f'about {seconds:.0f} s left'


def check_wheel(wheel: Path) -> Path:
    """The wheel, if it is whole and has compiled ops. Raises MtpdError otherwise."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            broken = archive.testzip()
            ops = [name for name in archive.namelist() if re.fullmatch(r'mmcv/_ext[^/]*\.so', name)]
    except (OSError, zipfile.BadZipFile) as error:
        raise MtpdError(
            f'{wheel} is damaged ({error}). Run `mtpd install-ops --rebuild`.'
        ) from None
    if broken or not ops:
        what = f'is damaged ({broken})' if broken else 'has no compiled ops (mmcv/_ext*.so)'
        raise MtpdError(f'{wheel} {what}. Run `mtpd install-ops --rebuild`.')
    return wheel


# What went wrong in a failed build: its last errors and the likely cause, from its log.


INSTALL_COMPILER = 'Install one: `apt install g++`, `dnf install gcc-c++` or `conda install gxx`.'
INSTALL_HEADERS = (
    'Install them: `apt install python3-dev` (python3.11-dev), `dnf install python3-devel`.'
)
USE_FEWER_JOBS = 'Repeat with fewer compilers at a time: `MAX_JOBS=1 mtpd install-ops`.'

# The first that matches is named: particular causes come before those that follow from them.
CAUSES = (
    (
        r'No space left on device|Disk quota exceeded',
        'The disk is full. Free at least 2 GiB, or set MTPD_CACHE (and TMPDIR) to folders on another disk.',
    ),
    (
        r'Killed signal terminated program|internal compiler error: Killed|virtual memory exhausted'
        r'|Cannot allocate memory|out of memory|std::bad_alloc|^Killed',
        f'The compiler ran out of memory. {USE_FEWER_JOBS}',
    ),
    (
        r'CUDA version \(([\d.]+)\) mismatches the version that was used to compile[\s\S]*?\(([\d.]+)\)',
        'nvcc belongs to CUDA {0}, torch was built with {1}. Point CUDA_HOME to a CUDA {1} toolkit, '
        'or run `mtpd install-ops --cuda-arch cpu` for CPU ops.',
    ),
    (
        r'unsupported GNU version',
        'nvcc does not accept this g++: it is too new for this CUDA. Install an older one and name it, '
        'for example `CXX=g++-12 CC=gcc-12 NVCC_CCBIN=g++-12 mtpd install-ops`.',
    ),
    (
        r'nvcc fatal\s*:\s*Unsupported gpu architecture \'([^\']+)\'',
        'This nvcc does not know the GPU architecture {0}. Use a newer CUDA toolkit or another --cuda-arch.',
    ),
    (r'Python\.h: No such file', f"Python's header files are missing. {INSTALL_HEADERS}"),
    (
        r'(?:cu\w+|cuda_runtime\w*)\.h: No such file',
        'A CUDA header is missing. Install the full CUDA toolkit, or run '
        '`mtpd install-ops --cuda-arch cpu` for CPU ops.',
    ),
    (
        r'(?:c\+\+|g\+\+|gcc|cc)\S*: (?:command )?not found|No such file or directory: \'\S*(?:c\+\+|g\+\+|gcc|cc)\''
        r'|cannot execute .?cc1plus|command \S*(?:c\+\+|g\+\+|gcc) failed: No such file',
        f'No working C++ compiler was found. {INSTALL_COMPILER}',
    ),
    (
        r'unrecognized command.line option .?-std=c\+\+|You need C\+\+\d\d|You\'re trying to build PyTorch with a too old',
        'The C++ compiler is too old for this torch. Install a newer g++ (11 will do) and name it: `CXX=g++-11 mtpd install-ops`.',
    ),
    (
        r'DO NOT MATCH THE HASHES',
        'The downloaded source is not the pinned one: the download was damaged or changed on its way. '
        'Try again (`pip cache purge` first), or use another package index.',
    ),
    (
        r'No matching distribution found|Could not find a version|NewConnectionError|Max retries exceeded'
        r'|name resolution|Network is unreachable|ConnectTimeout|ProxyError|Read timed out',
        "mmcv-full's source could not be downloaded. Check the network and pip's index (`pip config list`), or "
        'fetch it elsewhere with `pip download --no-deps --no-binary=:all: -r requirements/mmcv.txt` and set '
        'PIP_FIND_LINKS to the folder it is in.',
    ),
    (
        r"No module named '(pkg_resources|setuptools)'",
        'setuptools older than 81 is needed. Run `make env`.',
    ),
    (r"No module named '(\w+)'", 'The Python package {0} is missing. Run `make env`.'),
)
UNKNOWN_CAUSE = 'No known cause was found; the log has the whole story.'

# An error that only says that there was one before it.
_FOLLOW_UP_ERROR = re.compile(
    r'CalledProcessError|subprocess-exited-with-error|Error compiling objects|^FAILED|ninja: build stopped'
    r'|metadata-generation-failed|^raise '
)
_ERROR = re.compile(
    r'\b(?:fatal )?error\b|\w+Error\b|\bERROR\b|Killed|Cannot allocate|undefined reference|No space left|not found$|nvcc fatal'
)


def likely_cause(log: str) -> str:
    """One or two sentences: what probably went wrong, and what to do."""
    for pattern, text in CAUSES:
        if match := re.search(pattern, log, re.MULTILINE):
            return text.format(*match.groups())
    return UNKNOWN_CAUSE


def last_errors(log: str, count: int = 4) -> list[str]:
    """The last different lines that state an error of their own."""
    found: list[str] = []
    for line in reversed(log.splitlines()):
        line = line.strip()[:300]
        if _ERROR.search(line) and not _FOLLOW_UP_ERROR.search(line) and line not in found:
            found.append(line)
        if len(found) == count:
            break
    return found[::-1]


def explain_failure(log: str, path: Path, code: int) -> str:
    """The message for a failed build."""
    errors = last_errors(log) or [line.strip()[:300] for line in log.splitlines()[-3:]]
    return '\n'.join(
        [
            f'mmcv-full could not be built (exit code {code}). The last errors:',
            *(f'    {line}' for line in errors),
            f'Likely cause: {likely_cause(log)}',
            f'The whole log: {path}',
        ]
    )
