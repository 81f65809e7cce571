"""Build mmcv-full's wheel, with its compiled ops, from the source distribution on PyPI.

`build_wheel` checks the tools, fetches the source, compiles it with an environment made for it, shows the progress and
checks the wheel. Where a step fails, `explain_failure` makes the message from the log.
"""

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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import MtpdError
from ..utils import machine
from ..utils.paths import ROOT

REQUIREMENT = ROOT / 'requirements' / 'mmcv.txt'
SHARED_HEADER = '#include <torch/types.h>\n'
BUILD_DISK = 2 * machine.GIB
MEMORY_PER_JOB = 2 * machine.GIB
MEMORY_PER_CUDA_JOB = 3 * machine.GIB  # 2.1 were measured
CUDA_FILE_COST = 6  # compiling a CUDA file takes so many times as long as a C++ file
CXX20_FROM = (2, 14)  # the torch whose headers need C++20


class Target(NamedTuple):
    """What to build for: CUDA of a release and GPU architectures ('9.0' or '8.0;9.0'), or the CPU.

    Attributes:
        reason: why this, for the user.
        nvcc: the CUDA compiler's path; None where it has to be fetched first.
        idle_gpu: the machine has a GPU, which CPU ops leave unused.
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
    """Builds the wheel in the folder `work`; the output goes to the file `log`.

    Raises MtpdError with the last errors and the likely cause; the log stays.
    """
    compiler = check_tools(work)
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
    cuda_files = len(list(source.glob('mmcv/ops/csrc/pytorch/cuda/*.cu'))) if target.cuda else 0
    progress = BuildProgress(echo, cuda_files)
    run_build(command, log, progress.show_line, cwd=source, env=environment)
    return check_wheel(next((work / 'dist').glob('*.whl')))


def check_tools(work: Path) -> list[str]:
    """The C++ compiler's command. Raises MtpdError, which lists all that is missing: compiler, headers, disk space."""
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
            f'{BUILD_DISK // machine.GIB}. Free some space, or set MTPD_CACHE to a folder on another disk.'
        )
    if problems:
        lines = [f'- {problem}' for problem in problems]
        raise MtpdError('\n'.join(['mmcv-full cannot be built here:', *lines]))
    return compiler


def job_count(memory: int = MEMORY_PER_JOB) -> int:
    """How many compilers run at a time: MAX_JOBS, or as many as there are cores, with `memory` bytes for each."""
    max_jobs = os.environ.get('MAX_JOBS', '')
    if max_jobs.isdigit():
        return max(1, int(max_jobs))
    return max(1, min(machine.cpu_cores(), machine.free_memory() // memory))


def fetch_source(work: Path, log: Path) -> Path:
    """Downloads the source distribution, whose sha256 is pinned, and unpacks it; returns its folder."""
    command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--no-binary=:all:']
    command += ['--no-build-isolation', '--dest', str(work), '--requirement', str(REQUIREMENT)]
    run_build(command, log)
    archive = next(work.glob('mmcv-full-*.tar.gz'))
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter='data')
    return work / archive.name.removesuffix('.tar.gz')


def choose_cxx_standard(setup: Path, torch: machine.Torch) -> None:
    """Replaces C++17 in mmcv's setup.py by C++20, which torch's headers need from 2.14 on."""
    if torch.release >= CXX20_FROM:
        setup.write_text(setup.read_text().replace('-std=c++17', '-std=c++20'))


def build_environment(
    target: Target, torch: machine.Torch, compiler: list[str], work: Path, jobs: int
) -> dict[str, str]:
    """The build's environment variables: no debug information, no other accelerator, our number of jobs."""
    other = ('FORCE_', 'MMCV_')  # variables that choose another accelerator or no ops
    env = {key: value for key, value in os.environ.items() if not key.startswith(other)}
    cflags = f'{env.get("CFLAGS", "")} -O2 -DNDEBUG -g0 -w'.strip()
    env |= {'MMCV_WITH_OPS': '1', 'MAX_JOBS': str(jobs), 'CFLAGS': cflags, 'LDFLAGS': '-s'}
    env |= {'NINJA_STATUS': '[%f/%t] ', 'PYTHONWARNINGS': 'ignore', 'LC_ALL': 'C.UTF-8'}
    env |= {'PATH': f'{Path(sys.executable).parent}{os.pathsep}{env["PATH"]}'}  # ninja
    env |= {'CXX': compiler_command(compiler, work)}
    if target.cuda:
        env |= {'FORCE_CUDA': '1', 'TORCH_CUDA_ARCH_LIST': target.arch}
        env |= {'CUDA_HOME': str(Path(target.nvcc).parents[1])}
        # The headers of cusparse and cublas come with torch's nvidia-* wheels, not always with nvcc.
        headers = sorted(str(path) for path in torch.folder.parent.glob('nvidia/*/include'))
        headers += [str(path) for path in Path(env['CUDA_HOME']).glob('targets/*/include')]  # conda
        env |= {'CPATH': os.pathsep.join([*headers, *filter(None, [env.get('CPATH')])])}
    else:
        env |= {'CUDA_VISIBLE_DEVICES': ''}  # mmcv compiles CUDA code wherever torch sees a GPU
    return env


def compiler_command(compiler: list[str], work: Path, header: str = SHARED_HEADER) -> str:
    """The compiler's command; for GNU's that of a script that lets all files share one precompiled header (`cxx.py`)."""
    version = subprocess.run([*compiler, '--version'], capture_output=True, text=True).stdout
    if 'Free Software Foundation' not in version:
        return shlex.join(compiler)
    (work / 'shared.hpp').write_text(header)
    script = work / 'bin' / 'g++'
    script.parent.mkdir()
    wrapper = [sys.executable, '-S', '-E', str(Path(__file__).with_name('cxx.py')), str(work)]
    script.write_text(f'#!/bin/sh\nexec {shlex.join([*wrapper, *compiler])} -- "$@"\n')
    script.chmod(0o755)
    return str(script)


def run_build(
    command: list[str], log: Path, watch: Callable[[str], None] | None = None, **options
) -> None:
    """Runs a command; each line of its output goes to the end of `log` and to `watch`.

    `options` are `subprocess.Popen`'s. Raises MtpdError where the command fails.
    """
    start = log.stat().st_size
    options |= {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    with (
        log.open('a', encoding='utf-8') as file,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, errors='replace', **options) as process,
    ):
        try:
            for line in process.stdout:
                file.write(line)
                if watch:
                    watch(line)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        output = log.read_bytes()[start:].decode('utf-8', errors='replace')
        raise MtpdError(explain_failure(output, log, process.returncode))


class BuildProgress:
    """Shows ninja's `[n/N]` lines as one line that is rewritten, outside a terminal as a line every half minute.

    `cuda_files`: how many of the files are CUDA's, which take longer.
    """

    def __init__(self, echo: Callable, cuda_files: int = 0):
        self.echo, self.cuda_files = echo, cuda_files
        self.seconds, self.files = {'c++': 0.0, 'cuda': 0.0}, {'c++': 0, 'cuda': 0}
        self.last_shown = self.last_file = time.monotonic()

    def show_line(self, line: str) -> None:
        """Takes a line of ninja's output."""
        match = re.match(r'\[(\d+)/(\d+)\] ', line)
        if not match:
            return
        done, total, now = int(match[1]), int(match[2]), time.monotonic()
        kind = 'cuda' if re.search(r'\.cu\b', line) else 'c++'
        self.seconds[kind] += now - self.last_file
        self.files[kind] += 1
        self.last_file = now
        text = f'  {done} of {total} files'
        if done > 3:  # one of the first also makes the precompiled header
            text += f', {time_left(self.seconds_left(total - done))}'
        if sys.stdout.isatty():
            print(f'\r{text:<60}', end='' if done < total else '\n', flush=True)
        elif now - self.last_shown > 30 or done == total:
            self.echo(text)
            self.last_shown = now

    def seconds_left(self, files: int) -> float:
        """An estimate for the last `files`, by the mean time of each kind so far."""
        per_file = self.seconds['c++'] / max(1, self.files['c++'])
        per_cuda_file = CUDA_FILE_COST * per_file
        if self.files['cuda']:
            per_cuda_file = self.seconds['cuda'] / self.files['cuda']
        cuda_left = max(0, self.cuda_files - self.files['cuda'])
        return per_cuda_file * cuda_left + per_file * (files - cuda_left)


def time_left(seconds: float) -> str:
    return f'about {seconds / 60:.0f} min left' if seconds >= 90 else f'about {seconds:.0f} s left'


def check_wheel(wheel: Path) -> Path:
    """Returns the wheel. Raises MtpdError where it is damaged or has no compiled ops."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            broken = archive.testzip()
            ops = [name for name in archive.namelist() if re.fullmatch(r'mmcv/_ext[^/]*\.so', name)]
    except (OSError, zipfile.BadZipFile) as error:
        raise MtpdError(
            f'{wheel} is damaged ({error}). Run `mtpd install-ops --rebuild`.'
        ) from None
    if broken or not ops:
        fault = f'is damaged ({broken})' if broken else 'has no compiled ops (mmcv/_ext*.so)'
        raise MtpdError(f'{wheel} {fault}. Run `mtpd install-ops --rebuild`.')
    return wheel


# A failed build: its last errors and the likely cause, from its log.


def explain_failure(log: str, path: Path, code: int) -> str:
    """The message for a failed build: its last errors, the likely cause, where the whole log (`path`) is."""
    errors = last_errors(log) or [line.strip()[:300] for line in log.splitlines()[-3:]]
    return '\n'.join(
        [
            f'mmcv-full could not be built (exit code {code}). The last errors:',
            *(f'    {line}' for line in errors),
            f'Likely cause: {likely_cause(log)}',
            f'The whole log: {path}',
        ]
    )


def last_errors(log: str, count: int = 4) -> list[str]:
    """The last `count` different lines that state an error, and not only that there was one before."""
    errors: list[str] = []
    for line in reversed(log.splitlines()):
        line = line.strip()[:300]
        if _ERROR.search(line) and not _FOLLOW_UP_ERROR.search(line) and line not in errors:
            errors.append(line)
        if len(errors) == count:
            break
    return errors[::-1]


def likely_cause(log: str) -> str:
    """What probably went wrong, and what to do, in one or two sentences."""
    for pattern, text in CAUSES:
        if match := re.search(pattern, log, re.MULTILINE):
            return text.format(*match.groups())
    return UNKNOWN_CAUSE


INSTALL_COMPILER = 'Install one: `apt install g++`, `dnf install gcc-c++` or `conda install gxx`.'
INSTALL_HEADERS = (
    'Install them: `apt install python3-dev` (python3.11-dev), `dnf install python3-devel`.'
)
USE_FEWER_JOBS = 'Repeat with fewer compilers at a time: `MAX_JOBS=1 mtpd install-ops`.'

# A pattern in the log, and the cause; the first that matches counts: a cause comes before its consequences.
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
        'The downloaded source is not the pinned one: the download was damaged or changed on the way. '
        'Try again (`pip cache purge` first), or use another package index.',
    ),
    (
        r'No matching distribution found|Could not find a version|NewConnectionError|Max retries exceeded'
        r'|name resolution|Network is unreachable|ConnectTimeout|ProxyError|Read timed out',
        "mmcv-full's source could not be downloaded. Check the network and pip's index (`pip config list`), or "
        'fetch it on another machine with `pip download --no-deps --no-binary=:all: -r requirements/mmcv.txt` and set '
        'PIP_FIND_LINKS to the folder it is in.',
    ),
    (
        r"No module named '(pkg_resources|setuptools)'",
        'setuptools older than 81 is needed. Run `make env`.',
    ),
    (r"No module named '(\w+)'", 'The Python package {0} is missing. Run `make env`.'),
)
UNKNOWN_CAUSE = 'No known cause was found: see the log.'

# Errors that only say that there was one before.
_FOLLOW_UP_ERROR = re.compile(
    r'CalledProcessError|subprocess-exited-with-error|Error compiling objects|^FAILED|ninja: build stopped'
    r'|metadata-generation-failed|^raise '
)
_ERROR = re.compile(
    r'\b(?:fatal )?error\b|\w+Error\b|\bERROR\b|Killed|Cannot allocate|undefined reference|No space left|not found$|nvcc fatal'
)
