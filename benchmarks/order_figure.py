"""AP versus teacher order as an image, from a run directory and those beside it with other seeds.

python benchmarks/order_figure.py runs/mini_pool_reduced-sweep/mgd/0 --out results/mini_pool_reduced/ap_versus_order.png
"""

import argparse
from pathlib import Path

from mtpd.analysis.run import Run, load_run
from mtpd.analysis.study import load_study
from mtpd.plots import ap_versus_order


def label_of(order: str, run: Run) -> str:
    """'r101 → rx101' as the recipe's labels have it: 'teacher 1 → teacher 2'; of one teacher 'teacher 2 only'."""
    names = order.split(' → ')
    labels = [run.label(name).partition(':')[0] for name in names]
    return f'{labels[0]} only' if len(labels) == 1 and labels != names else ' → '.join(labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('run', type=Path)
    parser.add_argument('--out', type=Path, required=True, help='where the PNG goes')
    options = parser.parse_args()
    run = load_run(options.run)
    study = load_study(run)
    rows = [row | {'label': label_of(row['label'], run)} for row in study.table()]
    options.out.write_bytes(ap_versus_order(rows, study.start).encoded()[1])


if __name__ == '__main__':
    main()
