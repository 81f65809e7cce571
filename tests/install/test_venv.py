"""`make env`'s first half, as far as it goes without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from venv import create

import pytest

from mtpd.install import venv

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ('torch', 'torchvision'),
    [('2.6.0', '0.21.*'), ('2.11.0+cu130', '0.26.*'), ('2.13.0+cpu', '0.28.*')],
)
def test_torchvision_that_belongs_to_a_torch(torch, torchvision):
    assert venv.torchvision_for(torch) == torchvision


def test_other_python_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(venv.sys, 'version_info', (3, 9, 2))
    with pytest.raises(SystemExit) as stopped:
        venv.main(tmp_path / 'venv')
    assert stopped.value.code == 2
    assert 'Python 3.9 is not supported' in capsys.readouterr().err


@pytest.fixture(scope='module')
def bare(tmp_path_factory) -> Path:
    """An empty environment, without pip."""
    folder = tmp_path_factory.mktemp('env') / 'venv'
    create(folder, with_pip=False, symlinks=True)
    return folder


def test_nothing_is_installed_where_nothing_has_changed(bare):
    python = bare / 'bin' / 'python'
    (bare / 'mtpd-env.txt').write_text(venv.requirements_digest(python))
    venv.main(bare)  # without pip, it would end here if it tried
    assert (bare / 'mtpd-env.txt').read_text() == venv.requirements_digest(python)


def test_packages_on_demand_are_installed_once_and_beside_the_pins(bare, monkeypatch, capsys):
    (bare / 'mtpd-env.txt').write_text(venv.requirements_digest(bare / 'bin' / 'python'))
    calls = []
    monkeypatch.setattr(venv, 'pip_install', lambda python, *arguments: calls.append(arguments))
    venv.main(bare, 'docs')
    venv.main(bare, 'docs')
    (arguments,) = calls
    assert arguments[-1] == f'--requirement={venv.REQUIREMENTS / "docs.txt"}'
    assert f'--constraint={venv.REQUIREMENTS / "base.txt"}' in arguments
    with pytest.raises(SystemExit):
        venv.main(bare, 'games')
    assert 'only: docs' in capsys.readouterr().err


def test_a_changed_pin_or_torch_is_noticed(bare, monkeypatch, tmp_path):
    python = bare / 'bin' / 'python'
    before = venv.requirements_digest(python)
    (tmp_path / 'base.txt').write_text('numpy==1.0\n')
    with monkeypatch.context() as patch:
        patch.setattr(venv, 'REQUIREMENTS', tmp_path)
        assert venv.requirements_digest(python) != before
    add_torch(bare, '2.12.0')
    assert venv.requirements_digest(python) != before


def test_failing_pip_ends_with_a_message_and_no_stamp(bare, capfd):
    (bare / 'mtpd-env.txt').write_text('older\n')
    with pytest.raises(SystemExit) as stopped:
        venv.main(bare)
    assert stopped.value.code == 2
    assert 'repeat `make env`' in capfd.readouterr().err
    assert not (bare / 'mtpd-env.txt').exists()


def test_too_old_torch_is_refused(bare, capsys):
    add_torch(bare, '2.5.1')
    with pytest.raises(SystemExit):
        venv.main(bare)
    assert 'torch 2.5.1 is too old' in capsys.readouterr().err


def add_torch(folder: Path, version: str) -> None:
    site = next((folder / 'lib').glob('python3*')) / 'site-packages'
    for old in site.glob('torch-*.dist-info'):
        old.joinpath('METADATA').unlink()
        old.rmdir()
    info = site / f'torch-{version}.dist-info'
    info.mkdir(parents=True)
    info.joinpath('METADATA').write_text(
        f'Metadata-Version: 2.1\nName: torch\nVersion: {version}\n'
    )


def test_it_needs_only_the_standard_library():
    code = 'import mtpd.install.venv, sys; print([m for m in ("torch", "numpy", "click", "psutil") if m in sys.modules])'
    done = subprocess.run(
        [sys.executable, '-S', '-c', code],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == '[]'


def test_the_package_is_imported_beside_a_checkout_of_its_name(tmp_path):
    """In the folder above a checkout called mtpd, `import mtpd` is the package in it and no empty one."""
    checkout, site = tmp_path / 'mtpd', tmp_path / 'site'
    package = checkout / 'mtpd'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text('')
    for name in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, checkout)
    shutil.copytree(ROOT / 'requirements', checkout / 'requirements')
    install = f'from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})'
    subprocess.run([sys.executable, '-c', install], cwd=checkout, capture_output=True, check=True)
    with zipfile.ZipFile(next(tmp_path.glob('*.whl'))) as wheel:
        wheel.extractall(site)
    code = f'import site; site.addsitedir({str(site)!r}); import mtpd; print(mtpd.__file__)'
    done = subprocess.run(
        [sys.executable, '-I', '-S', '-c', f"import sys; sys.path.insert(0, ''); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(package / '__init__.py')
