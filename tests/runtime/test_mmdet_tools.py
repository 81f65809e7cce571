"""Exported students in mmdet's own tools: the same AP as `mtpd eval`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
from click.testing import CliRunner

from mtpd import load_recipe
from mtpd.cli.main import main
from mtpd.pipeline.mmdet_config import recipe_as_mmdet
from mtpd.runtime import checkpoints
from mtpd.utils.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'
NAMES = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


def by_mmdets_tool(config: Path, checkpoint: Path, out: Path) -> dict:
    """The metrics that mmdet's tools/test.py writes, rounded by it to four places."""
    # The tool is run as it is; `compat` is what mmdet itself needs on today's torch.
    run = 'import runpy, sys, mtpd.runtime.compat; runpy.run_path(sys.argv.pop(1), run_name="__main__")'
    command = [sys.executable, '-c', run, TOOLS / 'test.py', config, checkpoint]
    command += ['--eval', 'bbox', '--work-dir', out]
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(next(out.glob('eval_*.json')).read_text())['metric']


@pytest.mark.long
def test_mmdets_own_test_tool_gives_an_exported_student_the_same_ap(tmp_path):
    """On 60 DigitScenes, with the shipped teacher 1 in the student's place: it has learnt something."""
    scenes = {'data.scenes.train': 1, 'data.scenes.val': 60, 'data.cache': str(tmp_path)}
    shipped = ROOT / 'configs/mini/teachers/r101/model.pth'
    recipe = load_recipe(MINI, scenes)
    released = checkpoints.publish_student(shipped, tmp_path / 'student.pth')
    config = tmp_path / 'student.py'
    config.write_text(recipe_as_mmdet(recipe, 'r101'))
    theirs = by_mmdets_tool(config, released, tmp_path / 'theirs')

    options = ('--cfg-options', ' '.join(f'{key}={value}' for key, value in scenes.items()))
    for arguments in (
        (MINI, *options, '--detector', 'r101'),  # as the recipe's detector
        (str(config),),  # as a plain mmdet config
    ):
        result = CliRunner().invoke(main, ['eval', *arguments, '--checkpoint', str(released)])
        assert result.exit_code == 0, result.output
        ours = json.loads(result.output)
        print(f'AP by tools/test.py {theirs["bbox_mAP"]}, by mtpd eval {ours["bbox_mAP"]:.6f}')
        assert ours['num_images'] == 60 and 0.3 < ours['bbox_mAP'] < 0.6
        for name in NAMES:
            number = -1 if ours[f'bbox_{name}'] is None else ours[f'bbox_{name}']
            assert theirs[f'bbox_{name}'] == pytest.approx(number, abs=0.00005 + 1e-9), name
