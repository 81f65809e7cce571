"""Annotations that change between two commands: numbers are measured again, trainings refuse."""

import json

import pytest

from helpers.tiny_training import MINI, SMALL
from mtpd import load_recipe
from mtpd.errors import MtpdError
from mtpd.pipeline import run_dir as run_dirs
from mtpd.pipeline.detectors import train_detector_run
from mtpd.pipeline.stages import train_stage
from mtpd.utils.files import file_sha256, read_json


def edit(path, **values):
    """Other values in the first object of an annotation file; returns the text before."""
    text = path.read_text()
    table = json.loads(text)
    table['annotations'][0].update(values)
    path.write_text(json.dumps(table))
    return text


def test_changed_annotations_of_a_trained_detector(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path / 'coco')
    recipe, folder = load_recipe(MINI, SMALL | {'data.root': str(root)}), tmp_path / 'run'
    train, val = (root / f'annotations/{split}.json' for split in ('train', 'val'))
    first = train_detector_run(recipe, 'student', folder)
    written = first['checkpoint'].stat().st_mtime_ns
    assert first['metrics']['annotations_sha256'] == file_sha256(val)
    assert read_json(folder / 'data.json') == {
        'train': [file_sha256(train)],
        'val': file_sha256(val),
    }
    # Labels of val are corrected: the same detector is measured by the new ones.
    edit(val, category_id=6)
    second = train_detector_run(recipe, 'student', folder)
    assert second['metrics']['annotations_sha256'] == file_sha256(val)
    assert first['metrics']['annotations_sha256'] != file_sha256(val)
    assert read_json(folder / 'detectors/student/metrics.json') == second['metrics']
    assert second['checkpoint'].stat().st_mtime_ns == written
    # Labels of train are: what was trained is not this data's.
    text = edit(train, category_id=6)
    for again in (
        lambda: train_detector_run(recipe, 'student', folder),
        lambda: train_stage(recipe, 1, 'none', folder),
    ):
        with pytest.raises(
            MtpdError, match=r'on other annotations than .*train\.json has now.*put the former'
        ):
            again()
    train.write_text(text)
    assert train_detector_run(recipe, 'student', folder)['metrics'] == second['metrics']


def test_a_run_of_changed_validation_data_begins_its_steps_again(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path / 'coco')
    recipe, folder = load_recipe(MINI, SMALL | {'data.root': str(root)}), tmp_path / 'run'
    assert run_dirs.open_run(recipe, folder, smoke=False) is False
    assert run_dirs.open_run(recipe, folder, smoke=False) is False
    edit(root / 'annotations/val.json', category_id=6)
    assert run_dirs.open_run(recipe, folder, smoke=False) is True
    assert run_dirs.open_run(recipe, folder, smoke=False) is False
    # Without trainings nothing is lost by other training data; with one it is refused.
    edit(root / 'annotations/train.json', category_id=6)
    run_dirs.open_run(recipe, folder, smoke=False)
    (folder / 'detectors/student').mkdir(parents=True)
    (folder / 'detectors/student/training.json').write_text('{"update": 1, "seconds": 1}')
    edit(root / 'annotations/train.json', bbox=[4, 6, 20, 20], area=400)
    with pytest.raises(MtpdError, match='holds trainings on other annotations'):
        run_dirs.open_run(recipe, folder, smoke=False)
    (folder / 'data.json').unlink()  # as version 0.1 leaves it: nothing is known of its data
    assert run_dirs.open_run(recipe, folder, smoke=False) is False
