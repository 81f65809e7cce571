"""The benchmarks: their tables say what their JSON files say, and they measure what they claim."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mtpd.utils.files import write_json
from mtpd.utils.paths import ROOT

sys.path.insert(0, str(ROOT / 'benchmarks'))


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / 'benchmarks' / f'{name}.py'), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


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


@pytest.mark.long
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
    output = run('distill_step', '--ours', 'off', 'default+bf16', *options, '--out', str(out))
    assert 'original' in output and 'default+bf16' in output
    measurements = json.loads(out.read_text())
    assert list(measurements['rows']) == ['original', 'off', 'default+bf16']
    flops = measurements[
        'flops_an_update'
    ]  # the same work: forward and backward passes of the same layers
    assert flops['original'] == pytest.approx(flops['off'], rel=1e-3)
    for row in measurements['rows'].values():
        assert row['images_a_second'] == pytest.approx(2e3 / row['milliseconds'])
        assert all(part > 0 for part in row['parts_milliseconds'].values())
        assert row['peak_mib'] > 100 and row['ratio_apart'] > 0
    assert (
        measurements['rows']['original']['ratio']
        == measurements['rows']['original']['ratio_apart']
        == 1
    )
    assert measurements['ceilings']['tflops_fp32'] > 0
    assert measurements['environment']['torch']


@pytest.mark.long
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


def verdict_of(folder: Path) -> dict[str, list[str]]:
    sys.path.insert(0, str(ROOT / 'benchmarks/gpu'))
    import verdict

    return {line.what: list(line.cells()[2:]) for line in verdict.targets(folder)}


def test_the_gpus_verdict_compares_with_the_targets_and_says_what_was_not_measured(tmp_path):
    assert {tuple(cells) for cells in verdict_of(tmp_path).values()} == {('-', 'not measured')}
    step = {'original': {'peak_mib': 1000}, 'default': {'ratio': 2.9, 'images_a_second': 112.4, 'peak_mib': 600}}  # fmt: skip
    write_json(tmp_path / 'gpu_distill_step_retinanet.json', {'rows': step})
    # 12 epochs of 117,266 images, at 150 a second: 9,381 s.
    write_json(tmp_path / 'gpu_distill_step_retinanet_r101.json', {'rows': {'default': {'images_a_second': 150}}})  # fmt: skip
    ways = {'bytes': {'row': {'images_a_second': 135.2}}}
    write_json(tmp_path / 'gpu_stage_r101.json', {'ways': ways})  # 10,408 s
    # 1,407,192 images at 80 a second: 17,590 s.
    write_json(tmp_path / 'gpu_end_to_end.json', {'rows': {'default': [{'images_a_second': 80}]}})
    check = {'nms': {'same': True}, 'a': {'apart': [1e-6, 2e-4]}, 'b': {'error': 'no'}}
    write_json(tmp_path / 'gpu_check.json', check)
    steps = ['3 s  demo: done after 3 s', '5 s  notebook: exit code 1 after 2 s']
    steps += [f'{n} s  full_size_{n}: done after 3 s' for n in range(5)]
    (tmp_path / 'steps.txt').write_text('\n'.join(steps))
    (tmp_path / 'log.txt').write_text('gpu_tests| 2 failed, 44 passed, 1 error in 27.05s\n')
    cells = verdict_of(tmp_path)
    assert cells['retinanet: step, original / ours'] == ['2.90', 'NOT MET']
    assert cells['retinanet: peak memory, ours / original'] == ['0.60', 'met']
    assert cells['retinanet: images a second'] == ['112', 'met']
    assert cells['a 1x COCO stage of RetinaNet from R101, by its step'] == ['2.6 h', 'met']
    assert cells['the same, by a stage'] == ['2.9 h', 'met']
    assert cells['a 1x COCO stage of RetinaNet from X101, by a short stage'] == ['4.9 h', '']
    assert cells['float32 on the GPU and on the CPU, apart'] == ['2e-04', 'NOT MET']
    assert cells['checks that end in an error'] == ['1', 'NOT MET']
    assert cells['tests marked gpu that fail'] == ['3', 'NOT MET']
    assert cells['the demo'] == ['1 done', 'met']
    assert cells['notebook 04 by papermill'] == ['0 done', 'NOT MET']
    assert cells['recipes of the paper at full size'] == ['5 done', 'met']
    assert cells['mask_rcnn: step, original / ours'] == ['-', 'not measured']
