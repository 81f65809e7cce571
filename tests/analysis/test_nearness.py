"""How near students come to their teachers: the table against an explicit least-squares solve."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtpd import load_recipe
from mtpd.analysis import feature_maps
from mtpd.analysis.feature_maps import stage_checkpoints
from mtpd.engine.features import load_detectors
from mtpd.pipeline.teacher_order import image_features

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'


@pytest.fixture
def recipe(tmp_path):
    options = {'data.scenes.train': 4, 'data.scenes.val': 32, 'data.cache': str(tmp_path)}
    return load_recipe(MINI, options | {'student.checkpoint': str(tmp_path / 'student.pth')})


def test_costs_of_each_student_by_hand(recipe, tmp_path):
    from mmdet.models import build_detector

    for k, name in enumerate(('student', 'later')):
        torch.manual_seed(k)
        model = build_detector(recipe.model('student'))
        torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / f'{name}.pth')
    checkpoints = {
        'before': ('student', tmp_path / 'student.pth'),
        'after': ('student', tmp_path / 'later.pth'),
        'the teacher': ('r101', recipe.checkpoint('r101')),
    }
    rows = feature_maps.distance_to_teachers(recipe, checkpoints, images=32)
    assert [row['student'] for row in rows] == ['before', 'after']
    assert all(list(row) == ['student', 'to the teacher'] for row in rows)
    models = load_detectors(recipe, checkpoints)
    fit, held = (list(image_features(recipe, models, 32, k)) for k in (0, 1))

    def cells(half: list, name: str, stride: int) -> np.ndarray:
        return np.concatenate([image[name][stride].flatten(1).T.double() for image in half])

    for row in rows:
        shares = []
        for stride in fit[0]['the teacher']:
            x, y = (cells(fit, name, stride) for name in (row['student'], 'the teacher'))
            maps = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
            x, y = (cells(held, name, stride) for name in (row['student'], 'the teacher'))
            left = ((np.c_[x, np.ones(len(x))] @ maps - y) ** 2).sum()
            shares.append(left / ((y - y.mean(0)) ** 2).sum())
        value, _, ends = row['to the teacher'].partition(' [')
        assert float(value) == pytest.approx(np.mean(shares), rel=2e-3)
        low, high = map(float, ends.rstrip(']').split(', '))
        assert low <= float(value) <= high and low < high


def test_the_student_without_a_teacher_stands_beside_the_stages(recipe, tmp_path, monkeypatch):
    def made(recipe, stage, arm, work_dir=None):
        return {'checkpoint': tmp_path / f'{arm}_{stage}'}

    monkeypatch.setattr(feature_maps, 'train_stage', made)
    (tmp_path / 'student.pth').touch()
    assert 'no teacher' not in stage_checkpoints(
        recipe, 'progressive', tmp_path
    )  # not trained for it
    trained = tmp_path / 'stages/none/1_no_teacher/student.pth'
    trained.parent.mkdir(parents=True)
    trained.touch()
    found = stage_checkpoints(recipe, 'progressive', tmp_path)
    assert [*found][:4] == ['student before', 'after stage 1', 'after stage 2', 'no teacher']
    assert found['no teacher'] == ('student', trained)
    assert [*stage_checkpoints(recipe, 'none', tmp_path)][:3] == [
        'student before',
        'after stage 1',
        'teacher 1: ResNet-34, width 16',
    ]
