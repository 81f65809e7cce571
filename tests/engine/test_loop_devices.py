"""`runtime.device=cpu` beside a GPU: nothing goes there. And tests: only those marked `gpu` do."""

from __future__ import annotations

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmcv.runner import EpochBasedRunner, IterBasedRunner
from mmcv.utils import get_logger
from mmdet.core.bbox.samplers import IoUBalancedNegSampler
from mmdet.core.utils import dist_utils
from mmdet.datasets.samplers import (
    DistributedSampler,
    InfiniteBatchSampler,
    class_aware_sampler,
    distributed_sampler,
    infinite_sampler,
)
from mmdet.utils import build_dp
from torch import nn

from helpers.tiny import SMALL
from mtpd import predict
from mtpd.analysis import feature_maps, generalisation
from mtpd.config.recipe import load_recipe
from mtpd.engine.evaluation import evaluate, load_detector, model_cost
from mtpd.engine.loop import data_parallel, train_model
from mtpd.pipeline.stages import train_stage
from mtpd.pipeline.teacher_order import adaptation_costs
from mtpd.preflight import trial
from mtpd.runtime import distributed
from mtpd.utils.files import read_json, read_log
from mtpd.utils.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'


@pytest.fixture
def gpu_beside(monkeypatch):
    """A GPU that must not be used. Where there is none torch believes in one, and fails when it is used."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    before = used_so_far()
    yield
    assert used_so_far() == before


def used_so_far() -> int | None:
    """How much was put on the GPU in this process, None before it was opened."""
    if not torch.cuda.is_initialized():
        return None
    return torch.cuda.memory_stats().get('allocation.all.allocated', 0)


class Model(nn.Linear):
    def train_step(self, data, optimizer):
        return {'loss': self(data).sum()}


@pytest.mark.parametrize(
    'wrap', [data_parallel, lambda model, device: build_dp(model, device, device_ids=[0])]
)
def test_a_wrapped_model_stays(gpu_beside, wrap):
    wrapped, data = wrap(Model(2, 1), 'cpu'), torch.ones(3, 2)
    assert next(wrapped.parameters()).device.type == 'cpu'
    assert torch.equal(wrapped(data), wrapped.module(data))
    assert wrapped.train_step(data, None)['loss'] == wrapped.module(data).sum()


@pytest.mark.parametrize('kind', [IterBasedRunner, EpochBasedRunner])
def test_a_runner_resumes(gpu_beside, tmp_path, kind):
    def runner():
        model = Model(2, 1)
        adam = torch.optim.AdamW(model.parameters(), lr=0.1)
        logger = get_logger('mmcv')
        return kind(model, optimizer=adam, work_dir=str(tmp_path), logger=logger, meta={})

    first = runner()
    first.model(torch.ones(1, 2)).sum().backward()
    first.optimizer.step()
    first._iter = 12
    first.save_checkpoint(str(tmp_path))
    second = runner()
    second.resume(str(tmp_path / 'latest.pth'))
    assert second.iter == 12 and torch.equal(second.model.weight, first.model.weight)
    moments = second.optimizer.state[second.model.weight]['exp_avg']
    assert torch.equal(moments, first.optimizer.state[first.model.weight]['exp_avg'])
    assert moments.device.type == 'cpu'


def test_a_sampler_of_boxes_draws(gpu_beside):
    sampler = IoUBalancedNegSampler(num=4, pos_fraction=0.5)
    torch.manual_seed(0)
    drawn = sampler.random_choice(np.arange(10, 20), 4)
    torch.manual_seed(0)
    assert (
        isinstance(drawn, np.ndarray) and drawn.tolist() == (torch.randperm(10)[:4] + 10).tolist()
    )
    assert set(sampler.random_choice(torch.arange(3), 3).tolist()) == {0, 1, 2}


def test_samplers_of_several_processes_share_their_seed(gpu_beside, monkeypatch):
    for module in (infinite_sampler, class_aware_sampler):
        monkeypatch.setattr(module, 'sync_random_seed', module.sync_random_seed)
    monkeypatch.setattr(distributed_sampler, 'get_device', distributed_sampler.get_device)
    monkeypatch.setattr(dist_utils, 'get_dist_info', lambda: (0, 2))
    sent = []
    monkeypatch.setattr(dist_utils.dist, 'broadcast', lambda number, src: sent.append(number))
    distributed.patch_train_detector('cpu')
    DistributedSampler(range(8), 2, 0, seed=5)
    InfiniteBatchSampler(range(8), 2, 2, 0, seed=6)
    class_aware_sampler.sync_random_seed(7)
    assert [(number.device.type, int(number)) for number in sent] == [
        ('cpu', 5),
        ('cpu', 6),
        ('cpu', 7),
    ]


@pytest.fixture(scope='module')
def recipe(tmp_path_factory, tiny_coco):
    more = {
        'data.root': str(tiny_coco(tmp_path_factory.mktemp('coco'))),
        'runtime.device': 'cpu',
        'runtime.threads': 1,
        'schedule.eval_interval': 1,
        'arms.direct.teachers': ['r101'],
        'teachers.r101.updates': 1,
        'teachers.rx101.updates': 1,
        'student.model.test_cfg.score_thr': 0.0,  # barely trained
    }
    return load_recipe(MINI, SMALL | more)


@pytest.mark.long
def test_a_run_keeps_to_the_cpu(gpu_beside, recipe, tmp_path):
    """Baseline, teacher, stage with evaluations, going on, and all that is made of them."""
    made = train_stage(recipe, 1, 'direct', tmp_path / 'run')
    evaluations = [row for row in read_log(made['dir'] / 'log.json') if 'bbox_mAP' in row]
    assert [row['update'] for row in evaluations] == [1, 2]
    student = made['checkpoint']
    assert evaluate(recipe, student)['num_images'] == 4
    costs = adaptation_costs(recipe, tmp_path / 'run')
    assert np.isfinite(np.array(costs['cost'], float)).all()
    labels = {'student': ('student', student)}
    (rows, *_) = feature_maps.feature_rows(recipe, labels, 2, 0)
    assert rows[0][1].device.type == 'cpu'
    model = load_detector(recipe, student)
    assert (
        generalisation.detection_loss(model, generalisation.training_batches(recipe, 'train', 2))
        > 0
    )
    assert model_cost(recipe, 'student', 1)['ms_per_image'] > 0
    images = recipe.split('val')[1]
    detector = predict.detector(student, device='cpu')
    assert len(list(predict.predict(detector, [images], tmp_path / 'drawn'))) == 4
    settings = (recipe.source, recipe.overrides, 2, [('student', None), ('student', 'r101')])
    measured = trial.measure_updates(*settings, ['student'])
    assert all(row['seconds'] > 0 for row in measured['trainings'].values())


def test_a_training_goes_on(gpu_beside, recipe, tmp_path):
    cfg = recipe.model('student')
    for updates in (1, 3):
        train_model(
            recipe,
            lambda: trial.untrained_detector(recipe, 'student', None),
            cfg,
            tmp_path,
            updates,
            0,
        )
    assert read_json(tmp_path / 'training.json')['update'] == 3


PRETENDED = """
import torch
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
"""
MARKED = """
import os, pytest, torch
from pathlib import Path
from mtpd.engine.loop import choose_device

@pytest.fixture(scope='module')
def device():
    return choose_device('auto', Path())

def test_without_the_mark(device):
    assert (device, os.environ.get('CUDA_VISIBLE_DEVICES')) == ('cpu', '')

@pytest.mark.gpu
def test_with_it():
    assert torch.cuda.is_available()
    assert os.environ.get('CUDA_VISIBLE_DEVICES') == '0'
"""


@pytest.mark.long
def test_tests_use_a_gpu_only_where_they_are_marked(tmp_path):
    for name, text in (('pretended', PRETENDED), ('test_both', MARKED)):
        (tmp_path / f'{name}.py').write_text(text)
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / 'tests')))
    command = [sys.executable, '-m', 'pytest', '-c', ROOT / 'pyproject.toml', '-n', '0', '-q']
    done = subprocess.run(
        [*command, '-p', 'conftest', '-p', 'pretended', tmp_path],
        env={**os.environ, 'PYTHONPATH': path, 'CUDA_VISIBLE_DEVICES': '0'},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert '2 passed' in done.stdout, done.stdout
