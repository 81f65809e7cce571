"""Sweeps: what is computed once, what a job's status says, slots, and what is collected."""

import csv
import json
import os
import platform
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from helpers.tiny_sweep import MINI, SMALL, command, run, wait_for
from mtpd import load_recipe
from mtpd.analysis.run import load_run
from mtpd.cli.main import main
from mtpd.errors import MtpdError, RecipeError
from mtpd.sweep.executors import Resources, run_local
from mtpd.sweep.folder import load_sweep, open_sweep
from mtpd.sweep.plan import (
    CONTROL,
    parse_methods,
    parse_orders,
    parse_seeds,
    plan_jobs,
    shared_prefixes,
)
from mtpd.sweep.results import collect_results, job_table, table_text
from mtpd.utils.files import write_json

A, B = 'r101', 'rx101'


@pytest.fixture(scope='module')
def recipe():
    return load_recipe(MINI)


def refused(*arguments) -> str:
    found = CliRunner().invoke(main, [str(item) for item in arguments])
    assert found.exit_code == 2, found.output
    assert 'Traceback' not in found.output
    return found.output


# The plan


def test_orders_seeds_and_methods_as_they_are_written():
    assert parse_orders('all', [A, B], list) == [CONTROL, (A,), (B,), (A, B), (B, A)]
    assert parse_orders('all', [A], list) == [CONTROL, (A,)]  # a pool of one
    assert parse_orders('rx101, r101; none;rx101', [A, B], list) == [CONTROL, (B, A), (B,)]
    suggested = [(A, B), (B,)]
    assert parse_orders('auto;r101', [A, B], lambda: suggested) == [CONTROL, *suggested, (A,)]
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
    # Each stage of a method and seed is written by one job, and every order gets 600 updates.
    folders = [folder for job in jobs for folder in job.folders]
    assert len(folders) == len(set(folders)) == 4 + 4 + 2 + 4 * (1 + 1 + 1 + 3)
    assert [by_id[name].updates for name in ids[-4:]] == [600, 300, 300, 200]
    late = by_id['cwd-3-r101-r101']
    assert (late.first, late.needs) == (2, ('cwd-3-r101-of-2',))
    assert late.folders == ['cwd/3/stages/r101-r101/2_r101']
    assert by_id['cwd-3-r101-of-2'].folders == ['cwd/3/stages/r101-rx101/1_r101']
    assert by_id['cwd-3-r101-of-2'].needs == ('baseline-3',)  # the teachers are shipped
    assert by_id['control-3'].run == 'mgd/3'


def test_teachers_that_are_not_shipped_are_trained_first(recipe):
    own = load_recipe(recipe, {'teachers.r101.checkpoint': None, 'distill.start': 'inherit'})
    jobs = {job.id: job for job in plan_jobs(own, [CONTROL, (B, A)], ['mgd'], [0])}
    assert jobs['teacher-r101'].updates == 4000 and jobs['teacher-rx101'].updates == 0
    assert jobs['mgd-0-rx101-r101'].needs == ('teacher-r101',)
    assert jobs['control-0'].needs == () and 'baseline-0' not in jobs


# The folder


@pytest.fixture
def sweep(recipe, tmp_path):
    return open_sweep(recipe, tmp_path / 'sweep', [CONTROL, (A, B), (A, A)], ['mgd', 'cwd'], [0])


def put(sweep, name, **status):
    stamp = datetime.now(UTC).isoformat(timespec='seconds')
    usual = {'pid': os.getpid(), 'host': platform.node(), 'started': stamp, 'heartbeat': stamp}
    write_json(sweep.path / 'jobs' / name / 'status.json', usual | status)


def test_shared_stages_are_links_and_runs_can_be_read(sweep):
    real = sweep.path / 'mgd/0/stages/r101-rx101/1_r101'
    real.mkdir(parents=True)
    assert (sweep.path / 'mgd/0/stages/r101-r101/1_r101').resolve() == real
    control = sweep.path / 'cwd/0/stages/none/1_no_teacher'
    assert str(control.readlink()) == '../../../../mgd/0/stages/none/1_no_teacher'
    teacher = sweep.path / 'cwd/0/detectors/rx101'
    assert str(teacher.readlink()) == '../../../shared/0/detectors/rx101'
    found = load_run(sweep.path / 'cwd/0')
    assert [arm['teachers'] for arm in found.arms] == [[None], [A, B], [A, A]]
    assert found.info['command'].startswith('mtpd sweep ')
    job = sweep.jobs['cwd-0-r101-rx101']
    assert sweep.recipe(job).cfg.distill.method == 'cwd'
    assert list(sweep.recipe(job).arms) == ['none', 'r101-rx101', 'r101-r101']


def test_a_full_disk_is_told_before_a_sweep_begins(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr('shutil.disk_usage', lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(MtpdError, match=r'checkpoints still to come take .* has 1\.0 MB free'):
        open_sweep(recipe, tmp_path / 'sweep', [(A, B)], ['mgd'], [0])
    assert not (tmp_path / 'sweep').exists()


def test_a_sweep_grows_and_keeps_its_shared_stages(sweep, recipe):
    grown = open_sweep(recipe, sweep.path, [CONTROL, (B, A)], ['mgd'], [1])
    assert set(sweep.jobs) < set(grown.jobs)
    assert {'cwd-0-rx101-r101', 'mgd-1-r101-rx101', 'baseline-1'} < set(grown.jobs)
    same = [name for name in sweep.jobs if sweep.jobs[name] == grown.jobs[name]]
    assert same == list(sweep.jobs)


def test_the_state_of_a_job_comes_from_its_own_status(sweep):
    job = sweep.jobs['baseline-0']
    assert sweep.state(job) == ('pending', None)
    put(sweep, job.id, state='running')
    assert sweep.state(job)[0] == 'running'
    old = (datetime.now(UTC) - timedelta(seconds=300)).isoformat()
    put(sweep, job.id, state='running', heartbeat=old, host='elsewhere', pid=1)
    assert sweep.state(job) == ('lost', 'no sign of life for 300 s')
    assert sweep.state(job, deadline=400)[0] == 'running'
    gone = subprocess.Popen(['true'])
    gone.wait()
    put(sweep, job.id, state='running', host=socket.gethostname(), pid=gone.pid)
    assert sweep.state(job) == ('lost', 'killed: its process is gone')
    put(sweep, job.id, state='done')
    assert sweep.state(job) == ('pending', 'its results have been removed')
    write_json(sweep.path / job.folders[0] / 'metrics.json', {})
    assert sweep.state(job)[0] == 'done'
    put(sweep, job.id, state='failed', reason='ValueError: no')
    assert sweep.state(job) == ('failed', 'ValueError: no')


def test_what_slurm_no_longer_has_is_lost(sweep):
    job = sweep.jobs['baseline-0']
    put(sweep, job.id, state='queued')
    write_json(sweep.path / 'jobs' / job.id / 'slurm.json', {'job': '7_1'})
    assert sweep.state(job, {'7_1': 'pending (Resources)'}) == ('queued', 'pending (Resources)')
    assert sweep.state(job, {'7_0': 'running'})[0] == 'lost'
    assert sweep.state(job, None)[0] == 'queued'
    put(sweep, job.id, state='running', slurm='7_1', host='node17')
    assert sweep.state(job, {'7_1': 'running (None)'})[0] == 'running'
    assert sweep.state(job, {}) == ('lost', 'killed: SLURM has ended it')


def test_the_table_counts_updates_over_stages_and_the_time_left(sweep, recipe):
    name = 'mgd-0-r101-rx101'
    put(sweep, name, state='running', stage=2)
    folder = sweep.path / sweep.jobs[name].stage(2)
    folder.mkdir(parents=True)
    rows = [{'update': n, 'updates': 300, 'time': 0.5} for n in (25, 50)]
    (folder / 'log.json').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (row,) = (row for row in job_table(sweep) if row['job'] == name)
    assert (row['stage'], row['updates'], row['left']) == ('2/2 rx101', '50/300', 125.0)
    lines = table_text(job_table(sweep)).splitlines()
    assert lines[0].split() == ['job', 'state', 'stage', 'updates', 'elapsed', 'left', 'reason']
    assert lines[-1] == f'{len(sweep.jobs)} jobs: {len(sweep.jobs) - 1} pending, 1 running'


def test_an_unfinished_sweep_is_collected_and_what_is_missing_listed(sweep):
    job = sweep.jobs['mgd-0-r101-of-2']
    put(sweep, job.id, state='done')
    folder = sweep.path / job.stage(1)
    write_json(folder / 'metrics.json', {'bbox_mAP': 0.123456789, 'bbox_mAP_50': 0.5})
    write_json(folder / 'stage.json', {'updates': 300, 'seconds': 9.5})
    put(sweep, 'control-0', state='failed', reason='ValueError: no')
    found = collect_results(sweep.path)
    assert [(row['order'], row['method'], row['stage']) for row in found['rows']] == [
        ('r101,rx101', 'mgd', 1),
        ('r101,r101', 'mgd', 1),
    ]
    assert {'job': 'control-0', 'state': 'failed', 'reason': 'ValueError: no'} in found[
        'unfinished'
    ]
    assert len(found['unfinished']) == len(sweep.jobs) - 1
    with (sweep.path / 'results.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row['AP']) for row in rows] == [12.3456789] * 2
    assert rows[1]['folder'] == 'mgd/0/stages/r101-rx101/1_r101'
    assert rows[0]['AP_l'] == '' and rows[0]['seconds'] == '9.5'


# Mistakes


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (('--orders', 'r101,r11'), "unknown teacher 'r11'. Did you mean 'r101'?"),
        (('--orders', 'r101,'), 'a name is missing'),
        (('--methods', 'mgd,mdg'), "unknown method 'mdg'. Did you mean 'mgd'?"),
        (('--seeds', '0-x'), "'0-x' is no seed"),
        (('--seeds', '4-1'), "'4-1' is no seed"),
        (('--executor', 'locla'), "unknown executor 'locla'. Did you mean 'local'?"),
        (('--orders', ','.join([A] * 7)), '7 stages, which do not divide schedule.arm = 600'),
    ],
)
def test_mistakes_are_one_message_and_leave_nothing(tmp_path, arguments, words):
    out = tmp_path / 'out'
    assert words in refused('sweep', MINI, '--work-dir', out, *arguments)
    assert not out.exists()


def test_without_submitit_or_sbatch_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    out = tmp_path / 'out'
    arguments = ('sweep', MINI, '--work-dir', out, '--executor', 'slurm')
    assert 'there is no sbatch' in refused(*arguments)
    for program in ('sbatch', 'srun'):
        (tmp_path / program).touch(0o755)
    assert 'with --time' in refused(*arguments)
    monkeypatch.setitem(sys.modules, 'submitit', None)
    assert 'pip install -r requirements/sweep.txt' in refused(*arguments)
    assert not out.exists()


def test_a_folder_of_another_sweep_is_refused(sweep, recipe):
    other = load_recipe(recipe, {'schedule.arm': 1200})
    with pytest.raises(MtpdError, match='holds a sweep with other settings'):
        open_sweep(other, sweep.path, [(A,)], ['mgd'], [0])
    renamed = load_recipe(recipe, {'name': 'other'})
    with pytest.raises(MtpdError, match='holds a sweep of mini_retinanet'):
        open_sweep(renamed, sweep.path, [(A,)], ['mgd'], [0])
    assert 'is neither a sweep nor a run' in refused('status', sweep.path / 'mgd')
    assert 'is not a sweep' in refused('collect', sweep.path.parent)
    with pytest.raises(RecipeError, match='do not divide'):
        open_sweep(recipe, sweep.path, [(A,) * 7], ['mgd'], [0])
    assert load_sweep(sweep.path).jobs == sweep.jobs


# The whole, with processes that train


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
        'control-0: not started, what it needs is not done',
    ]
    state, reason = sweep.state(sweep.jobs['baseline-0'])
    assert state == 'failed' and 'train.json' in reason
    log = sweep.status(sweep.jobs['baseline-0'])['log']
    assert 'Traceback' in Path(log).with_suffix('.err').read_text()


@pytest.mark.slow
def test_interrupted_it_ends_its_jobs_without_a_traceback(tmp_path, tiny_coco):
    data, folder = tiny_coco(tmp_path / 'coco'), tmp_path / 'sweep'
    options = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    process = subprocess.Popen(
        command(data, folder, '--slots', '2'), start_new_session=True, **options
    )
    wait_for((folder / 'sweep.json').is_file)
    sweep = load_sweep(folder)
    jobs = [sweep.jobs[name] for name in ('teacher-r101', 'teacher-rx101')]
    pids = wait_for(lambda: all(sweep.status(j) for j in jobs)) and [
        sweep.status(j)['pid'] for j in jobs
    ]
    os.killpg(process.pid, signal.SIGINT)
    out = process.communicate(timeout=120)[0]
    print(out)
    assert process.returncode == 130 and 'stopped by Ctrl-C; the same command goes on' in out
    assert 'Traceback' not in out
    assert not any(Path(f'/proc/{pid}').exists() for pid in pids)
    for job in jobs:
        assert sweep.state(job) in [
            ('failed', 'interrupted'),
            ('lost', 'killed: its process is gone'),
        ]


@pytest.mark.slow
def test_a_sweep_with_a_killed_job_and_the_same_command_again(tmp_path, tiny_coco):
    data, folder = tiny_coco(tmp_path / 'coco'), tmp_path / 'sweep'
    arguments = command(data, folder, '--slots', '2')
    two = os.environ | {'CUDA_VISIBLE_DEVICES': '4,5'}  # without effect where there are none
    first = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=two)
    wait_for((folder / 'sweep.json').is_file)
    sweep = load_sweep(folder)
    prefix = sweep.jobs['mgd-0-r101-of-2']
    os.kill(wait_for(lambda: sweep.status(prefix).get('pid')), signal.SIGKILL)
    out = first.communicate(timeout=300)[0]
    print(out)
    assert first.returncode == 1
    assert 'mgd-0-r101-of-2: lost (killed: its process is gone)' in out
    assert 'mgd-0-r101-rx101: not started, what it needs is not done' in out
    states = {name: sweep.state(job)[0] for name, job in sweep.jobs.items()}
    done = ['teacher-r101', 'teacher-rx101', 'baseline-0', 'control-0']
    assert [sweep.status(sweep.jobs[name])['gpu'] for name in done[:2]] == ['4', '5']
    assert [name for name, state in states.items() if state == 'done'] == done
    weights = sorted(folder.glob('**/*.pth'))
    before = {path: path.stat().st_mtime_ns for path in weights}

    second = run(arguments)
    assert second.returncode == 0, second.stderr
    assert '7 jobs, 4 of them done before' in second.stdout
    assert 'mgd-0-r101-of-2: lost before (killed: its process is gone), again' in second.stdout
    assert {path: path.stat().st_mtime_ns for path in weights} == before
    attempts = {name: sweep.status(job)['attempt'] for name, job in sweep.jobs.items()}
    assert attempts == dict.fromkeys(sweep.jobs, 1) | {prefix.id: 2}
    assert {sweep.status(job)['threads'] for job in sweep.jobs.values()} == {'1'}

    found = collect_results(folder)
    assert found['unfinished'] == [] and len(found['rows']) == 6
    with (folder / 'results.csv').open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        metrics = json.loads((folder / row['folder'] / 'metrics.json').read_text())
        for column, key in (('AP', 'bbox_mAP'), ('AP50', 'bbox_mAP_50'), ('AP_l', 'bbox_mAP_l')):
            assert (row[column] and float(row[column]) / 100) == (
                '' if metrics[key] is None else pytest.approx(metrics[key])
            )
    assert [(row['order'], row['stage'], row['updates']) for row in rows[2:]] == [
        ('r101,rx101', '1', '1'),
        ('r101,rx101', '2', '1'),
        ('r101,r101', '1', '1'),
        ('r101,r101', '2', '1'),
    ]
    assert rows[2]['folder'] == rows[4]['folder'] == 'mgd/0/stages/r101-rx101/1_r101'
    third = run(arguments)
    assert third.returncode == 0 and 'complete: mtpd collect' in third.stdout
    assert '7 jobs, 7 of them done before' in third.stdout
    assert load_run(folder / 'mgd/0').results()[0]['AP'] is not None
