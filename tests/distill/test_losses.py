"""Distillation losses against formulas written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.loss_cases import CASES, slopes, value_of
from mtpd.distill.losses import CWD, DISTILL_LOSSES, MGD, PKD, FeatureMSE, build_distill_loss
from mtpd.errors import MtpdError

KINDS = sorted(DISTILL_LOSSES.module_dict)
# Boxes of two images of different size: overlapping, partly outside, within a cell; and none.
BOXES = [[[3, 5, 40, 20], [30, -9, 70, 12], [10.5, 10.5, 12.5, 11.5]], []]
METAS = [
    dict(img_shape=(30, 44, 3), pad_shape=(32, 48, 3)),
    dict(img_shape=(28, 33, 3), pad_shape=(32, 40, 3)),
]
# The heights and widths that these maps cover by either way of scaling the boxes.
SIZES = {'pad_shape': [(32, 48), (32, 48)], 'img_shape': [(30, 44), (28, 33)]}


def make(kind, student_channels=4, **settings):
    """A loss with random weights: at first FGD's relation adds nothing."""
    torch.manual_seed(2)  # no hidden unit of FGD's relation is cut off by its ReLU
    loss = build_distill_loss(
        dict(type=kind, student_channels=student_channels, teacher_channels=6)
        | CASES[kind].settings
        | settings
    )
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter)
    return loss


def annotations(dtype=torch.float32):
    boxes = [torch.tensor(rows, dtype=dtype).reshape(-1, 4) for rows in BOXES]
    return dict(gt_bboxes=boxes, img_metas=METAS)


@pytest.mark.parametrize('student_channels', [4, 6])
@pytest.mark.parametrize(
    'kind, more',
    [
        *((kind, {}) for kind in KINDS if CASES[kind].formula),
        ('FGD', {'box_scale': 'img_shape'}),
    ],
)
def test_value_and_gradients_follow_the_formula(kind, more, student_channels):
    loss = make(kind, student_channels, **more).double()
    student = torch.randn(2, student_channels, 4, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 6, 4, 6, dtype=torch.float64)
    given = annotations(torch.float64)
    result = loss(student, teacher, **given)
    assert result.shape == ()
    result.backward()

    inputs = dict(loss.named_parameters()) | {'student': student}
    assert ('align.weight' in inputs) == (student_channels != 6)
    p = {name: tensor.detach().numpy().copy() for name, tensor in inputs.items()}
    boxes = [image.numpy() for image in given['gt_bboxes']]
    sizes = SIZES[more.get('box_scale', 'pad_shape')]

    def by_hand():
        return value_of(loss, p, p['student'], teacher.numpy(), boxes, sizes)

    np.testing.assert_allclose(result.item(), by_hand(), rtol=1e-12)
    expected = {name: slopes(by_hand, array) for name, array in p.items()}
    largest = max(np.abs(grad).max() for grad in expected.values())
    for name, grad in expected.items():
        scale = largest if name in CASES[kind].idle else np.abs(grad).max()
        assert scale > 1e-3 * largest, f'{name}: too small to compare'
        gradient = inputs[name].grad.numpy()
        np.testing.assert_allclose(gradient, grad, rtol=0, atol=1e-7 * scale, err_msg=name)
    errors = [
        np.abs(inputs[name].grad.numpy() - grad).max() / np.abs(grad).max()
        for name, grad in expected.items()
        if name not in CASES[kind].idle
    ]
    off = abs(result.item() / by_hand() - 1)
    print(f'{kind}: largest relative error, value {off:.1e}, gradients {max(errors):.1e}')


@pytest.mark.parametrize('kind', KINDS)
def test_any_precision_and_memory_layout_gives_the_loss_in_float32(kind):
    loss = make(kind, student_channels=6)
    student, teacher = torch.randn(2, 2, 6, 32, 48).mul(30).half()

    def value(*features):
        torch.manual_seed(1)  # MGD's mask
        return loss(*features, **annotations())

    expected = value(student.float(), teacher.float())
    last = value(*(f.float().to(memory_format=torch.channels_last) for f in (student, teacher)))
    assert last.item() == pytest.approx(expected.item(), rel=1e-5)
    with torch.autocast('cpu', dtype=torch.float16):
        feature = student.clone().requires_grad_()
        half = value(feature, teacher)
    half.backward()
    assert half.dtype == torch.float32 and feature.grad.isfinite().all()
    # MGD's generation, two convolutions, is all that runs in half precision.
    assert half.item() == pytest.approx(expected.item(), rel=1e-2 if kind == 'MGD' else 1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_equal_features_cost_nothing_and_only_some_losses_have_weights(kind):
    feature = torch.randn(2, 6, 4, 6)
    loss = build_distill_loss(dict(type=kind, student_channels=6, teacher_channels=6))
    if CASES[kind].formula:
        assert loss(feature, feature, **annotations()).item() == pytest.approx(0, abs=1e-6)
    assert bool(loss.state_dict()) == CASES[kind].has_weights


def test_cwd_sees_where_a_channel_is_strong_and_not_how_strong_it_is_on_the_whole():
    student, teacher = torch.randn(2, 2, 3, 4, 6)
    loss = CWD(3, 3)
    value = loss(student, teacher).item()
    assert value > 0.1
    assert loss(student + 5, teacher - 3).item() == pytest.approx(value, rel=1e-4)
    assert loss(student.flip(3), teacher).item() != pytest.approx(value, rel=1e-2)
    # One channel of two cells by hand: p_t = (1/2, 1/2), p_s = (1/4, 3/4).
    logits = torch.tensor([1.0, 3.0]).log().view(1, 1, 1, 2)
    by_hand = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert CWD(1, 1, weight=1)(logits, torch.zeros(1, 1, 1, 2)).item() == pytest.approx(by_hand)


def test_pkd_is_one_minus_the_correlation_whatever_the_magnitudes():
    student, teacher = torch.randn(2, 3, 1, 4, 6)
    loss = PKD(1, 1, weight=1.0)
    r = np.corrcoef(student.flatten(), teacher.flatten())[0, 1]
    n = student.numel()
    assert loss(student, teacher).item() == pytest.approx((1 - r) * (n - 1) / n, rel=1e-4)
    assert loss(7 * student + 4, teacher).item() == pytest.approx(
        loss(student, teacher).item(), rel=1e-4
    )


def test_pkd_of_a_constant_channel_has_a_finite_gradient():
    student = torch.ones(2, 3, 4, 4, requires_grad=True)
    PKD(3, 3)(student, torch.randn(2, 3, 4, 4)).backward()
    assert student.grad.isfinite().all()
    with pytest.raises(MtpdError, match=r'\(1, 3, 1, 1\).*one cell'):
        PKD(3, 3)(torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1, 1))


def test_feature_mse_by_hand():
    student, teacher = torch.zeros(2, 3, 4, 6), torch.zeros(2, 3, 4, 6)
    student[0, 0, 0, 0] = 12.0  # 144 over 144 elements
    assert FeatureMSE(3, 3, weight=0.5)(student, teacher).item() == pytest.approx(0.5)


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
    gradients = {name: parameter.grad for name, parameter in loss.named_parameters()}
    gradients['student'] = student.grad
    assert gradients.keys() == grads.keys()
    for name, grad in grads.items():
        np.testing.assert_allclose(
            gradients[name].numpy(), grad, rtol=1e-10, atol=1e-13, err_msg=name
        )


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


GOOD = {'student_channels': 4, 'teacher_channels': 4}


@pytest.mark.parametrize(
    'cfg, words',
    [
        ({'type': 'MDG', 'student_channels': 4, 'teacher_channels': 4}, ['MDG', "mean 'MGD'"]),
        ({'type': 'MGD', 'student_channels': 4}, ['MGD', 'teacher_channels']),
        ({'type': 'MGD', 'student_channels': 4, 'teacher_channels': 4, 'lamda': 1}, ['lamda']),
        (GOOD | {'type': 'FeatureMSE', 'weight': 'big'}, ['FeatureMSE: wrong arguments']),
    ],
)
def test_a_wrong_loss_config_is_named(cfg, words):
    with pytest.raises(MtpdError) as error:
        build_distill_loss(cfg)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize('kind', KINDS)
def test_a_setting_out_of_range_is_named(kind):
    assert CASES[kind].refused
    for settings, words in CASES[kind].refused:
        with pytest.raises(MtpdError) as error:
            build_distill_loss(GOOD | {'type': kind} | settings)
        assert words in str(error.value) and str(error.value).startswith(kind)


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
