"""The focal loss by the kit's kernel is mmdet's, gradients too."""

from __future__ import annotations

import pytest
import torch

from mtpd.runtime import target_assignment

# isort: split
from mmdet.models import build_loss
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from torch.nn import functional as F

CASES = {
    'plain': (5000, 80, 2.0, 0.25),
    'one class': (777, 1, 2.0, 0.25),
    'other factors': (300, 9, 1.5, 0.6),
    'of a single row': (1, 3, 2.0, 0.25),
}


@pytest.mark.gpu
@pytest.mark.parametrize('weighted', [True, False])
@pytest.mark.parametrize('name', CASES)
def test_it_is_that_of_the_formula(name, weighted):
    pytest.importorskip('triton')
    target_assignment.patch_target_assignment()
    count, classes, gamma, alpha = CASES[name]
    torch.manual_seed(0)
    pred = torch.randn(count, classes, device='cuda') * 8
    pred[0, 0], pred[-1, -1] = 60, -60
    pred.requires_grad_()
    target = torch.randint(classes + 1, (count,), device='cuda')
    weight = torch.rand(count, device='cuda') if weighted else None
    loss = build_loss(dict(type='FocalLoss', gamma=gamma, alpha=alpha, loss_weight=1.5))
    ours = loss(pred, target, weight, avg_factor=torch.tensor(37.0, device='cuda'))
    assert type(ours.grad_fn).__name__ == 'MulBackward0'
    assert 'FocalSum' in str(ours.grad_fn.next_functions[0][0].next_functions)
    (gradient,) = torch.autograd.grad(ours, pred)

    exact = pred.detach().double().requires_grad_()
    flags = F.one_hot(target, classes + 1)[:, :classes]
    weight = None if weight is None else weight.double()
    theirs = 1.5 * py_sigmoid_focal_loss(exact, flags, weight, gamma, alpha, 'mean', 37.0)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=0)
    (wanted,) = torch.autograd.grad(theirs, exact)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.gpu
def test_bfloat16_and_what_is_left_to_mmdet():
    target_assignment.patch_target_assignment()
    pred = torch.randn(50, 4, device='cuda', dtype=torch.bfloat16, requires_grad=True)
    target = torch.randint(5, (50,), device='cuda')
    loss = build_loss(dict(type='FocalLoss'))
    (gradient,) = torch.autograd.grad(loss(pred, target, avg_factor=3), pred)
    assert gradient.dtype == torch.bfloat16
    single = loss(pred.float(), target, reduction_override='none')
    assert single.shape == (50, 4)
    torch.testing.assert_close(loss(pred.float(), target), single.mean())
    mean = loss(pred.float(), target, avg_factor=3)
    torch.testing.assert_close(mean, single.sum() / 3, rtol=1e-5, atol=0)
