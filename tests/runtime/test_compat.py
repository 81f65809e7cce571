"""Each adaptation of mtpd.runtime.compat: what it is for works, and would not without it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv import ConfigDict
from mmdet.models import build_detector
from torch import nn

from helpers.tiny import detector, retinanet
from mtpd.errors import MtpdError
from mtpd.runtime import compat
from mtpd.utils import machine

ROOT = Path(__file__).parents[2]
LIBRARIES = {'mmcv', 'mmdet', 'torchvision'}  # torchvision: mmcv imports it


def test_torchvision_imports_beside_any_torch():
    import torchvision

    assert torchvision.__version__


def test_mmdet_dataset_lists_an_images_classes():
    from mmdet.datasets import CustomDataset

    dataset = CustomDataset.__new__(CustomDataset)
    dataset.data_infos = [{'ann': {'labels': np.array([2, 0])}}]
    assert dataset.get_cat_ids(0) == [2, 0]


@pytest.mark.parametrize('old_numpy', [False, True])
def test_checkpoint_with_numpy_numbers_loads(tmp_path, old_numpy):
    from mmcv.runner import load_checkpoint

    model = nn.Linear(2, 1)
    path = tmp_path / 'model.pth'
    meta = {'best': np.float64(0.25), 'iter': np.int64(7)}
    checkpoint = {
        'state_dict': {key: 2 * value for key, value in model.state_dict().items()},
        'meta': meta,
    }
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    if old_numpy:  # numpy 1 called the module numpy.core
        data = path.read_bytes()
        assert b'numpy._core.multiarray' in data
        path.write_bytes(data.replace(b'numpy._core.multiarray', b'numpy.core.multiarray'))
    weight = model.weight.detach().clone()
    assert load_checkpoint(model, str(path))['meta'] == {'best': 0.25, 'iter': 7}
    assert torch.equal(model.weight, 2 * weight)


def initialised_from(path, **init_cfg):
    from mtpd.distill.initialization import initialise_weights

    init_cfg = dict(type='Pretrained', checkpoint=str(path), **init_cfg)
    cfg = retinanet()
    cfg['backbone']['init_cfg'] = init_cfg
    model = build_detector(ConfigDict(cfg))
    initialise_weights(model, cfg['backbone'], 'student.model')
    return model


def test_a_backbone_takes_weights_that_are_its_own_or_none_at_all(tmp_path):
    """mmcv logs it, and goes on with random ones, where a detector's checkpoint is named without the prefix."""
    state = detector(retinanet(), seed=1).state_dict()
    torch.save({'state_dict': state}, tmp_path / 'a.pth')
    key = 'backbone.conv1.weight'
    model = initialised_from(tmp_path / 'a.pth', prefix='backbone.')
    assert torch.equal(model.state_dict()[key], state[key])
    for wrong in ({}, {'prefix': 'neck.'}, {'prefix': 'student.backbone.'}):
        with pytest.raises(MtpdError) as error:
            initialised_from(tmp_path / 'a.pth', **wrong)
        text = str(error.value)
        assert (
            f'cannot be fetched from {tmp_path}/a.pth' in text and 'backbone.init_cfg=None' in text
        )
        assert ('keys are backbone.conv1.weight' in text) == (wrong == {}), text
    bare = {k.removeprefix('backbone.'): v for k, v in state.items() if k.startswith('backbone.')}
    torch.save(bare, tmp_path / 'b.pth')
    assert torch.equal(initialised_from(tmp_path / 'b.pth').state_dict()[key], state[key])


class Code:
    def __reduce__(self):
        return os.getcwd, ()


def test_checkpoint_with_code_is_refused(tmp_path):
    from mmcv.runner import load_checkpoint

    torch.save({'state_dict': {}, 'meta': Code()}, tmp_path / 'model.pth')
    with pytest.raises(MtpdError, match='could run code'):
        load_checkpoint(nn.Linear(2, 1), str(tmp_path / 'model.pth'))


def test_copy_stream_by_device_number():
    from mmcv.parallel import _functions

    assert _functions._get_stream(-1) is None  # the CPU needs none


@pytest.mark.gpu
def test_pinned_batches_hold_their_masks_and_images_in_pinned_memory():
    from mmcv.parallel import DataContainer
    from mmdet.core import BitmapMasks
    from torch.utils.data._utils.pin_memory import pin_memory

    masks = BitmapMasks(np.eye(4, dtype=np.uint8)[None], 4, 4)
    batch = {
        'img': DataContainer([torch.ones(2, 3)], stack=True),
        'gt_masks': DataContainer([[masks]], cpu_only=True),
        'img_metas': DataContainer([[{'scale': 2}]], cpu_only=True),
    }
    pinned = pin_memory(batch)
    assert pinned['img'].data[0].is_pinned() and pinned['img_metas'].data == [[{'scale': 2}]]
    ((ours,),) = pinned['gt_masks'].data
    assert torch.from_numpy(ours.masks).is_pinned() and np.array_equal(ours.masks, masks.masks)
    assert not torch.from_numpy(masks.masks).is_pinned()


@pytest.mark.gpu
def test_batch_is_copied_to_the_gpu():
    from mmcv.parallel import DataContainer, scatter

    batch = {'img': DataContainer([torch.arange(4.0)], stack=True)}
    (copied,) = scatter(batch, [0])
    assert copied['img'].device.type == 'cuda'
    assert copied['img'].tolist() == [0, 1, 2, 3]


def test_ddp_wrapper_forwards():
    from mmcv.parallel import MMDistributedDataParallel

    wrapped = MMDistributedDataParallel.__new__(MMDistributedDataParallel)  # no process group
    nn.Module.__init__(wrapped)
    wrapped.module, wrapped.device_ids = nn.Linear(2, 1), None
    data = torch.tensor([[1.0, 2.0]])
    assert torch.equal(wrapped._run_ddp_forward(data), wrapped.module(data))


DDP = """
import os, sys
import mtpd.runtime.compat, torch
import torch.distributed as dist
from mmcv.parallel import MMDistributedDataParallel

class Model(torch.nn.Linear):
    def train_step(self, data):
        return {'loss': self(data).sum()}

dist.init_process_group('gloo', init_method='file://' + sys.argv[1], rank=0, world_size=1)
model = Model(2, 1)
wrapped = MMDistributedDataParallel(model, find_unused_parameters=True)
data = torch.tensor([[1.0, 2.0]])
assert torch.equal(wrapped(data), model(data))
wrapped.train_step(data)['loss'].backward()
print(model.weight.grad.tolist(), flush=True)
os._exit(0)  # gloo's threads can deadlock with Python's lock when a group is taken down
"""


@pytest.mark.slow
def test_ddp_wrapper_trains_in_a_process_group(tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', DDP, str(tmp_path / 'store')],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip() == '[[1.0, 2.0]]', done.stderr


def test_iteration_runner_resumes_on_cpu(tmp_path):
    from mmcv.runner import IterBasedRunner
    from mmcv.utils import get_logger

    class Model(nn.Linear):
        def train_step(self, data, optimizer):
            raise NotImplementedError

    def runner() -> IterBasedRunner:
        model = Model(2, 1)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        return IterBasedRunner(
            model, optimizer=sgd, work_dir=str(tmp_path), logger=get_logger('mmcv'), meta={}
        )

    first = runner()
    first._iter = 12
    first.save_checkpoint(str(tmp_path))
    second = runner()
    second.resume(str(tmp_path / 'latest.pth'))
    assert second.iter == 12
    assert torch.equal(second.model.weight, first.model.weight)


QUIET = """
import logging, mtpd.runtime.compat, torch
from mmcv import ProgressBar
from mmcv.ops import DeformConv2dPack
from mmcv.runner import BaseModule
from mmcv.utils import get_logger
from mmdet.core.anchor import MlvlPointGenerator

class Model(BaseModule):
    def __init__(self):
        super().__init__(init_cfg=dict(type='Constant', layer='Linear', val=0.5))
        self.layer = torch.nn.Linear(2, 1)

model = Model()
model.init_weights()
assert model.layer.weight.tolist() == [[0.5, 0.5]]
bar = ProgressBar(2)
bar.update(); bar.update()
assert bar.completed == 2
layer = DeformConv2dPack(2, 2, 3)
layer.load_state_dict(layer.state_dict())
assert logging.getLogger().level == logging.WARNING
assert len(MlvlPointGenerator([8]).grid_priors([(2, 2)], device='cpu')[0]) == 4  # as YOLOX's
get_logger('mmcv').warning('a warning is seen')
"""


@pytest.mark.long
def test_chatter_is_silenced_and_warnings_are_not():
    env = {**os.environ, 'MTPD_VERBOSE': '0', 'PYTHONPATH': str(ROOT)}
    env.pop('PYTHONWARNINGS', None)
    done = subprocess.run([sys.executable, '-c', QUIET], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ''
    assert done.stderr.strip().endswith('a warning is seen')
    assert len(done.stderr.splitlines()) == 1


def test_applying_again_changes_nothing():
    from mmcv.runner import IterBasedRunner

    before = IterBasedRunner.resume
    compat.patch_libraries()
    assert IterBasedRunner.resume is before


def test_mmcv_without_ops_is_refused(monkeypatch, tmp_path, other_package):
    folder = other_package('mmcv', '2.1.0')
    monkeypatch.setenv('PYTHONPATH', str(folder))
    with pytest.raises(MtpdError, match=rf'2\.1\.0 \({folder}/mmcv, by .*Take {folder} out of'):
        compat.require_ops()
    monkeypatch.setattr(machine.site, 'getsitepackages', lambda: [str(folder)])
    with pytest.raises(MtpdError, match='mtpd install-ops'):
        compat.require_ops()


def test_another_release_of_mmdet_is_refused_before_it_is_imported(other_package, monkeypatch):
    folder = other_package('mmdet', '3.3.0')
    env = {**os.environ, 'PYTHONPATH': f'{folder}{os.pathsep}{ROOT}'}
    command = [sys.executable, '-m', 'mtpd.cli', 'show', 'configs/own_data/retinanet.py']
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    message = f'mmdet is 3.3.0 ({folder}/mmdet, by PYTHONPATH), and the kit needs 2.28. Take'
    assert done.stderr.strip() == f'mtpd: {message} {folder} out of PYTHONPATH.'


def test_old_torch_is_refused(monkeypatch):
    monkeypatch.setattr(compat, 'find_torch', lambda: machine.Torch('2.5.1', None, Path()))
    with pytest.raises(MtpdError, match=r'2\.5\.1 is too old'):
        compat.require_ops()


def imports(tree: ast.AST) -> list[set[str]]:
    """The names in each import statement of a file, `from a.b import c` as {'a.b', 'c'}."""
    statements = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return [
        {getattr(node, 'module', None) or ''} | {alias.name for alias in node.names}
        for node in sorted(statements, key=lambda node: node.lineno)
        if getattr(node, 'module', None) != '__future__'
    ]


def test_compat_is_imported_before_mmcv_by_the_room_or_by_the_module():
    """Also where a function imports it, and in whichever order a user imports the modules."""
    late, checked = [], 0
    for path in sorted((ROOT / 'mtpd').rglob('*.py')):
        statements = imports(ast.parse(path.read_text()))
        uses = [{name.partition('.')[0] for name in names} & LIBRARIES for names in statements]
        if not any(uses) or path.name == 'compat.py':
            continue
        checked += 1
        rooms = [folder / '__init__.py' for folder in path.parents if ROOT in folder.parents]
        heads = [imports(ast.parse(room.read_text()))[:1] for room in rooms] + [statements[:1]]
        if not any('compat' in names for head in heads for names in head):
            late.append(str(path.relative_to(ROOT)))
    assert checked > 20
    assert late == [], (
        'put `from ..runtime import compat  # noqa: F401`, then `# isort: split`, first'
    )
