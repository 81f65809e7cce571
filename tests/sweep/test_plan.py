"""What a sweep computes: its jobs, each once, and orders, seeds and methods as they are written."""

from mtpd import load_recipe
from mtpd.sweep.plan import (
    CONTROL,
    parse_methods,
    parse_orders,
    parse_seeds,
    plan_jobs,
    shared_prefixes,
    wants_suggestion,
)

A, B = 'r101', 'rx101'


def test_orders_seeds_and_methods_as_they_are_written():
    pairs = [(A, A), (A, B), (B, A), (B, B)]  # those of one teacher tell what splitting costs
    assert parse_orders('all', [A, B]) == [CONTROL, (A,), (B,), *pairs]
    assert parse_orders('all', [A]) == [CONTROL, (A,)]  # a pool of one
    assert parse_orders('rx101, r101; none;rx101', [A, B]) == [CONTROL, (B, A), (B,)]
    suggested = [(A, B), (B,)]
    assert parse_orders('auto;r101', [A, B], suggested) == [CONTROL, (A, B), (B, B), (B,), (A,)]
    assert wants_suggestion('r101; auto') and not wants_suggestion('automatic;all')
    assert parse_seeds('0-2,7, 1') == [0, 1, 2, 7]
    assert parse_methods('cwd,mgd,cwd', ['mgd', 'cwd']) == ['cwd', 'mgd']


def test_prefixes_by_hand():
    orders = [CONTROL, *[tuple(text) for text in ('a', 'ab', 'ac', 'ba', 'abc', 'abd', 'acb')]]
    assert shared_prefixes(orders) == {
        (2, ('a',)): ('a', 'b'),  # of ab and ac; the single a trains twice as long
        (3, ('a',)): ('a', 'b', 'c'),  # of all three
        (3, ('a', 'b')): ('a', 'b', 'c'),  # of abc and abd
    }
    # Two that share two stages need no prefix of one.
    assert list(shared_prefixes([tuple('abc'), tuple('abd')])) == [(3, ('a', 'b'))]


def test_the_jobs_of_a_sweep_by_hand(recipe):
    three = (A, B, A)
    jobs = plan_jobs(recipe, [CONTROL, (A,), (A, B), (A, A), three], ['mgd', 'cwd'], [0, 3])
    ids = ['teacher-r101', 'teacher-rx101', 'baseline-0', 'baseline-3']
    ids += [f'{method}-{seed}-r101-of-2' for seed in (0, 3) for method in ('mgd', 'cwd')]
    ids += ['control-0', 'control-3']
    ids += [
        f'{method}-{seed}-{arm}'
        for seed in (0, 3)
        for method in ('mgd', 'cwd')
        for arm in ('r101', 'r101-rx101', 'r101-r101', 'r101-rx101-r101')
    ]
    assert [job.id for job in jobs] == ids
    by_id = {job.id: job for job in jobs}
    # Each stage of a method and seed is written by one job, and every order gets 1,200 updates.
    folders = [folder for job in jobs for folder in job.folders]
    assert len(folders) == len(set(folders)) == 4 + 4 + 2 + 4 * (1 + 1 + 1 + 3)
    assert [by_id[name].updates for name in ids[-4:]] == [1200, 600, 600, 400]
    late = by_id['cwd-3-r101-r101']
    assert (late.first, late.needs) == (2, ('cwd-3-r101-of-2',))
    assert late.folders == ['cwd/3/stages/r101-r101/2_r101']
    assert by_id['cwd-3-r101-of-2'].folders == ['cwd/3/stages/r101-rx101/1_r101']
    assert by_id['cwd-3-r101-of-2'].needs == ('baseline-3',)  # the teachers are shipped
    assert by_id['control-3'].run == 'mgd/3'


def test_teachers_that_are_not_shipped_are_trained_first(recipe):
    untrained = load_recipe(recipe, {'teachers.r101.checkpoint': None, 'distill.start': 'inherit'})
    jobs = {job.id: job for job in plan_jobs(untrained, [CONTROL, (B, A)], ['mgd'], [0])}
    assert jobs['teacher-r101'].updates == 4000 and jobs['teacher-rx101'].updates == 0
    assert jobs['mgd-0-rx101-r101'].needs == ('teacher-r101',)
    assert jobs['control-0'].needs == () and 'baseline-0' not in jobs
