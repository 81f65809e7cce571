"""Signals: noted until an update has ended, or raised; and processes that end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import click
import psutil
import pytest

import mtpd
from mtpd.utils import processes
from mtpd.utils.paths import ROOT


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def handled(request, monkeypatch):
    """A signal and the list of those that its handler saw, which raises nothing."""
    seen = []
    old = signal.signal(request.param, lambda number, frame: seen.append(number))
    yield request.param, seen
    signal.signal(request.param, old)


def test_a_signal_waits_for_the_updates_end(handled):
    number, seen = handled
    handler = signal.getsignal(number)
    with processes.stop_after_update():
        signal.raise_signal(number)
        assert processes.stop_requested() and seen == []
        processes.stop_now()
        assert seen == [number] and not processes.stop_requested()
    assert seen == [number] and signal.getsignal(number) is handler


def test_a_second_signal_is_obeyed_at_once(handled):
    number, seen = handled
    with processes.stop_after_update():
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert seen == [number]
        processes.stop_now()
    assert seen == [number] * 2


def test_a_signal_that_the_loop_did_not_see_is_obeyed_after_the_block(handled):
    number, seen = handled
    with processes.stop_after_update():
        signal.raise_signal(number)
    assert seen == [number] and not processes.stop_requested()


def test_signals_are_for_the_process_that_writes_the_checkpoint(handled):
    number, seen = handled
    with processes.stop_after_update(writes_checkpoint=False):
        signal.raise_signal(number)
        assert not processes.stop_requested()
    signal.raise_signal(number)
    assert seen == [number]


def test_an_ignored_signal_stays_ignored():
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with processes.stop_after_update():
            signal.raise_signal(signal.SIGINT)
            assert not processes.stop_requested()
    finally:
        signal.signal(signal.SIGINT, old)


def test_sigterm_that_the_block_catches_is_over():
    before = signal.getsignal(signal.SIGTERM)
    with processes.sigterm_unwinds():
        with pytest.raises(processes.Interrupted, match='SIGTERM') as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.number == signal.SIGTERM and isinstance(caught.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_ends_a_process_after_what_its_block_has_to_do():
    code = (
        'import signal; from mtpd.utils import processes\n'
        'with processes.sigterm_unwinds():\n'
        '    try: signal.raise_signal(signal.SIGTERM)\n'
        '    finally: print("cleaned", flush=True)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (-signal.SIGTERM, 'cleaned')


def test_other_threads_leave_signals_alone(handled):
    number, _ = handled
    handler, handlers = signal.getsignal(number), []

    def look():
        with processes.stop_after_update(), processes.sigterm_unwinds():
            handlers.append(signal.getsignal(number))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [handler]


def test_a_child_ends_with_its_parent_however_that_ended():
    code = (
        'import subprocess, sys, os; from mtpd.utils.processes import END_WITH_PARENT\n'
        'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], **END_WITH_PARENT)\n'
        'print(child.pid, flush=True); os.kill(os.getpid(), 9)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    child, deadline = int(done.stdout), time.monotonic() + 60
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_started_process_imports_what_this_one_does(tmp_path, monkeypatch):
    """A folder of the package's name in the working directory is not what is imported, unless this process does so."""
    (tmp_path / 'click').mkdir()
    (tmp_path / 'click' / '__init__.py').write_text('')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [folder for folder in sys.path if folder])

    def origins(*arguments: str) -> list[str]:
        command = [sys.executable, *arguments]
        env = os.environ | processes.same_imports()
        return subprocess.run(command, env=env, capture_output=True, text=True).stdout.split()

    code = 'import click, mtpd; print(click.__file__, mtpd.__file__)'
    (tmp_path / 'module.py').write_text(code)
    expected = [click.__file__, mtpd.__file__]
    assert origins('-c', code) == expected
    sys.path.insert(0, '')
    assert origins('-c', code) == [str(tmp_path / 'click/__init__.py'), mtpd.__file__]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_destructor_is_obeyed_after_it(number, capsys):
    """Python prints what is raised there, and drops it."""

    class Signalled:
        def __del__(self):
            signal.raise_signal(number)

    hook, previous = sys.unraisablehook, signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(KeyboardInterrupt), processes.sigterm_unwinds():
            Signalled()
            time.sleep(20)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert sys.unraisablehook is hook
    assert capsys.readouterr().err == ''
