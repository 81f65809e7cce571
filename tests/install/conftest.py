"""Machines with and without a GPU, nvcc and a package index, and mmcv ops that are only recorded."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from helpers.toolchain import CUDA, make_wheel, nvcc_says, program
from mtpd.install import build, nvcc, ops, published


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


@pytest.fixture
def with_headers(tmp_path):
    """A torch of pip's for CUDA 13.0: CUDA's headers lie beside it."""
    headers = tmp_path / 'site-packages' / 'nvidia' / 'cu13' / 'include'
    headers.mkdir(parents=True)
    (headers / 'cusparse.h').touch()
    return CUDA._replace(folder=tmp_path / 'site-packages' / 'torch')


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


@pytest.fixture
def bench(marked, monkeypatch, tmp_path):
    """Building and pip replaced: a wheel appears, and is noted as installed."""
    monkeypatch.setenv('MTPD_CACHE', str(tmp_path / 'cache'))
    installed = []

    def make(target, torch, work, log, echo):
        return make_wheel(work / 'dist', 'mmcv/_ext.so')

    monkeypatch.setattr(build, 'build_wheel', make)
    monkeypatch.setattr(ops, 'pip_install_wheel', installed.append)
    monkeypatch.setattr(ops, 'refuse_plain_mmcv', lambda: None)
    monkeypatch.setattr(published, 'INDEX', tmp_path / 'wheels.json')
    return installed


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
        extras = nvcc.TOOLKIT_EXTRAS.split(',')
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
