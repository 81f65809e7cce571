"""A sweep on a real SLURM of one node: a killed job, one that runs out of time twice, and a second command."""

import os
import signal
import subprocess
import sys
import time

import pytest

from helpers import slurm
from helpers.tiny_sweep import command, run, wait_for
from mtpd.sweep.executors import slurm_queue
from mtpd.sweep.folder import load_sweep
from mtpd.sweep.results import collect_results, is_ended, job_table, table_text


def out_of_time(sweep, name, attempt):
    """Stops the job's process, which SLURM wakes with its signal before the limit; returns the status then."""
    job = sweep.jobs[name]

    def at_work():
        status = sweep.status(job)
        return status.get('state') == 'running' and status['attempt'] == attempt and status

    status = wait_for(at_work)
    os.kill(status['pid'], signal.SIGSTOP)
    limit = ['scontrol', 'update', f'JobId={status["slurm"]}', 'TimeLimit=1']
    subprocess.run(limit, check=True)
    wait_for(lambda: sweep.status(job)['state'] != 'running')
    return sweep.status(job)


@pytest.mark.slow
@pytest.mark.skipif(slurm.missing() is not None, reason=f'no SLURM: {slurm.missing()}')
def test_a_killed_and_a_late_job_and_the_same_command_again(tmp_path, tiny_coco, monkeypatch):
    data, folder = tiny_coco(tmp_path / 'coco'), tmp_path / 'sweep'
    flags = ('--executor', 'slurm', '--time', '10', '--signal-delay', '30', '--requeues', '1')
    arguments = command(data, folder, *flags, '--partition', 'main', '--cpus', '1')
    with slurm.cluster(tmp_path / 'slurm') as env:
        monkeypatch.setenv('SLURM_CONF', env['SLURM_CONF'])
        partition = ['scontrol', 'update', 'PartitionName=main']
        subprocess.run([*partition, 'State=DOWN'], check=True)  # nothing starts unobserved
        first = run(arguments)
        subprocess.run([*partition, 'State=UP'], check=True)
        assert first.returncode == 0, first.stderr
        sweep = load_sweep(folder)
        killed = sweep.jobs['teacher-rx101']
        os.kill(wait_for(lambda: sweep.status(killed).get('pid')), signal.SIGKILL)
        late = out_of_time(sweep, 'teacher-r101', 1)
        print(late)
        assert late['state'] == 'queued'  # by submitit, from its checkpoint
        # SLURM would hold it back for two minutes.
        wait_for(lambda: 'BeginTime' in slurm_queue().get(late['slurm'], ''))
        time.sleep(3)  # a node refuses a job that it has ended in the same second
        now = ['scontrol', 'update', f'JobId={late["slurm"]}', 'StartTime=now']
        subprocess.run(now, check=True)
        late = out_of_time(sweep, 'teacher-r101', 2)
        assert late['state'] == 'failed' and 'out of time' in late['reason']

        wait_for(lambda: is_ended(job_table(sweep)))
        print(table_text(job_table(sweep)))
        states = {row['job']: row['state'] for row in job_table(sweep)}
        assert states == {
            'teacher-r101': 'failed',
            'teacher-rx101': 'lost',
            'baseline-0': 'done',
            'mgd-0-r101-of-2': 'lost',  # SLURM has taken back what needs them
            'control-0': 'done',
            'mgd-0-r101-rx101': 'lost',
            'mgd-0-r101-r101': 'lost',
        }
        ids = [row.split('SLURM job ')[1].split(',')[0] for row in first.stdout.splitlines()[1:8]]
        assert ids[:3] == [f'{ids[0].split("_")[0]}_{k}' for k in range(3)]  # an array
        unfinished = collect_results(folder)['unfinished']
        assert {item['job'] for item in unfinished} == {k for k, v in states.items() if v != 'done'}
        baseline = folder / 'shared/0/detectors/student/model.pth'
        before = baseline.stat().st_mtime_ns

        second = run(arguments)
        assert second.returncode == 0, second.stderr
        assert 'teacher-rx101: lost before' in second.stdout
        assert 'teacher-r101: failed before (out of time' in second.stdout
        assert 'baseline-0: SLURM' not in second.stdout
        wait_for(lambda: is_ended(job_table(sweep)))
        watch = [sys.executable, '-m', 'mtpd.cli', 'status', str(folder), '--watch']
        assert '7 jobs: 7 done' in run(watch).stdout
    assert baseline.stat().st_mtime_ns == before
    assert sweep.status(sweep.jobs['baseline-0'])['attempt'] == 1
    results = collect_results(folder)
    assert results['unfinished'] == []
    assert [row['order'] for row in results['rows']] == ['baseline', 'none'] + [
        'r101,rx101'
    ] * 2 + ['r101,r101'] * 2
