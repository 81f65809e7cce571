"""Building mmcv-full's wheel: tools, environment, progress, the shared header, and what a failed build says."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from helpers.toolchain import CPU, CUDA, make_wheel, one_by_one
from mtpd.errors import MtpdError
from mtpd.install import build, cxx
from mtpd.install.build import Target
from mtpd.utils import machine

gnu = pytest.mark.skipif(not shutil.which('g++'), reason='needs g++')


def test_all_missing_tools_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    monkeypatch.setattr(build, 'BUILD_DISK', 10**18)
    monkeypatch.setattr(build.sysconfig, 'get_path', lambda name: str(tmp_path))
    with pytest.raises(MtpdError) as caught:
        build.check_tools(tmp_path)
    for word in ('no-such-compiler', 'apt install g++', 'python3-dev', 'MTPD_CACHE'):
        assert word in str(caught.value)


def test_jobs_by_cores_and_memory(monkeypatch):
    monkeypatch.delenv('MAX_JOBS', raising=False)
    monkeypatch.setattr(machine, 'cpu_cores', lambda: 8)
    for memory, jobs in ((64, 8), (7, 3), (1, 1)):
        monkeypatch.setattr(machine, 'free_memory', lambda memory=memory: memory * machine.GIB)
        assert build.job_count() == jobs
    monkeypatch.setattr(machine, 'free_memory', lambda: 7 * machine.GIB)
    assert build.job_count(build.MEMORY_PER_CUDA_JOB) == 2
    monkeypatch.setenv('MAX_JOBS', '5')
    assert build.job_count() == 5


def test_environment_of_a_cpu_build_hides_the_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv('MMCV_WITH_TRT', '1')
    monkeypatch.setenv('CFLAGS', '-g')
    env = build.build_environment(Target(''), CUDA, ['/bin/echo', 'clang'], tmp_path, 3)
    assert env['CUDA_VISIBLE_DEVICES'] == ''
    assert env['CFLAGS'].split()[-2:] == ['-g0', '-w']
    assert (env['MMCV_WITH_OPS'], env['MAX_JOBS'], env['CXX']) == ('1', '3', '/bin/echo clang')
    assert 'MMCV_WITH_TRT' not in env
    assert 'FORCE_CUDA' not in env


def test_environment_of_a_cuda_build(tmp_path):
    headers = tmp_path / 'nvidia' / 'cu13' / 'include'
    headers.mkdir(parents=True)
    torch = CUDA._replace(folder=tmp_path / 'torch')
    target = Target('', '13.0', '9.0', '/opt/cuda/bin/nvcc')
    env = build.build_environment(target, torch, ['/bin/echo', 'clang'], tmp_path, 1)
    assert (env['FORCE_CUDA'], env['TORCH_CUDA_ARCH_LIST']) == ('1', '9.0')
    assert env['CUDA_HOME'] == '/opt/cuda'
    assert env['CPATH'].split(os.pathsep)[0] == str(headers)


def test_conda_keeps_the_headers_of_its_nvcc_elsewhere(tmp_path):
    headers = tmp_path / 'targets' / 'x86_64-linux' / 'include'
    headers.mkdir(parents=True)
    target = Target('', '12.9', '9.0', str(tmp_path / 'bin' / 'nvcc'))
    env = build.build_environment(target, CUDA, ['/bin/echo', 'clang'], tmp_path, 1)
    assert str(headers) in env['CPATH'].split(os.pathsep)


@pytest.mark.parametrize(('version', 'standard'), [('2.13.0+cpu', '17'), ('2.14.1+cu130', '20')])
def test_standard_of_cpp_that_torchs_headers_ask_for(tmp_path, version, standard):
    setup = tmp_path / 'setup.py'
    setup.write_text("extra_compile_args['cxx'] = ['-std=c++17']\n")
    build.choose_cxx_standard(setup, CPU._replace(version=version))
    assert setup.read_text() == f"extra_compile_args['cxx'] = ['-std=c++{standard}']\n"


def test_progress_shows_the_last_file(capsys):
    lines = ['running build_ext', *(f'[{n}/73] c++ ...' for n in range(1, 74)), 'done']
    shown = []
    progress = build.BuildProgress(shown.append)
    for line in lines:
        progress.show_line(line)
    assert shown == ['  73 of 73 files, about 0 s left']


def test_time_left_knows_that_cuda_files_take_longer(monkeypatch):
    """10 C++ files of 5 seconds each, then 5 CUDA files of 40 seconds each."""
    times = [0.0, *(5.0 * n for n in range(1, 11)), *(50 + 40.0 * n for n in range(1, 6))]
    monkeypatch.setattr(build.time, 'monotonic', one_by_one(*times))
    names = [f'{n}.cpp' for n in range(10)] + [f'{n}.cu' for n in range(5)]
    lines = [f'[{n}/15] c++ -I/nvidia/cu13 -c {name}' for n, name in enumerate(names, 1)]
    shown = []
    progress = build.BuildProgress(shown.append, cuda_files=5)
    for line in lines:
        progress.show_line(line)
    assert shown == [
        f'  7 of 15 files, {build.time_left(3 * 5 + 5 * 5 * build.CUDA_FILE_COST)}',
        f'  11 of 15 files, {build.time_left(4 * 40)}',
        f'  12 of 15 files, {build.time_left(3 * 40)}',
        f'  13 of 15 files, {build.time_left(2 * 40)}',
        f'  14 of 15 files, {build.time_left(40)}',
        '  15 of 15 files, about 0 s left',
    ]


@pytest.mark.parametrize(('seconds', 'text'), [(30, 'about 30 s left'), (150, 'about 2 min left')])
def test_time_left(seconds, text):
    assert build.time_left(seconds) == text


# The shared header


def test_flags_are_what_is_left_of_a_compile_command():
    command = (
        '-MMD -MF /b/x.o.d -O2 -g0 -fPIC -I/inc -c -c /s/x.cpp -o /b/x.o -std=c++17 -DNAME=_ext'
    )
    assert cxx.flags_only(command.split()) == [
        '-O2',
        '-g0',
        '-fPIC',
        '-I/inc',
        '-std=c++17',
        '-DNAME=_ext',
    ]


@gnu
def test_files_share_one_precompiled_header(tmp_path):
    compiler = build.compiler_command(['g++'], tmp_path, header='#include <vector>\n')
    for name in ('a', 'b'):
        source = tmp_path / f'{name}.cpp'
        source.write_text(
            f'#include <vector>\nint {name}() {{ return std::vector<int>(2).size(); }}\n'
        )
        command = [compiler, '-MMD', '-MF', f'{source}.d', '-O1', '-H', '-c', str(source)]
        done = subprocess.run(
            [*command, '-o', f'{source}.o'], capture_output=True, text=True, check=True
        )
        used = [line for line in done.stderr.splitlines() if line.startswith('! ')]
        assert used == [f'! {tmp_path}/shared.hpp.gch']  # gcc -H: a valid precompiled header


@gnu
def test_header_that_cannot_be_precompiled_stops_nothing(tmp_path):
    compiler = build.compiler_command(['g++'], tmp_path, header='#include <no/such/header>\n')
    (tmp_path / 'a.cpp').write_text('int a() { return 1; }\n')
    command = [compiler, '-c', str(tmp_path / 'a.cpp'), '-o', str(tmp_path / 'a.o')]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / 'a.o').is_file()


# Wheels


def test_wheel_without_ops_is_refused(tmp_path):
    whole = make_wheel(tmp_path, 'mmcv/__init__.py', 'mmcv/_ext.cpython-311-x86_64-linux-gnu.so')
    assert build.check_wheel(whole) == whole
    with pytest.raises(MtpdError, match='no compiled ops'):
        build.check_wheel(make_wheel(tmp_path, 'mmcv/__init__.py', 'mmcv/ops/_ext.py'))


def test_damaged_wheel_is_refused(tmp_path):
    wheel = make_wheel(tmp_path, 'mmcv/_ext.so')
    whole = wheel.read_bytes()
    wheel.write_bytes(whole.replace(b'content', b'c0ntent'))
    with pytest.raises(MtpdError, match='damaged'):
        build.check_wheel(wheel)
    wheel.write_bytes(whole[:40])
    with pytest.raises(MtpdError, match='damaged'):
        build.check_wheel(wheel)


# Failing


@gnu
def test_failing_compiler_keeps_its_log_and_names_the_cause(tmp_path):
    (tmp_path / 'a.cpp').write_text('#include <Python.h>\n')
    log = tmp_path / 'build.log'
    log.write_text('')
    with pytest.raises(MtpdError) as caught:
        build.run_build(
            ['g++', '-c', str(tmp_path / 'a.cpp')], log, env={**os.environ, 'LC_ALL': 'C'}
        )
    message = str(caught.value)
    assert 'fatal error: Python.h: No such file' in message
    assert 'python3-dev' in message
    assert str(log) in message
    assert 'Python.h' in log.read_text()


CASES = {
    'C++ compiler was found. Install one': '/bin/sh: 1: c++: not found\nninja: build stopped: subcommand failed.',
    'apt install g++': "FileNotFoundError: [Errno 2] No such file or directory: 'g++'",
    'ran out of memory': 'c++: fatal error: Killed signal terminated program cc1plus\ncompilation terminated.',
    'out of memory': 'virtual memory exhausted: Cannot allocate memory',
    'disk is full': '/tmp/ccX.s: fatal error: error writing to x.s: No space left on device',
    'CUDA 12.1, torch was built with 13.0': (
        'RuntimeError:\nThe detected CUDA version (12.1) mismatches the version that was used to compile\n'
        'PyTorch (13.0). Please make sure to use the same CUDA versions.'
    ),
    'too new for this CUDA': 'host_config.h:132:2: error: #error -- unsupported GNU version! gcc versions later',
    'architecture compute_120': "nvcc fatal   : Unsupported gpu architecture 'compute_120'",
    'CUDA header': 'ATen/cuda/CUDAContext.h:5:10: fatal error: cusparse.h: No such file or directory',
    'header files': 'x.cpp:1:10: fatal error: Python.h: No such file or directory',
    'too old': 'c++: error: unrecognized command line option ‘-std=c++17’; did you mean ‘-std=c++14’?',
    'could not be downloaded': (
        'ERROR: Could not find a version that satisfies the requirement mmcv-full==9.9 (from versions: none)'
    ),
    'Check the network': (
        'WARNING: Retrying after connection broken by NewConnectionError: Temporary failure in name resolution'
    ),
    'not the pinned one': 'ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.',
    'setuptools older than 81': "ModuleNotFoundError: No module named 'pkg_resources'",
    'package wheel': "ModuleNotFoundError: No module named 'wheel'",
    'No known cause': 'error: something quite new',
}


@pytest.mark.parametrize('cause', CASES)
def test_likely_cause(cause):
    assert cause in build.likely_cause('[3/73] c++ -O2 ...\n' + CASES[cause] + '\n')


def test_last_errors_are_those_that_say_something():
    log = """[1/73] c++ a.cpp
x.cpp:3:10: fatal error: Python.h: No such file or directory
compilation terminated.
FAILED: x.o
virtual memory exhausted: Cannot allocate memory
virtual memory exhausted: Cannot allocate memory
ninja: build stopped: subcommand failed.
    raise RuntimeError(message) from e
subprocess.CalledProcessError: Command '['ninja', '-v']' returned non-zero exit status 1.
RuntimeError: Error compiling objects for extension
"""
    assert build.last_errors(log) == [
        'x.cpp:3:10: fatal error: Python.h: No such file or directory',
        'virtual memory exhausted: Cannot allocate memory',
    ]


def test_each_line_of_a_command_goes_to_the_log_and_to_the_watcher(tmp_path):
    log, lines = tmp_path / 'build.log', []
    log.write_text('before\n')
    build.run_build(['sh', '-c', 'echo out; echo err >&2'], log, lines.append)
    assert sorted(lines) == ['err\n', 'out\n']
    assert log.read_text() == 'before\n' + ''.join(lines)


def test_a_command_ends_where_its_watcher_fails(tmp_path):
    log = tmp_path / 'build.log'
    log.write_text('')

    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.run_build(['sh', '-c', 'echo out; exec sleep 600'], log, interrupt)
