"""AP by sequence of teachers over seeds: which one is better, by how much, and whether adaptation costs predicted it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ..errors import MtpdError
from ..utils import statistics
from ..utils.files import read_json
from ..utils.paths import ROOT, display_path
from ..utils.statistics import Interval
from .run import Run, ap_points, load_run
from .settings import Settings, named_runs, run_settings, setting_differences, sibling_runs

# The paper's RetinaNet: 36.5 AP, 37.4 in as many epochs without a teacher, 41.4 with its sequence.
PAPER_REGIME_INDEX = (37.4 - 36.5) / (41.4 - 37.4)
PATH_COST_POWER = 2.0  # of a hop's cost in the cost of a path, as in `choose_sequence`


@dataclass(frozen=True)
class Order:
    """An arm over the seeds.

    Attributes:
        teachers: its sequence, without the None of a stage that has no teacher.
        ap: AP (points 0..100) by seed, of those that were evaluated.
        curves: AP over the updates by seed, as `ap_curve`.
        seconds: of training, by seed, where they are known.
    """

    name: str
    label: str
    teachers: tuple[str, ...]
    updates: int
    ap: dict[int, float]
    curves: dict[int, list[dict]]
    seconds: dict[int, float] = field(default_factory=dict)

    @property
    def is_sequence(self) -> bool:
        """Whether it has several different teachers."""
        return len(set(self.teachers)) > 1

    @property
    def mean(self) -> Interval | None:
        return statistics.mean_interval(list(self.ap.values()))

    @property
    def walk(self) -> list[float]:
        """Mean AP over the seeds at the baseline and after each stage."""
        ends = [{row['stage']: row['AP'] for row in rows} for rows in self.curves.values()]
        stages = sorted(set.intersection(*map(set, ends))) if ends else []
        return [sum(aps[stage] for aps in ends) / len(ends) for stage in stages]


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
        mean = statistics.mean_interval(list(self.baseline.values()))
        return mean and mean.value

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
    def best_teacher_alone(self) -> Order | None:
        """The arm with the strongest teacher and no other: the teacher of highest AP."""
        if not self.teachers:
            return None
        best = max(sorted(self.teachers), key=self.teachers.__getitem__)
        return self._taught_by((best,))

    def last_teacher_alone(self, order: Order) -> Order | None:
        """The arm with the last teacher of `order` and no other: the paper's direct distillation."""
        return self._taught_by(order.teachers[-1:]) if order.teachers else None

    def split_control(self, order: Order) -> Order | None:
        """The arm of as many stages as `order`, all with its last teacher: what splitting does without another teacher."""
        repeated = order.teachers[-1:] * len(order.teachers)
        return (
            self._taught_by(repeated) if len(repeated) > 1 and repeated != order.teachers else None
        )

    def splitting_cost(self, repeated: Order) -> Interval | None:
        """What an arm that repeats one teacher has more than that teacher alone."""
        alone = self.last_teacher_alone(repeated)
        return None if alone is repeated else _paired_difference(repeated, alone)

    @property
    def regime_index(self) -> Interval | None:
        """What training as long without a teacher brings, by what the strongest teacher alone brings on top of that.

        Both in AP, of the seeds that have baseline, control and that arm. None where one of them is missing, or where the
        teacher brings nothing. Above 1 the student gains more by going on than by any teacher, and what a sequence does
        can't be told.
        """
        control, taught = self.control, self.best_teacher_alone
        if control is None or taught is None:
            return None
        seeds = [seed for seed in self.baseline if seed in control.ap and seed in taught.ap]
        going_on = [control.ap[seed] - self.baseline[seed] for seed in seeds]
        by_teacher = [taught.ap[seed] - control.ap[seed] for seed in seeds]
        if sum(by_teacher) <= 0:
            return None
        return statistics.paired_ratio(going_on, by_teacher)

    def time_ratio(self, order: Order) -> float | None:
        """The mean training time divided by that of the control, over the seeds that have both."""
        known = self.control.seconds if self.control else {}
        pairs = [(order.seconds[seed], known[seed]) for seed in order.seconds if seed in known]
        return sum(a for a, _ in pairs) / sum(b for _, b in pairs) if pairs else None

    def _taught_by(self, teachers: tuple[str, ...]) -> Order | None:
        return next((order for order in self.evaluated if order.teachers == teachers), None)

    def path_cost(self, order: Order) -> float | None:
        """The sum of cost ** 2 over the hops from the student through the sequence."""
        names = (self.costs or {}).get('detectors', [])
        path = [*names[:1], *order.teachers]
        if not order.teachers or not set(path) <= set(names):
            return None
        index = [names.index(name) for name in path]
        return sum(self.costs['cost'][a][b] ** PATH_COST_POWER for a, b in pairwise(index))

    def correlation(self) -> Interval | None:
        """Spearman's rank correlation of path cost and mean AP over the sequences; -1 is a perfect forecast."""
        known = [(self.path_cost(order), order.mean.value) for order in self.evaluated]
        known = [(cost, ap) for cost, ap in known if cost is not None]
        return statistics.rank_correlation(*zip(*known, strict=True)) if known else None

    def table(self) -> list[dict]:
        """A row per evaluated arm, the best mean first.

        Keys: name, label, teachers, updates, ap (by seed), path_cost, chosen, and as `Interval` or None: mean, above_control,
        above_best_teacher (alone; paired by seed), above_split_control (paired by seed), time_ratio (see there).
        """
        rows = [
            {
                'name': order.name,
                'label': order.label,
                'teachers': list(order.teachers),
                'updates': order.updates,
                'ap': order.ap,
                'mean': order.mean,
                'above_control': _paired_difference(order, self.control),
                'above_best_teacher': _paired_difference(order, self.best_teacher_alone),
                'above_split_control': _paired_difference(order, self.split_control(order)),
                'time_ratio': self.time_ratio(order),
                'path_cost': self.path_cost(order),
                'chosen': order.teachers in self.chosen,
            }
            for order in self.evaluated
        ]
        return sorted(rows, key=lambda row: -row['mean'].value)

    def json(self) -> dict:
        """`table` and `correlation` as plain values, for results.json."""
        rows = self.table()
        for row in rows:
            row['above_direct'] = row.pop('above_best_teacher')  # its name in the file
        correlation = self.correlation()
        return {
            'orders': [
                {
                    key: value.json() if isinstance(value, Interval) else value
                    for key, value in row.items()
                }
                for row in rows
            ],
            'regime_index': self.regime_index and self.regime_index.json(),
            'interval': '95 %, Student t over seeds; differences paired by seed',
            'rank_correlation': correlation and correlation.json(),
        }


def _paired_difference(order: Order, other: Order | None) -> Interval | None:
    if other is None or other is order:
        return None
    return statistics.paired_difference(order.ap, other.ap)


# Runs that differ in nothing but the seed.


def comparable_runs(run: Run, folders: Sequence[str] = ()) -> tuple[dict[int, Run], list[str]]:
    """The runs of `run`'s recipe and settings by seed, itself included, and the runs left out, each with the reason.

    Args:
        folders: the other runs, or folders of runs. None given: the neighbours of `run`.

    Raises:
        MtpdError: a folder that was given is no run, or one with other settings.
    """
    source = ROOT / run.info['recipe']
    paths = named_runs(source, folders) if folders else sibling_runs(run)
    settings, runs, left_out = _readable_settings(run), {run.info.get('seed'): run}, []
    for path in paths:
        if path.resolve() == run.path.resolve():
            continue
        other = load_run(path)
        other_settings = _readable_settings(other)
        if settings is None or other_settings is None:
            keys = ['recipe.py, which cannot be compared']
        elif settings.method != other_settings.method:
            if not folders:
                continue  # of another study
            keys = ['distill.method', *setting_differences(settings, other_settings)]
        else:
            keys = setting_differences(settings, other_settings)
        if keys:
            left_out.append(
                f'{display_path(path)} differs from {display_path(run.path)} in {", ".join(keys[:3])}.'
            )
        else:
            runs.setdefault(other_settings.seed, other)
    if folders and left_out:
        raise MtpdError('\n'.join(left_out))
    return runs, left_out


def load_study(run: Run, folders: Sequence[str] = ()) -> Study:
    """The study of a run and of those of the same recipe and settings with other seeds, see `comparable_runs`."""
    runs, left_out = comparable_runs(run, folders)
    teachers = {row['name']: row['AP'] for row in run.results() if row['role'] == 'teacher'}
    baseline = {
        seed: row['AP']
        for seed, item in sorted(runs.items())
        for row in item.results()
        if row['role'] == 'baseline' and row['AP'] is not None
    }
    costs, suggested = _costs_and_suggestions(run)
    return Study(
        orders=[_load_order(arm, runs) for arm in run.arms],
        baseline=baseline,
        teachers={name: ap for name, ap in teachers.items() if ap is not None},
        costs=costs,
        chosen=suggested,
        left_out=left_out,
    )


def _readable_settings(run: Run) -> Settings | None:
    try:
        return run_settings(run)
    except MtpdError:
        return None


def _load_order(arm: dict, runs: dict[int, Run]) -> Order:
    final = {seed: ap_points(run.metrics('arm', arm['name']))['AP'] for seed, run in runs.items()}
    ap = {seed: value for seed, value in sorted(final.items()) if value is not None}
    return Order(
        name=arm['name'],
        label=arm.get('label') or arm['name'],
        teachers=tuple(teacher for teacher in arm['teachers'] if teacher is not None),
        updates=arm['updates'],
        ap=ap,
        curves={seed: ap_curve(runs[seed], arm['name']) for seed in ap},
        seconds=_arm_seconds(arm['name'], [(seed, runs[seed]) for seed in ap]),
    )


def _arm_seconds(arm: str, runs: list[tuple[int, Run]]) -> dict[int, float]:
    known = {seed: run.training_seconds(arm) for seed, run in runs}
    return {seed: seconds for seed, seconds in known.items() if seconds}


def ap_curve(run: Run, arm: str) -> list[dict]:
    """AP (points) along an arm: the baseline, evaluations during training, the end of each stage.

    Rows: updates (since the baseline), AP, stage (0: the baseline), teacher (label).
    """
    ends = run.stage_aps(arm)
    known = {row['updates'] for row in ends}
    inside = [
        {
            'updates': row['update'],
            'AP': 100 * row['bbox_mAP'],
            'stage': row['stage'],
            'teacher': row['teacher'],
        }
        for row in run.curves(arm)
        if row.get('bbox_mAP') is not None and row['update'] not in known
    ]
    return sorted([*ends, *inside], key=lambda row: row['updates'])


def _costs_and_suggestions(run: Run) -> tuple[dict | None, list[tuple[str, ...]]]:
    """Costs and the sequences that they suggest: the run's own, or those of the sweep that it is part of."""
    sweep = run.path.resolve().parents[1]
    info = read_json(sweep / 'sweep.json')
    if info and info.get('suggested'):
        costs = read_json(sweep / 'shared' / str(info['seed']) / 'order' / 'costs.json')
        return costs, [tuple(order) for order in info['suggested']['orders']]
    folder = run.path / 'order'
    suggestion = read_json(folder / 'sequence.json')
    suggested = [tuple(suggestion['sequence'])] if suggestion else []
    return read_json(folder / 'costs.json'), suggested
