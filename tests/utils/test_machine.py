"""The versions that the kit runs on, GPUs, and what a run ran on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.toolchain import H200, program
from mtpd.errors import MtpdError
from mtpd.utils import machine


def test_torch_is_found_without_importing_it():
    import torch

    installed = machine.find_torch()
    assert (installed.version, installed.cuda) == (torch.__version__, torch.version.cuda)
    code = 'import sys; from mtpd.utils import machine; machine.find_torch(); print("torch" in sys.modules)'
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout.strip() == 'False', done.stderr


@pytest.mark.parametrize(
    ('version', 'cuda', 'warns'),
    [
        ('2.13.0+cpu', None, False),
        ('2.11.0+cu130', '13.0', False),
        ('2.6.0', None, True),
        ('2.13.0', '13.0', True),
    ],
)
def test_torch_versions(version, cuda, warns):
    warning = machine.check_torch(machine.Torch(version, cuda, Path()))
    assert bool(warning) is warns
    assert not warns or version in warning


@pytest.mark.parametrize('torch', [None, machine.Torch('2.5.1', None, Path())])
def test_missing_or_old_torch_is_refused(torch):
    with pytest.raises(MtpdError, match='make env'):
        machine.check_torch(torch)


@pytest.mark.parametrize('version', [(3, 10), (3, 13)])
def test_other_pythons_are_refused(version):
    with pytest.raises(MtpdError, match=r'3\.11 or 3\.12'):
        machine.check_python(version)


def test_gpus_by_nvidia_smi(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert machine.nvidia_gpus() == []
    program(tmp_path / 'nvidia-smi', f'{H200}\nno such line')
    (gpu,) = machine.nvidia_gpus()
    assert (gpu.name, gpu.memory, gpu.capability) == ('NVIDIA H200', '143771 MiB', '9.0')


def test_the_environment_is_recorded_once_also_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    path = tmp_path / 'environment.json'
    first = machine.write_environment(path, threads=3, note='first')
    assert (first['threads'], first['note'], first['device']) == (3, 'first', 'CPU')
    assert (first['git_commit'], first['git_changed_files']) == (None, 0)
    assert first['torch'] == machine.find_torch().version
    assert machine.write_environment(path, threads=4) == first


def test_a_package_of_another_installation_is_recorded_with_its_folder(monkeypatch, other_package):
    import mmdet

    installed = machine.find_package('mmdet')
    assert installed == (mmdet.__version__, Path(mmdet.__file__).parent, None, '')
    assert machine.describe_environment()['mmdet'] == mmdet.__version__
    folder = other_package('mmdet', mmdet.__version__)
    monkeypatch.setenv('PYTHONPATH', str(folder))
    recorded = machine.describe_environment()['mmdet']
    assert recorded == f'{mmdet.__version__} ({folder}/mmdet, by PYTHONPATH)'


def test_an_editable_package_without_a_pin_is_uninstalled(other_package):
    other_package('mmcv', '1.7.2')
    package = machine.find_package('mmcv')
    assert package.origin == 'an editable installation'
    assert f'{sys.executable} -m pip uninstall mmcv mmcv-full`, then `make env`' in package.remedy


@pytest.mark.parametrize('version', ['2.27.0', '3.3.0', 'none'])
def test_other_releases_of_mmdet_are_refused(version, other_package):
    other_package('mmdet', version)
    with pytest.raises(MtpdError, match=r'the kit needs 2\.28\. Run `.* mmdet==2\.28\.2`'):
        machine.check_mmdet(machine.find_package('mmdet'))
    with pytest.raises(MtpdError, match=r'mmdet is not installed .* mmdet==2\.28\.2`'):
        machine.check_mmdet(None)
