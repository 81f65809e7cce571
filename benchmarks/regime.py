"""In which settings orders of teachers can be judged: a row for each sweep, with its regime index.

for scenes in 2000 3000; do
    mtpd sweep configs/mini/retinanet_r50__r101_rx101.py --work-dir runs/regime/$scenes --seeds 0-1 \\
        --orders 'rx101;r101,rx101;rx101,rx101' --cfg-options "data.scenes.train=$scenes schedule.baseline=6000 schedule.arm=3000"
done
python benchmarks/regime.py runs/regime/* --out results/regime/search.json --figure results/regime/gain.png

A sweep is its folder, or the JSON of its results.
"""

import argparse
from pathlib import Path

from mtpd import plots
from mtpd.sweep.results import collect_results
from mtpd.utils.files import read_json, write_json
from mtpd.utils.statistics import Interval, format_interval, format_number

CONTROL = 'none'


def row_of(sweep: Path) -> list[dict]:
    """A row for each method of a sweep; of what is evaluated so far."""
    results = read_json(sweep) if sweep.is_file() else collect_results(sweep)
    rows = []
    baselines = [row['AP'] for row in results['rows'] if row['order'] == 'baseline']
    for method, study in results['studies'].items():
        means = {order['name']: order['mean']['value'] for order in study['orders']}
        aps = {order['name']: order['ap'] for order in study['orders']}
        rows.append(
            {
                'sweep': results['name'],
                'command': results['command'],
                'environment': results['environment'],
                'settings': results['overrides'],
                'method': method,
                'seeds': results['seeds'],
                'baseline': sum(baselines) / len(baselines) if baselines else None,
                'teachers': {row['name']: row['AP'] for row in results['teachers']},
                'AP': means,
                'AP_by_seed': aps,
                'regime_index': study['regime_index'],
                'unfinished': len(results['unfinished']),
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    arms = list(dict.fromkeys(name for row in rows for name in row['AP']))
    arms.sort(key=lambda name: (name != CONTROL, name.count('-'), name))
    lines = [['settings', 'baseline', *arms, 'regime index'], ['---'] * (len(arms) + 3)]
    for row in rows:
        numbers = (row['baseline'], *(row['AP'].get(name) for name in arms))
        index = row['regime_index'] and format_interval(Interval(**row['regime_index']))
        settings = ', '.join(f'{key}={value}' for key, value in row['settings'].items())
        cells = ['-' if number is None else format_number(number) for number in numbers]
        lines.append([settings, *cells, index or '-'])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def gains(row: dict) -> dict[str, dict[str, float]]:
    """AP above the arm without a teacher, by order and seed."""
    control = row['AP_by_seed'].get(CONTROL, {})
    return {
        ' → '.join(name.split('-')): {
            seed: ap - control[seed] for seed, ap in aps.items() if seed in control
        }
        for name, aps in row['AP_by_seed'].items()
        if name != CONTROL
    }


def figure(rows: list[dict]) -> bytes:
    """The PNG of what the orders of all rows bring, by regime index. A row's label is its baseline's AP."""
    rows = [row for row in rows if row['regime_index'] and row['regime_index']['value']]
    everywhere = set.intersection(*(set(gains(row)) for row in rows))
    return plots.gain_by_regime(
        [
            {
                'label': f'baseline {row["baseline"]:.1f} AP',
                'index': row['regime_index']['value'],
                'gains': {name: gain for name, gain in gains(row).items() if name in everywhere},
            }
            for row in rows
            if row['baseline']
        ]
    ).encoded()[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        'sweeps', nargs='+', type=Path, help='their folders, or JSON of their results'
    )
    parser.add_argument('--out', type=Path, help='where the JSON goes')
    parser.add_argument('--figure', type=Path, help='where the PNG goes')
    options = parser.parse_args()
    rows = [row for sweep in options.sweeps for row in row_of(sweep)]
    print(table(rows))
    if options.out:
        commits = {str(n): row['environment']['git_commit'] for n, row in enumerate(rows)}
        write_json(options.out, {'commits': commits, 'rows': rows})
    if options.figure:
        options.figure.parent.mkdir(parents=True, exist_ok=True)
        options.figure.write_bytes(figure(rows))


if __name__ == '__main__':
    main()
