"""`mtpd install-ops`: what is built, what is cached, what is refused, and what is said when it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest

from mtpd.errors import MtpdError
from mtpd.install import build, cxx, nvcc, ops
from mtpd.install.build import Target
from mtpd.runtime import selftest
from mtpd.utils import machine

CPU = machine.Torch('2.13.0+cpu', None, Path('/nowhere/torch'))
CUDA = machine.Torch('2.11.0+cu130', '13.0', Path('/nowhere/torch'))
gnu = pytest.mark.skipif(not shutil.which('g++'), reason='needs g++')


# Versions


def test_torch_is_found_without_importing_it():
    import torch

    found = machine.find_torch()
    assert (found.version, found.cuda) == (torch.__version__, torch.version.cuda)
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


# What to build


@pytest.fixture
def tools(monkeypatch, tmp_path):
    """Puts an nvcc of a release and an nvidia-smi that lists GPUs first on PATH; None: neither."""

    def put(nvcc_release: str | None = None, gpus: str = '') -> None:
        folder = tmp_path / 'bin'
        shutil.rmtree(folder, ignore_errors=True)
        if nvcc_release:
            program(folder / 'nvcc', nvcc_says(nvcc_release))
        if gpus:
            program(folder / 'nvidia-smi', gpus)
        monkeypatch.setenv('PATH', str(folder))

    for name in ('CUDA_HOME', 'CUDA_PATH'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(nvcc, 'USUAL_HOME', tmp_path / 'cuda')
    monkeypatch.setenv('MTPD_CACHE', str(tmp_path / 'cache'))
    return put


def program(path: Path, output: str) -> None:
    """A program that prints `output`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "{output}"\n')
    path.chmod(0o755)


def nvcc_says(release: str) -> str:
    return f'Cuda compilation tools, release {release}, V{release}.88'


@pytest.fixture
def with_headers(tmp_path):
    """A torch of pip's for CUDA 13.0: CUDA's headers lie beside it."""
    headers = tmp_path / 'site-packages' / 'nvidia' / 'cu13' / 'include'
    headers.mkdir(parents=True)
    (headers / 'cusparse.h').touch()
    return CUDA._replace(folder=tmp_path / 'site-packages' / 'torch')


H200 = 'NVIDIA H200, 143771 MiB, 9.0'


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


def test_nvcc_of_torchs_own_release_comes_first(tools, tmp_path):
    tools('13.1')
    program(tmp_path / 'cuda-13.0' / 'bin' / 'nvcc', nvcc_says('13.0'))
    program(tmp_path / 'cuda' / 'bin' / 'nvcc', nvcc_says('12.8'))
    assert nvcc.find_compiler('13.0')[0] == (tmp_path / 'cuda-13.0' / 'bin' / 'nvcc', '13.0')
    assert nvcc.find_compiler('13.2')[0] == (tmp_path / 'bin' / 'nvcc', '13.1')
    assert nvcc.find_compiler('12.8')[0].home == tmp_path / 'cuda'
    assert nvcc.find_compiler('11.8')[0] is None


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


def test_cache_lies_where_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('MTPD_CACHE', raising=False)
    assert ops.cache_dir() == tmp_path / 'mtpd'
    monkeypatch.setenv('MTPD_CACHE', str(tmp_path / 'mine'))
    assert ops.cache_dir() == tmp_path / 'mine'


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


def one_by_one(*results):
    """A function that returns the next of `results`, whatever it is called with."""
    remaining = iter(results)
    return lambda *args: next(remaining)


@pytest.mark.parametrize('name', ['nms', 'roi_align', 'deform_conv2d'])
def test_an_op_that_computes_something_else_is_noticed(monkeypatch, name):
    from mtpd.runtime import compat  # noqa: F401  (before mmcv)

    # isort: split
    import mmcv.ops

    right = getattr(mmcv.ops, name)

    def wrong(*args):
        result = right(*args)
        return (result[0], result[1].flip(0)) if name == 'nms' else result * 1.01

    assert selftest.check_ops('cpu') == selftest.CPU_OPS
    monkeypatch.setattr(mmcv.ops, name, wrong)
    with pytest.raises(SystemExit, match=name.removesuffix('2d')):
        selftest.check_ops('cpu')


def test_what_two_devices_give_is_compared_to_a_thousandth(monkeypatch):
    """On the CPU twice: once as it is, once with each op's last output a hundredth off."""
    from mtpd.runtime import compat  # noqa: F401  (before mmcv)

    right = selftest.random_outputs
    selftest.check_against_cpu('cpu')
    for name in selftest.GPU_OPS:
        results = right('cpu'), right('cpu')
        results[0][name][-1] *= 1.01
        monkeypatch.setattr(selftest, 'random_outputs', one_by_one(*results))
        with pytest.raises(SystemExit, match=rf'{name} \(cuda\) is 1\.0e-02 apart'):
            selftest.check_against_cpu('cuda')
    results[0]['nms'][0] = results[0]['nms'][0][1:]
    monkeypatch.setattr(selftest, 'random_outputs', one_by_one(*results))
    with pytest.raises(SystemExit, match=r'nms .* has shape'):
        selftest.check_against_cpu('cuda')


def test_wrong_values_are_told():
    with pytest.raises(SystemExit, match=r'nms gave \[0\], not \[1, 2\]'):
        selftest.check_equal('nms', [0], selftest.KEPT_BOXES)


def test_known_values_are_right_by_hand():
    first, second, third = selftest.BOXES
    overlap = (second[2] * second[3]) / (first[2] * first[3])  # the second lies inside the first
    assert overlap == 0.9 > 0.5
    assert third[0] > first[2]
    pixels = [[4 * y + x for x in range(4)] for y in range(4)]
    means = [
        [sum(pixels[2 * i + y][2 * j + x] for y in (0, 1) for x in (0, 1)) / 4 for j in (0, 1)]
        for i in (0, 1)
    ]
    assert means == selftest.POOLED_BINS
    row = [*selftest.ROW, 0]
    assert [(a + b) / 2 for a, b in pairwise(row)] == selftest.SHIFTED_ROW


def test_the_focal_loss_known_by_hand_is_torchvisions():
    from mtpd.runtime import compat  # noqa: F401  (before torchvision)

    # isort: split
    import torch
    from torchvision.ops import sigmoid_focal_loss

    loss = sigmoid_focal_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), 0.25, 2.0)
    assert loss[0].tolist() == pytest.approx(selftest.FOCAL_LOSSES)


@pytest.fixture
def marked(monkeypatch, tmp_path):
    """An mmcv with ops that work, and a marker file; returns the calls of the self test."""
    calls = []

    def self_test(full: bool = True) -> dict:
        calls.append(full)
        return {'cuda': None}

    (tmp_path / '_ext.so').write_text('ops')
    monkeypatch.setattr(ops, 'find_extension', lambda: tmp_path / '_ext.so')
    monkeypatch.setattr(ops, 'marker_file', lambda: tmp_path / 'marker.json')
    monkeypatch.setattr(ops, 'self_test', self_test)
    monkeypatch.setattr(ops.metadata, 'version', lambda name: build.mmcv_version())
    return calls


def test_what_works_is_kept(marked):
    ops.write_marker(CPU, Target(''))
    assert ops.check_installed(CPU, Target(''), True) == {'action': 'kept', 'ops': 'CPU'}
    assert marked == [False]


def test_ops_for_another_torch_are_not_kept(marked):
    ops.write_marker(CPU._replace(version='2.12.0+cpu'), Target(''))
    assert ops.check_installed(CPU, Target(''), True) == {}


def test_cpu_ops_are_not_kept_where_cuda_ops_can_be(marked):
    ops.write_marker(CUDA, Target(''))
    assert ops.check_installed(CUDA, Target('', '13.0', '9.0'), True) == {}


def test_cuda_ops_stay_on_a_machine_without_gpu_unless_cpu_ops_are_asked_for(marked):
    ops.write_marker(CUDA, Target('', '13.0', '9.0'))
    assert ops.check_installed(CUDA, Target('no GPU'), keep_cuda=True)['ops'] == 'CUDA 13.0 (9.0)'
    assert ops.check_installed(CUDA, Target('asked for'), keep_cuda=False) == {}


def test_ops_of_unknown_origin_are_tried_once(marked):
    for _ in range(2):
        assert ops.check_installed(CPU, Target(''), True)['action'] == 'kept'
    assert marked == [True, False, False]  # tried in full, then as any other


def test_broken_ops_are_not_kept(marked, monkeypatch):
    ops.write_marker(CPU, Target(''))

    def broken(full: bool = True) -> None:
        raise MtpdError('undefined symbol')

    monkeypatch.setattr(ops, 'self_test', broken)
    assert ops.check_installed(CPU, Target(''), True) == {}


# Wheels


def make_wheel(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / 'mmcv_full-1.7.2-cp311-cp311-linux_x86_64.whl'
    with zipfile.ZipFile(wheel, 'w') as archive:
        for name in names:
            archive.writestr(name, f'the content of {name}')
    return wheel


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


@pytest.fixture
def bench(marked, monkeypatch, tmp_path):
    """Building and pip replaced: a wheel appears, and is noted as installed."""
    monkeypatch.setenv('MTPD_CACHE', str(tmp_path / 'cache'))
    installed = []

    def make(target, torch, work, log, echo):
        return make_wheel(work / 'dist', 'mmcv/_ext.so')

    monkeypatch.setattr(build, 'build_wheel', make)
    monkeypatch.setattr(ops, 'pip_install', installed.append)
    monkeypatch.setattr(ops, 'refuse_plain_mmcv', lambda: None)
    return installed


def test_wheel_is_built_once_and_cached(bench, tmp_path):
    assert ops.put_in_place(CPU, Target(''), False, print) == 'built'
    assert ops.put_in_place(CPU, Target(''), False, print) == 'installed'
    assert ops.put_in_place(CPU, Target(''), True, print) == 'built'
    assert len({*bench}) == 1
    assert bench[0].parent == tmp_path / 'cache' / 'wheels' / ops.wheel_key(CPU, Target(''))
    assert not list((tmp_path / 'cache').glob('build-*'))


def test_damaged_cached_wheel_is_built_again(bench):
    ops.put_in_place(CPU, Target(''), False, print)
    bench[0].write_bytes(b'half a wheel')
    said = []
    assert ops.put_in_place(CPU, Target(''), False, said.append) == 'built'
    assert 'building another' in said[0]
    build.check_wheel(bench[-1])


def test_failed_build_leaves_nothing_in_the_cache(bench, monkeypatch, tmp_path):
    def fail(target, torch, work, log, echo):
        (work / 'half.whl').write_text('half')
        raise MtpdError('no')

    monkeypatch.setattr(build, 'build_wheel', fail)
    with pytest.raises(MtpdError):
        ops.put_in_place(CPU, Target(''), False, print)
    assert not list((tmp_path / 'cache').rglob('*.whl'))
    assert not list((tmp_path / 'cache').glob('build-*'))


def test_unwritable_cache_is_one_message(bench, monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    monkeypatch.setenv('MTPD_CACHE', str(tmp_path / 'file'))
    with pytest.raises(MtpdError, match='Set MTPD_CACHE'):
        ops.put_in_place(CPU, Target(''), False, print)


# Fetching nvcc. pip runs for real, on packages that a folder holds in the place of PyPI.


@pytest.fixture
def index(monkeypatch, tmp_path):
    """Puts an nvcc with CUDA's runtime library, as NVIDIA's packages hold it, into pip's only index."""
    folder = tmp_path / 'index'
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith('PIP_')]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_USER', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(folder))

    def put(release: str = '13.0', script: str = '') -> None:
        say = script or f'echo "{nvcc_says(release)}"'
        extras = nvcc.EXTRAS.split(',')
        requires = [f'Requires-Dist: nvidia-{e}=={release}.*; extra == "{e}"' for e in extras]
        make_package(
            *(folder, 'cuda-toolkit', f'{release}.2', {}),
            [*(f'Provides-Extra: {extra}' for extra in extras), *requires],
        )
        for extra in extras:
            files = {
                'nvcc': {'nvidia/cu13/bin/nvcc': f'#!/bin/sh\n{say}\n'},
                'cudart': {'nvidia/cu13/lib/libcudart.so.13': 'the library'},
            }.get(extra, {f'nvidia/cu13/{extra}.txt': extra})
            make_package(folder, f'nvidia-{extra}', f'{release}.88', files)

    return put


def make_package(
    folder: Path, name: str, version: str, files: dict[str, str], more: tuple | list = ()
) -> None:
    """A wheel whose files may be run."""
    stem = f'{name.replace("-", "_")}-{version}'
    head = ['Metadata-Version: 2.1', f'Name: {name}', f'Version: {version}']
    wheel = 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
    files = {
        **files,
        f'{stem}.dist-info/METADATA': '\n'.join([*head, *more, '']),
        f'{stem}.dist-info/WHEEL': wheel,
        f'{stem}.dist-info/RECORD': '',
    }
    with zipfile.ZipFile(folder / f'{stem}-py3-none-any.whl', 'w') as archive:
        for path, text in files.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, text)


def test_fetched_nvcc_runs_links_and_is_there_the_next_time(tools, with_headers, index):
    tools(None)
    os.environ['PATH'] += f'{os.pathsep}/usr/bin{os.pathsep}/bin'
    index('13.2')  # newer, and not torch's
    index('13.0')
    shown = []
    fetched = nvcc.fetch_compiler(with_headers, shown.append)
    assert fetched.release == '13.0'
    assert fetched.home.is_relative_to(nvcc.cache_dir())
    said = subprocess.run([fetched.path, '--version'], capture_output=True, text=True).stdout
    assert 'release 13.0' in said
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
    monkeypatch.setattr(nvcc, 'DISK', 10**18)
    with pytest.raises(MtpdError, match=r'GiB are free.*MTPD_CACHE'):
        nvcc.fetch_compiler(with_headers, print)
    assert not nvcc.cached_home('13.0').exists()


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


# Building


def test_all_missing_tools_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    monkeypatch.setattr(build, 'DISK', 10**18)
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
    build.choose_standard(setup, CPU._replace(version=version))
    assert setup.read_text() == f"extra_compile_args['cxx'] = ['-std=c++{standard}']\n"


def test_progress_shows_the_last_file(capsys):
    lines = ['running build_ext', *(f'[{n}/73] c++ ...' for n in range(1, 74)), 'done']
    shown = []
    build.show_progress(lines, shown.append)
    assert shown == ['  73 of 73 files, about 0 s left']


def test_time_left_knows_that_cuda_files_take_longer(monkeypatch):
    """10 C++ files of 5 seconds each, then 5 CUDA files of 40 seconds each."""
    times = [0.0, *(5.0 * n for n in range(1, 11)), *(50 + 40.0 * n for n in range(1, 6))]
    monkeypatch.setattr(build.time, 'monotonic', one_by_one(*times))
    names = [f'{n}.cpp' for n in range(10)] + [f'{n}.cu' for n in range(5)]
    lines = [f'[{n}/15] c++ -I/nvidia/cu13 -c {name}' for n, name in enumerate(names, 1)]
    shown = []
    build.show_progress(lines, shown.append, cuda_files=5)
    assert shown == [
        f'  7 of 15 files, {build.time_left(3 * 5 + 5 * 5 * build.CUDA_FILE)}',
        f'  11 of 15 files, {build.time_left(4 * 40)}',
        f'  12 of 15 files, {build.time_left(3 * 40)}',
        f'  13 of 15 files, {build.time_left(2 * 40)}',
        f'  14 of 15 files, {build.time_left(40)}',
        '  15 of 15 files, about 0 s left',
    ]


@pytest.mark.parametrize(('seconds', 'text'), [(30, 'about 30 s left'), (150, 'about 2 min left')])
def test_time_left(seconds, text):
    assert build.time_left(seconds) == text


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
    said = build.likely_cause('[3/73] c++ -O2 ...\n' + CASES[cause] + '\n')
    assert cause in said


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
