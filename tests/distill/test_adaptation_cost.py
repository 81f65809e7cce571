"""Adaptation costs against an explicit least-squares solve."""

import numpy as np
import pytest
import torch

from mtpd.distill.adaptation_cost import costs_from_features
from mtpd.errors import MtpdError

RNG = np.random.default_rng(0)


def features(count=12, channels=5, side=6):
    return RNG.normal(size=(count, channels, side, side))


def linear(source, out=7):
    """A random linear map of the channels plus a bias, the same at every pixel."""
    weights, bias = RNG.normal(size=(out, source.shape[1])), RNG.normal(size=(out, 1, 1))
    return np.einsum('oc,nchw->nohw', weights, source) + bias


def images(**detectors):
    """Per image {detector: {stride: (C, H, W)}}; a detector's levels (N, C, H, W) by stride, or one of stride 8."""
    levels = {n: v if isinstance(v, dict) else {8: v} for n, v in detectors.items()}
    count = len(next(iter(next(iter(levels.values())).values())))
    return [
        {n: {s: torch.from_numpy(x[i]) for s, x in v.items()} for n, v in levels.items()}
        for i in range(count)
    ]


def costs(**detectors):
    by_image = images(**detectors)
    return costs_from_features(by_image[::2], by_image[1::2])


def cost(a, b):
    return costs(a=a, b=b)['cost'][0, 1]


def explicit(a, b):
    """Fit on the images with even numbers, measure on the odd ones, with explicitly stacked pixels."""

    def pixels(x):
        return np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])

    def with_one(x):
        return np.c_[pixels(x), np.ones(len(pixels(x)))]

    weights = np.linalg.lstsq(with_one(a[::2]), pixels(b[::2]), rcond=None)[0]
    target = pixels(b[1::2])
    residual = np.sum((with_one(a[1::2]) @ weights - target) ** 2)
    return residual / np.sum((target - target.mean(0)) ** 2)


def test_closed_form_equals_explicit_least_squares():
    a, noise = features(), features(channels=7)
    b = linear(a) + 0.8 * noise
    assert 0.05 < explicit(a, b) < 0.95
    assert cost(a, b) == pytest.approx(explicit(a, b), abs=1e-6)
    assert cost(b, a) == pytest.approx(explicit(b, a), abs=1e-6)


def test_itself_and_linear_maps_cost_nothing_and_noise_costs_everything():
    a = features()
    assert cost(a, a) == pytest.approx(0, abs=1e-6)
    assert cost(a, linear(a)) == pytest.approx(0, abs=1e-6)
    assert cost(features(200), features(200)) == pytest.approx(1, abs=0.02)


def test_rank_deficient_features_are_safe():
    a = features()
    doubled = np.concatenate([a, a], axis=1)
    dead = np.concatenate([a, np.zeros_like(a)], axis=1)
    assert cost(doubled, linear(a)) == pytest.approx(0, abs=1e-4)
    assert cost(dead, linear(a)) == pytest.approx(0, abs=1e-4)


def test_a_pair_does_not_depend_on_the_others():
    a, b, c = features(), features(channels=3), features(channels=4)
    whole = costs(a=a, b=b, c=c)
    assert cost(a, b) == pytest.approx(whole['cost'][0, 1], abs=1e-12)
    assert whole['detectors'] == ['a', 'b', 'c'] and whole['images'] == 12


def test_held_out_costs_may_exceed_one_and_are_never_negative():
    many = features(4, channels=30, side=3)  # 18 pixels for 31 weights: fits anything
    assert cost(many, features(4, side=3)) > 1
    rng = np.random.default_rng(3)
    for _ in range(20):
        x = rng.normal(size=(6, 3, 4, 4))
        assert (costs(a=x, b=x @ rng.normal(size=(4, 4)), c=x * 1e6 + 1e7)['cost'] >= 0).all()


def test_the_mean_is_over_the_strides_that_both_have():
    a, b, coarse, coarser = features(), features(), features(side=3), features(side=2)
    mapped = linear(a)
    result = costs(a={8: a, 16: coarse}, b={8: mapped, 16: features(side=3), 32: coarser}, c={8: b})
    assert sorted(result['levels']) == [8, 16, 32]
    at = {stride: level[0, 1] for stride, level in result['levels'].items()}
    assert at[8] == pytest.approx(0, abs=1e-6) and np.isnan(at[32])
    assert result['cost'][0, 1] == pytest.approx((at[8] + at[16]) / 2)
    assert result['cost'][0, 2] == pytest.approx(explicit(a, b), abs=1e-6)


def test_detectors_without_a_common_stride():
    with pytest.raises(MtpdError, match=r'a \(strides 8\) and b \(4\) have no FPN level'):
        costs(a={8: features()}, b={4: features()})


def test_replicates_are_a_bootstrap_over_images():
    """By hand: each held-out image's residual and sums, weighted by the same draws."""
    a, noise = features(40), features(40, channels=7)
    b = linear(a) + noise
    result = costs(a=a, b=b)

    def pixels(x):
        return np.moveaxis(x, 0, -1).reshape(-1, x.shape[0])

    x = np.concatenate([pixels(i) for i in a[::2]])
    y = np.concatenate([pixels(i) for i in b[::2]])
    weights = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
    draws = np.stack([np.random.default_rng(k).poisson(1.0, 201) for k in range(1, 21)])
    for r in (1, 57, 200):
        error, total, square, count = 0, 0, 0, 0
        for often, source, target in zip(draws[:, r], a[1::2], b[1::2], strict=True):
            mapped = np.c_[pixels(source), np.ones(36)] @ weights
            error += often * np.sum((pixels(target) - mapped) ** 2)
            total += often * pixels(target).sum(0)
            square += often * np.sum(pixels(target) ** 2)
            count += often * 36
        expected = error / (square - np.sum(total**2) / count)
        assert result['replicates'][r - 1, 0, 1] == pytest.approx(expected, rel=1e-4)
    spread = result['replicates'][:, 0, 1].std()
    assert 0 < spread < 0.1


def test_the_number_of_images_that_a_fit_needs():
    # 6 x 6 pixels an image, 5 + 1 weights, ten pixels for each: two images a half.
    assert costs(a=features(), b=features())['needed'] == 4


def test_no_images_is_an_error():
    with pytest.raises(MtpdError, match='at least 2 images'):
        costs_from_features([], [])
    with pytest.raises(MtpdError, match='at least 2 images'):
        costs_from_features(images(a=features(1)), [])
