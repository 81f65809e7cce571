"""The benchmarks: their tables say what their JSON files say, and they measure what they claim."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import pytest

from mtpd.paths import ROOT

sys.path.insert(0, str(ROOT / 'benchmarks'))


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / 'benchmarks' / f'{name}.py'), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


def test_the_tables_are_those_of_the_json_files():
    import tables

    text = tables.README.read_text(encoding='utf-8')
    assert tables.written(text) == text, 'run python benchmarks/tables.py'
    for number in ('distill_step', 'evaluation', 'growth'):
        assert f'<!-- {number} -->' in text


def test_a_table_without_a_file_says_so(monkeypatch, tmp_path):
    import tables

    monkeypatch.setattr(tables, 'BENCH', tmp_path)
    made = tables.written('<!-- gpu_end_to_end -->\nold\n<!-- end -->\nrest')
    assert made == '<!-- gpu_end_to_end -->\nNot measured.\n<!-- end -->\nrest'


def test_architectures_of_a_wheels_code_are_counted(tmp_path):
    import install_ops

    wheel = tmp_path / 'mmcv_full.whl'
    with zipfile.ZipFile(wheel, 'w') as archive:
        archive.writestr('mmcv/_ext.cpython-311.so', 'the library')
        archive.writestr('mmcv/__init__.py', '')
    lines = [
        f'ELF file    {n}: _ext.{n}.sm_{arch}.cubin' for n, arch in ((1, 80), (2, 90), (3, 90))
    ]
    tool = tmp_path / 'cuobjdump'
    echo = '\n'.join(f'echo "{line}"' for line in lines)
    tool.write_text(f'#!/bin/sh\n[ "$1" = --list-elf ] && [ -f "$2" ] || exit 1\n{echo}\n')
    tool.chmod(0o755)
    assert install_ops.code_for(wheel, str(tool)) == {'sm_80': 1, 'sm_90': 2}
    assert install_ops.code_for(wheel, None) is None


def test_the_step_is_measured_beside_the_originals(tmp_path):
    out = tmp_path / 'step.json'
    options = [
        '--batch',
        '2',
        '--batches',
        '2',
        '--pairs',
        '2',
        '--warm-up',
        '1',
        '--processes',
        '1',
    ]
    told = run('distill_step', '--ours', 'off', 'default+bf16', *options, '--out', str(out))
    assert 'original' in told and 'default+bf16' in told
    found = json.loads(out.read_text())
    assert list(found['rows']) == ['original', 'off', 'default+bf16']
    flops = found[
        'flops_an_update'
    ]  # the same work: forward and backward passes of the same layers
    assert flops['original'] == pytest.approx(flops['off'], rel=1e-3)
    for row in found['rows'].values():
        assert row['images_a_second'] == pytest.approx(2e3 / row['milliseconds'])
        assert all(part > 0 for part in row['parts_milliseconds'].values())
        assert row['peak_mib'] > 100 and row['ratio_apart'] > 0
    assert found['rows']['original']['ratio'] == found['rows']['original']['ratio_apart'] == 1
    assert found['ceilings']['tflops_fp32'] > 0
    assert found['environment']['torch']


@pytest.mark.parametrize('images', [20])
def test_evaluation_counts_the_same_by_both_libraries(images, tmp_path):
    out = tmp_path / 'evaluation.json'
    run('evaluation', '--images', str(images), '--pairs', '1', '--out', str(out))
    (row,) = json.loads(out.read_text())['rows']
    assert row['largest_difference'] < 1e-12
    assert 0 < row['bbox_mAP'] < 1


def test_a_misspelt_switch_is_named():
    import argparse

    import distill_step

    assert distill_step.known('default+fp32') == 'default+fp32'
    with pytest.raises(argparse.ArgumentTypeError, match="'chanels_last' is none of off, default"):
        distill_step.known('off+chanels_last')


def test_rows_have_as_many_cells_as_there_are_headings():
    import tables

    assert tables.table(['a', 'b'], [[1, 2]]).splitlines()[2] == '| 1 | 2 |'
    with pytest.raises(ValueError, match='another length'):
        tables.table(['a', 'b'], [[1, 2, 3]])
