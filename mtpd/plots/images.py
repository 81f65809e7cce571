"""Image panels: scenes with their objects, detections. Images are RGB uint8 (H, W, 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from .figure import INK, TEXT, Figure, empty, narrow, new

# One colour a class, in turn; every box is named as well.
CLASS_COLOURS = ('#E69F00', '#56B4E9', '#009E73', '#F0E442', '#0072B2', '#D55E00', '#CC79A7')


def scenes(
    images: Sequence[np.ndarray],
    boxes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    masks: Sequence[np.ndarray] | None = None,
    classes: Sequence[str] = (),
    columns: int = 4,
) -> Figure:
    """A grid of images with their objects.

    Args:
        images: each RGB uint8 (H, W, 3).
        boxes: each (n, 4), xyxy in pixels.
        labels: each (n,), class indices.
        masks: each (n, H, W) bool, or None.
        classes: class names; without them, the indices.
    """
    if not len(images):
        return empty('No images.')
    columns = min(columns, len(images))
    rows = ceil(len(images) / columns)
    height, width = images[0].shape[:2]
    fig = new(2.6 * columns, 2.6 * rows * height / width, photo=True)
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.axis('off')
    for k, image in enumerate(images):
        found = {'boxes': boxes[k], 'labels': labels[k]}
        if masks is not None:
            found['masks'] = masks[k]
        _objects(axes[k], image, found, classes)
    counts = np.bincount(np.concatenate([np.asarray(x, int) for x in labels]))
    parts = ', '.join(f'{n} of class {_class(c, classes)}' for c, n in enumerate(counts) if n)
    fig.alt = f'{len(images)} images with {int(counts.sum())} marked objects: {parts or "none"}.'
    return fig


def detections(
    image: np.ndarray,
    gt: Mapping,
    found: Mapping[str, Mapping],
    classes: Sequence[str] = (),
    threshold: float = 0.3,
) -> Figure:
    """One image with its ground truth and, beside it, what detectors found.

    Args:
        image: RGB uint8 (H, W, 3).
        gt: boxes (n, 4) xyxy in pixels, labels (n,) and, if any, masks (n, H, W) bool.
        found: {detector: the same with scores (n,)}.
        classes: class names.
        threshold: detections below this score are left out.
    """
    panels = {'ground truth': dict(gt)}
    for name, objects in found.items():
        keep = np.asarray(objects['scores']) >= threshold
        panels[name] = {k: np.asarray(v)[keep] for k, v in objects.items()}
    height, width = image.shape[:2]
    fig = new(2.9 * len(panels), 2.9 * height / width + 0.45, photo=True)
    counts = []
    axes = fig.subplots(1, len(panels), squeeze=False)[0]
    for ax, (name, objects) in zip(axes, panels.items(), strict=True):
        ax.axis('off')
        _objects(ax, image, objects, classes)
        count = len(objects['boxes'])
        ax.set_title(narrow(f'{name} ({count})'), fontsize=TEXT, color=INK)
        names = ', '.join(_class(c, classes) for c in objects['labels'])
        counts.append(f'{name}: {count} objects' + (f' ({names})' if count else ''))
    fig.alt = f'Objects with a score of at least {threshold:g}. ' + '; '.join(counts) + '.'
    return fig


def _class(index: int, classes: Sequence[str]) -> str:
    return str(classes[int(index)]) if int(index) < len(classes) else str(int(index))


def _objects(ax: Axes, image: np.ndarray, objects: Mapping, classes: Sequence[str]) -> None:
    picture = image.astype(float) / 255
    for label, mask in zip(objects['labels'], objects.get('masks', ()), strict=False):
        colour = np.array(to_rgb(CLASS_COLOURS[int(label) % len(CLASS_COLOURS)]))
        mask = np.asarray(mask, bool)
        picture[mask] = 0.5 * picture[mask] + 0.5 * colour
    height, width = image.shape[:2]
    ax.imshow(picture, interpolation='nearest' if width < 200 else 'antialiased')
    scores = objects.get('scores')
    for k, (label, (x1, y1, x2, y2)) in enumerate(
        zip(objects['labels'], objects['boxes'], strict=True)
    ):
        colour = CLASS_COLOURS[int(label) % len(CLASS_COLOURS)]
        # Edges in a picture lie between pixels, pixel centres at whole numbers.
        corner = (x1 - 0.5, y1 - 0.5)
        for edge, line in (('black', 2.2), (colour, 1.1)):  # readable on any background
            ax.add_patch(
                Rectangle(corner, x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=line)
            )
        text = _class(label, classes) + ('' if scores is None else f' {scores[k]:.2f}')
        ax.text(
            np.clip(x1, 0, 0.9 * width),
            y1 - 1.5 if y1 > 0.08 * height else y1 + 1,
            text,
            va='bottom' if y1 > 0.08 * height else 'top',
            fontsize=TEXT - 2.5,
            color='white',
            path_effects=[patheffects.withStroke(linewidth=2, foreground='black')],
        )
    ax.set_xlim(-0.5, width - 0.5)
    ax.set_ylim(height - 0.5, -0.5)
