"""What went wrong in a failed build: its last errors and the likely cause, from its log."""

from __future__ import annotations

import re
from pathlib import Path

COMPILER = 'Install one: `apt install g++`, `dnf install gcc-c++` or `conda install gxx`.'
HEADERS = 'Install them: `apt install python3-dev` (python3.11-dev), `dnf install python3-devel`.'
MEMORY = 'Repeat with fewer compilers at a time: `MAX_JOBS=1 mtpd install-ops`.'

# The first that matches is named: particular causes come before those that follow from them.
CAUSES = (
    (
        r'No space left on device|Disk quota exceeded',
        'The disk is full. Free at least 2 GiB, or set MTPD_CACHE (and TMPDIR) to folders on another disk.',
    ),
    (
        r'Killed signal terminated program|internal compiler error: Killed|virtual memory exhausted'
        r'|Cannot allocate memory|out of memory|std::bad_alloc|^Killed',
        f'The compiler ran out of memory. {MEMORY}',
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
    (r'Python\.h: No such file', f"Python's header files are missing. {HEADERS}"),
    (
        r'(?:cu\w+|cuda_runtime\w*)\.h: No such file',
        'A CUDA header is missing. Install the full CUDA toolkit, or run '
        '`mtpd install-ops --cuda-arch cpu` for CPU ops.',
    ),
    (
        r'(?:c\+\+|g\+\+|gcc|cc)\S*: (?:command )?not found|No such file or directory: \'\S*(?:c\+\+|g\+\+|gcc|cc)\''
        r'|cannot execute .?cc1plus|command \S*(?:c\+\+|g\+\+|gcc) failed: No such file',
        f'No working C++ compiler was found. {COMPILER}',
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
UNKNOWN = 'No known cause was found; the log has the whole story.'

# An error that only says that there was one before it.
_AFTERMATH = re.compile(
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
    return UNKNOWN


def last_errors(log: str, count: int = 4) -> list[str]:
    """The last different lines that state an error of their own."""
    found: list[str] = []
    for line in reversed(log.splitlines()):
        line = line.strip()[:300]
        if _ERROR.search(line) and not _AFTERMATH.search(line) and line not in found:
            found.append(line)
        if len(found) == count:
            break
    return found[::-1]


def explain(log: str, path: Path, code: int) -> str:
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
