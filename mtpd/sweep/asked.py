"""What a sweep is asked for, as the command line writes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import permutations

from ..errors import MtpdError, unknown
from .plan import CONTROL, Order


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
