"""Max pooling channels-last gives torch's numbers to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtpd.engine.max_pooling import pool_channels_last

POOLS = {
    'ResNet': nn.MaxPool2d(3, 2, 1),
    'no overlap': nn.MaxPool2d(2),
    'ceil mode': nn.MaxPool2d(2, ceil_mode=True),
    'oblong, dilated': nn.MaxPool2d((3, 2), (2, 1), (1, 0), dilation=(1, 2)),
}


@pytest.mark.parametrize('pool', POOLS.values(), ids=POOLS)
@pytest.mark.parametrize('shape', [(2, 16, 32, 32), (3, 5, 17, 13)])
@pytest.mark.parametrize('ties', [True, False])
def test_outputs_and_gradients_are_torchs(pool, shape, ties):
    torch.manual_seed(0)
    x = torch.randn(shape)
    x = x.relu() if ties else x  # zeros beside each other: which of them gets the gradient?
    ours = nn.Sequential(type(pool)(**{k: getattr(pool, k) for k in pool.__constants__}))
    pool_channels_last(ours)
    results = []
    for model in (pool, ours):
        leaf = x.clone().requires_grad_()
        output = model(leaf)
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        (output * weights).sum().backward()
        results.append((output, leaf.grad))
    (output, gradient), (our_output, our_gradient) = results
    assert torch.equal(output, our_output) and torch.equal(gradient, our_gradient)
    assert our_output.stride() == output.stride()


def test_a_pooling_that_gives_its_indices_is_left_alone():
    pool = nn.MaxPool2d(2, return_indices=True)
    pool_channels_last(pool)
    output, indices = pool(torch.arange(16.0).view(1, 1, 4, 4))
    assert output.flatten().tolist() == indices.flatten().tolist() == [5, 7, 13, 15]
