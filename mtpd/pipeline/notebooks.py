"""A strict papermill runner: wrong parameters are refused, and success means that every cell ran.

papermill itself only warns about an unknown parameter, turns tuples and numpy numbers into strings,
and after a kernel was killed its metadata call every cell completed.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from ..errors import MtpdError
from ..utils.parent import FOLLOWS
from .executed import drop_markers, keep_whole, record_end
from .parameters import Parameter, checked, declared, parameters_of, read_notebook

__all__ = ['NotebookError', 'Parameter', 'execute', 'parameters_of']


GRACE = 60  # seconds that a kernel has for its end

_kernels: list = []  # processes of the kernels at work


class NotebookError(MtpdError):
    """A notebook that did not run to its end.

    Attributes:
        out: the executed notebook.
        ename, evalue: class name and message of the error raised in the kernel.
        cell_index: its cell in the executed notebook, or None.
        mistake: the kernel raised an MtpdError, so `str(self)` is that message as it was and
            `exit_code` is 2; otherwise it names notebook, cell and error, and `exit_code` is 1.
    """

    def __init__(self, source: Path, out: Path, ename: str, evalue: str, cell_index: int | None):
        self.out = out
        self.ename, self.evalue, self.cell_index = ename, evalue, cell_index
        self.mistake = ename in _mistakes()
        self.exit_code = 2 if self.mistake else 1
        where = source.name if cell_index is None else f'{source.name}, cell {cell_index}'
        text = f'{where}: {ename}: {evalue}\nThe notebook with its traceback is {out}'
        super().__init__(evalue if self.mistake else text)


def execute(
    source: str | Path,
    out: str | Path,
    parameters: dict[str, Any] | None = None,
    cwd: str | Path | None = None,
    kernel: str = 'python3',
    timeout: int | None = None,
    on_cell: Callable[[int, int], None] | None = None,
    echo: TextIO | None = None,
    env: dict[str, str] | None = None,
) -> None:
    """Run notebook `source` with `parameters` and write it, executed, to `out` (also on failure).

    Args:
        source: the notebook; it is not changed.
        out: where the executed notebook goes; written after every cell.
        parameters: values for names of the parameters cell; checked before a kernel starts.
        cwd: working directory of the kernel; the source's folder where None.
        kernel: name of the Jupyter kernel.
        timeout: seconds that one cell may take; None is for ever.
        on_cell: called with (cell number from 1, number of cells) before each code cell.
        echo: gets what the cells print, as it comes (for example `sys.stdout`).
        env: environment variables of the kernel beside this process's.

    Raises:
        MtpdError: unreadable notebook, unknown parameter, wrong type, unknown kernel.
        NotebookError: a cell failed, ran out of time, or the kernel died.
    """
    source, out = Path(source).resolve(), Path(out).resolve()
    notebook = read_notebook(source)
    values = checked(parameters or {}, declared(notebook, source), source)
    _check_kernel(source, kernel)
    out.parent.mkdir(parents=True, exist_ok=True)
    cells = len(notebook.cells) + bool(values)  # papermill adds one with the values

    def before(cell, cell_index):
        if on_cell and cell.cell_type == 'code':
            on_cell(cell_index + 1, cells)

    options = {
        'kernel_name': kernel,
        'timeout': timeout,
        'on_cell_start': before,
        'stdout_file': echo,
        'resources': {'metadata': {'path': str(cwd or source.parent)}},  # papermill's cwd: a chdir
    }
    _run(source, out, values, options, env or {})
    _prove(source, out)


def _run(source: Path, out: Path, values: dict, options: dict, env: dict) -> None:
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    keep_whole()
    started: list = []
    logging.getLogger('papermill').disabled = True
    with _no_kernel_left(started):
        try:
            execute_notebook(
                _unformatted(source),
                _unformatted(out),
                values,
                language='python',
                progress_bar=False,
                coalesce_streams=True,
                kernel_manager_class=_manager(started, env),
                extra_arguments=['--IPKernelApp.log_level=50'],  # its log is noise in a terminal
                **options,
            )
            return
        except PapermillExecutionError as error:
            ename, evalue, index = error.ename, error.evalue, error.cell_index
            drop_markers(out)
        except RuntimeError as error:  # DeadKernelError, or a plain one before the first cell
            if not (isinstance(error, DeadKernelError) or 'Kernel died' in str(error)):
                raise
            ename, evalue = 'KernelDied', _cause_of_death(started)
            index = record_end(out, ename, evalue)
        except CellTimeoutError:
            ename, evalue = 'Timeout', f'the cell took longer than {options["timeout"]} s'
            index = record_end(out, ename, evalue)
        except KeyboardInterrupt:
            record_end(out, 'Interrupted', 'stopped by the user')
            raise
    raise NotebookError(source, out, ename, evalue, index)


def _check_kernel(source: Path, kernel: str) -> None:
    """Before papermill, which would write the notebook first."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        KernelSpecManager().get_kernel_spec(kernel)
    except NoSuchKernel:
        raise MtpdError(
            f'{source.name}: there is no Jupyter kernel {kernel!r}. '
            '`jupyter kernelspec list` shows those there are.'
        ) from None


def _unformatted(path: Path) -> str:
    # papermill takes a path for a format string.
    return str(path).replace('{', '{{').replace('}', '}}')


def _manager(started: list, env: dict[str, str]) -> type:
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        async def start_kernel(self, **kwargs):
            # Its own session: a Ctrl-C at the terminal reaches us, and we end the kernel.
            await super().start_kernel(**{'env': os.environ | env, **FOLLOWS, **kwargs})
            started.append(self.provisioner.process)
            _kernels.append(self.provisioner.process)

        async def shutdown_kernel(self, now=False, restart=False):
            if self.provisioner and self.provisioner.process:
                _end([self.provisioner.process])
            await super().shutdown_kernel(now=True, restart=restart)

    return Manager


@contextmanager
def _no_kernel_left(started: list):
    # Children of a kernel (data loader workers) survive it when it is killed: end the whole group.
    try:
        yield
    finally:
        for process in started:
            _kill(process)
            _kernels.remove(process)
            process.wait()


def _end(processes: list) -> None:
    """Asks kernels to end, which a training does at an update's end with a checkpoint; kills them after `GRACE`."""
    try:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0, deadline - time.monotonic()))
    finally:  # a second Ctrl-C
        for process in processes:
            _kill(process)


def _kill(process) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def end_kernels() -> None:
    """Ends every kernel that `execute` has at work, in whichever thread; those calls raise NotebookError."""
    _end(list(_kernels))


def _cause_of_death(started: list) -> str:
    code = started[-1].poll() if started else None
    if code is None or code >= 0:
        return f'the Python process of the notebook ended by itself (exit code {code})'
    name = signal.Signals(-code).name
    memory = ' (often: out of memory)' if name == 'SIGKILL' else ''
    return f'the Python process of the notebook was ended by signal {name}{memory}'


def _prove(source: Path, out: Path) -> None:
    for index, cell in enumerate(read_notebook(out).cells):
        if cell.cell_type != 'code' or not cell.source.strip():
            continue
        errors = [o for o in cell.outputs if o.output_type == 'error']
        if errors:  # papermill takes `sys.exit(0)` in the middle of a notebook for success
            raise NotebookError(source, out, errors[0].ename, errors[0].evalue, index)
        if cell.execution_count is None:
            raise NotebookError(source, out, 'NotRun', 'the cell was never run', index)


def _mistakes() -> set[str]:
    # Only names come back from a kernel. A subclass may live in a module not imported here.
    names, queue = {'RecipeError'}, [MtpdError]
    while queue:
        kind = queue.pop()
        names.add(kind.__name__)
        queue += kind.__subclasses__()
    return names - {'NotebookError'}
