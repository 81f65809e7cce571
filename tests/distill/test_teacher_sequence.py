"""Sequences of teachers against enumeration."""

from itertools import pairwise, permutations

import numpy as np
import pytest

from mtpd.distill.teacher_sequence import choose_sequence
from mtpd.errors import MtpdError


def table(cost, names=('student', 'near', 'far')):
    return {'detectors': list(names), 'cost': cost}


def test_greedy_puts_the_near_teacher_first():
    costs = table([[0, 0.3, 0.9], [0.3, 0, 0.4], [0.9, 0.4, 0]])
    choice = choose_sequence(costs, {'near': 0.4, 'far': 0.5})
    assert choice['sequence'] == ['near', 'far']
    assert '0.300 from the student (against 0.900)' in choice['reasons'][1]


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
        sequences = {}
        for method in ('backward_greedy', 'shortest_path'):
            how = {'max_length': max_length, 'min_gain': min_gain, 'method': method}
            chosen = choose_sequence(costs, ap, **how)
            sequences[method] = path = chosen['sequence']
            assert valid(path) and path[-1] == best
            assert chosen['total'] == pytest.approx(length(path))
            assert len(path) > 1 or 'direct distillation' in chosen['reasons'][-1]
            backwards = dict(reversed(ap.items()))
            assert choose_sequence(mixed, backwards, **how)['sequence'] == path
        least = min(map(length, paths))
        assert length(sequences['shortest_path']) == pytest.approx(least)
        assert length(sequences['backward_greedy']) >= least - 1e-12
        if len(ap) == 1:
            assert sequences['backward_greedy'] == sequences['shortest_path'] == [best]


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
        weaker = 'nearer to the student than far and weaker by order.min_gain.'
        assert (weaker in near['reasons'][1]) == (method == 'backward_greedy')
        near = choose_sequence(costs, {'near': 0.44, 'far': 0.5}, method=method, min_gain=0.05)
        assert near['sequence'] == ['near', 'far']


def test_ties_are_reported():
    first = [[0, 0.3, 0.9], [0.3, 0, 0.4], [0.9, 0.4, 0]]
    other = [[0, 0.95, 0.9], [0.95, 0, 0.4], [0.9, 0.4, 0]]
    costs = table(first) | {'replicates': [first] * 7 + [other] * 3}
    choice = choose_sequence(costs, {'near': 0.4, 'far': 0.5})
    assert choice['support'] == pytest.approx(0.7)
    assert choice['ties'] == [[['far'], pytest.approx(0.3)]]
    assert choose_sequence(table(first), {'near': 0.4, 'far': 0.5})['support'] is None
