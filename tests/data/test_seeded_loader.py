"""The same numbers however often a training is cut off: its batches, its random numbers, its checkpoints."""

import json
import random
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import psutil
import pytest
import torch
from mmdet.datasets import build_dataloader

from helpers.cut_off import Cut, cut, fail, same
from helpers.plain_config import META, TEXT
from helpers.tiny import retinanet
from helpers.tiny_training import MINI, SMALL
from mtpd import load_recipe
from mtpd.data import seeded_loader
from mtpd.engine import pipelines
from mtpd.engine.loop import train_model
from mtpd.errors import MtpdError
from mtpd.pipeline import mmdet_config
from mtpd.pipeline.detectors import prepare_detector
from mtpd.pipeline.stages import _stage_builder, train_stage
from mtpd.runtime import checkpoints
from mtpd.runtime.checkpoints import find_resume_point
from mtpd.utils.files import read_log
from mtpd.utils.paths import ROOT

UPDATES = 6


@pytest.fixture(scope='module')
def recipe(tmp_path_factory, tiny_coco):
    root = tiny_coco(tmp_path_factory.mktemp('coco'))
    more = {'data.root': str(root), 'arms.direct.teachers': ['r101'], 'schedule.arm': UPDATES}
    return load_recipe(MINI, SMALL | more | {'image.flip': 0.5})


@pytest.fixture(scope='module')
def stage(recipe, tmp_path_factory):
    """A stage with MGD that was not interrupted, and how its model is made."""
    run = tmp_path_factory.mktemp('run')
    made = train_stage(recipe, 1, 'direct', run)
    start = prepare_detector(recipe, 'student', run)['checkpoint']
    return made['dir'], *_stage_builder(recipe, 'r101', start, 'baseline', run)


def batches(recipe, begin, workers, runner, count, seed=3):
    data = pipelines.quiet_dataset(pipelines.dataset_config(recipe, 'train'))
    made = build_dataloader(data, 2, workers, dist=False, seed=seed, runner_type=runner)
    loader, loaded = seeded_loader.resume_at(made, seed, begin), []
    while len(loaded) < count:
        for batch in loader:
            # What the last epoch of a training leaves in the generators is nobody's concern.
            seeded_loader.seed_all(random.randrange(2**31))
            flips = [meta['flip'] for meta in batch['img_metas'].data[0]]
            names = [meta['ori_filename'] for meta in batch['img_metas'].data[0]]
            loaded.append((names, flips, batch['img'].data[0]))
            if len(loaded) == count:
                break
    return loaded


@pytest.mark.parametrize('runner', ['IterBasedRunner', 'EpochBasedRunner'])
def test_batches_depend_on_seed_and_update_alone(recipe, runner):
    whole = batches(recipe, 0, 0, runner, 12)
    for begin, workers in ((0, 2), (5, 0), (6, 1)):
        rest = batches(recipe, begin, workers, runner, 12 - begin)
        for (names, flips, images), wanted in zip(rest, whole[begin:], strict=True):
            assert (names, flips) == wanted[:2] and torch.equal(images, wanted[2])
    flips = [tuple(flips) for _, flips, _ in whole]
    assert len(set(flips)) > 1, 'all the same: nothing was drawn'
    assert [batch[:2] for batch in batches(recipe, 0, 0, runner, 12, 4)] != [b[:2] for b in whole]


def test_the_order_is_mmdets(recipe):
    data = pipelines.quiet_dataset(pipelines.dataset_config(recipe, 'train'))
    made = build_dataloader(data, 2, 0, dist=False, seed=3, runner_type='IterBasedRunner')
    order = iter(made.batch_sampler)
    names = [[data.data_infos[index]['file_name'] for index in next(order)] for _ in range(12)]
    assert [b[0] for b in batches(recipe, 0, 0, 'IterBasedRunner', 12)] == names


def test_a_seed_is_of_all_its_numbers():
    def drawn(*key):
        seeded_loader.seed_all(*key)
        return random.random(), np.random.rand(), float(torch.rand(1))

    keys = [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0), (2**40, 0, 0, 0)]
    assert len({drawn(*key) for key in keys}) == len(keys)
    assert drawn(1, 2, 3, 4) == drawn(1, 2, 3, 4)


def trained_on(recipe, stage, out, build=None, **options):
    folder, usual, cfg = stage
    meta = checkpoints.load_checkpoint(folder / 'latest.pth')['meta']
    about = {key: meta[key] for key in meta if key not in ('iter', 'epoch')}
    train_model(load_recipe(recipe, options), build or usual, cfg, out, UPDATES, 1, meta=about)


def test_workers_send_images_by_shared_memory_and_small_tensors_themselves(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path / 'coco')
    recipe = load_recipe(MINI, SMALL | {'data.root': str(root), 'image.scale': 256})
    data = pipelines.quiet_dataset(pipelines.dataset_config(recipe, 'train'))
    (alone,), (sent,) = (
        [next(iter(seeded_loader.resume_at(build_dataloader(data, 2, workers, dist=False), 0, 0)))]
        for workers in (0, 1)
    )
    assert sent['img'].data[0].is_shared() and torch.equal(
        alone['img'].data[0], sent['img'].data[0]
    )
    for key in ('gt_bboxes', 'gt_labels'):
        for one, other in zip(alone[key].data[0], sent[key].data[0], strict=True):
            assert not other.is_shared() and one.dtype == other.dtype and torch.equal(one, other)
            other += 1  # they can be written


@pytest.mark.parametrize('moments', [(0,), (3,), (2, 1, 0)])
def test_a_stage_cut_off_anywhere_ends_the_same(recipe, stage, tmp_path, moments):
    """Checkpoints every two updates; an epoch of the three images has one and a half."""
    folder, build, _ = stage
    for moment in moments:
        with pytest.raises(Cut):
            trained_on(recipe, stage, tmp_path, cut(build, moment, fail))
    trained_on(recipe, stage, tmp_path, **{'runtime.workers': 1})
    same(tmp_path / 'latest.pth', folder / 'latest.pth')
    assert (tmp_path / 'latest.pth').read_bytes() == (folder / 'latest.pth').read_bytes()
    logs = [read_log(place / 'log.json') for place in (tmp_path, folder)]
    for one, other in zip(*logs, strict=True):
        timeless = [{k: v for k, v in row.items() if 'time' not in k} for row in (one, other)]
        assert timeless[0] == timeless[1]
    assert not (tmp_path / 'previous.pth').exists()


@pytest.mark.gpu
@pytest.mark.parametrize(('precision', 'apart'), [('fp32', 0.01), ('bf16', 0.1)])
def test_on_a_gpu_a_stage_cut_off_ends_nearly_the_same(recipe, stage, tmp_path, precision, apart):
    """Sums by atomics come in any order there. Of how far the weights went, by SGD: Adam takes noise for a gradient."""
    sgd = {'_delete_': True, 'type': 'SGD', 'lr': 0.01, 'momentum': 0.9}
    options = {'runtime.device': 'cuda', 'speed.precision': precision, 'schedule.optimizer': sgd}
    options['schedule.lr'] = {'_delete_': True, 'policy': 'fixed'}
    _, build, _ = stage
    trained_on(recipe, stage, tmp_path / 'whole', **options)
    with pytest.raises(Cut):
        trained_on(recipe, stage, tmp_path / 'cut', cut(build, 3, fail), **options)
    assert checkpoints.load_checkpoint(tmp_path / 'cut' / 'latest.pth')['meta']['iter'] == 2
    trained_on(recipe, stage, tmp_path / 'cut', **options)
    whole, other = (
        checkpoints.load_checkpoint(tmp_path / name / 'latest.pth')['state_dict']
        for name in ('whole', 'cut')
    )
    start = build().state_dict()
    weights = [key for key, value in whole.items() if value.is_floating_point()]
    moved = sum(float((whole[key] - start[key]).square().sum()) for key in weights)
    between = sum(float((whole[key] - other[key]).square().sum()) for key in weights)
    assert moved > 0 and between**0.5 < apart * moved**0.5


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_training_after_its_update_with_a_checkpoint(
    recipe, stage, tmp_path, number
):
    folder, build, _ = stage
    seen = []

    def noted(*args):
        seen.append(args[0])
        raise KeyboardInterrupt

    before = signal.signal(number, noted)
    try:
        with pytest.raises(KeyboardInterrupt):
            wrapped = cut(build, 2, lambda: signal.raise_signal(number))
            trained_on(recipe, stage, tmp_path, wrapped)
        assert seen == [number] and signal.getsignal(number) is noted
    finally:
        signal.signal(number, before)
    assert (
        checkpoints.load_checkpoint(tmp_path / 'latest.pth')['meta']['iter'] == 3
    )  # the third update
    assert json.loads((tmp_path / 'training.json').read_text())['update'] == 3
    trained_on(recipe, stage, tmp_path)
    same(tmp_path / 'latest.pth', folder / 'latest.pth')


def test_a_signal_in_the_last_update_leaves_a_whole_log(recipe, stage, tmp_path):
    """Going on from its checkpoint there is no update left to write the last row."""
    folder, build, _ = stage
    with pytest.raises(KeyboardInterrupt):
        wrapped = cut(build, UPDATES - 1, partial(signal.raise_signal, signal.SIGINT))
        trained_on(recipe, stage, tmp_path, wrapped)
    assert checkpoints.load_checkpoint(tmp_path / 'latest.pth')['meta']['iter'] == UPDATES
    trained_on(recipe, stage, tmp_path)
    rows = [[row['update'] for row in read_log(place / 'log.json')] for place in (tmp_path, folder)]
    assert rows[0] == rows[1] and rows[0][-1] == UPDATES
    same(tmp_path / 'latest.pth', folder / 'latest.pth')


@pytest.mark.long
def test_an_epoch_goes_on_inside(tmp_path, tiny_coco):
    """A plain mmdet config that counts epochs, of three updates each."""
    path = tmp_path / 'plain.py'
    root = tiny_coco(tmp_path / 'coco')
    path.write_text(TEXT.format(model=retinanet(num_classes=2), root=str(root), meta=META))
    whole = mmdet_config.load_config(path)
    mmdet_config.train_config(whole, tmp_path / 'whole')
    initialised = mmdet_config._initialised_detector
    for update in (0, 2, 4):
        out = tmp_path / str(update)

        def interrupted(config, update=update):
            interrupt = partial(signal.raise_signal, signal.SIGINT)
            return cut(partial(initialised, config), update, interrupt)()

        with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
            patch.setattr(mmdet_config, '_initialised_detector', interrupted)
            mmdet_config.train_config(whole, out)
        at = checkpoints.load_checkpoint(out / 'latest.pth')['meta']
        assert (at['iter'], at['epoch']) == (update + 1, (update + 1) // 3)
        if update == 0:  # as where two processes began what one goes on with
            whole_file = (out / 'latest.pth').read_bytes()
            state = checkpoints.load_checkpoint(out / 'latest.pth')
            state['meta']['epoch_updates'] = 2
            torch.save(state, out / 'latest.pth')
            with pytest.raises(
                MtpdError, match='2 updates an epoch, and now an epoch has 3: a tra'
            ):
                mmdet_config.train_config(whole, out)
            (out / 'latest.pth').write_bytes(whole_file)
        mmdet_config.train_config(whole, out)
        same(out / 'latest.pth', tmp_path / 'whole' / 'latest.pth')


def test_a_truncated_checkpoint_gives_way_to_the_one_before(recipe, stage, tmp_path, capsys):
    folder, build, _ = stage
    with pytest.raises(Cut):
        trained_on(recipe, stage, tmp_path, cut(build, 4, fail))
    latest, previous = tmp_path / 'latest.pth', tmp_path / 'previous.pth'
    assert checkpoints.load_checkpoint(previous)['meta']['iter'] == 2
    latest.write_bytes(latest.read_bytes()[:5000])
    (tmp_path / '.latest.part.123.part').write_bytes(b'PK')
    assert find_resume_point(tmp_path) == (previous, 2)
    output = capsys.readouterr().out
    assert f'{latest} is damaged' in output and 'goes on from previous.pth, update 2' in output
    assert not list(tmp_path.glob('.*.part'))
    trained_on(recipe, stage, tmp_path)
    same(latest, folder / 'latest.pth')
    for path in (latest, previous):
        path.write_bytes(b'')
    assert find_resume_point(tmp_path) is None
    assert 'previous.pth is empty' in (output := capsys.readouterr().out)
    assert 'starts from the beginning' in output
    trained_on(recipe, stage, tmp_path)
    same(latest, folder / 'latest.pth')


def test_what_no_training_wrote_is_not_gone_on_from(tmp_path):
    checkpoints.save_atomic({'state_dict': {'w': torch.ones(1)}}, tmp_path / 'latest.pth')
    with pytest.raises(MtpdError, match=r'latest\.pth is not the checkpoint of a training'):
        find_resume_point(tmp_path)


def test_a_truncated_student_is_made_again_from_its_training(recipe, stage, capsys):
    folder = stage[0]
    student = folder / 'student.pth'
    whole, seconds = (
        student.read_bytes(),
        json.loads((folder / 'stage.json').read_text())['seconds'],
    )
    student.write_bytes(whole[:999])
    train_stage(recipe, 1, 'direct', folder.parents[2])
    assert f'{student} is damaged' in (output := capsys.readouterr().out)
    assert 'made again from latest.pth' in output and student.read_bytes() == whole
    assert json.loads((folder / 'stage.json').read_text())['seconds'] == seconds > 0


@pytest.mark.long
def test_data_workers_end_with_their_training(recipe, tmp_path):
    """Killed, the training leaves nobody behind."""
    script = (
        'import os, sys\nfrom pathlib import Path\nsys.path.insert(0, "tests")\n'
        'import helpers.tiny_training as t\nfrom mtpd import load_recipe\nimport mtpd.data.seeded_loader as r\n'
        'from mtpd.engine import pipelines\n'
        'from mmdet.datasets import build_dataloader\n'
        f'recipe = load_recipe(t.MINI, t.SMALL | {{"data.root": {str(recipe.cfg.data.root)!r}}})\n'
        'data = pipelines.quiet_dataset(pipelines.dataset_config(recipe, "train"))\n'
        'made = build_dataloader(data, 2, 2, dist=False, seed=0, runner_type="IterBasedRunner")\n'
        'batches = iter(r.resume_at(made, 0, 0))\nnext(batches)\n'
        'print(*[worker.pid for worker in batches._workers], flush=True)\nos.kill(os.getpid(), 9)\n'
    )
    run = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    pids = [int(word) for word in run.stdout.split()]
    assert len(pids) == 2, run.stderr
    deadline = time.monotonic() + 5
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
