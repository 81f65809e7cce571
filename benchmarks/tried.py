"""What was tried one by one: ways to run the teacher, to draw MGD's masks, to clip gradients and to step the optimizer.

python benchmarks/tried.py --out results/bench/tried.json

Medians of calls that take turns in one process, milliseconds, with the demo's detectors and batch.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mtpd.config.recipe import load_recipe
from mtpd.engine import loop, speed
from mtpd.preflight import trial
from mtpd.utils.files import write_json
from mtpd.utils.machine import describe_environment
from mtpd.utils.progress import progress_bar

# isort: split
import torch
from mmcv.runner import build_optimizer

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'


def in_turn(calls: dict[str, Callable], times: int) -> dict[str, float]:
    """Milliseconds of each."""
    taken: dict = {name: [] for name in calls}
    for number in progress_bar('rounds', range(times + 3)):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number >= 3:
                taken[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in taken.items()}


@torch.no_grad()
def teachers(model, images: torch.Tensor, times: int) -> tuple[dict, float]:
    """Forward passes, and the seconds that compiling takes."""
    plain = model.teacher.eval()
    trained = copy.deepcopy(plain).train()
    folded = copy.deepcopy(plain)
    folded.fold()
    both = copy.deepcopy(folded).to(memory_format=torch.channels_last)
    frozen = torch.jit.freeze(torch.jit.trace(copy.deepcopy(folded), images, check_trace=False))
    frozen = torch.jit.optimize_for_inference(frozen)
    began = time.perf_counter()
    compiled = torch.compile(copy.deepcopy(both))
    compiled(images)
    seconds = time.perf_counter() - began

    def half():
        with torch.autocast('cpu', torch.bfloat16):
            both(images)

    calls = {
        'teacher in train mode, as the original': lambda: trained(images),
        'teacher in eval mode': lambda: plain(images),
        '... folded': lambda: folded(images),
        '... folded, channels-last': lambda: both(images),
        '... folded, channels-last, bf16': half,
        '... folded, TorchScript for inference': lambda: frozen(images),
        '... folded, channels-last, torch.compile': lambda: compiled(images),
    }
    return in_turn(calls, times), seconds


def masks(batch: int, sides: tuple[int, ...], times: int) -> dict:
    """MGD's masks of all levels, drawn a level at a time and by one call."""
    cells = [batch * side * side for side in sides]

    def each():
        return [torch.rand((batch, 1, side, side)) >= 0.65 for side in sides]

    def once():
        drawn = (torch.rand(sum(cells)) >= 0.65).split(cells)
        return [m.view(batch, 1, s, s) for m, s in zip(drawn, sides, strict=True)]

    return in_turn({'masks, a call a level': each, 'masks, one call': once}, times)


def steps(recipe, model, times: int) -> dict:
    """Clipping and the optimizer, with made-up gradients."""
    weights = [p for p in model.parameters() if p.requires_grad]
    for weight in weights:
        weight.grad = 1e-3 * torch.randn_like(weight)
    clip, calls = torch.nn.utils.clip_grad_norm_, {}
    for each in (False, True):
        calls[f'clip gradients, foreach={each}'] = lambda e=each: clip(weights, 35, foreach=e)
    for kind in ({'foreach': False}, {'foreach': True}, {'fused': True}):
        optimizer = build_optimizer(model, {**recipe.cfg.schedule.optimizer, **kind})
        name = ', '.join(f'{key}={value}' for key, value in kind.items())
        calls[f'AdamW step, {name}'] = optimizer.step
    return in_turn(calls, times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--teacher', default='rx101')
    parser.add_argument('--times', type=int, default=40)
    parser.add_argument('--out', type=Path, help='where the JSON goes')
    options = parser.parse_args()
    recipe = load_recipe(MINI, {'speed.precision': 'fp32'})
    loop.set_threads('cpu', 0)
    speed.keep_freed_memory()
    model = trial.untrained_detector(recipe, 'student', options.teacher)
    batch, side = recipe.cfg.schedule.batch_size, recipe.cfg.image.scale
    images = torch.randn(batch, 3, side, side)
    milliseconds, compiling = teachers(model, images, options.times)
    milliseconds |= masks(batch, (side // 8, side // 16, side // 32), options.times)
    milliseconds |= steps(recipe, model, options.times)
    for name, value in milliseconds.items():
        print(f'{name:<46}{value:8.3f} ms')
    print(f'torch.compile took {compiling:.0f} s')
    if options.out:
        write_json(
            options.out,
            {
                'command': ' '.join(['python', *sys.argv]),
                'milliseconds': milliseconds,
                'compile_seconds': compiling,
                'environment': describe_environment(torch.get_num_threads()),
            },
        )


if __name__ == '__main__':
    main()
