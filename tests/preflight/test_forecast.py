"""What a run will take: disk, memory, time."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
from pathlib import Path

import pytest
from mmcv import ConfigDict
from mmdet.models import build_detector

from helpers import spied
from helpers.tiny import SMALL
from mtpd.config.plan import arm_trainings, detector_training, planned_trainings
from mtpd.config.recipe import load_recipe
from mtpd.pipeline.stages import train_stage
from mtpd.preflight import forecast, trial
from mtpd.utils.machine import GIB

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
SETTINGS = SMALL | {'runtime.threads': 1, 'evaluation.batch_size': 2}


def test_a_forecast_is_kept_for_the_same_recipe(tmp_path, tiny_coco):
    overrides = SETTINGS | {'data.root': str(tiny_coco(tmp_path / 'coco'))}
    measured = trial.measure_updates(MINI, overrides, 2, [('student', None)], [])
    recipe = load_recipe(MINI, overrides)
    todo = planned_trainings(recipe, tmp_path)[:1]
    forecast.write_forecast({'recipe': recipe.text, **measured}, tmp_path)
    lines: list[str] = []
    again, wrong = forecast.forecast(recipe, todo, tmp_path, lines.append)
    assert again['trainings'] == measured['trainings'] and wrong == lines == []
    assert forecast.forecast(recipe, [], tmp_path, lines.append) == (None, [])


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        (
            'process 0 of 1 was ended by signal SIGKILL.',
            'process 0 of 1 was ended by signal SIGKILL.',
        ),
        (
            'a process failed:\nTraceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\n'
            'KeyError: 1\n\nDuring handling of the above exception, another exception occurred:\n\n'
            'Traceback (most recent call last):\n  File "a.py", line 2, in f\n    1 / 0\n    ~~^~~\n'
            'ZeroDivisionError: division by zero\nexitcode: 1',
            'a process failed: ZeroDivisionError: division by zero.',
        ),
    ],
)
def test_a_failed_trial_is_one_line(text, expected, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError(text)

    monkeypatch.setattr(forecast, 'launch', fail)
    recipe = load_recipe(MINI, SETTINGS)
    measured, problems = forecast.forecast(recipe, planned_trainings(recipe, tmp_path), tmp_path)
    fix = '`mtpd train` with the same settings shows where it fails.'
    assert measured is None
    assert problems == [f'a few updates were tried, and failed: {expected} {fix}']


@pytest.mark.slow
def test_a_process_that_dies_is_a_problem(tmp_path, monkeypatch):
    recipe = load_recipe(MINI, SETTINGS)
    monkeypatch.setattr(trial, 'measure_updates', spied.killed)
    monkeypatch.setenv('PYTHONPATH', str(Path(__file__).parents[1]))
    _, (text,) = forecast.forecast(recipe, planned_trainings(recipe, tmp_path), tmp_path)
    assert 'a few updates were tried, and failed' in text and 'signal SIGKILL' in text


def test_memory_that_lacks_is_said_of_each_training_and_of_arms_side_by_side():
    recipe = load_recipe(MINI, {'runtime.jobs': 2})
    row = {'there': 10 * GIB, 'fixed': 2 * GIB, 'wanted': 18 * GIB}
    small = row | {'wanted': 6 * GIB}
    (text,) = forecast.memory_problems(recipe, {'student': small, 'student taught by r101': row})
    assert 'student taught by r101: an update of 8 images takes 18.0 GiB' in text
    assert '10.0 GiB are free' in text and 'schedule.batch_size' in text
    (text,) = forecast.memory_problems(recipe, {'student': small})
    assert '2 arms side by side take 12.0 GiB' in text and 'lower runtime.jobs to 1' in text
    assert forecast.memory_problems(load_recipe(MINI, {'runtime.jobs': 1}), {'a': small}) == []


def test_the_time_left_is_the_sum_of_what_is_left(tmp_path, tiny_coco):
    updates = {'schedule.baseline': 2, 'schedule.arm': 4, 'schedule.teacher': 8}
    root = tiny_coco(tmp_path / 'coco')
    recipe = load_recipe(MINI, SETTINGS | updates | {'data.root': str(root)})
    rows = {'student': 1.0, 'r101': 2.0, 'rx101': 3.0, 'student taught by r101': 4.0}
    rows |= {'student taught by rx101': 5.0}
    rows = {name: {'seconds': s, 'data': 0.5, 'wanted': GIB} for name, s in rows.items()}
    measured = {'trainings': rows, 'images': {'student': 0.25, 'r101': 0.5, 'rx101': 1.0}}
    step, images = forecast.NOTEBOOK_SECONDS, 4
    updates = recipe.detectors['r101'].updates, recipe.detectors['rx101'].updates
    training = 2 * 1.5 + updates[0] * 2.5 + updates[1] * 3.5  # baseline, teachers
    training += (
        4 * 1.5 + 2 * 4 * 5.5 + 2 * (4.5 + 5.5) + 2 * 4.5
    )  # control, direct, repeated, two orders
    evaluating = images * (8 * 0.25 + 0.5 + 1.0)  # the reverse order begins as `repeated` does
    wanted = training + evaluating + (10 + forecast.OTHER_NOTEBOOKS) * step
    assert forecast.seconds_left(recipe, tmp_path, measured) == pytest.approx(wanted)
    done = tmp_path / 'detectors/student'
    done.mkdir(parents=True)
    (done / 'training.json').write_text('{"update": 1}')
    assert forecast.seconds_left(recipe, tmp_path, measured) == pytest.approx(wanted - 1.5)
    (done / 'model.pth').touch()
    less = 2 * 1.5 + step + images * 0.25
    assert forecast.seconds_left(recipe, tmp_path, measured) == pytest.approx(wanted - less)
    assert forecast.forecast_texts(recipe, tmp_path, measured)['memory'] == '1.0 GiB a training'


def test_a_busy_machine_is_named(tmp_path):
    recipe = load_recipe(MINI, SETTINGS)
    row = {'seconds': 3.0, 'data': 0.0, 'wanted': GIB}
    rows = {t.title: dict(row) for t in planned_trainings(recipe, tmp_path)}
    measured = {'trainings': rows, 'images': dict.fromkeys(recipe.detectors, 300.0)}
    hours = forecast.seconds_left(recipe, tmp_path, measured) / 3600
    usual = f'about {hours:.1f} hours, more where other programs use the machine'
    for processor in ({}, {'processor': 2.9}):  # a file of an earlier version, an idle machine
        measured['trainings'] = dict.fromkeys(rows, row | processor)
        assert forecast.forecast_texts(recipe, tmp_path, measured)['time'] == usual
    measured['trainings'] = {title: row | {'processor': 0.3} for title in rows}
    text = forecast.forecast_texts(recipe, tmp_path, measured)['time']
    assert text.startswith(
        f'about {hours:.1f} hours if the machine stays as busy as it is, far less'
    )
    took = f'{3 * len(rows):.1f} s of wall time for {0.3 * len(rows):.1f} s of processor time'
    assert took in text


@pytest.mark.long
def test_the_room_that_checkpoints_take_is_that_of_the_files(tmp_path, tiny_coco):
    recipe = load_recipe(MINI, SETTINGS | {'data.root': str(tiny_coco(tmp_path / 'coco'))})
    todo = arm_trainings(recipe, recipe.arm('progressive'), [1], tmp_path / 'run')
    todo += [detector_training(recipe, name, tmp_path / 'run') for name in ('student', 'r101')]
    sizes = [forecast.checkpoint_sizes(recipe, t.detector, t.teacher) for t in todo]
    before = forecast.bytes_to_write(recipe, todo)
    assert before == sum(map(sum, sizes)) + 2 * max(latest for latest, _ in sizes)
    settings = {'teachers.r101.updates': 1}
    train_stage(load_recipe(recipe, settings), 1, 'progressive', tmp_path / 'run')
    for training, size in zip(todo, sizes, strict=True):
        files = [training.folder / name for name in ('latest.pth', training.final)]
        real = [path.stat().st_size for path in files]
        # A file has names and config texts beside its numbers.
        assert all(one <= both for one, both in zip(size, real, strict=True))
        assert sum(real) - sum(size) < 0.2 * sum(size) + 300_000
    assert forecast.bytes_to_write(recipe, todo) == 0


@pytest.mark.parametrize(
    ('optimizer', 'moments'),
    [
        (dict(type='SGD', lr=1, momentum=0.9), 1),
        (dict(type='SGD', lr=1), 0),
        (dict(type='AdamW', lr=1), 2),
    ],
)
def test_what_an_optimizer_keeps_is_counted(optimizer, moments):
    settings = {'schedule.optimizer': {'_delete_': True, **optimizer}}
    recipe = load_recipe(MINI, settings)
    latest, final = forecast.checkpoint_sizes(recipe, 'student', None)
    model = build_detector(ConfigDict(recipe.model('student')))
    trained = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    assert final == sum(t.nbytes for t in model.state_dict().values())
    assert latest == final + moments * trained


def test_a_full_disk_is_reported(tmp_path, tiny_coco):
    recipe = load_recipe(MINI, SETTINGS | {'data.root': str(tiny_coco(tmp_path / 'coco'))})
    todo = planned_trainings(recipe, tmp_path / 'run')
    (text,) = forecast.disk_problems(recipe, todo, tmp_path / 'run', lambda path: 1000)
    assert 'has 0.0 MB free' in text and '--work-dir' in text
    needed = forecast.bytes_to_write(recipe, todo)
    assert forecast.disk_problems(recipe, todo, tmp_path / 'run', lambda path: needed) == []
