"""A pickle that would touch a file is refused, and says so, in every path by which the kit reads a checkpoint."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import mmcv.runner
import mmdet
import pytest
import torch
from click.testing import CliRunner
from mmcv import ConfigDict
from mmdet.models import build_detector
from torch import nn

from helpers.tiny import retinanet
from mtpd.cli.main import main
from mtpd.distill import initialization
from mtpd.errors import MtpdError
from mtpd.runtime import checkpoints
from mtpd.utils.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
CODE = 'holds a Python object'


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Run:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.fixture(params=['zip', 'legacy', 'bare pickle', 'pickle 5', 'os.system'])
def evil(request, tmp_path):
    """A checkpoint whose loading would make the file `touched`, which must not be there in the end."""
    path, touched = tmp_path / 'evil.pth', tmp_path / 'touched'
    payload = Run(touched) if request.param == 'os.system' else Touch(touched)
    content = {'state_dict': {'w': torch.zeros(1)}, 'meta': payload}
    if 'pickle' in request.param:
        path.write_bytes(pickle.dumps(payload, protocol=5 if '5' in request.param else 2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=request.param != 'legacy')
    yield path
    assert not touched.exists()


@pytest.fixture(params=[False, True], ids=['', 'torch torch_setting to unpickle'])
def torch_setting(request, monkeypatch):
    """With and without the environment variable that turns torch's own caution off."""
    if request.param:
        monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')


def test_the_payload_works(tmp_path):
    """Otherwise the tests below would prove nothing."""
    for payload in (Touch, Run):
        touched = tmp_path / payload.__name__
        torch.save(payload(touched), tmp_path / 'x.pth')
        torch.load(tmp_path / 'x.pth', weights_only=False)
        assert touched.exists()


class Model(nn.Linear):
    def train_step(self, data, optimizer):
        raise NotImplementedError


def resumed(kind):
    def call(path):
        settings = dict(model=Model(1, 1), logger=mmcv.utils.get_logger('quiet'))
        limit = {'max_iters': 1} if kind == 'IterBasedRunner' else {'max_epochs': 1}
        getattr(mmcv.runner, kind)(**settings, **limit, work_dir=str(path.parent)).resume(str(path))

    return call


def pretrained(path):
    model = retinanet()
    model['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint=str(path))
    initialization.initialise_weights(
        build_detector(ConfigDict(model)), model['backbone'], 'student.model'
    )


WAYS = {
    'checkpoints.load': checkpoints.load_checkpoint,
    'an earlier training': checkpoints.load_resumable,
    'export': lambda path: checkpoints.publish_student(path, path.parent / 'out'),
    'init': lambda path: initialization.warm_start(nn.Linear(1, 1), path),
    'init_cfg Pretrained': pretrained,
    'mmcv load_checkpoint': lambda path: mmcv.runner.load_checkpoint(nn.Linear(1, 1), str(path)),
    'mmcv loader': lambda path: mmcv.runner.CheckpointLoader.load_checkpoint(str(path)),
    'mmcv loader with a prefix': lambda path: mmcv.runner.load_checkpoint(
        nn.Linear(1, 1), str(path), revise_keys=[('^module', '')]
    ),
    'IterBasedRunner.resume': resumed('IterBasedRunner'),
    'EpochBasedRunner.resume': resumed('EpochBasedRunner'),
}


@pytest.mark.parametrize('way', WAYS)
def test_a_checkpoint_that_would_run_code_is_refused(evil, way, torch_setting):
    with pytest.raises(MtpdError) as error:
        WAYS[way](evil)
    text = str(error.value)
    assert CODE in text and 'could run code and is not loaded' in text and str(evil) in text
    assert '--trust-checkpoint' in text


@pytest.mark.parametrize('address', ['{}/evil.pth', 'torchvision://resnet50', 'open-mmlab://x'])
def test_weights_of_an_address_are_not_unpickled(evil, site, tmp_path, monkeypatch, address):
    """torch.hub would: mmcv's own way."""
    site.files['/evil.pth'] = evil.read_bytes()
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    known = mmcv.runner.checkpoint
    monkeypatch.setattr(
        known, 'get_torchvision_models', lambda: {'resnet50': f'{site.url}/evil.pth'}
    )
    monkeypatch.setattr(known, 'get_external_models', lambda: {'x': f'{site.url}/evil.pth'})
    monkeypatch.setattr(known, 'get_deprecated_model_names', dict)
    with pytest.raises(MtpdError, match=CODE):
        mmcv.runner.load_checkpoint(nn.Linear(1, 1), address.format(site.url))
    assert len(site.asked) == 1


def test_addresses_without_https_are_refused_by_mmcvs_loader_too():
    with pytest.raises(MtpdError, match='not an https address'):
        mmcv.runner.load_checkpoint(nn.Linear(1, 1), 'http://example.org/x.pth')


def commands(tmp_path, evil, coco):
    """Each command that takes a checkpoint, with `evil` in its place."""
    small = ('--cfg-options', f'data.root={coco}')
    run = ('--work-dir', tmp_path / 'run')
    teacher = f'teachers.r101.checkpoint={evil}'
    trained = 'teachers.r101.checkpoint=None teachers.rx101.checkpoint=None'
    options = ('--cfg-options', "arms.direct.teachers=['r101']")
    return {
        'eval': ('eval', MINI, '--checkpoint', evil, *small),
        'export': ('export', evil, tmp_path / 'out.pth'),
        'train --arm': ('train', MINI, '--arm', 'direct', *run, *small, *options, '--cfg-options', teacher),
        'run': ('run', MINI, *run, *small, '--cfg-options', teacher),
        'order': ('order', MINI, *run, *small, '--cfg-options', teacher),
        'sweep': ('sweep', MINI, '--dry-run', *run, *small, '--cfg-options', teacher),
        'train --detector with init': (
            *('train', MINI, '--detector', 'r101', *run, *small),
            *('--cfg-options', f'{trained} teachers.r101.init={evil}'),
        ),
        'train a plain config, load_from': ('train', tmp_path / 'plain.py', '--work-dir', tmp_path / 'p'),
    }  # fmt: skip


PLAIN = """
model = {model}
data_root = '{root}/'
step = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', img_scale=(64, 64), keep_ratio=True), dict(type='RandomFlip', flip_ratio=0.5),
        dict(type='Normalize', mean=[0, 0, 0], std=[1, 1, 1], to_rgb=True), dict(type='Pad', size_divisor=32),
        dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'])]
one = dict(type='CocoDataset', ann_file=data_root + 'annotations/train.json', img_prefix=data_root + 'train/',
           classes=('cat', 'dog'), pipeline=step)
data = dict(samples_per_gpu=2, workers_per_gpu=0, train=one, val=one, test=one)
optimizer = dict(type='SGD', lr=0.001)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy='fixed')
runner = dict(type='EpochBasedRunner', max_epochs=2)
evaluation = None
load_from = {load_from!r}
"""
COMMANDS = ('eval', 'export', 'train --arm', 'run', 'order', 'train --detector with init')


@pytest.mark.parametrize('evil', ['os.system'], indirect=True)
@pytest.mark.parametrize('command', [*COMMANDS, 'train a plain config, load_from'])
def test_no_command_loads_it(evil, tmp_path, tiny_coco, command):
    coco = tiny_coco(tmp_path / 'coco')
    text = PLAIN.format(model=retinanet(num_classes=2), root=coco, load_from=str(evil))
    (tmp_path / 'plain.py').write_text(text)
    arguments = commands(tmp_path, evil, coco)[command]
    result = CliRunner().invoke(main, [str(item) for item in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    assert CODE in result.output and 'Traceback' not in result.output
    assert not (tmp_path / 'out.pth').exists() and evil.exists()


@pytest.mark.parametrize('evil', ['zip'], indirect=True)
def test_a_stage_does_not_resume_from_it(evil, tmp_path, tiny_coco):
    """A latest.pth that somebody put into the run directory, of a recipe and of a plain config."""
    coco = tiny_coco(tmp_path / 'coco')
    run = tmp_path / 'run'
    latest = run / 'detectors' / 'student' / 'latest.pth'
    latest.parent.mkdir(parents=True)
    shutil.copy(evil, latest)
    small = ('--work-dir', run, '--cfg-options', f'data.root={coco} schedule.baseline=1')
    result = CliRunner().invoke(main, [str(item) for item in ('train', MINI, *small)])
    assert result.exit_code == 2 and CODE in result.output, (result.output, result.exception)
    assert latest.read_bytes() == evil.read_bytes()


@pytest.mark.parametrize('kind', ['IterBasedRunner', 'EpochBasedRunner'])
def test_the_config_text_in_a_checkpoint_is_not_run_when_it_is_resumed(tmp_path, kind):
    """mmcv's runner of epochs reads from it how many GPUs there were."""
    touched, path = tmp_path / 'touched', tmp_path / 'latest.pth'
    config = f'import pathlib\npathlib.Path({str(touched)!r}).touch()\n'
    meta = {'epoch': 1, 'iter': 3, 'config': config}
    torch.save({'state_dict': Model(1, 1).state_dict(), 'meta': meta}, path)
    resumed(kind)(path)
    assert not touched.exists()


@pytest.mark.slow
@pytest.mark.parametrize('evil', ['os.system'], indirect=True)
def test_mmdets_own_tool_refuses_it(evil, tmp_path, tiny_coco):
    coco = tiny_coco(tmp_path / 'coco')
    text = PLAIN.format(model=retinanet(num_classes=2), root=coco, load_from=None)
    (tmp_path / 'plain.py').write_text(text)
    tool = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'test.py'
    run = 'import runpy, sys, mtpd.runtime.compat; runpy.run_path(sys.argv.pop(1), run_name="__main__")'
    command = [sys.executable, '-c', run, tool, tmp_path / 'plain.py', evil, '--eval', 'bbox']
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1'}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and CODE in done.stderr


def test_proposals_which_mmdet_unpickles_are_refused(tmp_path, tiny_coco):
    coco = tiny_coco(tmp_path / 'coco')
    touched = tmp_path / 'touched'
    (tmp_path / 'proposals.pkl').write_bytes(pickle.dumps(Touch(touched)))
    text = PLAIN.format(model=retinanet(num_classes=2), root=coco, load_from=None)
    text += f"data['train']['proposal_file'] = '{tmp_path}/proposals.pkl'\n"
    (tmp_path / 'plain.py').write_text(text)
    arguments = ('train', tmp_path / 'plain.py', '--work-dir', tmp_path / 'run')
    result = CliRunner().invoke(main, [str(item) for item in arguments])
    assert (
        result.exit_code == 2 and 'proposal_file' in result.output and 'run code' in result.output
    )
    assert not touched.exists() and not (tmp_path / 'run').exists()


# Trust, on purpose


class Note:
    """What old files hold beside the weights."""


@pytest.mark.parametrize('legacy', [False, True])
def test_a_trusted_file_becomes_a_plain_one(tmp_path, legacy):
    weights = {'backbone.w': torch.ones(2)}
    torch.save({'state_dict': weights, 'meta': {'CLASSES': ('a',), 'note': Note()}}, tmp_path / 'old.pth',
               _use_new_zipfile_serialization=not legacy)  # fmt: skip
    export = ('export', str(tmp_path / 'old.pth'), str(tmp_path / 'new.pth'))
    result = CliRunner().invoke(main, export)
    assert result.exit_code == 2 and 'test_hostile_checkpoints.Note' in result.output
    assert '--trust-checkpoint' in result.output
    result = CliRunner().invoke(main, [*export, '--trust-checkpoint'])
    assert result.exit_code == 0, result.output
    made = checkpoints.load_checkpoint(result.output.strip())
    assert torch.equal(made['state_dict']['backbone.w'], torch.ones(2))
    assert made['meta']['CLASSES'] == ('a',) and 'note' not in made['meta']


def test_a_trusted_file_that_needs_a_package_says_which(tmp_path):
    (tmp_path / 'x.pth').write_bytes(b'\x80\x02cno_such_package\nThing\n.')
    export = ('export', str(tmp_path / 'x.pth'), str(tmp_path / 'y.pth'), '--trust-checkpoint')
    result = CliRunner().invoke(main, export)
    assert result.exit_code == 2 and 'no_such_package' in result.output
