"""Arms over seeds: AP of every run of a recipe, mean and spread, and paired differences from the control.

python benchmarks/seeds.py runs/mini_retinanet_r50__r101_rx101 --out results/mini_retinanet_r50__r101_rx101/seeds.json
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

from mtpd.analysis.run import Run, load_run
from mtpd.utils.files import write_json


def summary(runs: list[Run]) -> list[dict]:
    """A row for the baseline and each arm: AP (points) per seed, mean, standard deviation, and the same of the
    difference from the arm without a teacher in the same run. Two runs or more."""
    tables = [{row['name']: row for row in run.results()} for run in runs]
    control = next((r['name'] for r in tables[0].values() if r['kind'] == 'control'), None)
    rows = []
    for name, row in tables[0].items():
        if row['role'] == 'teacher':
            continue
        aps = [table[name]['AP'] for table in tables]
        entry = {
            'label': row['label'],
            'updates': row['updates'],
            'AP': aps,
            'mean': mean(aps),
            'sd': stdev(aps),
        }
        if control and name != control and row['role'] == 'arm':
            gaps = [table[name]['AP'] - table[control]['AP'] for table in tables]
            entry['above_control'] = {'AP': gaps, 'mean': mean(gaps), 'sd': stdev(gaps)}
        rows.append(entry)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('folder', type=Path, help='of the runs: runs/<recipe>')
    parser.add_argument('--out', type=Path, help='where the JSON goes')
    options = parser.parse_args()
    runs = [load_run(path.parent) for path in sorted(options.folder.glob('*/run.json'))]
    runs = [run for run in runs if run.state == 'complete']
    if len(runs) < 2:
        parser.error(f'{options.folder} holds {len(runs)} complete run(s): two or more are needed')
    rows = summary(runs)
    print('| | AP per seed | mean ± sd | above no teacher |\n|---|---|---|---|')
    for row in rows:
        gap = row.get('above_control')
        last = f'{gap["mean"]:.1f} ± {gap["sd"]:.1f}' if gap else '–'
        aps = ', '.join(f'{ap:.1f}' for ap in row['AP'])
        print(f'| {row["label"]} | {aps} | {row["mean"]:.1f} ± {row["sd"]:.1f} | {last} |')
    if options.out:
        report = {'seeds': [run.info['seed'] for run in runs], 'rows': rows}
        report |= {'commands': [run.info['command'] for run in runs]}
        write_json(options.out, report)


if __name__ == '__main__':
    main()
