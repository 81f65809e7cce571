"""A data worker that is killed ends the training or the test with a message that names the signal."""

import os
import signal
from threading import Timer

from mtpd import compat  # noqa: F401  (before mmcv)

# isort: split

import pytest
import torch
from mmdet.apis import single_gpu_test
from test_train import MINI, SMALL
from torch.utils.data import DataLoader, Dataset

from mtpd import evaluate, knobs, load_recipe
from mtpd.data import pipelines, workers
from mtpd.errors import MtpdError
from mtpd.train import prepare_detector


class Numbers(Dataset):
    """Twenty numbers; `deed` is done when the fourth is asked for."""

    def __init__(self, deed):
        self.deed = deed

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index == 3:
            self.deed()
        return torch.tensor(index)


def broken():
    raise RuntimeError('a broken image')


def kill(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ('number', 'words'),
    [
        (signal.SIGKILL, 'was ended by signal SIGKILL (often: out of memory). Fewer of them'),
        (signal.SIGTERM, 'was ended by signal SIGTERM. Fewer of them'),
        (signal.SIGBUS, 'was ended by signal SIGBUS (often: shared memory, /dev/shm, is full).'),
        (None, 'a data worker ended unexpectedly. Fewer of them'),
    ],
)
def test_its_end_is_told(number, words):
    def deed():
        kill(number) if number else os._exit(1)

    with pytest.raises(MtpdError) as caught:
        workers.told(lambda: list(DataLoader(Numbers(deed), num_workers=1)))
    assert words in str(caught.value) and 'runtime.workers' in str(caught.value)


def test_its_connection_may_break_first(monkeypatch):
    batches = iter(DataLoader(Numbers(lambda: None), num_workers=1))

    def broken_off():
        Timer(0.2, os.kill, (batches._workers[0].pid, signal.SIGKILL)).start()
        raise ConnectionResetError

    def not_there():
        raise FileNotFoundError('no worker')

    with pytest.raises(MtpdError, match='ended by signal SIGKILL'):
        workers.told(broken_off)
    monkeypatch.setattr(workers, 'PATIENCE', 0)
    with pytest.raises(FileNotFoundError, match='no worker'):
        workers.told(not_there)


def test_other_errors_stay_what_they_are():
    def other():
        raise RuntimeError('no worker')

    with pytest.raises(RuntimeError, match='a broken image') as caught:
        workers.told(lambda: list(DataLoader(Numbers(broken), num_workers=1)))
    assert not isinstance(caught.value, MtpdError)
    with pytest.raises(RuntimeError, match='no worker'):
        workers.told(other)


@pytest.fixture
def recipe(tmp_path, tiny_coco):
    more = {'data.root': str(tiny_coco(tmp_path / 'coco')), 'runtime.workers': 1}
    return load_recipe(MINI, SMALL | more | {'schedule.baseline': 6})


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a_training_ends_with_the_message_and_goes_on(recipe, tmp_path, number, monkeypatch):
    """Killed in the fourth update: the checkpoint after the second is there."""
    build, made = pipelines.build, tmp_path / 'run' / 'detectors' / 'student'

    def dying(split):
        data = build(split)
        prepare, parent = data.prepare_train_img, os.getpid()

        def once(index):
            if os.getpid() != parent and (made / 'latest.pth').is_file():
                kill(number)
            return prepare(index)

        data.prepare_train_img = once
        return data

    monkeypatch.setattr(pipelines, 'build', dying)
    with pytest.raises(MtpdError, match=f'a data worker was ended by signal {number.name}'):
        prepare_detector(recipe, 'student', tmp_path / 'run')
    assert (made / 'latest.pth').is_file() and not (made / 'model.pth').is_file()
    monkeypatch.undo()
    assert prepare_detector(recipe, 'student', tmp_path / 'run')['metrics']


def test_a_test_ends_with_the_message(monkeypatch):
    """`mtpd eval` of a plain config has workers, too."""

    def test(model, loader):
        return list(DataLoader(Numbers(lambda: kill(signal.SIGKILL)), num_workers=1))

    assert evaluate.single_gpu_test is single_gpu_test
    monkeypatch.setattr(evaluate, 'single_gpu_test', test)
    loader = DataLoader(Numbers(lambda: None))
    monkeypatch.setattr(evaluate, 'build_dataloader', lambda *_, **__: loader)
    with pytest.raises(MtpdError, match='a data worker was ended by signal SIGKILL'):
        recipe = load_recipe(MINI)
        work = evaluate.Work({}, {}, 'cpu', 1, 0, knobs.of_recipe(recipe.cfg, 1))
        evaluate._detections(torch.nn.Identity(), None, work, '')
