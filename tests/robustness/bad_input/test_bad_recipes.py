"""Recipes that are refused."""

import pytest

from helpers.place import MINI, refuse, setting, stage
from mtpd.utils.paths import ROOT


def recipe(content: str, **more: str):
    """A recipe file (and others beside it) of its own."""

    def make(place):
        base = f'_base_ = [{str(ROOT / MINI)!r}]\n'
        for name, lines in (('r.py', content), *((f'{k}.py', v) for k, v in more.items())):
            (place.folder / name).write_text(lines.replace('BASE\n', base))
        return ['train', place.folder / 'r.py', '--work-dir', place.run]

    return make


ROWS = {
    'unknown key': (setting('schedul.arm=3'), "unknown key 'schedul'. Did you mean 'schedule'"),
    'wrong type': (setting('seed=one'), "seed is 'one' .*int is needed"),
    'a number for a dict': (setting('schedule=3'), 'schedule is 3: a dict with batch_size'),
    'a number for the teachers': (
        setting('teachers=3'), r'teachers is 3: a dict of dicts by name \(label, config'
    ),
    'a key below a number': (
        setting('schedule.arm.x=3'), 'schedule.arm.x cannot be set: schedule.arm is [0-9]+, which has no keys. Set schedule.arm itself'
    ),
    'no teachers to choose from': (
        recipe("BASE\nteachers = dict(_delete_=True)\narms = dict(direct=dict(teachers='auto'))\n"),
        'no teachers to choose from. Name at least one(.|\\n)*unknown teacher .* There are none',
    ),
    'a split that is a number': (setting('data.splits.train=3'), r'data\.splits\.train is 3'),
    'an image of no size': (setting('image.scale=0'), r'image\.scale is 0: pixels'),
    'two colours': (setting('image.std=[1,1]'), r'image\.std is \[1, 1\]'),
    'an optimizer in a word': (setting('schedule.optimizer=SGD'), "schedule.optimizer is 'SGD'"),
    'no list of splits': (setting('data.splits=3'), 'data.splits'),
    'boxes not measured': (setting("evaluation.metrics=['segm']"), 'lacks bbox'),
    'metrics of numbers': (setting('evaluation.metrics=[1]'), 'evaluation.metrics'),
    'unknown teacher': (setting("arms.direct.teachers=['x']"), "unknown teacher 'x'"),
    'teacher that is a list': (setting("arms.direct.teachers=[['r101']]"), 'unknown teacher'),
    'no teachers': (setting('arms.direct.teachers=[]'), r'arms\.direct\.teachers is empty'),
    'teacher given twice': (
        recipe("BASE\nteachers = {'r101': {'updates': 1}, 'r101': {'updates': 2}}\n"),
        "line 2: 'r101' is given twice in one dict",
    ),
    'teacher given twice as words': (
        recipe('BASE\nteachers = dict(r101=dict(), r101=dict())\n'), 'keyword argument repeated'
    ),
    'teacher named student': (recipe("BASE\nteachers = dict(student=dict(config='x'))\n"), 'taken'),
    'stage out of range': (stage('--arm', 'direct', '--stage', '2'), r'1 stage\(s\) and no stage 2: give 1 to 1'),
    'stage 0': (stage('--arm', 'direct', '--stage', '0'), r'1 stage\(s\) and no stage 0'),
    'unknown arm': (stage('--arm', 'drect'), "unknown arm 'drect'. Did you mean 'direct'"),
    'unknown detector': (stage('--detector', 'r11'), "unknown detector 'r11'. Did you mean 'r101'"),
    'arm and detector': (stage('--arm', 'direct', '--detector', 'r101'), 'give one'),
    'unknown policy': (
        setting('schedule.lr.policy=Nope'), "unknown schedule.lr.policy 'Nope'. .*OneCycle"
    ),
    'setting of another policy': (
        setting('schedule.lr.policy=step'), r"schedule\.lr is .* which is refused: .*missing .* 'step'.*_delete_=True"
    ),
    'unknown optimizer': (
        setting('schedule.optimizer.type=AdamV'), "unknown schedule.optimizer.type 'AdamV'. Did you mean 'Adam"
    ),
    'negative learning rate': (
        setting('schedule.optimizer.lr=-1'), r'schedule\.optimizer is .* Invalid learning rate: -1'
    ),
    'clipping to nothing': (setting('schedule.grad_clip.max_norm=0'), 'max_norm must be above 0'),
    'clipping by a wrong key': (setting('schedule.grad_clip.norm=2'), r'grad_clip is .* refused: .*norm'),
    'workers in a word': (setting('runtime.workers=many'), "runtime.workers is 'many': a number, or 'auto'"),
    'negative workers': (setting('runtime.workers=-1'), r'runtime\.workers is -1: it must not be negative'),
    'no scenes': (setting('data.scenes.val=0'), r'data\.scenes\.val is 0: it must be at least 1'),
    'a syntax error': (
        recipe('BASE\nx = (\n'), r"does not load: SyntaxError: .*r\.py, line 2: '\(' was never closed. Correct that line"
    ),
    'wrong values of all kinds': (
        setting(
            "seed=one schedule.arm=-3 image.scale=7.5 distill.method=foo arms.direct.teachers=['r9']"
        ),
        r"6 problems:(.|\n)*image\.scale is 7\.5(.|\n)*seed is 'one'(.|\n)*schedule\.arm is -3(.|\n)*"
        r"distill\.method 'foo'(.|\n)*teacher 'r9'",
    ),
    'negative schedule': (setting('schedule.arm=-4'), r'schedule\.arm is -4: it must be at least 1'),
    'no updates': (setting('schedule.baseline=0'), r'schedule\.baseline is 0'),
    'updates that do not divide': (setting('schedule.arm=7'), 'do not divide schedule.arm = 7 evenly.* multiple of 2, such as 8'),
    'negative seed': (setting('seed=-1'), 'seed is -1'),
    'levels that the FPN lacks': (
        setting('distill.levels=[0,7]'), r"the student has no module 'neck\.fpn_convs\.7\.conv'"
    ),
    'levels that are no numbers': (setting("distill.levels=['a']"), r'FPN levels 0, 1, \.\.\.'),
    'level and loss name given twice': (setting('distill.levels=[0,0]'), "'loss_mgd_fpn_0' is given twice"),
    'a loss name without loss': (
        setting('distill.settings.mgd.name=mgd'), r"mgd\.name is 'mgd': leave it out.*loss_mgd_fpn_<"
    ),
    'unknown method': (setting('distill.method=mgt'), "unknown distill.method 'mgt'.*'mgd'"),
    'unknown loss': (setting('distill.settings.mgd.type=MGT'), "unknown distillation loss 'MGT'"),
    'unknown setting of a loss': (setting('distill.settings.mgd.alpa=1'), "unknown setting 'alpa'. Did you mean 'alpha'"),
    'module that is not there': (
        setting('distill.student_module=neck.{level}'), "the student has no module 'neck.0'"
    ),
    'module that is no pattern': (
        setting('distill.student_module=neck.{x}'), 'distill does not fit these detectors.*KeyError.*may contain {level}'
    ),
    'circle of _base_': (
        recipe("_base_ = ['a.py']\n", a="_base_ = ['r.py']\n"), r'form a circle: .*r\.py → .*a\.py'
    ),
    'missing _base_': (recipe("_base_ = ['gone.py']\n"), r'_base_ of .*r\.py: .*gone\.py is missing.* relative to that file or'),
    '_base_ that is itself': (recipe("_base_ = ['r.py']\n"), r'form a circle: .*r\.py → .*r\.py'),
    'a tuple in _base_': (recipe("_base_ = ('a.py',)\n"), r'r\.py, line 1: _base_ must be .* Write it in \['),
    'not Python': (recipe('name = ('), r'r\.py has a problem'),
    'raises': (recipe('BASE\n1 / 0\n'), r'does not load: ZeroDivisionError.*r\.py, line 2\)\. Correct'),
    'empty': (recipe(''), 'arms, .* are missing. Add them'),
    'no such recipe': (lambda p: ['train', 'configs/mini/x.py'], 'no such file. .*configs/'),
    'a folder': (lambda p: ['train', p.folder], 'no such file'),
    'a text file': (lambda p: ['train', 'README.md'], 'does not load: OSError: Only py'),
    'a detector that is no config': (setting('student.config=README.md'), 'defines no detector'),
    'a detector without a model': (
        setting('student.config=configs/_base_/schedules/pocket.py'), 'pocket.py defines no detector'
    ),
    'a model setting that mmdet refuses': (
        setting('student.model.backbone.depht=18'), 'student: mmdet cannot build .*depht.* Correct student.model'
    ),
    'an override without a value': (setting('seed'), 'KEY=VALUE'),
    'checkpoint without https': (
        setting('teachers.rx101.checkpoint=http://example.org/x.pth'),
        'http://example.org/x.pth, which is not an https address',
    ),
}  # fmt: skip
ROWS['not UTF-8'] = (
    lambda p: (
        (p.folder / 'r.py').write_bytes(b'name = "\xff"')
        and ['train', p.folder / 'r.py', '--work-dir', p.run]
    ),
    'does not load',
)


@pytest.mark.parametrize('name', ROWS)
def test_it_is_refused(name, place):
    refuse(place, *ROWS[name])
