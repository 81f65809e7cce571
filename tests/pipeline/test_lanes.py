"""Steps side by side: order within a chain, overlap between chains, the end after a failure or Ctrl-C."""

import io
import threading

import pytest

from mtpd.pipeline.run import ChainRunner, PrefixedStream
from mtpd.utils.machine import cpu_cores


class Step(str):
    label = property(str)


def chains(*texts):
    return [[Step(word) for word in text.split()] for text in texts]


def test_chains_overlap_and_their_steps_keep_their_order():
    meet, done, marks, shares = threading.Barrier(2, timeout=20), [], [], set()

    def work(step, env, mark):
        if step.endswith('1'):
            meet.wait()  # only passed when both chains are at work
        done.append(step)
        marks.append(mark)
        shares.add(env['OMP_NUM_THREADS'])

    ChainRunner(2).run(chains('a1 a2 a3', 'b1 b2'), work)
    assert [s for s in done if s[0] == 'a'] == ['a1', 'a2', 'a3']
    assert [s for s in done if s[0] == 'b'] == ['b1', 'b2']
    assert marks == [f'{step}: ' for step in done]
    assert shares == {str(max(1, cpu_cores() // 2))}


@pytest.mark.parametrize(('jobs', 'given'), [(1, ('a1 a2', 'b1')), (2, ('a1 a2 b1',))])
def test_one_lane_is_this_thread_with_all_cores(jobs, given):
    seen = []
    ChainRunner(jobs).run(
        chains(*given), lambda *call: seen.append((*call, threading.current_thread()))
    )
    assert [call[0] for call in seen] == ['a1', 'a2', 'b1']
    assert all(call[1:] == ({}, '', threading.main_thread()) for call in seen)


def test_after_a_failure_what_runs_is_finished_and_nothing_new_begins():
    both, finished = threading.Barrier(2, timeout=20), []

    def work(step, env, mark):
        both.wait()
        if step == 'bad':
            raise ValueError('broken')
        threading.Event().wait(0.2)  # the failure has been noted by then
        finished.append(step)

    with pytest.raises(ValueError, match='broken'):
        ChainRunner(2).run(chains('bad never', 'long never'), work)
    assert finished == ['long']


def test_marked_lines_are_whole():
    stream = io.StringIO()
    one, two = PrefixedStream(stream, 'a: '), PrefixedStream(stream, 'b: ')
    one.write('upd')
    two.write('first\nsec')
    one.write('ate 1\n')
    two.write('ond\n')
    assert stream.getvalue() == 'b: first\na: update 1\nb: second\n'
