"""Corrupt images among many: found while training, left out up to a limit, named, counted, and the same when resumed."""

import json
import os
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mmdet.datasets import build_dataloader

from helpers import failing
from helpers.corrupted import corrupted
from helpers.cut_off import Cut, cut, fail, same
from helpers.plain_config import META, TEXT
from helpers.tiny import retinanet
from helpers.tiny_training import MINI, SMALL
from mtpd import load_recipe
from mtpd.analysis import dataset
from mtpd.cli.main import main
from mtpd.data import image_files, seeded_loader
from mtpd.data.loading import CorruptImage, SkipCorrupt
from mtpd.engine import pipelines
from mtpd.engine.evaluation import evaluate
from mtpd.engine.loop import train_model
from mtpd.errors import MtpdError, RecipeError
from mtpd.pipeline import mmdet_config
from mtpd.pipeline.detectors import train_detector_run
from mtpd.pipeline.run_dir import claim_run_dir, refuse_other_settings
from mtpd.utils.paths import ROOT

# Trainings of four images, the last without an object


@pytest.fixture
def root(tmp_path, tiny_coco):
    return tiny_coco(tmp_path / 'coco')


def recipe_of(root, **more):
    return load_recipe(MINI, SMALL | {'data.root': str(root), 'data.corrupt_limit': 2} | more)


def call(*arguments):
    return CliRunner().invoke(main, [str(item) for item in arguments])


def command(root, out, **more) -> list:
    settings = SMALL | {'data.root': root} | more
    text = ' '.join(f'{key}={value}' for key, value in settings.items())
    return ['train', MINI, '--work-dir', out, '--cfg-options', text]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_training_leaves_out_as_many_as_it_may(root, tmp_path, workers):
    """In training and, another one, in evaluation."""
    bad, unseen = root / 'train/000001.png', root / 'val/000000.png'
    corrupted(bad, 'cut')
    corrupted(unseen, 'missing')
    more = {'data.corrupt_limit': 1, 'schedule.eval_interval': 2, 'runtime.workers': workers}
    done = call(*command(root, tmp_path / 'run', **more))
    assert done.exit_code == 0, (done.output, done.exception)
    assert done.output.count(str(bad)) == 1
    assert (
        f'image {bad} is empty, cut short, damaged or not an image: another image takes its place\n'
        in done.output
    )
    left = (
        f'image {unseen} cannot be read (No such file or directory): left out of the evaluation\n'
    )
    assert done.stderr.count(left) == 2  # once during training, once after it
    out = tmp_path / 'run/detectors/student'
    (row,) = json.loads((out / 'corrupt.json').read_text())
    assert (
        row['file'] == str(bad) and row['problem'] == 'is empty, cut short, damaged or not an image'
    )
    assert 1 <= row['update'] <= 3
    metrics = json.loads((out / 'metrics.json').read_text())
    assert metrics['corrupt_training_images'] == metrics['corrupt_images'] == 1
    assert metrics['num_images'] == 3
    boxes = json.loads((out / 'detections.json').read_text())
    assert {box['image_id'] for box in boxes} <= {1, 2, 3}


def test_an_evaluation_without_an_image_is_that_of_a_split_that_lacks_it(root, tmp_path):
    recipe = recipe_of(
        root, **{'student.model.test_cfg.score_thr': 0.0, 'evaluation.batch_size': 1}
    )
    made = train_detector_run(recipe, 'student', tmp_path / 'run')
    assert 'corrupt_images' not in made['metrics']
    assert 'corrupt_training_images' not in made['metrics']
    corrupted(root / 'val/000001.png', 'no image')
    without_image = evaluate(recipe, made['checkpoint'], out=tmp_path / 'without_image')
    assert without_image.pop('corrupt_images') == 1 and without_image['num_images'] == 3
    table = root / 'annotations/val.json'
    content = json.loads(table.read_text())
    content['images'] = [item for item in content['images'] if item['id'] != 1]
    content['annotations'] = [item for item in content['annotations'] if item['image_id'] != 1]
    table.write_text(json.dumps(content))
    wanted = evaluate(recipe, made['checkpoint'], out=tmp_path / 'wanted')
    assert wanted.pop('annotations_sha256') != without_image.pop('annotations_sha256')
    assert wanted == without_image
    boxes = [
        json.loads((tmp_path / name / 'detections.json').read_text())
        for name in ('without_image', 'wanted')
    ]
    assert boxes[0] == boxes[1] and len(boxes[0]) > 3


def test_an_evaluation_with_too_many(root, tmp_path):
    recipe = recipe_of(root)
    made = train_detector_run(recipe, 'student', tmp_path)
    for k, how in enumerate(('cut', 'empty', 'missing')):
        corrupted(root / f'val/{k:06d}.png', how)
    for limit, message in {0: '1 of 4 images', 1: '2 problems', 2: '2 problems'}.items():
        with pytest.raises(RecipeError, match=message):
            evaluate(load_recipe(recipe, {'data.corrupt_limit': limit}), made['checkpoint'])
    data = SkipCorrupt(
        pipelines.quiet_dataset(
            pipelines.dataset_config(recipe_of(root, **{'data.corrupt_limit': 3}), 'val')
        ),
        2,
    )
    with pytest.raises(
        CorruptImage,
        match=r'more images are corrupt than may be left out:\n.*\n.*\n.*\n.*limit is 2',
    ):
        data[0]


def batches(recipe, begin, workers, count):
    data = SkipCorrupt(pipelines.quiet_dataset(pipelines.dataset_config(recipe, 'train')), 2)
    made = build_dataloader(
        data,
        2,
        workers,
        dist=False,
        seed=3,
        runner_type='IterBasedRunner',
        persistent_workers=workers > 0,
    )
    loader, loaded = iter(seeded_loader.resume_at(made, 3, begin)), []
    while len(loaded) < count:
        batch = next(loader)
        metas = batch['img_metas'].data[0]
        images = [(meta['ori_filename'], meta['flip'], meta.get('corrupt', {})) for meta in metas]
        loaded.append((images, batch['img'].data[0]))
    return loaded


def test_what_takes_its_place_depends_on_seed_and_update_alone(root):
    recipe = recipe_of(root, **{'image.flip': 0.5})
    before = batches(recipe, 0, 0, 12)
    corrupted(root / 'train/000001.png', 'cut')
    whole = batches(recipe, 0, 0, 12)
    for begin, workers in ((0, 2), (5, 0), (6, 1)):
        rest = batches(recipe, begin, workers, 12 - begin)
        for (metas, images), wanted in zip(rest, whole[begin:], strict=True):
            assert metas == wanted[0] and torch.equal(images, wanted[1])
    bad = {str(root / 'train/000001.png'): 'is empty, cut short, damaged or not an image'}
    replaced = 0
    for (old, _), (new, _) in zip(before, whole, strict=True):
        for (was, flip, _), (name, flipped, corrupt) in zip(old, new, strict=True):
            # The next one, with the same random numbers; all others stay as they were.
            replaced += was == '000001.png'
            assert (name, corrupt) == (('000002.png', bad) if was == '000001.png' else (was, {}))
            assert flip == flipped
    assert replaced > 3


def test_the_next_one_is_of_the_same_orientation_and_may_lie_behind_the_end(root):
    data = pipelines.quiet_dataset(pipelines.dataset_config(recipe_of(root), 'train'))
    corrupted(root / 'train/000002.png', 'missing')
    names = [SkipCorrupt(data, 1)[k]['img_metas'].data['ori_filename'] for k in range(3)]
    assert names == ['000000.png', '000001.png', '000000.png']
    data.flag = np.array([0, 1, 1])
    assert SkipCorrupt(data, 1)[2]['img_metas'].data['ori_filename'] == '000001.png'
    corrupted(root / 'train/000001.png', 'empty')
    meta = SkipCorrupt(data, 2)[2]['img_metas'].data
    assert meta['ori_filename'] == '000000.png'
    assert [Path(path).name for path in meta['corrupt']] == ['000002.png', '000001.png']
    corrupted(root / 'train/000000.png', 'empty')
    with pytest.raises(CorruptImage, match=r'000000\.png is empty'):
        SkipCorrupt(data, 9)[1]


def test_a_training_that_is_cut_off_ends_the_same(root, tmp_path):
    corrupted(root / 'train/000001.png', 'cut')
    recipe = recipe_of(root, **{'image.flip': 0.5})
    cfg = recipe.model('student')
    build = partial(failing.build, cfg)
    train_model(recipe, build, cfg, tmp_path / 'whole', 6, 1)
    for moment in (0, 3):
        with pytest.raises(Cut):
            train_model(recipe, cut(build, moment, fail), cfg, tmp_path / 'cut', 6, 1)
    train_model(load_recipe(recipe, {'runtime.workers': 2}), build, cfg, tmp_path / 'cut', 6, 1)
    same(tmp_path / 'cut/latest.pth', tmp_path / 'whole/latest.pth')
    records = [(tmp_path / name / 'corrupt.json').read_text() for name in ('cut', 'whole')]
    assert records[0] == records[1] and len(json.loads(records[0])) == 1


@pytest.mark.slow
def test_several_processes_count_together(root, tmp_path, monkeypatch):
    """Each reads one of two corrupt images of three, first or last."""
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}{os.pathsep}{ROOT / "tests"}')
    for k in (0, 1):
        corrupted(root / f'train/{k:06d}.png', 'cut')
        corrupted(root / f'val/{k:06d}.png', 'cut')
    shared = {'runtime.device': 'cpu', 'runtime.gpus': 2, 'schedule.eval_interval': 4}
    recipe = recipe_of(root, **shared)
    cfg = recipe.model('student')
    build = partial(failing.build, cfg)
    train_model(recipe, build, cfg, tmp_path / 'two', 8, 1)
    rows = json.loads((tmp_path / 'two/corrupt.json').read_text())
    assert sorted(Path(row['file']).name for row in rows) == ['000000.png', '000001.png']
    metrics = evaluate(recipe, tmp_path / 'two/latest.pth')
    assert metrics == evaluate(
        load_recipe(recipe, {'runtime.gpus': 1}), tmp_path / 'two/latest.pth'
    )
    assert (metrics['corrupt_images'], metrics['num_images']) == (2, 2)


def test_what_an_abandoned_training_left_out_counts_no_more(root, tmp_path):
    """It began again, or goes on from before, with files that are whole now."""
    recipe = recipe_of(root, **{'data.corrupt_limit': 0})
    cfg = recipe.model('student')
    record = tmp_path / 'corrupt.json'
    row = {'file': 'x.png', 'problem': 'is missing'}
    record.write_text(json.dumps([row | {'update': 1}]))
    train_model(recipe, partial(failing.build, cfg), cfg, tmp_path, 2, 1)
    assert not record.exists()
    record.write_text(json.dumps([row | {'update': 2}, row | {'file': 'y.png', 'update': 3}]))
    train_model(recipe, partial(failing.build, cfg), cfg, tmp_path, 4, 1)
    assert json.loads(record.read_text()) == [row | {'update': 2}]


# Among many, of which a sample is decoded before


@pytest.fixture(scope='module')
def many(tmp_path_factory, tiny_coco):
    """130 images, and the names of those that the sample leaves out."""
    root = tiny_coco(tmp_path_factory.mktemp('many') / 'coco')
    for split in ('train', 'val'):
        path = root / f'annotations/{split}.json'
        table = json.loads(path.read_text())
        for k in range(4, 130):
            name = f'{k:06d}.png'
            shutil.copy(root / split / '000000.png', root / split / name)
            table['images'].append(table['images'][0] | {'id': k, 'file_name': name})
            one = {'id': 10 * k + 1, 'image_id': k}
            table['annotations'].append(table['annotations'][0] | one)
        path.write_text(json.dumps(table))
    step = 129 / (image_files.SAMPLE_SIZE - 1)
    looked = {round(k * step) for k in range(image_files.SAMPLE_SIZE)}
    return root, [f'{k:06d}.png' for k in range(130) if k not in looked and k > 3]


def copied(many, folder, split):
    root, names = many
    shutil.copytree(root, folder)
    for name in names:
        corrupted(folder / split / name, 'cut')
    return folder


@pytest.mark.parametrize('workers, limit', [(0, 0), (1, 0), (1, 3)])
def test_what_the_sample_did_not_see_ends_a_training(many, tmp_path, workers, limit):
    root = copied(many, tmp_path / 'coco', 'train')
    more = {'runtime.workers': workers, 'schedule.baseline': 60, 'data.corrupt_limit': limit}
    done = call(*command(root, tmp_path / 'run', **more))
    assert done.exit_code == 2, (done.output, done.exception)
    assert 'Traceback' not in done.output and 'Caught' not in done.output
    one = rf'image {root}/train/\d+\.png is empty, cut short, damaged or not an image'
    if limit:
        message = (
            rf'mtpd: more images are corrupt than may be left out:\n(  - {one}\n){{4,}}Fetch or export the corrupt '
            r'images again; the same command goes on from the last checkpoint\. data\.corrupt_limit is 3: a higher one leaves '
            r'out more\.\n'
        )
    else:
        message = (
            rf'mtpd: {one}\. Fetch or export the corrupt images again; the same command goes on from the last checkpoint\. '
            r'--cfg-options data\.corrupt_limit=N leaves out up to N such images\.\n'
        )
    assert re.search(message, done.output), done.output
    assert not (tmp_path / 'run/detectors/student/model.pth').exists()


def test_a_higher_limit_goes_on_in_the_same_folder(many, tmp_path):
    root = copied(many, tmp_path / 'coco', 'train')
    record = tmp_path / 'run/detectors/student/corrupt.json'
    more = {'schedule.baseline': 8}
    assert (
        call(*command(root, tmp_path / 'run', **more, **{'data.corrupt_limit': 3})).exit_code == 2
    )
    first = {row['file'] for row in json.loads(record.read_text())}
    done = call(*command(root, tmp_path / 'run', **more, **{'data.corrupt_limit': 64}))
    assert done.exit_code == 0, (done.output, done.exception)
    rows = json.loads(record.read_text())
    assert 3 < len(rows) <= 16 and len(first) <= 3 and first <= {row['file'] for row in rows}
    assert [row['update'] for row in rows] == sorted(row['update'] for row in rows)


def test_what_the_sample_did_not_see_ends_an_evaluation(many, tmp_path):
    root = copied(many, tmp_path / 'coco', 'val')
    file = tmp_path / 'pets.py'
    file.write_text(TEXT.format(model=retinanet(num_classes=2), root=str(root), meta=META))
    config = mmdet_config.load_config(file)
    path = tmp_path / 'model.pth'
    torch.save({'state_dict': mmdet_config._build_detector(config).state_dict()}, path)
    done = call('eval', file, '--checkpoint', path)
    assert done.exit_code == 2 and 'Traceback' not in done.output, (done.output, done.exception)
    assert re.match(rf'mtpd: image {root}/val/\d+\.png is empty, cut short', done.output)
    done = call('eval', file, '--checkpoint', path, '--cfg-options', 'data.corrupt_limit=70')
    assert done.exit_code == 0, (done.output, done.exception)
    bad = len(many[1])
    assert done.output.count(': left out of the evaluation\n') == bad > 60
    metrics = json.loads(done.stdout)
    assert (metrics['corrupt_images'], metrics['num_images']) == (bad, 130 - bad)
    done = call('eval', file, '--checkpoint', path, '--cfg-options', 'data.corrupt_limit=9')
    assert done.exit_code == 2 and f'and {bad - 20} more' in done.output
    assert done.output.count('is empty, cut short') == 20


# Settings


@pytest.mark.long
def test_a_plain_config_trains_with_its_limit(root, tmp_path):
    file = tmp_path / 'pets.py'
    file.write_text(TEXT.format(model=retinanet(num_classes=2), root=str(root), meta=META))
    corrupted(root / 'train/000001.png', 'cut')
    corrupted(root / 'val/000001.png', 'missing')
    out = tmp_path / 'run'
    refused = call('train', file, '--work-dir', out)
    assert refused.exit_code == 2 and '000001.png is damaged, cut short' in refused.output
    done = call('train', file, '--work-dir', out, '--cfg-options', 'data.corrupt_limit=1')
    assert done.exit_code == 0, (done.output, done.exception)
    metrics = json.loads((out / 'metrics.json').read_text())
    assert metrics['corrupt_images'] == metrics['corrupt_training_images'] == 1
    text = (out / 'config.py').read_text()
    assert text == mmdet_config.load_config(file).text  # by which a run is known
    assert 'corrupt' not in text and 'LoadImageFromFile' in text and 'LoadWhole' not in text
    for value in (-1, 'many', True):
        with pytest.raises(
            RecipeError, match=f'data.corrupt_limit is {value!r}: a number of images'
        ):
            mmdet_config.load_config(file, {'data.corrupt_limit': value})


def test_the_key_of_a_recipe(root, tmp_path):
    assert load_recipe(MINI).corrupt_limit == 0
    assert load_recipe('configs/paper/retinanet_r50__r101_rx101.py').corrupt_limit == 0
    with pytest.raises(RecipeError, match=r'data\.corrupt_limit is -1: it must not be negative'):
        load_recipe(MINI, {'data.corrupt_limit': -1})
    with pytest.raises(RecipeError, match=r"data\.corrupt_limit is 'all'"):
        load_recipe(MINI, {'data.corrupt_limit': 'all'})
    old = tmp_path / 'old.py'
    text = load_recipe(MINI).text.replace("'corrupt_limit': 0, ", '')
    assert 'corrupt' not in text
    old.write_text(text)
    assert load_recipe(old).corrupt_limit == 0
    assert 'LoadWhole' not in mmdet_config.recipe_as_mmdet(recipe_of(root), 'student')


def test_a_run_may_be_told_of_a_limit_in_between(root, tmp_path):
    """Also one that an older version began, without the key; nothing else may differ."""
    recipe = recipe_of(root)
    old = recipe.text.replace("'corrupt_limit': 2, ", '').replace(", 'corrupt_limit': 2", '')
    assert 'corrupt' not in old
    (tmp_path / 'model.pth').touch()
    claim_run_dir(tmp_path / 'recipe.py', old)
    for limit in (2, 5):
        raised_limit = load_recipe(recipe, {'data.corrupt_limit': limit})
        refuse_other_settings(raised_limit, tmp_path)
        claim_run_dir(tmp_path / 'recipe.py', raised_limit.text)
    assert (tmp_path / 'recipe.py').read_text() == raised_limit.text
    with pytest.raises(MtpdError, match='other settings'):
        claim_run_dir(tmp_path / 'recipe.py', load_recipe(recipe, {'image.flip': 0.25}).text)
    (tmp_path / 'recipe.py').write_text('import os')
    with pytest.raises(MtpdError, match='other settings'):
        claim_run_dir(tmp_path / 'recipe.py', raised_limit.text)


def test_examples_leave_corrupt_images_out(root):
    corrupted(root / 'val/000001.png', 'cut')
    shown = dataset.sample_images(recipe_of(root), 'val', 2)
    assert [item['name'] for item in shown] == ['000000.png', '000002.png']
