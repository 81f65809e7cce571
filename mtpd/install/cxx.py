"""Stands in for g++ while mmcv's ops are built: `python cxx.py WORK COMPILER... -- ARGUMENTS...`

Each of mmcv's 73 files spends most of its time on torch's headers. The first C++ file precompiles WORK/shared.hpp, which
includes them, with its own flags: g++ ignores a precompiled header that was made with other flags. The later files use
the result and take a third of the time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def main(work: Path, compiler: list[str], arguments: list[str]) -> None:
    if '-c' in arguments and any(name.endswith('.cpp') for name in arguments):
        header, precompiled = work / 'shared.hpp', work / 'shared.hpp.gch'
        if is_first(work):
            unfinished = work / 'unfinished.gch'
            command = [*compiler, *flags_only(arguments), '-x', 'c++-header', str(header)]
            if subprocess.run([*command, '-o', str(unfinished)]).returncode == 0:
                unfinished.replace(precompiled)
        if precompiled.exists():
            arguments = ['-include', str(header), *arguments]
    os.execvp(compiler[0], [*compiler, *arguments])


def is_first(work: Path) -> bool:
    """Whether this is the first call for the folder: of several processes only one can make a folder."""
    try:
        (work / 'precompiling').mkdir()
    except FileExistsError:
        return False
    return True


def flags_only(arguments: list[str]) -> list[str]:
    """A compile command's arguments without its input and its outputs."""
    flags, previous = [], ''
    for argument in arguments:
        is_file = previous in ('-o', '-MF') or argument.endswith('.cpp')
        if not is_file and argument not in ('-c', '-o', '-MMD', '-MF'):
            flags.append(argument)
        previous = argument
    return flags


if __name__ == '__main__':
    end = sys.argv.index('--')
    main(Path(sys.argv[1]), sys.argv[2:end], sys.argv[end + 1 :])
