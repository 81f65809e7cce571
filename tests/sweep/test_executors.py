"""Slots on this machine: what a job that fails leaves."""

from pathlib import Path

import pytest

from helpers.tiny_sweep import MINI, SMALL
from mtpd import load_recipe
from mtpd.sweep.executors import Resources, run_local
from mtpd.sweep.folder import open_sweep
from mtpd.sweep.plan import CONTROL


@pytest.mark.long
def test_a_failed_job_leaves_its_reason(tmp_path, tiny_coco):
    data = tiny_coco(tmp_path / 'coco')
    recipe = load_recipe(MINI, SMALL | {'data.root': str(data)})
    sweep = open_sweep(recipe, tmp_path / 'sweep', [CONTROL], ['mgd'], [0])
    (data / 'annotations' / 'train.json').write_text('{"images": [')
    lines = []
    jobs = [sweep.jobs[name] for name in ('baseline-0', 'control-0')]
    run_local(sweep, jobs, Resources(slots=2), lines.append)
    assert [line.split(' (')[0] for line in lines] == [
        'baseline-0: started in slot 0',
        'baseline-0: failed',
        'control-0: not started, because the jobs that it needs are not done',
    ]
    state, reason = sweep.state(sweep.jobs['baseline-0'])
    assert state == 'failed' and 'train.json' in reason
    log = sweep.status(sweep.jobs['baseline-0'])['log']
    assert 'Traceback' in Path(log).with_suffix('.err').read_text()
