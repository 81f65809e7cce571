"""Feature maps (C, H, W) of several detectors as people look at them: strength, difference, colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Row = list[tuple[str, Tensor]]  # (label, features (C, H, W)) of one image, a detector each


def strength(feature: Tensor) -> Tensor:
    """Mean absolute activation over channels: (H, W) of one image's (C, H, W)."""
    return feature.abs().mean(0)


def strengths(rows: Sequence[Row]) -> list[list[tuple[str, np.ndarray]]]:
    """(label, (H, W)) per detector, for `plots.feature_maps`."""
    return [[(label, strength(feature).cpu().numpy()) for label, feature in row] for row in rows]


def differences(rows: Sequence[Row]) -> list[list[tuple[str, np.ndarray]]]:
    """How much stronger each detector's features are than the first one's: (label, (H, W)), for
    `plots.feature_differences`. Those of another size are left out."""
    found = []
    for (_, first), *others in rows:
        before = strength(first)
        maps = [(label, strength(feature) - before) for label, feature in others
                if feature.shape[1:] == first.shape[1:]]  # fmt: skip
        found.append([(label, values.cpu().numpy()) for label, values in maps])
    return found


def pca_colours(rows: Sequence[Row], of: str) -> list[list[tuple[str, np.ndarray]]]:
    """The first three principal components of one detector's features as red, green and blue: (label, (H, W, 3) in
    0..1) for all detectors, in that basis and on that scale.

    Args:
        of: the detector that the basis is fitted on, over all rows. Those with another number of channels are left out.
    """
    fitted = [feature for row in rows for label, feature in row if label == of]
    cells = torch.cat([feature.flatten(1).T for feature in fitted]).double().cpu()
    mean = cells.mean(0)
    _, _, axes = torch.linalg.svd(cells - mean, full_matrices=False)
    axes = axes[:3]
    # SVD leaves the sign open: the largest weight of an axis is positive.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    low, high = torch.quantile((cells - mean) @ axes.T, torch.tensor([0.02, 0.98]).double(), dim=0)

    def coloured(feature: Tensor) -> np.ndarray:
        values = (feature.flatten(1).T.double().cpu() - mean) @ axes.T
        scaled = ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        return scaled.reshape(*feature.shape[1:], -1).numpy()

    return [
        [(label, coloured(feature)) for label, feature in row if len(feature) == len(mean)]
        for row in rows
    ]
