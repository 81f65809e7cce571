"""Detections in images of one's own: drawn, and as JSON; and the list of recipes."""

from __future__ import annotations

import json

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mmcv import ConfigDict
from mmdet.apis import inference_detector
from mmdet.models import build_detector

from mtpd import predict
from mtpd.cli.main import main
from mtpd.config.recipe import load_recipe
from mtpd.errors import MtpdError
from mtpd.pipeline.mmdet_config import recipe_as_mmdet
from mtpd.runtime import checkpoints
from mtpd.utils.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
MASKS = 'configs/mini/mask_rcnn_r50__swint_swins.py'
FEW = {'data.scenes.train': 2, 'data.scenes.val': 3}


@pytest.fixture(scope='module', params=[MINI, MASKS], ids=['boxes', 'masks'])
def trained(request, tmp_path_factory):
    """A checkpoint with random weights as the kit writes it, and a folder of images."""
    folder = tmp_path_factory.mktemp('predict')
    few = FEW | {'data.cache': str(folder)}
    if request.param == MINI:  # an untrained head scores everything at 0.01
        few['student.model.test_cfg.score_thr'] = 0.0
    recipe = load_recipe(request.param, few)
    torch.manual_seed(0)
    model = build_detector(ConfigDict(recipe.model('student')))
    model.init_weights()
    meta = {'CLASSES': recipe.classes, 'config': recipe_as_mmdet(recipe, 'student')}
    path = folder / 'student.pth'
    checkpoints.save_atomic({'meta': meta, 'state_dict': model.state_dict()}, path)
    return path, recipe.split('val')[1], request.param == MASKS


def test_what_is_found_is_what_mmdet_finds(trained, tmp_path):
    path, folder, masks = trained
    model = predict.detector(path)
    rows = list(predict.predict(model, [folder], tmp_path, threshold=0.001))
    assert len(rows) == 3
    assert json.loads((tmp_path / 'predictions.json').read_text()) == rows
    for row in rows:
        result = inference_detector(model, row['image'])
        assert isinstance(result, tuple) == masks
        boxes = np.concatenate(result[0] if masks else result)
        detections = boxes[boxes[:, 4] >= 0.001]
        assert len(row['objects']) == len(detections) > 0
        scores = [item['score'] for item in row['objects']]
        assert scores == pytest.approx(sorted(detections[:, 4], reverse=True))
        best = detections[detections[:, 4].argmax()]
        assert row['objects'][0]['box'] == pytest.approx(best[:4])
        assert row['objects'][0]['class'] in model.CLASSES
        before, after = cv2.imread(row['image']), cv2.imread(row['drawn'])
        assert after.shape == (384, 384, 3) and before.shape == (128, 128, 3)
        assert np.abs(after[::3, ::3].astype(int) - before).mean() > 4


def test_nothing_is_drawn_below_the_threshold(trained, tmp_path):
    path, folder, _ = trained
    image = sorted(folder.iterdir())[0]
    (row,) = predict.predict(predict.detector(path), [image], tmp_path, threshold=1.0)
    assert row['objects'] == []
    apart = np.abs(cv2.imread(row['drawn'])[1::3, 1::3].astype(int) - cv2.imread(str(image)))
    assert apart.mean() < 4  # of 255: JPEG's


def test_two_images_of_one_name_are_both_kept(trained, tmp_path):
    path, folder, _ = trained
    image = sorted(folder.iterdir())[0]
    for name in 'ab':
        (tmp_path / name).mkdir()
        (tmp_path / name / image.name).write_bytes(image.read_bytes())
    rows = predict.predict(predict.detector(path), [tmp_path / 'a', tmp_path / 'b'], tmp_path / 'o')
    assert [row['drawn'] for row in rows] == [
        str(tmp_path / 'o' / f'{name}_{image.name}') for name in 'ab'
    ]


def test_a_config_in_a_checkpoint_is_not_run(trained, tmp_path):
    state = checkpoints.load_checkpoint(trained[0])
    mark = tmp_path / 'ran'
    state['meta']['config'] = f'__import__("pathlib").Path({str(mark)!r}).touch()\nmodel = {{}}\n'
    torch.save(state, tmp_path / 'evil.pth')
    with pytest.raises(MtpdError, match=r'is not run\. Name one with --config'):
        predict.detector(tmp_path / 'evil.pth')
    assert not mark.exists()
    state['meta'] = {}
    torch.save(state, tmp_path / 'bare.pth')
    with pytest.raises(MtpdError, match='does not say of which detector it is'):
        predict.detector(tmp_path / 'bare.pth')


def test_sources_that_are_none_are_named(trained, tmp_path):
    model = predict.detector(trained[0])
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'x.png').write_text('no image')
    for source, message in (
        (tmp_path / 'empty', 'no images in this folder'),
        (tmp_path / 'gone.png', 'no such file'),
        (tmp_path / 'x.png', 'no image that OpenCV can read'),
    ):
        with pytest.raises(MtpdError, match=message):
            list(predict.predict(model, [source], tmp_path / 'out'))


def test_the_command_says_what_is_where(trained, tmp_path):
    path, folder, _ = trained
    arguments = ['predict', folder, '--checkpoint', path, '--out', tmp_path, '--threshold', '0.001']
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    assert len(done.output.splitlines()) == 3
    assert str(tmp_path) in done.output


def test_recipes_are_listed_with_the_papers_ap():
    done = CliRunner().invoke(main, ['recipes'])
    assert done.exit_code == 0, done.output
    lines = {line.split()[0]: line for line in done.output.splitlines()}
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / 'configs').glob('[!_t]*/*.py')}
    assert set(lines) == recipes
    assert lines['configs/paper/retinanet_r50__swint_swins.py'].endswith('(paper: 42.0 AP)')
    assert 'pocket size' in lines[MINI]
