"""Adaptation costs against an explicit least-squares solve; sequences against enumeration."""

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch

from mtpd.analysis.run import load_run
from mtpd.config.recipe import load_recipe
from mtpd.distill.adaptation_cost import costs_from_features
from mtpd.distill.teacher_sequence import choose_sequence
from mtpd.errors import MtpdError, RecipeError
from mtpd.pipeline.run import options_text, recipe_steps, run_recipe
from mtpd.pipeline.teacher_order import (
    adaptation_costs,
    order_conclusion,
    resolve_auto_arms,
    suggest_sequence,
)
from mtpd.utils.files import read_json, write_json

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
    found = images(**detectors)
    return costs_from_features(found[::2], found[1::2])


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
    found = costs(a={8: a, 16: coarse}, b={8: mapped, 16: features(side=3), 32: coarser}, c={8: b})
    assert sorted(found['levels']) == [8, 16, 32]
    at = {stride: level[0, 1] for stride, level in found['levels'].items()}
    assert at[8] == pytest.approx(0, abs=1e-6) and np.isnan(at[32])
    assert found['cost'][0, 1] == pytest.approx((at[8] + at[16]) / 2)
    assert found['cost'][0, 2] == pytest.approx(explicit(a, b), abs=1e-6)


def test_detectors_without_a_common_stride():
    with pytest.raises(MtpdError, match=r'a \(strides 8\) and b \(4\) have no FPN level'):
        costs(a={8: features()}, b={4: features()})


def test_replicates_are_a_bootstrap_over_images():
    """By hand: each held-out image's residual and sums, weighted by the same draws."""
    a, noise = features(40), features(40, channels=7)
    b = linear(a) + noise
    found = costs(a=a, b=b)

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
        assert found['replicates'][r - 1, 0, 1] == pytest.approx(expected, rel=1e-4)
    spread = found['replicates'][:, 0, 1].std()
    assert 0 < spread < 0.1


def test_the_number_of_images_that_a_fit_needs():
    # 6 x 6 pixels an image, 5 + 1 weights, ten pixels for each: two images a half.
    assert costs(a=features(), b=features())['needed'] == 4


def test_no_images_is_an_error():
    with pytest.raises(MtpdError, match='at least 2 images'):
        costs_from_features([], [])
    with pytest.raises(MtpdError, match='at least 2 images'):
        costs_from_features(images(a=features(1)), [])


def table(cost, names=('student', 'near', 'far')):
    return {'detectors': list(names), 'cost': cost}


def test_greedy_puts_the_near_teacher_first():
    costs = table([[0, 0.3, 0.9], [0.3, 0, 0.4], [0.9, 0.4, 0]])
    found = choose_sequence(costs, {'near': 0.4, 'far': 0.5})
    assert found['sequence'] == ['near', 'far']
    assert '0.300 from the student (against 0.900)' in found['reasons'][1]


def test_no_useful_teacher_between_means_direct_distillation():
    costs = table([[0, 0.9, 0.3], [0.9, 0, 0.4], [0.3, 0.4, 0]])
    ap = {'near': 0.4, 'far': 0.5}
    for method, reason in (
        ('backward_greedy', 'No teacher left is nearer to the student than far.'),
        ('shortest_path', 'The path student → far has the least sum of cost^2, 0.090.'),
    ):
        found = choose_sequence(costs, ap, method=method)
        assert found['sequence'] == ['far']
        assert found['reasons'][1:] == [reason, 'So it is direct distillation.']
        text = order_conclusion(found | {'check': found}, {})
        assert 'suggest direct distillation from far: no teacher helps on the way' in text


def pool(seed, ties):
    """Costs and AP of a student and one to six teachers; with ties, of few different values."""
    rng = np.random.default_rng(seed)
    names = ['student', *(f't{k}' for k in range(rng.integers(1, 7)))]
    cost, ap = rng.uniform(0.05, 1, (len(names), len(names))), rng.uniform(size=len(names))
    if ties:
        cost, ap = np.ceil(4 * cost) / 4, np.round(2 * ap) / 2
    return table(cost, names), dict(zip(names[1:], ap.tolist(), strict=False))


@pytest.mark.parametrize('ties', [False, True], ids=['distinct', 'ties'])
@pytest.mark.parametrize('min_gain', [None, 0.0, 0.2])
@pytest.mark.parametrize('max_length', [1, 2, 3, 4])
def test_both_searches_on_many_pools(max_length, min_gain, ties):
    """Valid paths to the best teacher; the exact one is the shortest of all, whatever the order of the pool."""
    for seed in range(15):
        costs, ap = pool(seed, ties)
        index = {name: i for i, name in enumerate(costs['detectors'])}

        def length(path, index=index, costs=costs):
            hops = zip(['student', *path], path, strict=False)
            return sum(costs['cost'][index[a], index[b]] ** 2 for a, b in hops)

        def valid(path, ap=ap):
            gains = [ap[b] - ap[a] for a, b in pairwise(path)]
            rises = min_gain is None or all(gain >= min_gain for gain in gains)
            known = len(set(path)) == len(path) and set(path) <= set(ap)
            return rises and known and 1 <= len(path) <= max_length

        best = max(sorted(ap), key=ap.get)
        others = [name for name in ap if name != best]
        counts = range(min(max_length, len(ap)))
        paths = [(*p, best) for k in counts for p in permutations(others, k) if valid((*p, best))]
        shuffled = np.random.default_rng(seed).permutation(len(index))
        mixed = table(
            costs['cost'][np.ix_(shuffled, shuffled)], [costs['detectors'][i] for i in shuffled]
        )
        found = {}
        for method in ('backward_greedy', 'shortest_path'):
            how = {'max_length': max_length, 'min_gain': min_gain, 'method': method}
            chosen = choose_sequence(costs, ap, **how)
            found[method] = path = chosen['sequence']
            assert valid(path) and path[-1] == best
            assert chosen['total'] == pytest.approx(length(path))
            assert len(path) > 1 or 'direct distillation' in chosen['reasons'][-1]
            backwards = dict(reversed(ap.items()))
            assert choose_sequence(mixed, backwards, **how)['sequence'] == path
        least = min(map(length, paths))
        assert length(found['shortest_path']) == pytest.approx(least)
        assert length(found['backward_greedy']) >= least - 1e-12
        if len(ap) == 1:
            assert found['backward_greedy'] == found['shortest_path'] == [best]


def test_a_pool_that_cannot_be_searched():
    costs = table([[0, 0.3, 0.9], [0.3, 0, 0.4], [0.9, 0.4, 0]])
    with pytest.raises(MtpdError, match=r'far has no AP .* --detector far --checkpoint FILE'):
        choose_sequence(costs, {'near': 0.4})
    with pytest.raises(
        MtpdError, match=r'far has no AP .* new has no adaptation cost .*mtpd order'
    ):
        choose_sequence(costs, {'new': 0.4, 'far': None}, teachers=['new', 'far'])
    with pytest.raises(MtpdError, match='unknown method'):
        choose_sequence(costs, {'near': 0.4, 'far': 0.5}, method='best')


def test_ap_must_rise_by_the_gain_asked_for():
    costs = table([[0, 0.3, 0.9], [0.3, 0, 0.4], [0.9, 0.4, 0]])
    for method in ('backward_greedy', 'shortest_path'):
        near = choose_sequence(costs, {'near': 0.46, 'far': 0.5}, method=method, min_gain=0.05)
        assert near['sequence'] == ['far']
        weaker = 'nearer to the student than far and weaker by the gain asked for.'
        assert (weaker in near['reasons'][1]) == (method == 'backward_greedy')
        near = choose_sequence(costs, {'near': 0.44, 'far': 0.5}, method=method, min_gain=0.05)
        assert near['sequence'] == ['near', 'far']


def test_one_teacher_is_distilled_from_directly():
    costs = table([[0, 0.5], [0.5, 0]], ('student', 'only')) | {
        'replicates': [[[0, 0.5], [0.5, 0]]]
    }
    for method in ('backward_greedy', 'shortest_path'):
        found = choose_sequence(costs, {'only': 0.4}, method=method)
        assert found['sequence'] == ['only']
        assert found['reasons'] == ['only is the only teacher of the pool: direct distillation.']
        text = order_conclusion(found | {'check': found}, {'only': 'the one'})
        assert text == 'The pool has one teacher: direct distillation from the one.'
    with pytest.raises(MtpdError, match='the pool of teachers is empty'):
        choose_sequence(table([[0]], ('student',)), {})


def test_ties_are_reported():
    first = [[0, 0.3, 0.9], [0.3, 0, 0.4], [0.9, 0.4, 0]]
    other = [[0, 0.95, 0.9], [0.95, 0, 0.4], [0.9, 0.4, 0]]
    costs = table(first) | {'replicates': [first] * 7 + [other] * 3}
    found = choose_sequence(costs, {'near': 0.4, 'far': 0.5})
    assert found['support'] == pytest.approx(0.7)
    assert found['ties'] == [[['far'], pytest.approx(0.3)]]
    assert choose_sequence(table(first), {'near': 0.4, 'far': 0.5})['support'] is None


def test_the_conclusion_says_what_was_chosen_and_how_sure():
    first = [[0, 0.3, 0.9], [0.3, 0, 0.4], [0.9, 0.4, 0]]
    other = [[0, 0.95, 0.9], [0.95, 0, 0.4], [0.9, 0.4, 0]]
    ap = {'near': 0.4, 'far': 0.5}
    costs = table(first) | {'replicates': [first] * 7 + [other] * 3}
    found = choose_sequence(costs, ap)
    check = choose_sequence(costs, ap, method='shortest_path')
    text = order_conclusion(found | {'check': check}, {'near': 'N', 'far': 'F'})
    assert 'suggest N → F. 70 % of the bootstrap samples lead to it. The other search' in text
    assert '(shortest path) agrees. On these images' in text
    assert 'a tie with F (30 %)' in text
    alone = choose_sequence(table(other), ap)
    text = order_conclusion(alone | {'check': check}, {'near': 'N', 'far': 'F'})
    assert 'direct distillation from F' in text and 'prefers N → F' in text


MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
AUTO = {'arms': {'_delete_': True, 'auto': {'label': 'chosen', 'teachers': 'auto'}}}


def test_an_arm_gets_the_chosen_teachers(tmp_path):
    recipe = load_recipe(MINI, AUTO)
    with pytest.raises(RecipeError, match='chosen by adaptation cost'):
        recipe.arm('auto', 1)
    assert [step.title for step in recipe_steps(recipe, tmp_path)][-1] == '03_teacher_order'
    write_json(tmp_path / 'order' / 'sequence.json', {'sequence': ['rx101']})
    found = resolve_auto_arms(recipe, tmp_path)
    arm = found.arm('auto', 1)
    assert (arm.teachers, arm.label, arm.stage_updates) == (('rx101',), 'chosen: rx101', 600)
    assert '04_distill_stage__auto_1' in [step.title for step in recipe_steps(found, tmp_path)]
    assert resolve_auto_arms(found, tmp_path) is found
    again = load_recipe(MINI, options_text(found))  # as its notebooks get it
    assert again.arms == found.arms


def test_an_arm_to_be_chosen_must_divide():
    with pytest.raises(RecipeError, match=r'may get 2 stages .* which do not divide'):
        load_recipe(MINI, AUTO | {'schedule.arm': 601})
    with pytest.raises(RecipeError, match=r"'atuo': a list of teachers is needed"):
        load_recipe(MINI, {'arms.direct.teachers': 'atuo'})


@pytest.mark.slow
def test_a_run_chooses_and_goes_on(tmp_path):
    small = {'data.scenes.val': 16, 'data.scenes.train': 32, 'order.images': 16}
    run = load_run(run_recipe(load_recipe(MINI, AUTO | small), tmp_path, smoke=True))
    chosen = read_json(tmp_path / 'order' / 'sequence.json')['sequence']
    assert run.arms[0]['teachers'] == chosen and run.state == 'complete'
    stages = [step['name'] for step in run.steps if step['name'].startswith('04')]
    assert stages == [f'04_distill_stage__auto_{k + 1}' for k in range(len(chosen))]
    said = []
    run_recipe(load_recipe(MINI, AUTO | small), tmp_path, smoke=True, echo=said.append)
    assert sum('done before' in line for line in said) == len(run.steps)


@pytest.mark.slow
def test_costs_of_a_recipe(tmp_path):
    """The shipped teachers and an untrained student on DigitScenes: files, intervals, too few images."""
    recipe = load_recipe(
        MINI,
        {
            'schedule.baseline': 2,
            'order.images': 16,
            'data.scenes.val': 16,
            'data.scenes.train': 32,
        },
    )
    costs = adaptation_costs(recipe, tmp_path)
    assert costs['images'] == 16 and costs['needed'] > 16
    low, cost, high = (np.array(costs[key]) for key in ('low', 'cost', 'high'))
    off = ~np.eye(3, dtype=bool)
    assert (low <= high).all() and (low[off] < cost[off] + 0.2).all()
    assert sorted(costs['levels']) == ['16', '32', '8']
    found = suggest_sequence(recipe, costs, tmp_path)
    assert found['sequence'][-1] == 'rx101' and found['ap']['rx101'] > found['ap']['r101']
    assert {p.name for p in (tmp_path / 'order').iterdir()} == {'costs.json', 'sequence.json'}
