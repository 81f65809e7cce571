"""torchrun as a child: starts processes that run one function together, and brings back what rank 0 returned."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ..errors import MtpdError
from ..utils.machine import cpu_cores
from ..utils.paths import ROOT
from ..utils.processes import END_WITH_PARENT, end_with_parent, sigterm_unwinds

# What torchrun writes to its log: "E1123 20:57:00.123000 4711 torch/distributed/elastic/...] failed (exitcode: 1) ..."
_TORCHRUN = re.compile(r'([A-Z])\d{4} .*torch/(distributed|multiprocessing)/')


def launch(size: int, device: str, function: Callable, args: tuple) -> Any:
    """Runs ``function(*args)`` in `size` new processes on this machine; their output is passed on.

    Raises:
        MtpdError: what one of them raised as such.
        RuntimeError: one failed otherwise; its traceback, or what torchrun says of its end.
    """
    with tempfile.TemporaryDirectory(prefix='mtpd-') as folder:
        task = {'size': size, 'device': device, 'function': function, 'args': args}
        Path(folder, 'task').write_bytes(pickle.dumps(task))
        command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
        command += [
            '--nproc-per-node',
            str(size),
            '-m',
            'mtpd.runtime.launch',
            folder,
            str(os.getpid()),
        ]
        said: deque = deque(maxlen=60)
        if _run(command, _environment(size), said):
            raise _failure(Path(folder), said)
        return pickle.loads(Path(folder, 'result').read_bytes())


def _environment(size: int) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    threads = str(max(1, cpu_cores() // size))
    # C++ warnings: a note from each process that no parameter was unused, which is as it should be.
    ours = {'OMP_NUM_THREADS': threads, 'TORCH_CPP_LOG_LEVEL': 'ERROR'}
    return {**ours, **os.environ, 'PYTHONPATH': path, 'PYTHONUNBUFFERED': '1'}


def _run(command: list[str], env: dict[str, str], said: deque) -> int:
    """The exit code. Output goes through Python's streams, where a notebook sees it; errors into `said`, too."""
    process = subprocess.Popen(
        command,
        env=env,
        text=True,
        errors='replace',
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches us, and we end them
        **END_WITH_PARENT,
    )
    ending = threading.Event()
    errors = threading.Thread(target=_pass_on, args=(process.stderr, said, ending))
    errors.start()
    try:
        with sigterm_unwinds():
            for line in process.stdout:
                print(line, end='', flush=True)
            return process.wait()
    finally:
        if process.poll() is None:  # we are interrupted
            ending.set()
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(40)  # torchrun gives its processes 30 seconds
            process.kill()
        errors.join()


def _pass_on(stream, said: deque, ending: threading.Event) -> None:
    """Processes' errors without torchrun's log; nothing more when it ends, which it does with a long traceback."""
    for line in stream:
        said.append(line)
        match = _TORCHRUN.match(line)
        if match and match[1] == 'E':
            ending.set()
        if not (match or ending.is_set()):
            sys.stderr.write(line)


def _failure(folder: Path, said: deque) -> Exception:
    told = [json.loads(path.read_text()) for path in folder.glob('error-*')]
    told.sort(key=lambda error: error['time'])  # the end of the first one makes the others fail
    for error in told:
        if error['mistake']:
            return MtpdError(error['text'])
    # A process that a signal ended could write nothing; the others only tell that it is gone.
    ends = ''.join(line for line in said if 'exitcode' in line and not _TORCHRUN.match(line))
    if told:
        return RuntimeError(f'a process of several failed:\n{told[0]["text"]}\n{ends}')
    return RuntimeError(
        f'a process of several ended (signal 9 often: out of memory):\n{"".join(said)}'
    )


def main(folder: str, launcher: int) -> None:
    """In each process that torchrun started: does the task in `folder`."""
    end_with_parent()
    threading.Thread(target=_watch, args=(launcher,), daemon=True).start()
    place, rank = Path(folder), os.environ['RANK']
    code = 0
    try:
        from . import distributed

        task = pickle.loads((place / 'task').read_bytes())
        with distributed.joined(task['size'], task['device'], 'the recipe'):
            result = distributed.everywhere(
                task['size'], task['device'], task['function'], *task['args']
            )
            (place / 'result').write_bytes(pickle.dumps(result))
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        code, mistake = 1, isinstance(error, MtpdError)
        text = str(error) if mistake else traceback.format_exc()
        part = place / f'.{rank}'
        part.write_text(json.dumps({'mistake': mistake, 'text': text, 'time': time.time()}))
        part.rename(place / f'error-{rank}')
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not the slow way: gloo's threads can block the interpreter's end


def _watch(launcher: int) -> None:
    """Ends this process when the one that wanted it is gone: torchrun puts it into a session of its own."""
    while True:
        try:
            alive = psutil.Process(launcher).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            alive = False
        if not alive:
            os._exit(1)
        time.sleep(2)


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]))
