"""A study of made-up APs, to be read by hand."""

from __future__ import annotations

from mtpd.analysis.study import Order, Study

T2 = 4.302652729911275  # Student's t, 97.5 %, 2 degrees of freedom, from a printed table
COSTS = {'detectors': ['student', 'a', 'b'], 'cost': [[0, 0.5, 0.9], [0.5, 0, 0.4], [0.9, 0.4, 0]]}
AP = {
    (): [10.0, 12.0, 11.0],
    ('a',): [11.5, 11.1, 12.4],
    ('b',): [12.0, 14.2, 12.8],
    ('a', 'b'): [13.0, 15.1, 13.9],
    ('b', 'a'): [11.9, 14.4, 12.8],
}


def made_up_study(ap=AP, costs=COSTS, chosen=(('a', 'b'),), seeds=range(3), updates=600):
    curve = [
        {'updates': u, 'AP': float(v), 'stage': s, 'teacher': t}
        for u, v, s, t in ((0, 5, 0, None), (300, 8, 1, 'a'), (600, 9, 2, 'b'))
    ]
    orders = [
        Order('-'.join(t) or 'none', ' → '.join(t) or 'no teacher', t, updates,
              dict(zip(seeds, values, strict=False)), dict.fromkeys(seeds, curve))
        for t, values in ap.items()
    ]  # fmt: skip
    return Study(orders, {0: 5.0, 1: 6.0}, {'a': 40.0, 'b': 50.0}, costs, list(chosen), [])
