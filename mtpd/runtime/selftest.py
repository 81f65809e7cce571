"""Runs mmcv's compiled ops on values with known results, and on a GPU against the CPU: `python -m mtpd.runtime.selftest [full]`.

Prints one JSON object, see `install.ops.self_test`. `full` goes through `mmcv.ops`, on the CPU and on the GPU that 'auto'
takes.
"""

from __future__ import annotations

import json
import math
import sys

import torch

# The second box covers nine tenths of the first and scores higher; the third is far away.
BOXES = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0]]
SCORES = [0.8, 0.9, 0.7]
KEPT_BOXES = [1, 2]
# A 4 x 4 image of 0..15; with two samples a bin and `aligned`, they fall on the pixels' centres, so
# that each of the 2 x 2 bins is the mean of four pixels.
ROI = [[0.0, 0.0, 0.0, 4.0, 4.0]]
POOLED_BINS = [[2.5, 4.5], [10.5, 12.5]]
# A row of pixels, each moved half a pixel to the left by a 1 x 1 convolution of weight 1: the mean of two neighbours, and
# of the last and the zero beyond it.
ROW = [0.0, 1.0, 2.0, 3.0]
SHIFTED_ROW = [0.5, 1.5, 2.5, 1.5]
# Logits 0 are probabilities of a half: alpha (1 - p)^2 -log p for the class that is right, 1 - alpha for the other.
FOCAL_LOSSES = [0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)]
TOLERANCE = 1e-3  # of the largest value; float32 sums in another order
CPU_OPS = ['nms', 'roi_align', 'deform_conv']
GPU_OPS = [*CPU_OPS, 'focal_loss']  # mmcv has no focal loss for the CPU, where mmdet takes its own


def check_equal(name: str, got: list, wanted: list) -> None:
    if got != wanted:
        raise SystemExit(f'{name} gave {got}, not {wanted}.')


def check_library() -> str | None:
    """The compiled library alone. Returns the CUDA release it was built with, or None."""
    from mmcv import _ext

    places = _ext.nms(torch.tensor(BOXES), torch.tensor(SCORES), iou_threshold=0.5, offset=0)
    check_equal('nms', places.tolist(), KEPT_BOXES)
    cuda = _ext.get_compiling_cuda_version()
    return None if cuda == 'not available' else cuda


def check_ops(device: str) -> list[str]:
    """The ops as mmdet calls them, on values with known results. Returns their names."""
    from mmcv.ops import deform_conv2d, nms, roi_align, sigmoid_focal_loss

    places = nms(torch.tensor(BOXES, device=device), torch.tensor(SCORES, device=device), 0.5)[1]
    check_equal(f'nms ({device})', places.tolist(), KEPT_BOXES)
    image = torch.arange(16.0, device=device).view(1, 1, 4, 4)
    pooled = roi_align(image, torch.tensor(ROI, device=device), 2, 1.0, 2, 'avg', True)[0, 0]
    check_equal(f'roi_align ({device})', pooled.tolist(), POOLED_BINS)
    row = torch.tensor(ROW, device=device).view(1, 1, 1, 4)
    offset = torch.tensor([0.0, 0.5], device=device).view(1, 2, 1, 1).repeat(1, 1, 1, 4)
    moved = deform_conv2d(row, offset, torch.ones(1, 1, 1, 1, device=device))
    check_equal(f'deform_conv ({device})', moved.flatten().tolist(), SHIFTED_ROW)
    if device == 'cpu':
        return CPU_OPS
    logits, target = torch.zeros(1, 2, device=device), torch.tensor([0], device=device)
    loss = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    if not torch.allclose(loss.cpu(), torch.tensor([FOCAL_LOSSES])):
        raise SystemExit(f'focal_loss ({device}) gave {loss.tolist()}, not {[FOCAL_LOSSES]}.')
    return GPU_OPS


def check_against_cpu(device: str) -> None:
    """The same ops on the same random values, and their gradients, on a device and on the CPU."""
    on_device = random_outputs(device)
    for name, wanted in random_outputs('cpu').items():
        for ours, theirs in zip(on_device[name], wanted, strict=True):
            if ours.shape != theirs.shape:
                raise SystemExit(
                    f'{name} ({device}) has shape {[*ours.shape]}; on the CPU it is {[*theirs.shape]}.'
                )
            difference = (ours.cpu() - theirs).abs().max() / theirs.abs().max()
            if not difference <= TOLERANCE:  # NaN, too
                raise SystemExit(f'{name} ({device}) differs by {difference:.1e} from the CPU.')


def random_outputs(device: str) -> dict[str, list[torch.Tensor]]:
    """What each op gives for random values, the same on every device: its output and its gradients."""
    from mmcv.ops import deform_conv2d, nms, roi_align, sigmoid_focal_loss
    from torchvision.ops import sigmoid_focal_loss as python_focal_loss

    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(device)

    corners = 100 * random(500, 2).abs()
    boxes = torch.cat([corners, corners + 10 + 20 * random(500, 2).abs()], 1)
    rois = torch.cat([torch.zeros(50, 1, device=device), boxes[:50] / 8], 1)
    target = torch.arange(64, device=device) % 9  # 8 is the background
    one_hot = torch.nn.functional.one_hot(target, 9)[:, :8].float()

    def focal(logits: torch.Tensor) -> torch.Tensor:
        if device == 'cpu':
            return python_focal_loss(logits, one_hot, 0.25, 2.0)
        return sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')

    places = nms(boxes, random(500), 0.5)[1].float()
    return {
        'nms': [places],
        'roi_align': output_and_gradients(
            lambda x: roi_align(x, rois, 7, 1.0, 2, 'avg', True), random(1, 8, 32, 32)
        ),
        'deform_conv': output_and_gradients(
            lambda x, offset, weight: deform_conv2d(x, offset, weight, 1, 1),
            *(random(2, 8, 16, 16), random(2, 18, 16, 16), random(8, 8, 3, 3)),
        ),
        'focal_loss': output_and_gradients(focal, random(64, 8)),
    }


def output_and_gradients(function, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """A function's output, and the gradients of its squares' sum by its inputs."""
    inputs = [value.requires_grad_() for value in inputs]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]


def check_all() -> dict:
    """Runs all checks that `full` asks for. Raises SystemExit with what is wrong, and what to do."""
    from . import gpu_ops

    obstacle = gpu_ops.gpu_obstacle()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    device, checked = 'cpu', check_ops('cpu')
    if gpu and not obstacle:
        try:
            device, checked = 'cuda', check_ops('cuda')
            check_against_cpu('cuda')
        except RuntimeError as error:
            if 'no kernel image' not in str(error):
                raise
            version = '{}.{}'.format(*torch.cuda.get_device_capability())
            raise SystemExit(
                f'they hold no code for this GPU, {gpu} of architecture {version}.'
            ) from None
    return {'device': device, 'ops': checked, 'obstacle': obstacle, 'gpu': gpu}


if __name__ == '__main__':
    result = {'cuda': check_library()}
    if 'full' in sys.argv[1:]:
        result |= check_all()
    print(json.dumps(result))
