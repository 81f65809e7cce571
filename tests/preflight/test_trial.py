"""A few updates before a run: the images that they are tried with, their memory and time."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import json
import time
from itertools import islice

import pytest
import torch
from mmcv.parallel import collate
from PIL import Image

from helpers.tiny import SMALL
from mtpd.config.recipe import load_recipe
from mtpd.engine import memory, speed
from mtpd.errors import MtpdError
from mtpd.preflight import forecast, trial
from mtpd.preflight.trial import example_batches, example_images
from mtpd.utils.machine import GIB

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
SETTINGS = SMALL | {'runtime.threads': 1, 'evaluation.batch_size': 2}


def test_the_largest_images_come_first(tmp_path):
    """A batch is of one format, high or wide, and padded to its widest and highest image."""
    sizes = {0: (100, 90), 1: (160, 64), 2: (64, 120), 3: (96, 80), 4: (31, 64), 5: (160, 80)}
    images, objects = [], []
    (tmp_path / 'train').mkdir()
    for number, (width, height) in sizes.items():
        Image.new('RGB', (width, height)).save(tmp_path / 'train' / f'{number}.png')
        images.append(
            {'id': number, 'file_name': f'{number}.png', 'width': width, 'height': height}
        )
        for _ in range({3: 5, 5: 0}.get(number, 1)):
            box = {'image_id': number, 'category_id': 1, 'bbox': [2, 2, 20, 20], 'area': 400}
            objects.append({'id': len(objects) + 1, 'iscrowd': 0, **box})
    table = {'images': images, 'annotations': objects, 'categories': [{'id': 1, 'name': 'a'}]}
    (tmp_path / 'annotations').mkdir()
    for split in ('train', 'val'):
        (tmp_path / 'annotations' / f'{split}.json').write_text(json.dumps(table))
    (tmp_path / 'val').symlink_to('train')
    recipe = load_recipe(MINI, {'data.root': str(tmp_path), 'image.scale': (128, 96)})
    data = example_images(recipe, tmp_path, 3, 4, masks=False)
    names = [item['file_name'] for item in data.data_infos]
    # Resized to 107 x 96, 128 x 51, 51 x 96, 115 x 96; 4 is too small, 5 has no object.
    assert names[:3] == ['1.png', '3.png', '0.png'] and names[3:] == ['2.png']
    resized = [tuple(data[place]['img_metas'].data['img_shape'][:2]) for place in range(3)]
    assert resized == [(51, 128), (96, 115), (96, 107)] and len(data[1]['gt_bboxes'].data) == 5


def test_a_trials_batches_are_of_one_format_each(tmp_path, monkeypatch):
    """As training's: a batch of both would be padded to a square, here twice the pixels of a real one."""
    sizes = [(128, 64), (64, 128)] * 6 + [(64, 64)]  # mmdet counts a square among the high ones
    table = {'images': [], 'annotations': [], 'categories': [{'id': 1, 'name': 'a'}]}
    (tmp_path / 'train').mkdir()
    for number, (width, height) in enumerate(sizes):
        name = f'{number}.png'
        Image.new('RGB', (width, height)).save(tmp_path / 'train' / name)
        table['images'].append({'id': number, 'file_name': name, 'width': width, 'height': height})
        box = {'image_id': number, 'category_id': 1, 'bbox': [2, 2, 20, 20], 'area': 400}
        table['annotations'].append({'id': number + 1, 'iscrowd': 0, **box})
    (tmp_path / 'annotations').mkdir()
    for split in ('train', 'val'):
        (tmp_path / 'annotations' / f'{split}.json').write_text(json.dumps(table))
    (tmp_path / 'val').symlink_to('train')
    recipe = load_recipe(MINI, {'data.root': str(tmp_path), 'image.scale': (128, 64)})
    seen = []

    class Watched(trial.Update):
        def __call__(self, batch):
            names = [meta['ori_filename'] for meta in batch['img_metas'].data[0]]
            seen.append((tuple(batch['img'].data[0].shape), names))
            return super().__call__(batch)

    monkeypatch.setattr(trial, 'Update', Watched)
    trial._measure_training(recipe, 'student', None, 4, 'cpu', tmp_path)
    assert len(seen) == 2 + trial.TIMED_UPDATES
    for (count, _, height, width), names in seen[1:]:
        assert count == len(names) == 4 and height * width == 64 * 128
        wide = {sizes[int(name.partition('.')[0])] == (128, 64) for name in names}
        assert wide == {width > height}
    assert len({shape[2:] for shape, _ in seen[1:]}) == 2  # both formats are tried
    # Of a format with too few images they come again.
    data = example_images(recipe, tmp_path, 8, 8, masks=False)
    for batch in islice(example_batches(data, 8), 4):
        files = [data.data_infos[place] for place in batch]
        assert len(files) == 8 and len({item['width'] > item['height'] for item in files}) == 1


@pytest.fixture(scope='module')
def measured(tmp_path_factory, tiny_coco):
    root = tiny_coco(tmp_path_factory.mktemp('data') / 'coco')
    overrides = SETTINGS | {'data.root': str(root)}
    kinds = [('student', None), ('student', 'r101')]
    return trial.measure_updates(MINI, overrides, 2, kinds, ['student'])


def test_updates_are_tried(measured):
    assert list(measured['trainings']) == ['student', 'student taught by r101']
    for row in measured['trainings'].values():
        assert row['seconds'] > 0 and all(row[key] > 2**20 for key in ('fixed', 'wanted', 'there'))
        assert 0 < row['data'] < 5 and 0 < row['processor'] <= row['seconds']
    assert measured['images']['student'] > 0


def test_waiting_is_not_processor_time(tmp_path):
    few = {'data.cache': str(tmp_path), 'data.scenes.train': 2, 'data.scenes.val': 2}
    recipe = load_recipe(MINI, few)

    class Waiting(trial.Update):
        def steps(self, batch):
            return [*super().steps(batch), lambda: time.sleep(0.5)]

    model = trial.untrained_detector(recipe, 'student', None)
    update = Waiting(model, recipe, speed.Speed(), 'cpu')
    seconds = update(collate([example_images(recipe, tmp_path, 1, 0, masks=False)[0]], 1))
    assert 0 < update.processor_seconds <= seconds - 0.49


def test_images_that_may_be_corrupt_do_not_stop_the_trial(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path / 'coco')
    for split in ('train', 'val'):
        path = root / split / '000001.png'
        path.write_bytes(path.read_bytes()[:3000])
    overrides = SETTINGS | {'data.root': str(root)}
    task = 2, [('student', None)], ['student']
    with pytest.raises(MtpdError, match=r'000001\.png is empty, cut short'):
        trial.measure_updates(MINI, overrides, *task)
    measured = trial.measure_updates(MINI, overrides | {'data.corrupt_limit': 1}, *task)
    assert measured['trainings']['student']['seconds'] > 0 and measured['images']['student'] > 0


def test_a_cold_first_update_does_not_stand_for_all(tmp_path, monkeypatch):
    """The first update of a process may take seconds; where it seems too slow, a second one tells."""
    few = {'data.cache': str(tmp_path), 'data.scenes.train': 8, 'data.scenes.val': 2}
    recipe = load_recipe(MINI, few)
    taken = iter([30.0, 0.01])

    class Slow(trial.Update):
        def __call__(self, batch):
            seconds = super().__call__(batch)
            return next(taken, seconds)

    monkeypatch.setattr(trial, 'Update', Slow)
    row = trial._measure_training(recipe, 'student', None, 2, 'cpu', tmp_path)
    assert 0 < row['seconds'] < 20 and row['data'] > 0
    taken = iter([30.0, 30.0])  # twice: other programs are at work; a batch is tried all the same
    row = trial._measure_training(recipe, 'student', None, 2, 'cpu', tmp_path)
    assert 0 < row['seconds'] < 20 and row['data'] > 0
    taken = iter([30.0, 30.0, 25.0])  # a batch that takes long is the only one
    assert trial._measure_training(recipe, 'student', None, 2, 'cpu', tmp_path)['seconds'] == 25.0
    taken = iter([70.0, 70.0])  # none is tried
    assert trial._measure_training(recipe, 'student', None, 2, 'cpu', tmp_path)['seconds'] == 140.0


@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
def test_what_will_stay_is_what_stays(tmp_path, optimizer):
    few = {'data.cache': str(tmp_path), 'data.scenes.train': 2, 'data.scenes.val': 2}
    settings = {'type': optimizer, 'lr': 0.001} | ({'momentum': 0.9} if optimizer == 'SGD' else {})
    recipe = load_recipe(MINI, few | {'schedule.optimizer': {'_delete_': True, **settings}})
    update = trial.Update(
        trial.untrained_detector(recipe, 'student', None), recipe, speed.Speed(), 'cpu'
    )
    expected = update.bytes_kept()
    data = example_images(recipe, tmp_path, 1, 0, masks=False)
    update(collate([data[0]], 1))
    weights = [p for p in update.model.parameters() if p.requires_grad]
    state = [item for entry in update.optimizer.state.values() for item in entry.values()]
    tensors = [p.grad for p in weights] + [item for item in state if isinstance(item, torch.Tensor)]
    assert len(state) >= len(weights)
    assert expected == pytest.approx(
        sum(t.nbytes for t in tensors), rel=0.01
    )  # steps are counted, too


CUDNN = 'cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED'


def tried_until(place, monkeypatch, tmp_path, error):
    """A trial whose `place`-th update, from 0 on, fails; the weights' place on the device does so for -1."""
    few = {'data.cache': str(tmp_path), 'data.scenes.train': 8, 'data.scenes.val': 2}
    recipe, made = load_recipe(MINI, few | {'runtime.jobs': 1}), []

    class Failing(trial.Update):
        def __init__(self, *args):
            if place == -1:
                raise error
            super().__init__(*args)

        def __call__(self, batch):
            if len(made) == place:
                raise error
            made.append(super().__call__(batch))
            return made[-1]

    monkeypatch.setattr(trial, 'Update', Failing)
    return recipe, trial._measure_training(recipe, 'student', 'r101', 8, 'cpu', tmp_path)


@pytest.mark.parametrize(
    ('place', 'advised'),
    [
        (-1, 'the weights alone do not fit'),
        (0, 'lower schedule.batch_size to 1 and image.scale to'),
        (1, 'lower schedule.batch_size to '),
        (2, 'lower schedule.batch_size to '),
    ],
)
@pytest.mark.parametrize(
    'error', [torch.OutOfMemoryError('CUDA out of memory.'), RuntimeError(CUDNN)]
)
def test_a_trial_may_run_out_of_memory_at_any_time(monkeypatch, tmp_path, place, advised, error):
    recipe, row = tried_until(place, monkeypatch, tmp_path, error)
    assert row['wanted'] >= 1.1 * row['there'] - 1 and row['seconds'] is row['data'] is None
    (text,) = forecast.memory_problems(recipe, {'student taught by r101': row})
    assert advised in text


@pytest.mark.parametrize('place', [-1, 0, 1])
def test_other_errors_of_a_trial_pass(monkeypatch, tmp_path, place):
    with pytest.raises(RuntimeError, match='device-side assert'):
        tried_until(place, monkeypatch, tmp_path, RuntimeError('device-side assert triggered'))


@pytest.mark.gpu
def test_a_real_shortage_in_a_trial(tmp_path):
    scenes = {'data.scenes.train': 8, 'data.scenes.val': 2, 'data.scenes.size': 64}
    more = {'data.cache': str(tmp_path), 'image.scale': 2048, 'runtime.device': 'cuda'}
    recipe = load_recipe(MINI, scenes | more)
    memory.reset_peak('cuda')
    torch.cuda.set_per_process_memory_fraction(0.2 * GIB / torch.cuda.mem_get_info()[1])
    try:
        row = trial._measure_training(recipe, 'student', 'r101', 8, 'cuda', tmp_path)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert row['wanted'] > row['there'] and row['seconds'] is None
