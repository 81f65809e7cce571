"""Adaptation costs against an explicit least-squares solve; sequences against enumeration."""

from itertools import permutations

import numpy as np
import pytest

from mtpd.errors import MtpdError
from mtpd.order import choose_sequence, costs_from_features

RNG = np.random.default_rng(0)


def features(count=12, channels=5, side=6):
    return RNG.normal(size=(count, channels, side, side))


def linear(source, out=7):
    """A random linear map of the channels plus a bias, the same at every pixel."""
    weights, bias = RNG.normal(size=(out, source.shape[1])), RNG.normal(size=(out, 1, 1))
    return np.einsum('oc,nchw->nohw', weights, source) + bias


def cost(a, b):
    return costs_from_features([{'a': (a,), 'b': (b,)}])[1][0, 1]


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


def test_batches_give_the_same_as_one_pass_and_pairs_do_not_depend_on_others():
    a, b, c = features(), features(channels=3), features(channels=4)
    whole = costs_from_features([{'a': (a,), 'b': (b,), 'c': (c,)}])[1]
    parts = [{'a': (a[i : i + 5],), 'b': (b[i : i + 5],), 'c': (c[i : i + 5],)} for i in (0, 5, 10)]
    np.testing.assert_allclose(costs_from_features(parts)[1], whole, atol=1e-9)
    assert cost(a, b) == pytest.approx(whole[0, 1], abs=1e-9)


def test_the_mean_is_over_levels():
    a, b = features(), features()
    fine, coarse = (a, a), (linear(a), b)
    levels, mean = costs_from_features([{'a': fine, 'b': coarse}])
    assert levels.shape == (2, 2, 2)
    assert levels[0][0, 1] == pytest.approx(0, abs=1e-6)
    assert mean[0, 1] == pytest.approx((levels[0][0, 1] + levels[1][0, 1]) / 2)


def test_no_images_is_an_error():
    with pytest.raises(MtpdError, match='at least 2 images'):
        costs_from_features([])


def table(cost, names=('student', 'near', 'far')):
    return {'detectors': list(names), 'cost': cost}


def test_greedy_puts_the_near_teacher_first():
    costs = table([[0, 0.3, 0.9], [0.3, 0, 0.4], [0.9, 0.4, 0]])
    found = choose_sequence(costs, {'near': 0.4, 'far': 0.5})
    assert found['sequence'] == ['near', 'far']
    assert '0.300 from the student (against 0.900)' in found['reasons'][1]


def test_no_useful_teacher_between_means_direct_distillation():
    costs = table([[0, 0.9, 0.3], [0.9, 0, 0.4], [0.3, 0.4, 0]])
    found = choose_sequence(costs, {'near': 0.4, 'far': 0.5})
    assert found['sequence'] == ['far']
    assert 'No teacher left is nearer to the student than far' in found['reasons'][-1]


@pytest.mark.parametrize('seed', range(10))
def test_exact_search_finds_the_best_path_of_all(seed):
    rng = np.random.default_rng(seed)
    names = ['student', 't0', 't1', 't2', 't3']
    cost = rng.uniform(0.05, 1, size=(5, 5))
    ap = {name: float(value) for name, value in zip(names[1:], rng.uniform(size=4), strict=True)}
    best = max(ap, key=ap.get)
    index = {name: i for i, name in enumerate(names)}

    def length(path):
        hops = zip(['student', *path], path, strict=False)
        return sum(cost[index[a], index[b]] ** 2 for a, b in hops)

    others = [name for name in ap if name != best]
    paths = [[*p, best] for k in range(3) for p in permutations(others, k)]
    found = choose_sequence(table(cost, names), ap, max_length=3, method='shortest_path')[
        'sequence'
    ]
    assert found == min(paths, key=length)
    greedy = choose_sequence(table(cost, names), ap, max_length=3)['sequence']
    assert greedy[-1] == best and length(found) <= length(greedy)
    shuffled = [names[i] for i in (0, 3, 1, 4, 2)]
    order = [index[name] for name in shuffled]
    again = choose_sequence(table(cost[np.ix_(order, order)], shuffled), ap, max_length=3)
    assert again['sequence'] == greedy


def test_a_pool_that_cannot_be_searched():
    costs = table([[0, 0.3, 0.9], [0.3, 0, 0.4], [0.9, 0.4, 0]])
    with pytest.raises(MtpdError, match='far lack AP'):
        choose_sequence(costs, {'near': 0.4})
    with pytest.raises(MtpdError, match='unknown method'):
        choose_sequence(costs, {'near': 0.4, 'far': 0.5}, method='best')
