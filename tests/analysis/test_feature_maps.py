"""Feature maps as people look at them, and how near students come to their teachers."""

from __future__ import annotations

import json
from pathlib import Path

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import cv2
import mmcv
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from mtpd import load_recipe, plots
from mtpd.analysis import feature_maps
from mtpd.analysis.feature_maps import (
    feature_differences,
    feature_images,
    feature_strengths,
    pca_colours,
    stage_checkpoints,
)
from mtpd.engine import pipelines
from mtpd.engine.features import image_batches, load_detectors
from mtpd.pipeline.teacher_order import image_features

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
IMAGE = np.zeros((8, 8, 3), np.uint8)


def test_images_are_those_that_the_features_are_of(tiny_coco, tmp_path):
    """In a file with another order than the names', and where a whole image takes the place of a corrupt one."""
    root = tiny_coco(tmp_path)
    path = root / 'annotations/val.json'
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {'images': table['images'][::-1]}))
    (root / 'val/000002.png').write_bytes(b'')
    recipe = load_recipe(MINI, {'data.root': str(root), 'data.corrupt_limit': 1})
    shown = feature_images(recipe, 4)
    (batches, metas), *rest = image_batches(recipe, 4)
    assert not rest and len(shown) == len(metas) == 4
    image = recipe.cfg.image
    assert image.to_rgb
    for picture, pixels in zip(shown, batches, strict=True):
        resized = mmcv.imrescale(picture, tuple(pipelines.image_scale(image)))
        normalised = mmcv.imnormalize(resized, np.array(image.mean), np.array(image.std), False)
        height, width = resized.shape[:2]
        ours = pixels.numpy().transpose(1, 2, 0)[:height, :width]
        np.testing.assert_allclose(ours, normalised, atol=1e-4)
    order = ['000003.png', '000001.png', '000001.png', '000000.png']
    assert [Path(meta['filename']).name for meta in metas] == order
    for picture, name in zip(shown, order, strict=True):
        assert np.array_equal(picture, cv2.imread(str(root / 'val' / name))[..., ::-1])


def features(seed: int, channels: int = 6) -> torch.Tensor:
    return torch.randn(channels, 4, 5, generator=torch.Generator().manual_seed(seed))


def test_strength_and_difference_by_hand():
    one = torch.tensor([[[1.0, -2.0]], [[3.0, 0.0]]])
    rows = [[('a', one), ('b', -3 * one), ('other size', torch.ones(2, 3, 3))]]
    assert feature_strengths(rows)[0][0][1].tolist() == [[2, 1]]
    ((label, values),) = feature_differences(rows)[0]
    assert label == 'b' and values.tolist() == [[4, 2]]


def test_colours_are_the_teachers_principal_components():
    rows = [[('student', features(k)), ('teacher', features(10 + k))] for k in range(2)]
    coloured = pca_colours(rows, 'teacher')
    cells = np.concatenate([row[1][1].flatten(1).T.numpy() for row in rows])
    theirs = PCA(3).fit(cells)
    student = np.concatenate([row[0][1].flatten(1).T.numpy() for row in rows])
    mapped = LinearRegression().fit(student, theirs.transform(cells)).predict(student)
    for line, row in enumerate(rows):
        for (label, feature), (named, colours) in zip(row, coloured[line], strict=True):
            assert label == named and colours.shape == (4, 5, 3)
            assert colours.min() >= 0 and colours.max() <= 1
            wanted = theirs.transform(feature.flatten(1).T.numpy())
            wanted = mapped[20 * line : 20 * line + 20] if label == 'student' else wanted
            wanted = wanted.reshape(4, 5, 3)
            inside = (colours > 0.01) & (colours < 0.99)
            for k in range(3):  # the same up to sign and scale, where nothing was cut off
                ours, wants = colours[..., k][inside[..., k]], wanted[..., k][inside[..., k]]
                assert abs(np.corrcoef(ours, wants)[0, 1]) == pytest.approx(1, abs=1e-4)


def test_features_that_a_linear_map_makes_equal_have_equal_colours():
    same, small = features(1), torch.randn(6, 2, 2)
    mixed = torch.einsum('dc,chw->dhw', torch.randn(9, 6), same) + 3  # other channels, more of them
    row = [('student', mixed), ('teacher', same), ('other size', small), ('poor', same[:1])]
    coloured = pca_colours([row], 'teacher')[0]
    assert [label for label, _ in coloured] == ['student', 'teacher', 'poor']
    (_, a), (_, b), (_, poor) = coloured
    assert a == pytest.approx(b, abs=1e-4)
    assert abs(poor - b).max() > 0.1  # one channel does not say what six say


def test_figures_state_their_scale_and_basis():
    rows = [[('before', features(1)), ('after', features(2)), ('teacher', features(3))]]
    fig = plots.feature_differences(feature_differences(rows), [IMAGE], 'before')
    scales = {ax.images[0].get_clim() for ax in fig.axes[1:3]}
    assert len(scales) == 1 and sum(scales.pop()) == 0
    assert 'one scale' in fig.axes[-1].get_ylabel() and 'from before' in fig.alt
    fig = plots.feature_colours(pca_colours(rows, 'teacher'), [IMAGE], 'teacher')
    assert [ax.get_title() for ax in fig.axes] == ['image', 'before', 'after', 'teacher']
    assert 'principal components of teacher' in fig.alt
    assert plots.feature_differences([[]], [IMAGE], 'x').alt == 'No feature maps to compare.'


@pytest.fixture
def recipe(tmp_path):
    options = {'data.scenes.train': 4, 'data.scenes.val': 32, 'data.cache': str(tmp_path)}
    return load_recipe(MINI, options | {'student.checkpoint': str(tmp_path / 'student.pth')})


def test_costs_of_each_student_by_hand(recipe, tmp_path):
    from mmdet.models import build_detector

    for k, name in enumerate(('student', 'later')):
        torch.manual_seed(k)
        model = build_detector(recipe.model('student'))
        torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / f'{name}.pth')
    checkpoints = {
        'before': ('student', tmp_path / 'student.pth'),
        'after': ('student', tmp_path / 'later.pth'),
        'the teacher': ('r101', recipe.checkpoint('r101')),
    }
    rows = feature_maps.distance_to_teachers(recipe, checkpoints, images=32)
    assert [row['student'] for row in rows] == ['before', 'after']
    assert all(list(row) == ['student', 'to the teacher'] for row in rows)
    models = load_detectors(recipe, checkpoints)
    fit, held = (list(image_features(recipe, models, 32, k)) for k in (0, 1))

    def cells(half: list, name: str, stride: int) -> np.ndarray:
        return np.concatenate([image[name][stride].flatten(1).T.double() for image in half])

    for row in rows:
        shares = []
        for stride in fit[0]['the teacher']:
            x, y = (cells(fit, name, stride) for name in (row['student'], 'the teacher'))
            maps = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
            x, y = (cells(held, name, stride) for name in (row['student'], 'the teacher'))
            left = ((np.c_[x, np.ones(len(x))] @ maps - y) ** 2).sum()
            shares.append(left / ((y - y.mean(0)) ** 2).sum())
        value, _, ends = row['to the teacher'].partition(' [')
        assert float(value) == pytest.approx(np.mean(shares), rel=2e-3)
        low, high = map(float, ends.rstrip(']').split(', '))
        assert low <= float(value) <= high and low < high


def test_the_student_without_a_teacher_stands_beside_the_stages(recipe, tmp_path, monkeypatch):
    def made(recipe, stage, arm, work_dir=None):
        return {'checkpoint': tmp_path / f'{arm}_{stage}'}

    monkeypatch.setattr(feature_maps, 'train_stage', made)
    (tmp_path / 'student.pth').touch()
    assert 'no teacher' not in stage_checkpoints(
        recipe, 'progressive', tmp_path
    )  # not trained for it
    trained = tmp_path / 'stages/none/1_no_teacher/student.pth'
    trained.parent.mkdir(parents=True)
    trained.touch()
    checkpointsred = stage_checkpoints(recipe, 'progressive', tmp_path)
    assert [*checkpointsred][:4] == [
        'student before',
        'after stage 1',
        'after stage 2',
        'no teacher',
    ]
    assert checkpointsred['no teacher'] == ('student', trained)
    assert [*stage_checkpoints(recipe, 'none', tmp_path)][:3] == [
        'student before',
        'after stage 1',
        'teacher 1: ResNet-34, width 16',
    ]
