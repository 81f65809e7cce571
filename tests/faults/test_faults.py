"""Kill and continue, for the whole of a tiny run: see harness.py. `--kills N` and `--kill-seed N` set what is tried."""

import pytest
from harness import Harness, table


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_the_same(tmp_path, request):
    kills, seed = (request.config.getoption(name) for name in ('--kills', '--kill-seed'))
    harness = Harness(tmp_path, seed)
    longest = max(10, harness.reference() / 2)
    rows = harness.faults(kills, longest)
    print(f'\nseed {seed}\n{table(rows)}')
    assert len(rows) == kills and [row for row in rows if not row.right] == []
