"""What runs show about sequences of teachers, in sentences, or that they show nothing.

A sequence is compared with four arms: training on without a teacher; the strongest teacher alone (of highest AP, whatever
its place in the sequence); its own last teacher alone, which is the paper's direct distillation; and that teacher in as many
stages, which tells what the order brings from what splitting the training costs.
"""

from __future__ import annotations

from collections.abc import Callable

from ..utils import statistics
from ..utils.statistics import (
    Interval,
    format_interval,
    format_number,
    format_signed,
    printed_difference,
)
from .run import Run
from .study import PAPER_REGIME_INDEX, Order, Study, load_study

ONE_SEED = (
    'One seed cannot tell a difference from chance: run more with --seed 1, --seed 2, ... This page then reads them '
    'together.'
)


def run_summary(run: Run) -> str:
    """`study_summary` of a run and of its other seeds."""
    return study_summary(load_study(run))


def study_summary(study: Study) -> str:
    """The verdict in two or three sentences: the best arm, the best sequence against its controls, what one seed can't tell."""
    rows = study.table()
    if not rows:
        return 'No arm has been evaluated yet, so there is no answer so far.'
    sentences = [_best_arm_text(study, rows), _best_sequence_text(study, rows)]
    index = study.regime_index
    if index and index.value > 1 and any(study.order(row['name']).is_sequence for row in rows):
        sentences.append(f'{_regime_text(study)}')
    return ' '.join([*sentences, ONE_SEED] if len(study.seeds) == 1 else sentences)


def study_verdict(study: Study) -> dict[str, str]:
    """Answers by question: what distillation does, what a sequence does, what the adaptation costs predicted."""
    rows = study.table()
    if not rows:
        return {'Which arm is best?': 'No arm has been evaluated yet.'}
    taught = [row for row in rows if row['teachers']]
    several = [row for row in taught if study.order(row['name']).is_sequence]
    best_alone = study.best_teacher_alone

    def other_last_alone(order: Order) -> Order | None:
        last_alone = study.last_teacher_alone(order)
        return None if last_alone is best_alone else last_alone

    answers = {
        'What is compared?': _comparison_text(rows, study.seeds),
        'Which arm is best?': f'"{rows[0]["label"]}", with AP {format_interval(rows[0]["mean"])}.',
        'Does a teacher help?': _teacher_text(taught),
        'Does a sequence beat the strongest teacher alone?': _sequences_text(
            study, several, 'the strongest teacher alone', lambda _: best_alone
        ),
        'Does a sequence beat its last teacher alone?': _sequences_text(
            study, several, 'its last teacher alone', other_last_alone
        ),
        'What does splitting the training cost?': _splitting_text(study, taught),
        'What does the order bring?': _sequences_text(
            study, several, 'its last teacher in as many stages', study.split_control
        ),
        'Can orders be judged here?': _regime_text(study) if several else '',
        'Did the adaptation costs predict the best sequence?': _forecast_text(
            taught, study.correlation()
        ),
    }
    return {question: answer for question, answer in answers.items() if answer}


def difference_text(gap: Interval | None, other: str) -> str:
    """A difference from `other` in words that follow 'A is': 'better than B by 1.8 AP [0.9, 2.7]', of one seed
    '1.8 AP above B'."""
    if gap is None:
        return f'not comparable with {other}: they have no seed in common'
    size = format_number(abs(gap.value))
    if gap.low is None:
        if not float(size):
            return f'level with {other}'
        return f'{size} AP {"above" if gap.value > 0 else "below"} {other}'
    low, high = format_number(gap.low), format_number(gap.high)
    if gap.sign == 0:
        return f'not shown to differ from {other}: {format_signed(gap.value)} AP [{low}, {high}]'
    if gap.sign > 0:
        return f'better than {other} by {size} AP [{low}, {high}]'
    return (
        f'worse than {other} by {size} AP [{format_number(-gap.high)}, {format_number(-gap.low)}]'
    )


# The sentences of a summary.


def _best_arm_text(study: Study, rows: list[dict]) -> str:
    best = study.order(rows[0]['name'])
    ap = format_number(best.mean.value)
    equal = [f'"{row["label"]}"' for row in rows if format_number(row['mean'].value) == ap]
    missing = ', '.join(f'"{order.label}"' for order in study.orders if not order.ap)
    text = f'Of the arms evaluated so far (still missing: {missing}) the' if missing else 'The'
    if len(equal) > 1:
        text += f' best students come from several arms alike, {", ".join(equal)}: AP {ap}'
    else:
        text += f' best student comes from the arm {equal[0]}: AP {ap}'
    gains = []
    if study.control and study.control is not best:
        gap = format_interval(_difference(best, study.control), sign=True)
        # Without a common seed the means are all that there is.
        gap = gap or printed_difference(best.mean.value, study.control.mean.value)
        gains.append(f'{gap} against training on without a teacher')
    if study.start is not None:
        gains.append(f'{printed_difference(best.mean.value, study.start)} against the baseline')
    if gains:
        text += f' ({"; ".join(gains)})'
    if len(study.seeds) > 1:
        text += f', on average over {len(study.seeds)} seeds'
    return f'{text}.'


def _best_sequence_text(study: Study, rows: list[dict]) -> str:
    row = next((row for row in rows if study.order(row['name']).is_sequence), None)
    if row is None:
        return 'No arm with several teachers has been evaluated.'
    order = study.order(row['name'])
    compared = [
        difference_text(_difference(order, other), name)
        for name, other in _reference_arms(study, order).items()
    ]
    text = f'"{order.label}", the best sequence of several teachers,'
    if not compared:
        return f'{text} has no arm to compare with.'
    text += f' is {" and ".join([", ".join(compared[:-1]), compared[-1]] if compared[1:] else compared)}'
    if len(study.seeds) > 1:
        text += f', with 95 % intervals over {len(study.seeds)} seeds'
    return f'{text}.'


def _reference_arms(study: Study, order: Order) -> dict[str, Order]:
    """The arms that a sequence of teachers is compared with, by what they are."""
    arms = {}
    if study.control:
        arms['training on without a teacher'] = study.control
    best_alone, last_alone = study.best_teacher_alone, study.last_teacher_alone(order)
    if best_alone:
        arms[f'the strongest teacher alone ("{best_alone.label}")'] = best_alone
    if last_alone and last_alone is not best_alone:
        arms[f'its last teacher alone ("{last_alone.label}")'] = last_alone
    if repeated := study.split_control(order):
        arms[f'that teacher in as many stages ("{repeated.label}")'] = repeated
    return arms


def _difference(order: Order, other: Order) -> Interval | None:
    """The difference paired by seed; of one seed that of the printed figures, which a reader can subtract."""
    gap = statistics.paired_difference(order.ap, other.ap)
    if gap and gap.n == 1:
        printed = ({seed: round(ap, 1) for seed, ap in arm.ap.items()} for arm in (order, other))
        return statistics.paired_difference(*printed)
    return gap


# The answers to a study's questions.


def _comparison_text(rows: list[dict], seeds: list[int]) -> str:
    updates, counts = {row['updates'] for row in rows}, {len(row['ap']) for row in rows}
    text = f'Every arm trained {max(updates):,} updates'
    if len(updates) > 1:
        text = 'The arms trained for DIFFERENT numbers of updates: the comparison is not fair'
    text += ', each stage with its own learning rate schedule, warm-up and decay'
    ratios = [row['time_ratio'] for row in rows if row['teachers'] and row['time_ratio']]
    if ratios:
        low, high = format_number(min(ratios)), format_number(max(ratios))
        text += f'; with a teacher they took {low if low == high else f"{low} to {high}"} times as long as without'
    seeds_text = f'seeds {", ".join(map(str, seeds))}' if len(seeds) > 1 else 'one seed'
    if len(counts) > 1:
        seeds_text += f', of which some arms have {min(counts)} only'
    return f'{text}; {seeds_text}.'


def _teacher_text(taught: list[dict]) -> str:
    gaps = [row['above_control'] for row in taught if row['above_control']]
    signs = [gap.sign for gap in gaps if gap.n > 1]
    if not signs:
        return ''
    gains = [format_number(gap.value) for gap in gaps if gap.sign > 0]
    text = f'Of {len(signs)} arms with a teacher {signs.count(1)} did better than training on without one'
    if gains:
        text += f', by {" to ".join(dict.fromkeys((gains[-1], gains[0])))} AP'
    if -1 in signs:
        text += f', {signs.count(-1)} worse'
    if 0 in signs:
        text += f'; for {signs.count(0)} no difference is shown'
    return f'{text}.'


def _sequences_text(
    study: Study, several: list[dict], name: str, alone: Callable[[Order], Order | None]
) -> str:
    """The best sequence of several teachers and the suggested ones, each against the arm that `alone` gives for it."""
    sentences = []
    for place, row in enumerate(several):
        order = study.order(row['name'])
        other = alone(order)
        roles = ['the best sequence by mean AP'] if place == 0 else []
        roles += ['the sequence that the costs suggest'] if row['chosen'] else []
        if other is None or not roles:
            continue
        role = ' and '.join(roles)
        gap = _difference(order, other)
        text = f'{role[0].upper()}{role[1:]}: {order.label} is {difference_text(gap, f"{name} ({other.label})")}'
        if gap:
            text += (
                ', with one seed, which shows no difference' if gap.n == 1 else f', {gap.n} seeds'
            )
        sentences.append(f'{text}.')
        if place == 0 and len(several) > 1 and gap and gap.n > 1:
            caveat = (
                f'(The interval does not account for the choice of the best of {len(several)}.)'
            )
            sentences.append(caveat)
    return ' '.join(sentences)


def _splitting_text(study: Study, taught: list[dict]) -> str:
    """Of each arm that repeats one teacher, what it has more or less than that teacher alone."""
    sentences = []
    for row in taught:
        order = study.order(row['name'])
        alone = study.last_teacher_alone(order)
        if len(order.teachers) < 2 or order.is_sequence or alone is None:
            continue
        text = f'{order.label} is {difference_text(_difference(order, alone), f"the same teacher in one stage ({alone.label})")}'
        sentences.append(f'{text}.')
    return ' '.join(sentences)


def _regime_text(study: Study) -> str:
    """The regime index in words; '' where baseline, control or the strongest teacher alone is missing."""
    control, taught = study.control, study.best_teacher_alone
    if control is None or taught is None or study.start is None:
        return ''
    index = study.regime_index
    if index is None:
        return f'No: {taught.label} brings no more than training as long without a teacher, so there is no gain to split.'
    value = format_interval(index)
    facts = (
        f'training as long without a teacher brings {value} times what {taught.label} brings on top of it (regime index; the '
        f"paper's RetinaNet: {format_number(PAPER_REGIME_INDEX)})"
    )
    if index.value > 1:
        return f'Orders can hardly be judged here: {facts}. The student is still at the steep part of its curve: train the baseline longer.'
    if index.value > 0.5:
        return f'Orders can be judged with care: {facts}.'
    return f'Orders can be judged: {facts}.'


def _forecast_text(taught: list[dict], correlation: Interval | None) -> str:
    sentences = []
    for place, row in enumerate(taught, 1):
        if not row['chosen']:
            continue
        gap = statistics.paired_difference(row['ap'], taught[0]['ap'])
        verdict = 'Yes' if place == 1 else 'No' if gap and gap.sign else 'Not shown'
        if len(row['ap']) == 1:
            verdict = 'One seed cannot tell'
        text = f'{verdict}: the suggested sequence, {row["label"]}, is number {place} of {len(taught)} by mean AP'
        if gap and place > 1:
            text += f', {format_interval(gap, sign=True)} AP from the first'
        sentences.append(f'{text}.')
    if correlation:
        conclusion = {
            -1: 'cheaper paths made better students',
            0: 'no relation of path cost and AP is shown',
            1: 'cheaper paths made worse students',
        }[correlation.sign]
        value, low, high = (
            format_number(number, 2)
            for number in (correlation.value, correlation.low, correlation.high)
        )
        sentences.append(
            f'Rank correlation of path cost and mean AP over {correlation.n} sequences: {value} [{low}, {high}], {conclusion}.'
        )
        if len({len(row['teachers']) for row in taught}) > 1:
            sentences.append(
                'Sequences of several teachers have more costs to add up, and split their updates over stages.'
            )
    return ' '.join(sentences)
