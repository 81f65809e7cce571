"""The build of mmcv's compiled operators, as `mtpd install-ops` makes it with an empty cache; they are installed.

python benchmarks/install_ops.py --out results/bench/install_ops.json
python benchmarks/install_ops.py --cuda-arch 9.0 --out results/bench/install_ops_cuda.json
"""

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path

from mtpd.install import build, ops
from mtpd.utils.files import write_json
from mtpd.utils.machine import describe_environment


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--cuda-arch', help='as of `mtpd install-ops`')
    parser.add_argument('--cache', type=Path, help='an empty folder for the wheel, which stays')
    parser.add_argument('--cuobjdump', default=shutil.which('cuobjdump'), help='its path')
    parser.add_argument('--out', type=Path, help='where the JSON goes')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        result = measure(cache, options.cuda_arch, options.cuobjdump)
    print(result)
    if options.out:
        arch = f' --cuda-arch {options.cuda_arch}' if options.cuda_arch else ''
        command = f'python benchmarks/install_ops.py{arch} --out {options.out}'
        write_json(
            options.out, {'command': command, **result, 'environment': describe_environment()}
        )


def measure(cache: Path, cuda_arch: str | None, cuobjdump: str | None) -> dict:
    """Build and install with `cache` as the kit's; what that took, and what came of it."""
    command = [sys.executable, '-m', 'mtpd.cli', 'install-ops', '--rebuild']
    command += ['--cuda-arch', cuda_arch] if cuda_arch else []
    began = time.perf_counter()
    subprocess.run(command, env={**os.environ, 'MTPD_CACHE': str(cache)}, check=True)
    seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    (wheel,) = cache.glob('wheels/*/*.whl')
    cuda, arch, _ = ops.recorded_target()
    return {
        'ops': build.Target('', cuda, arch).ops,
        'seconds': seconds,
        'cpu_seconds': used.ru_utime + used.ru_stime,
        'largest_process_bytes': 1024 * used.ru_maxrss,
        'compilers': build.job_count(build.MEMORY_PER_CUDA_JOB if cuda else build.MEMORY_PER_JOB),
        'wheel_bytes': wheel.stat().st_size,
        'nvcc_bytes': size_of(cache / 'nvcc'),
        'code_for': code_for(wheel, cuobjdump),
    }


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder; 0 where there is none."""
    files = [path for path in folder.rglob('*') if path.is_file() and not path.is_symlink()]
    return sum(path.stat().st_size for path in files)


def code_for(wheel: Path, cuobjdump: str | None) -> dict[str, int] | None:
    """Architecture, as 'sm_90' -> how many of the library's ELF files are for it; None without cuobjdump."""
    if not cuobjdump:
        return None
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if re.fullmatch(r'mmcv/_ext.*\.so', name)]
        library = archive.extract(name, folder)
        listed = subprocess.run([cuobjdump, '--list-elf', library], capture_output=True, text=True)
    return dict(Counter(re.findall(r'\.(sm_\w+)\.cubin', listed.stdout)))


if __name__ == '__main__':
    main()
