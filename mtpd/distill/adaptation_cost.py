"""Adaptation costs: how far apart detectors' features are, without training anything.

cost(A -> B) is the share of the variance of B's neck features that the best linear map (a 1 x 1 convolution with bias)
from A's leaves unexplained: about 0, the same up to a linear map; about 1, nothing in common. Maps are fitted on half
of the images, in closed form from second moments, and measured on the other half, where a bad fit may exceed 1. The
definition is this kit's own, in the spirit of the paper's selection of teachers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..errors import MtpdError
from ..utils import statistics

RIDGE = 1e-8  # of the mean feature variance: makes rank-deficient features safe
PIXELS_PER_CHANNEL = 10  # at least: with fewer the maps fit noise
TOO_FEW_IMAGES = 'adaptation costs need at least 2 images: raise order.images, or give a larger validation split.'
Features = Mapping[str, Mapping[int, Tensor]]  # {detector: {stride: (C, H, W)}} of one image


class Moments:
    """Second moments of several detectors' channels at one stride, side by side, with a constant 1.

    A (C + 1, C + 1) matrix in float64: its size does not depend on the number of images.
    """

    def __init__(self, channels: Sequence[int]):
        edges = np.cumsum([0, *channels])
        self.parts = [slice(a, b) for a, b in pairwise(edges)]
        self.sums: Tensor | float = 0.0

    def add(self, features: Sequence[Tensor]) -> Moments:
        """Features (C_i, H, W) of one image, one for each detector."""
        rows = [feature.flatten(1).double() for feature in features]
        stacked = torch.cat([*rows, torch.ones_like(rows[0][:1])])
        self.sums = self.sums + stacked @ stacked.T
        return self

    def numpy(self) -> np.ndarray:
        return torch.as_tensor(self.sums).cpu().numpy()

    def linear_maps(self) -> list[np.ndarray]:
        """For each detector the weights and bias (C_i + 1, C) of the least-squares map to all channels.

        The map to one detector does not depend on the others.
        """
        sums, maps = self.numpy(), []
        for part in self.parts:
            x = np.r_[part, -1]
            gram = sums[np.ix_(x, x)].copy()
            size = len(x) - 1
            mean = gram[:size, -1] / gram[-1, -1]
            variance = np.trace(gram[:size, :size]) / gram[-1, -1] - mean @ mean
            gram[np.arange(size), np.arange(size)] += RIDGE * gram[-1, -1] * variance / size
            maps.append(np.linalg.lstsq(gram, sums[x, :-1], rcond=None)[0])
        return maps

    def residuals(self, maps: list[np.ndarray]) -> np.ndarray:
        """Squared errors (D, D) that the maps, row to column, leave on what was added here."""
        sums, squares = self.numpy(), np.zeros((len(maps), len(maps)))
        for a, weights in enumerate(maps):
            x = np.r_[self.parts[a], -1]
            errors = (
                np.diag(sums)[:-1]
                - 2 * np.sum(weights * sums[x, :-1], axis=0)
                + np.sum(weights * (sums[np.ix_(x, x)] @ weights), axis=0)
            )
            squares[a] = [max(errors[part].sum(), 0.0) for part in self.parts]
        return squares


class HeldOut:
    """Residuals and variances on the images that did not fit the maps, for the sample and its bootstrap replicates.

    Each image counts in replicate r as often as a Poisson draw of mean 1, determined by its number, says: a bootstrap
    over images in one pass, in memory that does not grow with them.
    """

    def __init__(self, maps: list[np.ndarray], channels: Sequence[int], replicates: int):
        self.maps, self.channels, count = maps, channels, len(channels)
        self.errors = np.zeros((replicates + 1, count, count))
        self.sums = np.zeros((replicates + 1, sum(channels) + 1))  # of channels; last: of pixels
        self.squares = np.zeros((replicates + 1, count))

    def add(self, features: Sequence[Tensor], number: int) -> None:
        """Features (C_i, H, W) of the image of that number, one for each detector."""
        moments = Moments(self.channels).add(features)
        sums = moments.numpy()
        often = np.random.default_rng(number).poisson(1.0, len(self.errors))
        often[0] = 1  # the sample itself
        self.errors += often[:, None, None] * moments.residuals(self.maps)
        self.sums += np.outer(often, sums[:, -1])
        self.squares += np.outer(often, [np.trace(sums[part, part]) for part in moments.parts])

    def costs(self) -> np.ndarray:
        """Shares of variance unexplained (replicates + 1, D, D), the sample's first; a constant target costs 0."""
        edges = np.cumsum([0, *self.channels])
        pixels = np.maximum(self.sums[:, -1:], 1)
        means = np.stack(
            [np.sum(self.sums[:, a:b] ** 2, axis=1) for a, b in pairwise(edges)], axis=1
        )
        variance = (self.squares - means / pixels)[:, None, :]
        return np.divide(
            self.errors, variance, out=np.zeros_like(self.errors), where=variance > 1e-12
        )


def costs_from_features(
    fit: Iterable[Features], held_out: Iterable[Features], replicates: int = 200
) -> dict:
    """Adaptation costs of all ordered pairs of detectors, each image's features looked at once.

    Detectors are compared at the strides that both have.

    Args:
        fit, held_out: per image ``{detector: {stride in pixels: features (C, H, W)}}``; the maps are fitted on the
            first and measured on the second.
        replicates: of the bootstrap over the images of `held_out`.

    Returns:
        A dict: ``detectors``: names, ``cost`` (D, D): row source, column target, ``levels``: the same by stride, NaN
        where one of the pair lacks it, ``replicates`` (R, D, D), ``low`` and ``high`` (D, D): the ends of 95 %
        intervals from them, ``images``: how many in both halves, ``needed``: how many a stable fit takes at least.

    Raises:
        MtpdError: a half without images, or detectors that share no stride.
    """
    moments: dict[int, Moments] = {}
    members: dict[int, list[str]] = {}
    names, images = [], 0
    for features in fit:
        if not images:
            names = list(features)
            members = common_strides(features)
            moments = {s: Moments(_channel_counts(features, s, members[s])) for s in members}
        for stride, sharing in members.items():
            moments[stride].add([features[name][stride] for name in sharing])
        images += 1
    if not images:
        raise MtpdError(TOO_FEW_IMAGES)
    channels = {s: [part.stop - part.start for part in m.parts] for s, m in moments.items()}
    held = {s: HeldOut(m.linear_maps(), channels[s], replicates) for s, m in moments.items()}
    count = 0
    for count, features in enumerate(held_out, 1):
        for stride, sharing in members.items():
            held[stride].add([features[name][stride] for name in sharing], count)
    if not count:
        raise MtpdError(TOO_FEW_IMAGES)
    # An image gives its pixels at the coarsest stride; the fit has a weight for each channel, and the bias.
    needed = max(
        2 * int(np.ceil(PIXELS_PER_CHANNEL * (max(channels[s]) + 1) * images / m.numpy()[-1, -1]))
        for s, m in moments.items()
    )
    levels = {s: _in_full_table(held[s].costs(), members[s], names) for s in sorted(held)}
    mean = np.nanmean(np.stack(list(levels.values())), axis=0)
    low, high = statistics.percentile_interval(mean[1:])
    return {
        'detectors': names,
        'cost': mean[0],
        'levels': {stride: values[0] for stride, values in levels.items()},
        'replicates': mean[1:],
        'low': low,
        'high': high,
        'images': images + count,
        'needed': needed,
    }


def common_strides(features: Features) -> dict[int, list[str]]:
    """The names of the detectors that have each stride. Raises MtpdError where two detectors share none."""
    for a in features:
        for b in features:
            if not set(features[a]) & set(features[b]):
                raise MtpdError(
                    f'{a} (strides {", ".join(map(str, features[a]))}) and {b} '
                    f'({", ".join(map(str, features[b]))}) have no FPN level of the same stride: leave one '
                    'of them out of the pool.'
                )
    strides = sorted({stride for levels in features.values() for stride in levels})
    return {s: [name for name in features if s in features[name]] for s in strides}


def _channel_counts(features: Features, stride: int, names: list[str]) -> list[int]:
    return [features[name][stride].shape[0] for name in names]


def _in_full_table(costs: np.ndarray, members: list[str], names: list[str]) -> np.ndarray:
    """Costs of some detectors in a table of all, NaN elsewhere."""
    places = [names.index(name) for name in members]
    table = np.full((len(costs), len(names), len(names)), np.nan)
    table[:, np.array(places)[:, None], places] = costs
    return table
