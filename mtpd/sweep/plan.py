"""What a sweep computes: its jobs, what they share, and where the results of each lie."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING

from ..errors import MtpdError, unknown_name

if TYPE_CHECKING:
    from ..config.recipe import Recipe

Order = tuple[str | None, ...]  # teachers in sequence
CONTROL: Order = (None,)
JOB_KINDS = ('teacher', 'baseline', 'prefix', 'control', 'order')


@dataclass(frozen=True)
class Job:
    """One process's work: a detector, or the stages `first` to `last` of an arm.

    Attributes:
        kind: 'teacher', 'baseline', 'control', 'order', or 'prefix': first stages that several orders share.
        run: its run directory below the sweep's.
        arm: whose folders it writes; a prefix those of the first arm that begins with it.
        teachers: of the stages 1 to `last`.
        updates: of a stage, or of the detector's training.
        needs: ids of the jobs that must be done before.
    """

    id: str
    kind: str
    run: str
    seed: int
    method: str | None = None
    detector: str | None = None
    arm: str | None = None
    teachers: Order = ()
    first: int = 1
    last: int = 0
    updates: int = 0
    needs: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, fields: dict) -> Job:
        """The job that `to_json` gave."""
        tuples = {key: tuple(fields[key]) for key in ('teachers', 'needs')}
        return cls(**fields | tuples)

    def to_json(self) -> dict:
        return asdict(self)

    @property
    def stages(self) -> range:
        """The numbers of the stages that it trains; none where it is about a detector."""
        return range(self.first, self.last + 1)

    def stage_dir(self, number: int) -> str:
        """The folder of a stage, below the sweep's."""
        return f'{self.run}/stages/{self.arm}/{number}_{self.teachers[number - 1] or "no_teacher"}'

    @property
    def folders(self) -> list[str]:
        """What it writes, below the sweep's folder."""
        if self.detector:
            return [f'{self.run}/detectors/{self.detector}']
        return [self.stage_dir(number) for number in self.stages]


def arm_name(order: Order) -> str:
    """The name of the arm that follows a sequence: ``none``, ``a-b``."""
    return 'none' if order == CONTROL else '-'.join(map(str, order))


def shared_run(seed: int) -> str:
    """Where the baseline of a seed lies, and with the recipe's own seed the teachers."""
    return f'shared/{seed}'


def plan_jobs(
    recipe: Recipe,
    orders: Sequence[Order],
    methods: Sequence[str],
    seeds: Sequence[int],
    costs: bool = False,
) -> list[Job]:
    """The jobs of a sweep, those that others need first.

    Every teacher once, with the recipe's own seed; a baseline per seed; the control, which no method changes, once per
    seed; the first stages that several orders of one length have in common once per method and seed. Orders of another
    length have fewer or more updates in a stage, and so nothing in common.

    Args:
        costs: adaptation costs are wanted, so the baseline with the recipe's own seed is.
    """
    baseline_seeds = list(seeds) if recipe.cfg.distill.start == 'baseline' else []
    if costs and recipe.seed not in baseline_seeds:
        baseline_seeds.insert(0, recipe.seed)
    jobs = [_detector_job(recipe, name, recipe.seed) for name in recipe.cfg.teachers]
    jobs += [_detector_job(recipe, 'student', seed) for seed in baseline_seeds]
    prefixes = shared_prefixes(orders)
    for seed, method in product(seeds, methods):
        for (_, prefix), order in prefixes.items():
            jobs.append(_stages_job(recipe, method, seed, order, len(prefix), prefixes))
        for order in orders:
            if order != CONTROL or method == methods[0]:
                jobs.append(_stages_job(recipe, method, seed, order, len(order), prefixes))
    return sorted(jobs, key=lambda job: JOB_KINDS.index(job.kind))


def shared_prefixes(orders: Iterable[Order]) -> dict[tuple[int, Order], Order]:
    """The first stages to compute apart: {(length of the orders, their first teachers): the first such order}.

    Where all that share a prefix share a longer one too, the longer one is enough.
    """
    orders_by_prefix: dict[tuple[int, Order], list[Order]] = {}
    for order in dict.fromkeys(orders):
        for k in range(1, len(order)):
            orders_by_prefix.setdefault((len(order), order[:k]), []).append(order)

    def longer_is_shared(length: int, prefix: Order, sharing: list[Order]) -> bool:
        longer_prefix = sharing[0][: len(prefix) + 1]
        return orders_by_prefix.get((length, longer_prefix)) == sharing

    return {
        key: sharing[0]
        for key, sharing in orders_by_prefix.items()
        if len(sharing) > 1 and not longer_is_shared(*key, sharing)
    }


def _detector_job(recipe: Recipe, name: str, seed: int) -> Job:
    spec, schedule = recipe.detectors[name], recipe.cfg.schedule
    is_baseline = name == 'student'
    updates = spec.get('updates', schedule.baseline if is_baseline else schedule.teacher)
    return Job(
        f'baseline-{seed}' if is_baseline else f'teacher-{name}',
        'baseline' if is_baseline else 'teacher',
        shared_run(seed),
        seed,
        detector=name,
        updates=0 if recipe.checkpoint(name) else updates,
    )


def _stages_job(
    recipe: Recipe,
    method: str,
    seed: int,
    order: Order,
    last: int,
    prefixes: Iterable[tuple[int, Order]],
) -> Job:
    """The job of an order's stages up to `last`, without those that another computes for it."""
    length = len(order)
    before = [
        prefix
        for shared_length, prefix in prefixes
        if shared_length == length and order[: len(prefix)] == prefix and len(prefix) < last
    ]
    prefix = max(before, key=len, default=())
    needs = []
    if prefix:
        needs.append(_prefix_id(method, seed, length, prefix))
    elif recipe.cfg.distill.start == 'baseline':
        needs.append(f'baseline-{seed}')
    teachers = dict.fromkeys(name for name in order[len(prefix) : last] if name)
    needs += [f'teacher-{name}' for name in teachers if recipe.checkpoint(name) is None]
    if order == CONTROL:
        kind, job_id = 'control', f'control-{seed}'
    elif last < length:
        kind, job_id = 'prefix', _prefix_id(method, seed, length, order[:last])
    else:
        kind, job_id = 'order', f'{method}-{seed}-{arm_name(order)}'
    return Job(
        job_id,
        kind,
        f'{method}/{seed}',
        seed,
        method=None if kind == 'control' else method,
        arm=arm_name(order),
        teachers=order[:last],
        first=len(prefix) + 1,
        last=last,
        updates=recipe.cfg.schedule.arm // length,
        needs=tuple(needs),
    )


def _prefix_id(method: str, seed: int, length: int, prefix: Order) -> str:
    return f'{method}-{seed}-{arm_name(prefix)}-of-{length}'


# Orders, seeds and methods as the command line has them.


def parse_orders(
    text: str, teachers: Sequence[str], suggested: Iterable[Order] = ()
) -> list[Order]:
    """The control, then the sequences that ``all``, ``auto`` or ``a,b;b,a`` stand for, each once.

    Args:
        suggested: the sequences for ``auto``.

    Raises:
        MtpdError: an unknown teacher, or a sequence without one.
    """
    orders: list[Order] = [CONTROL]
    for part in _order_parts(text):
        if part == 'all':
            orders += [(name,) for name in teachers]
            orders += product(teachers, repeat=2) if len(teachers) > 1 else []
        elif part == 'auto':
            for order in suggested:
                orders += [order, order[-1:] * len(order)]  # as often split, with one teacher
        elif part != 'none':
            order = tuple(name.strip() for name in part.split(','))
            for name in order:
                if name not in teachers:
                    problem = (
                        unknown_name('teacher', name, teachers) if name else 'a name is missing.'
                    )
                    raise MtpdError(
                        f'--orders {text!r}: {problem} Give all, auto, or sequences such as "a,b;b,a".'
                    )
            orders.append(order)
    return list(dict.fromkeys(orders))


def wants_suggestion(text: str) -> bool:
    """Whether the orders, as `parse_orders` takes them, include ``auto``."""
    return 'auto' in _order_parts(text)


def _order_parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(';')]


def parse_seeds(text: str) -> list[int]:
    """``0-4`` or ``0,2,7-9``. Raises MtpdError for anything else."""
    seeds: list[int] = []
    for part in text.split(','):
        match = re.fullmatch(r'\s*(\d+)\s*(?:-\s*(\d+)\s*)?', part)
        span = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
        if not span:
            raise MtpdError(
                f'--seeds {text!r}: {part!r} is not a seed. Give seeds as 0-4 or 0,2,7.'
            )
        seeds += span
    return list(dict.fromkeys(seeds))


def parse_methods(text: str, known: Iterable[str]) -> list[str]:
    """``mgd,cwd``. Raises MtpdError for a method that the recipe has no settings for."""
    methods = [name.strip() for name in text.split(',')]
    for name in methods:
        if name not in known:
            raise MtpdError(f'--methods {text!r}: {unknown_name("method", name, known)}')
    return list(dict.fromkeys(methods))
