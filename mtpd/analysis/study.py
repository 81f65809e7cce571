"""AP by sequence of teachers over seeds: which one is better, by how much, and whether adaptation costs foretold it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ..utils import intervals
from ..utils.intervals import Interval

POWER = 2.0  # of a hop's cost in the cost of a path, as in `choose_sequence`


@dataclass(frozen=True)
class Order:
    """An arm over the seeds.

    Attributes:
        teachers: its sequence, without the None of a stage that has no teacher.
        ap: AP (points 0..100) by seed, of those that were evaluated.
        curves: AP over the updates by seed, as `ap_curve`.
    """

    name: str
    label: str
    teachers: tuple[str, ...]
    updates: int
    ap: dict[int, float]
    curves: dict[int, list[dict]]

    @property
    def mean(self) -> Interval | None:
        return intervals.mean(list(self.ap.values()))

    @property
    def walk(self) -> list[float]:
        """Mean AP over the seeds at the baseline and after each stage."""
        ends = [{row['stage']: row['AP'] for row in rows} for rows in self.curves.values()]
        stages = sorted(set.intersection(*map(set, ends))) if ends else []
        return [sum(found[stage] for found in ends) / len(ends) for stage in stages]


@dataclass(frozen=True)
class Study:
    """Runs that differ in nothing but the seed, read together.

    Attributes:
        teachers: AP (points) of each teacher of the recipe that was evaluated.
        costs: as `order/costs.json`, None before they were measured.
        chosen: the sequences that the costs suggest.
        left_out: neighbours that are not comparable, each with the reason.
    """

    orders: list[Order]
    baseline: dict[int, float]
    teachers: dict[str, float]
    costs: dict | None
    chosen: list[tuple[str, ...]]
    left_out: list[str]

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for order in self.orders for seed in order.ap})

    @property
    def start(self) -> float | None:
        """Mean AP of the baselines."""
        found = intervals.mean(list(self.baseline.values()))
        return found and found.value

    def order(self, name: str) -> Order:
        return next(order for order in self.orders if order.name == name)

    @property
    def evaluated(self) -> list[Order]:
        return [order for order in self.orders if order.ap]

    @property
    def control(self) -> Order | None:
        """The arm without a teacher."""
        return next((order for order in self.evaluated if not order.teachers), None)

    @property
    def direct(self) -> Order | None:
        """The arm with the strongest teacher alone: the one of highest AP."""
        if not self.teachers:
            return None
        best = max(sorted(self.teachers), key=self.teachers.__getitem__)
        return next((order for order in self.evaluated if order.teachers == (best,)), None)

    def path_cost(self, order: Order) -> float | None:
        """The sum of cost ** 2 over the hops from the student through the sequence."""
        names = (self.costs or {}).get('detectors', [])
        path = [*names[:1], *order.teachers]
        if not order.teachers or not set(path) <= set(names):
            return None
        index = [names.index(name) for name in path]
        return sum(self.costs['cost'][a][b] ** POWER for a, b in pairwise(index))

    def correlation(self) -> Interval | None:
        """Spearman's rank correlation of path cost and mean AP over the sequences; -1 is a perfect forecast."""
        known = [(self.path_cost(order), order.mean.value) for order in self.evaluated]
        known = [(cost, ap) for cost, ap in known if cost is not None]
        return intervals.rank_correlation(*zip(*known, strict=True)) if known else None

    def table(self) -> list[dict]:
        """A row per evaluated arm, the best mean first.

        Keys: name, label, teachers, updates, ap (by seed), path_cost, chosen, and as `Interval` or None: mean, above_control,
        above_direct (paired by seed).
        """
        rows = [
            {
                'name': order.name,
                'label': order.label,
                'teachers': list(order.teachers),
                'updates': order.updates,
                'ap': order.ap,
                'mean': order.mean,
                'above_control': _above(order, self.control),
                'above_direct': _above(order, self.direct),
                'path_cost': self.path_cost(order),
                'chosen': order.teachers in self.chosen,
            }
            for order in self.evaluated
        ]
        return sorted(rows, key=lambda row: -row['mean'].value)

    def json(self) -> dict:
        """`table` and `correlation` as plain values, for results.json."""
        rows = [
            {
                key: value.json() if isinstance(value, Interval) else value
                for key, value in row.items()
            }
            for row in self.table()
        ]
        correlation = self.correlation()
        return {
            'orders': rows,
            'interval': '95 %, Student t over seeds; differences paired by seed',
            'rank_correlation': correlation and correlation.json(),
        }


def _above(order: Order, other: Order | None) -> Interval | None:
    return None if other is None or other is order else intervals.paired(order.ap, other.ap)
