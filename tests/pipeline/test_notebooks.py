"""The strict notebook runner, on tiny notebooks and real kernels."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest

from mtpd.errors import MtpdError
from mtpd.pipeline.notebooks import NotebookError, execute_notebook, notebook_parameters

PARAMETERS = """\
name: str = 'a'  # who, plainly
stage: int = 1  # from 1
rate: float = 0.5
deep: bool = False
sizes: list[int] = [1, 2]
limit: int | None = None  # none is all
"""


def notebook(path: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    nb = nbformat.v4.new_notebook()
    first = nbformat.v4.new_code_cell(parameters, metadata={'tags': ['parameters']})
    nb.cells = [first, *(nbformat.v4.new_code_cell(cell) for cell in cells)]
    nbformat.write(nb, path)
    return path


def printed(path: Path) -> list[str]:
    cells = nbformat.read(path, 4).cells
    return [o.text for c in cells if c.cell_type == 'code' for o in c.outputs if 'text' in o]


def test_parameters_are_read_with_type_default_and_help(tmp_path):
    parameters = notebook_parameters(notebook(tmp_path / 'a.ipynb'))
    assert list(parameters) == ['name', 'stage', 'rate', 'deep', 'sizes', 'limit']
    assert parameters['name'] == ('str', 'a', 'who, plainly')
    assert parameters['limit'] == ('int | None', None, 'none is all')
    assert parameters['sizes'].default == [1, 2]


@pytest.mark.parametrize(
    'line', ['x = 1', 'x: int = f()', 'x: int', "x: int = 'a'", 'x: Path = 1', 'x: int =']
)
def test_a_parameters_cell_that_breaks_the_form_is_refused(tmp_path, line):
    with pytest.raises(MtpdError, match='parameters cell'):
        notebook_parameters(notebook(tmp_path / 'a.ipynb', parameters=line))


@pytest.mark.parametrize('text', [None, 'no json', '{"a": 1}'])
def test_what_is_no_notebook_is_named(tmp_path, text):
    path = tmp_path / 'gone.ipynb'
    if text is not None:
        path.write_text(text)
    with pytest.raises(MtpdError, match=r'gone\.ipynb'):
        notebook_parameters(path)


def test_every_wrong_parameter_is_named_at_once_before_anything_runs(tmp_path):
    source, out = notebook(tmp_path / 'a.ipynb'), tmp_path / 'out.ipynb'
    wrong = {
        'stge': 1,
        'stage': True,
        'rate': '0.1',
        'name': None,
        'sizes': [1, 'b'],
        'deep': np.zeros(2),
        'limit': 1.5,
    }
    with pytest.raises(MtpdError) as caught:
        execute_notebook(source, out, wrong)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(wrong) and not out.exists()
    assert "unknown parameter 'stge'. Did you mean 'stage'?" in lines[0]
    assert 'Known: name, stage, rate, deep, sizes, limit.' in lines[0]
    assert 'stage is int, got True (bool)' in lines[1]
    assert 'limit is int | None, got 1.5 (float)' in lines[6]


def test_values_arrive_as_plain_python_and_prints_are_echoed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'a {b}'
    folder.mkdir()
    source = notebook(
        folder / 'in {0}.ipynb',
        'print((name, stage, rate, deep, sizes, limit))',
        "import os, sys, time\nfor i in range(3):\n    print(f'\\rstep {i}', end='', flush=True)\n"
        "print()\nprint('noise', file=sys.stderr)\nprint(os.getcwd())",
    )
    given = {
        'name': Path('x/y'),
        'stage': np.int64(2),
        'rate': 1,
        'deep': np.bool_(True),
        'sizes': (np.int32(3), 4),
        'limit': 7,
    }
    echo, cells = io.StringIO(), []
    before = source.read_bytes()
    execute_notebook(source, 'out.ipynb', given, on_cell=lambda *at: cells.append(at), echo=echo)
    out = tmp_path / 'out.ipynb'
    values, *streams = printed(out)
    assert values == "('x/y', 2, 1.0, True, [3, 4], 7)\n"
    assert streams == [f'step 2\n{folder}\n', 'noise\n']  # one stdout, the last \r wins
    assert 'step 0' in echo.getvalue() and str(folder) in echo.getvalue()
    assert 'noise' not in echo.getvalue()
    assert cells == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert source.read_bytes() == before and Path.cwd() == tmp_path


@pytest.mark.parametrize(
    ('code', 'mistake'),
    [
        ("from mtpd.errors import MtpdError\nraise MtpdError('no data in here; look there')", True),
        ("raise ValueError('odd <b>')", False),
        ('import sys\nsys.exit(0)', False),  # papermill calls this a success
    ],
)
def test_a_failing_cell_is_an_error_and_its_output_is_kept(tmp_path, code, mistake):
    source = notebook(tmp_path / 'a.ipynb', "print('before')", code, "print('never')")
    out = tmp_path / 'out.ipynb'
    with pytest.raises(NotebookError) as caught:
        execute_notebook(source, out, {'stage': 3})
    error = caught.value
    assert error.mistake is mistake and error.exit_code == (2 if mistake else 1)
    assert error.cell_index == 3  # parameters, injected, before, this one
    if mistake:
        assert str(error) == 'no data in here; look there'
    else:
        assert 'a.ipynb, cell 3' in str(error) and str(out) in str(error)
    assert printed(out)[0] == 'before\n' and 'never' not in ''.join(printed(out))
    cell = nbformat.read(out, 4).cells[error.cell_index]
    assert 'error' in [o.output_type for o in cell.outputs]


def test_a_killed_kernel_is_an_error_whatever_papermill_wrote(tmp_path):
    code = "print('so far', flush=True)\nimport os, time\ntime.sleep(.3)\nos.kill(os.getpid(), 9)"
    source = notebook(tmp_path / 'a.ipynb', code, "print('never')")
    out = tmp_path / 'out.ipynb'
    with pytest.raises(NotebookError, match='SIGKILL') as caught:
        execute_notebook(source, out)
    assert caught.value.exit_code == 1 and caught.value.cell_index == 1
    cells = nbformat.read(out, 4).cells
    assert cells[1].outputs[0].text == 'so far\n'
    assert cells[1].outputs[1].ename == 'KernelDied'
    assert [c.metadata.papermill.status for c in cells] == ['completed', 'failed', 'pending']


def test_a_cell_that_takes_too_long(tmp_path):
    source, out = (
        notebook(tmp_path / 'a.ipynb', 'import time\ntime.sleep(60)'),
        tmp_path / 'o.ipynb',
    )
    with pytest.raises(NotebookError, match='took longer than 1 s'):
        execute_notebook(source, out, timeout=1)
    assert nbformat.read(out, 4).cells[1].outputs[-1].ename == 'Timeout'


def test_the_kernel_is_this_python_whatever_jupyter_has(tmp_path, monkeypatch):
    folder = tmp_path / 'kernels' / 'python3'
    folder.mkdir(parents=True)
    other = {'argv': ['/bin/false', '{connection_file}'], 'display_name': '', 'language': 'python'}
    (folder / 'kernel.json').write_text(json.dumps(other))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path))
    source, out = (
        notebook(tmp_path / 'a.ipynb', 'import sys; print(sys.executable)'),
        tmp_path / 'o.ipynb',
    )
    execute_notebook(source, out)
    assert printed(out) == [f'{sys.executable}\n']
    monkeypatch.setitem(sys.modules, 'ipykernel.kernelspec', None)  # as where it is not installed
    out.unlink()
    with pytest.raises(MtpdError, match=r'ipykernel is not installed.* pip install .*ipykernel=='):
        execute_notebook(source, out)
    assert not out.exists()


def test_an_interrupt_leaves_no_process_and_no_traceback(tmp_path):
    code = (  # it takes longer to end than nbclient waits before it looks after it, as a training does
        'import os, signal, subprocess, time\n'
        'signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1.2), os._exit(1)))\n'
        "child = subprocess.Popen(['sleep', '600'])\n"
        "open('pids', 'w').write(f'{os.getpid()} {child.pid}')\nchild.wait()"
    )
    source, out = notebook(tmp_path / 'a.ipynb', code), tmp_path / 'out.ipynb'
    # A test run started in the background, as CI may start it, ignores SIGINT and so do its children.
    script = f"""
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from mtpd.pipeline.notebooks import execute_notebook
        try:
            execute_notebook({str(source)!r}, {str(out)!r})
        except KeyboardInterrupt:
            print('interrupted')
    """
    process = subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pids = tmp_path / 'pids'
    deadline = time.monotonic() + 60
    while not (pids.exists() and pids.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ('interrupted\n', '')
    assert not [pid for pid in pids.read_text().split() if alive(int(pid))]
    assert nbformat.read(out, 4).cells[1].outputs[-1].ename == 'Interrupted'


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
    return state != 'Z'  # a zombie has ended; its new parent has not asked for it yet
