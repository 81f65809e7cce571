"""Image files: a sample of a split is decoded as training does it, and compared with the annotation file."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path

from PIL import Image

SAMPLE = 64  # images of a split
MOST_PIXELS = 178_956_970  # Pillow's limit: 0.5 GB decoded, in each data worker


def problems(items: list[dict], folder: Path, limit: int = 0) -> list[str]:
    """Images of the list that can't be trained on: the smallest and largest by what it says, and some in between.

    Args:
        items: the annotation file's images, checked (`annotations.check`), whose files are there.
        limit: as many that are corrupt are no problem.
    """
    large = [item for item in items if item['width'] * item['height'] > MOST_PIXELS]
    if large:
        return [_too_large(large[0]['file_name'], large[0]['width'], large[0]['height'])]
    ordered = sorted(items, key=lambda item: item['width'] * item['height'])
    step = max(1, (len(items) - 1) / (SAMPLE - 1))
    chosen = {round(k * step) for k in range(SAMPLE) if round(k * step) < len(items)}
    found = [_problem(ordered[place], folder) for place in sorted(chosen)]
    found = [text for text in found if text]
    corrupt = [text for text in found if isinstance(text, Corrupt)]
    if len(corrupt) <= limit:
        found = [text for text in found if not isinstance(text, Corrupt)]
        corrupt = []
    if len(found) > 5:
        found = [
            *found[:5],
            f'{len(found) - 5} more of {len(chosen)} images looked at in {folder}.',
        ]
    if corrupt:
        found[-1] += (
            f' data.corrupt_limit is {limit}: {len(corrupt)} or more leaves such images out.'
        )
    return found


class Corrupt(str):
    """What is wrong with a file that cannot be decoded, as opposed to one that does not fit the annotations."""


def _problem(item: dict, folder: Path) -> str | None:
    path = folder / item['file_name']
    try:
        told = path.stat()
    except OSError as error:
        return Corrupt(f'image {path} cannot be read ({error.strerror}).')
    return _decoded(path, (told.st_mtime_ns, told.st_size), item['width'], item['height'])


@lru_cache(maxsize=4 * SAMPLE)
def _decoded(path: Path, changed: tuple[int, int], width: int, height: int) -> str | None:
    """What is wrong with one image file. OpenCV, which training reads with, takes half an image for a whole one."""
    import mmcv

    if not changed[1]:
        return Corrupt(f'image {path} is empty (0 bytes). Fetch or export it again.')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with Image.open(path) as image:
                if image.width * image.height > MOST_PIXELS:
                    return _too_large(path, *image.size)
                image.load()
    except Image.DecompressionBombError:
        return f'image {path} has more than {MOST_PIXELS:,} pixels, which are the most: cut it into smaller ones.'
    except Exception as error:  # by its format, each has its own
        return Corrupt(
            f'image {path} is damaged, cut short or no image ({error}). Fetch or export it again.'
        )
    try:
        pixels = mmcv.imread(str(path))
    except Exception:  # OpenCV's assertions
        pixels = None
    if pixels is None:
        return Corrupt(
            f'image {path} is of a kind that OpenCV cannot read. Convert it to JPEG or PNG.'
        )
    if (pixels.shape[1], pixels.shape[0]) != (width, height):
        return (
            f'image {path} is {pixels.shape[1]} x {pixels.shape[0]} pixels, turned as its EXIF data says, and the '
            f'annotation file says {width:g} x {height:g}: its boxes would lie elsewhere. Correct its size there, or '
            'turn the image.'
        )
    return None


def _too_large(name: str | Path, width: float, height: float) -> str:
    return f'image {name} has {width:g} x {height:g} pixels, {MOST_PIXELS:,} are the most: cut it into smaller ones.'
