"""Which device 'auto' is where there is a GPU: mmcv's ops decide, and what they lack is said.

torch's GPU is made up; that the ops really run on one is `tests/install/test_ops.py`, marked gpu.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mtpd.engine import loop
from mtpd.errors import RecipeError
from mtpd.install import ops
from mtpd.pipeline import doctor
from mtpd.runtime import distributed, gpu_ops
from mtpd.utils import machine

# isort: split
from mmcv import _ext

SOURCE = Path('recipe.py')
cpu_ops = pytest.mark.skipif(
    _ext.get_compiling_cuda_version() != 'not available', reason='the ops are CUDA ops'
)


@pytest.fixture
def gpu(monkeypatch):
    """torch sees an A100, and nothing is remembered of before."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'NVIDIA A100')
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'SLURM_STEP_NUM_TASKS'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(gpu_ops.REPORTED_VARIABLE, '')
    gpu_ops.gpu_obstacle.cache_clear()
    yield
    gpu_ops.gpu_obstacle.cache_clear()


@pytest.fixture
def cuda_ops(monkeypatch, tmp_path):
    """The ops say that they were built with CUDA; returns what `install-ops` notes of their architectures."""
    library = SimpleNamespace(get_compiling_cuda_version=lambda: '13.0')
    monkeypatch.setattr(gpu_ops, '_ext', library)
    monkeypatch.setattr(ops, 'marker_file', lambda: tmp_path / 'marker.json')

    def note(architectures: str) -> None:
        marker = {
            'cuda': ['13.0', architectures],
            'extension': ops.file_fingerprint(ops.find_extension()),
        }
        ops.marker_file().write_text(json.dumps(marker))

    return note


@cpu_ops
def test_auto_is_the_cpu_where_the_ops_are_for_the_cpu_only(gpu, capsys):
    assert loop.choose_device('auto', SOURCE) == 'cpu'
    assert loop.choose_device('auto', SOURCE) == 'cpu'
    out, err = capsys.readouterr()
    assert out == ''  # numbers and JSON are for standard output
    (line,) = err.splitlines()
    assert line.startswith("device auto takes the CPU: mmcv's ops are built for the CPU only")
    assert '`mtpd install-ops`' in line


@cpu_ops
def test_the_line_says_why_there_are_no_cuda_ops(gpu, monkeypatch, capsys):
    monkeypatch.setattr(
        ops, 'recorded_target', lambda: (None, None, 'pip failed. Mend the network')
    )
    loop.choose_device('auto', SOURCE)
    assert capsys.readouterr().err.endswith('The last build failed: pip failed.\n')


@cpu_ops
def test_cuda_is_refused_where_the_ops_are_for_the_cpu_only(gpu):
    with pytest.raises(RecipeError) as caught:
        loop.choose_device('cuda', SOURCE, 'runtime.device')
    message = str(caught.value)
    assert 'runtime.device is cuda' in message and '`mtpd install-ops`' in message
    assert loop.choose_device('cpu', SOURCE) == 'cpu'


@cpu_ops
def test_several_gpus_are_refused_where_the_ops_are_for_the_cpu_only(gpu):
    with pytest.raises(RecipeError, match='mtpd install-ops'):
        distributed.process_count(2, 'auto', SOURCE)
    assert distributed.process_count(2, 'cpu', SOURCE) == 2


def test_the_gpu_is_taken_where_the_ops_are_built_for_it(gpu, cuda_ops, capsys):
    cuda_ops('8.0;9.0')
    assert loop.choose_device('auto', SOURCE) == loop.choose_device('cuda', SOURCE) == 'cuda'
    assert distributed.process_count(2, 'auto', SOURCE) == 2
    assert capsys.readouterr().err == ''


def test_ops_whose_architectures_nobody_noted_are_taken(gpu, cuda_ops):
    assert loop.choose_device('auto', SOURCE) == 'cuda'


def test_ops_for_another_gpu_are_not_used_on_this_one(gpu, cuda_ops, capsys):
    cuda_ops('9.0')
    assert loop.choose_device('auto', SOURCE) == 'cpu'
    line = capsys.readouterr().err
    for words in ('architecture 9.0', 'NVIDIA A100 is of 8.0', '`mtpd install-ops`'):
        assert words in line
    with pytest.raises(RecipeError, match='mtpd install-ops'):
        loop.choose_device('cuda', SOURCE)


@pytest.mark.parametrize(
    ('architectures', 'capability', 'runs'),
    [  # CUDA C++ Programming Guide, binary compatibility and PTX compatibility
        ('9.0', (9, 0), True),
        ('8.0', (8, 6), True),
        ('8.6', (8, 0), False),
        ('8.0', (9, 0), False),
        ('9.0', (8, 0), False),
        ('7.5;9.0', (9, 0), True),
        ('8.0+PTX', (9, 0), True),
        ('9.0+PTX', (8, 0), False),
        ('9.0a', (9, 0), True),
        ('9.0a', (9, 1), False),
        ('12.0', (12, 1), True),
        ('8.0;10.0+PTX', (12, 0), True),
    ],
)
def test_gpus_that_code_for_an_architecture_runs_on(architectures, capability, runs):
    assert machine.supports_capability(architectures, capability) is runs


# What `mtpd doctor` says of it


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """nvidia-smi lists an A100, and torch is a build for CUDA."""
    program = tmp_path / 'nvidia-smi'
    program.write_text('#!/bin/sh\necho "NVIDIA A100, 81920 MiB, 8.0"\n')
    program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
    torch_cuda = machine.Torch('2.13.0+cu130', '13.0', Path('/nowhere/torch'))
    monkeypatch.setattr(machine, 'find_torch', lambda: torch_cuda)


def self_test_result(**changes) -> dict:
    usual = {'cuda': None, 'device': 'cpu', 'gpu': None, 'obstacle': None, 'ops': ['nms']}
    return usual | changes


def test_doctor_names_the_device_on_which_the_ops_were_tested(monkeypatch):
    gpu = self_test_result(cuda='13.0', device='cuda', gpu='NVIDIA A100', ops=['nms', 'focal_loss'])
    monkeypatch.setattr(ops, 'self_test', lambda: gpu)
    (one,) = doctor.check_ops()
    assert one.state == 'ok'
    assert 'CUDA 13.0 ops: nms, focal_loss correct on the NVIDIA A100' in one.found


def test_doctor_says_why_auto_is_the_cpu(monkeypatch, nvidia_smi):
    lacking = self_test_result(
        gpu='NVIDIA A100', obstacle='the ops are for the CPU: run `mtpd install-ops`'
    )
    monkeypatch.setattr(ops, 'self_test', lambda: lacking)
    (one,) = doctor.check_ops()
    assert one.state == 'warn' and 'correct on the CPU' in one.found
    assert '`auto` takes the CPU' in one.fix and '`mtpd install-ops`' in one.fix


def test_doctor_says_that_torch_does_not_see_the_gpu(monkeypatch, nvidia_smi):
    monkeypatch.setattr(ops, 'self_test', self_test_result)
    (one,) = doctor.check_ops()
    assert one.state == 'warn'
    assert 'too old for CUDA 13.0' in one.fix and 'CUDA_VISIBLE_DEVICES' in one.fix
