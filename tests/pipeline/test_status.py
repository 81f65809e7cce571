"""One command at a time in a run directory; status.json says what ran, since when, and how it ended."""

import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import nullcontext

import psutil
import pytest

from mtpd.errors import MtpdError
from mtpd.pipeline.status import may_be_alive, read_status, refuse_if_in_use, run_lock, status_text
from mtpd.utils.processes import Interrupted


def status(folder):
    return json.loads((folder / 'status.json').read_text())


def test_the_second_command_is_refused_and_names_the_first(tmp_path):
    folder = tmp_path / 'run'
    with run_lock(folder, ['mtpd', 'run', 'a b.py']) as now:
        for second in (
            lambda: refuse_if_in_use(folder),
            lambda: run_lock(folder, ['mtpd']).__enter__(),
        ):
            with pytest.raises(MtpdError) as caught:
                second()
            wanted = f"`mtpd run 'a b.py'` (process {os.getpid()} on {platform.node()}, since "
            assert wanted + now['started'] in str(caught.value)
            assert caught.value.exit_code == 2 and str(folder) in str(caught.value)
        (folder / 'kept').touch()
    refuse_if_in_use(folder)
    with run_lock(folder, ['mtpd', 'train']):
        assert status(folder)['command'] == 'mtpd train'


@pytest.mark.parametrize(
    ('error', 'end'),
    [
        (None, {'state': 'done', 'exit_code': 0, 'signal': None, 'reason': None}),
        (MtpdError('no data'), {'state': 'failed', 'exit_code': 2, 'reason': 'no data'}),
        (ValueError('x'), {'state': 'failed', 'exit_code': 1, 'reason': 'ValueError: x'}),
        (KeyboardInterrupt(), {'state': 'interrupted', 'exit_code': 130, 'signal': 'SIGINT'}),
        (Interrupted(15), {'state': 'interrupted', 'exit_code': 143, 'signal': 'SIGTERM'}),
    ],
)
def test_how_it_ended(tmp_path, error, end):
    (tmp_path / 'status.json').write_text('{"steps": [{"name": "a", "state": "done"}]}')
    expected = pytest.raises(type(error)) if error else nullcontext()
    with expected, run_lock(tmp_path, ['mtpd', 'train', 'x.py']):
        running = status(tmp_path)
        assert running['state'] == 'running' and running['ended'] is None and may_be_alive(running)
        if error:
            raise error
    recorded = status(tmp_path)
    assert recorded | end == recorded and recorded['ended'] >= recorded['started']
    assert recorded['steps'] == [{'name': 'a', 'state': 'done'}]
    assert recorded['command'] == 'mtpd train x.py' and recorded['pid'] == os.getpid()


def test_a_refusal_leaves_the_status_of_what_was_done(tmp_path):
    with run_lock(tmp_path, ['mtpd', 'run']):
        (tmp_path / 'metrics.json').write_text('{}')
    before = status(tmp_path)
    assert before['state'] == 'done'
    with pytest.raises(MtpdError), run_lock(tmp_path, ['mtpd', 'train']):
        raise MtpdError('unknown detector')
    assert status(tmp_path) == before
    for error, done in ((MtpdError('memory'), True), (ValueError('bug'), False)):
        with pytest.raises(type(error)), run_lock(tmp_path, ['mtpd', 'train']):
            (tmp_path / 'log.json').write_text('{}') if done else None
            raise error
        assert status(tmp_path)['state'] == 'failed'  # it had begun, or is no refusal


def test_a_refusal_leaves_no_folder(tmp_path):
    folder = tmp_path / 'run'
    with pytest.raises(MtpdError), run_lock(folder, ['mtpd']):
        raise MtpdError('wrong recipe')
    assert not folder.exists()


def test_a_process_is_known_by_host_number_and_start():
    process = psutil.Process()
    record = {'host': platform.node(), 'pid': process.pid, 'created': process.create_time()}
    assert may_be_alive(record) and may_be_alive(record | {'host': 'elsewhere', 'pid': 2**22 + 1})
    assert not may_be_alive(record | {'created': process.create_time() - 60}), (
        'the number of another process'
    )
    assert not may_be_alive(record | {'pid': 2**22 + 1})


def test_after_a_kill_the_next_command_says_so_and_goes_on(tmp_path):
    script = f"""
        import os, signal
        from pathlib import Path
        from mtpd.pipeline.status import run_lock
        with run_lock(Path({str(tmp_path)!r}), ['mtpd', 'run', 'x.py']):
            if os.fork() == 0:
                signal.pause()  # a child that has the lock's file open, too
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent(script)], start_new_session=True
    )
    assert killed.wait(60) == -signal.SIGKILL
    assert status(tmp_path)['state'] == 'running' and not may_be_alive(status(tmp_path))
    os.killpg(killed.pid, signal.SIGKILL)
    time.sleep(0.5)  # until the kernel has closed the lock's file
    lines = []
    with run_lock(tmp_path, ['mtpd', 'run', 'x.py'], lines.append):
        pass
    assert len(lines) == 1 and f'`mtpd run x.py` (process {killed.pid} on' in lines[0]
    assert 'ended without a word' in lines[0] and status(tmp_path)['state'] == 'done'


def test_a_killed_runs_step_is_not_said_to_run_in_the_next_command(tmp_path):
    steps = [{'name': 'a', 'state': 'done'}, {'name': 'b', 'state': 'running'}]
    killed = {'state': 'running', 'pid': 2**22 + 1, 'host': platform.node(), 'started': 'then'}
    (tmp_path / 'status.json').write_text(json.dumps(killed | {'steps': steps}))
    with run_lock(tmp_path, ['mtpd', 'train'], lambda line: None):
        recorded = status(tmp_path)
        assert [step['state'] for step in recorded['steps']] == ['done', 'interrupted']
        assert recorded['state'] == 'running' and recorded['pid'] == os.getpid()


def test_where_a_run_stands(tmp_path):
    with pytest.raises(MtpdError, match='neither a sweep nor a run'):
        status_text(read_status(tmp_path))
    steps = [{'name': 'a', 'state': 'done', 'seconds': 3.2}, {'name': 'b', 'state': 'running'}]
    status = {'state': 'running', 'command': 'mtpd run x.py', 'steps': steps}
    status |= {'pid': 2**22 + 1, 'host': platform.node(), 'started': 'then'}
    (tmp_path / 'status.json').write_text(json.dumps(status))
    (tmp_path / 'detectors' / 'student').mkdir(parents=True)
    (tmp_path / 'detectors' / 'student' / 'training.json').write_text('{"update": 50}')
    first, command, *lines = status_text(read_status(tmp_path)).splitlines()
    assert first.startswith('ended without a word: killed') and command == 'command: mtpd run x.py'
    assert lines[0].split() == ['done', 'a', '3', 's'] and lines[1].split() == ['running', 'b']
    assert lines[2].endswith('detectors/student: 50 updates')
    record = {'pid': os.getpid(), 'created': psutil.Process().create_time()}
    (tmp_path / 'status.json').write_text(json.dumps(status | record))
    assert status_text(read_status(tmp_path)).startswith(f'running: process {os.getpid()} on')
    end = {'state': 'failed', 'exit_code': 2, 'ended': 'now', 'reason': 'no room'}
    (tmp_path / 'status.json').write_text(json.dumps(status | end))
    assert status_text(read_status(tmp_path)).startswith('failed, exit_code 2 (now): no room')


def test_a_broken_status_counts_for_none(tmp_path, capsys):
    (tmp_path / 'status.json').write_text('{"state": "run')
    with run_lock(tmp_path, ['mtpd']):
        pass
    assert status(tmp_path)['state'] == 'done'
    assert 'status.json is not valid JSON: it is ignored' in capsys.readouterr().out
