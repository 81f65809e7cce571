"""What would stop a run after hours is said before it begins: everything in one message."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from mmcv import ConfigDict
from mmcv.parallel import collate
from mmdet.models import build_detector

from helpers import spied
from mtpd.cli.main import main
from mtpd.config.plan import arm_trainings, detector_training, planned_trainings
from mtpd.config.recipe import load_recipe
from mtpd.engine import memory, speed
from mtpd.errors import MtpdError, RecipeError
from mtpd.pipeline.stages import train_stage
from mtpd.preflight import checks as preflight
from mtpd.preflight import forecast, trial
from mtpd.preflight.trial import example_batches, example_images
from mtpd.utils.machine import GIB

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
POCKET = 'configs/_base_/models/pocket_retinanet.py'
OWN = {
    'teachers.r101.checkpoint': None,
    'teachers.rx101.checkpoint': None,
    'teachers.rx101.init': None,
}
TINY = {
    'image.scale': 64,
    'schedule.batch_size': 2,
    'schedule.baseline': 2,
    'schedule.arm': 2,
    'schedule.log_interval': 1,
    'schedule.checkpoint_interval': 1,
    'runtime.workers': 0,
    'runtime.threads': 1,
    'evaluation.batch_size': 2,
}


def call(*arguments) -> tuple[int, str]:
    found = CliRunner().invoke(main, [str(item) for item in arguments])
    return found.exit_code, found.output


def faulty(tmp_path: Path, data: Path) -> Path:
    """A recipe with an unknown key and eight things wrong with its data, checkpoints and settings."""
    table = json.loads((data / 'annotations/val.json').read_text())
    table['annotations'][0]['bbox'][2] = -4
    (data / 'annotations/val.json').write_text(json.dumps(table))
    (data / 'train/000002.png').write_bytes((data / 'train/000002.png').read_bytes()[:3000])
    student = load_recipe(MINI, {'data.root': str(data)}).model('student')
    state = build_detector(ConfigDict(student)).state_dict()
    classes = {'CLASSES': ('cat', 'dog')}
    torch.save({'meta': classes, 'state_dict': state}, tmp_path / 'other.pth')
    torch.save({'meta': classes, 'state_dict': state}, tmp_path / 'summed-00000000.pth')
    recipe, config = tmp_path / 'faulty.py', str(Path(POCKET).resolve())
    recipe.write_text(
        f"""
_base_ = {str(Path(MINI).resolve())!r}
name = 'faulty'
data = dict(root={str(data)!r})
student = dict(config={config!r})
teachers = dict(
    r101=dict(config={config!r}, checkpoint='gone.pth'),
    rx101=dict(config={config!r}, checkpoint='other.pth', init=None),
    third=dict(label='3', config='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', checkpoint='summed-00000000.pth'),
)
distill = dict(levels=[0, 1, 2, 7])
schedule = dict(batch_size=9, warmup=5)
evaluation = dict(metrics=['bbox', 'segm'])
runtime = dict(gpus=4, device='cuda')
"""
    )
    return recipe


SAID = (
    "unknown key 'schedule.warmup'",
    'torch sees no GPU',
    'val.json: a box has a negative width',
    '000002.png is damaged, cut short',
    'checkpoint of r101: ',
    'other.pth does not fit rx101',
    'summed-00000000.pth has a sha256 that begins',
    'neck.fpn_convs.7.conv',
    'evaluation.metrics has segm, and student predicts no masks',
)


@pytest.mark.parametrize('command', ['run', 'doctor'])
def test_everything_wrong_is_said_at_once(tmp_path, tiny_coco, command):
    recipe = faulty(tmp_path, tiny_coco(tmp_path / 'coco'))
    code, text = call(command, recipe, '--work-dir', tmp_path / 'run')
    assert code == (2 if command == 'run' else 1) and 'Traceback' not in text
    assert [said for said in SAID if said not in text] == [], text
    assert not (tmp_path / 'run').exists()


# Disk


def test_the_room_that_checkpoints_take_is_that_of_the_files(tmp_path, tiny_coco):
    recipe = load_recipe(MINI, TINY | OWN | {'data.root': str(tiny_coco(tmp_path / 'coco'))})
    todo = arm_trainings(recipe, recipe.arm('progressive'), [1], tmp_path / 'run')
    todo += [detector_training(recipe, name, tmp_path / 'run') for name in ('student', 'r101')]
    sizes = [forecast.checkpoint_sizes(recipe, t.detector, t.teacher) for t in todo]
    before = forecast.bytes_to_come(recipe, todo)
    assert before == sum(map(sum, sizes)) + 2 * max(latest for latest, _ in sizes)
    settings = {'teachers.r101.updates': 1}
    train_stage(load_recipe(recipe, settings), 1, 'progressive', tmp_path / 'run')
    for training, size in zip(todo, sizes, strict=True):
        files = [training.folder / name for name in ('latest.pth', training.final)]
        real = [path.stat().st_size for path in files]
        # A file has names and config texts beside its numbers.
        assert all(one <= both for one, both in zip(size, real, strict=True))
        assert sum(real) - sum(size) < 0.2 * sum(size) + 300_000
    assert forecast.bytes_to_come(recipe, todo) == 0


@pytest.mark.parametrize(
    ('optimizer', 'moments'),
    [
        (dict(type='SGD', lr=1, momentum=0.9), 1),
        (dict(type='SGD', lr=1), 0),
        (dict(type='AdamW', lr=1), 2),
    ],
)
def test_what_an_optimizer_keeps_is_counted(optimizer, moments):
    settings = {'schedule.optimizer': {'_delete_': True, **optimizer}}
    recipe = load_recipe(MINI, settings)
    latest, final = forecast.checkpoint_sizes(recipe, 'student', None)
    model = build_detector(ConfigDict(recipe.model('student')))
    trained = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    assert final == sum(t.nbytes for t in model.state_dict().values())
    assert latest == final + moments * trained


def test_a_full_disk_is_said_with_the_memory_that_lacks(tmp_path, tiny_coco, monkeypatch):
    recipe = load_recipe(MINI, TINY | OWN | {'data.root': str(tiny_coco(tmp_path / 'coco'))})
    todo = planned_trainings(recipe, tmp_path / 'run')
    (text,) = forecast.disk_problems(recipe, todo, tmp_path / 'run', lambda path: 1000)
    assert 'has 0.0 MB free' in text and '--work-dir' in text
    needed = forecast.bytes_to_come(recipe, todo)
    assert forecast.disk_problems(recipe, todo, tmp_path / 'run', lambda path: needed) == []
    monkeypatch.setattr(forecast, 'bytes_to_come', lambda *_: 10**18)
    found = preflight.recipe_problems(
        recipe, [*recipe.detectors], [], todo, tmp_path, lambda: ['memory']
    )
    assert len(found) == 2 and found[0].startswith('the checkpoints still to come take 1000000000')


# A few updates


def test_the_largest_images_come_first(tmp_path):
    """A batch is of one format, high or wide, and padded to its widest and highest image."""
    from PIL import Image

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
    from PIL import Image

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
    trial._try(recipe, 'student', None, 4, 'cpu', tmp_path)
    assert len(seen) == 2 + trial.TIMED
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
def found(tmp_path_factory, tiny_coco):
    root = tiny_coco(tmp_path_factory.mktemp('data') / 'coco')
    overrides = TINY | OWN | {'data.root': str(root)}
    kinds = [('student', None), ('student', 'r101')]
    return overrides, trial.measure_updates(MINI, overrides, 2, kinds, ['student'])


def test_images_that_may_be_corrupt_do_not_stop_the_trial(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path / 'coco')
    for split in ('train', 'val'):
        path = root / split / '000001.png'
        path.write_bytes(path.read_bytes()[:3000])
    overrides = TINY | OWN | {'data.root': str(root)}
    task = 2, [('student', None)], ['student']
    with pytest.raises(MtpdError, match=r'000001\.png is cut short'):
        trial.measure_updates(MINI, overrides, *task)
    found = trial.measure_updates(MINI, overrides | {'data.corrupt_limit': 1}, *task)
    assert found['trainings']['student']['seconds'] > 0 and found['images']['student'] > 0


def test_updates_are_tried(found):
    _, measured = found
    assert list(measured['trainings']) == ['student', 'student taught by r101']
    for row in measured['trainings'].values():
        assert row['seconds'] > 0 and all(row[key] > 2**20 for key in ('fixed', 'wanted', 'there'))
        assert 0 < row['data'] < 5
    assert measured['images']['student'] > 0


def test_the_time_left_is_the_sum_of_what_is_left(tmp_path, found):
    overrides, _ = found
    recipe = load_recipe(MINI, overrides | {'schedule.arm': 4, 'schedule.teacher': 8})
    rows = {'student': 1.0, 'r101': 2.0, 'rx101': 3.0, 'student taught by r101': 4.0}
    rows |= {'student taught by rx101': 5.0}
    rows = {name: {'seconds': s, 'data': 0.5, 'wanted': GIB} for name, s in rows.items()}
    seen = {'trainings': rows, 'images': {'student': 0.25, 'r101': 0.5, 'rx101': 1.0}}
    step, images = forecast.STEP, 4
    updates = recipe.detectors['r101'].updates, recipe.detectors['rx101'].updates
    training = 2 * 1.5 + updates[0] * 2.5 + updates[1] * 3.5  # baseline, teachers
    training += 4 * 1.5 + 4 * 5.5 + 2 * (2 * 4.5 + 2 * 5.5)  # control, direct, two orders
    measured = images * (7 * 0.25 + 0.5 + 1.0)
    wanted = training + measured + (9 + forecast.NOTEBOOKS) * step
    assert forecast.seconds_left(recipe, tmp_path, seen) == pytest.approx(wanted)
    done = tmp_path / 'detectors/student'
    done.mkdir(parents=True)
    (done / 'training.json').write_text('{"update": 1}')
    assert forecast.seconds_left(recipe, tmp_path, seen) == pytest.approx(wanted - 1.5)
    (done / 'model.pth').touch()
    less = 2 * 1.5 + step + images * 0.25
    assert forecast.seconds_left(recipe, tmp_path, seen) == pytest.approx(wanted - less)
    assert forecast.forecast_text(recipe, tmp_path, seen)['memory'] == '1.0 GiB a training'


def test_memory_that_lacks_is_said_of_each_training_and_of_arms_side_by_side():
    recipe = load_recipe(MINI, {'runtime.jobs': 2})
    row = {'there': 10 * GIB, 'fixed': 2 * GIB, 'wanted': 18 * GIB}
    small = row | {'wanted': 6 * GIB}
    (text,) = forecast.memory_problems(recipe, {'student': small, 'student taught by r101': row})
    assert 'student taught by r101: an update of 8 images takes 18.0 GiB' in text
    assert '10.0 GiB are free' in text and 'schedule.batch_size' in text
    (text,) = forecast.memory_problems(recipe, {'student': small})
    assert '2 arms side by side take 12.0 GiB' in text and 'lower runtime.jobs to 1' in text
    assert forecast.memory_problems(load_recipe(MINI, {'runtime.jobs': 1}), {'a': small}) == []


def test_a_forecast_is_kept_for_the_same_recipe(tmp_path, found):
    overrides, measured = found
    recipe = load_recipe(MINI, overrides)
    todo = planned_trainings(recipe, tmp_path)[:1]
    forecast.keep_forecast({'recipe': recipe.text, **measured}, tmp_path)
    lines: list[str] = []
    again, wrong = forecast.forecast(recipe, todo, tmp_path, lines.append)
    assert again['trainings'] == measured['trainings'] and wrong == lines == []
    assert forecast.forecast(recipe, [], tmp_path, lines.append) == (None, [])


@pytest.mark.slow
def test_a_process_that_dies_is_a_problem(tmp_path, found, monkeypatch):
    overrides, _ = found
    recipe = load_recipe(MINI, overrides)
    monkeypatch.setattr(trial, 'measure_updates', spied.killed)
    monkeypatch.setenv('PYTHONPATH', str(Path(__file__).parents[1]))
    _, (text,) = forecast.forecast(recipe, planned_trainings(recipe, tmp_path), tmp_path)
    assert 'a few updates were tried, and failed' in text and 'signal 9' in text


def test_unknown_keys_do_not_hide_the_rest(tmp_path, tiny_coco):
    data = tiny_coco(tmp_path / 'coco')
    (data / 'train/000001.png').unlink()
    with pytest.raises(RecipeError) as caught:
        preflight.load_whole(MINI, {'data.root': str(data), 'scheduel.arm': 4})
    texts = caught.value.problems
    assert "unknown key 'scheduel'. Did you mean 'schedule'?" in texts[0]
    assert any('000001.png' in text for text in texts)
    wrong = {'schedule.arm': 'many', 'x': 1, 'teachers.r101.checkpoint': str(tmp_path / 'gone.pth')}
    with pytest.raises(RecipeError, match='int is needed') as caught:
        preflight.load_whole(MINI, wrong | {'data.root': str(data)})
    texts = caught.value.problems
    assert "unknown key 'x'" in ' '.join(texts[:2])
    assert any('trained on other classes' in text for text in texts)
    assert any('000001.png' in text for text in texts)
    assert any('gone.pth is missing' in text for text in texts)


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
    row = trial._try(recipe, 'student', None, 2, 'cpu', tmp_path)
    assert 0 < row['seconds'] < 20 and row['data'] > 0
    taken = iter([30.0, 30.0])  # twice: other programs are at work; a batch is tried all the same
    row = trial._try(recipe, 'student', None, 2, 'cpu', tmp_path)
    assert 0 < row['seconds'] < 20 and row['data'] > 0
    taken = iter([30.0, 30.0, 25.0])  # a batch that takes long is the only one
    assert trial._try(recipe, 'student', None, 2, 'cpu', tmp_path)['seconds'] == 25.0
    taken = iter([70.0, 70.0])  # none is tried
    assert trial._try(recipe, 'student', None, 2, 'cpu', tmp_path)['seconds'] == 140.0


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
    return recipe, trial._try(recipe, 'student', 'r101', 8, 'cpu', tmp_path)


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


@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
def test_what_will_stay_is_what_stays(tmp_path, optimizer):
    few = {'data.cache': str(tmp_path), 'data.scenes.train': 2, 'data.scenes.val': 2}
    settings = {'type': optimizer, 'lr': 0.001} | ({'momentum': 0.9} if optimizer == 'SGD' else {})
    recipe = load_recipe(MINI, few | {'schedule.optimizer': {'_delete_': True, **settings}})
    update = trial.Update(
        trial.untrained_detector(recipe, 'student', None), recipe, speed.Speed(), 'cpu'
    )
    foretold = update.to_stay()
    data = example_images(recipe, tmp_path, 1, 0, masks=False)
    update(collate([data[0]], 1))
    assert foretold == pytest.approx(update.kept(), rel=0.01)  # steps are counted, too


@pytest.mark.gpu
def test_a_real_shortage_in_a_trial(tmp_path):
    scenes = {'data.scenes.train': 8, 'data.scenes.val': 2, 'data.scenes.size': 64}
    more = {'data.cache': str(tmp_path), 'image.scale': 2048, 'runtime.device': 'cuda'}
    recipe = load_recipe(MINI, scenes | more)
    memory.reset_peak('cuda')
    torch.cuda.set_per_process_memory_fraction(0.2 * GIB / torch.cuda.mem_get_info()[1])
    try:
        row = trial._try(recipe, 'student', 'r101', 8, 'cuda', tmp_path)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert row['wanted'] > row['there'] and row['seconds'] is None
