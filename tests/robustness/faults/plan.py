"""What is hit, when and by what: every case and every phase, drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

# In the order of a run; those of `mtpd train` come where they leave `mtpd run` something to be hit in.
PHASES = ('start', '00', '01', 'baseline', 'train baseline', '03', 'stage 1', 'train stage 1')
PHASES += ('stage 2', 'train stage 2', '05', '06', 'report')
TRAINING = ('baseline', 'stage 1', 'stage 2')
KERNELS = ('00', '01', *TRAINING, '03', '05', '06')
# Which get another hit, where there are more hits than phases.
FIRST = (*TRAINING, 'report')
A_RUN = 4  # hits, before it ends by itself and is compared

CASES = {  # (target, signal): the phases it is tried in
    **{
        ('runner', name): tuple(phase for phase in PHASES if not phase.startswith('train'))
        for name in ('SIGKILL', 'SIGTERM', 'SIGINT', 'power cut')
    },
    **{('kernel', name): KERNELS for name in ('SIGKILL', 'SIGTERM')},
    **{('data worker', name): TRAINING for name in ('SIGKILL', 'SIGTERM')},
    **{
        ('training', name): tuple(f'train {phase}' for phase in TRAINING)
        for name in ('SIGKILL', 'SIGTERM', 'SIGINT', 'power cut')
    },
}


@dataclass(frozen=True)
class Hit:
    """A hit to be made."""

    phase: str
    target: str
    signal: str
    share: float  # of the phase's length, after its start

    @property
    def verb(self) -> str:
        return 'train' if self.target == 'training' else 'run'


def plan(kills: int, rng: random.Random) -> list[list[Hit]]:
    """`kills` hits, dealt to runs in which no phase comes twice; of 20 every phase and every case is one."""
    # One more of `mtpd train`: it has a case more than phases.
    once = [*PHASES, f'train {rng.choice(TRAINING)}']
    phases = rng.sample(once, min(kills, len(once)))
    while len(phases) < kills:
        more = [*rng.sample(FIRST, len(FIRST)), *rng.sample(PHASES, len(PHASES))]
        phases += more[: kills - len(phases)]
    used = dict.fromkeys(CASES, 0)
    hits = []
    # Where few cases are possible, they are drawn first.
    for phase in sorted(phases, key=lambda phase: (len(_possible(phase)), PHASES.index(phase))):
        cases = _possible(phase)
        rng.shuffle(cases)
        case = min(cases, key=used.get)
        used[case] += 1
        hits.append(Hit(phase, *case, round(rng.random(), 3)))
    return deal(hits)


def deal(hits: list[Hit]) -> list[list[Hit]]:
    """Hits for as many runs as there must be, each run's in the order of its phases."""
    runs = -(-len(hits) // A_RUN)
    ordered = sorted(hits, key=lambda hit: PHASES.index(hit.phase))
    return [ordered[number::runs] for number in range(runs)]


def _possible(phase: str) -> list[tuple[str, str]]:
    return [case for case, phases in CASES.items() if phase in phases]
