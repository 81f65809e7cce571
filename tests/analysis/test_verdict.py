"""What runs say in sentences: the numbers in them by hand, and which arm is which."""

from __future__ import annotations

import pytest

from helpers.fake_run import make_run, metrics, put
from helpers.study import AP, T2, made_up_study
from mtpd.analysis.run import load_run
from mtpd.analysis.study import Order
from mtpd.analysis.verdict import difference_text, run_summary, study_summary, study_verdict
from mtpd.report.run import make_report
from mtpd.utils.statistics import Interval


def test_words_follow_from_the_intervals():
    answers = study_verdict(made_up_study())
    compared, _, teacher, sequence, regime, costs = answers.values()
    assert compared == (
        'Every arm trained 600 updates, each stage with its own learning rate schedule, warm-up '
        'and decay; seeds 0, 1, 2.'
    )
    reach = T2 * 0.1 / 3**0.5
    ends = f'[{1 - reach:.1f}, {1 + reach:.1f}], 3 seeds'
    words = 'The best sequence by mean AP and the sequence that the costs suggest'
    assert (
        f'{words}: a → b is better than the strongest teacher alone (b) by 1.0 AP {ends}.'
        in sequence
    )
    assert 'does not account for the choice of the best of 2' in sequence
    assert 'Yes: the suggested sequence, a → b, is number 1 of 4 by mean AP.' in costs
    # Against 11.0, 13.0, 12.0: a → b 3.0 above it, b 2.0 and b → a 2.03; a may be below.
    assert teacher == (
        'Of 4 arms with a teacher 3 did better than training on without one, by 2.0 to 3.0 AP; for 1 no difference is shown.'
    )
    assert list(answers)[3] == 'Does a sequence beat the strongest teacher alone?'
    assert regime.startswith('Orders can hardly be judged here: ')
    other = study_verdict(made_up_study(chosen=[('b', 'a')]))[
        'Did the adaptation costs predict the best sequence?'
    ]
    assert other.startswith(
        'No: the suggested sequence, b → a, is number 2 of 4 by mean AP, −1.0 ['
    )
    near = AP | {('b', 'a'): [12.9, 15.2, 13.8]}
    other = study_verdict(made_up_study(near, chosen=[('b', 'a')]))[
        'Did the adaptation costs predict the best sequence?'
    ]
    assert other.startswith('Not shown: the suggested sequence, b → a, is number 2 of 4')
    assert answers['Which arm is best?'].startswith('"a → b", with AP 14.0 [')
    assert made_up_study().order('a-b').walk == [5, 8, 9]
    same = made_up_study(AP | {('a', 'b'): [11.9, 14.4, 12.7]})
    assert 'a → b is not shown to differ from the strongest teacher alone (b): ±0.0 AP' in ' '.join(
        study_verdict(same).values()
    )
    worse = ' '.join(study_verdict(made_up_study(AP | {('a', 'b'): [11.0, 13.1, 11.9]})).values())
    assert 'a → b is worse than the strongest teacher alone (b) by 1.0 AP [' in worse


def test_what_splitting_costs_and_what_the_order_brings():
    twice = {
        ('b', 'b'): [11.5, 13.6, 12.4]
    }  # 0.5, 0.6, 0.4 below b; a → b is 1.5 above it in each seed
    study = made_up_study(AP | twice)
    answers = study_verdict(study)
    reach = T2 * 0.1 / 3**0.5
    assert answers['What does splitting the training cost?'] == (
        f'b → b is worse than the same teacher in one stage (b) by 0.5 AP [{0.5 - reach:.1f}, {0.5 + reach:.1f}].'
    )
    assert answers['What does the order bring?'].startswith(
        'The best sequence by mean AP and the sequence that the costs suggest: a → b is better than its last teacher in as many '
        'stages (b → b) by 1.5 AP [1.5, 1.5], 3 seeds.'
    )
    assert 'that teacher in as many stages ("b → b") by 1.5 AP' in study_summary(study)
    # One teacher, twice, is no sequence of several, however good.
    best = study_summary(made_up_study(AP | {('b', 'b'): [20.0, 20.0, 20.0]}))
    assert 'comes from the arm "b → b"' in best
    assert '"a → b", the best sequence of several teachers' in best
    without = study_verdict(made_up_study())
    assert not {'What does splitting the training cost?', 'What does the order bring?'} & set(
        without
    )


def test_the_regime_by_hand():
    # Baselines 5 and 6 of seeds 0 and 1; the control 10 and 12: +5, +6. b: 12 and 14.2: +2, +2.2.
    index = made_up_study().regime_index
    assert (index.value, index.n) == (pytest.approx(5.5 / 2.1), 2)
    question = 'Can orders be judged here?'
    late = made_up_study(AP | {(): [5.5, 6.4, 11.0]})  # +0.5, +0.4; b +6.5, +7.8: 0.9 / 14.3
    assert study_verdict(late)[question].startswith(
        'Orders can be judged: training as long without a teacher brings 0.1'
    )
    assert 'judged' not in study_summary(late)
    assert "(regime index; the paper's RetinaNet: 0.2)" in study_verdict(late)[question]
    between = made_up_study(AP | {(): [8.0, 9.4, 11.0]})  # 6.4 / 8.8
    assert study_verdict(between)[question].startswith('Orders can be judged with care: ')
    useless = made_up_study(AP | {('b',): [9.0, 11.0, 10.0]})
    assert useless.regime_index is None
    assert study_verdict(useless)[question].startswith('No: b brings no more than training as long')
    assert question not in study_verdict(made_up_study({k: v for k, v in AP.items() if k}))


def test_arms_with_a_teacher_take_longer_and_it_is_said():
    study = made_up_study()
    for order, factor in zip(study.orders, (1, 1.5, 1.6, 2, 1.7), strict=True):
        order.seconds.update({0: 100 * factor, 1: 120 * factor})
    assert '; with a teacher they took 1.5 to 2.0 times as long as without;' in study_verdict(study)['What is compared?']  # fmt: skip
    assert {row['name']: row['time_ratio'] for row in study.table()}['a-b'] == 2


def test_one_seed_and_unequal_arms_are_said():
    one = ' '.join(study_verdict(made_up_study({t: v[:1] for t, v in AP.items()})).values())
    assert 'One seed cannot tell: the suggested sequence, a → b, is number 1 of 4' in one
    assert (
        'one seed.' in one
        and '1.0 AP above the strongest teacher alone (b), with one seed, which shows no difference'
        in one
    )
    assert 'better than' not in one
    fewer = ' '.join(study_verdict(made_up_study(AP | {('a', 'b'): [13.0]})).values())
    assert 'of which some arms have 1 only' in fewer
    study = made_up_study()
    study.orders[0] = Order('none', 'no teacher', (), 300, {0: 9.0}, {})
    assert 'DIFFERENT numbers of updates' in study_verdict(study)['What is compared?']
    assert list(study_verdict(made_up_study({})).values()) == ['No arm has been evaluated yet.']


def test_costs_that_foretell_and_that_do_not():
    means = {('a',): 4, ('a', 'b'): 3, ('b',): 2, ('b', 'a'): 1}  # by rising path cost
    right = made_up_study({t: [ap, ap + 0.1, ap - 0.1] for t, ap in means.items()})
    assert right.correlation().value == pytest.approx(-1)
    assert 'cheaper paths made better students' in [*study_verdict(right).values()][-1]
    wrong = made_up_study({t: [-ap, -ap + 0.1, -ap - 0.1] for t, ap in means.items()})
    assert 'cheaper paths made worse students' in [*study_verdict(wrong).values()][-1]
    assert made_up_study(costs=None).correlation() is None


def test_a_difference_in_words():
    assert difference_text(Interval(1.8, 0.9, 2.7, 5), 'B') == 'better than B by 1.8 AP [0.9, 2.7]'
    assert (
        difference_text(Interval(-1.8, -2.7, -0.9, 5), 'B') == 'worse than B by 1.8 AP [0.9, 2.7]'
    )
    assert difference_text(Interval(-0.04, -1.0, 0.9, 2), 'B') == (
        'not shown to differ from B: ±0.0 AP [−1.0, 0.9]'
    )
    assert difference_text(Interval(-0.3, None, None, 1), 'B') == '0.3 AP below B'
    assert difference_text(Interval(0.04, None, None, 1), 'B') == 'level with B'
    assert 'no seed in common' in difference_text(None, 'B')


def one_seed(**aps: float) -> str:
    """The summary of one seed with arms none, a (the weaker teacher), b (the stronger one) and ab."""
    teachers = {'none': (), 'a': ('a',), 'b': ('b',), 'ab': ('a', 'b')}
    return study_summary(made_up_study({teachers[name]: [ap] for name, ap in aps.items()}))


def test_the_summary_of_one_seed_says_when_the_sequence_wins():
    text = one_seed(none=25.0, b=27.04, ab=30.0)
    assert text.startswith(
        'The best student comes from the arm "a → b": AP 30.0 (+5.0 against training on without a teacher; +24.5 against '
    )
    assert (
        '"a → b", the best sequence of several teachers, is 5.0 AP above training on without a teacher and '
        '3.0 AP above the strongest teacher alone ("b").'
    ) in text
    assert 'One seed cannot tell a difference from chance' in text


def test_the_summary_of_one_seed_says_when_the_sequence_does_not_win():
    text = one_seed(none=27.0, b=28.0, ab=26.5)
    assert text.startswith('The best student comes from the arm "b": AP 28.0')
    assert '0.5 AP below training on without a teacher and 1.5 AP below the strongest' in text
    control = one_seed(none=29.0, ab=26.5)
    assert control.startswith('The best student comes from the arm "no teacher": AP 29.0 (+23.5')
    assert 'is 2.5 AP below training on without a teacher. One seed' in control


def test_the_summary_subtracts_the_printed_figures_and_names_what_is_missing():
    text = one_seed(none=20.0, b=30.01, ab=30.04)
    assert 'several arms alike, "a → b", "b": AP 30.0' in text
    assert 'level with the strongest teacher alone ("b")' in text
    # 30.04 - 27.96 is 2.08, but 30.0 and 28.0 are what a reader sees.
    assert '2.0 AP above the strongest teacher alone' in one_seed(b=27.96, ab=30.04)
    study = made_up_study({('b',): [29.0], ('a', 'b'): []})
    text = study_summary(study)
    assert text.startswith('Of the arms evaluated so far (still missing: "a → b") the best student')
    assert 'No arm with several teachers has been evaluated.' in text
    assert 'there is no answer so far' in study_summary(made_up_study({('b',): []}))


def test_the_summary_over_seeds_has_intervals_and_no_threshold():
    text = study_summary(made_up_study())
    reach = T2 * 0.1 / 3**0.5
    assert (
        f'better than the strongest teacher alone ("b") by 1.0 AP [{1 - reach:.1f}, {1 + reach:.1f}], '
        'with 95 % intervals over 3 seeds.'
    ) in text
    assert 'one seed' not in text and 'decide' not in text


# The strongest teacher alone, and the last one alone


def swapped_run(path):
    """`fake_run`'s run in which teacher 2, the last, is the weaker one, and teacher 1 alone is an arm."""
    run = make_run(path)
    info = load_run(run).info
    alone = {'name': 'first', 'label': 'Teacher 1 only', 'teachers': ['r101'], 'updates': 800}
    put(run / 'run.json', info | {'arms': [*info['arms'], alone]})
    put(run / 'stages' / 'first' / '1_r101' / 'metrics.json', metrics(28.0))
    put(run / 'detectors' / 'r101' / 'metrics.json', metrics(60.0))
    return run


def test_the_strongest_teacher_alone_is_not_the_last_one_alone(tmp_path):
    """Progressive 30.6; teacher 1, the strongest, alone 28.0; teacher 2, the last, alone 29.0."""
    run = swapped_run(tmp_path / 'mini' / '0')
    html = make_report(run).read_text('utf-8').replace('&#34;', '"')
    sentence = (
        'is 3.0 AP above training on without a teacher, 2.6 AP above the strongest teacher alone ("Teacher 1 only") and '
        '1.6 AP above its last teacher alone ("Teacher 2 only").'
    )
    assert sentence in run_summary(load_run(run)) and sentence in html
    for answer in (
        'Teacher 1 → teacher 2 is 2.6 AP above the strongest teacher alone (Teacher 1 only), with one seed',
        'Teacher 1 → teacher 2 is 1.6 AP above its last teacher alone (Teacher 2 only), with one seed',
    ):
        assert answer in html
    assert 'against the last teacher alone (41.4 against 41.0' in html, 'as in the paper'


def test_a_last_teacher_that_is_the_strongest_is_named_once():
    answers = study_verdict(made_up_study())
    assert not any('last teacher alone' in question for question in answers)
    reversed_order = study_verdict(made_up_study(chosen=[('b', 'a')]))
    answer = reversed_order['Does a sequence beat its last teacher alone?']
    # 11.9, 14.4, 12.8 against 11.5, 11.1, 12.4.
    assert answer.startswith(
        'The sequence that the costs suggest: b → a is not shown to differ from'
    )
    assert 'its last teacher alone (a): +1.4 AP [' in answer and 'a → b' not in answer
    assert 'its last teacher alone' not in study_summary(made_up_study())


@pytest.mark.parametrize('teachers', [{}, {'b': 50.0}])
def test_without_a_known_strongest_teacher_the_last_one_is_compared(teachers):
    study = made_up_study()
    study.teachers.clear()
    study.teachers.update(teachers)
    name = 'the strongest teacher alone' if teachers else 'its last teacher alone'
    assert f'better than {name} ("b") by 1.0 AP' in study_summary(study)
