"""`mtpd install-ops`: which ops are chosen, kept, cached and refused, and when CPU ops take the place of CUDA ops."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from helpers.toolchain import CPU, CUDA, H200
from mtpd.errors import MtpdError
from mtpd.install import build, nvcc, ops
from mtpd.install.build import Target
from mtpd.utils import machine

# Another mmcv or mmdet that Python would take


@pytest.mark.long
def test_the_installed_ops_are_tried_whatever_the_working_directory_has(other_package, monkeypatch):
    monkeypatch.chdir(other_package('mmcv', '2.1.0'))
    monkeypatch.setattr(sys, 'path', [folder for folder in sys.path if folder != str(Path.cwd())])
    assert 'cuda' in ops.self_test(full=False)


def test_another_mmcv_on_pythonpath_is_named_and_nothing_is_built(other_package, monkeypatch):
    folder = other_package('mmcv', '2.1.0')
    monkeypatch.setenv('PYTHONPATH', f'{folder}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    for refused in (lambda: ops.self_test(full=False), ops.refuse_plain_mmcv):
        with pytest.raises(MtpdError, match=rf'mmcv is 2\.1\.0.* Take {folder} out') as caught:
            refused()
        assert '--rebuild' not in str(caught.value)


@pytest.mark.long
def test_the_ops_need_no_mmdet(other_package, monkeypatch):
    folder = other_package('mmdet', '3.3.0')
    monkeypatch.setenv('PYTHONPATH', f'{folder}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    assert 'cuda' in ops.self_test(full=False)


# What to build


@pytest.mark.parametrize(
    ('torch', 'release', 'gpus', 'reason', 'idle'),
    [
        (CPU, '13.0', H200, 'without CUDA', False),
        (CUDA, None, H200, 'no nvcc found', True),
        (CUDA, '12.8', H200, 'of CUDA 12.8, torch of CUDA 13.0', True),
        (CUDA, '13.0', '', 'no NVIDIA GPU', False),
    ],
)
def test_cpu_ops_where_cuda_ops_cannot_be(tools, torch, release, gpus, reason, idle):
    """The torch here came without CUDA's headers, so pip's nvcc would not do."""
    tools(release, gpus)
    target = ops.choose_target(torch)
    assert target.ops == 'CPU'
    assert reason in target.reason
    assert target.idle_gpu is idle
    assert not idle or nvcc.FROM_CONDA in target.reason


def test_cuda_ops_for_the_gpus_that_are_here(tools):
    tools('13.1', H200 + '\nNVIDIA A100, 81920 MiB, 8.0\n' + H200)
    target = ops.choose_target(CUDA)
    assert (target.cuda, target.arch) == ('13.0', '8.0;9.0')
    assert target.ops == 'CUDA 13.0 (8.0;9.0)'


def test_cuda_ops_for_another_gpu(tools):
    tools('13.0')
    assert ops.choose_target(CUDA, '8.0 9.0+PTX').arch == '8.0;9.0+PTX'
    assert ops.choose_target(CUDA, 'cpu').cuda is None


@pytest.mark.parametrize(
    ('torch', 'release', 'arch', 'message'),
    [
        (CPU, '13.0', '9.0', 'built without CUDA'),
        (CUDA, None, '9.0', 'no nvcc'),
        (CUDA, '12.8', '9.0', 'of CUDA 12.8'),
        (CUDA, '13.0', 'sm_90', 'not an architecture'),
    ],
)
def test_cuda_ops_asked_for_in_vain(tools, torch, release, arch, message):
    tools(release)
    with pytest.raises(MtpdError, match=message):
        ops.choose_target(torch, arch)


def test_key_tells_everything_apart_that_a_wheel_depends_on(monkeypatch):
    keys = {
        ops.wheel_key(CPU, Target('')),
        ops.wheel_key(CPU._replace(version='2.12.0+cpu'), Target('')),
        ops.wheel_key(CUDA, Target('')),
        ops.wheel_key(CUDA, Target('', '13.0', '9.0')),
        ops.wheel_key(CUDA, Target('', '13.0', '8.0;9.0')),
    }
    monkeypatch.setattr(ops.sysconfig, 'get_platform', lambda: 'linux-aarch64')
    keys.add(ops.wheel_key(CPU, Target('')))
    assert len(keys) == 6
    assert not any(set(key) & set('/;: ') for key in keys)


# The installed ops


def test_installed_ops_give_known_values():
    result = ops.self_test()
    assert result['cuda'] in (None, machine.find_torch().cuda)
    assert {'nms', 'roi_align', 'deform_conv'} <= set(result['ops'])


@pytest.mark.gpu
def test_ops_on_the_gpu_are_compared_with_those_on_the_cpu():
    """The device machine's ops have to be CUDA ops for its GPU; the test runs them there."""
    result = ops.self_test()
    assert (result['device'], result['obstacle']) == ('cuda', None)
    assert 'focal_loss' in result['ops']


def test_what_works_is_kept(marked):
    ops.write_marker(CPU, Target(''))
    assert ops.kept_ops(CPU, Target(''), True) == {'action': 'kept', 'ops': 'CPU'}
    assert marked == [False]


def test_ops_for_another_torch_are_not_kept(marked):
    ops.write_marker(CPU._replace(version='2.12.0+cpu'), Target(''))
    assert ops.kept_ops(CPU, Target(''), True) == {}


def test_cpu_ops_are_not_kept_where_cuda_ops_can_be(marked):
    ops.write_marker(CUDA, Target(''))
    assert ops.kept_ops(CUDA, Target('', '13.0', '9.0'), True) == {}


def test_cuda_ops_stay_on_a_machine_without_gpu_unless_cpu_ops_are_asked_for(marked):
    ops.write_marker(CUDA, Target('', '13.0', '9.0'))
    assert ops.kept_ops(CUDA, Target('no GPU'), keep_cuda=True)['ops'] == 'CUDA 13.0 (9.0)'
    assert ops.kept_ops(CUDA, Target('asked for'), keep_cuda=False) == {}


def test_ops_of_unknown_origin_are_tried_once(marked):
    for _ in range(2):
        assert ops.kept_ops(CPU, Target(''), True)['action'] == 'kept'
    assert marked == [True, False, False]  # tried in full, then as any other


def test_broken_ops_are_not_kept(marked, monkeypatch):
    ops.write_marker(CPU, Target(''))

    def broken(full: bool = True) -> None:
        raise MtpdError('undefined symbol')

    monkeypatch.setattr(ops, 'self_test', broken)
    assert ops.kept_ops(CPU, Target(''), True) == {}


# Wheels


def test_wheel_is_built_once_and_cached(bench, tmp_path):
    assert ops.install_wheel(CPU, Target(''), False, print) == 'built'
    assert ops.install_wheel(CPU, Target(''), False, print) == 'installed'
    assert ops.install_wheel(CPU, Target(''), True, print) == 'built'
    assert len({*bench}) == 1
    assert bench[0].parent == tmp_path / 'cache' / 'wheels' / ops.wheel_key(CPU, Target(''))
    assert not list((tmp_path / 'cache').glob('build-*'))


def test_damaged_cached_wheel_is_built_again(bench):
    ops.install_wheel(CPU, Target(''), False, print)
    bench[0].write_bytes(b'half a wheel')
    shown = []
    assert ops.install_wheel(CPU, Target(''), False, shown.append) == 'built'
    assert 'building another' in shown[0]
    build.check_wheel(bench[-1])


def test_failed_build_leaves_nothing_in_the_cache(bench, monkeypatch, tmp_path):
    def fail(target, torch, work, log, echo):
        (work / 'half.whl').write_text('half')
        raise MtpdError('no')

    monkeypatch.setattr(build, 'build_wheel', fail)
    with pytest.raises(MtpdError):
        ops.install_wheel(CPU, Target(''), False, print)
    assert not list((tmp_path / 'cache').rglob('*.whl'))
    assert not list((tmp_path / 'cache').glob('build-*'))


def test_unwritable_cache_is_one_message(bench, monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    monkeypatch.setenv('MTPD_CACHE', str(tmp_path / 'file'))
    with pytest.raises(MtpdError, match='Set MTPD_CACHE'):
        ops.install_wheel(CPU, Target(''), False, print)


# CPU ops in the place of CUDA ops


@pytest.fixture
def gpu_machine(tools, bench, with_headers, index, monkeypatch):
    """A machine with a GPU, pip's torch for CUDA, no nvcc, and pip's index as `index` fills it."""
    tools(None, H200)
    os.environ['PATH'] += f'{os.pathsep}/usr/bin{os.pathsep}/bin'
    monkeypatch.setattr(machine, 'find_torch', lambda: with_headers)
    return with_headers


def test_cuda_ops_with_fetched_nvcc_for_the_gpu_that_is_here(gpu_machine, index, monkeypatch):
    index('13.0')
    result = ops.install_ops(echo=print)
    assert (result['action'], result['ops']) == ('built', 'CUDA 13.0 (9.0)')
    assert result['warning'] is None
    assert ops.recorded_target() == ('13.0', '9.0', None)


def test_cpu_ops_take_the_place_of_cuda_ops_that_cannot_be_built(gpu_machine, index):
    lines = []
    result = ops.install_ops(echo=lines.append)
    assert result['ops'] == 'CPU'
    (warning,) = [line for line in lines if line.startswith('Warning: ')]
    for words in ('`auto` takes the CPU', 'could not fetch nvcc', '`mtpd install-ops` tries again'):
        assert words in warning
    cuda, _, reason = ops.recorded_target()
    assert cuda is None and 'could not fetch nvcc' in reason

    lines.clear()
    again = ops.install_ops(retry=False, echo=lines.append)
    assert (again['action'], again['warning']) == ('kept', result['warning'])
    assert not [line for line in lines if 'Fetching' in line]

    index('13.0')
    assert ops.install_ops(retry=False, echo=print)['ops'] == 'CPU'
    mended = ops.install_ops(echo=print)
    assert (mended['action'], mended['ops']) == ('built', 'CUDA 13.0 (9.0)')
    assert ops.recorded_target() == ('13.0', '9.0', None)
    assert ops.install_ops(retry=False, echo=print)['action'] == 'kept'


def test_a_failed_compilation_is_named_with_its_log(gpu_machine, index, monkeypatch):
    index('13.0')
    build_cpu_ops = build.build_wheel

    def compile_ops(target, torch, work, log, echo):
        if target.cuda:
            text = 'x.cpp:1:10: fatal error: cusparse.h: No such file or directory'
            raise MtpdError(build.explain_failure(text, log, 1))
        return build_cpu_ops(target, torch, work, log, echo)

    monkeypatch.setattr(build, 'build_wheel', compile_ops)
    lines = []
    warning = ops.install_ops(echo=lines.append)['warning']
    assert 'A CUDA header is missing' in warning and 'cuda13.0-sm9.0' in warning
    assert warning.count('\n') == 0
    assert any('fatal error: cusparse.h' in line for line in lines)


def test_cuda_ops_for_other_gpus_are_not_replaced_by_cpu_ops(gpu_machine, index):
    """They run on the CPU as well, and another machine with this environment may be using them."""
    ops.write_marker(gpu_machine, Target('', '13.0', '8.0'))
    result = ops.install_ops(echo=print)
    assert (result['action'], result['ops']) == ('kept', 'CUDA 13.0 (8.0)')
    assert '`auto` takes the CPU' in result['warning']
    assert ops.recorded_target()[:2] == ('13.0', '8.0')


def test_cuda_ops_for_this_gpu_stay_where_they_could_not_be_built(gpu_machine, monkeypatch):
    """As on a compute node without nvcc, after a build on the login node; the torch has no headers of CUDA."""
    monkeypatch.setattr(machine, 'find_torch', lambda: CUDA)
    ops.write_marker(CUDA, Target('', '13.0', '8.0;9.0'))
    result = ops.install_ops(echo=print)
    assert (result['action'], result['ops']) == ('kept', 'CUDA 13.0 (8.0;9.0)')
    assert result['warning'] is None
    assert ops.recorded_target() == ('13.0', '8.0;9.0', None)


def test_cuda_ops_that_were_asked_for_are_an_error_when_they_fail(gpu_machine, index):
    with pytest.raises(MtpdError, match='could not fetch nvcc'):
        ops.install_ops('9.0', echo=print)
