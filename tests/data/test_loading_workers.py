"""A data worker that is killed ends the training or the test with a message that names the signal."""

import io
import os
import signal
import tempfile
import time
from multiprocessing import Event, active_children
from pathlib import Path
from threading import Timer

import pytest
import torch
from mmdet.apis import single_gpu_test
from torch.utils.data import DataLoader, Dataset

from helpers.tiny_training import MINI, SMALL
from mtpd import load_recipe
from mtpd.data import loading
from mtpd.engine import evaluation, features, memory, pipelines
from mtpd.engine.loop import data_workers, process_count, training_config
from mtpd.errors import MtpdError
from mtpd.pipeline.detectors import prepare_detector, train_detector_run
from mtpd.runtime import checkpoints, gpu_ops
from mtpd.utils.files import read_log


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
        (signal.SIGKILL, 'was ended by signal SIGKILL (often: out of memory). Fewer workers'),
        (signal.SIGTERM, 'was ended by signal SIGTERM. Fewer workers'),
        (signal.SIGBUS, 'was ended by signal SIGBUS (often: shared memory, /dev/shm, is full).'),
        (None, 'a data worker ended unexpectedly. Fewer workers'),
    ],
)
def test_its_end_is_told(number, words):
    def deed():
        kill(number) if number else os._exit(1)

    with pytest.raises(MtpdError) as caught:
        loading.explain_worker_death(lambda: list(DataLoader(Numbers(deed), num_workers=1)))
    assert words in str(caught.value) and 'runtime.workers' in str(caught.value)


def test_its_connection_may_break_first(monkeypatch):
    batches = iter(DataLoader(Numbers(lambda: None), num_workers=1))

    def broken_off():
        Timer(0.2, os.kill, (batches._workers[0].pid, signal.SIGKILL)).start()
        raise ConnectionResetError

    def not_there():
        raise FileNotFoundError('no worker')

    with pytest.raises(MtpdError, match='ended by signal SIGKILL'):
        loading.explain_worker_death(broken_off)
    monkeypatch.setattr(loading, 'WORKER_EXIT_DELAY', 0)
    with pytest.raises(FileNotFoundError, match='no worker'):
        loading.explain_worker_death(not_there)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize(
    ('number', 'words'),
    [
        (signal.SIGKILL, 'by signal SIGKILL'),
        pytest.param(None, 'ended unexpectedly', marks=pytest.mark.long),
    ],
)
def test_its_end_is_told_where_torchs_error_was_dropped(monkeypatch, number, words):
    """torch's handler raises once. Where a destructor runs at that moment, Python drops its error."""
    pause = Event()

    def deed():
        pause.wait()
        kill(number) if number else os._exit(1)

    batches = iter(DataLoader(Numbers(deed), num_workers=1, prefetch_factor=8))

    class FileThatIsClosed:
        """torch opens such files after an error, to see whether it can."""

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __del__(self):
            pause.set()
            time.sleep(0.5)

    def broken_off(timeout):
        raise ConnectionResetError

    monkeypatch.setattr(batches._data_queue, 'get', broken_off)
    monkeypatch.setattr(tempfile, 'NamedTemporaryFile', FileThatIsClosed)
    with pytest.raises(MtpdError, match=words):
        loading.explain_worker_death(lambda: list(batches))


def test_its_signal_is_told_where_torch_names_none():
    """torch's loop may see the worker's end before torch's handler does."""
    batches = iter(DataLoader(Numbers(lambda: None), num_workers=1))
    text = f'DataLoader worker (pid(s) {batches._workers[0].pid}) exited unexpectedly'

    def noticed(self):
        os.kill(batches._workers[0].pid, signal.SIGKILL)
        raise RuntimeError(text)

    with pytest.raises(MtpdError, match='ended by signal SIGKILL'):
        loading.explain_worker_death(lambda: noticed(batches))


@pytest.mark.parametrize('call', range(1, 6))
def test_its_end_while_a_checkpoint_is_written_is_no_full_disk(tmp_path, monkeypatch, call):
    """The writer of torch's zip files is interrupted, and complains of the place where it stopped."""
    calls = iter(range(1, 100))

    class InterruptedFile(io.FileIO):
        def write(self, content):
            if next(calls) == call:
                raise RuntimeError('DataLoader worker (pid 1) is killed by signal: Killed. ')
            return super().write(content)

    monkeypatch.setattr(Path, 'open', lambda path, mode: InterruptedFile(path, mode))
    weights = {'a': torch.zeros(1000), 'b': torch.zeros(1000)}
    with pytest.raises(MtpdError, match='a data worker was ended by signal SIGKILL') as caught:
        loading.explain_worker_death(
            lambda: checkpoints.save_atomic(weights, tmp_path / 'latest.pth')
        )
    assert 'free space' not in str(caught.value) and not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are():
    def other():
        raise RuntimeError('no worker')

    with pytest.raises(RuntimeError, match='a broken image') as caught:
        loading.explain_worker_death(lambda: list(DataLoader(Numbers(broken), num_workers=1)))
    assert not isinstance(caught.value, MtpdError)
    with pytest.raises(RuntimeError, match='no worker'):
        loading.explain_worker_death(other)


@pytest.fixture
def recipe(tmp_path, tiny_coco):
    more = {'data.root': str(tiny_coco(tmp_path / 'coco')), 'runtime.workers': 1}
    return load_recipe(MINI, SMALL | more | {'schedule.baseline': 6})


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a_training_ends_with_the_message_and_goes_on(recipe, tmp_path, number, monkeypatch):
    """Killed in the fourth update: the checkpoint after the second is there."""
    build, made = pipelines.quiet_dataset, tmp_path / 'run' / 'detectors' / 'student'

    def dying(split):
        data = build(split)
        prepare, parent = data.prepare_train_img, os.getpid()

        def once(index):
            if os.getpid() != parent and (made / 'latest.pth').is_file():
                kill(number)
            return prepare(index)

        data.prepare_train_img = once
        return data

    monkeypatch.setattr(pipelines, 'quiet_dataset', dying)
    with pytest.raises(MtpdError, match=f'a data worker was ended by signal {number.name}'):
        prepare_detector(recipe, 'student', tmp_path / 'run')
    assert (made / 'latest.pth').is_file() and not (made / 'model.pth').is_file()
    monkeypatch.undo()
    assert prepare_detector(recipe, 'student', tmp_path / 'run')['metrics']


def test_a_test_ends_with_the_message(monkeypatch):
    """`mtpd eval` of a plain config has workers, too."""

    def test(model, loader):
        return list(DataLoader(Numbers(lambda: kill(signal.SIGKILL)), num_workers=1))

    assert evaluation.single_gpu_test is single_gpu_test
    monkeypatch.setattr(evaluation, 'single_gpu_test', test)
    loader = DataLoader(Numbers(lambda: None))
    monkeypatch.setattr(evaluation, 'build_dataloader', lambda *_, **__: loader)
    with pytest.raises(MtpdError, match='a data worker was ended by signal SIGKILL'):
        recipe = load_recipe(MINI)
        work = evaluation.DetectionTask(
            {}, {}, 'cpu', 1, 0, memory.recipe_setting_names(recipe.cfg, 1)
        )
        evaluation._detect(torch.nn.Identity(), None, work, '')


@pytest.mark.parametrize(
    ('cores', 'sharing', 'workers'),
    [(1, 1, 2), (2, 1, 2), (8, 1, 7), (16, 1, 8), (16, 2, 7), (16, 4, 3), (128, 8, 8)],
)
def test_how_many_there_are(monkeypatch, cores, sharing, workers):
    monkeypatch.setattr(loading, 'cpu_cores', lambda: cores)
    assert loading.worker_count('auto', 'cuda', sharing) == workers
    assert loading.worker_count(5, 'cuda', sharing) == loading.worker_count(5, 'cpu', sharing) == 5
    assert loading.worker_count('auto', 'cpu', sharing) == 0


@pytest.mark.parametrize(
    'name',
    [
        'mini/retinanet_r50__r101_rx101',
        'coco/retinanet_r50__r101',
        'paper/retinanet_r50__r101_rx101',
    ],
)
def test_recipes_share_their_cores(monkeypatch, tmp_path, name):
    monkeypatch.setattr(loading, 'cpu_cores', lambda: 16)
    for name_of_size in ('LOCAL_WORLD_SIZE', 'WORLD_SIZE', 'RANK'):
        monkeypatch.delenv(name_of_size, raising=False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setattr(gpu_ops, 'gpu_obstacle', lambda: None)
    # Arms that train side by side and the processes of a training: 16 // 2 - 1, 16 // 4 - 1.
    for more, wanted in (({}, 8), ({'runtime.jobs': 2}, 7), ({'runtime.gpus': 4}, 3)):
        recipe = load_recipe(
            f'configs/{name}.py', {'runtime.jobs': 1, 'runtime.device': 'cuda'} | more
        )
        made = training_config(recipe, {}, {}, tmp_path, 4, 0, 'cpu').data
        assert made.train_dataloader.workers_per_gpu == wanted
        assert made.train_dataloader.persistent_workers
        assert made.val_dataloader.workers_per_gpu == wanted
    made = training_config(
        load_recipe(recipe, {'runtime.device': 'cpu'}), {}, {}, tmp_path, 4, 0, 'cpu'
    )
    loaders = made.data.train_dataloader, made.data.val_dataloader
    assert [loader.workers_per_gpu for loader in loaders] == [0, 0]


def test_processes_of_other_machines_have_other_cores(monkeypatch):
    """Eight processes of srun, four on each of two machines of 16 cores."""
    monkeypatch.setattr(loading, 'cpu_cores', lambda: 16)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setattr(gpu_ops, 'gpu_obstacle', lambda: None)
    variables = {'NUM_TASKS': '8', 'TASKS_PER_NODE': '4(x2)', 'NODELIST': 'n[1-2]', 'ID': '0'}
    for name, value in variables.items():
        monkeypatch.setenv(f'SLURM_STEP_{name}', value)
    monkeypatch.setenv('SLURM_PROCID', '5')
    monkeypatch.setenv('SLURM_LOCALID', '1')
    for name in ('MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '1')  # set here, it is restored
    recipe = load_recipe(MINI, {'runtime.device': 'cuda', 'runtime.jobs': 1})
    assert (process_count(recipe), data_workers(recipe)) == (8, 16 // 4 - 1)


def test_features_are_made_without_any(tmp_path, tiny_coco):
    """A worker's death would be raised in the code that asks for features, such as a notebook's."""
    root = str(tiny_coco(tmp_path / 'coco'))
    recipe = load_recipe(MINI, SMALL | {'data.root': root, 'runtime.workers': 2})
    others = set(active_children())
    for _ in features.image_batches(recipe, 2):
        assert set(active_children()) <= others


@pytest.mark.long
def test_numbers_do_not_depend_on_how_many_there_are(tmp_path, tiny_coco):
    """Of a training with flips, and its evaluations in between and after it."""
    more = {'data.root': str(tiny_coco(tmp_path / 'coco')), 'schedule.eval_interval': 1}
    more |= {'image.flip': 0.5, 'student.model.test_cfg.score_thr': 0.0, 'evaluation.batch_size': 1}
    made = []
    for number in (0, 1, 2):
        recipe = load_recipe(MINI, SMALL | more | {'runtime.workers': number})
        path = train_detector_run(recipe, 'student', tmp_path / str(number))['checkpoint']
        rows = [
            {key: value for key, value in row.items() if 'time' not in key}
            for row in read_log(path.with_name('log.json'))
        ]
        numbers = evaluation.evaluate(recipe, path, out=tmp_path / f'eval{number}')
        boxes = (tmp_path / f'eval{number}' / 'detections.json').read_text()
        weights = torch.cat(
            [v.flatten() for v in checkpoints.load_checkpoint(path)['state_dict'].values()]
        )
        made.append((rows, numbers | {'sha256': None}, boxes, weights))
    assert sum('bbox_mAP' in row for row in made[0][0]) == 3 and len(made[0][2]) > 100
    for other in made[1:]:
        assert other[:3] == made[0][:3]
        assert torch.equal(other[3], made[0][3])
