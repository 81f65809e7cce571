"""Run mmcv's compiled nms and roi_align on values worked out by hand: `python -m mtpd.selftest [full]`.

Prints one JSON object; `full` goes through `mmcv.ops` (and a GPU where the ops are for one).
"""

from __future__ import annotations

import json
import sys

import torch

# The second box covers nine tenths of the first and scores higher; the third is far away.
BOXES = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0]]
SCORES = [0.8, 0.9, 0.7]
KEPT = [1, 2]
# A 4 x 4 image of 0..15; with two samples a bin and `aligned`, they fall on the pixels' centres, so
# that each of the 2 x 2 bins is the mean of four pixels.
ROI = [[0.0, 0.0, 0.0, 4.0, 4.0]]
POOLED = [[2.5, 4.5], [10.5, 12.5]]


def expect(name: str, got: list, wanted: list) -> None:
    if got != wanted:
        raise SystemExit(f'{name} gave {got}, not {wanted}.')


def check_library() -> str | None:
    """The compiled library alone. Returns the CUDA release it was built with, or None."""
    from mmcv import _ext

    kept = _ext.nms(torch.tensor(BOXES), torch.tensor(SCORES), iou_threshold=0.5, offset=0)
    expect('nms', kept.tolist(), KEPT)
    cuda = _ext.get_compiling_cuda_version()
    return None if cuda == 'not available' else cuda


def check_ops(device: str) -> None:
    """The ops as mmdet calls them."""
    from mmcv.ops import nms, roi_align

    kept = nms(torch.tensor(BOXES, device=device), torch.tensor(SCORES, device=device), 0.5)[1]
    expect(f'nms ({device})', kept.tolist(), KEPT)
    image = torch.arange(16.0, device=device).view(1, 1, 4, 4)
    pooled = roi_align(image, torch.tensor(ROI, device=device), 2, 1.0, 2, 'avg', True)[0, 0]
    expect(f'roi_align ({device})', pooled.tolist(), POOLED)


if __name__ == '__main__':
    if 'full' in sys.argv[1:]:
        from . import compat  # noqa: F401  (before mmcv)
    cuda = check_library()
    if 'full' in sys.argv[1:]:
        check_ops('cpu')
        if cuda and torch.cuda.is_available():
            check_ops('cuda')
    print(json.dumps({'cuda': cuda}))
