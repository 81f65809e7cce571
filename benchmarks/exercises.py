"""The numbers in the solutions of docs/exercises.md, from the folders that its `mtpd train` commands wrote.

python benchmarks/exercises.py runs/exercises/* --out results/exercises.json
"""

import argparse
import re
import sys
from pathlib import Path

from mtpd.analysis.run import ap_points, loss_rows
from mtpd.utils.files import read_json, write_json
from mtpd.utils.machine import describe_environment


def row(stage: Path) -> dict:
    """Of a stage's folder: its command, AP in points, and losses of its first and last log row."""
    run = stage.parents[2]
    rows = loss_rows(stage / 'log.json')
    ratios = [one['distillation'] / one['detection'] for one in rows[-5:] if one['distillation']]
    losses = {
        f'{when} {kind}': rows[k][kind]
        for when, k in (('first', 0), ('last', -1))
        for kind in ('detection', 'distillation')
    }
    return {
        'name': run.parent.name,
        'command': re.sub(r' --work-dir \S+', '', read_json(run / 'status.json')['command']),
        'AP': ap_points(read_json(stage / 'metrics.json'))['AP'],
        'ratio': sum(ratios) / len(ratios) if ratios else None,
        **losses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('folders', type=Path, nargs='+', help='one for each training')
    parser.add_argument('--out', type=Path, required=True, help='where the JSON goes')
    options = parser.parse_args()
    stages = [stage for folder in options.folders for stage in sorted(folder.glob('0/stages/*/*'))]
    report = {
        'command': ' '.join(['python', *sys.argv]),
        'rows': [row(stage) for stage in stages],
        'environment': describe_environment(threads=1),
    }
    write_json(options.out, report)


if __name__ == '__main__':
    main()
