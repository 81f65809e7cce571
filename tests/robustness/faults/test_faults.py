"""Kill and continue, for the whole of tiny runs: see harness.py. `--kills N` and `--kill-seed N` set what is tried."""

import random
from itertools import pairwise

import pytest
import table
from harness import Harness
from plan import A_RUN, CASES, PHASES, Hit, plan

KILL = ('kernel', 'SIGKILL')


@pytest.mark.parametrize('seed', range(20))
def test_a_plan_has_every_phase_and_case(seed):
    runs = plan(20, random.Random(seed))
    hits = [hit for run in runs for hit in run]
    assert len(hits) == 20 and max(map(len, runs)) <= A_RUN and len(runs) >= 5
    assert {hit.phase for hit in hits} == set(PHASES)
    assert {(hit.target, hit.signal) for hit in hits} == set(CASES)
    assert all(hit.phase in CASES[hit.target, hit.signal] for hit in hits)
    for run in runs:
        places = [PHASES.index(hit.phase) for hit in run]
        assert all(one < other for one, other in pairwise(places))
    assert plan(20, random.Random(seed)) == runs


def test_a_hit_that_its_phase_escaped_comes_again_and_sooner(tmp_path, monkeypatch):
    tried = []

    def run(self, hits, number, before):
        rows = []
        for hit in hits:
            tried.append(hit)
            during = hit.phase if hit.phase != '01' or hit.share < 0.3 else 'baseline'
            rows.append(table.Fault(number, 1, during, hit.signal, hit.target, 0, 0, 'true', 'yes'))
        return rows, []

    monkeypatch.setattr(Harness, 'run', run)
    monkeypatch.setattr('harness.plan', lambda *_: [[Hit('00', *KILL, 0.9), Hit('01', *KILL, 0.9)]])
    rows = Harness(tmp_path, 0).faults(2)
    assert [hit.share for hit in tried] == [0.9, 0.9, 0.45, 0.225]
    assert {row.during for row in rows} == {'00', '01', 'baseline'}


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_the_same(tmp_path, request):
    kills, seed = (request.config.getoption(name) for name in ('--kills', '--kill-seed'))
    harness = Harness(tmp_path, seed)
    harness.reference()
    rows = harness.faults(kills)
    print(f'\nseed {seed}: {table.outcome(rows)}\n{table.text(rows)}')
    assert len(rows) >= kills and [row for row in rows if not row.right] == []
    if kills >= 20:
        reached = {phase for row in rows for phase in row.during.split(', ')}
        assert reached >= set(PHASES)
