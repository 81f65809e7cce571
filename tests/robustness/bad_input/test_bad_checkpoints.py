"""Checkpoints that are refused before anything is trained, and those that pass."""

from collections.abc import Callable

import pytest
import torch

from helpers.place import ARMS, CAFFE, MINI, SMALL, fitting, refuse, weights
from mtpd import load_recipe
from mtpd.preflight import detectors

CAFFE_IMAGES = 'image.mean=[103.53,116.28,123.675] image.std=[1,1,1] image.to_rgb=False'
NORM = "dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)"


def saved(
    change: Callable[[dict], object] | bytes | None,
    command: tuple[str, ...] = ('train', '--arm', 'direct'),
    key: str = 'teachers.r101.checkpoint',
    name: str = 't.pth',
    cut: int | None = None,
    **settings,
):
    """The checkpoint of teacher 1, which fits, with `change` made to its content; bytes in its place; or no file."""

    def make(place):
        path = place.folder / name
        if callable(change):
            content = fitting(place)
            torch.save(change(content) or content, path)
            path.write_bytes(path.read_bytes()[:cut])
        elif change is not None:
            path.write_bytes(change)
        first, *more = command
        return [*place.command(first, MINI, **ARMS, **{key: path}, **settings), *more]

    return make


def meta(**values):
    return lambda content: content['meta'].update(values)


def as_it_is(content):
    pass


def diverged(content):
    content['state_dict']['neck.fpn_convs.0.conv.weight'][0] = float('nan')


def half(content):
    content['state_dict']['backbone.conv1.weight'] = torch.full((16, 3, 7, 7), float('inf'))


def renamed(content):
    content['state_dict'] = {f'x.{k}': v for k, v in content['state_dict'].items()}


def without_backbone(content):
    state = content['state_dict']
    content['state_dict'] = {k: v for k, v in state.items() if not k.startswith('backbone')}


def of_the_student(content):
    content['state_dict'] = weights('student', SMALL)


def of_ten_classes(content):
    content.update(meta={}, state_dict=weights('r101', SMALL))


def with_average(content):
    return {'model': content['state_dict'], 'model_ema': content['state_dict']}


def of_a_teacher(content):
    state = content['state_dict'].items()
    content['state_dict'] = {f'pair.teacher.{k}': v for k, v in state}


LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n'
# Given as a teacher's, to the training of a stage and to a run.
TEACHERS = {
    'missing': (dict(change=None), r't\.pth is missing'),
    'no bytes': (dict(change=b''), r't\.pth is empty'),
    'a web page': (dict(change=b'<!DOCTYPE html><html>404'), r't\.pth is a web page'),
    'a Git LFS pointer': (dict(change=LFS), 'is a Git LFS pointer'),
    'a text': (dict(change=b'weights\n' * 99), 'damaged, cut short or not a PyTorch file'),
    'a zip of something else': (dict(change=b'PK\3\4' + bytes(200)), 'not a PyTorch file'),
    'truncated': (dict(change=as_it_is, cut=5000), r't\.pth is damaged, cut short or not a PyTorch'),
    'of another sum': (
        dict(change=as_it_is, name='t-00000000.pth'),
        '(?s)has a SHA-256 that begins with.*00000000 is stated for it.*Fetch it again',
    ),
    'a list': (dict(change=lambda c: [1]), r'does not hold a dict'),
    'weights that are NaN': (dict(change=diverged), r'NaN or infinite \(neck\.fpn_convs\.0\.conv\.weight\)'),
    'weights that are infinite': (dict(change=half), 'NaN or infinite .*its training diverged'),
    'optimizer only': (
        dict(change=lambda c: {'optimizer': {'state': {}}}), 'holds no weights.*optimizer'
    ),
    'nothing in it': (dict(change=lambda c: {'state_dict': {}}), 'holds no weights'),
    'two sets of weights': (
        dict(change=with_average),
        r"(?s)t\.pth holds several sets of weights: model, model_ema\..*python -c .*\['model'\]",
    ),
    'a teacher alone': (dict(change=of_a_teacher), 'a teacher, but its student was not found'),
    'other names': (dict(change=renamed), 'does not fit r101'),
    'without a backbone': (dict(change=without_backbone), r'(?s)does not fit r101.*backbone\.'),
    'another architecture': (
        dict(change=of_the_student), '(?s)does not fit r101.*another architecture'
    ),
    'ten classes, not named': (
        dict(change=of_ten_classes), 'the model has 2 classes and the file 10'
    ),
    'three classes': (
        dict(change=meta(CLASSES=('cat', 'dog', 'cow'))),
        r'(?s)it has 3 classes \(cat, dog, cow\), the dataset has 2 \(cat, dog\).*\.init=',
    ),
    'another order of classes': (
        dict(change=meta(CLASSES=('dog', 'cat'))),
        r"its class 0 is 'dog', the dataset's 'cat' \(the same classes in another order\)",
    ),
    'other classes': (
        dict(change=meta(CLASSES=('cat', 'cow'))),
        r"(?s)its class 1 is 'cow', the dataset's 'dog'\..*teachers\.r101\.checkpoint=None",
    ),
    'other images, as this kit writes them': (
        dict(change=meta(config=f'data = {[eval(NORM)]!r}\n')),
        r'(?s)to_rgb False.*teachers\.r101\.image\.mean=\[103\.53,116\.28,123\.675\] teachers\.r101\.image\.std=\[1,1,1\] ',
    ),
    'other images': (
        dict(change=meta(config=f'pipeline = [{NORM}]\n')),
        r'(?s)mean \[103\.53,116\.28,123\.675\], std \[1,1,1\], to_rgb False'
        r'.*mean \[123\.675,116\.28,103\.53\], std \[58\.395,57\.12,57\.375\], to_rgb True'
        r'.*teachers\.r101\.image\.mean=\[103\.53,116\.28,123\.675\] teachers\.r101\.image\.std=\[1,1,1\] ',
    ),
    'a detector that mmdet cannot build': (
        {'change': as_it_is, 'teachers.r101.model.neck.num_outs': 1}, 'r101: mmdet cannot build'
    ),
}  # fmt: skip


def second_stage(place):
    """Looked at before the first one trains."""
    bad, good = fitting(place, 'student'), fitting(place)
    torch.save(bad, place.folder / 'bad.pth')
    torch.save(good, place.folder / 'good.pth')
    given = {f'teachers.{k}.checkpoint': place.folder / f'{v}.pth' for k, v in TWO.items()}
    return place.train('--arm', 'progressive', '--stage', '2', **given)


TWO = {'r101': 'good', 'rx101': 'bad'}


def original(place):
    """latest.pth in the original repository's layout; of the losses' weights there are none."""
    student = {f'student.{k}': v for k, v in fitting(place, 'student')['state_dict'].items()}
    teacher = {f'teacher.{k}': v for k, v in fitting(place)['state_dict'].items()}
    content = {'meta': {'iter': 1, 'epoch': 1}, 'state_dict': student | teacher}
    folder = place.run / 'stages/direct/1_r101'
    folder.mkdir(parents=True)
    torch.save(content, folder / 'latest.pth')
    torch.save(fitting(place), place.folder / 't.pth')
    torch.save(fitting(place, 'student'), place.folder / 's.pth')
    given = {'teachers.r101.checkpoint': place.folder / 't.pth', 'distill.start': 'inherit'}
    return place.train('--arm', 'direct', **ARMS, **given)


def evaluated(*words: str, detector: str = 'student', classes=('cat', 'dog')):
    def make(place):
        torch.save(
            fitting(place, detector) | {'meta': {'CLASSES': classes}}, place.folder / 't.pth'
        )
        return [*place.command('eval', MINI), '--checkpoint', place.folder / 't.pth', *words]

    return make


ROWS = {
    f'{name}, {command[0]}': (saved(command=command, **how), pattern)
    for name, (how, pattern) in TEACHERS.items()
    for command in (('train', '--arm', 'direct'), ('run',))
}
ROWS |= {
    'of a stage to come': (second_stage, 'does not fit rx101'),
    'the original layout without losses': (
        original, "without the distillation losses' weights.*cannot go on.*remove it to start"
    ),
    'init that is damaged': (
        saved(b'x' * 99, key='student.init'), 'damaged, cut short or not a PyTorch file'
    ),
    'init of nothing alike': (saved(renamed, key='student.init'), 'has no weight in common'),
    'eval of a folder': (
        lambda p: ['eval', MINI, '--checkpoint', p.folder, '--cfg-options', f'data.root={p.coco}'],
        'no such file',
    ),
    'eval of an unknown detector': (evaluated('--detector', 'x'), "unknown detector 'x'"),
    'eval of another architecture': (evaluated(detector='r101'), 'does not fit the student'),
    'eval of masks of boxes': (
        evaluated('--metrics', 'segm'), 'RetinaNet predicts no masks. Leave it out: --metrics bbox'
    ),
    'export of nothing': (
        lambda p: ['export', p.folder / 'no.pth', p.folder / 'out.pth'], r'no\.pth: no such file'
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', ROWS)
def test_it_is_refused(name, place):
    message = refuse(place, *ROWS[name])
    kind = name.rpartition(', ')[0]
    if kind in TEACHERS and 'cannot build' not in kind:
        assert TEACHERS[kind][0].get('name', 't.pth') in message


# What passes


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
def test_a_checkpoint_that_says_nothing_of_images_or_the_same_passes(place, config):
    path = place.folder / 't.pth'
    torch.save(fitting(place) | {'meta': {'CLASSES': ['Cat', 'dog'], 'config': config}}, path)
    recipe = load_recipe(MINI, place.settings)
    assert detectors.checkpoint_problems(recipe, 'r101', path) == []


def test_the_original_layout_without_losses_passes_as_a_teachers(place):
    content = fitting(place)
    content['state_dict'] = {f'student.{k}': v for k, v in content['state_dict'].items()}
    torch.save(content, place.folder / 't.pth')
    recipe = load_recipe(MINI, place.settings)
    assert detectors.checkpoint_problems(recipe, 'r101', place.folder / 't.pth') == []


@pytest.mark.parametrize('prefix', ['architecture.model.', 'module._orig_mod.', 'model.student.'])
def test_layouts_of_other_tools_pass_as_a_teachers(place, prefix):
    content = fitting(place)
    content['state_dict'] = {f'{prefix}{k}': v for k, v in content['state_dict'].items()}
    content['state_dict']['distiller.teacher.backbone.conv1.weight'] = torch.ones(1)
    torch.save(content, place.folder / 't.pth')
    recipe = load_recipe(MINI, place.settings)
    assert detectors.checkpoint_problems(recipe, 'r101', place.folder / 't.pth') == []


def test_a_checkpoint_without_a_head_is_refused_unless_its_features_are_enough(place):
    path = place.folder / 't.pth'
    fix, named = 'teachers.r101.features_only=True', {'teachers.r101.checkpoint': str(path)}
    for name, options, wanted in (
        ('r101', named, ['bbox_head', fix]),
        ('r101', named | {fix.split('=')[0]: True}, None),
        ('student', {}, ['bbox_head']),
    ):
        recipe, content = load_recipe(MINI, place.settings | options), fitting(place, name)
        state = content['state_dict'].items()
        content['state_dict'] = {k: v for k, v in state if not k.startswith('bbox_head')}
        torch.save(content, path)
        texts = detectors.checkpoint_problems(recipe, name, path)
        assert len(texts) == bool(wanted)
        assert not wanted or all(word in texts[0] for word in wanted)
        assert name == 'r101' or fix not in str(texts)


@pytest.mark.parametrize('name', ['retinanet_r50__r101_rx101', 'retinanet_r50__swint_swins'])
def test_detectors_of_the_paper_take_the_same_images(name, place):
    recipe = load_recipe(f'configs/paper/{name}.py', {'data.root': str(place.coco)})
    assert detectors.settings_problems(recipe, recipe.detectors) == []


def test_the_fix_for_a_caffe_student_is_the_one_that_is_told(place):
    plan = place.settings | {'student.config': CAFFE, 'teachers.r101.config': CAFFE}
    plan |= {'teachers.r101.checkpoint': 'r101.pth'}
    problems = detectors.settings_problems(load_recipe(MINI, plan), ['student', 'r101'])
    of_teacher = ' '.join(f'teachers.r101.{word}' for word in CAFFE_IMAGES.split())
    fixes = [CAFFE_IMAGES, of_teacher]
    for fix, text in zip(fixes, problems, strict=True):
        assert f"--cfg-options '{fix}'" in text
    # The student's is enough, as the teacher sees the same images; so are both.
    for fix in (CAFFE_IMAGES, f'{CAFFE_IMAGES} {of_teacher}'):
        corrected = load_recipe(load_recipe(MINI, plan), fix)
        assert detectors.settings_problems(corrected, ['student', 'r101']) == []
