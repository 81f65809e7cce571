"""The learning rate that an optimizer really has, update by update, where `schedule.lr_batch_size` scales it."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import logging

import pytest
import torch
from mmcv.runner import IterBasedRunner, build_optimizer
from torch import nn
from torch.utils.data import DataLoader

from helpers.plain_config import META, TEXT
from helpers.tiny import retinanet
from helpers.tiny_training import MINI, SMALL
from mtpd import load_recipe
from mtpd.engine.learning_rate import (
    peak_rate,
    policy_in_updates,
    scale_rates,
    with_peak_rate,
)
from mtpd.engine.loop import training_config
from mtpd.engine.memory import config_setting_names
from mtpd.errors import MtpdError
from mtpd.pipeline.mmdet_config import _training_config, load_config

COCO = 'configs/coco/retinanet_r50__r101.py'
UPDATES = 24


class Model(nn.Linear):
    """Notes in each update the learning rates of its optimizer's parameter groups."""

    def __init__(self):
        super().__init__(2, 1)
        self.rates = []

    def train_step(self, batch, optimizer):
        self.rates.append([group['lr'] for group in optimizer.param_groups])
        return {'loss': self(batch).sum(), 'log_vars': {}, 'num_samples': 1}


def rates(recipe, tmp_path, optimizer=build_optimizer) -> list[list[float]]:
    """By update and parameter group, as mmcv's runner and hooks make them of a training's config."""
    cfg = training_config(recipe, {}, {}, tmp_path, UPDATES, 0, 'cpu')
    model = Model()
    logger = logging.getLogger('test')
    runner = IterBasedRunner(
        model, optimizer=optimizer(model, cfg.optimizer), logger=logger, max_iters=UPDATES
    )
    runner.register_training_hooks(cfg.lr_config)  # as mmdet does
    runner.run([DataLoader(torch.ones(UPDATES, 2))], [('train', 1)])
    return model.rates


def scaled_and_stated(path, tmp_path, settings, **options):
    """The rates with a quarter of the batch that they are stated for, and with that batch."""
    common = {'teachers.r101.checkpoint': None, **settings, 'schedule.batch_size': 4}
    return (
        rates(load_recipe(path, common | {'schedule.lr_batch_size': batch}), tmp_path, **options)
        for batch in (16, 4)
    )


def check_ratio(scaled, stated, ratio=0.25):
    assert len(scaled) == len(stated) == UPDATES
    for one, other in zip(scaled, stated, strict=True):
        assert one == pytest.approx([ratio * rate for rate in other])


def test_one_cycle_is_scaled(tmp_path, capsys):
    """mmcv's OneCycle reads its own `max_lr`, never the optimizer's rate."""
    scaled, stated = scaled_and_stated(MINI, tmp_path, SMALL)
    check_ratio(scaled, stated)
    assert max(stated)[0] == pytest.approx(2e-3, rel=0.01)
    assert max(scaled)[0] == pytest.approx(5e-4, rel=0.01)
    assert 'learning rate 0.0005: 0.002 is for 16 images an update' in capsys.readouterr().out


def test_one_cycle_with_a_rate_for_each_group_is_scaled(tmp_path, capsys):
    def two_groups(model, cfg):
        groups = [{'params': [model.weight]}, {'params': [model.bias]}]
        return torch.optim.AdamW(groups, lr=cfg.lr)

    settings = SMALL | {'schedule.lr.max_lr': [2e-3, 4e-3]}
    scaled, stated = scaled_and_stated(MINI, tmp_path, settings, optimizer=two_groups)
    check_ratio(scaled, stated)
    assert max(scaled) == pytest.approx([5e-4, 1e-3], rel=0.01)
    assert 'learning rate [0.0005, 0.001]: [0.002, 0.004] is for' in capsys.readouterr().out


def test_step_is_scaled(tmp_path, capsys):
    settings = {'schedule.lr.warmup_iters': 2, 'data.root': '.'}
    scaled, stated = scaled_and_stated(COCO, tmp_path, settings)
    check_ratio(scaled, stated)
    assert max(stated)[0] == pytest.approx(0.01) and max(scaled)[0] == pytest.approx(0.0025)
    assert scaled[-1][0] == pytest.approx(0.0025 / 100)  # both steps are behind
    assert 'learning rate 0.0025: 0.01 is for 16 images an update' in capsys.readouterr().out


def test_where_a_policy_ends_is_scaled(tmp_path):
    policy = dict(_delete_=True, policy='CosineAnnealing', min_lr=4e-3)
    scaled, stated = scaled_and_stated(COCO, tmp_path, {'schedule.lr': policy, 'data.root': '.'})
    check_ratio(scaled, stated)
    assert 4e-3 < stated[-1][0] < 5e-3


def test_scaling_changes_every_rate_and_nothing_else():
    optimizer, lr = dict(type='SGD', lr=0.1, momentum=0.9), dict(max_lr={'SGD': 0.2}, gamma=0.5)
    assert scale_rates(optimizer, lr, 16, 8) == (
        dict(type='SGD', lr=0.2, momentum=0.9),
        dict(max_lr={'SGD': 0.4}, gamma=0.5),
    )
    assert optimizer['lr'] == 0.1 and lr['max_lr'] == {'SGD': 0.2}


def test_a_peak_of_its_own_keeps_the_course_and_is_scaled_to_the_batch(tmp_path):
    """Of OneCycle: a hundredth of the peak, before the batch halves it."""
    settings = {'schedule.lr_batch_size': 16, 'schedule.batch_size': 8}
    recipe = load_recipe(MINI, settings)
    usual, lower = (
        training_config(recipe, {}, {}, tmp_path, 40, 0, 'cpu', peak) for peak in (None, 2e-5)
    )
    assert usual.lr_config.max_lr == pytest.approx(1e-3)
    assert lower.lr_config.max_lr == lower.optimizer.lr == pytest.approx(1e-5)
    assert {**usual.lr_config, 'max_lr': 0} == {**lower.lr_config, 'max_lr': 0}
    policy = dict(policy='CosineAnnealing', min_lr=1e-4)
    assert with_peak_rate(dict(type='SGD', lr=0.01), policy, 0.002) == (
        dict(type='SGD', lr=pytest.approx(0.002)),
        dict(policy='CosineAnnealing', min_lr=pytest.approx(2e-5)),
    )
    with pytest.raises(
        MtpdError, match=r'schedule\.arm_lr=0\.002 cannot replace the learning rate'
    ):
        with_peak_rate(dict(type='SGD', lr=0.01), dict(max_lr=[0.1, 0.2]), 0.002)


def test_a_plain_config_is_scaled_likewise(tmp_path, tiny_coco, capsys):
    """mmdet's own scaling leaves OneCycle's rate as it is, and must not come on top."""
    path = tmp_path / 'pets.py'
    root = str(tiny_coco(tmp_path / 'coco'))
    path.write_text(TEXT.format(model=retinanet(num_classes=2), root=root, meta=META))
    policy = dict(_delete_=True, policy='OneCycle', max_lr=0.04)
    config = load_config(path, {'auto_scale_lr.enable': True, 'lr_config': policy})
    cfg = _training_config(config, tmp_path / 'run')
    assert cfg.lr_config.max_lr == pytest.approx(0.04 * 2 / 16)
    assert cfg.optimizer.lr == pytest.approx(0.01 * 2 / 16)
    assert not cfg.auto_scale_lr.enable
    assert 'learning rate 0.005: 0.04 is for 16 images an update' in capsys.readouterr().out
    names = config_setting_names(config.cfg, config.batch, 'val_dataloader')
    assert names.lr == 'lr_config.max_lr'


def test_a_rate_that_is_not_stated_cannot_be_scaled(tmp_path):
    settings = {'schedule.optimizer': dict(_delete_=True, type='Adadelta'), 'data.root': '.'}
    recipe = load_recipe(
        COCO, settings | {'schedule.batch_size': 4, 'teachers.r101.checkpoint': None}
    )
    with pytest.raises(MtpdError, match='the optimizer states no lr'):
        training_config(recipe, {}, {}, tmp_path, 4, 0, 'cpu')


def test_the_pocket_schedule_states_its_rate_once():
    schedule = load_recipe(MINI).cfg.schedule
    assert schedule.optimizer.lr == schedule.lr.max_lr == 2e-3


def test_shares_of_a_training_become_updates_and_an_interval_stays():
    for step, updates, wanted in (
        ([8 / 12, 11 / 12], 24, [16, 22]),
        (0.5, 24, [12]),
        ([0.01], 24, [1]),  # mmcv takes no 0
        ([10, 20], 24, [10, 20]),
        (10, 24, 10),  # to mmcv: after every ten
    ):
        assert policy_in_updates(dict(policy='step', step=step), updates)['step'] == wanted
    policy = dict(policy='CosineAnnealing', min_lr=0)
    assert policy_in_updates(policy, 24) == policy and policy_in_updates(policy, 24) is not policy


def test_the_peak_of_a_cyclic_policy_is_a_multiple_of_the_rate(tmp_path):
    policy = dict(policy='cyclic', target_ratio=(4, 0.1), cyclic_times=1, step_ratio_up=0.4)
    recipe = load_recipe(MINI, {'schedule.lr': dict(_delete_=True, **policy), 'schedule.optimizer.lr': 1e-3})  # fmt: skip
    largest = max(rate for (rate, *_) in rates(recipe, tmp_path))
    assert peak_rate(recipe.cfg.schedule.optimizer, policy) == pytest.approx(4e-3)
    assert 3e-3 < largest <= 4e-3
    optimizer, _ = with_peak_rate(dict(type='SGD', lr=1e-3), policy, 1e-3)
    assert optimizer['lr'] == pytest.approx(2.5e-4)
    assert peak_rate(dict(lr=1.0), dict(policy='cyclic')) == 10
