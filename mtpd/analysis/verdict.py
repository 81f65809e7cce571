"""What a study's numbers say about sequences of teachers, in words: also that nothing has been shown."""

from __future__ import annotations

from ..utils import statistics
from ..utils.statistics import (
    Interval,
    format_interval,
    format_number,
    format_signed,
    printed_difference,
)
from .run import Run
from .study import Study, load_study


def study_verdict(study: Study) -> dict[str, str]:
    """Questions and the answers that follow from the numbers: distillation, direct against progressive, the costs' forecast."""
    rows = study.table()
    if not rows:
        return {'Which arm is best?': 'No arm has been evaluated yet.'}
    taught = [row for row in rows if row['teachers']]
    several = [row for row in taught if len(row['teachers']) > 1]
    direct = f'direct distillation ({study.direct.label})' if study.direct else ''
    found = {
        'What is compared?': _comparison_text(rows, study.seeds),
        'Which arm is best?': f'"{rows[0]["label"]}", with AP {format_interval(rows[0]["mean"])}.',
        'Does a teacher help?': _teacher_text(taught),
        'Does a sequence beat the strongest teacher alone?': _sequence_text(several, direct),
        'Did the adaptation costs foretell the best sequence?': _forecast_text(
            taught, study.correlation()
        ),
    }
    return {question: answer for question, answer in found.items() if answer}


def _comparison_text(rows: list[dict], seeds: list[int]) -> str:
    updates, counts = {row['updates'] for row in rows}, {len(row['ap']) for row in rows}
    text = f'Every arm trained {max(updates):,} updates after the same baseline'
    if len(updates) > 1:
        text = 'The arms trained for DIFFERENT numbers of updates: this is no fair comparison'
    text += ', with a learning rate schedule for each stage: warm-up and decay come once a stage'
    named = f'seeds {", ".join(map(str, seeds))}' if len(seeds) > 1 else 'one seed'
    if len(counts) > 1:
        named += f', of which some arms have {min(counts)} only'
    return f'{text}; {named}.'


def _teacher_text(taught: list[dict]) -> str:
    known = [row['above_control'] for row in taught if row['above_control']]
    signs = [found.sign for found in known if found.n > 1]
    if not signs:
        return ''
    gains = [format_number(found.value) for found in known if found.sign > 0]
    words = f'Of {len(signs)} arms with a teacher {signs.count(1)} did better than training on without one'
    words += f', by {" to ".join(dict.fromkeys((gains[-1], gains[0])))} AP' if gains else ''
    words += f', {signs.count(-1)} worse' if -1 in signs else ''
    return words + (f'; for {signs.count(0)} no difference is shown.' if 0 in signs else '.')


def _sequence_text(several: list[dict], direct: str) -> str:
    """Sequences of several teachers against direct distillation from the best one."""
    text = []
    for row in several if direct else ():
        if row['chosen'] or row is several[0]:
            words = ['the best sequence by mean AP'] * (row is several[0])
            words += ['the one that the costs suggest'] * row['chosen']
            found, named = (
                difference_text(row['label'], direct, row['above_direct']),
                ' and '.join(words),
            )
            text.append(f'{named[0].upper()}{named[1:]}: {found}')
    best = several[0]['above_direct'] if direct and len(several) > 1 else None
    if best and best.n > 1:
        text.append(
            f'(Its interval does not account for its being picked as the best of {len(several)}.)'
        )
    return ' '.join(text)


def _forecast_text(taught: list[dict], correlation: Interval | None) -> str:
    text = []
    for place, row in enumerate(taught, 1):
        if row['chosen']:
            gap = statistics.paired_difference(row['ap'], taught[0]['ap'])
            verdict = 'Yes' if place == 1 else 'No' if gap and gap.sign else 'Not shown'
            verdict = verdict if len(row['ap']) > 1 else 'One seed does not tell'
            apart = (
                f', {format_interval(gap, sign=True)} AP from the first'
                if gap and place > 1
                else ''
            )
            text.append(
                f'{verdict}: the one that they suggest, {row["label"]}, is number {place} of {len(taught)} by mean AP{apart}.'
            )
    if correlation:
        words = ('the costs foretold nothing that shows', 'cheaper paths made worse students')
        words = (*words, 'cheaper paths made better students')[correlation.sign]
        ends = f'[{format_number(correlation.low, 2)}, {format_number(correlation.high, 2)}]'
        text.append(
            f'Rank correlation of path cost and mean AP over {correlation.n} sequences: '
            f'{format_number(correlation.value, 2)} {ends}, {words}.'
        )
        if len({len(row['teachers']) for row in taught}) > 1:
            text.append(
                'Sequences of several teachers cost more by their hops, and split their updates over stages.'
            )
    return ' '.join(text)


def difference_text(a: str, b: str, found: Interval | None) -> str:
    """'A is better than B by 1.8 AP [0.9, 2.7], 5 seeds.', or that no difference is shown."""
    if found is None:
        return f'{a} and {b} have no seed in common.'
    if found.low is None:
        return (
            f'{a} against {b}: {format_signed(found.value)} AP with one seed, which shows nothing.'
        )
    ends = f'[{format_number(found.low)}, {format_number(found.high)}], {found.n} seeds'
    if found.sign == 0:
        return f'no difference shown between {a} and {b}: {format_signed(found.value)} AP {ends}.'
    if found.sign > 0:
        return f'{a} is better than {b} by {format_number(found.value)} AP {ends}.'
    ends = f'[{format_number(-found.high)}, {format_number(-found.low)}], {found.n} seeds'
    return f'{a} is worse than {b} by {format_number(-found.value)} AP {ends}.'


# What the numbers of a run say, in words: also when the method does not win.


# AP points: twice the largest standard deviation of an arm's difference from the control over five seeds of the pocket
# recipe (results/mini_retinanet_r50__r101_rx101/seeds.json). Another recipe needs its own seeds.
DECISIVE_AP = 1.0


def conclusion(rows: list[dict], seeds: int | None = None) -> str:
    """Sentences that follow from `Run.results()`: the best arm, and progressive against its controls.

    Args:
        rows: rows as `Run.results()` gives them, AP in points 0..100.
        seeds: number of runs that the rows are means of; None or 1 is a single run.
    """
    arms = [row for row in rows if row['role'] == 'arm']
    done = sorted((r for r in arms if r['AP'] is not None), key=lambda r: -r['AP'])
    if not done:
        return 'No arm has been evaluated yet, so there is nothing to conclude.'
    best = done[0]
    if len(done) > 1 and _gap(best, done[-1]) == 0:
        return f'All arms have the same AP, {best["AP"]:.1f}: nothing tells them apart.'
    text = [_best(best, next((r['AP'] for r in rows if r['role'] == 'baseline'), None))]
    lead = _gap(best, done[1]) if len(done) > 1 else 0.0
    kinds = {r['kind']: r for r in done if r['kind'] != 'other'}
    if 'progressive' in kinds:
        text.append(_progressive(kinds, best, lead))
    control = kinds.get('control')
    if control is best and len(done) > 1:
        text.append(
            'No arm with a teacher beats training on without one: distillation did not help.'
        )
    if len(done) > 1:
        text.append(_certainty(lead, done[1], seeds))
    missing = [r['label'] for r in arms if r['AP'] is None]
    if missing:
        text.append(f'Not evaluated, so not compared: {", ".join(missing)}.')
    return ' '.join(text)


def _best(best: dict, baseline: float | None) -> str:
    label = best['label'][:1].upper() + best['label'][1:]
    text = f'{label} is the best arm with AP {best["AP"]:.1f}'
    if baseline is None:
        return text + '.'
    return text + f', {_words(best["AP"], baseline)} the common baseline ({baseline:.1f}).'


def _progressive(kinds: dict[str, dict], best: dict, lead: float) -> str:
    row = kinds['progressive']
    others = [
        (kinds[kind], words)
        for kind, words in (
            ('control', 'training on without a teacher'),
            ('direct', 'distilling from the last teacher alone'),
        )
        if kind in kinds
    ]
    against = ' and '.join(
        f'{_words(row["AP"], other["AP"])} {words} ({other["AP"]:.1f})' for other, words in others
    )
    if row is best:
        verb = 'wins' if lead >= DECISIVE_AP else 'has the highest AP'
        return f'Progressive distillation {verb}: it is {against}.' if against else ''
    start = f'Progressive distillation ({row["label"]}, AP {row["AP"]:.1f}) does not win here'
    return f'{start}: it is {against}.' if against else f'{start}.'


def _certainty(lead: float, second: dict, seeds: int | None) -> str:
    if seeds and seeds > 1:
        rule = f'these are means over {seeds} seeds, so look at their spread before trusting it'
    else:
        rule = f'with one seed, differences below about {DECISIVE_AP:.0f} AP point decide nothing'
    only = 'only ' if lead < DECISIVE_AP else ''
    return f'The lead over {second["label"]} is {only}{lead:.1f} points; {rule}.'


def _gap(a: dict, b: dict) -> float:
    # Of the printed figures, so that a reader who subtracts them gets the same number.
    return round(round(a['AP'], 1) - round(b['AP'], 1), 1)


def _words(ap: float, other: float) -> str:
    gap = round(round(ap, 1) - round(other, 1), 1)
    if gap == 0:
        return 'level with'
    return f'{abs(gap):.1f} points {"above" if gap > 0 else "below"}'


# The answer of a run, or of its seeds together, in two sentences: which arm wins and by how much, and how sure that is.


def study_summary(study: Study) -> str:
    """Two sentences; of one seed the second says what one seed can't."""
    rows = study.table()
    if not rows:
        return 'No arm has been evaluated yet. There is nothing to answer so far.'
    best, seeds = rows[0], study.seeds
    ap = format_number(best['mean'].value)
    first = [row['label'] for row in rows if format_number(row['mean'].value) == ap]
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
        gap = printed_difference(best['mean'].value, study.control.mean.value)
        parts.append(
            f'{format_interval(paired, sign=True) or gap} against training on without a teacher'
        )
    if study.start is not None:
        parts.append(f'{printed_difference(best["mean"].value, study.start)} against the baseline')
    text += f' ({"; ".join(parts)})' if parts else ''
    over = f', on average over {len(seeds)} seeds' if len(seeds) > 1 else ''
    return f'{text}{over}. {_answer_certainty(rows, len(seeds))}'


def _answer_certainty(rows: list[dict], seeds: int) -> str:
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
        return f'not shown to differ from {other} ({format_interval(found, sign=True)} AP)'
    value = found if found.sign > 0 else Interval(-found.value, -found.high, -found.low, found.n)
    return f'{"better" if found.sign > 0 else "worse"} than {other} by {format_interval(value)} AP'


def run_summary(run: Run) -> str:
    """What a run says in the end, or, where other seeds of it were run, what they all say."""
    study = load_study(run)
    return study_summary(study) if len(study.seeds) > 1 else conclusion(run.results())
