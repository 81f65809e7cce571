"""What a student's mmdet config says of its training, and a recipe does not take over, is named."""

from __future__ import annotations

import pytest

from helpers.tiny_training import MINI, SMALL
from mtpd import load_recipe
from mtpd.pipeline import doctor
from mtpd.preflight.student_config import student_notes
from mtpd.utils.paths import ROOT

STUDENT = """
_base_ = {base!r}
optimizer = dict(type='SGD', lr=0.01)
custom_hooks = [dict(type='ExpMomentumEMAHook'), dict(type='NumClassCheckHook')]
fp16 = dict(loss_scale=512.0)
"""
LEFT_OUT = "not taken from the student's config: {}."


def test_hooks_steps_and_optimizer_are_named():
    yolox = {
        'student.config': 'mmdet::yolox/yolox_tiny_8x8_300e_coco.py',
        'student.checkpoint': None,
    }
    (note,) = student_notes(load_recipe(MINI, yolox))
    parts = 'Mosaic, RandomAffine, YOLOXHSVRandomAug, YOLOXModeSwitchHook, SyncNormHook, ExpMomentumEMAHook'
    parts += ", optimizer SGD (the recipe's is AdamW)"
    assert note == LEFT_OUT.format(parts)
    detr = {'student.config': 'mmdet::detr/detr_r50_8x2_150e_coco.py', 'student.checkpoint': None}
    (note,) = student_notes(load_recipe(MINI, detr))
    assert 'RandomCrop' in note and 'images of several sizes ((1333, 400) to (1333, 800))' in note


@pytest.mark.parametrize(
    'recipe', sorted(ROOT.glob('configs/[mp]*/*.py')), ids=lambda path: path.stem
)
def test_the_kits_recipes_leave_out_nothing(recipe):
    assert student_notes(load_recipe(recipe)) == []


@pytest.mark.long
def test_doctor_names_it(tmp_path):
    base = str(ROOT / 'configs/_base_/models/pocket_retinanet.py')
    (tmp_path / 'student.py').write_text(STUDENT.format(base=base))
    overrides = SMALL | {
        'data.cache': str(tmp_path),
        'data.scenes.train': 4,
        'data.scenes.val': 4,
        'student.config': str(tmp_path / 'student.py'),
    }
    checks = list(doctor.check_recipe(ROOT / MINI, overrides, tmp_path / 'run'))
    notes = [check.found for check in checks if check.name == 'student']
    parts = "ExpMomentumEMAHook, fp16 (speed.precision takes its place), optimizer SGD (the recipe's is AdamW)"
    assert notes == [f'note: {LEFT_OUT.format(parts)}']
