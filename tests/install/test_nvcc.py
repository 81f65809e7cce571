"""The CUDA compiler: which one is taken, and how pip's is fetched."""

from __future__ import annotations

import os
import subprocess

import pytest

from helpers.toolchain import H200, nvcc_says, program
from mtpd.errors import MtpdError
from mtpd.install import nvcc, ops


def test_nvcc_of_torchs_own_release_comes_first(tools, tmp_path):
    tools('13.1')
    program(tmp_path / 'cuda-13.0' / 'bin' / 'nvcc', nvcc_says('13.0'))
    program(tmp_path / 'cuda' / 'bin' / 'nvcc', nvcc_says('12.8'))
    assert nvcc.find_compiler('13.0')[0] == (tmp_path / 'cuda-13.0' / 'bin' / 'nvcc', '13.0')
    assert nvcc.find_compiler('13.2')[0] == (tmp_path / 'bin' / 'nvcc', '13.1')
    assert nvcc.find_compiler('12.8')[0].home == tmp_path / 'cuda'
    assert nvcc.find_compiler('11.8')[0] is None


@pytest.mark.parametrize('release', [None, '12.8'])
def test_nvcc_is_to_be_fetched_where_none_is_of_torchs_cuda(tools, with_headers, release):
    tools(release, H200)
    target = ops.choose_target(with_headers)
    assert (target.cuda, target.arch, target.nvcc) == ('13.0', '9.0', None)
    assert 'from pip' in target.reason
    assert not (nvcc.cached_home('13.0')).exists()  # choosing fetches nothing


def test_pip_has_no_nvcc_of_cuda_12(tools, with_headers):
    tools(None, H200)
    target = ops.choose_target(with_headers._replace(version='2.8.0+cu128', cuda='12.8'))
    assert target.ops == 'CPU' and target.idle_gpu
    for word in ('not for 12.8', 'CUDA_HOME', 'torch for CUDA 13'):
        assert word in target.reason


# Fetching nvcc. pip runs for real, on packages that a folder holds in the place of PyPI.


def test_fetched_nvcc_runs_links_and_is_there_the_next_time(tools, with_headers, index):
    tools(None)
    os.environ['PATH'] += f'{os.pathsep}/usr/bin{os.pathsep}/bin'
    index('13.2')  # newer, and not torch's
    index('13.0')
    shown = []
    fetched = nvcc.fetch_compiler(with_headers, shown.append)
    assert fetched.release == '13.0'
    assert fetched.home.is_relative_to(nvcc.cache_dir())
    version = subprocess.run([fetched.path, '--version'], capture_output=True, text=True).stdout
    assert 'release 13.0' in version
    for folder in ('lib', 'lib64'):  # what a linker looks for, as -lcudart
        assert (fetched.home / folder / 'libcudart.so').read_text() == 'the library'
    assert {path.stem for path in fetched.home.glob('*.txt')} == {'cccl', 'crt', 'nvvm'}
    assert 'CUDA 13.0' in shown[0] and str(fetched.home.parents[1]) in shown[0]
    assert nvcc.find_compiler('13.0') == (fetched, '')
    assert ops.choose_target(with_headers, '9.0').nvcc == str(fetched.path)
    assert not list(nvcc.cache_dir().glob('build-*'))


def test_nvcc_that_cannot_be_fetched_is_one_message(tools, with_headers, index):
    tools(None)
    with pytest.raises(MtpdError, match=r'pip config list.*CUDA 13\.0 toolkit') as caught:
        nvcc.fetch_compiler(with_headers, print)
    assert 'No matching distribution found for cuda-toolkit' in str(caught.value)
    assert [path for path in nvcc.cache_dir().rglob('*') if path.is_file()] == []


def test_nvcc_that_does_not_run_here_is_refused(tools, with_headers, index):
    tools(None)
    index('13.0', script='echo Illegal instruction >&2; exit 1')
    with pytest.raises(MtpdError, match='does not run on this machine'):
        nvcc.fetch_compiler(with_headers, print)
    assert nvcc.find_compiler('13.0')[0] is None


def test_nvcc_is_not_fetched_without_room(tools, with_headers, index, monkeypatch):
    tools(None)
    index('13.0')
    monkeypatch.setattr(nvcc, 'NVCC_DISK', 10**18)
    with pytest.raises(MtpdError, match=r'GB free.*MTPD_CACHE'):
        nvcc.fetch_compiler(with_headers, print)
    assert not nvcc.cached_home('13.0').exists()
