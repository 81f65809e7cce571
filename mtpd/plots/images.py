"""Image panels: scenes with their objects, detections. Images are RGB uint8 (H, W, 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from .figure import COLOURS, FAINT, HATCHES, INK, LINES, TEXT, Figure, empty, new_figure, style_axes

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
    fig = new_figure(2.6 * columns, 2.6 * rows * height / width, photo=True)
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.axis('off')
    for k, image in enumerate(images):
        objects = {'boxes': boxes[k], 'labels': labels[k]}
        if masks is not None:
            objects['masks'] = masks[k]
        _draw_objects(axes[k], image, objects, classes)
    counts = np.bincount(np.concatenate([np.asarray(x, int) for x in labels]))
    parts = ', '.join(f'{n} of class {_class_name(c, classes)}' for c, n in enumerate(counts) if n)
    fig.alt = f'{len(images)} images with {int(counts.sum())} marked objects: {parts or "none"}.'
    return fig


def detections(
    image: np.ndarray,
    gt: Mapping,
    detected: Mapping[str, Mapping],
    classes: Sequence[str] = (),
    threshold: float = 0.3,
    columns: int = 3,
) -> Figure:
    """One image with its ground truth and, beside it, what detectors found.

    Args:
        image: RGB uint8 (H, W, 3).
        gt: boxes (n, 4) xyxy in pixels, labels (n,) and, if any, masks (n, H, W) bool.
        detected: {detector: the same with scores (n,)}; if it was classified, also ``right``, (n,) bool, and the objects of `gt`
            that it matches and that the detector before did, ``matched`` and ``before``, sets of indices.
        classes: class names.
        threshold: detections below this score are left out.
    """
    panels = {f'ground truth: {len(gt["boxes"])} objects': dict(gt)}
    for name, objects in detected.items():
        keep = np.asarray(objects['scores']) >= threshold
        panel = {k: np.asarray(objects[k])[keep] for k in (*gt, 'scores', 'right') if k in objects}
        title = f'{name}: {keep.sum()} objects'
        if 'right' in panel:
            gained, lost = (
                sorted(objects[a] - objects[b])
                for a, b in (('matched', 'before'), ('before', 'matched'))
            )
            panel |= {'new': np.asarray(gt['boxes'])[gained], 'lost': np.asarray(gt['boxes'])[lost]}
            title = f'{name}:\n{panel["right"].sum()} found, {(~panel["right"]).sum()} wrong'
            if gained:
                title += f', {len(gained)} new'
            if lost:
                title += f', {len(lost)} lost'
        panels[title] = panel
    columns = min(columns, len(panels))
    rows = ceil(len(panels) / columns)
    height, width = image.shape[:2]
    fig = new_figure(3.2 * columns, rows * (3.2 * height / width + 0.5) + 0.2, photo=True)
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.axis('off')
    parts = []
    for ax, (title, objects) in zip(axes, panels.items(), strict=False):
        _draw_objects(ax, image, objects, classes)
        ax.set_title(title, fontsize=TEXT - 0.5, color=INK)
        names = ', '.join(_class_name(c, classes) for c in objects['labels'])
        parts.append(title.replace('\n', ' ') + (f' ({names})' if names else ''))
    if any('right' in objects for objects in panels.values()):
        fig.suptitle(
            f'score at least {threshold:g}; dashed: wrong; +: object that the first student does not find; dotted: one that it finds '
            'and this one does not',
            fontsize=TEXT - 1,
            color=INK,
        )
    fig.alt = f'Objects with a score of at least {threshold:g}. ' + '; '.join(parts) + '.'
    return fig


# Of what is drawn on an image itself: small ones are enlarged, so that labels don't cover them.
LEAST_SIDE, MOST_SIDE = 400, 2000


def annotated(image: np.ndarray, objects: Mapping, classes: Sequence[str] = ()) -> Figure:
    """An image with its objects drawn on it, of the image's size, or a small one's times a whole number.

    Args:
        image: RGB uint8 (H, W, 3).
        objects: boxes (n, 4) xyxy in pixels, labels (n,) and, if any, scores (n,) and masks (n, H, W) bool.
        classes: class names.
    """
    height, width = image.shape[:2]
    short, long = sorted((height, width))
    factor = max(1, min(LEAST_SIDE // short, MOST_SIDE // long))
    dpi = max(100, factor * long / 10)  # text grows with the image
    # matplotlib rounds the number of pixels down.
    fig = new_figure((factor * width + 0.01) / dpi, (factor * height + 0.01) / dpi, photo=True)
    fig.set_layout_engine('none')
    fig.set_dpi(dpi)
    ax = fig.add_axes((0, 0, 1, 1))
    ax.axis('off')
    _draw_objects(ax, image, objects, classes)
    names = ', '.join(_class_name(c, classes) for c in objects['labels'])
    fig.alt = f'{len(objects["labels"])} objects: {names or "none"}.'
    return fig


def _class_name(index: int, classes: Sequence[str]) -> str:
    return str(classes[int(index)]) if int(index) < len(classes) else str(int(index))


def _draw_objects(ax: Axes, image: np.ndarray, objects: Mapping, classes: Sequence[str]) -> None:
    picture = image.copy()
    for label, mask in zip(objects['labels'], objects.get('masks', ()), strict=False):
        colour = np.array(to_rgb(CLASS_COLOURS[int(label) % len(CLASS_COLOURS)]))
        mask = np.asarray(mask, bool)
        picture[mask] = 0.5 * picture[mask] + 127.5 * colour
    height, width = image.shape[:2]
    ax.imshow(picture, interpolation='nearest' if width < 200 else 'antialiased')
    scores, right, taken = objects.get('scores'), objects.get('right'), []
    wrong = np.zeros(len(objects['boxes']), bool) if right is None else ~np.asarray(right, bool)
    for k in np.argsort(~wrong, kind='stable'):  # what is right is drawn over what is wrong
        label, box = objects['labels'][k], objects['boxes'][k]
        colour = CLASS_COLOURS[int(label) % len(CLASS_COLOURS)]
        _draw_box(ax, box, colour, (0, (2, 2)) if wrong[k] else '-')
        text = _class_name(label, classes)
        text += '' if scores is None else f' {scores[k]:.2f}'.replace(' 0.', ' .')
        (x, top, end, bottom), side = box, 'left'
        if x > 0.6 * width:  # a long name would leave the image
            x, side = min(end, width), 'right'
        x = max(x, 0)
        if wrong[k]:
            while any(
                abs(x - a) < 0.1 * width and abs(bottom - b) < 0.05 * height for a, b in taken
            ):
                bottom -= 0.055 * height  # above the other label
            taken.append((x, bottom))
            _draw_text(ax, x, bottom - 1, text, 'bottom', side)
        elif top > 0.08 * height:
            _draw_text(ax, x, top - 1.5, text, 'bottom', side)
        else:
            _draw_text(ax, x, top + 1, text, 'top', side)
    for box in objects.get('new', ()):
        _draw_text(ax, min(box[2], 0.96 * width), box[3], '+', 'bottom', 'left', TEXT + 1)
    for box in objects.get('lost', ()):
        _draw_box(ax, box, 'white', (0, (1, 2)))
    ax.set_xlim(-0.5, width - 0.5)
    ax.set_ylim(height - 0.5, -0.5)


def _draw_box(ax: Axes, box: Sequence[float], colour: str, style: Any) -> None:
    x1, y1, x2, y2 = box
    # Edges in a picture lie between pixels, pixel centres at whole numbers.
    corner = (x1 - 0.5, y1 - 0.5)
    for edge, wide in (('black', 2.4), (colour, 1.3)):  # readable on any background
        look = dict(edgecolor=edge, linewidth=wide, linestyle=style)
        ax.add_patch(Rectangle(corner, x2 - x1, y2 - y1, fill=False, **look))


def _draw_text(
    ax: Axes, x: float, y: float, text: str, va: str, ha: str, size: float = TEXT - 2
) -> None:
    ax.text(
        x,
        y,
        text,
        va=va,
        ha=ha,
        fontsize=size,
        color='white',
        path_effects=[patheffects.withStroke(linewidth=2, foreground='black')],
    )


# Sizes and classes of objects.

# COCO's area ranges, in square pixels.
SMALL_AREA, MEDIUM_AREA = 32**2, 96**2


def size_histogram(areas: Mapping[str, Sequence[float]] | Sequence[float]) -> Figure:
    """How large the objects are, with COCO's ranges small, medium and large.

    Args:
        areas: object areas in square pixels, or {split: areas}.
    """
    splits = areas if isinstance(areas, Mapping) else {'objects': areas}
    splits = {name: np.sqrt(np.asarray(a, float)) for name, a in splits.items() if len(a)}
    if not splits:
        return empty('No objects.')
    every = np.concatenate(list(splits.values()))
    low, high = max(min(every.min() / 1.1, 24), 1), max(every.max() * 1.1, 128)
    edges = np.geomspace(low, high, 31)
    fig = new_figure(8, 3.8)
    ax = style_axes(
        fig.subplots(),
        xlabel='object size: square root of its area (pixels, log scale)',
        ylabel='share of objects (%)',
        grid='y',
    )
    ax.set_xscale('log')
    for index, (name, sizes) in enumerate(splits.items()):
        share = 100 * np.histogram(sizes, edges)[0] / len(sizes)
        colour = COLOURS[(2, 1, 4, 3)[index % 4]]
        label = f'{name} ({len(sizes):,} objects)'
        ax.stairs(share, edges, fill=True, color=colour, alpha=0.25)
        ax.stairs(share, edges, color=colour, linewidth=1.8, linestyle=LINES[index], label=label)
    bounds = (low, SMALL_AREA**0.5, MEDIUM_AREA**0.5, high)
    alt = []
    for k, name in enumerate(('small', 'medium', 'large')):
        shares = {s: 100 * np.mean(_size_range(sizes) == k) for s, sizes in splits.items()}
        text = ' / '.join(f'{value:.0f} %' for value in shares.values())
        ax.text(
            (bounds[k] * bounds[k + 1]) ** 0.5,
            1.02,
            f'{name}: {text}',
            transform=ax.get_xaxis_transform(),
            ha='center',
            fontsize=TEXT - 0.5,
            color=INK,
        )
        if k:
            ax.axvline(bounds[k], color=FAINT, linewidth=1.2, linestyle='--')
        alt.append(f'{name} ' + ', '.join(f'{v:.0f} % ({s})' for s, v in shares.items()))
    ax.set_xlim(low, high)
    ticks = [t for t in (2, 4, 8, 16, 32, 64, 96, 128, 256, 512, 1024) if low <= t <= high]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=TEXT - 1)
    fig.alt = f'Object sizes by COCO area range: {"; ".join(alt)}.'
    return fig


def _size_range(sizes: np.ndarray) -> np.ndarray:
    return np.digitize(sizes**2, [SMALL_AREA, MEDIUM_AREA])


def class_counts(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> Figure:
    """Objects of each class, as a share of its split so that splits of any size compare.

    Args:
        counts: {split: objects of each class}, in the order of `classes`.
        classes: class names.
    """
    counts = {name: np.asarray(c, float) for name, c in counts.items()}
    if not counts or not len(classes):
        return empty('No classes.')
    fig = new_figure(7.5, 1.3 + 0.27 * len(classes))
    ax = style_axes(fig.subplots(), xlabel='share of the objects of the split (%)', grid='x')
    height = 0.8 / len(counts)
    for index, (name, count) in enumerate(counts.items()):
        ax.barh(
            np.arange(len(classes)) + (index - (len(counts) - 1) / 2) * height,
            100 * count / max(count.sum(), 1),
            height,
            color=COLOURS[(2, 1, 4, 3)[index % 4]],
            hatch=HATCHES[(2, 1, 0, 3)[index % 4]],
            edgecolor='white',
            label=f'{name} ({int(count.sum()):,} objects)',
        )
    ax.set_yticks(range(len(classes)), classes)
    ax.invert_yaxis()
    fig.legend(loc='outside upper right', ncols=len(counts), frameon=False, fontsize=TEXT - 1)
    alt = [
        f'{name}: {int(c.sum()):,} objects, {classes[int(c.argmin())]} the rarest class with '
        f'{int(c.min()):,}, {classes[int(c.argmax())]} the commonest with {int(c.max()):,}'
        for name, c in counts.items()
    ]
    fig.alt = f'Objects by class. {". ".join(alt)}.'
    return fig
