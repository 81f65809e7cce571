"""Bad input, tried: what is said of it, exit code 2, no traceback, nothing written, nothing lost.

A row of the table: its name, how the input is made (it gets a `Place` and returns the command), a pattern of the message.
"""

from mtpd import compat  # noqa: F401  (before mmcv)

# isort: split
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mmcv import ConfigDict
from mmdet.models import build_detector
from PIL import Image
from pycocotools import mask as masks

from mtpd import load_recipe
from mtpd.cli import main
from mtpd.data import annotations, coco, pipelines
from mtpd.notebooks import execute
from mtpd.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
SMALL = {
    'image.scale': 64,
    'schedule.batch_size': 2,
    'schedule.baseline': 1,
    'schedule.arm': 2,
    'schedule.log_interval': 1,
    'runtime.workers': 0,
    'runtime.threads': 1,
    'teachers.r101.checkpoint': None,
    'teachers.rx101.checkpoint': None,
    'teachers.rx101.init': None,
}


@dataclass(frozen=True)
class Place:
    """Where an input is made: a folder, and in it a data set that is in order."""

    folder: Path
    coco: Path

    @property
    def json(self) -> Path:
        return self.coco / 'annotations' / 'train.json'

    @property
    def image(self) -> Path:
        return self.coco / 'train' / '000001.png'

    @property
    def run(self) -> Path:
        return self.folder / 'run'

    def edit(self, change: Callable[[dict], object]) -> None:
        table = json.loads(self.json.read_text())
        change(table)
        self.json.write_text(json.dumps(table))

    def train(self, *more: str, recipe: str | Path = MINI, **settings) -> list:
        keys = SMALL | {'data.root': self.coco} | settings
        text = ' '.join(f'{key}={value}' for key, value in keys.items())
        return ['train', recipe, '--work-dir', self.run, '--cfg-options', text, *more]


@pytest.fixture
def place(tmp_path, tiny_coco) -> Place:
    return Place(tmp_path, tiny_coco(tmp_path / 'coco'))


def call(arguments: list):
    return CliRunner().invoke(main, [str(item) for item in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob('*') if p.is_file() and not p.is_symlink()}


def refuse(place: Place, make: Callable, pattern: str) -> None:
    arguments = make(place)
    before = contents(place.folder)
    found = call(arguments)
    assert found.exit_code == 2, (found.output, found.exception)
    assert 'Traceback' not in found.output
    assert re.search(pattern, found.output), found.output
    assert not place.run.exists()
    assert contents(place.folder) == before


# Annotation files


def text(content: str | bytes):
    def make(place):
        place.json.write_bytes(content.encode() if isinstance(content, str) else content)
        return place.train()

    return make


def edited(change: Callable[[dict], object]):
    def make(place):
        place.edit(change)
        return place.train()

    return make


def of(kind: str, place: int = 0, **values):
    """Other values in one image, annotation or category; `...` takes a key away."""

    def change(table):
        item = table[kind][place]
        item.update(values)
        for key in [key for key, value in values.items() if value is ...]:
            del item[key]

    return edited(change)


def box(*values):
    return of('annotations', bbox=list(values))


def mask(value):
    return of('annotations', segmentation=value)


def gone(place):
    place.json.unlink()
    return place.train()


def cut(place):
    place.json.write_bytes(place.json.read_bytes()[:-100])
    return place.train()


def validation(place):
    table = json.loads((place.coco / 'annotations/val.json').read_text())
    table['annotations'][0]['bbox'][2] = -1
    (place.coco / 'annotations/val.json').write_text(json.dumps(table))
    return place.train()


def many_classes(table):
    table['categories'] = [{'id': k, 'name': f'c{k}'} for k in range(10**6)]


def two_faults(table):
    table['annotations'][0]['image_id'] = 99
    table['annotations'][1]['category_id'] = 99


ANNOTATIONS = {
    'missing': (gone, r'train\.json: no such file'),
    'empty file': (text(''), r'train\.json is not JSON'),
    'truncated': (cut, r'train\.json is not JSON .*Fetch or export it again'),
    'not JSON': (text('a,b\n1,2\n'), 'is not JSON'),
    'a byte order mark': (text('\ufeff{}'), 'is not JSON .*BOM'),
    'not UTF-8': (text('{"n": "é"}'.encode('latin-1')), 'is not UTF-8 .*at byte 7'),
    'nested too deeply': (text('[' * 100_000), 'is not JSON'),
    'a list at the top': (text('[]'), 'not in COCO format: no list images'),
    'no categories': (edited(lambda t: t.pop('categories')), 'no list categories'),
    'annotations a dict': (edited(lambda t: t.update(annotations={})), 'no list annotations'),
    'no images': (edited(lambda t: t.update(images=[])), 'it lists no images'),
    'no objects': (edited(lambda t: t.update(annotations=[])), 'it lists no annotations'),
    'no classes': (edited(lambda t: t.update(categories=[])), 'it lists no categories'),
    'a million classes': (edited(many_classes), '1,000,000 categories, and 50,000 are the most'),
    'image id twice': (of('images', 1, id=0), 'an image id is given twice: 0'),
    'annotation id twice': (of('annotations', 1, id=1), 'an annotation id is given twice: 1'),
    'category id twice': (of('categories', 1, id=5), 'a category id is given twice: 5'),
    'class name twice': (of('categories', 1, name='cat'), "a class name appears twice: 'cat'"),
    'class without a name': (of('categories', name=...), 'a category lacks its name'),
    'class name a number': (of('categories', name=7), 'a category lacks its name: category 5: 7'),
    'category a text': (edited(lambda t: t.update(categories=['cat'])), 'categor.*lacks its'),
    'image a text': (edited(lambda t: t['images'].append('a.jpg')), r'images\[4\] is .a\.jpg'),
    'image id a text': (of('images', id='0'), r'an image is no dict with a whole number'),
    'image without a name': (of('images', file_name=...), 'an image has no file_name: image 0'),
    'image name with a null': (of('images', file_name='a\0'), 'an image has no file_name'),
    'image name half a character': (of('images', file_name='\ud800'), 'has no file_name'),
    'image name too long': (of('images', file_name='x' * 5000), '1 of 4 images .* are not in'),
    'image without a size': (of('images', width=...), 'no width and height in pixels: image 0'),
    'image of no size': (of('images', width=0), 'no width and height in pixels'),
    'annotation a number': (edited(lambda t: t['annotations'].append(3)), r'\[5\] is 3'),
    'dangling image': (of('annotations', image_id=99), 'image_id is not among the images.*: 99'),
    'dangling category': (of('annotations', category_id=1), 'category_id is not among the .*: 1'),
    'image id a list': (of('annotations', image_id=[0]), r'image_id is not among .*\[0\]'),
    'no box': (of('annotations', bbox=...), r'bbox is not four numbers.*annotation 1: None'),
    'three numbers': (box(1, 2, 3), r'bbox is not four numbers .*\[1, 2, 3\]'),
    'box of texts': (box('1', '2', '3', '4'), 'bbox is not four numbers'),
    'box NaN': (box(1, 2, float('nan'), 4), r'bbox is not four numbers .*nan'),
    'box infinite': (box(1, 2, float('inf'), 4), 'bbox is not four numbers .*inf'),
    'box huge': (box(1, 2, 10**400, 4), "bbox is not four numbers .*'a huge number'"),
    'box negative': (box(4, 6, -20, 30), 'negative width, height or area: annotation 1'),
    'box without width': (box(4, 6, 0, 30), 'no width, height or area: annotation 1: bbox'),
    'box outside': (box(100, 6, 20, 30), r'outside its image: .*\[100, 6, 20, 30\], image 64 x 64'),
    'boxes fractions': (
        edited(lambda t: [o.update(bbox=[0.1, 0.1, 0.5, 0.5]) for o in t['annotations']]),
        'no box is larger than 1 x 1.*fractions',
    ),
    'no area': (of('annotations', area=...), 'area is no number .*annotation 1: None'),
    'area negative': (of('annotations', area=-1), 'negative width, height or area'),
    'iscrowd 2': (of('annotations', iscrowd=2), 'iscrowd is neither 0 nor 1: annotation 1: 2'),
    'mask of two points': (mask([[1, 2, 3, 4]]), 'no list of polygons .*annotation 1'),
    'mask of odd numbers': (mask([[1, 2, 3, 4, 5, 6, 7]]), 'no list of polygons'),
    'mask NaN': (mask([[1, 2, 3, 4, 5, float('nan')]]), 'no list of polygons'),
    'mask a text': (mask('all of it'), 'in run lengths does not fit'),
    'mask of another size': (
        mask({'size': [9, 9], 'counts': [81]}), r'in run lengths does not fit .*\[9, 9\]'
    ),
    'mask counts negative': (
        mask({'size': [64, 64], 'counts': [-4, 4100]}), 'in run lengths does not fit'
    ),
    'mask counts too few': (mask({'size': [64, 64], 'counts': [3, 4]}), 'run lengths does not'),
    'mask counts garbage': (mask({'size': [64, 64], 'counts': '~~~'}), 'run lengths does not'),
    'in the validation split': (validation, r'val\.json: a box has a negative width'),
    'two faults': (edited(two_faults), r'(?s)image_id is not among.*category_id is not among'),
    'all images tiny': (
        edited(lambda t: [i.update(width=9, height=9) for i in t['images']]), 'side under 32 pixels'
    ),
}  # fmt: skip


# Images


def image(content: bytes | None):
    def make(place):
        place.image.write_bytes(content) if content is not None else place.image.unlink()
        return place.train()

    return make


def stored(path: Path, pixels: np.ndarray | Image.Image, **options) -> None:
    made = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    made.save(path, **options)


def truncated(place):
    place.image.write_bytes(place.image.read_bytes()[:3000])
    return place.train()


def truncated_jpeg(place):
    """OpenCV gives its lower half in grey, without a word."""
    buffer = io.BytesIO()
    stored(buffer, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), format='jpeg')
    place.image.with_suffix('.jpg').write_bytes(buffer.getvalue()[: buffer.tell() // 2])
    place.edit(lambda t: t['images'][1].update(file_name='000001.jpg'))
    return place.train()


def turned(place):
    """Lies 64 x 96 in the file, as which it is annotated; its EXIF data turns it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored(place.image.with_suffix('.jpg'), np.zeros((96, 64, 3), np.uint8), exif=exif)
    place.edit(lambda t: t['images'][1].update(file_name='000001.jpg', width=64, height=96))
    return place.train()


def of_another_size(place):
    stored(place.image, np.zeros((32, 32, 3), np.uint8))
    return place.train()


def huge(place):
    """20,000 x 20,000 by its header; nothing is decoded."""
    stored(place.image, Image.new('1', (20_000, 20_000)))
    return place.train()


def huge_by_its_list(place):
    place.edit(lambda t: t['images'][1].update(width=20_000, height=20_000))
    return place.train()


def a_bomb(place):
    header = b'P5 100000 100000 255\n'
    place.image.with_suffix('.pgm').write_bytes(header)
    place.edit(lambda t: t['images'][1].update(file_name='000001.pgm'))
    return place.train()


def no_folder(place):
    shutil.rmtree(place.coco / 'train')
    return place.train()


IMAGES = {
    'missing': (image(None), r'1 of 4 images of .*train\.json are not in .*000001\.png'),
    'no folder': (no_folder, 'image folder .*train: no such folder'),
    'no bytes': (image(b''), r'000001\.png is empty \(0 bytes\)'),
    'not an image': (image(b'hello there ' * 40), r'000001\.png is damaged, cut short or no image'),
    'a web page': (image(b'<!DOCTYPE html>'), 'damaged, cut short or no image'),
    'truncated': (truncated, 'damaged, cut short or no image .*Fetch or export it again'),
    'truncated JPEG': (truncated_jpeg, 'damaged, cut short or no image .*truncated'),
    'of another size': (of_another_size, 'is 32 x 32 pixels,.* says 64 x 64'),
    'turned by EXIF': (turned, 'is 96 x 64 pixels, turned as its EXIF data says,.* says 64 x 96'),
    '20,000 pixels': (huge, 'has more than 178,956,970 pixels, which are the most'),
    '20,000 pixels by its list': (huge_by_its_list, r'000001\.png has 20000 x 20000 pixels'),
    'ten thousand million pixels': (a_bomb, '(?s)more than 178,956,970 pixels|no image'),
}


# Checkpoints


def saved(change: Callable[[dict], object] | bytes | None, key: str = 'teachers.r101.checkpoint'):
    """The checkpoint of teacher 1, which fits, with `change` made to its content; bytes in its place; or no file."""

    def make(place):
        path = place.folder / 't.pth'
        settings = SMALL | {'data.root': str(place.coco)}
        torch.manual_seed(0)
        model = build_detector(ConfigDict(load_recipe(MINI, settings).model('r101')))
        content = {'meta': {'CLASSES': ('cat', 'dog')}, 'state_dict': dict(model.state_dict())}
        if callable(change):
            torch.save(change(content) or content, path)
        elif change is not None:
            path.write_bytes(change)
        direct = {'arms.direct.teachers': "['r101']", key: path}
        return place.train('--arm', 'direct', **direct)

    return make


def diverged(content):
    content['state_dict']['neck.fpn_convs.0.conv.weight'][0] = float('nan')


def half(content):
    content['state_dict']['backbone.conv1.weight'] = torch.full((16, 3, 7, 7), float('inf'))


def renamed(content):
    content['state_dict'] = {f'x.{k}': v for k, v in content['state_dict'].items()}


def without_backbone(content):
    state = content['state_dict']
    content['state_dict'] = {k: v for k, v in state.items() if not k.startswith('backbone')}


LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n'
CHECKPOINTS = {
    'missing': (saved(None), r't\.pth is missing'),
    'no bytes': (saved(b''), r't\.pth is empty'),
    'a web page': (saved(b'<!DOCTYPE html><html>404'), 'is a web page'),
    'a Git LFS pointer': (saved(LFS), 'is a Git LFS pointer'),
    'a text': (saved(b'weights\n' * 99), 'damaged, cut short or no PyTorch file'),
    'a zip of something else': (saved(b'PK\3\4' + bytes(200)), 'no PyTorch file'),
    'a list': (saved(lambda c: [1]), r"holds no dict"),
    'weights that are NaN': (saved(diverged), r'NaN or infinite \(neck\.fpn_convs\.0\.conv\.weight\)'),
    'weights that are infinite': (saved(half), 'NaN or infinite .*its training diverged'),
    'optimizer only': (saved(lambda c: {'optimizer': {'state': {}}}), 'holds no weights.*optimizer'),
    'nothing in it': (saved(lambda c: {'state_dict': {}}), 'holds no weights'),
    'other names': (saved(renamed), 'does not fit r101'),
    'without a backbone': (saved(without_backbone), r'(?s)does not fit r101.*backbone\.'),
    'other classes': (
        saved(lambda c: c['meta'].update(CLASSES=('cat', 'cow'))), "its class 1 is 'cow'"
    ),
    'init that is damaged': (
        saved(b'x' * 99, key='student.init'), 'damaged, cut short or no PyTorch file'
    ),
    'init of nothing alike': (saved(renamed, key='student.init'), 'has no weight in common'),
    'eval of a folder': (
        lambda p: ['eval', MINI, '--checkpoint', p.folder, '--cfg-options', f'data.root={p.coco}'],
        'no such file',
    ),
    'export of nothing': (
        lambda p: ['export', p.folder / 'no.pth', p.folder / 'out.pth'], r'no\.pth: no such file'
    ),
}  # fmt: skip


# Recipes


def setting(text: str):
    return lambda place: place.train('--arm', 'direct', '--cfg-options', text)


def recipe(content: str, **more: str):
    """A recipe file (and others beside it) of its own."""

    def make(place):
        base = f'_base_ = [{str(ROOT / MINI)!r}]\n'
        for name, lines in (('r.py', content), *((f'{k}.py', v) for k, v in more.items())):
            (place.folder / name).write_text(lines.replace('BASE\n', base))
        return ['train', place.folder / 'r.py', '--work-dir', place.run]

    return make


def stage(*options: str, **settings):
    return lambda place: place.train(*options, **settings)


RECIPES = {
    'unknown key': (setting('schedul.arm=3'), "unknown key 'schedul'. Did you mean 'schedule'"),
    'wrong type': (setting('seed=one'), "seed is 'one' .*int is needed"),
    'a number for a dict': (setting('schedule=3'), 'schedule is 3: a dict|does not load'),
    'a split that is a number': (setting('data.splits.train=3'), r'data\.splits\.train is 3'),
    'an image of no size': (setting('image.scale=0'), r'image\.scale is 0: pixels'),
    'two colours': (setting('image.std=[1,1]'), r'image\.std is \[1, 1\]'),
    'an optimizer in a word': (setting('schedule.optimizer=SGD'), "schedule.optimizer is 'SGD'"),
    'no list of splits': (setting('data.splits=3'), 'data.splits'),
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
    'stage out of range': (stage('--arm', 'direct', '--stage', '2'), r'1 stage\(s\), and stage 2'),
    'stage 0': (stage('--arm', 'direct', '--stage', '0'), r'1 stage\(s\), and stage 0'),
    'unknown arm': (stage('--arm', 'drect'), "unknown arm 'drect'. Did you mean 'direct'"),
    'unknown detector': (stage('--detector', 'r11'), "unknown detector 'r11'. Did you mean 'r101'"),
    'arm and detector': (stage('--arm', 'direct', '--detector', 'r101'), 'give one'),
    'negative schedule': (setting('schedule.arm=-4'), r'schedule\.arm is -4: it must be at least 1'),
    'no updates': (setting('schedule.baseline=0'), r'schedule\.baseline is 0'),
    'updates that do not divide': (setting('schedule.arm=7'), 'do not divide schedule.arm = 7'),
    'negative seed': (setting('seed=-1'), 'seed is -1'),
    'levels that the FPN lacks': (
        setting('distill.levels=[0,7]'), r"the student has no module 'neck\.fpn_convs\.7\.conv'"
    ),
    'levels that are no numbers': (setting("distill.levels=['a']"), r'FPN levels 0, 1, \.\.\.'),
    'level given twice': (setting('distill.levels=[0,0]'), "'loss_mgd_fpn_0' is given twice"),
    'a loss name without loss': (
        setting('distill.settings.mgd.name=mgd'), 'distill does not fit them.*name'
    ),
    'unknown method': (setting('distill.method=mgt'), "unknown distill.method 'mgt'.*'mgd'"),
    'unknown loss': (setting('distill.settings.mgd.type=MGT'), "unknown distillation loss 'MGT'"),
    'unknown setting of a loss': (setting('distill.settings.mgd.alpa=1'), 'wrong arguments .*alpa'),
    'module that is not there': (
        setting('distill.student_module=neck.{level}'), "the student has no module 'neck.0'"
    ),
    'module that is no pattern': (
        setting('distill.student_module=neck.{x}'), 'distill does not fit them.*KeyError'
    ),
    'circle of _base_': (
        recipe("_base_ = ['a.py']\n", a="_base_ = ['r.py']\n"), r'go in a circle: .*r\.py → .*a\.py'
    ),
    'missing _base_': (recipe("_base_ = ['gone.py']\n"), r'_base_ of .*r\.py: .*gone\.py is missing'),
    'not Python': (recipe('name = ('), r'r\.py has a problem'),
    'raises': (recipe('BASE\n1 / 0\n'), 'does not load: ZeroDivisionError'),
    'empty': (recipe(''), 'is missing'),
    'no such recipe': (lambda p: ['train', 'configs/mini/x.py'], 'no such file. .*configs/'),
    'a folder': (lambda p: ['train', p.folder], 'no such file'),
    'a text file': (lambda p: ['train', 'README.md'], 'does not load: OSError: Only py'),
    'a detector that is no config': (setting('student.config=README.md'), 'gives no detector'),
    'a detector without a model': (
        setting('student.config=configs/_base_/schedules/pocket.py'), 'pocket.py gives no detector'
    ),
    'a model setting that mmdet refuses': (
        setting('student.model.backbone.depht=18'), 'student: mmdet cannot build .*depht'
    ),
    'an override without a value': (setting('seed'), 'KEY=VALUE'),
    'checkpoint without https': (
        setting('teachers.rx101.checkpoint=http://example.org/x.pth'),
        'http://example.org/x.pth, which is no https address',
    ),
}  # fmt: skip
RECIPES['not UTF-8'] = (
    lambda p: (
        (p.folder / 'r.py').write_bytes(b'name = "\xff"')
        and ['train', p.folder / 'r.py', '--work-dir', p.run]
    ),
    'does not load',
)


# The machine

MACHINE = {
    'read-only folder': (
        lambda p: ['train', MINI, '--work-dir', '/proc/mtpd'],  # where root cannot write either
        '/proc/mtpd cannot be written to .*--work-dir',
    ),
    'a file for a folder': (
        lambda p: ['train', MINI, '--work-dir', p.json / 'run'], 'cannot be written to .*--work-dir'
    ),
    'export to a read-only folder': (
        lambda p: ['export', 'configs/mini/teachers/r101/model.pth', '/proc/mtpd/out.pth'],
        'cannot be written',
    ),
    'a report in a read-only folder': (lambda p: ['report', '/proc/1'], 'is not a run'),
    'digits in a read-only folder': (
        lambda p: ['data', 'digits', '--root', '/proc/mtpd', '--train', '2', '--val', '2'],
        'could not be written to /proc/mtpd',
    ),
    'an unknown device': (setting('runtime.device=gpu'), "runtime.device is 'gpu': auto, cpu or cuda"),
}  # fmt: skip
NO_GPU = {
    'no GPU': (setting('runtime.device=cuda'), 'runtime.device is cuda, and torch sees no GPU'),
    'more GPUs than there are': (
        stage('--gpus', '2'), r'2 processes are asked for \(runtime.gpus, --gpus\), and torch sees no'
    ),
}  # fmt: skip

TABLE = {
    f'{kind}: {name}': row
    for kind, rows in {
        'annotations': ANNOTATIONS,
        'image': IMAGES,
        'checkpoint': CHECKPOINTS,
        'recipe': RECIPES,
        'machine': MACHINE,
    }.items()
    for name, row in rows.items()
}


@pytest.mark.parametrize('name', TABLE)
def test_bad_input_is_refused(name, place, monkeypatch):
    monkeypatch.setenv('MTPD_CACHE', str(place.folder / 'cache'))
    refuse(place, *TABLE[name])


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('name', NO_GPU)
def test_gpus_that_are_not_there(name, place):
    refuse(place, *NO_GPU[name])


def test_the_table_is_long_enough():
    assert len(TABLE) + len(NO_GPU) >= 100


# What passes


def passes(place: Place) -> None:
    assert coco.problems(place.coco, 'train') == []
    settings = SMALL | {'data.root': str(place.coco)}
    data = pipelines.build(pipelines.dataset(load_recipe(MINI, settings), 'train'))
    for k in range(len(data)):
        assert data[k]['img'].data.shape[1:] == (64, 64)


def of_the_file(mode: str):
    """An image of another kind in place of a coloured one of 8 bits."""
    gradient = np.arange(64 * 64).reshape(64, 64)
    if mode == '16-bit':
        return lambda path: cv2.imwrite(str(path), (gradient * 16).astype(np.uint16))
    made = Image.fromarray((gradient // 16).astype(np.uint8))
    return lambda path: stored(path, made.convert(mode), format='tiff' if mode == 'CMYK' else 'png')


@pytest.mark.parametrize('mode', ['16-bit', 'CMYK', 'P', 'L', 'RGBA', '1'])
def test_images_of_other_kinds_train(place, mode):
    of_the_file(mode)(place.image)
    passes(place)


def test_an_image_that_exif_turns_trains_where_it_is_annotated_as_it_is_seen(place):
    turned(place)
    assert coco.problems(place.coco, 'train')
    place.edit(lambda t: t['images'][1].update(width=96, height=64))
    assert coco.problems(place.coco, 'train') == []


def test_one_image_of_one_pixel_is_left_out_of_training(place):
    stored(place.coco / 'train/000003.png', np.zeros((1, 1, 3), np.uint8))
    place.edit(lambda t: t['images'][3].update(width=1, height=1))
    passes(place)


def test_what_coco_has_passes(place):
    """Images without objects, crowds, tiny boxes, boxes over the edge, masks of both kinds."""
    filled = np.zeros((64, 64), np.uint8)
    filled[10:40, 5:50] = 1
    packed = masks.encode(np.asfortranarray(filled))
    packed = {'size': packed['size'], 'counts': packed['counts'].decode()}

    def change(table):
        first, crowd, tiny, over, *_ = table['annotations']
        first['segmentation'] = [[4, 6, 24, 6, 24, 36.5], [1, 1, 3, 1, 3, 3, 1, 3]]
        crowd.update(iscrowd=1, segmentation={'size': [64, 64], 'counts': [100, 50, 3946]})
        tiny.update(bbox=[3.5, 4.25, 0.6, 0.4], area=0.1, segmentation=packed)
        over.update(bbox=[-0.5, 10, 64.9, 54.5])
        table['images'][0].update(license=3, coco_url='x', date_captured='')
        table |= {'info': {}, 'licenses': []}

    place.edit(change)
    passes(place)


def test_two_boxes_without_height_in_a_million_pass():
    """COCO's train2017 has two in 860,001: annotations 918 and 2206849's image."""
    images = [{'id': 0, 'file_name': 'a.jpg', 'width': 64, 'height': 64}]
    one = {'image_id': 0, 'category_id': 1, 'bbox': [1, 1, 5, 5], 'area': 25, 'iscrowd': 0}
    objects = [one | {'id': k} for k in range(30_000)]
    objects[918] |= {'bbox': [29, 38, 1.03, 0.0], 'area': 0.0}
    table = {'images': images, 'annotations': objects, 'categories': [{'id': 1, 'name': 'a'}]}
    assert annotations.check(table, 'x') == []
    for k in range(3):
        objects[k] = objects[918] | {'id': k}
    assert annotations.check(table, 'x') == [
        'x: a box has no width, height or area, 4 times, first annotation 0: bbox [29, 38, 1.03, 0.0], area 0.0.'
    ]


@pytest.mark.parametrize('seed', range(5))
def test_compressed_run_lengths_are_read_as_pycocotools_reads_them(seed):
    pixels = np.random.default_rng(seed).random((37, 23)) < 0.1 + 0.2 * seed
    packed = masks.encode(np.asfortranarray(pixels.astype(np.uint8)))
    counts = annotations._decoded(packed['counts'].decode())
    flat = pixels.T.ravel()
    expected = [[]]
    for value in flat:
        if bool(len(expected) % 2) == value:
            expected.append([])
        expected[-1].append(value)
    assert counts == [len(run) for run in expected]


# Notebooks


def notebook(path: Path, code: str) -> Path:
    cell = nbformat.v4.new_code_cell('stage: int = 1', metadata={'tags': ['parameters']})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell(code)]), path)
    return path


NOTEBOOKS = {
    'unknown parameter': (dict(parameters={'stge': 1}), "unknown parameter 'stge'. Did you mean", 2),
    'wrong type': (dict(parameters={'stage': 'one'}), r"stage is int, got 'one' \(str\)", 2),
    'missing kernel': (dict(kernel='cobol'), "no Jupyter kernel 'cobol'", 2),
    # What ends it is no mistake of the user's: exit code 1.
    'kernel killed': (dict(), r'SIGKILL \(often: out of memory\)', 1),
}  # fmt: skip


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_notebooks(name, tmp_path):
    options, pattern, code = NOTEBOOKS[name]
    source = notebook(tmp_path / 'a.ipynb', 'import os\nos.kill(os.getpid(), 9)')
    before = source.read_bytes()
    from mtpd.errors import MtpdError

    with pytest.raises(MtpdError, match=pattern) as error:
        execute(source, tmp_path / 'out.ipynb', **options)
    assert error.value.exit_code == code and source.read_bytes() == before
    assert (tmp_path / 'out.ipynb').exists() == (name == 'kernel killed')


# A disk that is full


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip('mounting a small file system takes root')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_run_goes_on_where_there_is_room(place, small_disk):
    """A training of two updates in a process of its own, whose checkpoint finds no room."""
    run = small_disk / 'run'
    command = [sys.executable, '-m', 'mtpd.cli', *place.train()]
    command[command.index(place.run)] = run
    command = [str(item) for item in command]
    filler = small_disk / 'filler'
    filler.write_bytes(bytes(800_000))
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    assert 'Traceback' not in done.stderr
    assert 'No space left' in done.stderr or 'cannot be written' in done.stderr, done.stderr
    filler.unlink()
    subprocess.run(['mount', '-o', 'remount,size=64m', str(small_disk)], check=True)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (run / 'detectors/student/model.pth').is_file()
