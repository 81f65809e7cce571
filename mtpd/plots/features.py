"""Feature maps beside their images. Images are RGB uint8 (H, W, 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .figure import INK, TEXT, Figure, break_label, empty, new_figure


def feature_maps(
    maps: Sequence[tuple[str, np.ndarray]] | Sequence[Sequence[tuple[str, np.ndarray]]],
    image: np.ndarray | Sequence[np.ndarray] | None = None,
    row_titles: Sequence[str] = (),
    quantity: str = 'mean |activation| over channels',
) -> Figure:
    """Feature maps on one scale that all panels share, so that brightness can be compared.

    Args:
        maps: (title, (H, W) array) for each column, or a list of such rows.
        image: the image (or one a row), RGB uint8 (H, W, 3), shown first.
        row_titles: names of the rows.
        quantity: what the numbers are; written beside the scale.
    """
    if not len(maps):
        return empty('No feature maps.')
    rows = maps if not isinstance(maps[0][0], str) else [maps]
    images = [image] * len(rows) if image is None or hasattr(image, 'shape') else list(image)
    first = image is not None
    columns = max(len(row) for row in rows) + first
    values = np.concatenate([np.ravel(a) for row in rows for _, a in row])
    low, high = np.percentile(values, [0.5, 99.5])
    fig = new_figure(1.9 * columns + 0.8, 1.95 * len(rows) + 0.75, photo=True)
    axes = fig.subplots(len(rows), columns, squeeze=False)
    shown = None
    for r, row in enumerate(rows):
        for ax in axes[r]:
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
        if first:
            axes[r][0].imshow(images[r])
            axes[r][0].set_title('' if r else 'image', fontsize=TEXT - 0.5, color=INK)
        for c, (title, array) in enumerate(row):
            ax = axes[r][c + first]
            shown = ax.imshow(array, cmap='viridis', vmin=low, vmax=high, interpolation='nearest')
            if r == 0 or title != rows[0][c][0]:
                ax.set_title(break_label(title), fontsize=TEXT - 0.5, color=INK)
        if r < len(row_titles):
            axes[r][0].set_ylabel(row_titles[r], fontsize=TEXT - 0.5, color=INK)
    bar = fig.colorbar(shown, ax=axes, shrink=0.8, pad=0.01)
    bar.set_label(f'{quantity}\n(one scale for all)', fontsize=TEXT - 1.5, color=INK)
    bar.ax.tick_params(labelsize=TEXT - 2)
    parts = [f'{title} mean {np.mean(array):.2f}' for row in rows for title, array in row]
    fig.alt = (
        f'Feature maps ({quantity}) on one scale from {low:.2f} to {high:.2f}: {", ".join(parts)}.'
    )
    return fig


def feature_differences(
    maps: Sequence[Sequence[tuple[str, np.ndarray]]], images: Sequence[np.ndarray], reference: str
) -> Figure:
    """Differences of feature strength on one scale around 0, which all panels share: blue weaker, red stronger.

    Args:
        maps: for each image (title, (H, W) array) of each column.
        images: RGB uint8 (H, W, 3), shown first.
        reference: what the differences are from.
    """
    if not any(maps):
        return empty('No feature maps to compare.')
    reach = float(
        np.percentile(np.abs(np.concatenate([a.ravel() for r in maps for _, a in r])), 99)
    )
    fig, axes = _image_panels(maps, images)
    shown = None
    for line, row in enumerate(maps):
        for column, (_, array) in enumerate(row, 1):
            look = dict(cmap='RdBu_r', vmin=-reach, vmax=reach, interpolation='nearest')
            shown = axes[line][column].imshow(array, **look)
    bar = fig.colorbar(shown, ax=axes, shrink=0.8, pad=0.01)
    bar.set_label(
        f'strength minus that of\n{reference} (one scale)', fontsize=TEXT - 1.5, color=INK
    )
    bar.ax.tick_params(labelsize=TEXT - 2)
    parts = [f'{title} mean {np.mean(array):+.2f}' for row in maps for title, array in row]
    fig.alt = f'Differences of feature strength from {reference}, from -{reach:.2f} to {reach:.2f}: {", ".join(parts)}.'
    return fig


def feature_colours(
    maps: Sequence[Sequence[tuple[str, np.ndarray]]], images: Sequence[np.ndarray], basis: str
) -> Figure:
    """Features as colours, see `mtpd.analysis.feature_maps.pca_colours`: (title, (H, W, 3) in 0..1) for each image and column."""
    if not any(maps):
        return empty('No feature maps.')
    fig, axes = _image_panels(maps, images)
    for line, row in enumerate(maps):
        for column, (_, array) in enumerate(row, 1):
            axes[line][column].imshow(array, interpolation='nearest')
    titles = ', '.join(title for title, _ in maps[0])
    fig.alt = f'Features as colours, by the first three principal components of {basis}, the others mapped linearly onto them: {titles}.'
    return fig


def _image_panels(maps: Sequence[Sequence], images: Sequence[np.ndarray]):
    """A figure with a row for each image, shown first, and titled columns."""
    columns = 1 + max(map(len, maps))
    fig = new_figure(1.9 * columns + 0.8, 1.95 * len(maps) + 0.75, photo=True)
    axes = fig.subplots(len(maps), columns, squeeze=False)
    for line, image in enumerate(images):
        for ax in axes[line]:
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
        axes[line][0].imshow(image)
    for column, title in enumerate(['image', *(title for title, _ in maps[0])]):
        axes[0][column].set_title(break_label(title), fontsize=TEXT - 0.5, color=INK)
    return fig, axes
