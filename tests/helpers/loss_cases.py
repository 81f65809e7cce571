"""What `tests/distill/test_losses.py` checks of each distillation loss: `CASES`, at the end. Other tests use the formulas.

A formula is the loss once more, in numpy and float64, with the sums written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """A distillation loss.

    Attributes:
        formula: gives the loss's value. It gets the loss, its weights by name, the features of student and teacher
            `(N, C, H, W)`, the boxes `(n, 4)` by image, and the height and width that each image's boxes are in. None: the
            loss is random, and has tests of its own.
        settings: that it is checked with.
        refused: settings out of range, and what the message says of each.
        idle: names of weights that do not change the loss.
        has_weights: of its own, beside those that align channels.
    """

    formula: Callable | None
    settings: dict
    refused: list[tuple[dict, str]]
    idle: tuple[str, ...] = ()
    has_weights: bool = False


def value_of(loss, p, student, teacher, boxes=None, sizes=None) -> float:
    """The value of `loss` with the weights `p`; boxes (n, 4) and (height, width) by image."""
    if 'align.weight' in p:
        student = conv1x1(student, p['align.weight'], p['align.bias'])
    return CASES[type(loss).__name__].formula(loss, p, student, teacher, boxes, sizes)


def slopes(function, array: np.ndarray, step: float = 1e-4) -> np.ndarray:
    """d function() / d array, by central differences of fourth order; array is changed and restored."""
    derivatives = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        before, values = array[place], {}
        for k in (-2, -1, 1, 2):
            array[place] = before + k * step
            values[k] = function()
        array[place] = before
        derivatives[place] = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)
    return derivatives


def conv1x1(x, weight, bias):
    return np.einsum('nchw,oc->nohw', x, weight[:, :, 0, 0]) + bias[None, :, None, None]


def softmax(x):
    """Of a vector."""
    e = np.exp(x - x.max())
    return e / e.sum()


def cwd(loss, p, student, teacher, boxes, sizes):
    n, c = student.shape[:2]
    total = 0.0
    for i in range(n):
        for k in range(c):
            p_s = softmax(student[i, k].ravel() / loss.tau)
            p_t = softmax(teacher[i, k].ravel() / loss.tau)
            total += (p_t * (np.log(p_t) - np.log(p_s))).sum()
    return loss.weight * loss.tau**2 * total / (n * c)


def pkd(loss, p, student, teacher, boxes, sizes):
    total = 0.0
    for k in range(student.shape[1]):
        s, t = student[:, k].ravel(), teacher[:, k].ravel()
        z_s = (s - s.mean()) / (np.sqrt(((s - s.mean()) ** 2).sum() / (s.size - 1)) + 1e-6)
        z_t = (t - t.mean()) / (np.sqrt(((t - t.mean()) ** 2).sum() / (t.size - 1)) + 1e-6)
        total += ((z_s - z_t) ** 2).sum()
    return loss.weight * 0.5 * total / student.size


def mse(loss, p, student, teacher, boxes, sizes):
    return loss.weight * ((student - teacher) ** 2).sum() / student.size


def fgd(loss, p, student, teacher, boxes, sizes):
    n, _, h, w = student.shape
    total = 0.0
    for i in range(n):
        fg, bg = fgd_masks(boxes[i], sizes[i], h, w)
        s_s, a_s = attention(student[i], loss.temperature)
        s_t, a_t = attention(teacher[i], loss.temperature)
        weighted = s_t[None] * a_t[:, None, None] * (student[i] - teacher[i]) ** 2
        total += loss.alpha * (fg * weighted).sum() + loss.beta * (bg * weighted).sum()
        total += loss.gamma * (np.abs(s_s - s_t).sum() + np.abs(a_s - a_t).sum())
        related = relation(student[i], p, 's') - relation(teacher[i], p, 't')
        total += loss.relation * (related**2).sum()
    return total / n


def attention(feature, temperature):
    """To cells (H, W) and to channels (C,), of one image."""
    c, h, w = feature.shape
    cells = softmax(np.abs(feature).mean(0).ravel() / temperature)
    channels = softmax(np.abs(feature).mean((1, 2)) / temperature)
    return h * w * cells.reshape(h, w), c * channels


def fgd_masks(boxes, size, h, w):
    """Foreground and background (h, w) of one image, box by box and cell by cell."""
    fg = np.zeros((h, w))
    for x1, y1, x2, y2 in boxes:
        left, right = math.floor(x1 / size[1] * w), math.ceil(x2 / size[1] * w)
        top, bottom = math.floor(y1 / size[0] * h), math.ceil(y2 / size[0] * h)
        for row in range(max(top, 0), min(bottom, h - 1) + 1):
            for column in range(max(left, 0), min(right, w - 1) + 1):
                weight = 1 / ((bottom - top + 1) * (right - left + 1))
                fg[row, column] = max(fg[row, column], weight)
    bg = np.where(fg > 0, 0.0, 1.0)
    return fg, bg / max(bg.sum(), 1)


def relation(feature, p, who):
    weight, bias = p[f'conv_mask_{who}.weight'], p[f'conv_mask_{who}.bias']
    c = len(feature)
    cells = feature.reshape(c, -1)
    context = cells @ softmax(weight.reshape(c) @ cells + bias[0])
    block = f'channel_add_conv_{who}'
    hidden = p[f'{block}.0.weight'][:, :, 0, 0] @ context + p[f'{block}.0.bias']
    normed = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
    normed = normed * p[f'{block}.1.weight'].ravel() + p[f'{block}.1.bias'].ravel()
    added = p[f'{block}.3.weight'][:, :, 0, 0] @ np.maximum(normed, 0) + p[f'{block}.3.bias']
    return feature + added[:, None, None]


CASES = {
    'CWD': Case(
        cwd,
        dict(tau=2.0, weight=3.0),
        [(dict(tau=0), 'tau must be above 0'), (dict(weight=-5), 'weight must not be negative')],
        idle=('align.bias',),  # a constant added before a softmax
    ),
    'FGD': Case(
        fgd,
        dict(temperature=0.7, alpha=0.03, beta=0.04, gamma=0.3, relation=0.02),
        [
            (dict(temperature=-0.5), 'temperature must be above 0'),
            (dict(relation=-1), 'relation must not be negative'),
            (dict(box_scale='padshape'), "must be pad_shape or img_shape, not 'padshape'"),
            (dict(teacher_channels=1), 'teacher_channels'),
        ],
        idle=('conv_mask_s.bias', 'conv_mask_t.bias'),
        has_weights=True,
    ),
    'MGD': Case(
        None,
        {},
        [(dict(mask_ratio=1), '[0, 1)'), (dict(alpha=-1), 'alpha')],
        has_weights=True,
    ),
    'PKD': Case(
        pkd,
        dict(weight=4.0),
        [(dict(weight=float('nan')), 'weight must not be negative, but is nan')],
        idle=('align.bias',),  # a constant added before standardising
    ),
    'FeatureMSE': Case(mse, dict(weight=2.0), [(dict(weight=-1), 'weight must not be negative')]),
}
