"""A folder from another tool, from the first command to the numbers: recognised, split, evaluated."""

import json
import re
import shlex

import pytest
from click.testing import CliRunner

from helpers.arranged import SINGLE, SPLIT, arranged
from mtpd.cli.main import main

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
CHECKPOINT = 'configs/mini/teachers/rx101/model.pth'
DIGITS = tuple('0123456789')


def call(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def evaluated(root, out, *options):
    words = ('--detector', 'rx101', '--checkpoint', CHECKPOINT, '--out', out)
    done = call('eval', MINI, *words, '--cfg-options', f'data.root={root}', *options)
    assert done.exit_code == 0, done.output
    detections = json.loads((out / 'detections.json').read_text())
    return json.loads(done.stdout), [item | {'image_id': 0} for item in detections], done.stderr


@pytest.mark.long
@pytest.mark.parametrize('files', [SPLIT['Roboflow'][1], SINGLE['CVAT'], SINGLE['Label Studio']])
def test_a_layout_gives_the_numbers_of_its_coco_twin(tmp_path, tiny_coco, files):
    """Of a folder with val alone: the classes are val's."""
    twin = tiny_coco(tmp_path / 'twin', classes=DIGITS)
    wanted, detections, _ = evaluated(twin, tmp_path / 'a')
    root = arranged(tiny_coco(tmp_path / 'coco', classes=DIGITS), tmp_path / 'data', val=files)
    actual, same, notes = evaluated(root, tmp_path / 'b')
    assert len(detections) > 10 and same == detections
    for key in ('bbox_mAP', 'per_class', 'num_images'):
        assert actual[key] == wanted[key]
    (line,) = [line for line in notes.splitlines() if 'layout' in line]
    assert line.startswith(f'note: {root}: ') and f"'s layout: {files.annotations}" in line


@pytest.mark.parametrize('tool', ['CVAT', 'Label Studio'])
def test_the_command_that_a_refusal_names_makes_data_to_train_on(tmp_path, tiny_coco, tool):
    root = arranged(tiny_coco(tmp_path / 'coco'), tmp_path / 'my data', val=SINGLE[tool])
    options = ('teachers.r101.checkpoint=None', 'teachers.rx101.checkpoint=None')
    run = ('run', MINI, '--work-dir', tmp_path / 'run', '--cfg-options', *options)
    refusal = call(*run, f'data.root={root}')
    assert refusal.exit_code == 2 and not (tmp_path / 'run').exists()
    program, *command = shlex.split(re.search('`(mtpd data split .*?)`', refusal.output)[1])
    done = call(*command)
    assert program == 'mtpd' and done.exit_code == 0, done.output
    assert 'train 3 images' in done.output and 'val 1 images' in done.output
    (option,) = shlex.split(re.search('--cfg-options (.*)', refusal.output)[1])
    shown = call('show', MINI, '--cfg-options', option)
    assert f"'root': '{root}-split'" in shown.output
    again = call(*command)
    assert again.exit_code == 2 and 'nothing is overwritten' in again.output


def test_a_share_of_all_or_none_is_refused(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path / 'coco')
    for share in ('0', '1', '20'):
        done = call(
            'data', 'split', root / 'annotations/val.json', tmp_path / 'out', '--val', share
        )
        assert done.exit_code == 2 and '0<x<1' in done.output
    assert call('data', 'split', tmp_path / 'none', tmp_path / 'out').exit_code == 2
    assert not (tmp_path / 'out').exists()
