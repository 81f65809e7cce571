"""AP versus teacher order as an image, from a run directory and those beside it with other seeds.

python benchmarks/order_figure.py runs/mini_pool_reduced-sweep/mgd/0 --out results/mini_pool_reduced/ap_versus_order.png
"""

import argparse
from pathlib import Path

from mtpd.analysis.run import load_run
from mtpd.analysis.study import load_study
from mtpd.plots import ap_versus_order


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('run', type=Path)
    parser.add_argument('--out', type=Path, required=True, help='where the PNG goes')
    options = parser.parse_args()
    study = load_study(load_run(options.run))
    options.out.write_bytes(ap_versus_order(study.table(), study.start).encoded()[1])


if __name__ == '__main__':
    main()
