"""What users get wrong before a training: one message with the fix, exit code 2, and what exists stays."""

from mtpd import compat  # noqa: F401  (before mmcv)

# isort: split
import hashlib

import pytest
import torch
from click.testing import CliRunner
from mmcv import ConfigDict
from mmdet.models import build_detector

from mtpd import checkpoints, compare, load_recipe
from mtpd.cli import main
from mtpd.data import download, transfer

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
PAPER = 'configs/paper/mask_rcnn_r50__cascade_r50dcn_rx101dcn.py'
CAFFE = 'mmdet::retinanet/retinanet_r50_caffe_fpn_1x_coco.py'
CAFFE_IMAGES = 'image.mean=[103.53,116.28,123.675] image.std=[1,1,1] image.to_rgb=False'
SMALL = {
    'image.scale': 64,
    'schedule.batch_size': 2,
    'schedule.baseline': 1,
    'schedule.arm': 2,
    'schedule.log_interval': 1,
    'schedule.checkpoint_interval': 1,
    'runtime.workers': 0,
    'runtime.threads': 1,
    'arms.direct.teachers': ['r101'],
    'arms.progressive.teachers': ['r101', 'r101'],
    'teachers.rx101.checkpoint': None,
}


@pytest.fixture(scope='module')
def given(tmp_path_factory, tiny_coco):
    """The recipe's overrides with a data set of two classes, and the state of a teacher that fits."""
    root = tiny_coco(tmp_path_factory.mktemp('coco'))
    options = SMALL | {'data.root': str(root)}
    torch.manual_seed(0)
    model = build_detector(ConfigDict(load_recipe(MINI, options).model('r101')))
    model.init_weights()
    return options, model.state_dict()


def refused(*arguments) -> str:
    """The message of a user's mistake: exit code 2 and no traceback."""
    found = CliRunner().invoke(main, [str(item) for item in arguments])
    assert found.exit_code == 2, (found.output, found.exception)
    assert 'Traceback' not in found.output
    return found.output


def options(values: dict) -> tuple[str, ...]:
    return tuple(
        part for key, value in values.items() for part in ('--cfg-options', f'{key}={value}')
    )


def saved(state, path, **meta):
    checkpoints.save_atomic(
        {'meta': {'CLASSES': ('cat', 'dog'), **meta}, 'state_dict': state}, path
    )
    return path


def of_student(given):
    return build_detector(ConfigDict(load_recipe(MINI, given[0]).model('student'))).state_dict()


def of_other_classes(given):
    """The teacher's weights with ten classes in the head and none in the meta."""
    ten = load_recipe(MINI, {k: v for k, v in given[0].items() if k != 'data.root'})
    return build_detector(ConfigDict(ten.model('r101'))).state_dict()


NORM = "dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)"
TEACHERS = {
    'damaged': (
        lambda given, path: path.write_bytes(saved(given[1], path).read_bytes()[:5000]),
        ['is damaged, cut short or no PyTorch file'],
    ),
    'a web page': (
        lambda given, path: path.write_text('<!DOCTYPE html><html>Not found</html>'),
        ['is a web page'],
    ),
    'of another sum': (
        lambda given, path: saved(given[1], path),
        ['has a sha256 that begins', '00000000 is stated for it', 'fetch it again'],
    ),
    'another architecture': (
        lambda given, path: saved(of_student(given), path),
        ['does not fit r101', 'another architecture'],
    ),
    'ten classes, not named': (
        lambda given, path: saved(of_other_classes(given), path, CLASSES=None),
        ['the model has 2 classes and the file 10'],
    ),
    'three classes': (
        lambda given, path: saved(given[1], path, CLASSES=('cat', 'dog', 'cow')),
        ['it knows 3 classes (cat, dog, cow), the dataset has 2 (cat, dog)', '.init='],
    ),
    'another order': (
        lambda given, path: saved(given[1], path, CLASSES=('dog', 'cat')),
        ["its class 0 is 'dog', the dataset's 'cat' (the same classes in another order)"],
    ),
    'other names': (
        lambda given, path: saved(given[1], path, CLASSES=('cat', 'cow')),
        ["its class 1 is 'cow', the dataset's 'dog'.", 'teachers.r101.checkpoint=None'],
    ),
    'other images, as this kit writes them': (
        lambda given, path: saved(given[1], path, config=f'data = {[eval(NORM)]!r}\n'),
        ['to_rgb False', CAFFE_IMAGES],
    ),
    'other images': (
        lambda given, path: saved(given[1], path, config=f'pipeline = [{NORM}]\n'),
        [
            'mean [103.53,116.28,123.675], std [1,1,1], to_rgb False',
            'mean [123.675,116.28,103.53], std [58.395,57.12,57.375], to_rgb True',
            CAFFE_IMAGES,
        ],
    ),
}


@pytest.mark.parametrize('command', ['train', 'run'])
@pytest.mark.parametrize('kind', TEACHERS)
def test_a_teacher_that_does_not_fit_is_named_before_anything_is_trained(
    given, tmp_path, kind, command
):
    make, parts = TEACHERS[kind]
    path = tmp_path / ('t-00000000.pth' if kind == 'of another sum' else 't.pth')
    make(given, path)
    before = path.read_bytes()
    arm = ('--arm', 'direct') if command == 'train' else ()
    more = options(given[0] | {'teachers.r101.checkpoint': path})
    text = refused(command, MINI, *arm, '--work-dir', tmp_path / 'run', *more)
    for part in (*parts, str(path) if not kind.startswith('other images') else path.name):
        assert part in text
    assert not (tmp_path / 'run').exists()
    assert path.read_bytes() == before


def test_all_teachers_of_the_stages_to_come_are_looked_at(given, tmp_path):
    bad = saved(of_student(given), tmp_path / 'bad.pth')
    good = saved(given[1], tmp_path / 'good.pth')
    plan = given[0] | {'arms.progressive.teachers': ['r101', 'rx101']}
    plan |= {'teachers.r101.checkpoint': good, 'teachers.rx101.checkpoint': bad}
    train = ('train', MINI, '--work-dir', tmp_path / 'run', '--arm', 'progressive')
    assert 'does not fit rx101' in refused(*train, '--stage', 2, *options(plan))
    assert not (tmp_path / 'run').exists()


def test_a_teacher_of_caffe_images_is_refused_by_its_config_and_not_fetched(given, tmp_path, site):
    plan = given[0] | {
        'student.config': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'teachers.r101.config': CAFFE,
        'teachers.r101.checkpoint': f'{site.url}/r101.pth',
    }
    train = ('train', MINI, '--work-dir', tmp_path / 'run', '--arm', 'direct')
    text = refused(*train, *options(plan))
    assert f'to_rgb False ({CAFFE})' in text and 'Choose a teacher that takes images as' in text
    assert site.asked == [] and not (tmp_path / 'run').exists()


def test_the_fix_for_a_caffe_student_is_the_one_that_is_told(given):
    plan = given[0] | {'student.config': CAFFE, 'teachers.r101.config': CAFFE}
    plan |= {'teachers.r101.checkpoint': 'r101.pth'}
    found = compare.settings_problems(load_recipe(MINI, plan), ['student', 'r101'])
    assert len(found) == 2 and all(f"--cfg-options '{CAFFE_IMAGES}'" in text for text in found)
    told = load_recipe(load_recipe(MINI, plan), CAFFE_IMAGES)
    assert compare.settings_problems(told, ['student', 'r101']) == []


@pytest.mark.parametrize(
    'config',
    [
        None,
        'pipeline = [dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])]',
        f'base = [{NORM}]\nown = [dict(type="Normalize", mean=[0.0], std=[1.0])]',  # of two files: which?
        f'raise SystemExit\n{NORM.replace("[1.0, 1.0, 1.0]", "print")}',
        '/a/path.py\nno Python',
    ],
)
def test_a_checkpoint_that_says_nothing_of_images_or_the_same_passes(given, tmp_path, config):
    path = saved(given[1], tmp_path / 't.pth', config=config, CLASSES=['Cat', 'dog'])
    recipe = load_recipe(MINI, given[0])
    assert compare.checkpoint_problems(recipe, 'r101', path) == []


def test_a_detector_that_mmdet_cannot_build_is_named(given, tmp_path):
    plan = given[0] | {'teachers.r101.model.neck.num_outs': 1}
    plan |= {'teachers.r101.checkpoint': saved(given[1], tmp_path / 't.pth')}
    train = ('train', MINI, '--work-dir', tmp_path / 'run', '--arm', 'direct')
    assert 'r101: mmdet cannot build' in refused(*train, *options(plan))
    assert not (tmp_path / 'run').exists()


def test_a_teacher_without_a_head_passes_and_a_student_does_not(given, tmp_path):
    state = {k: v for k, v in given[1].items() if not k.startswith('bbox_head')}
    recipe = load_recipe(MINI, given[0])
    assert compare.checkpoint_problems(recipe, 'r101', saved(state, tmp_path / 't.pth')) == []
    state = {k: v for k, v in of_student(given).items() if not k.startswith('bbox_head')}
    (text,) = compare.checkpoint_problems(recipe, 'student', saved(state, tmp_path / 's.pth'))
    assert 'bbox_head' in text


@pytest.mark.parametrize('name', ['retinanet_r50__r101_rx101', 'retinanet_r50__swint_swins'])
def test_detectors_of_the_paper_take_the_same_images(name, tmp_path, tiny_coco):
    root = {'data.root': str(tiny_coco(tmp_path / 'coco'))}
    recipe = load_recipe(f'configs/paper/{name}.py', root)
    assert compare.settings_problems(recipe, recipe.detectors) == []


# Stages


def test_a_damaged_predecessor_is_made_again_or_named(given, tmp_path):
    teacher = saved(given[1], tmp_path / 't.pth')
    run = tmp_path / 'run'
    more = options(given[0] | {'teachers.r101.checkpoint': teacher})
    train = ('train', MINI, '--work-dir', run, '--arm', 'progressive', *more, '--stage')
    first = CliRunner().invoke(main, [str(item) for item in (*train, 1)])
    assert first.exit_code == 0, first.output
    student = run / 'stages/progressive/1_r101/student.pth'
    whole = student.read_bytes()
    student.write_bytes(whole[: len(whole) // 2])
    latest = student.with_name('latest.pth')
    kept = latest.read_bytes()
    latest.write_bytes(b'')
    text = refused(*train, 2)
    assert (
        f'{student} is damaged' in text and 'remove it, and the same command makes it again' in text
    )
    assert student.read_bytes() == whole[: len(whole) // 2]
    assert not (run / 'stages/progressive/2_r101').exists()

    latest.write_bytes(kept)
    second = CliRunner().invoke(main, [str(item) for item in (*train, 2)])
    assert second.exit_code == 0, second.output
    assert f'{student} is damaged' in second.output
    assert student.read_bytes() == whole


def test_a_detector_that_is_not_there_is_named(given, tmp_path):
    text = refused('train', MINI, '--detector', 'r11', *options(given[0]))
    assert "unknown detector 'r11'. Did you mean 'r101'?" in text
    path = saved(given[1], tmp_path / 't.pth')
    text = refused('eval', MINI, '--checkpoint', path, '--detector', 'x', *options(given[0]))
    assert "unknown detector 'x'" in text


# Masks


@pytest.fixture(scope='module')
def boxes_only(tmp_path_factory, tiny_coco):
    return {'data.root': str(tiny_coco(tmp_path_factory.mktemp('boxes')))}


@pytest.mark.parametrize('command', [('run',), ('train',), ('train', '--arm', 'direct')])
def test_mask_rcnn_on_data_without_masks(boxes_only, tmp_path, monkeypatch, command):
    monkeypatch.setenv('MTPD_CACHE', str(tmp_path / 'cache'))  # nothing is fetched for it
    command, *more = command
    text = refused(command, PAPER, '--work-dir', tmp_path / 'run', *more, *options(boxes_only))
    assert 'student has a mask head, and 5 of 5 annotations of' in text and 'train.json' in text
    assert 'evaluation.metrics has segm, and 5 of 5 annotations of' in text and 'val.json' in text
    assert not (tmp_path / 'run').exists() and not (tmp_path / 'cache').exists()


def test_masks_of_a_box_detector_are_refused_before_training(given, tmp_path, monkeypatch):
    plan = {k: v for k, v in given[0].items() if k != 'data.root'}  # DigitScenes have masks
    plan |= {'data.scenes.train': 4, 'data.scenes.val': 2, 'data.scenes.size': 64}
    plan |= {'data.cache': tmp_path / 'data', 'evaluation.metrics': ['bbox', 'segm']}
    for command in (('run',), ('train',), ('train', '--arm', 'direct')):
        command, *more = command
        text = refused(command, MINI, '--work-dir', tmp_path / 'run', *more, *options(plan))
        assert 'evaluation.metrics has segm, and student predicts no masks: leave segm out' in text
        assert not (tmp_path / 'run').exists()
    state = build_detector(ConfigDict(load_recipe(MINI).model('student'))).state_dict()
    path = saved(state, tmp_path / 's.pth', CLASSES=None)
    del plan['evaluation.metrics']
    text = refused('eval', MINI, '--checkpoint', path, '--metrics', 'segm', *options(plan))
    assert 'RetinaNet predicts no masks. Leave it out: --metrics bbox' in text


def test_boxes_are_always_measured():
    assert 'lacks bbox' in refused('train', MINI, '--cfg-options', "evaluation.metrics=['segm']")


# Downloads


@pytest.mark.parametrize('command', [('run',), ('train', '--arm', 'direct')])
def test_a_broken_download_keeps_what_came(given, tmp_path, monkeypatch, site, command):
    monkeypatch.setenv('MTPD_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(download, 'WAITS', ())
    content = saved(given[1], tmp_path / 't.pth').read_bytes()
    name = f't-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    site.files = {f'/{name}': content}
    site.faults.extend([{'cut': transfer.CHUNK}, {'cut': 0}])
    command, *more = command
    more += options(given[0] | {'teachers.r101.checkpoint': f'{site.url}/{name}'})
    text = refused(command, MINI, '--work-dir', tmp_path / 'run', *more)
    assert f'{site.url}/{name} cannot be fetched' in text and 'then repeat' in text
    part = tmp_path / 'cache' / 'checkpoints' / f'{name}.part'
    assert part.read_bytes() == content[: transfer.CHUNK]
    assert not (tmp_path / 'run').exists()


def test_a_download_of_another_sum_is_not_kept_and_the_old_file_is(
    given, tmp_path, monkeypatch, site
):
    monkeypatch.setenv('MTPD_CACHE', str(tmp_path / 'cache'))
    site.files = {'/t-00000000.pth': saved(given[1], tmp_path / 't.pth').read_bytes()}
    old = tmp_path / 'cache' / 'checkpoints' / 't-00000000.pth'
    old.parent.mkdir(parents=True)
    old.write_bytes(b'another one')
    more = options(given[0] | {'teachers.r101.checkpoint': f'{site.url}/t-00000000.pth'})
    text = refused('train', MINI, '--arm', 'direct', '--work-dir', tmp_path / 'run', *more)
    assert 'is not the file that is meant' in text and '00000000 is expected' in text
    assert old.read_bytes() == b'another one' and not (tmp_path / 'run').exists()
