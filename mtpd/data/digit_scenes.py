"""DigitScenes, the built-in detection dataset: real digits drawn on real photographs, as a COCO-format folder.

Real handwritten digits (scikit-learn's ``load_digits``, 8 x 8) are enlarged, rotated, coloured and laid over crops of
real photographs (scikit-learn's sample images). Train and validation share neither digits nor photograph regions.

Every scene is drawn from ``default_rng([seed, split, index])`` with integer or IEEE-exact arithmetic and Pillow's
portable resampling, so a scene does not depend on how many others are made, nor on the machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle

from ..errors import MtpdError
from ..utils.files import write_json
from ..utils.processes import end_with_parent
from ..utils.progress import progress_bar

VERSION = 1  # raise it when the pixels of a seed change: it is part of the folder's name
SPLITS = ('train', 'val')
CLASSES = tuple('0123456789')
MIN_VISIBLE = 0.5  # no digit is covered or cut by the border beyond this share of its pixels
MIN_SIZE = 10  # pixels, height of the smallest digit


# A scene


@lru_cache(maxsize=1)
def _digits_and_photos() -> tuple[dict, dict]:
    """Digits per split and class as padded uint8 images, and photograph regions per split."""
    from sklearn.datasets import load_digits, load_sample_images

    raw = load_digits()
    digits: dict = {split: [] for split in SPLITS}
    for label in range(10):
        images = raw.images[raw.target == label]
        padded = np.pad(images * 15, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
        cut = len(images) * 3 // 4  # the set is ordered by writer: the later writers validate
        digits['train'].append(padded[:cut])
        digits['val'].append(padded[cut:])
    photos = load_sample_images().images
    regions = {
        'train': [photo[:, : photo.shape[1] * 70 // 100] for photo in photos],
        'val': [photo[:, photo.shape[1] * 73 // 100 :] for photo in photos],
    }
    return digits, regions


def _draw_background(rng: np.random.Generator, regions: list, size: int) -> np.ndarray:
    """A random square crop of a photograph, resized, perhaps mirrored, with changed light: (size, size, 3) float32."""
    photo = regions[rng.integers(len(regions))]
    side = int(rng.integers(48, min(photo.shape[:2]) + 1))
    top = int(rng.integers(photo.shape[0] - side + 1))
    left = int(rng.integers(photo.shape[1] - side + 1))
    crop = Image.fromarray(photo[top : top + side, left : left + side])
    image = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR)).astype(np.float32)
    if rng.random() < 0.5:
        image = image[:, ::-1]
    return image * rng.uniform(0.6, 1.1) + rng.uniform(-20, 30)


def _draw_glyph(rng: np.random.Generator, digit: np.ndarray, size: int) -> np.ndarray:
    """A digit enlarged, rotated and sheared: (h, w) uint8 coverage, cropped to its pixels."""
    top = math.log(0.75 * size / MIN_SIZE)
    scale = MIN_SIZE * math.exp(rng.random() * top) / 8
    angle = rng.uniform(-0.45, 0.45)
    # Rounded, because the last bit of sin and cos may differ between C libraries.
    cos, sin = round(math.cos(angle), 6), round(math.sin(angle), 6)
    stretch, shear = rng.uniform(0.85, 1.2), rng.uniform(-0.25, 0.25)
    side = math.ceil(12 * scale * 1.3)
    a, b = cos / (scale * stretch), sin / scale + shear / scale
    d, e = -sin / (scale * stretch), cos / scale
    half, centre = side / 2, digit.shape[0] / 2
    matrix = (a, b, centre - a * half - b * half, d, e, centre - d * half - e * half)
    glyph = np.asarray(
        Image.fromarray(digit).transform(
            (side, side), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC
        )
    )
    rows, columns = np.flatnonzero(glyph.max(1) > 96), np.flatnonzero(glyph.max(0) > 96)
    return glyph[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place_glyph(rng: np.random.Generator, glyph: np.ndarray, masks: list, size: int):
    """A position where enough of the new digit and of the earlier ones stays visible, or None.

    Returns the slices in the scene, the slices in the glyph and the earlier masks with the new digit cut out.
    """
    height, width = glyph.shape
    solid = glyph > 96
    for _ in range(8):
        top = int(rng.integers(-height // 4, size - height * 3 // 4 + 1))
        left = int(rng.integers(-width // 4, size - width * 3 // 4 + 1))
        rows = slice(max(top, 0), min(top + height, size))
        columns = slice(max(left, 0), min(left + width, size))
        part = (
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )
        if solid[part].sum() < max(MIN_VISIBLE * solid.sum(), 12):
            continue
        new = np.zeros((size, size), bool)
        new[rows, columns] = solid[part]
        cut = [(full, visible & ~new) for full, visible in masks]
        if all(visible.sum() >= max(MIN_VISIBLE * full, 12) for full, visible in cut):
            return (rows, columns), part, [*cut, (int(solid.sum()), new)]
    return None


def draw_scene(
    split: str, index: int, size: int = 128, seed: int = 0
) -> tuple[np.ndarray, list[dict]]:
    """One scene: the image (size, size, 3) RGB uint8 and its objects.

    Each object has ``label`` (0..9), ``mask`` (size, size) bool of its visible pixels and ``bbox`` [x, y, w, h] in
    pixels, tight around them.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    digits, regions = _digits_and_photos()
    image = _draw_background(rng, regions[split], size)
    count = int(rng.integers(3, 9)) * max(1, size // 128)
    masks: list = []
    labels: list[int] = []
    for _ in range(count):
        label = int(rng.integers(10))
        digit = digits[split][label][rng.integers(len(digits[split][label]))]
        glyph = _draw_glyph(rng, digit, size)
        placed = _place_glyph(rng, glyph, masks, size)
        if placed is None:
            continue
        where, part, masks = placed
        patch = image[where]
        ground = patch.mean()
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        if abs(colour.mean() - ground) < 45:  # kept apart from what lies behind it
            colour = colour + (60 if ground < 128 else -60)
        alpha = (glyph[part].astype(np.float32) / 240).clip(0, 1) * rng.uniform(0.55, 1.0)
        shade = (
            1
            + rng.uniform(-0.25, 0.25)
            * np.linspace(-1, 1, patch.shape[0], dtype=np.float32)[:, None, None]
        )
        image[where] = patch * (1 - alpha[..., None]) + colour * shade * alpha[..., None]
        labels.append(label)
    image += rng.uniform(2, 10) * rng.standard_normal(image.shape, np.float32)
    pixels = np.rint(image).clip(0, 255).astype(np.uint8)
    return pixels, [
        _annotated_object(label, mask) for label, (_, mask) in zip(labels, masks, strict=True)
    ]


def _annotated_object(label: int, mask: np.ndarray) -> dict:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {'label': label, 'mask': mask, 'bbox': [int(value) for value in box]}


# The dataset: written once, verified, reused


# Neither filtered nor deflated: noise hardly shrinks, and each update of a training would unpack it.
PLAIN_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 0, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)


def _write_scene(index: int, split: str, folder: Path, size: int, seed: int) -> list[dict]:
    """Writes an image; returns its objects' annotations."""
    pixels, objects = draw_scene(split, index, size, seed)
    _, encoded = cv2.imencode('.png', pixels[..., ::-1], PLAIN_PNG)
    (folder / split / f'{index:06d}.png').write_bytes(encoded.tobytes())
    annotations = []
    for item in objects:
        code = rle.encode(np.asfortranarray(item['mask'], np.uint8))
        annotations.append(
            {
                'image_id': index,
                'category_id': item['label'],
                'bbox': item['bbox'],
                'area': int(item['mask'].sum()),
                'segmentation': {'size': code['size'], 'counts': code['counts'].decode('ascii')},
                'iscrowd': 0,
            }
        )
    return annotations


def _write_split(folder: Path, split: str, count: int, size: int, seed: int, workers: int) -> str:
    """Writes images and annotation file of a split; returns a checksum over both."""
    (folder / split).mkdir(parents=True)
    write = partial(_write_scene, split=split, folder=folder, size=size, seed=seed)
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        drawn = pool.map(write, range(count), chunksize=50)
        written = list(progress_bar(f'{split} scenes', drawn, count))
    annotations = [item for objects in written for item in objects]
    table = {
        'info': {'description': f'DigitScenes {split}, seed {seed}, version {VERSION}'},
        'categories': [{'id': label, 'name': name} for label, name in enumerate(CLASSES)],
        'images': [
            {'id': i, 'file_name': f'{i:06d}.png', 'width': size, 'height': size}
            for i in range(count)
        ],
        'annotations': [{'id': i + 1, **item} for i, item in enumerate(annotations)],
    }
    write_json(folder / 'annotations' / f'{split}.json', table, indent=None)
    return _split_checksum(folder, split)


def _split_checksum(folder: Path, split: str) -> str:
    total = hashlib.sha256((folder / 'annotations' / f'{split}.json').read_bytes())
    for path in sorted((folder / split).iterdir()):
        total.update(path.read_bytes())
    return total.hexdigest()


def folder_name(train: int, val: int, size: int, seed: int) -> str:
    return f'v{VERSION}-{train}-{val}-{size}px-seed{seed}'


def is_complete(folder: Path, train: int, val: int) -> bool:
    """Whether the folder was written to its end and no image is missing (a quick look; see `changed_splits`)."""
    if not (folder / 'manifest.json').is_file():
        return False
    return all(
        (folder / split).is_dir() and sum(1 for _ in os.scandir(folder / split)) == count
        for split, count in zip(SPLITS, (train, val), strict=True)
    )


def changed_splits(folder: Path) -> list[str]:
    """The splits whose files no longer have the checksum that was written with them."""
    manifest = json.loads((folder / 'manifest.json').read_text())
    return [
        split for split in SPLITS if _split_checksum(folder, split) != manifest['sha256'][split]
    ]


def make_digit_scenes(
    root: Path, train: int = 2000, val: int = 200, size: int = 128, seed: int = 0
) -> Path:
    """Writes the dataset below `root` unless it is there; returns its folder (COCO layout).

    Args:
        train: how many scenes.
        val: how many scenes.
        size: width and height of a scene in pixels.

    Raises:
        MtpdError: a number is not positive, or the folder cannot be written.
    """
    if train < 1 or val < 1 or size < 64:
        raise MtpdError(
            f'DigitScenes needs at least 1 training and 1 validation scene of 64 pixels or more, '
            f'got train={train}, val={val}, size={size}. Raise data.scenes.train, .val or .size.'
        )
    folder = Path(root) / folder_name(train, val, size, seed)
    if is_complete(folder, train, val):
        return folder
    unfinished = folder.with_name(f'{folder.name}.{os.getpid()}.tmp')
    try:
        workers = len(os.sched_getaffinity(0))
        sums = {
            split: _write_split(unfinished, split, count, size, seed, workers)
            for split, count in zip(SPLITS, (train, val), strict=True)
        }
        write_json(
            unfinished / 'manifest.json',
            {'version': VERSION, 'seed': seed, 'size': size, 'sha256': sums},
        )
        os.sync()  # a crash of the machine may not leave a folder of empty images
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    except OSError as error:
        raise MtpdError(
            f'DigitScenes could not be written to {folder}: {error.strerror}. Free some space (about '
            f'{(train + val) * size * size * 3 / 1e6:.0f} MB) or point data.cache at a folder you may write to.'
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
