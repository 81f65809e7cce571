"""What a study's numbers say about sequences of teachers, in words: also that nothing has been shown."""

from __future__ import annotations

from ..utils import intervals
from ..utils.intervals import Interval
from ..utils.numerals import bracketed, number, signed
from .study import Study


def conclude(study: Study) -> dict[str, str]:
    """Questions and the answers that follow from the numbers: distillation, direct against progressive, the costs' forecast."""
    rows = study.table()
    if not rows:
        return {'Which arm is best?': 'No arm has been evaluated yet.'}
    taught = [row for row in rows if row['teachers']]
    several = [row for row in taught if len(row['teachers']) > 1]
    direct = f'direct distillation ({study.direct.label})' if study.direct else ''
    found = {
        'What is compared?': _setting(rows, study.seeds),
        'Which arm is best?': f'"{rows[0]["label"]}", with AP {bracketed(rows[0]["mean"])}.',
        'Does a teacher help?': _distillation(taught),
        'Does a sequence beat the strongest teacher alone?': _progressive(several, direct),
        'Did the adaptation costs foretell the best sequence?': _forecast(
            taught, study.correlation()
        ),
    }
    return {question: answer for question, answer in found.items() if answer}


def table_rows(study: Study) -> list[dict]:
    """`Study.table` as `mtpd.report.tables.table` shows it: AP points with 95 % intervals, differences paired by seed; a star:
    the interval leaves out 0."""
    return [
        {
            'arm': row['label'],
            'suggested': 'yes' if row['chosen'] else '',
            'AP': bracketed(row['mean']),
            'seeds': len(row['ap']),
            'against no teacher': bracketed(row['above_control'], sign=True, star=True),
            'against direct, strongest teacher': bracketed(
                row['above_direct'], sign=True, star=True
            ),
            'path cost': row['path_cost'],
        }
        for row in study.table()
    ]


def _setting(rows: list[dict], seeds: list[int]) -> str:
    updates, counts = {row['updates'] for row in rows}, {len(row['ap']) for row in rows}
    text = f'Every arm trained {max(updates):,} updates after the same baseline'
    if len(updates) > 1:
        text = 'The arms trained for DIFFERENT numbers of updates: this is no fair comparison'
    text += ', with a learning rate schedule for each stage: warm-up and decay come once a stage'
    named = f'seeds {", ".join(map(str, seeds))}' if len(seeds) > 1 else 'one seed'
    if len(counts) > 1:
        named += f', of which some arms have {min(counts)} only'
    return f'{text}; {named}.'


def _distillation(taught: list[dict]) -> str:
    known = [row['above_control'] for row in taught if row['above_control']]
    signs = [found.sign for found in known if found.n > 1]
    if not signs:
        return ''
    gains = [number(found.value) for found in known if found.sign > 0]
    words = f'Of {len(signs)} arms with a teacher {signs.count(1)} did better than training on without one'
    words += f', by {" to ".join(dict.fromkeys((gains[-1], gains[0])))} AP' if gains else ''
    words += f', {signs.count(-1)} worse' if -1 in signs else ''
    return words + (f'; for {signs.count(0)} no difference is shown.' if 0 in signs else '.')


def _progressive(several: list[dict], direct: str) -> str:
    """Sequences of several teachers against direct distillation from the best one."""
    text = []
    for row in several if direct else ():
        if row['chosen'] or row is several[0]:
            words = ['the best sequence by mean AP'] * (row is several[0])
            words += ['the one that the costs suggest'] * row['chosen']
            found, named = (
                difference(row['label'], direct, row['above_direct']),
                ' and '.join(words),
            )
            text.append(f'{named[0].upper()}{named[1:]}: {found}')
    best = several[0]['above_direct'] if direct and len(several) > 1 else None
    if best and best.n > 1:
        text.append(
            f'(Its interval does not account for its being picked as the best of {len(several)}.)'
        )
    return ' '.join(text)


def _forecast(taught: list[dict], correlation: Interval | None) -> str:
    text = []
    for place, row in enumerate(taught, 1):
        if row['chosen']:
            gap = intervals.paired(row['ap'], taught[0]['ap'])
            verdict = 'Yes' if place == 1 else 'No' if gap and gap.sign else 'Not shown'
            verdict = verdict if len(row['ap']) > 1 else 'One seed does not tell'
            apart = f', {bracketed(gap, sign=True)} AP from the first' if gap and place > 1 else ''
            text.append(
                f'{verdict}: the one that they suggest, {row["label"]}, is number {place} of {len(taught)} by mean AP{apart}.'
            )
    if correlation:
        words = ('the costs foretold nothing that shows', 'cheaper paths made worse students')
        words = (*words, 'cheaper paths made better students')[correlation.sign]
        ends = f'[{number(correlation.low, 2)}, {number(correlation.high, 2)}]'
        text.append(
            f'Rank correlation of path cost and mean AP over {correlation.n} sequences: '
            f'{number(correlation.value, 2)} {ends}, {words}.'
        )
        if len({len(row['teachers']) for row in taught}) > 1:
            text.append(
                'Sequences of several teachers cost more by their hops, and split their updates over stages.'
            )
    return ' '.join(text)


def difference(a: str, b: str, found: Interval | None) -> str:
    """'A is better than B by 1.8 AP [0.9, 2.7], 5 seeds.', or that no difference is shown."""
    if found is None:
        return f'{a} and {b} have no seed in common.'
    if found.low is None:
        return f'{a} against {b}: {signed(found.value)} AP with one seed, which shows nothing.'
    ends = f'[{number(found.low)}, {number(found.high)}], {found.n} seeds'
    if found.sign == 0:
        return f'no difference shown between {a} and {b}: {signed(found.value)} AP {ends}.'
    if found.sign > 0:
        return f'{a} is better than {b} by {number(found.value)} AP {ends}.'
    ends = f'[{number(-found.high)}, {number(-found.low)}], {found.n} seeds'
    return f'{a} is worse than {b} by {number(-found.value)} AP {ends}.'
