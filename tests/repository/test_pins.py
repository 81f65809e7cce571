"""The pins stand in requirements/ alone; what repeats them agrees."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from mtpd.install import build, nvcc, venv
from mtpd.utils import machine

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith('#')]
    return dict(line.split(' ')[0].split('==') for line in lines)


@pytest.mark.parametrize('name', ['torch', 'base', 'dev', 'onnx', 'sweep', 'docs', 'mmcv'])
def test_every_requirement_is_pinned_exactly(name):
    versions = pins(name)
    assert versions
    assert all(re.fullmatch(r'[\d.]+', version) for version in versions.values())


def test_conda_environment_repeats_the_pins():
    listed = yaml.safe_load((ROOT / 'environment.yml').read_text())['dependencies']
    conda = [entry for entry in listed if isinstance(entry, str)]
    (with_pip,) = [entry['pip'] for entry in listed if isinstance(entry, dict)]
    torch = pins('torch')
    assert f'pytorch={torch["torch"]}' in conda
    assert f'torchvision={torch["torchvision"]}' in conda
    assert {'python=3.11', 'cxx-compiler', 'ninja', 'setuptools<81'} <= set(conda)
    by_conda = {'ninja', 'setuptools'}
    wanted = {
        name: version
        for name, version in (pins('base') | pins('dev') | pins('onnx') | pins('sweep')).items()
        if name not in by_conda
    }
    assert dict(entry.split('==') for entry in with_pip) == wanted


def test_conda_environment_names_the_compiler_that_a_message_names():
    assert f'#   {nvcc.FROM_CONDA}\n' in (ROOT / 'environment.yml').read_text()


def test_package_reads_the_pins():
    project, dynamic = PROJECT['project'], PROJECT['tool']['setuptools']['dynamic']
    assert set(project['dynamic']) == {'dependencies', 'optional-dependencies'}
    assert dynamic['dependencies'] == {'file': ['requirements/base.txt']}
    assert dynamic['optional-dependencies']['dev'] == {'file': ['requirements/dev.txt']}
    assert dynamic['optional-dependencies']['onnx'] == {'file': ['requirements/onnx.txt']}
    for name in ('sweep', 'docs'):
        wanted = {'file': [f'requirements/{name}.txt']}
        assert dynamic['optional-dependencies'][name] == wanted
    assert project['scripts']['mtpd'] == 'mtpd.cli:main'


def test_mmcv_stands_in_one_place_and_pip_never_builds_it():
    version = pins('mmcv')['mmcv-full']
    assert build.mmcv_version() == version
    for name in ('torch', 'base', 'dev', 'onnx', 'sweep', 'docs'):
        assert not {'mmcv', 'mmcv-full'} & set(pins(name))
    tracked = subprocess.run(
        ['git', 'grep', '-lF', f'mmcv-full=={version}'], cwd=ROOT, capture_output=True, text=True
    )
    assert tracked.stdout.split() in ([], ['requirements/mmcv.txt'])


@pytest.mark.parametrize('name', ['ci', 'pages', 'release'])
def test_workflows_call_what_there_is(name):
    workflow = yaml.safe_load((ROOT / f'.github/workflows/{name}.yml').read_text())
    targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    steps = [step for job in workflow['jobs'].values() for step in job['steps']]
    commands = '\n'.join(step.get('run', '') for step in steps)
    assert set(re.findall(r'^make ([\w-]+)', commands, re.MULTILINE)) <= targets
    pythons = {
        one
        for job in workflow['jobs'].values()
        for one in job.get('strategy', {}).get('matrix', {}).get('python', [])
    }
    assert pythons <= {'.'.join(map(str, version)) for version in venv.SUPPORTED_PYTHON}
    if name == 'release':
        torches = workflow['jobs']['wheel']['strategy']['matrix']['torch']
        assert pins('torch')['torch'] in torches
        assert all(venv.version_numbers(torch) >= venv.OLDEST_TORCH for torch in torches)


def test_setuptools_still_has_pkg_resources():
    assert int(pins('base')['setuptools'].split('.')[0]) < 81


def test_supported_versions_agree():
    assert venv.SUPPORTED_PYTHON == machine.SUPPORTED_PYTHON
    assert venv.OLDEST_TORCH == machine.OLDEST_TORCH
    assert PROJECT['project']['requires-python'] == '>=3.11,<3.13'
    torch = pins('torch')
    assert machine.major_minor(torch['torch']) == machine.TESTED_TORCH['CPU']
    assert torch['torchvision'].startswith(venv.torchvision_for(torch['torch']).removesuffix('*'))
