"""Distillation losses against formulas written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtpd.errors import MtpdError
from mtpd.losses import MGD, build_distill_loss


def conv(x, weight, bias):
    """'Same' convolution as a sum over taps: x (N, C, H, W), weight (O, C, k, k)."""
    k = weight.shape[2]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    out = np.zeros((x.shape[0], weight.shape[0], *x.shape[2:])) + bias[None, :, None, None]
    for i in range(k):
        for j in range(k):
            window = padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
            out += np.einsum('nchw,oc->nohw', window, weight[:, :, i, j])
    return out


def conv_back(grad, x, weight):
    """Gradients of `conv` for x, weight and bias, tap by tap."""
    k = weight.shape[2]
    pad, (h, w) = k // 2, x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    to_padded, to_weight = np.zeros_like(padded), np.zeros_like(weight)
    for i in range(k):
        for j in range(k):
            window = np.s_[:, :, i : i + h, j : j + w]
            to_weight[:, :, i, j] = np.einsum('nohw,nchw->oc', grad, padded[window])
            to_padded[window] += np.einsum('nohw,oc->nchw', grad, weight[:, :, i, j])
    return to_padded[:, :, pad : pad + h, pad : pad + w], to_weight, grad.sum((0, 2, 3))


def mgd_by_hand(loss, student, teacher, mask):
    """Value of MGD and its gradients {name: array}, in float64 and without autograd."""
    p = {name: value.detach().numpy() for name, value in loss.named_parameters()}
    aligned = conv(student, p['align.weight'], p['align.bias']) if loss.align else student
    masked = aligned * mask
    hidden = conv(masked, p['generation.0.weight'], p['generation.0.bias'])
    positive = np.maximum(hidden, 0)
    difference = conv(positive, p['generation.2.weight'], p['generation.2.bias']) - teacher
    scale = loss.alpha / len(student)
    grad, g = 2 * scale * difference, {}
    grad, g['generation.2.weight'], g['generation.2.bias'] = conv_back(
        grad, positive, p['generation.2.weight']
    )
    grad, g['generation.0.weight'], g['generation.0.bias'] = conv_back(
        grad * (hidden > 0), masked, p['generation.0.weight']
    )
    grad = grad * mask
    if loss.align:
        grad, g['align.weight'], g['align.bias'] = conv_back(grad, student, p['align.weight'])
    g['student'] = grad
    return scale * (difference**2).sum(), g


@pytest.mark.parametrize('mask_ratio', [0, 0.65])
@pytest.mark.parametrize('student_channels', [3, 4])
def test_mgd_value_and_gradients_follow_the_formula(student_channels, mask_ratio):
    torch.manual_seed(3)
    loss = MGD(student_channels, 4, alpha=0.3, mask_ratio=mask_ratio).double()
    student = torch.randn(2, student_channels, 5, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(11)
    mask = (torch.rand(2, 1, 5, 6) >= mask_ratio).double().numpy()
    assert mask.all() if mask_ratio == 0 else 0 < mask.mean() < 1
    value, grads = mgd_by_hand(loss, student.detach().numpy(), teacher.detach().numpy(), mask)

    torch.manual_seed(11)
    result = loss(student, teacher, gt_bboxes=None, img_metas=None)
    assert result.shape == ()
    result.backward()

    np.testing.assert_allclose(result.item(), value, rtol=1e-12)
    found = {name: parameter.grad for name, parameter in loss.named_parameters()}
    found['student'] = student.grad
    assert found.keys() == grads.keys()
    for name, grad in grads.items():
        np.testing.assert_allclose(found[name].numpy(), grad, rtol=1e-10, atol=1e-13, err_msg=name)


def test_mgd_is_zero_when_the_generation_reproduces_the_teacher():
    loss = MGD(4, 4, alpha=1.0, mask_ratio=0.0)
    for layer in (loss.generation[0], loss.generation[2]):
        torch.nn.init.dirac_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    feature = torch.rand(2, 4, 6, 6)  # not negative, so the ReLU lets it through
    assert loss(feature, feature).item() == 0
    assert loss(feature, feature + 1).item() == pytest.approx(4 * 6 * 6)  # N divided out


def test_mgd_masks_whole_cells_at_the_stated_ratio():
    loss = MGD(2, 2, mask_ratio=0.65)
    seen = []
    loss.generation.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    torch.manual_seed(0)
    feature = torch.ones(4, 2, 200, 200)
    loss(feature, feature)
    loss(feature, feature)
    first, second = seen
    assert set(first.unique().tolist()) == {0, 1}
    assert torch.equal(first[:, 0], first[:, 1]), 'a cell is masked in all channels or in none'
    # 160,000 draws: the standard deviation of the share is 0.0012.
    assert (first[:, 0] == 0).float().mean().item() == pytest.approx(0.65, abs=0.006)
    assert not torch.equal(first[0], first[1]), 'each image has its own mask'
    assert not torch.equal(first, second), 'each call draws anew'


def test_mgd_scales_with_alpha_and_divides_by_the_batch():
    def value(alpha, copies):
        torch.manual_seed(5)
        loss = MGD(3, 3, alpha=alpha, mask_ratio=0.0)
        feature = torch.rand(1, 3, 4, 4).repeat(copies, 1, 1, 1)
        return loss(feature, feature * 2).item()

    assert value(2e-5, 1) == pytest.approx(value(1, 1) * 2e-5, rel=1e-5)
    assert value(1, 3) == pytest.approx(value(1, 1), rel=1e-5)


def test_mgd_has_the_originals_weight_names():
    names = {'generation.0.weight', 'generation.0.bias', 'generation.2.weight', 'generation.2.bias'}
    assert MGD(4, 4).state_dict().keys() == names
    assert MGD(3, 4).state_dict().keys() == names | {'align.weight', 'align.bias'}
    assert MGD(3, 4).align.weight.shape == (4, 3, 1, 1)


def test_mgd_sums_in_float32_under_autocast():
    loss = MGD(4, 4, alpha=1.0, mask_ratio=0.0)
    feature, far = torch.zeros(1, 4, 32, 32), torch.full((1, 4, 32, 32), 100.0)
    with torch.autocast('cpu', dtype=torch.float16):
        value = loss(feature, far.half())  # a sum of 4e7, float16 ends at 65504
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(feature, far).item(), rel=1e-2)


@pytest.mark.parametrize(
    'cfg, words',
    [
        ({'type': 'MDG', 'student_channels': 4, 'teacher_channels': 4}, ['MDG', "mean 'MGD'"]),
        ({'type': 'MGD', 'student_channels': 4}, ['MGD', 'teacher_channels']),
        ({'type': 'MGD', 'student_channels': 4, 'teacher_channels': 4, 'lamda': 1}, ['lamda']),
        (
            {'type': 'MGD', 'student_channels': 4, 'teacher_channels': 4, 'mask_ratio': 1},
            ['[0, 1)'],
        ),
        ({'type': 'MGD', 'student_channels': 4, 'teacher_channels': 4, 'alpha': -1}, ['alpha']),
    ],
)
def test_a_wrong_loss_config_is_named(cfg, words):
    with pytest.raises(MtpdError) as error:
        build_distill_loss(cfg)
    assert all(word in str(error.value) for word in words), error.value


def test_a_loss_is_built_without_its_name_and_the_config_stays():
    cfg = {'type': 'MGD', 'name': 'loss_x', 'student_channels': 3, 'teacher_channels': 4}
    before = dict(cfg)
    assert isinstance(build_distill_loss(cfg), MGD)
    assert cfg == before


@pytest.mark.parametrize(
    'student, teacher, words',
    [
        ((1, 5, 8, 8), (1, 4, 8, 8), ['student', '(1, 5, 8, 8)', 'student_channels=3']),
        ((1, 3, 8, 8), (1, 3, 8, 8), ['teacher', '(1, 3, 8, 8)', 'teacher_channels=4']),
        ((1, 3, 8, 8), (1, 4, 4, 8), ['(1, 3, 8, 8)', '(1, 4, 4, 8)', 'stride']),
        ((2, 3, 8, 8), (1, 4, 8, 8), ['(2, 3, 8, 8)', '(1, 4, 8, 8)']),
    ],
)
def test_feature_maps_that_do_not_fit_are_named(student, teacher, words):
    with pytest.raises(MtpdError) as error:
        MGD(3, 4)(torch.zeros(student), torch.zeros(teacher))
    assert all(word in str(error.value) for word in words), error.value
