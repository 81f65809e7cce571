"""Whether the GPU computes what the CPU does: mmcv's operators, whole updates, the teacher's stream, resuming, DDP.

python benchmarks/gpu/check.py --out check.json                                    each check by itself, the file after each
python benchmarks/gpu/check.py --out check.json --device cpu --only losses         the same code without a GPU
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests'), str(ROOT / 'benchmarks')]

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import numpy as np
import torch
from torch import Tensor

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def apart(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||; NaN where it is not finite."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def plain_matrices(on: bool = False) -> None:
    """Without TF32, which has three digits only."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on


@check
def machine(device: str) -> dict:
    import cv2
    import mmdet
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version

    report = {'python': sys.version.split()[0], 'torch': torch.__version__, 'numpy': np.__version__}
    report |= {'opencv': cv2.__version__, 'mmdet': mmdet.__version__, 'cores': os.cpu_count()}
    report |= {'mmcv_cuda': get_compiling_cuda_version(), 'mmcv_compiler': get_compiler_version()}
    if device == 'cuda':
        smi = [
            'nvidia-smi',
            '--query-gpu=name,memory.total,driver_version',
            '--format=csv,noheader',
        ]
        report['gpu'] = subprocess.run(smi, capture_output=True, text=True).stdout.strip()
        report['capability'] = list(torch.cuda.get_device_capability())
        report['cudnn'] = torch.backends.cudnn.version()
        report['bf16'] = torch.cuda.is_bf16_supported(including_emulation=False)
        report['free_of_bytes'] = list(torch.cuda.mem_get_info())
    return report


def boxes(count: int) -> tuple[Tensor, Tensor]:
    corners = torch.rand(count, 2) * 600
    return torch.cat([corners, corners + torch.rand(count, 2) * 200 + 4], 1), torch.rand(count)


@check
def nms(device: str) -> dict:
    from mmcv.ops import batched_nms, nms

    some, scores = boxes(3000)
    kind = torch.randint(0, 5, (3000,))
    settings = dict(type='nms', iou_threshold=0.5)
    wanted, report = (nms(some.to(d), scores.to(d), 0.5)[1].cpu() for d in ('cpu', device))
    by_kind = [
        batched_nms(some.to(d), scores.to(d), kind.to(d), settings)[1].cpu()
        for d in ('cpu', device)
    ]
    return {
        'kept': len(wanted),
        'same': torch.equal(wanted, report),
        'batched_same': torch.equal(*by_kind),
    }


def gradients_of(work, *tensors: Tensor) -> list[Tensor]:
    """The output, and the gradients of its squares' sum by the tensors."""
    inputs = [t.clone().requires_grad_() for t in tensors]
    out = work(*inputs)
    return [out, *torch.autograd.grad(out.pow(2).sum(), inputs)]


def compared(work, device: str, *tensors: Tensor) -> dict:
    """Distances of output and gradients from the CPU's, in the usual layout and, of the gradient that comes in, the other."""
    wanted = gradients_of(work, *tensors)
    report = gradients_of(work, *(t.to(device) for t in tensors))
    return {'apart': [apart(a, b) for a, b in zip(report, wanted, strict=True)]}


@check
def roi_align(device: str) -> dict:
    from mmcv.ops import roi_align

    rois = torch.cat([torch.randint(0, 4, (200, 1)).float(), boxes(200)[0] / 16], 1)
    return compared(
        lambda x: roi_align(x, rois.to(x.device), 7, 1.0, 0, 'avg', True),
        device,
        torch.randn(4, 32, 50, 50),
    )


@check
def deform_conv(device: str) -> dict:
    from mmcv.ops import deform_conv2d

    tensors = torch.randn(4, 64, 25, 34), torch.randn(4, 18, 25, 34), torch.randn(64, 64, 3, 3) / 24
    return compared(lambda x, o, w: deform_conv2d(x, o, w, 1, 1), device, *tensors)


@check
def grouped_deform_conv(device: str) -> dict:
    from mmcv.ops import deform_conv2d

    tensors = torch.randn(2, 64, 26, 34), torch.randn(2, 18, 13, 17), torch.randn(64, 2, 3, 3) / 5
    return compared(lambda x, o, w: deform_conv2d(x, o, w, 2, 1, 1, 32), device, *tensors)


@check
def modulated_deform_conv(device: str) -> dict:
    from mmcv.ops import modulated_deform_conv2d

    tensors = [torch.randn(4, 64, 25, 34), torch.randn(4, 18, 25, 34), torch.rand(4, 9, 25, 34)]
    tensors += [torch.randn(64, 64, 3, 3) / 24, torch.randn(64)]
    return compared(
        lambda x, o, m, w, b: modulated_deform_conv2d(x, o, m, w, b, 1, 1, 1, 1, 1),
        device,
        *tensors,
    )


@check
def focal_loss(device: str) -> dict:
    """mmcv's on the GPU, which mmdet takes there, and mmdet's in Python, which it takes on the CPU."""
    from mmdet.models.losses import FocalLoss

    target = torch.randint(0, 81, (5000,))
    return compared(
        lambda x: FocalLoss()(x, target.to(x.device), avg_factor=7.0)[None],
        device,
        torch.randn(5000, 80) * 3,
    )


@check
def operators_in_bfloat16(device: str) -> dict:
    """What each says to bfloat16: why `mtpd.engine.speed` keeps them in float32."""
    from mmcv.ops import deform_conv2d, nms, roi_align, sigmoid_focal_loss

    def half(*shape):
        return torch.rand(*shape, device=device).bfloat16()

    works = {
        'nms': lambda: nms(half(9, 4), half(9), 0.5),
        'roi_align': lambda: roi_align(half(1, 2, 8, 8), half(3, 5) * 0, 2),
        'deform_conv': lambda: deform_conv2d(
            half(1, 2, 8, 8), half(1, 18, 8, 8), half(2, 2, 3, 3), 1, 1
        ),
        'focal_loss': lambda: sigmoid_focal_loss(
            half(4, 3), torch.zeros(4, dtype=torch.long, device=device)
        ),
    }
    report = {}
    for name, work in works.items():
        try:
            work()
            report[name] = 'runs'
        except Exception as error:
            report[name] = f'{type(error).__name__}: {error}'.splitlines()[0][:120]
    return report


def moved(batch: dict, device: str) -> dict:
    def move(item):
        if isinstance(item, Tensor):
            return item.to(device)
        return (
            [move(part) for part in item]
            if isinstance(item, list) and isinstance(item[0], Tensor)
            else item
        )

    return {key: move(item) for key, item in batch.items()}


@check
def losses(device: str) -> dict:
    """Of the five twins on the same weights and images: CPU in fp32; here plain, with the teacher's stream, by default."""
    from helpers.tiny import gradients, large_batch
    from mtpd.config.recipe import load_recipe
    from mtpd.engine import speed
    from mtpd.preflight import trial

    report = {}
    kinds = {'cpu': speed.Speed(), 'plain': speed.Speed()}
    kinds |= {
        'stream': speed.Speed(teacher_stream=device == 'cuda'),
        'default': speed.resolve_speed(None, device),
    }
    for path in sorted(Path('configs/mini').glob('*__*.py')):
        recipe = load_recipe(
            str(path), {'distill.settings.mgd.mask_ratio': 0.0}
        )  # masks are drawn on the device
        teacher = list(recipe.cfg.teachers)[-1]
        values, norms = {}, {}
        for kind, switches in kinds.items():
            place = 'cpu' if kind == 'cpu' else device
            torch.manual_seed(0)
            model = trial.untrained_detector(recipe, 'student', teacher).to(place).train()
            speed.apply_speed(model, switches._replace(keep_memory=False), place)
            data = moved(large_batch(masks='mask' in path.stem), place)
            values[kind], grads = gradients(model, **data)
            norms[kind] = float(sum(g.double().pow(2).sum().cpu() for g in grads.values()).sqrt())
        worst = {
            kind: max(
                abs(v - values['cpu'][name]) / max(abs(values['cpu'][name]), 1e-2)
                for name, v in some.items()
            )
            for kind, some in values.items()
        }
        report[path.stem] = {'worst': worst, 'gradient_norms': norms, 'losses': values}
    return report


@check
def the_teachers_stream(device: str) -> dict:
    """Distillation losses of ten batches with and without it, on images large enough to race; 0 apart is expected."""
    from helpers.tiny import large_batch
    from mtpd.config.recipe import load_recipe
    from mtpd.engine import speed
    from mtpd.preflight import trial

    recipe = load_recipe(MINI, {'distill.settings.mgd.mask_ratio': 0.0})
    side, count = (1024, 16) if device == 'cuda' else (128, 2)
    series = {}
    for stream in (False, True):
        torch.manual_seed(0)
        model = trial.untrained_detector(recipe, 'student', 'rx101').to(device).train()
        switches = speed.Speed(
            channels_last=True, fold_teacher=True, teacher_stream=stream and device == 'cuda'
        )
        speed.apply_speed(model, switches, device)
        small, series[stream] = moved(large_batch(masks=False), device), []
        for number in range(10 if device == 'cuda' else 2):
            torch.manual_seed(number)
            data = {key: item[:1] * count for key, item in small.items() if key != 'img'}
            data['img'] = torch.randn(count, 3, side, side, device=device)
            results = model.forward_train(**data)
            flat = [sum(v) if isinstance(v, list) else v for k, v in results.items() if 'loss' in k]
            sum(flat).backward()
            model.zero_grad()
            series[stream].append([float(v.detach()) for k, v in results.items() if 'mgd' in k])
    a, b = (np.array(series[stream]) for stream in (False, True))
    return {'apart': float(np.max(np.abs(a - b) / np.abs(a))), 'losses': a[0].tolist()}


@check
def fused_optimizers(device: str) -> dict:
    """Weights after five updates, fused against not."""
    report = {}
    for kind, more in ((torch.optim.SGD, {'momentum': 0.9}), (torch.optim.AdamW, {})):
        ends = []
        for fused in (False, True):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.Conv2d(64, 8, 3)).to(
                device
            )
            model.to(memory_format=torch.channels_last)
            optimizer = kind(model.parameters(), lr=1e-2, weight_decay=1e-2, fused=fused, **more)
            for number in range(5):
                torch.manual_seed(number)
                optimizer.zero_grad()
                model(torch.randn(4, 3, 16, 16).to(device)).pow(2).mean().backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
            ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        report[kind.__name__] = apart(ends[1], ends[0])
    return report


def small(folder: str, device: str, **more) -> object:
    from helpers.tiny import SMALL
    from mtpd.config.recipe import load_recipe

    scenes = {
        'data.scenes.train': 8,
        'data.scenes.val': 4,
        'data.scenes.size': 64,
        'data.cache': folder,
    }
    return load_recipe(MINI, SMALL | scenes | {'runtime.device': device} | more)


@check
def resuming(device: str) -> dict:
    """Two updates, then two more from latest.pth, with the device's own switches."""
    from mmcv import ConfigDict
    from mmdet.models import build_detector

    from mtpd.engine.loop import train_model
    from mtpd.utils.files import read_json

    with tempfile.TemporaryDirectory() as folder:
        recipe, out = small(folder, device), Path(folder, 'run')
        cfg = recipe.model('student')
        for updates in (2, 4):
            train_model(recipe, lambda: build_detector(ConfigDict(cfg)), cfg, out, updates, 0)
        state = torch.load(out / 'latest.pth', weights_only=True)['optimizer']['state'][0]
        return {'update': read_json(out / 'training.json')['update'], 'step': float(state['step'])}


DDP = """
import sys; sys.path[:0] = ['.', 'tests', 'benchmarks/gpu']
import os, tempfile
from pathlib import Path
import check, torch, torch.distributed as dist
from mmcv.parallel import MMDistributedDataParallel, collate
from mtpd.engine import loop, speed
from mtpd.preflight import trial
from mtpd.preflight.trial import example_images
device = sys.argv[2]
dist.init_process_group('nccl' if device == 'cuda' else 'gloo', init_method='file://' + sys.argv[1], rank=0, world_size=1)
with tempfile.TemporaryDirectory() as folder:
    recipe, results = check.small(folder, device, **{'distill.settings.mgd.mask_ratio': 0.0}), []
    data = example_images(recipe, Path(folder), 2, 0, False)
    items = [data[0], data[1]]
    for distributed in (False, True):
        torch.manual_seed(0)
        model = trial.untrained_detector(recipe, 'student', 'r101').to(device).train()
        speed.apply_speed(model, speed.resolve_speed(None, device)._replace(keep_memory=False), device)
        if distributed and device == 'cuda':
            options = dict(device_ids=[0], broadcast_buffers=False, find_unused_parameters=True)
            wrapped = MMDistributedDataParallel(model, **options)
        else:
            wrapped = loop.data_parallel(model, device)
        loss = wrapped.train_step(collate(items, 2), None)['loss']
        loss.backward()
        results.append(float(loss.detach()))
print(results, flush=True)
os._exit(0)
"""


@check
def distributed(device: str) -> dict:
    """mmcv's wrapper for several processes, in one with NCCL: the loss of an update without and with it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, '-W', 'ignore', '-c', DDP, f'{folder}/store', device]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr[-1500:])
    return {'losses': json.loads(done.stdout.splitlines()[-1])}


@check
def evaluation(device: str) -> dict:
    """AP of the demo's teacher 2 on 60 scenes, here and, in a process that sees no GPU, on the CPU."""
    from mtpd.config.recipe import load_recipe
    from mtpd.engine.evaluation import evaluate

    with tempfile.TemporaryDirectory() as folder:
        scenes = {
            'data.scenes.train': 8,
            'data.scenes.val': 60,
            'data.cache': folder,
            'runtime.device': device,
        }
        recipe = load_recipe(MINI, scenes)
        report = {
            device: evaluate(recipe, 'configs/mini/teachers/rx101/model.pth', detector='rx101')[
                'bbox_mAP'
            ]
        }
    if device == 'cuda':
        file = tempfile.mktemp()
        command = [
            sys.executable,
            '-W',
            'ignore',
            __file__,
            '--device',
            'cpu',
            '--only',
            'evaluation',
            '--out',
            file,
        ]
        subprocess.run(
            command,
            env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
            capture_output=True,
            timeout=120,
        )
        report['cpu'] = json.loads(Path(file).read_text())['evaluation'].get('cpu')
    return report


@check
def the_cpu_beside_a_gpu(device: str) -> dict:
    """Whether runtime.device=cpu keeps to the CPU where there is a GPU."""
    from mmdet.utils import build_dp

    from mtpd.engine import loop

    report = {}
    for name, work in (
        ('evaluation', lambda m: loop.data_parallel(m, 'cpu')),
        ('training', lambda m: build_dp(m, 'cpu', device_ids=[0])),
    ):
        try:
            report[name] = str(next(work(torch.nn.Linear(2, 1)).parameters()).device)
        except Exception as error:
            report[name] = f'{type(error).__name__}: {error}'
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--device', default='cuda', choices=['cuda', 'cpu'])
    parser.add_argument('--only', nargs='+', choices=list(CHECKS), default=list(CHECKS))
    options = parser.parse_args()
    results = {}
    for name in options.only:
        began = time.perf_counter()
        plain_matrices()
        torch.manual_seed(0)
        try:
            results[name] = CHECKS[name](options.device)
        except Exception as error:
            results[name] = {
                'error': f'{type(error).__name__}: {error}'[:2000],
                'at': traceback.format_exc()[-1500:],
            }
        plain_matrices(True)
        results[name]['seconds'] = round(time.perf_counter() - began, 1)
        short = {k: v for k, v in results[name].items() if k != 'at'}
        if name == 'losses':
            short = {k: v.get('worst', v) for k, v in results[name].items() if isinstance(v, dict)}
        print(name, json.dumps(short)[:900], flush=True)
        options.out.write_text(json.dumps(results, indent=1) + '\n')
    os._exit(0)  # nothing that is still open keeps the machine


if __name__ == '__main__':
    main()
