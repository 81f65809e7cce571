"""One command at a time in a run directory, and what status.json says of it."""

from __future__ import annotations

import contextlib
import copy
import os
import platform
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from ..errors import MtpdError
from ..utils.files import (
    make_writable_folder,
    nearest_existing_folder,
    read_json_if_valid,
    write_json,
)
from ..utils.paths import display_path
from .run_dir import timestamp

LOCK, STATUS = '.lock', 'status.json'


@contextlib.contextmanager
def run_lock(
    folder: Path, command: list[str], echo: Callable[[str], None] = print
) -> Iterator[dict]:
    """Keeps other commands out of a run directory in the block, and writes down how the block ended; gives the status.

    status.json has ``state`` (running, done, failed, interrupted), ``command``, ``host``, ``pid``, ``created`` (the
    process's start, seconds since 1970), ``started``, ``ended``, and of the end ``exit_code``, ``signal`` (its name) and
    ``reason`` (the error's words). Steps of a run (``steps``) stay as they are; one that a killed command left
    running is interrupted. A new folder in which nothing but the status came to be is removed, with the folders made for it, and a command that is refused
    with nothing done leaves the status as it was.

    Raises:
        MtpdError: another command works in it, or it cannot be written to.
    """
    refuse_if_in_use(folder)
    is_new, existing = not folder.is_dir(), nearest_existing_folder(folder)
    make_writable_folder(folder)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise _in_use_error(folder) from None
    with lock:
        status = read_json_if_valid(folder / STATUS, {})
        if status.get('state') == 'running':
            echo(f'{_command_text(status)} ended without a word: killed, or its machine went down.')
            for step in status.get('steps', ()):
                if step['state'] == 'running':  # `mtpd train` leaves the steps as they are
                    step['state'] = 'interrupted'
        status_before, times_before = copy.deepcopy(status), _write_times(folder)
        status |= {
            'state': 'running',
            'command': shlex.join(command),
            **process_record(),
            'started': timestamp(),
            'ended': None,
            'exit_code': None,
            'signal': None,
            'reason': None,
        }
        write_json(folder / STATUS, status)
        end = {'state': 'failed'}
        try:
            yield status
            end = {'state': 'done', 'exit_code': 0}
        except BaseException as error:
            end = _end_fields(error)
            raise
        finally:
            status |= {'ended': timestamp(), **end}
            is_refusal = (
                end.get('exit_code') == MtpdError.exit_code and _write_times(folder) == times_before
            )
            had_ended = status_before.get('state') not in (None, 'running')
            write_json(folder / STATUS, status_before if is_refusal and had_ended else status)
            if is_new and {path.name for path in folder.iterdir()} == {LOCK, STATUS}:
                for name in (STATUS, LOCK):
                    (folder / name).unlink()
                _remove_empty_folders(folder, existing)


def _remove_empty_folders(folder: Path, existing: Path) -> None:
    """Removes a folder and those around it as long as they are empty, up to `existing`, which stays."""
    with contextlib.suppress(OSError):  # not empty: another command has begun in it
        while folder != existing:
            folder.rmdir()
            folder = folder.parent


def refuse_if_in_use(folder: Path) -> None:
    """Raises MtpdError, which names the other one, where a command works in the folder, and where it is a sweep's."""
    if (folder / 'sweep.json').is_file():
        raise MtpdError(f'{folder} holds a sweep. Choose another --work-dir.')
    if not (folder / LOCK).is_file():
        return
    with contextlib.suppress(OSError):  # `run_lock` says so of one that can't be written to
        try:
            with FileLock(folder / LOCK, timeout=0):
                pass
        except Timeout:
            raise _in_use_error(folder) from None


def init_steps(names: list[str], status: dict) -> None:
    """Puts a run's steps into its status; what an earlier start finished stays done."""
    steps_before = {step['name']: step for step in status.get('steps', ())}
    no_result = dict.fromkeys(('started', 'ended', 'seconds', 'reason'))
    status['steps'] = [
        steps_before[name]
        if steps_before.get(name, {}).get('state') == 'done'
        else {'name': name, 'state': 'pending', **no_result, 'notebook': f'notebooks/{name}.ipynb'}
        for name in names
    ]


def reset_steps(status: dict) -> None:
    """No step is done any more."""
    for step in status.get('steps', ()):
        step['state'] = 'pending'


def _write_times(folder: Path) -> dict[str, int]:
    """When the files in a folder were last written, in ns; but for those that say who works in it."""
    times = {}
    for path in folder.rglob('*'):
        with contextlib.suppress(OSError):  # gone meanwhile
            if path.name not in (LOCK, STATUS) and path.is_file():
                times[str(path)] = path.stat().st_mtime_ns
    return times


def _end_fields(error: BaseException) -> dict:
    """What status.json says of an error that ended a command."""
    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, 'number', signal.SIGINT)
        name = signal.Signals(number).name
        return {'state': 'interrupted', 'signal': name, 'exit_code': 128 + number}
    if isinstance(error, MtpdError):
        return {'state': 'failed', 'exit_code': error.exit_code, 'reason': str(error)}
    return {'state': 'failed', 'exit_code': 1, 'reason': f'{type(error).__name__}: {error}'}


def _in_use_error(folder: Path) -> MtpdError:
    return MtpdError(
        f'{folder} is in use: {_command_text(read_json_if_valid(folder / STATUS, {}))} works in it. '
        'Wait for its end, stop it, or choose another --work-dir.'
    )


def _command_text(status: dict) -> str:
    if not status.get('pid'):
        return 'another command'
    command = status.get('command', 'a run')
    return f'`{command}` (process {status["pid"]} on {status["host"]}, since {status["started"]})'


# Is the process that wrote a status still there? Of runs, and of a sweep's jobs.


def process_record() -> dict:
    """This process, as `may_be_alive` knows it again: ``host``, ``pid`` and ``created`` (seconds since 1970)."""
    created = round(psutil.Process().create_time(), 2)
    return {'host': platform.node(), 'pid': os.getpid(), 'created': created}


def may_be_alive(status: dict) -> bool:
    """Whether the process that wrote a status that says "running" may be at work: False if it surely is not.

    Nothing can be asked about a process of another host: it may be.
    """
    if status.get('host') != platform.node() or not status.get('pid'):
        return True
    try:
        process = psutil.Process(int(status['pid']))
        created = process.create_time()
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    # A number may have passed on to another process, which began later.
    return abs(created - status.get('created', created)) < 1 and not is_zombie


# What status.json and the folders beside it say of a run, for `mtpd status`.


def read_status(folder: Path) -> dict:
    """What a run's or training's status.json says, with `state` 'dead' where its process is gone, and ``trainings``:
    ``folder``, ``updates`` and ``done`` each.

    Raises:
        MtpdError: the folder has no status.
    """
    status = read_json_if_valid(folder / STATUS)
    if not status:
        raise MtpdError(
            f'{folder} is neither a sweep nor a run: it has no sweep.json and no status.json. Give such a folder: '
            'runs/<recipe>/<seed>, or runs/<recipe>-sweep.'
        )
    if status.get('state') == 'running' and not may_be_alive(status):
        status['state'] = 'dead'
    trainings = [
        {
            'folder': display_path(path.parent),
            'updates': read_json_if_valid(path, {}).get('update'),
            'done': any((path.parent / name).is_file() for name in ('student.pth', 'model.pth')),
        }
        for path in sorted(folder.rglob('training.json'))
    ]
    return {**status, 'trainings': trainings}


def status_text(status: dict) -> str:
    """What `read_status` gives, as lines: the state, the steps, the updates of what is trained."""
    lines = [_state_text(status), f'command: {status.get("command")}']
    width = max((len(step['name']) for step in status.get('steps', ())), default=0)
    for step in status.get('steps', ()):
        seconds = f'{step["seconds"]:.0f} s' if step.get('seconds') else ''
        reason = str(step.get('reason') or '').split('\n', 1)[0]
        line = f'{step["state"]:<11} {step["name"]:<{width}}  {seconds:>6}  {reason}'
        lines.append(line.rstrip())
    for training in status['trainings']:
        end = ', done' if training['done'] else ''
        lines.append(f'{training["folder"]}: {training["updates"]} updates{end}')
    return '\n'.join(lines)


def _state_text(status: dict) -> str:
    state = status.get('state', 'unknown')
    process = f'process {status.get("pid")} on {status.get("host")}, since {status.get("started")}'
    if state == 'running':
        return f'running: {process}'
    if state == 'dead':
        return f'ended without a word: killed, or its machine went down ({process}). The same command goes on.'
    words = [state, *(f'{key} {status[key]}' for key in ('signal', 'exit_code') if status.get(key))]
    reason = f': {status["reason"]}' if status.get('reason') else ''
    return f'{", ".join(words)} ({status.get("ended")}){reason}'
