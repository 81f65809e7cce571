"""`mtpd doctor`: every problem found, with its fix, whatever is broken."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from venv import create

import pytest

from mtpd.errors import MtpdError
from mtpd.install import ops
from mtpd.pipeline import doctor
from mtpd.utils import machine

ROOT = Path(__file__).parents[2]


def test_report_of_this_machine(monkeypatch):
    result = {'cuda': None, 'device': 'cpu', 'gpu': None, 'obstacle': None, 'ops': ['nms']}
    monkeypatch.setattr(ops, 'self_test', lambda: result)  # tests/install/test_ops.py runs it
    lines = []
    code = doctor.print_checks('configs/mini/no_such_recipe.py', lines.append)
    text = '\n'.join(lines)
    for name in (
        'python',
        'torch',
        'mmdet',
        'numpy',
        'device',
        'ops',
        'memory',
        'disk',
        'kernel',
        'recipe',
    ):
        assert f' {name} ' in text
    assert code == 1
    assert 'no_such_recipe.py' in text
    columns = {
        line.index(line.split()[2]) for line in lines if line[:4] in ('ok  ', 'warn', 'fail')
    }
    assert len(columns) == 1  # aligned


BROKEN = 'raise ImportError("libcudart.so.13: cannot open shared object file")\n'


def test_broken_torch_is_reported_not_raised(tmp_path):
    (tmp_path / 'torch').mkdir()
    (tmp_path / 'torch' / '__init__.py').write_text(BROKEN)
    (tmp_path / 'torch' / 'version.py').write_text('__version__ = "2.13.0"\ncuda = "13.0"\n')
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            'import sys; from mtpd.pipeline import doctor; sys.exit(doctor.print_checks())',
        ],
        env={**os.environ, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == ''
    assert 'libcudart.so.13' in done.stdout
    assert 'mtpd install-ops' in done.stdout
    assert 'not checked: it needs mmcv' in done.stdout


def test_missing_torch(monkeypatch):
    monkeypatch.setattr(machine, 'find_torch', lambda: None)
    (one,) = doctor.check_torch()
    assert (one.state, one.found) == ('fail', 'not installed')
    assert 'make env' in one.fix


def test_other_versions_than_the_pinned_are_named(monkeypatch):
    monkeypatch.setattr(machine, 'pinned_versions', lambda: {'numpy': '1.0'})
    monkeypatch.setattr(doctor, 'COMPARED_PACKAGES', ('numpy', 'no-such-package', 'mmdet'))
    numpy, missing, mmdet = doctor.check_versions()
    assert numpy.state == 'warn'
    assert '1.0 is pinned' in numpy.fix and 'pip install' in numpy.fix and 'numpy==1.0' in numpy.fix
    assert missing.state == 'fail'
    assert mmdet.state == 'ok'


def test_pins_are_read():
    assert machine.pinned_versions()['mmdet'] == '2.28.2'


@pytest.mark.parametrize(('size', 'state'), [(0.1, 'fail'), (1, 'warn'), (5, 'ok')])
def test_amounts(size, state):
    limits = (0.5 * machine.GIB, 3 * machine.GIB)
    check = doctor._amount_check('disk', int(size * machine.GIB), limits, 'free', 'Free some.')
    assert check.state == state
    assert bool(check.fix) is (state != 'ok')
    assert check.found == f'{size:.1f} GiB free'


def test_folder_that_cannot_be_written():
    (one,) = doctor.check_results_folder(Path('/proc/x'))  # not even by root
    assert one.state == 'fail' and one.found == '/proc is not writable'
    assert '--work-dir' in one.fix


def test_gpu_that_torch_cannot_use(monkeypatch):
    monkeypatch.setattr(machine, 'nvidia_gpus', lambda: [('NVIDIA H200', '143771 MiB', '9.0')])
    monkeypatch.setattr(machine, 'find_torch', lambda: machine.Torch('2.13.0+cpu', None, Path()))
    (one,) = doctor.check_device()
    assert one.state == 'warn'
    assert 'H200' in one.found
    assert 'CPU build' in one.fix


def test_a_check_that_breaks_is_a_failed_check():
    def look():
        yield doctor.Check('first', 'ok', '')
        raise OSError('gone')

    def user_mistake():
        raise MtpdError('do this')
        yield

    first, broken = doctor._checks_or_failure('second', look())
    assert (first.name, broken.name, broken.state) == ('first', 'second', 'fail')
    assert 'OSError: gone' in broken.found
    assert next(doctor._checks_or_failure('third', user_mistake())).found == 'do this'


# Another environment that would be used in place of this one


@pytest.mark.parametrize('version', ['2.28.2', '2.25.0'])
def test_another_mmdet_on_pythonpath_is_named(tmp_path, monkeypatch, other_package, version):
    monkeypatch.setenv('PYTHONPATH', str(other_package('mmdet', version)))
    checks = {check.name: check for check in doctor.check_versions()}
    assert checks['mmdet'].state == 'warn'
    assert checks['mmdet'].found == f'{version} ({tmp_path}/other/mmdet, by PYTHONPATH)'
    assert checks['mmdet'].fix == f'Take {tmp_path}/other out of PYTHONPATH.'
    assert checks['numpy'].state == 'ok' and not {'mmcv', 'torch'} & set(checks)


def test_an_mmdet_that_is_the_working_directory_is_named(tmp_path, monkeypatch, other_package):
    monkeypatch.delenv('PYTHONPATH', raising=False)
    monkeypatch.chdir(other_package('mmdet', '2.28.2'))
    (mmdet,) = [check for check in doctor.check_versions() if check.name == 'mmdet']
    assert mmdet.state == 'warn' and f'{tmp_path}/other/mmdet, by the working' in mmdet.found
    assert 'another folder' in mmdet.fix


def test_an_editable_mmdet_is_named_with_the_command_that_replaces_it(other_package):
    other_package('mmdet', '2.28.2')  # on the path, as its .pth file puts it there
    (mmdet,) = [check for check in doctor.check_versions() if check.name == 'mmdet']
    assert mmdet.state == 'warn' and 'editable' in mmdet.found
    assert f'{sys.executable} -m pip install --force-reinstall --no-deps mmdet==2.28.2' in mmdet.fix


def test_another_checkout_than_the_installed_one_is_named(tmp_path, monkeypatch):
    """PYTHONPATH puts this checkout before the one that is installed."""
    info = tmp_path / 'mtpd-0.1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: mtpd\nVersion: 0.1.0\n')
    address = {'url': (tmp_path / 'my kit').as_uri(), 'dir_info': {'editable': True}}
    (info / 'direct_url.json').write_text(json.dumps(address))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    (check,) = doctor.check_checkout()
    assert check.state == 'warn' and check.fix == f'Take {ROOT} out of PYTHONPATH.'
    assert check.found == f'imported from {ROOT}, by PYTHONPATH; installed from {tmp_path}/my kit'
    (info / 'direct_url.json').write_text(json.dumps(address | {'url': ROOT.as_uri()}))
    assert list(doctor.check_checkout()) == []


@pytest.fixture
def other_python(tmp_path, monkeypatch) -> Path:
    """Another environment's Python, which has nothing."""
    monkeypatch.delenv('PYTHONPATH', raising=False)
    create(tmp_path / 'env', with_pip=False, symlinks=True)
    return tmp_path / 'env' / 'bin' / 'python'


def write_kernel(folder: Path, python: str | Path, **more) -> Path:
    argv = [str(python), '-m', 'ipykernel_launcher', '-f', '{connection_file}']
    folder = folder / 'kernels' / 'python3'
    folder.mkdir(parents=True)
    values = {'argv': argv, 'display_name': 'other', 'language': 'python', **more}
    (folder / 'kernel.json').write_text(json.dumps(values))
    return folder


def test_a_kernel_of_another_python_is_named(tmp_path, monkeypatch, other_python):
    folder = write_kernel(tmp_path / 'share', other_python)
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path / 'share'))
    (kernel,) = doctor.check_kernel()
    assert kernel.state == 'warn'
    assert f'`mtpd run` takes {sys.executable};' in kernel.found
    assert f'{other_python}, without mtpd ({folder})' in kernel.found
    assert 'unset JUPYTER_PATH' in kernel.fix
    monkeypatch.delenv('JUPYTER_PATH')
    assert [check.state for check in doctor.check_kernel()] == ['ok']


def test_a_users_kernel_is_named_where_jupyter_prefers_it(tmp_path, monkeypatch, other_python):
    write_kernel(tmp_path / 'user', other_python)
    monkeypatch.setenv('JUPYTER_DATA_DIR', str(tmp_path / 'user'))
    monkeypatch.setenv('JUPYTER_PREFER_ENV_PATH', '0')
    (kernel,) = doctor.check_kernel()
    assert kernel.state == 'warn' and 'export JUPYTER_PREFER_ENV_PATH=1' in kernel.fix
    monkeypatch.setenv('JUPYTER_PREFER_ENV_PATH', '1')
    assert [check.state for check in doctor.check_kernel()] == ['ok']


@pytest.mark.parametrize(
    ('values', 'words'),
    [
        ({'argv': ['/no/such/python', '-m', 'x']}, '/no/such/python, which does not start'),
        ({'argv': 3}, 'one that cannot be read (TraitError'),
        ({'argv': ['python'], 'env': {'PYTHONPATH': '/x'}}, 'one with PYTHONPATH=/x'),
        ({'argv': [sys.executable], 'env': {'PYTHONPATH': '/x'}}, 'one with PYTHONPATH=/x'),
        ({'argv': ['python3']}, None),
        ({'argv': [sys.executable]}, None),
    ],
)
def test_kernels_that_are_broken_or_this_pythons(tmp_path, monkeypatch, values, words):
    write_kernel(tmp_path, 'python', **values)
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path))
    (kernel,) = doctor.check_kernel()
    assert kernel.state == ('warn' if words else 'ok')
    assert (words or sys.executable) in kernel.found


# A recipe's data and checkpoints


class Loaded(SimpleNamespace):
    """A recipe with a teacher."""

    detectors = ('student', 'r101')

    def checkpoint(self, name):
        return self.path if name == 'r101' else None

    def url(self, name):
        return self.address if name == 'r101' else None


def test_checkpoint_of_a_url_is_to_be_fetched_or_cached(tmp_path):
    total = hashlib.sha256(b'weights').hexdigest()
    path = tmp_path / f'retinanet-{total[:8]}.pth'
    recipe = Loaded(path=path, address=f'https://example.org/{path.name}')
    for content in (None, b'of another sum'):
        if content:
            path.write_bytes(content)
        (one,) = doctor.check_weights(recipe)
        assert one.state == 'warn' and one.found == f'not here yet: https://example.org/{path.name}'
        assert f'`mtpd run` fetches them to {tmp_path}' in one.fix
    path.write_bytes(b'weights')
    (one,) = doctor.check_weights(recipe)
    assert one.state == 'ok' and f'sha256 {total[:8]}' in one.found


def test_a_recipe_whose_detectors_do_not_fit_is_a_failed_check(tmp_path, tiny_coco):
    """The shipped detectors know ten digits; the data set has two classes."""
    data = tiny_coco(tmp_path / 'coco')
    failed = [
        one
        for one in doctor.check_recipe(
            doctor.DEFAULT_RECIPE, {'data.root': str(data)}, tmp_path / 'run'
        )
        if one.state == 'fail'
    ]
    assert len(failed) == 3 and not (tmp_path / 'run').exists()
    assert 'student: ' in failed[0].found and 'r101: ' in failed[1].found
    assert 'it has 10 classes (0, 1, 2, ...)' in failed[0].found
