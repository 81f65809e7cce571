"""What would stop a run after hours is reported before it begins: everything in one message."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import ast
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from mmcv import ConfigDict
from mmdet.models import build_detector

from helpers.tiny import SMALL
from mtpd.cli.main import main
from mtpd.config.recipe import load_recipe
from mtpd.errors import MtpdError, RecipeError
from mtpd.pipeline.detectors import train_detector_run
from mtpd.pipeline.stages import train_stage
from mtpd.preflight import checks, detectors, forecast
from mtpd.utils.files import read_log
from mtpd.utils.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
POCKET = 'configs/_base_/models/pocket_retinanet.py'
SETTINGS = SMALL | {'runtime.threads': 1, 'evaluation.batch_size': 2}


def call(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(item) for item in arguments])
    return result.exit_code, result.output


def faulty(tmp_path: Path, data: Path) -> Path:
    """A recipe with an unknown key and eight things wrong with its data, checkpoints and settings."""
    table = json.loads((data / 'annotations/val.json').read_text())
    table['annotations'][0]['bbox'][2] = -4
    (data / 'annotations/val.json').write_text(json.dumps(table))
    (data / 'train/000002.png').write_bytes((data / 'train/000002.png').read_bytes()[:3000])
    student = load_recipe(MINI, {'data.root': str(data)}).model('student')
    state = build_detector(ConfigDict(student)).state_dict()
    classes = {'CLASSES': ('cat', 'dog')}
    torch.save({'meta': classes, 'state_dict': state}, tmp_path / 'other.pth')
    torch.save({'meta': classes, 'state_dict': state}, tmp_path / 'summed-00000000.pth')
    recipe, config = tmp_path / 'faulty.py', str(Path(POCKET).resolve())
    recipe.write_text(
        f"""
_base_ = {str(Path(MINI).resolve())!r}
name = 'faulty'
data = dict(root={str(data)!r})
student = dict(config={config!r})
teachers = dict(
    r101=dict(config={config!r}, checkpoint='gone.pth'),
    rx101=dict(config={config!r}, checkpoint='other.pth', init=None),
    third=dict(label='3', config='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', checkpoint='summed-00000000.pth'),
)
distill = dict(levels=[0, 1, 2, 7])
schedule = dict(batch_size=9, warmup=5)
evaluation = dict(metrics=['bbox', 'segm'])
runtime = dict(gpus=4, device='cuda')
"""
    )
    return recipe


FAULTS = (
    "unknown key 'schedule.warmup'",
    'torch sees no GPU',
    'val.json: a box has a negative width',
    '000002.png is damaged, cut short',
    'checkpoint of r101: ',
    'other.pth does not fit rx101',
    'summed-00000000.pth has a SHA-256 that begins with',
    'neck.fpn_convs.7.conv',
    'evaluation.metrics has segm, and student predicts no masks',
)


@pytest.mark.parametrize('command', ['run', pytest.param('doctor', marks=pytest.mark.long)])
def test_everything_wrong_is_said_at_once(tmp_path, tiny_coco, command):
    recipe = faulty(tmp_path, tiny_coco(tmp_path / 'coco'))
    code, text = call(command, recipe, '--work-dir', tmp_path / 'run')
    assert code == (2 if command == 'run' else 1) and 'Traceback' not in text
    assert [fault for fault in FAULTS if fault not in text] == [], text
    assert not (tmp_path / 'run').exists()


def test_levers_of_arms_that_cannot_work_are_told(tmp_path, tiny_coco):
    root = str(tiny_coco(tmp_path / 'coco'))
    wide = {'teachers.r101.checkpoint': None, 'teachers.r101.init': None}
    wide |= {'teachers.r101.model.neck.out_channels': 32, 'teachers.r101.model.bbox_head.in_channels': 32}  # fmt: skip
    recipe = load_recipe(MINI, SETTINGS | wide | {'data.root': root, 'distill.keep_adapters': True})
    (problem,) = detectors.distillation_problems(recipe, ['r101', 'rx101'])
    assert problem.startswith('distill.keep_adapters: the distillation losses of r101, rx101 have')
    assert not detectors.distillation_problems(recipe, ['rx101'])
    several = {'schedule.arm_lr': 1e-3, 'schedule.lr.max_lr': [1e-3, 2e-3]}
    (problem,) = checks.schedule_problems(load_recipe(MINI, several))
    assert problem.startswith('schedule.arm_lr=0.001 cannot replace the learning rate')
    with pytest.raises(MtpdError, match=r'schedule\.arm_lr is 0'):
        load_recipe(MINI, {'schedule.arm_lr': 0})


def test_unknown_keys_do_not_hide_the_rest(tmp_path, tiny_coco):
    data = tiny_coco(tmp_path / 'coco')
    (data / 'train/000001.png').unlink()
    with pytest.raises(RecipeError) as caught:
        checks.load_or_report_all_problems(MINI, {'data.root': str(data), 'scheduel.arm': 4})
    texts = caught.value.problems
    assert "unknown key 'scheduel'. Did you mean 'schedule'?" in texts[0]
    assert any('000001.png' in text for text in texts)
    wrong = {'schedule.arm': 'many', 'x': 1, 'teachers.r101.checkpoint': str(tmp_path / 'gone.pth')}
    with pytest.raises(RecipeError, match='int is needed') as caught:
        checks.load_or_report_all_problems(MINI, wrong | {'data.root': str(data)})
    texts = caught.value.problems
    assert "unknown key 'x'" in ' '.join(texts[:2])
    assert any('trained on other classes' in text for text in texts)
    assert any('000001.png' in text for text in texts)
    assert any('gone.pth is missing' in text for text in texts)


def test_a_misspelt_data_root_is_one_problem():
    with pytest.raises(RecipeError) as caught:
        checks.load_or_report_all_problems('configs/own_data/retinanet.py', {'data.rooot': '/x'})
    (problem,) = caught.value.problems
    assert "unknown key 'data.rooot'. Did you mean 'data.root'?" in problem


def test_missing_images_that_are_left_out_are_a_note(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path / 'coco')
    (root / 'train/000001.png').unlink()
    recipe = load_recipe(MINI, {'data.root': str(root), 'data.corrupt_limit': 1})
    assert recipe.data_problems() == []
    (note,) = (text for text in recipe.data_notes() if 'left out' in text)
    assert '1 of 4 images are not in' in note and '000001.png' in note


@pytest.mark.long
def test_a_stage_looks_at_each_image_file_once(tmp_path, tiny_coco, monkeypatch):
    """A stage trains baseline and teacher before it; on COCO, a pass over both splits is 123,000 files."""
    root = tiny_coco(tmp_path / 'coco')
    overrides = SETTINGS | {'data.root': str(root), 'teachers.r101.updates': 1}
    stats: Counter[str] = Counter()
    real_stat = os.stat

    def counting_stat(path, *args, **kwargs):
        if isinstance(path, (str, os.PathLike)) and str(path).endswith('.png'):
            stats[str(path)] += 1
        return real_stat(path, *args, **kwargs)

    monkeypatch.setattr(os, 'stat', counting_stat)
    train_stage(load_recipe(MINI, overrides), 1, 'progressive', tmp_path / 'run')
    assert (tmp_path / 'run/stages/progressive/1_r101/student.pth').is_file()
    assert stats and max(stats.values()) == 1, stats.most_common(3)


def test_a_full_disk_is_reported_with_the_memory_that_lacks(tmp_path, tiny_coco, monkeypatch):
    recipe = load_recipe(MINI, SETTINGS | {'data.root': str(tiny_coco(tmp_path / 'coco'))})
    monkeypatch.setattr(forecast, 'bytes_to_write', lambda *_: 10**18)
    monkeypatch.setattr(checks, 'forecast', lambda *_: ({'trainings': {}}, ['memory']))
    (disk, memory), measured = checks.check_run(recipe, tmp_path)
    assert disk.startswith('the checkpoints still to be written take 1000000000')
    assert memory == 'memory' and measured is None
    (again,), untried = checks.check_run(recipe, tmp_path, tried=False)
    assert again.split(' has ')[0] == disk.split(' has ')[0] and untried is None  # free space moves


# Settings of the schedule


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
    run = train_detector_run(load_recipe(MINI, options), work_dir=tmp_path / 'run')
    rows = read_log(run['dir'] / 'log.json')
    events = accumulator.EventAccumulator(str(run['dir'] / 'tf_logs')).Reload()
    for name in ('loss', 'loss_cls', 'loss_bbox'):
        logged = {event.step: event.value for event in events.Scalars(f'train/{name}')}
        assert logged == pytest.approx({row['update']: row[name] for row in rows}, rel=1e-5)


@pytest.mark.parametrize(
    ('logger', 'message'),
    [
        ({'type': 'TensorBoardLoggerHook'}, "Did you mean 'TensorboardLoggerHook'"),
        ({'type': 'EMAHook'}, "unknown type 'EMAHook'"),
        ('tensorboard', "unknown type 'None'"),
        ({'type': 'NeptuneLoggerHook'}, 'needs the package neptune: pip install neptune'),
        ({'type': 'PaviLoggerHook'}, 'needs the module pavi, which pip cannot install'),
        ({'type': 'SegmindLoggerHook'}, 'newer releases of segmind lack. Choose another logger'),
    ],
)
def test_a_logger_that_is_none_or_lacks_its_package_is_told(logger, message):
    problems = checks.schedule_problems(load_recipe(MINI, {'schedule.loggers': [logger]}))
    assert len(problems) == 1 and message in problems[0]


def test_a_loggers_package_that_is_too_new_is_told(tmp_path, monkeypatch):
    """mmcv calls `set_step`, which dvclive had before version 1."""
    logger = {'type': 'DvcliveLoggerHook'}

    def told_of(version: str) -> list[str]:
        (tmp_path / 'dvclive.py').touch()
        record = tmp_path / 'dvclive-0.dist-info/METADATA'
        record.parent.mkdir(exist_ok=True)
        record.write_text(f'Metadata-Version: 2.1\nName: dvclive\nVersion: {version}\n')
        return checks.logger_problems('key', logger)

    monkeypatch.syspath_prepend(tmp_path)
    assert told_of('0.12.1') == []
    (text,) = told_of('3.49.1')
    assert "dvclive<1 (3.49.1 is installed): pip install 'dvclive<1'." in text


def test_a_student_that_cannot_inherit_is_told_before_its_baseline_is_trained():
    settings = SETTINGS | {
        'data.scenes.train': 2,
        'data.scenes.val': 2,
        'distill.start': 'inherit',
        'teachers.r101.model.bbox_head': {'stacked_convs': 1},
    }
    recipe = load_recipe(MINI, settings)
    names = ['student', 'r101', 'rx101']
    (problem,), _ = checks.recipe_problems(recipe, names, [])
    assert problem.startswith(
        "student and r101: the student cannot inherit the teacher's neck and head:"
    )
    assert 'bbox_head.cls_convs.1.conv.weight: the teacher has no such weight' in problem
    fixes = re.findall(r"--cfg-options '?([\w.]+)=([^\s']+)", problem)
    for key, value in fixes:
        value = ast.literal_eval(value) if value.startswith('[') else value
        assert checks.recipe_problems(load_recipe(recipe, {key: value}), names, []) == ([], [])
    assert [key for key, _ in fixes] == ['distill.start', 'distill.inherit_allow']


@pytest.mark.parametrize(
    ('more', 'weight'),
    [
        ({'distill.inherit_allow': []}, 'neck.lateral_convs.0.conv.weight'),
        (
            {'student.model.neck.out_channels': 32, 'student.model.bbox_head.in_channels': 32},
            'neck.lateral_convs.0.bn.weight',
        ),
        (
            {'student.model.bbox_head.norm_cfg': {'type': 'GN', 'num_groups': 8}},
            'bbox_head.cls_convs.0.gn.weight',
        ),
    ],
    ids=['another backbone', 'FPN of another width', 'GN in the head'],
)
def test_a_neck_or_head_that_does_not_fit_is_told_with_a_way_that_works(more, weight):
    few = {'data.scenes.train': 2, 'data.scenes.val': 2, 'distill.start': 'inherit'}
    recipe, names = load_recipe(MINI, SETTINGS | few | more), ['student', 'r101', 'rx101']
    problems, _ = checks.recipe_problems(recipe, names, [])
    assert problems and all('the student cannot inherit the teacher' in text for text in problems)
    assert all(weight in text for text in problems)
    (start,) = {start for text in problems for start in re.findall(r'distill\.start=(\w+)', text)}
    assert checks.recipe_problems(load_recipe(recipe, {'distill.start': start}), names, []) == (
        [],
        [],
    )
