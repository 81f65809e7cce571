"""Writes the tables of benchmarks/README.md from results/bench/*.json, each between its markers.

python benchmarks/tables.py
"""

from __future__ import annotations

import re
from pathlib import Path

from mtpd.utils.files import read_json
from mtpd.utils.paths import ROOT

BENCH, README = ROOT / 'results' / 'bench', Path(__file__).with_name('README.md')
PARTS = ('teacher forward', 'student forward', 'losses', 'backward', 'optimizer')


def table(head: list[str], rows: list[list[str]]) -> str:
    if any(len(row) != len(head) for row in rows):
        raise ValueError(f'rows of another length than {head}')
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)


def under(report: dict, text: str) -> str:
    """A table with what it was measured on, and the command."""
    machine = report['environment']
    where = machine['device'] if machine['device'] != 'CPU' else machine['processor']
    return (
        f'`{report["command"]}`; {machine["threads"]} threads, {where}, torch {machine["torch"]}, '
        f'commit {(machine["git_commit"] or "unknown")[:7]}.\n\n{text}'
    )


def distill_step(report: dict) -> str:
    head = [
        '',
        'ms',
        'img/s',
        'original / this, in pairs',
        'apart',
        'peak MiB',
        'TFLOP/s',
        *(f'{p}, ms' for p in PARTS),
    ]
    rows = [
        [
            name,
            f'{row["milliseconds"]:.1f}',
            f'{row["images_a_second"]:.0f}',
            f'{row["ratio"]:.2f}',
            f'{row["ratio_apart"]:.2f}' if 'ratio_apart' in row else '',
            row.get('peak_mib', ''),
            f'{row["tflops"]:.3f}',
            *(f'{row["parts_milliseconds"][part]:.1f}' for part in PARTS),
        ]
        for name, row in report['rows'].items()
    ]
    limits = report['ceilings']
    text = (
        f'\n\nThe machine at most: {limits["tflops_fp32"]:.2f} TFLOP/s in fp32 and {limits["tflops_bf16"]:.2f} in bf16 '
        f'(matrix products), {limits["copy_gb_a_second"]:.0f} GB/s (copies). Loading a batch takes one process '
        f'{report["data_milliseconds"]:.1f} ms.'
    )
    return under(report, table(head, rows) + text)


def edge(report: dict) -> str:
    head = [
        '',
        'parameters (millions)',
        'PyTorch, ms',
        'ONNX Runtime, ms',
        'PyTorch / ONNX',
        'file, MB',
        'boxes',
    ]
    head += ['of one only', 'largest difference']
    rows = [
        [
            name,
            f'{row["parameters"] / 1e6:.2f}',
            f'{row["torch_milliseconds"]:.1f}',
            f'{row["onnx_milliseconds"]:.1f}',
            f'{row["ratio"]:.2f}',
            f'{row["megabytes"]:.1f}',
            f'{row["boxes"]:,}',
            row['boxes_of_one_only'],
            f'{row["largest_difference"]:.0e}',
        ]
        for name, row in report['rows'].items()
    ]
    return under(report, table(head, rows))


def end_to_end(report: dict) -> str:
    from statistics import median

    keys = ('seconds', 'milliseconds_an_update', 'images_a_second', 'seconds_beside_updates')
    rows = []
    for kind, some in report['rows'].items():
        middle = {key: median(row[key] for row in some) for key in some[0]}
        waiting = f'{100 * middle["waiting_for_data"]:.1f} %'
        rows.append([kind, *(f'{middle[key]:.1f}' for key in keys), waiting])
    head = ['', 's, whole stage', 'ms an update', 'img/s', 's beside updates', 'waiting for data']
    ratio = ''
    if 'ratio_stage' in report:
        ratio = (
            f'\n\noff / default, medians of pairs: the whole stage of {report["updates"]} updates '
            f'{report["ratio_stage"]:.2f}, an update {report["ratio_update"]:.2f}.'
        )
    return under(report, table(head, rows) + ratio)


def evaluation(report: dict) -> str:
    rows = [
        [
            row['images'],
            f'{row["seconds"]["pycocotools"]:.1f}',
            f'{row["seconds"]["faster_coco_eval"]:.1f}',
            f'{row["ratio"]:.1f}',
            f'{row["largest_difference"]:.0e}',
        ]
        for row in report['rows']
    ]
    head = [
        'images',
        'pycocotools, s',
        'faster-coco-eval, s',
        'ratio',
        'largest difference of the 12',
    ]
    return under(report, table(head, rows))


def adaptation_cost(report: dict) -> str:
    seconds = report['seconds']
    head = ['', *(key for key in seconds if key != 'features')]
    rows = [['seconds', *(f'{v:.2f}' for k, v in seconds.items() if k != 'features')]]
    names = ', '.join(report['detectors'])
    return under(
        report,
        f'{table(head, rows)}\n\nDetectors: {names}. Trained adapters / closed form: '
        f'{seconds["trained"] / seconds["closed"]:.0f}; making the features took {seconds["features"]:.1f} s.',
    )


def install_ops(report: dict) -> str:
    at_once = f'{report["compilers"]} compilers' if report['compilers'] > 1 else 'one compiler'
    text = (
        f'{report["seconds"] / 60:.1f} minutes for {report["ops"]} ops, {at_once} at a time; the '
        f'wheel has {report["wheel_bytes"] / 1e6:.1f} MB.'
    )
    if 'cpu_seconds' in report:
        text += (
            f' They took {report["cpu_seconds"] / 60:.1f} minutes of processor time, a compiler at most '
            f'{report["largest_process_bytes"] / 2**30:.1f} GiB of memory.'
        )
    if report.get('code_for'):
        code = ', '.join(f'{name} ({parts} parts)' for name, parts in report['code_for'].items())
        text += f' The library holds code for {code}.'
    if report.get('nvcc_bytes'):
        text += f' nvcc, fetched with pip, has {report["nvcc_bytes"] / 1e6:.0f} MB.'
    return under(report, text)


def growth(report: dict) -> str:
    parts = []
    for part in ('step', 'costs', 'report', 'sweep'):
        rows = report[part]
        cells = [[f'{v:.2f}' if isinstance(v, float) else v for v in row.values()] for row in rows]
        parts.append(f'{part}:\n\n{table(list(rows[0]), cells)}')
    return under(report, '\n\n'.join(parts))


def precision(report: dict) -> str:
    rows = [
        [
            step,
            *(f'{row[f"{kind}_mean"]:.2f} ± {row[f"{kind}_sd"]:.2f}' for kind in ('fp32', 'bf16')),
            f'{row["difference_mean"]:+.2f} ± {row["difference_sd"]:.2f}',
        ]
        for step, row in report['summary'].items()
    ]
    return under(
        report, table(['', 'AP in fp32', 'AP in bf16', 'bf16 - fp32, paired by seed'], rows)
    )


def tried(report: dict) -> str:
    if 'parts' in report:
        rows = [
            [part, name, value]
            for part, values in report['parts'].items()
            for name, value in values.items()
        ]
        return under(report, table(['part', 'way', 'ms'], rows))
    rows = [[name, f'{value:.2f}'] for name, value in report['milliseconds'].items()]
    compiling = f'\n\ntorch.compile took {report["compile_seconds"]:.0f} s, once a process.'
    return under(report, table(['', 'ms'], rows) + compiling)


TABLES = (
    tried,
    distill_step,
    end_to_end,
    evaluation,
    adaptation_cost,
    install_ops,
    growth,
    edge,
    precision,
)


def written(text: str) -> str:
    """`text` with its tables as the JSON files say; 'not measured' where there is none."""
    makers = {make.__name__: make for make in TABLES}

    def fill(match: re.Match) -> str:
        name = match[1]
        report = read_json(BENCH / f'{name}.json')
        kind = next(kind for kind in makers if name.removeprefix('gpu_').startswith(kind))
        body = makers[kind](report) if report else 'Not measured.'
        return f'<!-- {name} -->\n{body}\n<!-- end -->'

    return re.sub(r'<!-- (\w+) -->\n.*?<!-- end -->', fill, text, flags=re.DOTALL)


if __name__ == '__main__':
    README.write_text(written(README.read_text(encoding='utf-8')), encoding='utf-8')
