"""What a sweep computes: its jobs, what they share, and where the results of each lie."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations, product
from typing import TYPE_CHECKING

from ..errors import MtpdError, unknown

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
    def read(cls, fields: dict) -> Job:
        return cls(
            **fields | {'teachers': tuple(fields['teachers']), 'needs': tuple(fields['needs'])}
        )

    def json(self) -> dict:
        return asdict(self)

    def stage(self, number: int) -> str:
        """The folder of a stage, below the sweep's."""
        return f'{self.run}/stages/{self.arm}/{number}_{self.teachers[number - 1] or "no_teacher"}'

    @property
    def folders(self) -> list[str]:
        """What it writes, below the sweep's folder."""
        if self.detector:
            return [f'{self.run}/detectors/{self.detector}']
        return [self.stage(number) for number in range(self.first, self.last + 1)]


def arm_name(order: Order) -> str:
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
    starts = list(seeds) if recipe.cfg.distill.start == 'baseline' else []
    if costs and recipe.seed not in starts:
        starts.insert(0, recipe.seed)
    jobs = [_detector_job(recipe, name, recipe.seed) for name in recipe.cfg.teachers]
    jobs += [_detector_job(recipe, 'student', seed) for seed in starts]
    shared = shared_prefixes(orders)
    for seed, method in product(seeds, methods):
        for head, owner in shared.items():
            jobs.append(_stages_job(recipe, method, seed, owner, len(head[1]), shared))
        for order in orders:
            if order != CONTROL or method == methods[0]:
                jobs.append(_stages_job(recipe, method, seed, order, len(order), shared))
    return sorted(jobs, key=lambda job: JOB_KINDS.index(job.kind))


def shared_prefixes(orders: Iterable[Order]) -> dict[tuple[int, Order], Order]:
    """The first stages to compute apart: {(length of the orders, their first teachers): the first such order}.

    Where all that share a prefix share a longer one too, the longer one is enough.
    """
    sharing: dict[tuple[int, Order], list[Order]] = {}
    for order in dict.fromkeys(orders):
        for k in range(1, len(order)):
            sharing.setdefault((len(order), order[:k]), []).append(order)

    def longer(length: int, head: Order, sharers: list[Order]) -> bool:
        return sharing.get((length, sharers[0][: len(head) + 1])) == sharers

    return {
        key: sharers[0]
        for key, sharers in sharing.items()
        if len(sharers) > 1 and not longer(*key, sharers)
    }


def _detector_job(recipe: Recipe, name: str, seed: int) -> Job:
    spec, schedule = recipe.detectors[name], recipe.cfg.schedule
    baseline = name == 'student'
    updates = spec.get('updates', schedule.baseline if baseline else schedule.teacher)
    return Job(
        f'baseline-{seed}' if baseline else f'teacher-{name}',
        'baseline' if baseline else 'teacher',
        shared_run(seed),
        seed,
        detector=name,
        updates=0 if recipe.checkpoint(name) else updates,
    )


def _stages_job(recipe: Recipe, method: str, seed: int, order: Order, last: int, shared) -> Job:
    """The job of an order's stages up to `last`, without those that another computes for it."""
    heads = [h for n, h in shared if n == len(order) and order[: len(h)] == h and len(h) < last]
    head = max(heads, key=len, default=())
    needs = []
    if head:
        needs.append(_prefix_id(method, seed, len(order), head))
    elif recipe.cfg.distill.start == 'baseline':
        needs.append(f'baseline-{seed}')
    own = dict.fromkeys(t for t in order[len(head) : last] if t)
    needs += [f'teacher-{t}' for t in own if recipe.checkpoint(t) is None]
    kind, name = 'order', f'{method}-{seed}-{arm_name(order)}'
    if order == CONTROL:
        kind, name = 'control', f'control-{seed}'
    elif last < len(order):
        kind, name = 'prefix', _prefix_id(method, seed, len(order), order[:last])
    return Job(
        name,
        kind,
        f'{method}/{seed}',
        seed,
        method=None if kind == 'control' else method,
        arm=arm_name(order),
        teachers=order[:last],
        first=len(head) + 1,
        last=last,
        updates=recipe.cfg.schedule.arm // len(order),
        needs=tuple(needs),
    )


def _prefix_id(method: str, seed: int, length: int, head: Order) -> str:
    return f'{method}-{seed}-{arm_name(head)}-of-{length}'


# What a sweep is asked for, as the command line writes it.


def parse_orders(
    text: str, teachers: Sequence[str], suggest: Callable[[], list[Order]]
) -> list[Order]:
    """The control, then the sequences that ``all``, ``auto`` or ``a,b;b,a`` stand for, each once.

    Args:
        suggest: the sequences for ``auto``.

    Raises:
        MtpdError: an unknown teacher, or a sequence without one.
    """
    found: list[Order] = [CONTROL]
    for part in text.split(';'):
        if part.strip() == 'all':
            found += [(name,) for name in teachers] + list(permutations(teachers, 2))
        elif part.strip() == 'auto':
            found += suggest()
        elif part.strip() != 'none':
            order = tuple(name.strip() for name in part.split(','))
            for name in order:
                if name not in teachers:
                    wrong = unknown('teacher', name, teachers) if name else 'a name is missing.'
                    raise MtpdError(
                        f'--orders {text!r}: {wrong} Give all, auto, or sequences such as "a,b;b,a".'
                    )
            found.append(order)
    return list(dict.fromkeys(found))


def parse_seeds(text: str) -> list[int]:
    """``0-4`` or ``0,2,7-9``. Raises MtpdError for anything else."""
    found: list[int] = []
    for part in text.split(','):
        match = re.fullmatch(r'\s*(\d+)\s*(?:-\s*(\d+)\s*)?', part)
        seeds = match and range(int(match[1]), int(match[2] or match[1]) + 1)
        if not seeds:
            raise MtpdError(f'--seeds {text!r}: {part!r} is no seed. Give them as 0-4 or 0,2,7.')
        found += seeds
    return list(dict.fromkeys(found))


def parse_methods(text: str, known: Iterable[str]) -> list[str]:
    """``mgd,cwd``. Raises MtpdError for a method that the recipe has no settings for."""
    found = [name.strip() for name in text.split(',')]
    for name in found:
        if name not in known:
            raise MtpdError(f'--methods {text!r}: {unknown("method", name, known)}')
    return list(dict.fromkeys(found))
