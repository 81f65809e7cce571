"""The known values that compiled ops are compared with, and that other values are noticed."""

from __future__ import annotations

from itertools import pairwise

import pytest

from helpers.toolchain import one_by_one
from mtpd.runtime import selftest


@pytest.mark.parametrize('name', ['nms', 'roi_align', 'deform_conv2d'])
def test_an_op_that_computes_something_else_is_noticed(monkeypatch, name):
    from mtpd.runtime import compat  # noqa: F401  (before mmcv)

    # isort: split
    import mmcv.ops

    right = getattr(mmcv.ops, name)

    def wrong(*args):
        result = right(*args)
        return (result[0], result[1].flip(0)) if name == 'nms' else result * 1.01

    assert selftest.check_ops('cpu') == selftest.CPU_OPS
    monkeypatch.setattr(mmcv.ops, name, wrong)
    with pytest.raises(SystemExit, match=name.removesuffix('2d')):
        selftest.check_ops('cpu')


def test_what_two_devices_give_is_compared_to_a_thousandth(monkeypatch):
    """On the CPU twice: once as it is, once with each op's last output a hundredth off."""
    from mtpd.runtime import compat  # noqa: F401  (before mmcv)

    right = selftest.random_outputs
    selftest.check_against_cpu('cpu')
    for name in selftest.GPU_OPS:
        results = right('cpu'), right('cpu')
        results[0][name][-1] *= 1.01
        monkeypatch.setattr(selftest, 'random_outputs', one_by_one(*results))
        with pytest.raises(SystemExit, match=rf'{name} \(cuda\) differs by 1\.0e-02'):
            selftest.check_against_cpu('cuda')
    results[0]['nms'][0] = results[0]['nms'][0][1:]
    monkeypatch.setattr(selftest, 'random_outputs', one_by_one(*results))
    with pytest.raises(SystemExit, match=r'nms .* has shape'):
        selftest.check_against_cpu('cuda')


def test_wrong_values_are_told():
    with pytest.raises(SystemExit, match=r'nms gave \[0\], not \[1, 2\]'):
        selftest.check_equal('nms', [0], selftest.KEPT_BOXES)


def test_known_values_are_right_by_hand():
    first, second, third = selftest.BOXES
    overlap = (second[2] * second[3]) / (first[2] * first[3])  # the second lies inside the first
    assert overlap == 0.9 > 0.5
    assert third[0] > first[2]
    pixels = [[4 * y + x for x in range(4)] for y in range(4)]
    means = [
        [sum(pixels[2 * i + y][2 * j + x] for y in (0, 1) for x in (0, 1)) / 4 for j in (0, 1)]
        for i in (0, 1)
    ]
    assert means == selftest.POOLED_BINS
    row = [*selftest.ROW, 0]
    assert [(a + b) / 2 for a, b in pairwise(row)] == selftest.SHIFTED_ROW


def test_the_focal_loss_known_by_hand_is_torchvisions():
    from mtpd.runtime import compat  # noqa: F401  (before torchvision)

    # isort: split
    import torch
    from torchvision.ops import sigmoid_focal_loss

    loss = sigmoid_focal_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), 0.25, 2.0)
    assert loss[0].tolist() == pytest.approx(selftest.FOCAL_LOSSES)
