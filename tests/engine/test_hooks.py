"""Losses and weights that are not finite: the training ends with its last good checkpoint, and says what to look at."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import json
import math
import os
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from mmcv import Config
from mmcv.parallel import DataContainer
from mmcv.runner import HOOKS, Fp16OptimizerHook
from mmcv.utils import build_from_cfg
from mmdet.datasets import build_dataloader, build_dataset
from mmdet.models import DETECTORS, RetinaNet

from helpers import failing
from helpers.plain_config import META, TEXT
from helpers.tiny import retinanet
from helpers.tiny_training import MINI, SMALL
from mtpd import load_recipe
from mtpd.cli.main import main
from mtpd.data.seeded_loader import resume_at
from mtpd.engine import loop, pipelines
from mtpd.engine.hooks import MAX_SKIPPED_UPDATES, FiniteLoss, SaveLatest
from mtpd.engine.loop import train_model
from mtpd.engine.memory import recipe_setting_names
from mtpd.errors import MtpdError
from mtpd.pipeline.mmdet_config import load_config
from mtpd.runtime import checkpoints
from mtpd.utils.files import read_log
from mtpd.utils.paths import ROOT


def plain(folder, root, kind, at):
    """A config with three updates an epoch, of two epochs, each with a checkpoint."""
    model = retinanet(num_classes=2) | dict(type='Failing', kind=kind, at=at)
    path = folder / f'{kind}{at}.py'
    path.write_text(TEXT.format(model=model, root=str(root), meta=META))
    return path


@pytest.fixture(scope='module')
def root(tmp_path_factory, tiny_coco):
    return tiny_coco(tmp_path_factory.mktemp('coco') / 'pets')


def train(path, out):
    return CliRunner().invoke(main, ['train', str(path), '--work-dir', str(out)])


def refused(path, out) -> str:
    result = train(path, out)
    assert result.exit_code == 2, (result.output, result.exception)
    assert 'Traceback' not in result.output
    return result.output


def finite(path) -> bool:
    return all(
        torch.isfinite(value).all()
        for value in checkpoints.load_checkpoint(path)['state_dict'].values()
    )


@pytest.mark.long
@pytest.mark.parametrize('kind', ['nan', 'inf'])
def test_a_loss_that_is_not_finite_ends_the_training_before_its_step(root, tmp_path, kind):
    out = tmp_path / 'run'
    output = refused(plain(tmp_path, root, kind, 5), out)
    assert (
        f'mtpd: training ended in update 5 of 6: a loss is not finite (loss_bbox {kind}, loss {kind}).\n'
        'latest.pth stays as update 3 left it: the same command goes on from there, and ends the same way unless '
        f'something changes: look at the boxes of the 2 image(s) that {out}/nonfinite.json names; lower the '
        'learning rate (optimizer.lr), or clip gradients to a smaller norm (optimizer_config.grad_clip). Other settings need '
        'another --work-dir.\n'
    ) in output
    report = json.loads((out / 'nonfinite.json').read_text())
    assert (report['update'], report['updates']) == (5, 6) and 0 < report['lr'] <= 0.01
    assert report['losses'].keys() == {'loss_cls', 'loss_bbox', 'loss'}
    assert report['losses']['loss_bbox'] == report['losses']['loss'] == kind
    assert 0 < report['losses']['loss_cls'] < 10
    names = [image['file'] for image in report['images']]
    data = pipelines.quiet_dataset(load_config(tmp_path / f'{kind}5.py').cfg.data.train)
    loader = build_dataloader(data, 2, 0, dist=False, seed=0, runner_type='EpochBasedRunner')
    (fifth,) = (batch['img_metas'].data[0] for batch in [next(iter(resume_at(loader, 0, 4)))])
    assert names == [meta['ori_filename'] for meta in fifth]
    assert [image['id'] for image in report['images']] == [int(name[:6]) for name in names]
    assert {(image['rank'], image['loss']) for image in report['images']} == {(0, kind)}
    assert checkpoints.load_checkpoint(out / 'latest.pth')['meta']['iter'] == 3 and finite(
        out / 'latest.pth'
    )
    assert all(math.isfinite(row['loss']) for row in read_log(out / 'log.json') if 'loss' in row)


@pytest.mark.long
def test_the_training_goes_on_where_the_cause_is_gone(root, tmp_path):
    """As where a box was corrected: the detector that failed in its fifth update now has three to make."""
    path, out = plain(tmp_path, root, 'nan', 5), tmp_path / 'run'
    refused(path, out)
    assert train(path, out).exit_code == 0
    assert not (out / 'nonfinite.json').exists()
    whole = tmp_path / 'whole'
    assert train(plain(tmp_path, root, 'nan', 99), whole).exit_code == 0
    one, other = (
        checkpoints.load_checkpoint(folder / 'latest.pth')['state_dict'] for folder in (out, whole)
    )
    assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.long
def test_weights_that_are_not_finite_are_never_written(root, tmp_path):
    """In the last update of an epoch, after which there is a checkpoint; in others the next loss is not finite."""
    out = tmp_path / 'run'
    output = refused(plain(tmp_path, root, 'gradients', 6), out)
    assert (
        'training ended in update 6 of 6: ' in output
        and 'weights are not finite after it (first ' in output
    )
    assert 'latest.pth stays as update 3 left it' in output
    assert checkpoints.load_checkpoint(out / 'latest.pth')['meta']['iter'] == 3 and finite(
        out / 'latest.pth'
    )
    assert not (out / 'model.pth').exists() and not (out / 'previous.pth').exists()
    report = json.loads((out / 'nonfinite.json').read_text())
    assert report['update'] == 6 and report['losses']['loss_root'] == 0.0
    assert all(isinstance(value, float) for value in report['losses'].values())
    assert 'bbox_head.retina_cls.weight' in report['weights'] and len(report['images']) == 2
    assert 'update 5 of 6: a loss is not finite' in refused(
        plain(tmp_path, root, 'gradients', 4), tmp_path / 'other'
    )


def test_a_recipe_whose_first_update_fails(root, tmp_path):
    model = {'student.model.type': 'Failing', 'student.model.kind': 'nan'}
    recipe = load_recipe(MINI, SMALL | model | {'data.root': str(root), 'runtime.workers': 1})
    cfg = recipe.model('student')
    with pytest.raises(MtpdError) as error:
        train_model(recipe, partial(failing.build, cfg), cfg, tmp_path, 4, 0)
    text = str(error.value)
    assert 'in update 1 of 4' in text and 'No checkpoint was written yet: the same command' in text
    assert (
        'learning rate (schedule.lr.max_lr), or clip gradients to a smaller norm (schedule.grad_clip)'
        in text
    )
    assert {path.name for path in tmp_path.iterdir()} == {'log.json', 'nonfinite.json'}
    saved = load_recipe(recipe, {'student.model.kind': 'gradients', 'student.model.at': 2})
    cfg = saved.model('student')
    with pytest.raises(MtpdError, match=r'in update 2 of 4: .* weights are not finite after it'):
        train_model(saved, partial(failing.build, cfg), cfg, tmp_path / 'b', 4, 0)
    assert not (tmp_path / 'b/latest.pth').exists()


@pytest.mark.slow
@pytest.mark.parametrize('kind, update', [('nan', 3), ('gradients', 2)])
def test_all_processes_end_together_and_tell_of_their_images(
    root, tmp_path, monkeypatch, kind, update
):
    """In the one that the file names, and in the other, whose own loss is finite."""
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}{os.pathsep}{ROOT / "tests"}')
    more = {'runtime.device': 'cpu', 'runtime.gpus': 2, 'student.model.type': 'Failing'}
    more |= {'student.model.kind': kind, 'student.model.at': update, 'data.root': str(root)}
    recipe = load_recipe(MINI, SMALL | more)
    cfg = recipe.model('student')
    with pytest.raises(MtpdError, match=f'training ended in update {update} of 4') as error:
        train_model(recipe, partial(failing.build_on_rank_1, cfg), cfg, tmp_path, 4, 0)
    report = json.loads((tmp_path / 'nonfinite.json').read_text())
    assert [image['rank'] for image in report['images']] == [0, 1]
    losses = [image['loss'] for image in report['images']]
    assert isinstance(losses[0], float) and losses[1] == (
        'nan' if kind == 'nan' else pytest.approx(losses[1])
    )
    assert all(image['id'] == int(image['file'][:6]) for image in report['images'])
    assert 'of the 2 image(s)' in str(error.value)
    assert (tmp_path / 'latest.pth').exists() == (kind == 'nan')
    if kind == 'nan':
        assert checkpoints.load_checkpoint(tmp_path / 'latest.pth')['meta']['iter'] == 2
        assert finite(tmp_path / 'latest.pth')


def test_a_loss_scaler_may_skip_updates(tmp_path):
    """Until it has skipped 50 in a row; on the CPU it is disabled, and skips none."""

    def runner(loss, enabled):
        metas = [[{'ori_filename': 'a.png'}]]
        data = SimpleNamespace(data_infos=[{'filename': 'a.png', 'id': 7}])
        return SimpleNamespace(
            hooks=[SimpleNamespace(loss_scaler=torch.amp.GradScaler('cpu', enabled=enabled))],
            outputs={'loss': torch.tensor(loss), 'log_vars': {'loss': loss, 'acc': math.nan}},
            data_batch={'img_metas': DataContainer(metas)},
            data_loader=SimpleNamespace(dataset=SimpleNamespace(dataset=data)),
            iter=8,
            max_iters=9,
            current_lr=lambda: [0.1],
        )

    guard = FiniteLoss(str(tmp_path), 'advice')
    guard.after_train_iter(runner(1.0, False))
    for _ in range(2):
        for _ in range(MAX_SKIPPED_UPDATES - 1):
            guard.after_train_iter(runner(math.inf, True))
        guard.after_train_iter(runner(1.0, True))
    for _ in range(MAX_SKIPPED_UPDATES - 1):
        guard.after_train_iter(runner(math.inf, True))
    with pytest.raises(MtpdError, match=r'update 9 of 9: a loss is not finite \(loss inf\)'):
        guard.after_train_iter(runner(math.inf, True))
    with pytest.raises(MtpdError):
        FiniteLoss(str(tmp_path), 'advice').after_train_iter(runner(math.inf, False))
    report = json.loads((tmp_path / 'nonfinite.json').read_text())
    assert report['images'] == [{'file': 'a.png', 'id': 7, 'rank': 0, 'loss': 'inf'}]
    large = 'a loss is above 1e.10, so the training does not learn .loss 2e.24'
    with pytest.raises(MtpdError, match=large):
        FiniteLoss(str(tmp_path), 'advice').after_train_iter(runner(2e24, False))
    FiniteLoss(str(tmp_path), 'advice').after_train_iter(runner(1e5, False))


@pytest.mark.parametrize('earlier', [None, {'update': 4, 'seconds': 2.5}])
def test_a_kill_between_checkpoint_and_progress_leaves_no_training_without_progress(
    tmp_path, earlier
):
    """latest.pth is written before training.json; a training that resumes at its last update writes neither again."""
    progress = tmp_path / 'training.json'
    if earlier:
        progress.write_text(json.dumps(earlier))
    SaveLatest(str(tmp_path / 'latest.pth'), 4).before_run(SimpleNamespace(iter=8))
    written = json.loads(progress.read_text())
    assert written['update'] == 8 and written['seconds'] >= (earlier or {}).get('seconds', 0)


def test_a_config_of_half_precision_keeps_mmdets_optimizer_hook(tmp_path):
    """mmdet builds Fp16OptimizerHook of `optimizer_config` and `fp16` together."""
    for fp16, kind in ((dict(loss_scale=512.0), None), (None, 'LoggedGradNorm')):
        cfg = Config(
            dict(
                work_dir=str(tmp_path),
                log_config=dict(interval=5),
                optimizer_config=dict(grad_clip=dict(max_norm=35)),
                checkpoint_config=dict(interval=1),
                resume_from=None,
                seed=0,
                **({'fp16': fp16} if fp16 else {}),
            )
        )
        loop._set_hooks(cfg, 0, recipe_setting_names(load_recipe(MINI).cfg, 1))
        assert cfg.optimizer_config.get('type') == kind
        if fp16:
            assert Fp16OptimizerHook(**cfg.optimizer_config, **cfg.fp16, distributed=False)
        else:
            assert build_from_cfg(dict(cfg.optimizer_config), HOOKS).interval == 5


@DETECTORS.register_module()
class CountsEpochs(RetinaNet):
    """As TOOD, which learns in another way after some epochs."""

    epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def test_a_detector_that_learns_by_epochs_is_given_them(root, tmp_path):
    """Also after a restart: the second training goes on at update 3."""
    options = {'student.model.type': 'CountsEpochs', 'data.root': str(root)}
    recipe = load_recipe(MINI, SMALL | options)
    cfg = recipe.model('student')
    images = len(build_dataset(pipelines.dataset_config(recipe, 'train')))
    for updates in (3, 8):
        train_model(recipe, partial(failing.build, cfg), cfg, tmp_path, updates, 0)
    assert CountsEpochs.epochs == [2 * update // images for update in range(8)]
    assert CountsEpochs.epochs[-1] >= 1
