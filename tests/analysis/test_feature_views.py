"""Feature maps as people look at them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from mtpd import plots
from mtpd.analysis.feature_maps import feature_differences, feature_strengths, pca_colours

IMAGE = np.zeros((8, 8, 3), np.uint8)


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
    found = pca_colours(rows, 'teacher')
    cells = np.concatenate([row[1][1].flatten(1).T.numpy() for row in rows])
    theirs = PCA(3).fit(cells)
    student = np.concatenate([row[0][1].flatten(1).T.numpy() for row in rows])
    mapped = LinearRegression().fit(student, theirs.transform(cells)).predict(student)
    for line, row in enumerate(rows):
        for (label, feature), (named, colours) in zip(row, found[line], strict=True):
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
    found = pca_colours([row], 'teacher')[0]
    assert [label for label, _ in found] == ['student', 'teacher', 'poor']
    (_, a), (_, b), (_, poor) = found
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
