"""What a machine lacks, and notebooks that do not run."""

from mtpd import compat  # noqa: F401  (before mmcv)

# isort: split
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import nbformat
import pytest
import torch
from place import MINI, call, refuse, setting, stage

from mtpd import distributed
from mtpd.errors import MtpdError
from mtpd.notebooks import execute
from mtpd.paths import ROOT

ROWS = {
    'read-only folder': (
        lambda p: ['train', MINI, '--work-dir', '/proc/mtpd'],  # where root cannot write either
        '/proc/mtpd cannot be written to .*--work-dir',
    ),
    'a file for a folder': (
        lambda p: ['train', MINI, '--work-dir', p.json / 'run'], 'cannot be written to .*--work-dir'
    ),
    'export to a read-only folder': (
        lambda p: ['export', 'configs/mini/teachers/r101/model.pth', '/proc/mtpd/out.pth'],
        'cannot be written',
    ),
    'a report in a read-only folder': (lambda p: ['report', '/proc/1'], 'is not a run'),
    'digits in a read-only folder': (
        lambda p: ['data', 'digits', '--root', '/proc/mtpd', '--train', '2', '--val', '2'],
        'could not be written to /proc/mtpd',
    ),
    'an unknown device': (setting('runtime.device=gpu'), "runtime.device is 'gpu': auto, cpu or cuda"),
}  # fmt: skip
NO_GPU = {
    'no GPU': (setting('runtime.device=cuda'), 'runtime.device is cuda, and torch sees no GPU')
}


def port_taken(rank: int):
    """The command as one of two processes that torchrun or a user started, at a port where another program listens."""

    def make(place):
        other = place.after.enter_context(socket.create_server(('127.0.0.1', 0)))
        names = {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': 2, 'MASTER_ADDR': '127.0.0.1'}
        for name, value in {**names, 'MASTER_PORT': other.getsockname()[1]}.items():
            place.patch.setenv(name, str(value))
        place.patch.setattr(distributed, 'GATHERING', timedelta(seconds=3))
        return place.train('--cfg-options', 'runtime.device=cpu')

    return make


ROWS |= {
    'more GPUs than there are': (
        stage('--gpus', '99'),
        r'99 processes are asked for \(runtime.gpus, --gpus\), and torch sees no'
        r'|runtime\.gpus \(--gpus\) is 99, and torch sees \d',
    ),
    'port taken': (port_taken(0), r'MASTER_PORT \d+ is in use by another program .*free port'),
    'port taken, the second process': (
        port_taken(1),
        r'process 1 of 2 found no connection to the others at 127.*no other program MASTER_PORT',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', ROWS)
def test_it_is_refused(name, place):
    refuse(place, *ROWS[name])


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('name', NO_GPU)
def test_gpus_that_are_not_there(name, place):
    refuse(place, *NO_GPU[name])


@pytest.mark.slow
def test_a_port_that_is_taken_is_none_of_those_that_the_kit_chooses(place):
    """`--gpus 2` starts torchrun itself, with a port that is free."""
    port_taken(0)(place)
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE'):
        place.patch.delenv(name)
    done = call(place.train('--gpus', '2', '--cfg-options', 'runtime.device=cpu'))
    assert done.exit_code == 0, done.output
    assert (place.run / 'detectors/student/model.pth').is_file()


# Notebooks


def notebook(path: Path, code: str) -> Path:
    cell = nbformat.v4.new_code_cell('stage: int = 1', metadata={'tags': ['parameters']})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell(code)]), path)
    return path


NOTEBOOKS = {
    'unknown parameter': (dict(parameters={'stge': 1}), "unknown parameter 'stge'. Did you mean", 2),
    'wrong type': (dict(parameters={'stage': 'one'}), r"stage is int, got 'one' \(str\)", 2),
    'missing kernel': (dict(kernel='cobol'), "no Jupyter kernel 'cobol'", 2),
    # What ends it is no mistake of the user's: exit code 1.
    'kernel killed': (dict(), r'SIGKILL \(often: out of memory\)', 1),
}  # fmt: skip


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_notebooks(name, tmp_path):
    options, pattern, code = NOTEBOOKS[name]
    source = notebook(tmp_path / 'a.ipynb', 'import os\nos.kill(os.getpid(), 9)')
    before = source.read_bytes()
    with pytest.raises(MtpdError, match=pattern) as error:
        execute(source, tmp_path / 'out.ipynb', **options)
    assert error.value.exit_code == code and source.read_bytes() == before
    assert (tmp_path / 'out.ipynb').exists() == (name == 'kernel killed')


# A disk that is full


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip('mounting a small file system takes root')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_run_goes_on_where_there_is_room(place, small_disk):
    """A training of two updates in a process of its own, whose checkpoint finds no room."""
    run = small_disk / 'run'
    command = [sys.executable, '-m', 'mtpd.cli', *place.train()]
    command[command.index(place.run)] = run
    command = [str(item) for item in command]
    filler = small_disk / 'filler'
    filler.write_bytes(bytes(800_000))
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    assert 'Traceback' not in done.stderr
    assert 'No space left' in done.stderr or 'cannot be written' in done.stderr, done.stderr
    filler.unlink()
    subprocess.run(['mount', '-o', 'remount,size=64m', str(small_disk)], check=True)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (run / 'detectors/student/model.pth').is_file()
