"""Image files of a split: under which name each lies on the disk, and what is wrong with a sample of them."""

from __future__ import annotations

import os
import unicodedata
import warnings
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from ..utils.files import file_version

MAX_PIXELS = 178_956_970  # Pillow's limit: 0.5 GB decoded, in each data worker
SAMPLE_SIZE = 64  # images of a split that are decoded
EXIF_ORIENTATION = 0x0112


# Names


def path_on_disk(folder: str | Path, name: str) -> Path | None:
    """Where the image `name` of an annotation file lies in the image folder; None where it doesn't.

    The name may have backslashes, another case or another form of Unicode than the file, or other folders before it,
    if one file alone fits.
    """
    path = Path(folder, name)
    return path if _is_file(path) else _other_spelling(Path(folder), name)


def paths_on_disk(folder: Path, names: list[str]) -> dict[str, Path]:
    """`path_on_disk` of those names that are there. The folder is listed: a stat for each file takes minutes on a network disk.

    The listing is made anew, and `path_on_disk` goes on with it: what changed in a subfolder is seen here.
    """
    _names_by_comparable.cache_clear()
    parts = {name.rpartition('/')[0] for name in names}
    listed = {
        f'{part}/{file}' if part else file for part in parts for file in _file_names(folder / part)
    }
    paths = {
        name: folder / name if name in listed else path_on_disk(folder, name) for name in names
    }
    return {name: path for name, path in paths.items() if path}


def _other_spelling(folder: Path, name: str) -> Path | None:
    if not folder.is_dir():
        return None
    relative = _comparable(name).strip('/')
    while relative:
        matches = _names_by_comparable(folder, file_version(folder)).get(relative, ())
        if matches:
            path = folder / matches[0]
            return path if len(matches) == 1 and _is_file(path) else None
        relative = relative.partition('/')[2]
    return None


@lru_cache(maxsize=8)
def _names_by_comparable(folder: Path, version: tuple[int, int]) -> dict[str, list[str]]:
    """All files below a folder, by what their names are compared by."""
    names: dict[str, list[str]] = {}
    for parent, _, files in os.walk(folder):
        relative = Path(parent).relative_to(folder)
        for file in files:
            name = (relative / file).as_posix()
            names.setdefault(_comparable(name), []).append(name)
    return names


def _comparable(name: str) -> str:
    return unicodedata.normalize('NFC', name.replace('\\', '/')).casefold()


def _file_names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a null
        return False


# A sample


class ImageProblem(NamedTuple):
    """What is wrong with an image file: whether it can't be decoded, or does not fit its annotations."""

    text: str
    corrupt: bool = False


def image_problems(images: list[dict], paths: dict[str, Path], corrupt_limit: int = 0) -> list[str]:
    """What is wrong with a sample of a split's image files: the smallest, the largest, and some in between.

    Args:
        images: an annotation table's.
        paths: where each lies, by its file_name.
        corrupt_limit: how many may be corrupt.
    """
    for image in images:
        if image['width'] * image['height'] > MAX_PIXELS:
            return [_too_large_problem(image['file_name'], image['width'], image['height']).text]
    by_size = sorted(images, key=lambda image: image['width'] * image['height'])
    step = max(1, (len(images) - 1) / (SAMPLE_SIZE - 1))
    places = {round(k * step) for k in range(SAMPLE_SIZE) if round(k * step) < len(images)}
    problems = [_image_problem(by_size[place], paths) for place in sorted(places)]
    corrupt = [problem.text for problem in problems if problem and problem.corrupt]
    texts = [problem.text for problem in problems if problem and not problem.corrupt]
    if len(corrupt) > corrupt_limit:
        texts = corrupt + texts
    if len(texts) > 5:
        more = f'{len(texts) - 5} more of the {len(places)} images that were checked.'
        texts = [*texts[:5], more]
    if len(corrupt) > corrupt_limit:
        texts[-1] += (
            f' data.corrupt_limit is {corrupt_limit}: {len(corrupt)} or more leaves such images out.'
        )
    return texts


def _image_problem(image: dict, paths: dict[str, Path]) -> ImageProblem | None:
    path = paths[image['file_name']]
    try:
        version = file_version(path)
    except OSError as error:
        return ImageProblem(f'image {path} cannot be read ({error.strerror}).', corrupt=True)
    if not version[1]:
        text = f'image {path} is empty (0 bytes). Fetch or export it again.'
        return ImageProblem(text, corrupt=True)
    return _decoding_problem(path, version, image['width'], image['height'])


@lru_cache(maxsize=4 * SAMPLE_SIZE)
def _decoding_problem(
    path: Path, version: tuple[int, int], width: int, height: int
) -> ImageProblem | None:
    """Decodes an image file as training does, again after it was written to (`version`)."""
    try:
        with warnings.catch_warnings(action='ignore'), Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return _too_large_problem(path, *image.size)
            turned = image.getexif().get(EXIF_ORIENTATION, 1) > 4
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        cause = 'OpenCV cannot read it'
    except Image.DecompressionBombError:
        return ImageProblem(
            f'image {path} has more than {MAX_PIXELS:,} pixels, the limit: cut it into smaller images.'
        )
    except Exception as error:  # by its format, each has its own
        pixels, cause = None, error
    if pixels is None:
        text = f'image {path} is damaged, cut short or not an image ({cause}). Fetch or export it again, as JPEG or PNG.'
        return ImageProblem(text, corrupt=True)
    if (pixels.shape[1], pixels.shape[0]) != (width, height):
        as_read = f'{pixels.shape[1]} x {pixels.shape[0]} pixels'
        if turned and pixels.shape[:2] == (width, height):
            return ImageProblem(
                f'image {path} is {as_read}, turned as its EXIF data says, and the annotation file says {width:g} x '
                f'{height:g}: its boxes would be misplaced. Turn the boxes, width and height there, or export the images '
                'without EXIF orientation.'
            )
        return ImageProblem(
            f'image {path} is {as_read}, and the annotation file says {width:g} x {height:g}. Was the image resized '
            'after it was annotated? Then its boxes are misplaced: export both again. Otherwise correct width and height there.'
        )
    return None


def _too_large_problem(name: str | Path, width: float, height: float) -> ImageProblem:
    return ImageProblem(
        f'image {name} has {width:g} x {height:g} pixels, more than the limit of {MAX_PIXELS:,}: cut it into smaller images.'
    )
