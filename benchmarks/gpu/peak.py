"""Memory at the peak of an update, and where its time goes, of the three recipes that `run.py` times.

python benchmarks/gpu/peak.py --out peak.json --profile profile.txt --batch 16 --cfg-options data.root=data/coco
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]

import distill_step  # compat before mmcv

# isort: split
import torch
from run import PAPER
from torch.profiler import ProfilerActivity, profile

from mtpd.config.recipe import Recipe, load_recipe
from mtpd.engine import loop, memory
from mtpd.utils.files import write_json
from mtpd.utils.machine import describe_environment

KINDS = ('original', 'off', 'default')
PROFILED = 2  # updates


def write_profile(update, batch: dict, title: str, path: Path, device: str) -> dict:
    """The largest kernels and calls of some updates; the share of the time in which the GPU is at work."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == 'cuda')
    with profile(activities=activities) as recorded:
        for _ in range(PROFILED):
            update(batch)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in recorded.events()
        if 'CUDA' in str(event.device_type) and not getattr(event, 'is_user_annotation', False)
    )
    busy, end = 0.0, float('-inf')
    for a, b in spans:  # two streams may be at work at once
        busy, end = busy + max(0, b - max(a, end)), max(end, b)
    table = recorded.key_averages()
    sort = 'self_device_time_total' if device == 'cuda' else 'self_cpu_time_total'
    with path.open('a') as file:
        file.write(
            f'== {title}: {PROFILED} updates, the GPU busy for {busy / 1e3:.0f} ms, {len(spans)} kernels and copies\n'
        )
        file.write(table.table(sort_by=sort, row_limit=30, max_name_column_width=70) + '\n')
    return {
        'gpu_busy_milliseconds': busy / 1e3 / PROFILED,
        'kernels_an_update': len(spans) // PROFILED,
    }


def measure(options: argparse.Namespace, recipe: Recipe, name: str, kind: str, batch: dict) -> dict:
    device = options.device
    gc.collect()
    memory.reset_peak(device)
    update = distill_step.update_of(kind, recipe, PAPER[name][1], device)
    if device == 'cuda' and kind == 'default':
        batch = distill_step.pin(batch)
    seconds = [update(batch) for _ in range(options.updates)]
    row = {
        'milliseconds': 1e3 * statistics.median(seconds[1:]),
        'first_milliseconds': 1e3 * seconds[0],
    }
    row['peak_mib'] = memory.memory_used(device)[1] // 2**20
    if device == 'cuda':
        row['reserved_mib'] = torch.cuda.max_memory_reserved() // 2**20
    if options.profile and kind == 'default':
        row |= write_profile(update, batch, f'{name}, {kind}', options.profile, device)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--profile', type=Path)
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--updates', type=int, default=4)
    parser.add_argument('--recipes', nargs='+', default=list(PAPER), choices=list(PAPER))
    parser.add_argument('--cfg-options', default='')
    options = parser.parse_args()
    results: dict = {
        'command': ' '.join(['python', *sys.argv]),
        'batch': options.batch,
        'environment': describe_environment(),
        'rows': {name: {} for name in options.recipes},
    }
    if options.profile:
        options.profile.write_text('')
    for name in options.recipes:
        recipe = load_recipe(f'configs/paper/{PAPER[name][0]}.py', options.cfg_options)
        loop.set_threads(options.device, recipe.cfg.runtime.threads)
        with tempfile.TemporaryDirectory() as folder:
            (batch,), _ = distill_step.batches(recipe, Path(folder), options.batch, 1)
        for kind in KINDS:
            began = time.perf_counter()
            try:
                row = measure(options, recipe, name, kind, batch)
            except Exception:
                row = {'error': traceback.format_exc()[-1500:]}
            results['rows'][name][kind] = row
            print(name, kind, row, f'{time.perf_counter() - began:.1f} s', flush=True)
            write_json(options.out, results)
    sys.exit(any('error' in row for rows in results['rows'].values() for row in rows.values()))


if __name__ == '__main__':
    main()
