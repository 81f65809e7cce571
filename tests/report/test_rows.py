"""What notebooks 02 and 04 put into tables."""

from __future__ import annotations

import pytest

from helpers.fake_run import metrics, put
from mtpd import load_recipe
from mtpd.pipeline.detectors import init_label
from mtpd.report import tables

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'


@pytest.fixture
def recipe(tmp_path):
    """With a student's checkpoint, so that nothing has to be trained; its metrics are there, too."""
    plan = load_recipe(MINI, {'student.checkpoint': str(tmp_path / 'student.pth')})
    aps = {'student': 6.0, 'r101': 40.5, 'rx101': 55.9}
    return plan, aps


@pytest.fixture
def measured(recipe, monkeypatch):
    """What `prepare_detector` gives where all is there."""
    plan, aps = recipe

    def ready(recipe, name, work_dir=None):
        return {'metrics': metrics(aps[name]), 'model': {'parameters': 7, 'gflops': 0.5}}

    monkeypatch.setattr(tables, 'prepare_detector', ready)
    return plan


def test_detectors_with_their_training(measured):
    found = tables.detector_rows(measured)
    assert [row['name'] for row in found] == ['student', 'r101', 'rx101']
    assert [round(row['AP'], 6) for row in found] == [6.0, 40.5, 55.9]
    assert [row['updates'] for row in found] == [1000, 4000, 7000]
    assert [row['scenes'] for row in found] == [3000, 24000, 24000]
    assert [row['init'] for row in found] == [None, None, 'teacher 1: ResNet-34, width 16']
    assert found[1]['AP50'] == pytest.approx(1.7 * 40.5) and found[1]['parameters'] == 7
    columns = tables.detector_headings(measured)
    assert {'updates', 'init', 'gflops'} < set(columns) and 'mask_AP' not in columns


def test_what_a_training_began_from(tmp_path):
    plan = load_recipe(MINI, {'teachers.r101.init': str(tmp_path / 'other.pth')})
    assert init_label(plan, 'r101') == 'other.pth'
    assert init_label(plan, 'rx101') == 'teacher 1: ResNet-34, width 16'
    assert init_label(plan, 'student') is None


def test_stages_up_to_the_last(measured, tmp_path):
    for folder, ap in (('1_r101', 9.8), ('2_rx101', 12.0)):
        put(tmp_path / 'stages/progressive' / folder / 'metrics.json', metrics(ap))
    found = tables.stage_rows(measured, 'progressive', 2, tmp_path)
    assert [row['student'] for row in found] == ['baseline', 'after stage 1', 'after stage 2']
    assert [row['AP'] for row in found] == pytest.approx([6.0, 9.8, 12.0])
    assert found[2]['AP small'] == pytest.approx(6.0) and 'mask AP' not in found[0]
    assert len(tables.stage_rows(measured, 'progressive', 1, tmp_path)) == 2
