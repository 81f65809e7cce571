"""Feature maps resampled by hand, cell by cell in float64."""

import numpy as np


def bilinear(feature, rows, columns):
    """A map (C, H, W) at fractional cells, a row and a column each, in float64; outside, the border's cell."""
    feature = feature.double().numpy()
    _, height, width = feature.shape
    out = np.zeros((len(feature), len(rows), len(columns)))
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            y0, x0 = int(np.floor(y)), int(np.floor(x))
            for yy, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
                for xx, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
                    cell = feature[:, min(max(yy, 0), height - 1), min(max(xx, 0), width - 1)]
                    out[:, i, j] += wy * wx * cell
    return out


def by_hand(feature, size, student_shape, teacher_shape):
    """Each cell's centre, as a share of the student's image, looked up in the teacher's."""
    places = [
        (np.arange(cells) + 0.5) * theirs / ours - 0.5
        for cells, ours, theirs in zip(size, student_shape[:2], teacher_shape[:2], strict=True)
    ]
    return bilinear(feature, *places)
