"""A strict papermill runner: wrong parameters are refused, and success means that every cell ran.

papermill itself only warns about an unknown parameter, turns tuples and numpy numbers into strings,
and after a kernel was killed its metadata call every cell completed.
"""

from __future__ import annotations

import ast
import asyncio
import difflib
import functools
import io
import logging
import os
import signal
import subprocess
import time
import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from ..errors import MtpdError
from ..utils.files import write_text
from ..utils.machine import install_hint
from ..utils.processes import END_WITH_PARENT

if TYPE_CHECKING:
    from jupyter_client.kernelspec import KernelSpec

KERNEL_NAME = 'python3'  # of the kit's notebooks
GOES_ON = 'The same command goes on from there'
KERNEL_GRACE = 60  # seconds that a kernel has for its end

_running_kernels: list[subprocess.Popen] = []


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
        self.mistake = ename in _user_mistakes()
        self.exit_code = 2 if self.mistake else 1
        where = source.name if cell_index is None else f'{source.name}, cell {cell_index}'
        text = f'{where}: {ename}: {evalue}\nThe notebook with its traceback is {out}'
        super().__init__(evalue if self.mistake else text)


def execute_notebook(
    source: str | Path,
    out: str | Path,
    parameters: dict[str, Any] | None = None,
    cwd: str | Path | None = None,
    timeout: int | None = None,
    on_cell: Callable[[int, int], None] | None = None,
    echo: TextIO | None = None,
    env: dict[str, str] | None = None,
) -> None:
    """Run notebook `source` with `parameters` and write it, executed, to `out` (also on failure).

    Its kernel is a process of this Python, whichever kernels Jupyter knows.

    Args:
        source: the notebook; it is not changed.
        out: where the executed notebook goes; written after every cell.
        parameters: values for names of the parameters cell; checked before a kernel starts.
        cwd: working directory of the kernel; the source's folder where None.
        timeout: seconds that one cell may take; None is for ever.
        on_cell: called with (cell number from 1, number of cells) before each code cell.
        echo: gets what the cells print, as it comes (for example `sys.stdout`).
        env: environment variables of the kernel beside this process's.

    Raises:
        MtpdError: unreadable notebook, unknown parameter, wrong type, or ipykernel is not installed.
        NotebookError: a cell failed, ran out of time, or the kernel died.
    """
    source, out = Path(source).resolve(), Path(out).resolve()
    notebook = read_notebook(source)
    values = checked_parameters(parameters or {}, declared_parameters(notebook, source), source)
    kernel_spec()  # before papermill, which would write the notebook first
    out.parent.mkdir(parents=True, exist_ok=True)
    cells = len(notebook.cells) + bool(values)  # papermill adds one with the values

    def on_cell_start(cell, cell_index):
        if on_cell and cell.cell_type == 'code':
            on_cell(cell_index + 1, cells)

    options = {
        'kernel_name': KERNEL_NAME,
        'timeout': timeout,
        'on_cell_start': on_cell_start,
        'stdout_file': echo,
        'resources': {'metadata': {'path': str(cwd or source.parent)}},  # papermill's cwd: a chdir
    }
    _run_papermill(source, out, values, options, env or {})
    _check_every_cell_ran(source, out)


def end_kernels() -> None:
    """Ends every kernel that `execute_notebook` has at work, in whichever thread; those calls raise NotebookError."""
    _end_processes(list(_running_kernels))


def kernel_spec() -> KernelSpec:
    """How the kernel of this Python is started. Raises MtpdError where ipykernel is not installed."""
    from jupyter_client.kernelspec import KernelSpec

    try:
        from ipykernel.kernelspec import get_kernel_dict
    except ImportError:
        raise MtpdError(f'ipykernel is not installed. {install_hint("ipykernel")}') from None
    return KernelSpec(**get_kernel_dict())


def _run_papermill(source: Path, out: Path, values: dict, options: dict, env: dict) -> None:
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    write_notebooks_atomically()
    kernels: list[subprocess.Popen] = []
    logging.getLogger('papermill').disabled = True
    with _kernels_killed_after(kernels):
        try:
            execute_notebook(
                _papermill_path(source),
                _papermill_path(out),
                values,
                language='python',
                progress_bar=False,
                coalesce_streams=True,
                kernel_manager_class=_kernel_manager(kernels, env),
                extra_arguments=['--IPKernelApp.log_level=50'],  # its log is noise in a terminal
                **options,
            )
            return
        except PapermillExecutionError as error:
            ename, evalue, index = error.ename, error.evalue, error.cell_index
            drop_papermill_notes(out)
        except RuntimeError as error:  # DeadKernelError, or a plain one before the first cell
            if not (isinstance(error, DeadKernelError) or 'Kernel died' in str(error)):
                raise
            ename, evalue = 'KernelDied', _cause_of_death(kernels)
            index = record_failure(out, ename, evalue)
        except CellTimeoutError:
            ename, evalue = 'Timeout', f'the cell took longer than {options["timeout"]} s'
            index = record_failure(out, ename, evalue)
        except KeyboardInterrupt:
            record_failure(out, 'Interrupted', 'stopped by the user')
            raise
    raise NotebookError(source, out, ename, evalue, index)


def _papermill_path(path: Path) -> str:
    """A path as papermill takes it: for a format string."""
    return str(path).replace('{', '{{').replace('}', '}}')


def _kernel_manager(kernels: list[subprocess.Popen], env: dict[str, str]) -> type:
    """A kernel manager class that starts kernels of this Python, and adds them to `kernels`."""
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        # In place of the property that looks a kernel up by its name: JUPYTER_PATH may have another of this name.
        kernel_spec = kernel_spec()

        async def start_kernel(self, **kwargs):
            # Its own session: a Ctrl-C at the terminal reaches us, and we end the kernel.
            await super().start_kernel(**{'env': os.environ | env, **END_WITH_PARENT, **kwargs})
            kernels.append(self.provisioner.process)
            _running_kernels.append(self.provisioner.process)

        async def shutdown_kernel(self, now=False, restart=False):
            # After Ctrl-C the task of the cell is still in the loop, where it fails once the kernel is dead. Nobody waits
            # for it, and asyncio would log that.
            for task in asyncio.all_tasks():
                task.add_done_callback(_take_exception)
            if self.provisioner and self.provisioner.process:
                _end_processes([self.provisioner.process])
            await super().shutdown_kernel(now=True, restart=restart)

    return Manager


def _take_exception(task: asyncio.Task) -> None:
    if not task.cancelled():
        task.exception()


@contextmanager
def _kernels_killed_after(kernels: list[subprocess.Popen]) -> Iterator[None]:
    """Kills kernels at the end of the block, with their children (data loader workers), which would survive them."""
    try:
        yield
    finally:
        for process in kernels:
            _kill_group(process)
            _running_kernels.remove(process)
            process.wait()


def _end_processes(processes: list[subprocess.Popen]) -> None:
    """Asks kernels to end, which a training does after its update with a checkpoint; kills them after `KERNEL_GRACE`."""
    try:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + KERNEL_GRACE
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0, deadline - time.monotonic()))
    finally:  # also after a second Ctrl-C
        for process in processes:
            _kill_group(process)


def _kill_group(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _cause_of_death(kernels: list[subprocess.Popen]) -> str:
    code = kernels[-1].poll() if kernels else None
    if code is None or code >= 0:
        return f'the Python process of the notebook ended by itself (exit code {code}). {GOES_ON}.'
    name = signal.Signals(-code).name
    hint = ' (often: out of memory)' if name == 'SIGKILL' else ''
    fix = ', and takes less memory with runtime.workers=0' if hint else ''
    return f'the Python process of the notebook was ended by signal {name}{hint}. {GOES_ON}{fix}.'


def _check_every_cell_ran(source: Path, out: Path) -> None:
    """Raises NotebookError for an executed notebook with an error in it, or a cell that did not run."""
    for index, cell in enumerate(read_notebook(out).cells):
        if cell.cell_type != 'code' or not cell.source.strip():
            continue
        errors = [o for o in cell.outputs if o.output_type == 'error']
        if errors:  # papermill takes `sys.exit(0)` in the middle of a notebook for success
            raise NotebookError(source, out, errors[0].ename, errors[0].evalue, index)
        if cell.execution_count is None:
            raise NotebookError(source, out, 'NotRun', 'the cell was never run', index)


def _user_mistakes() -> set[str]:
    """The names of MtpdError and its subclasses, but for NotebookError: only names come back from a kernel."""
    names = {'RecipeError'}  # a subclass may live in a module that is not imported here
    queue = [MtpdError]
    while queue:
        kind = queue.pop()
        names.add(kind.__name__)
        queue += kind.__subclasses__()
    return names - {'NotebookError'}


# The files of executed notebooks: whole, and true about how they ended.


@functools.cache
def write_notebooks_atomically() -> None:
    """Has papermill, which writes after every cell, write notebooks whole or not at all."""
    from papermill.iorw import LocalHandler, papermill_io

    class AtomicHandler(LocalHandler):
        def write(self, buf, path):
            write_text(Path(path), buf)

    papermill_io.register('/', AtomicHandler())


def record_failure(out: Path, ename: str, evalue: str) -> int | None:
    """Puts the end that papermill didn't see into the executed notebook; returns its cell."""
    import nbformat

    if not out.is_file():
        return None
    notebook = read_notebook(out)
    index = next((i for i, cell in enumerate(notebook.cells) if _is_unfinished(cell)), None)
    if index is not None:
        error = nbformat.v4.new_output('error', ename=ename, evalue=evalue, traceback=[evalue])
        notebook.cells[index].outputs.append(error)
        for cell in notebook.cells[index:]:
            cell.metadata.get('papermill', {})['status'] = 'pending'
        notebook.cells[index].metadata.get('papermill', {})['status'] = 'failed'
    write_text(out, nbformat.writes(notebook))
    return index


def drop_papermill_notes(out: Path) -> None:
    """Takes papermill's two red notes out of a failed notebook: they shift its cells' numbers."""
    import nbformat

    notebook = read_notebook(out)
    tag = 'papermill-error-cell-tag'
    notebook.cells = [c for c in notebook.cells if tag not in c.metadata.get('tags', [])]
    write_text(out, nbformat.writes(notebook))


def _is_unfinished(cell) -> bool:
    """Whether a cell was not run to its end."""
    if cell.cell_type != 'code' or not cell.source.strip():
        return False
    # A cell interrupted at work has an execution count but no shell reply, hence no end time.
    has_reply = 'shell.execute_reply' in cell.metadata.get('execution', {})
    return cell.execution_count is None or not has_reply


# The parameters cell of a notebook: `name: type = literal  # help`, one a line. papermill.inspect_notebook gives defaults
# as text and takes any line, so it would hide a mistake.


TYPES = {'str': str, 'int': int, 'float': float, 'bool': bool, 'list': list, 'dict': dict}


class Parameter(NamedTuple):
    """One line of a notebook's parameters cell: `name: type = default  # help`."""

    type: str
    default: Any
    help: str


def notebook_parameters(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters that a notebook declares in the cell tagged `parameters`, in order.

    Raises MtpdError when the notebook can't be read or a line isn't `name: type = literal`.
    """
    return declared_parameters(read_notebook(notebook), Path(notebook))


def read_notebook(path: str | Path):
    """The nbformat notebook at `path`. Raises MtpdError when there is none."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise MtpdError(f'Notebook {path} does not exist. Correct its path.') from None
    except Exception as error:  # nbformat raises several kinds for a file that is no notebook
        raise MtpdError(
            f'{path} is not a Jupyter notebook: {error}. Give an .ipynb file; `git checkout` brings back one of the kit.'
        ) from None


def declared_parameters(notebook, path: Path) -> dict[str, Parameter]:
    """The parameters of an nbformat notebook read from `path`, as `notebook_parameters` gives them."""
    cells = [c for c in notebook.cells if 'parameters' in c.metadata.get('tags', [])]
    if not cells:
        return {}
    source = cells[0].source
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise MtpdError(f'{path}, parameters cell: {error}. Correct it.') from None
    comments = {
        token.start[0]: token.string.lstrip('# ').strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    parameters = {}
    for line in tree.body:
        try:
            if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
                raise ValueError
            default = ast.literal_eval(line.value)
            _converted(default, line.annotation)
        except (ValueError, TypeError, KeyError):
            code = ast.get_source_segment(source, line)
            raise MtpdError(
                f'{path}, parameters cell: `{code}` is not `name: type = literal  # help` '
                f'with types of {", ".join(TYPES)}, None.'
            ) from None
        annotation, comment = ast.unparse(line.annotation), comments.get(line.end_lineno, '')
        parameters[line.target.id] = Parameter(annotation, default, comment)
    return parameters


def checked_parameters(
    values: dict[str, Any], known: dict[str, Parameter], path: Path
) -> dict[str, Any]:
    """`values` as plain Python values of the declared types. Raises MtpdError with every problem."""
    problems, checked = [], {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f' Did you mean {near[0]!r}?' if near else ''
            names = ', '.join(known) or 'none'
            problems.append(f'unknown parameter {name!r}.{hint} Known: {names}.')
            continue
        try:
            annotation = ast.parse(known[name].type, mode='eval').body
            checked[name] = _converted(_plain_value(value), annotation)
        except TypeError:
            kind = type(value).__name__
            problems.append(f'{name} is {known[name].type}, got {value!r} ({kind}).')
    if problems:
        raise MtpdError('\n'.join(f'{path.name}: {problem}' for problem in problems))
    return checked


def _plain_value(value: Any) -> Any:
    """A path, a tuple, a numpy number as what papermill can write into a cell. TypeError where it is none of these."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return [_plain_value(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain_value(item) for key, item in value.items()}
    if hasattr(value, 'item') and getattr(value, 'shape', None) == ():  # a numpy or torch scalar
        return value.item()
    if value is None or type(value) in TYPES.values():
        return value
    raise TypeError


def _converted(value: Any, annotation: ast.expr) -> Any:
    """`value` as the annotation wants it (an int becomes a float), TypeError where it doesn't."""
    if isinstance(annotation, ast.BinOp):  # a | b
        for side in (annotation.left, annotation.right):
            try:
                return _converted(value, side)
            except TypeError:
                continue
        raise TypeError
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        if value is not None:
            raise TypeError
        return value
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == 'list':
        return [_converted(item, annotation.slice) for item in _converted(value, annotation.value)]
    wanted = TYPES[ast.unparse(annotation)]
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise TypeError
    return value
