"""A sweep's folder: what is computed once, how it grows, and what a job's status says."""

import subprocess
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import psutil
import pytest
from click.testing import CliRunner

from helpers.tiny_sweep import MINI, put_job_status
from mtpd import load_recipe
from mtpd.analysis.run import load_run
from mtpd.cli.main import main
from mtpd.errors import MtpdError, RecipeError
from mtpd.sweep.folder import load_sweep, open_sweep
from mtpd.sweep.plan import CONTROL
from mtpd.utils.files import write_json

A, B = 'r101', 'rx101'


def refused(*arguments) -> str:
    result = CliRunner().invoke(main, [str(item) for item in arguments])
    assert result.exit_code == 2, result.output
    assert 'Traceback' not in result.output
    return result.output


def test_shared_stages_are_links_and_runs_can_be_read(sweep):
    real = sweep.path / 'mgd/0/stages/r101-rx101/1_r101'
    real.mkdir(parents=True)
    assert (sweep.path / 'mgd/0/stages/r101-r101/1_r101').resolve() == real
    control = sweep.path / 'cwd/0/stages/none/1_no_teacher'
    assert str(control.readlink()) == '../../../../mgd/0/stages/none/1_no_teacher'
    teacher = sweep.path / 'cwd/0/detectors/rx101'
    assert str(teacher.readlink()) == '../../../shared/0/detectors/rx101'
    run = load_run(sweep.path / 'cwd/0')
    assert [arm['teachers'] for arm in run.arms] == [[None], [A, B], [A, A]]
    assert run.info['command'].startswith('mtpd sweep ')
    job = sweep.jobs['cwd-0-r101-rx101']
    assert sweep.recipe(job).cfg.distill.method == 'cwd'
    assert list(sweep.recipe(job).arms) == ['none', 'r101-rx101', 'r101-r101']


def test_a_full_disk_is_told_before_a_sweep_begins(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr('shutil.disk_usage', lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(
        MtpdError, match=r'checkpoints still to be written take .* has 1\.0 MB free'
    ):
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
    put_job_status(sweep, job.id, state='running')
    assert sweep.state(job)[0] == 'running'
    old = (datetime.now(UTC) - timedelta(seconds=300)).isoformat()
    put_job_status(sweep, job.id, state='running', heartbeat=old, host='elsewhere', pid=1)
    assert sweep.state(job) == ('lost', 'no sign of life for 300 s')
    assert sweep.state(job, deadline=400)[0] == 'running'
    gone = subprocess.Popen(['true'])
    gone.wait()
    put_job_status(sweep, job.id, state='running', pid=gone.pid)
    assert sweep.state(job) == ('lost', 'killed: its process is gone')
    began = psutil.Process().create_time()
    put_job_status(sweep, job.id, state='running', created=began)
    assert sweep.state(job)[0] == 'running'
    put_job_status(
        sweep, job.id, state='running', created=began - 60
    )  # its number is another process's now
    assert sweep.state(job) == ('lost', 'killed: its process is gone')
    put_job_status(sweep, job.id, state='done')
    assert sweep.state(job) == ('pending', 'its results have been removed')
    write_json(sweep.path / job.folders[0] / 'metrics.json', {})
    assert sweep.state(job)[0] == 'done'
    put_job_status(sweep, job.id, state='failed', reason='ValueError: no')
    assert sweep.state(job) == ('failed', 'ValueError: no')


def test_what_slurm_no_longer_has_is_lost(sweep):
    job = sweep.jobs['baseline-0']
    put_job_status(sweep, job.id, state='queued')
    write_json(sweep.path / 'jobs' / job.id / 'slurm.json', {'job': '7_1'})
    assert sweep.state(job, {'7_1': 'pending (Resources)'}) == ('queued', 'pending (Resources)')
    assert sweep.state(job, {'7_0': 'running'})[0] == 'lost'
    assert sweep.state(job, None)[0] == 'queued'
    put_job_status(sweep, job.id, state='running', slurm='7_1', host='node17')
    assert sweep.state(job, {'7_1': 'running (None)'})[0] == 'running'
    assert sweep.state(job, {}) == ('lost', 'killed: SLURM has ended it')


def test_a_folder_of_another_sweep_is_refused(sweep, recipe):
    other = load_recipe(recipe, {'schedule.arm': 2400})
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


def test_a_sweep_of_another_recipe_stays_as_it_is(tmp_path):
    folder = tmp_path / 'sweep'
    open_sweep(load_recipe(MINI), folder, [CONTROL], ['mgd'], [0])
    before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    twin = 'configs/mini/retinanet_r50__swint_swins.py'
    text = refused('sweep', twin, '--work-dir', folder)
    assert f'{folder} holds a sweep of mini_retinanet_r50__r101_rx101' in text
    text = refused('sweep', MINI, '--work-dir', folder, '--cfg-options', 'schedule.arm=2400')
    assert 'holds a sweep with other settings' in text and 'another --work-dir' in text
    assert {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()} == before
