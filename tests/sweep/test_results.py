"""A sweep read: the table of its jobs, and what is collected."""

import csv
import json

from helpers.tiny_sweep import put_job_status
from mtpd.sweep.results import collect_results, job_table, table_text
from mtpd.utils.files import write_json


def test_the_table_counts_updates_over_stages_and_the_time_left(sweep, recipe):
    name = 'mgd-0-r101-rx101'
    put_job_status(sweep, name, state='running', stage=2)
    folder = sweep.path / sweep.jobs[name].stage_dir(2)
    folder.mkdir(parents=True)
    rows = [{'update': n, 'updates': 600, 'time': 0.5} for n in (25, 50)]
    (folder / 'log.json').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (row,) = (row for row in job_table(sweep) if row['job'] == name)
    assert (row['stage'], row['updates'], row['left']) == ('2/2 rx101', '50/600', 275.0)
    lines = table_text(job_table(sweep)).splitlines()
    assert lines[0].split() == ['job', 'state', 'stage', 'updates', 'elapsed', 'left', 'reason']
    assert lines[-1] == f'{len(sweep.jobs)} jobs: {len(sweep.jobs) - 1} pending, 1 running'


def test_an_unfinished_sweep_is_collected_and_what_is_missing_listed(sweep):
    job = sweep.jobs['mgd-0-r101-of-2']
    put_job_status(sweep, job.id, state='done')
    folder = sweep.path / job.stage_dir(1)
    write_json(folder / 'metrics.json', {'bbox_mAP': 0.123456789, 'bbox_mAP_50': 0.5})
    write_json(folder / 'stage.json', {'updates': 600, 'seconds': 9.5})
    put_job_status(sweep, 'control-0', state='failed', reason='ValueError: no')
    results = collect_results(sweep.path)
    assert [(row['order'], row['method'], row['stage']) for row in results['rows']] == [
        ('r101,rx101', 'mgd', 1),
        ('r101,r101', 'mgd', 1),
    ]
    assert {'job': 'control-0', 'state': 'failed', 'reason': 'ValueError: no'} in results[
        'unfinished'
    ]
    assert len(results['unfinished']) == len(sweep.jobs) - 1
    with (sweep.path / 'results.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row['AP']) for row in rows] == [12.3456789] * 2
    assert rows[1]['folder'] == 'mgd/0/stages/r101-rx101/1_r101'
    assert rows[0]['AP_l'] == '' and rows[0]['seconds'] == '9.5'
