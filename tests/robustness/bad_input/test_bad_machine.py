"""What a machine lacks, and notebooks that do not run."""

import os
import re
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import nbformat
import pytest

from helpers.place import MINI, call, refuse, setting, stage
from mtpd.errors import MtpdError
from mtpd.pipeline.notebooks import execute_notebook
from mtpd.runtime import checkpoints, distributed
from mtpd.utils.paths import ROOT

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
    'an unknown device': (setting('runtime.device=gpu'), "runtime.device is 'gpu': it must be auto, cpu or cuda"),
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
        r'runtime\.gpus \(--gpus\) is 99, (but torch sees no|and torch sees \d)',
    ),
    'port taken': (port_taken(0), r'MASTER_PORT \d+ is in use by another program .*free port'),
    'port taken, the second process': (
        port_taken(1),
        r'process 1 of 2 found no connection to the others at 127.*no other program uses MASTER_PORT',
    ),
}  # fmt: skip


LONG = {'port taken, the second process'}


@pytest.mark.parametrize(
    'name', [pytest.param(row, marks=[pytest.mark.long] * (row in LONG)) for row in ROWS]
)
def test_it_is_refused(name, place):
    refuse(place, *ROWS[name])


@pytest.mark.parametrize('name', NO_GPU)
def test_gpus_that_are_not_there(name, place):
    refuse(place, *NO_GPU[name])


@pytest.mark.slow
def test_a_port_that_is_taken_is_none_of_those_that_the_kit_chooses(place):
    """`--gpus 2` starts its processes with a port that is free."""
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
    # What ends it is no mistake of the user's: exit code 1.
    'kernel killed': (dict(), r'SIGKILL \(often: out of memory\)', 1),
}  # fmt: skip


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_notebooks(name, tmp_path):
    options, pattern, code = NOTEBOOKS[name]
    source = notebook(tmp_path / 'a.ipynb', 'import os\nos.kill(os.getpid(), 9)')
    before = source.read_bytes()
    with pytest.raises(MtpdError, match=pattern) as error:
        execute_notebook(source, tmp_path / 'out.ipynb', **options)
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


def remount(folder: Path, size: str) -> None:
    subprocess.run(['mount', '-o', f'remount,size={size}', str(folder)], check=True)


def fill(path: Path, process: subprocess.Popen) -> None:
    """Takes all room that there is or comes to be while a process runs."""
    with path.open('wb', buffering=0) as file:
        while process.poll() is None:
            try:
                file.write(bytes(2**16))
            except OSError:
                time.sleep(0.002)


@pytest.mark.slow
def test_a_disk_that_fills_up_is_named_and_the_training_goes_on_to_the_same_bits(place, small_disk):
    """Told beforehand where it is too small; when other files fill it while a training writes its checkpoints, that
    ends with a message, and the same command goes on once there is room.
    """
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    options = {'cwd': ROOT, 'env': env, 'text': True}
    more = {'schedule.baseline': 60, 'schedule.checkpoint_interval': 2, 'runtime.threads': 1}

    def train(folder: Path) -> list[str]:
        command = [sys.executable, '-m', 'mtpd.cli', *place.train(**more)]
        command[command.index(place.run)] = folder / 'run'
        return [str(item) for item in command]

    def ended(code: int) -> subprocess.CompletedProcess:
        done = subprocess.run(train(small_disk), capture_output=True, **options)
        assert done.returncode == code and 'Traceback' not in done.stderr, done.stderr[-2000:]
        return done

    assert re.search(
        r'checkpoints still to be written take .* and .*run\S* has 1\.0 MB free', ended(2).stderr
    )
    remount(small_disk, '64m')
    process = subprocess.Popen(train(small_disk), stderr=subprocess.PIPE, **options)
    folder = small_disk / 'run/detectors/student'
    while process.poll() is None and not (folder / 'previous.pth').is_file():
        time.sleep(0.01)
    fill(small_disk / 'filler', process)
    errors = process.stderr.read()
    assert process.wait() == 2 and 'Traceback' not in errors, errors[-2000:]
    assert 'No space left' in errors or 'cannot be written' in errors, errors
    (small_disk / 'filler').unlink()
    at = checkpoints.load_checkpoint(folder / 'latest.pth')['meta']['iter']
    assert 2 <= at < 60 and at % 2 == 0
    assert 'update 60/60' in ended(0).stdout
    subprocess.run(train(place.folder), check=True, capture_output=True, **options)
    whole = place.folder / 'run/detectors/student'
    for name in ('model.pth', 'latest.pth'):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
