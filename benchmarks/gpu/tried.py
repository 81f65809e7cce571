"""Parts of the distillation steps on a GPU, each in several ways: milliseconds, the median of four.

python benchmarks/gpu/tried.py --out results/bench/gpu_tried.json

16 images of 800 x 1344, random weights. `torch.compile` is slow to begin with: its seconds are there, too.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]

import distill_step  # compat before mmcv

# isort: split
import torch
from mmcv.ops import DeformConv2d
from mmdet.models import build_loss
from run import DIGITS
from torch import Tensor, nn
from torch.nn import functional as F

from mtpd.config.recipe import Recipe, load_recipe
from mtpd.distill.distiller import Teacher
from mtpd.engine import deform_convs, speed, window_attention
from mtpd.preflight import trial
from mtpd.runtime import target_assignment
from mtpd.utils.files import write_json
from mtpd.utils.machine import describe_environment


class Timer:
    def __init__(self, device: str):
        self.device = device

    def wait(self) -> None:
        if self.device == 'cuda':
            torch.cuda.synchronize()

    def __call__(self, work: Callable, repeats: int = 4) -> float:
        seconds = []
        for _ in range(2 + repeats):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            seconds.append(time.perf_counter() - began)
        return round(1e3 * statistics.median(seconds[2:]), 3)


def teacher_of(recipe: Recipe, name: str, device: str) -> Teacher:
    cfg = recipe.model(name)
    cfg.backbone.init_cfg = None
    teacher = Teacher(cfg).to(device).eval()
    teacher.fold()
    return teacher


def teacher(timer: Timer, recipe: Recipe, name: str, images: Tensor) -> dict:
    def forward(rounded: bool) -> float:
        def work() -> None:
            with torch.no_grad(), torch.autocast(timer.device, torch.bfloat16, enabled=rounded):
                model(images)

        return timer(work)

    model = teacher_of(recipe, name, timer.device)
    row = {'nchw tf32': forward(False), 'nchw bf16 autocast': forward(True)}
    model.to(memory_format=torch.channels_last)
    row |= {'nhwc tf32': forward(False), 'nhwc bf16 autocast': forward(True)}
    speed.keep_in_bfloat16(model)
    row['nhwc bf16 kept'] = forward(True)
    torch.backends.cudnn.benchmark = True
    row['... cudnn.benchmark'] = forward(True)
    torch.backends.cudnn.benchmark = False
    return row


def swin_teacher(timer: Timer, images: Tensor) -> dict:
    recipe = load_recipe('configs/paper/mask_rcnn_r50__swint_swins.py', DIGITS)
    model = teacher_of(recipe, 'swins', timer.device).to(memory_format=torch.channels_last)
    speed.keep_in_bfloat16(model)

    def forward() -> None:
        with torch.no_grad(), torch.autocast(timer.device, torch.bfloat16):
            model(images)

    row = {"mmdet's attention": timer(forward)}
    window_attention.fuse_window_attention(model)
    return row | {'fused attention': timer(forward)}


def deformable(timer: Timer, channels: int, groups: int, size: tuple, backward: bool) -> dict:
    """A 3 x 3 convolution of 16 images: mmcv's in float32, Triton's in bfloat16."""
    torch.manual_seed(0)
    conv = DeformConv2d(channels, channels, 3, padding=1, groups=groups).to(timer.device)
    offset = torch.randn(16, 18, *size, device=timer.device, requires_grad=backward)
    x = torch.randn(16, channels, *size, device=timer.device, requires_grad=backward)

    def work() -> None:
        with torch.set_grad_enabled(backward), torch.autocast(timer.device, torch.bfloat16):
            out = conv(x, offset)
            if backward:
                torch.autograd.grad(out, [x, offset, conv.weight], out.detach())

    row = {'mmcv': timer(work, 2)}
    deform_convs.replace_deform_convs(conv)
    x = x.detach().bfloat16().to(memory_format=torch.channels_last).requires_grad_(backward)
    return row | {'Triton': timer(work)}


def focal(timer: Timer, images: Tensor) -> dict:
    """The loss of RetinaNet's largest level, and its gradient."""
    count = len(images) * 9 * (images.shape[2] // 8) * (images.shape[3] // 8)
    pred = torch.randn(count, 80, device=timer.device, requires_grad=True)
    target = torch.full((count,), 80, device=timer.device)
    weight, loss = torch.ones(count, device=timer.device), build_loss(dict(type='FocalLoss'))

    def work() -> None:
        torch.autograd.grad(loss(pred, target, weight, avg_factor=100), pred)

    target_assignment.patch_target_assignment()
    with target_assignment.original_assignment():
        row = {'mmcv': timer(work)}
    return row | {'Triton': timer(work)}


def one_kernel(timer: Timer, images: Tensor) -> dict:
    """A 1 x 1 convolution of 256 channels at stride 4."""
    n, _, height, width = images.shape
    x = torch.randn(n, 256, height // 4, width // 4, device=images.device, dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(256, 256, 1, 1).to(x), torch.randn(256).to(x)
    settings = (1, 1), (0, 0), (1, 1), 1
    row = {
        'conv': timer(lambda: F.conv2d(x, weight)),
        'conv bias': timer(lambda: F.conv2d(x, weight, bias)),
        'conv bias relu_': timer(lambda: F.conv2d(x, weight, bias).relu_()),
    }
    if timer.device == 'cuda':
        fused = lambda: torch.cudnn_convolution_relu(x, weight, bias, *settings)  # noqa: E731
        row['cudnn_convolution_relu'] = timer(fused)
    return row


def student(timer: Timer, recipe: Recipe, kind: str, images: Tensor) -> dict:
    model = trial.untrained_detector(recipe, 'student', None).to(timer.device).train()
    speed.apply_speed(model, distill_step.switches(kind, recipe, timer.device), timer.device)

    def both() -> None:
        sum(out.float().square().mean() for out in model.backbone(images)).backward()

    def forward() -> None:
        with torch.no_grad():
            model.backbone(images)

    return {'backbone fwd': timer(forward), 'backbone fwd+bwd': timer(both)}


def to_the_device(timer: Timer, images: Tensor) -> dict:
    on_the_cpu = images.cpu()
    ways = {'pageable': on_the_cpu}
    if timer.device == 'cuda':
        ways['pinned'] = on_the_cpu.pin_memory()
    return {way: timer(lambda x=x: x.to(images.device, non_blocking=True)) for way, x in ways.items()}  # fmt: skip


def compiled(timer: Timer, model: nn.Module, images: Tensor, backward: bool) -> dict:
    model = torch.compile(model, dynamic=False)

    def work() -> None:
        with torch.set_grad_enabled(backward), torch.autocast(timer.device, torch.bfloat16):
            loss = sum(out.float().square().mean() for out in model(images))
        if backward:
            loss.backward()

    began = time.perf_counter()
    work()
    timer.wait()
    seconds = time.perf_counter() - began
    return {'ms': timer(work), 'seconds to compile': round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--only', nargs='+', metavar='PART', help='parts whose names begin so')
    parser.add_argument('--shape', type=int, nargs=3, default=[16, 800, 1344], metavar='N')
    options = parser.parse_args()
    device = options.device
    recipe = load_recipe('configs/paper/retinanet_r50__r101_rx101.py', f'{DIGITS} runtime.device={device}')  # fmt: skip
    images, timer = (
        torch.randn(options.shape[0], 3, *options.shape[1:], device=device),
        Timer(device),
    )

    def folded_student() -> nn.Module:
        model = trial.untrained_detector(recipe, 'student', None).to(device).train()
        speed.apply_speed(
            model, distill_step.switches('channels_last+fold_student', recipe, device), device
        )
        return model.backbone

    def kept_teacher() -> nn.Module:
        model = teacher_of(recipe, 'rx101', device).to(memory_format=torch.channels_last)
        speed.keep_in_bfloat16(model)
        return model

    works = {
        'Swin-S teacher': lambda: swin_teacher(timer, images),
        'focal loss, largest level, with its gradient': lambda: focal(timer, images),
        **{
            f'deformable convolution, {channels} channels, {groups} groups, {how}': lambda case=(channels, groups, size, how != 'forward'): (
                deformable(timer, *case)
            )
            for channels, groups, size, how in (
                (512, 64, (100, 168), 'forward'),
                (1024, 64, (50, 84), 'forward'),
                (2048, 64, (25, 42), 'forward'),
                (256, 1, (100, 168), 'forward'),
                (256, 1, (100, 168), 'with gradients'),
            )
        },
        'teacher rx101': lambda: teacher(timer, recipe, 'rx101', images),
        'teacher r101': lambda: teacher(timer, recipe, 'r101', images),
        'fused relu': lambda: one_kernel(timer, images),
        **{
            f'student, {kind}': lambda kind=kind: student(timer, recipe, kind, images)
            for kind in ('bf16+channels_last', 'bf16+channels_last+fold_student')
        },
        'batch to the device': lambda: to_the_device(timer, images),
        'compiled teacher': lambda: compiled(timer, kept_teacher(), images, False),
        'compiled student': lambda: compiled(timer, folded_student(), images, True),
    }
    results = {
        'command': ' '.join(['python', *sys.argv]),
        'parts': {},
        'environment': describe_environment(torch.get_num_threads()),
    }
    for name, work in works.items():
        if options.only and not name.startswith(tuple(options.only)):
            continue
        results['parts'][name] = work()
        print(name, results['parts'][name], flush=True)
        write_json(options.out, results)
        gc.collect()


if __name__ == '__main__':
    main()
