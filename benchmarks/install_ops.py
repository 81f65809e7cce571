"""The build of mmcv's compiled operators, as `mtpd install-ops` makes it with an empty cache; nothing is installed.

python benchmarks/install_ops.py --out results/bench/install_ops.json
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from mtpd import build, machine, ops
from mtpd.environment import describe
from mtpd.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--cuda-arch', help='as of `mtpd install-ops`')
    parser.add_argument('--out', type=Path, help='where the JSON goes')
    options = parser.parse_args()
    torch = machine.find_torch()
    target = ops.choose_target(torch, options.cuda_arch)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        wheel = build.build_wheel(target, torch, Path(folder), Path(folder) / 'build.log', print)
        seconds, size = time.perf_counter() - began, wheel.stat().st_size
    print(
        f'{seconds / 60:.1f} minutes, {build.job_count()} compilers at a time, {size / 1e6:.1f} MB'
    )
    if options.out:
        write_json(
            options.out,
            {
                'command': ' '.join(['python', *sys.argv]),
                'ops': target.ops,
                'seconds': seconds,
                'compilers': build.job_count(),
                'wheel_bytes': size,
                'environment': describe(),
            },
        )


if __name__ == '__main__':
    main()
