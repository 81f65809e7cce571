"""The answer of a run, or of its seeds together, in two sentences: which arm wins and by how much, and how sure that is."""

from __future__ import annotations

from ..utils.intervals import Interval
from ..utils.numerals import bracketed, gain, number
from .conclusion import DECISIVE_AP, conclusion
from .runs import Run
from .seeds import gather
from .study import Study


def answer(study: Study) -> str:
    """Two sentences; of one seed the second says what one seed can't."""
    rows = study.table()
    if not rows:
        return 'No arm has been evaluated yet. There is nothing to answer so far.'
    best, seeds = rows[0], study.seeds
    ap = number(best['mean'].value)
    first = [row['label'] for row in rows if number(row['mean'].value) == ap]
    missing = ', '.join(f'"{order.label}"' for order in study.orders if not order.ap)
    text = f'Of the arms evaluated so far (still missing: {missing}) the' if missing else 'The'
    if len(first) > 1:
        named = ', '.join(f'"{label}"' for label in first)
        text += f' best students come from several arms alike, {named}: AP {ap}'
    else:
        text += f' best student comes from the arm "{first[0]}": AP {ap}'
    parts = []
    if study.control and study.control.name != best['name']:
        paired = best['above_control'] if len(seeds) > 1 else None
        gap = gain(best['mean'].value, study.control.mean.value)
        parts.append(f'{bracketed(paired, sign=True) or gap} against training on without a teacher')
    if study.start is not None:
        parts.append(f'{gain(best["mean"].value, study.start)} against the baseline')
    text += f' ({"; ".join(parts)})' if parts else ''
    over = f', on average over {len(seeds)} seeds' if len(seeds) > 1 else ''
    return f'{text}{over}. {_certainty(rows, len(seeds))}'


def _certainty(rows: list[dict], seeds: int) -> str:
    if seeds < 2:
        return (
            f'It is one seed, so differences below about {DECISIVE_AP:.0f} AP decide nothing: run more with '
            '--seed 1, --seed 2, ... and this page reads them together.'
        )
    progressive = next((row for row in rows if len(row['teachers']) > 1), None)
    if not progressive:
        return 'There is no arm with several teachers to compare it with.'
    said = [
        _verdict(progressive[key], words)
        for key, words in (
            ('above_control', 'training on without a teacher'),
            ('above_direct', 'the strongest teacher alone'),
        )
        if progressive[key] is not None
    ]
    named = f'"{progressive["label"]}", the best sequence of several teachers,'
    if not said:
        return f'{named} has nothing to be compared with.'
    return f'{named} is {" and ".join(said)}, with 95 % intervals over {seeds} seeds.'


def _verdict(found: Interval, other: str) -> str:
    if not found.sign:
        return f'not shown to differ from {other} ({bracketed(found, sign=True)} AP)'
    value = found if found.sign > 0 else Interval(-found.value, -found.high, -found.low, found.n)
    return f'{"better" if found.sign > 0 else "worse"} than {other} by {bracketed(value)} AP'


def closing(run: Run) -> str:
    """What a run says in the end, or, where other seeds of it were run, what they all say."""
    study = gather(run)
    return answer(study) if len(study.seeds) > 1 else conclusion(run.results())
