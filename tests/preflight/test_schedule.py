"""Settings of a training that mmcv reads: all recipes' are accepted; logger hooks beside our log.json."""

from __future__ import annotations

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import pytest

from helpers.tiny import SMALL
from mtpd import load_recipe
from mtpd.pipeline.detectors import train_detector_run
from mtpd.preflight import checks
from mtpd.utils.files import read_log
from mtpd.utils.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'


@pytest.mark.parametrize('path', sorted(ROOT.glob('configs/[!_t]*/*.py')), ids=lambda p: p.stem)
def test_every_recipes_settings_are_accepted(path):
    assert checks.schedule_problems(load_recipe(path)) == []


def test_tensorboard_has_what_the_log_has(tiny_coco, tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    options = SMALL | {
        'data.root': str(tiny_coco(tmp_path / 'coco')),
        'schedule.baseline': 3,
        'schedule.loggers': [dict(type='TensorboardLoggerHook')],
    }
    made = train_detector_run(load_recipe(MINI, options), work_dir=tmp_path / 'run')
    rows = read_log(made['dir'] / 'log.json')
    events = accumulator.EventAccumulator(str(made['dir'] / 'tf_logs')).Reload()
    for name in ('loss', 'loss_cls', 'loss_bbox'):
        there = {event.step: event.value for event in events.Scalars(f'train/{name}')}
        assert there == pytest.approx({row['update']: row[name] for row in rows}, rel=1e-5)


@pytest.mark.parametrize(
    ('logger', 'message'),
    [
        ({'type': 'TensorBoardLoggerHook'}, "Did you mean 'TensorboardLoggerHook'"),
        ({'type': 'EMAHook'}, "unknown type 'EMAHook'"),
        ('tensorboard', "unknown type 'None'"),
        ({'type': 'NeptuneLoggerHook'}, 'needs the package neptune: pip install neptune'),
    ],
)
def test_a_logger_that_is_none_or_lacks_its_package_is_told(logger, message):
    found = checks.schedule_problems(load_recipe(MINI, {'schedule.loggers': [logger]}))
    assert len(found) == 1 and message in found[0]
