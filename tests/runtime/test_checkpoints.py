"""Reading, inheriting, exporting and writing checkpoints."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.tiny import detector, retinanet
from mtpd.distill.initialization import inherit_from_teacher
from mtpd.errors import MtpdError
from mtpd.runtime import checkpoints
from mtpd.utils.files import file_sha256


class Foreign:
    pass


def saved(path, model, prefix='', **more):
    """A checkpoint of `model` in `path`, its keys under `prefix`."""
    state = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save({'state_dict': {**state, **more}, 'meta': {'CLASSES': ('a', 'b', 'c')}}, path)
    return path


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def message(call, *args, **kwargs):
    with pytest.raises(MtpdError) as error:
        call(*args, **kwargs)
    return str(error.value)


@pytest.fixture(scope='module')
def student():
    return detector(retinanet(), seed=1)


# --- load ---------------------------------------------------------------------------------------


def damaged(path, kind):
    if kind == 'foreign':
        torch.save({'state_dict': {}, 'meta': Foreign()}, path)
    elif kind == 'foreign pickle':
        path.write_bytes(pickle.dumps(Foreign(), protocol=2))
    elif kind.startswith('truncated'):
        zipped = kind == 'truncated'
        state = {'state_dict': {'w': torch.zeros(1000)}}
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[: 2000 if zipped else int(kind.split()[-1])])
    elif kind == 'list':
        torch.save([torch.zeros(1)], path)
    elif kind == 'folder':
        path.mkdir()
    elif kind != 'missing':
        content = {
            'html': b'\n<!DOCTYPE html><html>404</html>',
            'text': b'hello there',
            'empty': b'',
        }
        content |= {'lfs': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n'}
        content |= {'random': np.random.default_rng(0).bytes(500)}
        path.write_bytes(content[kind])


@pytest.mark.parametrize(
    'kind, words',
    [
        ('missing', 'no such file'),
        ('folder', 'no such file'),
        ('empty', 'is empty'),
        ('html', 'a web page'),
        ('lfs', 'Git LFS'),
        ('text', 'not a PyTorch file'),
        ('random', 'not a PyTorch file'),
        ('truncated', 'cut short'),
        ('truncated legacy 30', 'cut short'),
        ('truncated legacy 300', 'cut short'),
        ('foreign', 'test_checkpoints.Foreign'),
        ('foreign pickle', 'Foreign'),
        ('list', 'state_dict'),
    ],
)
def test_what_is_no_checkpoint_is_named_with_its_file(tmp_path, kind, words):
    path = tmp_path / 'teacher.pth'
    damaged(path, kind)
    text = message(checkpoints.load_checkpoint, path)
    assert words in text and str(path) in text


@pytest.mark.parametrize('legacy', [False, True])
def test_checkpoints_of_mmdet_load(tmp_path, legacy):
    path = tmp_path / 'a.pth'
    meta = {'CLASSES': ('a',), 'best': np.float64(0.5), 'hook_msgs': {'score': np.float32(1)}}
    torch.save(
        {'state_dict': {'w': torch.ones(2)}, 'meta': meta},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    assert checkpoints.load_checkpoint(path)['meta'] == meta


# --- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize('prefix', ['', 'module.', 'student.', 'module.student.'])
def test_every_layout_gives_the_students_plain_keys(tmp_path, student, prefix):
    more = {}
    if 'student' in prefix:
        outer = prefix.removesuffix('student.')
        more = {
            f'{outer}teacher.backbone.conv1.weight': torch.ones(3),
            f'{outer}distill_losses.loss_x.align.weight': torch.ones(3),
        }
    path = saved(tmp_path / 'a.pth', student, prefix, **more)
    checkpoint = checkpoints.load_checkpoint(path)
    assert same(checkpoints.student_state(checkpoint), student.state_dict())

    other = detector(retinanet(), seed=2)
    meta = checkpoints.load_student(other, path)
    assert same(other.state_dict(), student.state_dict())
    assert meta['CLASSES'] == ('a', 'b', 'c')


# What the tools of a prefix save beside the detector.
BESIDE = {
    'architecture.': ('teacher.backbone.conv1.weight', 'distiller.connectors.c.weight'),
    'architecture.model.': ('distiller.teacher.model.backbone.conv1.weight',),
    'algorithm.architecture.': ('algorithm.teacher.backbone.conv1.weight',),
    'model.': ('criterion.weight', 'ema_model.backbone.conv1.weight'),
    'model.student.': ('model.teacher.backbone.conv1.weight',),
    '': ('teacher.backbone.conv1.weight', 'distill_losses.x.align.weight', 'ema_neck_bias'),
}


@pytest.mark.parametrize(
    'prefix',
    [
        *BESIDE,
        '_orig_mod.',
        'module._orig_mod.',
        '_orig_mod.module.',
        'student._orig_mod.',
        '_orig_mod.student.module.',
        'module.architecture._orig_mod.',
        '_fsdp_wrapped_module.',
    ],
)
def test_the_student_in_other_tools_checkpoints_is_found(tmp_path, student, prefix):
    more = {key: torch.ones(3) for key in BESIDE.get(prefix, ())}
    path = saved(tmp_path / 'a.pth', student, prefix, **more)
    written = checkpoints.publish_student(path, tmp_path / 'out')
    assert same(checkpoints.load_checkpoint(written)['state_dict'], student.state_dict())
    other = detector(retinanet(), seed=2)
    checkpoints.load_student(other, path)
    assert same(other.state_dict(), student.state_dict())


def test_parts_that_torch_compiled_or_recomputes_are_found(student):
    def wrapped(key):
        for part in ('backbone.layer1.', 'neck.'):
            key = key.replace(part, f'{part}_orig_mod.')
        return key.replace('bbox_head.', 'bbox_head._checkpoint_wrapped_module.')

    state = {wrapped(key): value for key, value in student.state_dict().items()}
    assert not same(state, student.state_dict())
    assert same(checkpoints.student_state({'state_dict': state}), student.state_dict())


@pytest.mark.parametrize(
    'key', ['model', 'model_state_dict', 'ema_state_dict', 'state_dict_ema', None]
)
def test_weights_under_any_one_key_and_at_the_top_are_found(student, key):
    state = student.state_dict()
    content = state if key is None else {key: state, 'optimizer': {'state': {}}, 'epoch': 3}
    assert same(checkpoints.student_state(content), state)


def test_mmengines_average_is_taken_and_not_the_raw_weights_beside_it(student):
    """Its EMAHook puts the average under state_dict, and the raw weights under ema_state_dict."""
    raw = {f'module.{key}': value + 1 for key, value in student.state_dict().items()}
    content = {'state_dict': student.state_dict(), 'ema_state_dict': raw}
    assert same(checkpoints.student_state(content), student.state_dict())


def run_command(text: str, folder: Path, monkeypatch) -> Path:
    """Runs the statements of the Python command in a message; returns what it wrote."""
    monkeypatch.chdir(folder)
    exec(text.partition('python -c "')[2].partition('"')[0], {})
    return folder / 'NEW.pth'


@pytest.mark.parametrize('other', ['state_dict_ema', 'ema'])
def test_several_sets_of_weights_are_refused_with_a_command_that_takes_one(
    tmp_path, student, other, monkeypatch
):
    key = 'state_dict' if other == 'state_dict_ema' else 'model'
    content = {key: student.state_dict(), other: detector(retinanet(), 2).state_dict()}
    torch.save(content, tmp_path / 'a.pth')
    text = message(checkpoints.load_student, student, tmp_path / 'a.pth')
    assert f'a.pth holds several sets of weights: {key}, {other}' in text
    state = checkpoints.load_checkpoint(run_command(text, tmp_path, monkeypatch))
    assert same(checkpoints.student_state(state), student.state_dict())


@pytest.mark.parametrize('outer', ['pair.', ''])
def test_a_teacher_without_a_known_student_is_refused_with_a_command_that_takes_it(
    outer, tmp_path, student, monkeypatch
):
    teacher = {f'{outer}teacher.{k}': v for k, v in detector(retinanet(), 2).state_dict().items()}
    path = saved(tmp_path / 'a.pth', student, f'{outer}small.', **teacher)
    text = message(checkpoints.publish_student, path, tmp_path / 'out.pth')
    assert 'a.pth holds a teacher, but its student was not found' in text
    state = checkpoints.load_checkpoint(run_command(text, tmp_path, monkeypatch))
    assert same(checkpoints.student_state(state), student.state_dict())
    torch.save({'state_dict': {'teacher.backbone.w': torch.ones(1)}}, path)
    assert 'a teacher, but its student was not found' in message(
        checkpoints.load_student, student, path
    )


def test_class_names_of_mmdet_3_are_those_of_mmdet_2(tmp_path, student):
    meta = {'dataset_meta': {'classes': ('a', 'b', 'c'), 'palette': [(0, 0, 0)]}, 'iter': 9}
    torch.save({'state_dict': student.state_dict(), 'meta': meta}, tmp_path / 'a.pth')
    written = checkpoints.publish_student(tmp_path / 'a.pth', tmp_path / 'out')
    assert checkpoints.load_checkpoint(written)['meta']['CLASSES'] == ('a', 'b', 'c')


@pytest.fixture
def of_mmengine(tmp_path, student, monkeypatch):
    """A checkpoint as MMDetection 3 writes them, and the folder of a package with its class, which is not on the path."""
    (tmp_path / 'packages/mmengine/logging').mkdir(parents=True)
    (tmp_path / 'packages/mmengine/__init__.py').write_text('')
    (tmp_path / 'packages/mmengine/logging/__init__.py').write_text('')
    file = tmp_path / 'packages/mmengine/logging/history_buffer.py'
    file.write_text('class HistoryBuffer:\n    pass\n')
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / 'packages'))
        from mmengine.logging.history_buffer import HistoryBuffer

        content = {'meta': {}, 'message_hub': {'log_scalars': {'loss': HistoryBuffer()}}}
        torch.save(content | {'state_dict': student.state_dict()}, tmp_path / 'epoch_12.pth')
    for name in [name for name in sys.modules if name.partition('.')[0] == 'mmengine']:
        del sys.modules[name]
    return tmp_path / 'epoch_12.pth', tmp_path / 'packages'


def test_a_checkpoint_of_mmdet_3_names_the_package_and_commands_that_work(
    of_mmengine, tmp_path, student, monkeypatch
):
    path, packages = of_mmengine
    text = message(checkpoints.load_student, student, path)
    assert 'mmengine.logging.history_buffer.HistoryBuffer' in text and 'could run code' in text
    assert 'pip install mmengine' in text and f'mtpd export {path} NEW.pth' in text
    export = (path, tmp_path / 'out')
    with_trust = message(checkpoints.publish_student, *export, trust=True)
    assert 'it needs the package mmengine, which is not installed here' in with_trust
    monkeypatch.syspath_prepend(str(packages))  # installed, or where the file is from
    written = checkpoints.publish_student(*export, trust=True)
    assert same(checkpoints.load_checkpoint(written)['state_dict'], student.state_dict())
    plain = run_command(text, tmp_path, monkeypatch)
    assert same(checkpoints.load_checkpoint(plain)['state_dict'], student.state_dict())


def test_an_unknown_package_is_not_advised_to_be_installed(tmp_path):
    """A stranger could have registered its name."""
    (tmp_path / 'x.pth').write_bytes(b'\x80\x02cno_such_package.part\nThing\n.')
    text = message(checkpoints.load_checkpoint, tmp_path / 'x.pth')
    assert 'no_such_package' in text and 'pip install' not in text


def test_student_state_leaves_the_checkpoint_as_it_is():
    checkpoint = {'state_dict': {'w': torch.ones(1), 'ema_w': torch.zeros(1), 'note': 'text'}}
    assert list(checkpoints.student_state(checkpoint)) == ['w']
    assert list(checkpoint['state_dict']) == ['w', 'ema_w', 'note']


@pytest.mark.parametrize('content', [{'state_dict': {}}, {'meta': {}}, {'state_dict': [1]}])
def test_a_checkpoint_without_weights_is_named(content):
    assert 'a.pth holds no weights' in message(checkpoints.student_state, content, 'a.pth')


def test_versions_of_modules_survive_a_prefix():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    outer = torch.nn.ModuleDict({'student': model})
    state = checkpoints.student_state({'state_dict': outer.state_dict()})
    assert state._metadata == model.state_dict()._metadata


# --- strict loading -----------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_weights_come_in_one_message(tmp_path, student):
    state = dict(student.state_dict())
    del state['backbone.conv1.weight']
    state['backbone.bn1.num_batches_tracked'] = torch.tensor(0)
    state['roi_head.weight'] = torch.ones(1)
    state['neck.fpn_convs.0.conv.bias'] = torch.ones(5)
    torch.save({'state_dict': state}, tmp_path / 'a.pth')
    text = message(checkpoints.load_student, student, tmp_path / 'a.pth')
    for words in (
        'a.pth does not fit',
        'not in the file: backbone.conv1.weight',
        'not in the student: roi_head.weight',
        'neck.fpn_convs.0.conv.bias (16,) (5,)',
        'classes',
    ):
        assert (words in text) == (words != 'classes'), text


def test_another_number_of_classes_is_recognised(tmp_path):
    path = saved(tmp_path / 'a.pth', detector(retinanet(num_classes=5), 1))
    text = message(checkpoints.load_student, detector(retinanet(num_classes=3), 1), path)
    assert 'the model has 3 classes and the file 5' in text


def test_two_anchors_of_one_class_are_no_background_output(tmp_path):
    def of_classes(count):
        config = retinanet(num_classes=count)
        config['bbox_head']['anchor_generator']['ratios'] = [0.7, 1.0]
        return detector(config, 1)

    path = saved(tmp_path / 'a.pth', of_classes(10))
    text = message(checkpoints.load_student, of_classes(1), path)
    assert 'the model has 1 classes and the file 10' in text


def test_another_number_of_classes_is_recognised_with_a_background_output():
    class TwoStage(torch.nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.rpn = torch.nn.Linear(4, 1)
            self.rpn.num_classes = 1
            self.num_classes = classes
            self.fc_cls = torch.nn.Linear(4, classes + 1)
            self.fc_reg = torch.nn.Linear(4, classes * 4)

    state = TwoStage(80).state_dict()
    text = message(checkpoints.load_strictly, TwoStage(10), state, 'the student', 'a.pth')
    assert 'the model has 10 classes and the file 80' in text


def test_another_architecture_is_recognised(tmp_path, student):
    path = saved(tmp_path / 'a.pth', detector(retinanet(depth=34), 1))
    text = message(checkpoints.load_student, student, path)
    count = len(student.state_dict())
    assert 'another architecture' in text and f'{count} of {count} weights match' in text
    path = saved(tmp_path / 'a.pth', detector(retinanet(base=16), 1))
    assert 'another architecture' in message(checkpoints.load_student, student, path)


def test_batch_norm_of_old_files_without_a_counter_loads(tmp_path, student):
    state = {k: v for k, v in student.state_dict().items() if 'num_batches' not in k}
    torch.save({'state_dict': state}, tmp_path / 'a.pth')
    model = detector(retinanet(), 2)
    checkpoints.load_student(model, tmp_path / 'a.pth')
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


# --- inheriting ---------------------------------------------------------------------------------


def test_neck_and_head_are_inherited_and_the_backbone_is_not():
    model, teacher = detector(retinanet(), 1), detector(retinanet(depth=34), 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = inherit_from_teacher(model, teacher.state_dict())
    theirs = teacher.state_dict()
    for key, value in model.state_dict().items():
        source = before if key.startswith('backbone.') else theirs
        assert torch.equal(value, source[key]), key
    assert report.skipped == {}
    assert set(report.copied) == {k for k in before if not k.startswith('backbone.')}
    assert not same(before, model.state_dict())


def test_a_mismatch_is_an_error_and_copies_nothing_unless_it_is_allowed():
    model, teacher = detector(retinanet(), 1), detector(retinanet(base=16), 2).state_dict()
    teacher['bbox_head.more.weight'] = torch.ones(1)
    del teacher['bbox_head.retina_reg.bias']
    before = {k: v.clone() for k, v in model.state_dict().items()}
    laterals = [f'neck.lateral_convs.{i}.conv.weight' for i in range(3)]
    others = ['bbox_head.more.weight', 'bbox_head.retina_reg.bias']

    text = message(inherit_from_teacher, model, teacher, ['neck.lateral_convs.*'])
    named, fix = text.split('allow=')
    assert all(key in named for key in others) and 'lateral' not in named
    assert all(key in fix for key in ('neck.lateral_convs.*', *others))
    assert same(before, model.state_dict())

    report = inherit_from_teacher(model, teacher, ['neck.lateral_convs.*', 'bbox_head.*'])
    assert set(report.skipped) == {*laterals, *others}
    assert 'student (16, 16, 1, 1), teacher (16, 32, 1, 1)' in report.skipped[laterals[0]]
    after = model.state_dict()
    for key, value in before.items():
        skipped = key in report.skipped or key.startswith('backbone.')
        assert torch.equal(after[key], value if skipped else teacher[key]), key
    assert all(key in str(report) for key in report.skipped)


def test_a_batch_norm_counter_need_not_be_there_to_inherit():
    model = torch.nn.ModuleDict({'neck': torch.nn.BatchNorm2d(2)})
    state = {key: value + 1 for key, value in model.state_dict().items()}
    del state['neck.num_batches_tracked']
    assert len(inherit_from_teacher(model, state).copied) == 4
    assert model['neck'].weight.tolist() == [2, 2]


class Roi(torch.nn.Module):
    """The names of a two-stage detector's box head, one or `stages` of them."""

    def __init__(self, classes: int, outputs: int, stages: int = 0):
        super().__init__()
        head = [
            torch.nn.ModuleDict(
                {'fc_cls': torch.nn.Linear(2, classes + 1), 'fc_reg': torch.nn.Linear(2, outputs)}
            )
            for _ in range(stages or 1)
        ]
        self.roi_head = torch.nn.Module()
        self.roi_head.bbox_head = torch.nn.ModuleList(head) if stages else head[0]


@pytest.mark.parametrize('classes', [3, 80])
def test_of_a_cascade_the_first_stage_is_inherited(classes):
    student, teacher = Roi(classes, 4 * classes), Roi(classes, 4, stages=3)
    report = inherit_from_teacher(student, teacher.state_dict())
    first, mine = teacher.roi_head.bbox_head[0], student.roi_head.bbox_head
    assert torch.equal(mine['fc_cls'].weight, first['fc_cls'].weight)
    for k in range(classes):  # the four outputs of class k
        rows = slice(4 * k, 4 * k + 4)
        assert torch.equal(mine['fc_reg'].weight[rows], first['fc_reg'].weight)
        assert torch.equal(mine['fc_reg'].bias[rows], first['fc_reg'].bias)
    assert len(report.copied) == len(report.adapted) == 4 and not report.skipped
    assert f'repeated for {classes} classes' in report.adapted['roi_head.bbox_head.fc_reg.bias']


def test_a_class_agnostic_student_and_a_cascade_student_take_a_cascade_as_it_is():
    teacher = Roi(3, 4, stages=3)
    student = Roi(3, 4)
    inherit_from_teacher(student, teacher.state_dict())
    assert same(student.roi_head.bbox_head.state_dict(), teacher.roi_head.bbox_head[0].state_dict())
    student = Roi(3, 4, stages=3)
    assert inherit_from_teacher(student, teacher.state_dict()).adapted == {}
    assert same(student.state_dict(), teacher.state_dict())


def test_a_cascade_of_another_number_of_classes_is_refused():
    text = message(inherit_from_teacher, Roi(5, 20), Roi(3, 4, stages=3).state_dict())
    assert 'roi_head.bbox_head.fc_cls.weight: other shape (student (6, 2), teacher (4, 2))' in text


def test_nothing_to_inherit_is_an_error(student):
    assert 'no weight agrees' in message(inherit_from_teacher, student, {}, ['*'])


# --- export and writing -------------------------------------------------------------------------


def test_export_is_a_plain_checkpoint_that_says_where_it_is_from(tmp_path, student):
    src = saved(tmp_path / 'latest.pth', student, 'student.', **{'distill_losses.x': torch.ones(1)})
    dst = checkpoints.export_student(src, tmp_path / 'out' / 'student.pth', meta={'config': 'x=1'})
    written = torch.load(dst, weights_only=True)
    assert same(written['state_dict'], student.state_dict())
    meta = written['meta']
    assert meta['CLASSES'] == ('a', 'b', 'c') and meta['config'] == 'x=1'
    assert meta['mmdet_version'] and meta['mmcv_version']
    origin = {'file': 'latest.pth', 'sha256': file_sha256(src), 'half': False}
    assert meta['exported_from'] == origin
    assert checkpoints.student_state(written).keys() == student.state_dict().keys()


def test_a_published_name_ends_in_the_files_checksum_and_is_the_same_each_time(tmp_path, student):
    src = saved(tmp_path / 'latest.pth', student, 'student.', **{'distill_losses.x': torch.ones(1)})
    first = checkpoints.publish_student(src, tmp_path / 'out' / 'student.pth')
    assert first.parent == tmp_path / 'out' and first.suffix == '.pth'
    assert first.name == f'student-{file_sha256(first)[:8]}.pth'
    assert checkpoints.publish_student(src, tmp_path / 'out' / 'student.pth') == first
    assert [path.name for path in first.parent.iterdir()] == [first.name]  # nothing beside it
    assert same(checkpoints.load_checkpoint(first)['state_dict'], student.state_dict())
    # Names that mmdet's tool would make, too: no suffix, a checksum that is another file's, a folder.
    for name in ('student', 'student-00000000.pth'):
        assert checkpoints.publish_student(src, tmp_path / 'out' / name) == first
    assert checkpoints.publish_student(src, tmp_path / 'out').name == first.name.replace(
        'student', 'latest'
    )


def test_publishing_what_is_published_changes_nothing(tmp_path, student):
    first = checkpoints.publish_student(
        saved(tmp_path / 'a.pth', student, 'student.'), tmp_path / 's.pth'
    )
    again = checkpoints.publish_student(first, tmp_path / 's.pth')
    assert again == first and len(list(tmp_path.glob('s-*.pth'))) == 1
    halved = checkpoints.publish_student(first, tmp_path / 's.pth', half=True)
    assert (
        halved != first
        and checkpoints.load_checkpoint(halved)['meta']['exported_from']['half'] is True
    )
    assert checkpoints.publish_student(halved, tmp_path / 's.pth') == halved


def test_a_failed_publication_leaves_nothing(tmp_path):
    torch.save({'meta': {}}, tmp_path / 'a.pth')
    assert 'holds no weights' in message(
        checkpoints.publish_student, tmp_path / 'a.pth', tmp_path / 'o' / 'b'
    )
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']


def test_what_describes_the_student_is_kept_and_the_rest_is_not(tmp_path, student):
    stages = [{'arm': 'progressive', 'stage': 1, 'teacher': 'r101'}]
    about = {'CLASSES': ('a', 'b', 'c'), 'recipe': 'mini', 'stages': stages, 'seed': 3}
    more = {'student_config': 'x = 1', 'hook_msgs': {'path': '/home/me'}, 'time': 'today'}
    torch.save({'state_dict': student.state_dict(), 'meta': about | more}, tmp_path / 'a.pth')
    meta = checkpoints.load_checkpoint(
        checkpoints.publish_student(tmp_path / 'a.pth', tmp_path / 'b')
    )['meta']
    versions = {'mmdet_version', 'mmcv_version'}
    assert set(meta) == {*about, *versions, 'config', 'exported_from'} and meta['config'] == 'x = 1'
    assert {key: meta[key] for key in about} == about


def test_half_precision_is_storage_only(tmp_path, student):
    src = saved(tmp_path / 'a.pth', student)
    dst = checkpoints.export_student(src, tmp_path / 'b.pth', half=True)
    state = checkpoints.load_checkpoint(dst)['state_dict']
    assert state['backbone.conv1.weight'].dtype == torch.float16
    assert state['backbone.bn1.num_batches_tracked'].dtype == torch.int64
    assert dst.stat().st_size < 0.7 * src.stat().st_size

    other = detector(retinanet(), 2)
    checkpoints.load_student(other, dst)
    for key, value in other.state_dict().items():
        mine = student.state_dict()[key]
        assert value.dtype == mine.dtype
        torch.testing.assert_close(value, mine, rtol=1e-3, atol=1e-6)


def test_half_precision_spares_what_it_cannot_hold(tmp_path):
    state = {'bn.running_var': torch.tensor([1e5, 1.0])}
    torch.save({'state_dict': state}, tmp_path / 'a.pth')
    dst = checkpoints.export_student(tmp_path / 'a.pth', tmp_path / 'b.pth', half=True)
    assert same(checkpoints.load_checkpoint(dst)['state_dict'], state)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / 'a.pth'
    checkpoints.save_atomic({'x': 1}, path)
    with pytest.raises(Exception, match='pickle'):
        checkpoints.save_atomic({'x': torch.zeros(9), 'y': lambda: 0}, path)
    assert checkpoints.load_checkpoint(path) == {'x': 1}
    assert [p.name for p in tmp_path.iterdir()] == ['a.pth']


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    path = tmp_path / 'file' / 'a.pth'
    assert str(path) in message(checkpoints.save_atomic, {}, path)


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
def test_a_full_disk_is_an_error_with_its_cause(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'getpid', lambda: 'x')
    (tmp_path / '.a.pth.x.part').symlink_to('/dev/full')
    assert 'free space' in message(checkpoints.save_atomic, torch.zeros(10**5), tmp_path / 'a.pth')
    assert list(tmp_path.iterdir()) == []


def test_sha256_of_a_known_content(tmp_path):
    (tmp_path / 'a').write_bytes(b'abc')
    assert file_sha256(tmp_path / 'a').startswith('ba7816bf8f01cfea414140de5dae2223')


def test_an_onnx_file_is_called_that(tmp_path):
    path = tmp_path / 'student.onnx'
    path.write_bytes(b'\x08\x08\x12\x07pytorch')
    with pytest.raises(MtpdError, match=r'is an ONNX file, not a checkpoint: mtpd\.edge'):
        checkpoints.load_checkpoint(path)
