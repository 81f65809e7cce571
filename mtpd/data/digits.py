"""DigitScenes, the built-in detection dataset, as a COCO-format folder: written once, verified, reused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from ..errors import MtpdError
from ..utils.files import write_json
from ..utils.parent import end_with_parent
from ..utils.progress import bar
from .scenes import SPLITS, scene

VERSION = 1  # raise it when the pixels of a seed change: it is part of the folder's name
CLASSES = tuple('0123456789')


def _write_scene(
    index: int, split: str, folder: Path, size: int, seed: int
) -> tuple[list[dict], str]:
    pixels, objects = scene(split, index, size, seed)
    path = folder / split / f'{index:06d}.png'
    Image.fromarray(pixels).save(path, compress_level=1)
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
    return annotations, hashlib.sha256(path.read_bytes()).hexdigest()


def _write_split(folder: Path, split: str, count: int, size: int, seed: int, workers: int) -> str:
    """Writes images and annotation file of a split; returns a checksum over both."""
    (folder / split).mkdir(parents=True)
    write = partial(_write_scene, split=split, folder=folder, size=size, seed=seed)
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        drawn = pool.map(write, range(count), chunksize=50)
        written = list(bar(f'{split} scenes', drawn, count))
    annotations = [item for objects, _ in written for item in objects]
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
    return _checksum(folder, split)


def _checksum(folder: Path, split: str) -> str:
    total = hashlib.sha256((folder / 'annotations' / f'{split}.json').read_bytes())
    for path in sorted((folder / split).iterdir()):
        total.update(path.read_bytes())
    return total.hexdigest()


def folder_name(train: int, val: int, size: int, seed: int) -> str:
    return f'v{VERSION}-{train}-{val}-{size}px-seed{seed}'


def is_complete(folder: Path, train: int, val: int) -> bool:
    """Whether the folder was written to its end and no image is missing (a quick look; contents: ``verify``)."""
    if not (folder / 'manifest.json').is_file():
        return False
    return all(
        (folder / split).is_dir() and sum(1 for _ in os.scandir(folder / split)) == count
        for split, count in zip(SPLITS, (train, val), strict=True)
    )


def verify(folder: Path) -> list[str]:
    """Splits whose files no longer have the checksum that was written with them."""
    manifest = json.loads((folder / 'manifest.json').read_text())
    return [split for split in SPLITS if _checksum(folder, split) != manifest['sha256'][split]]


def make(root: Path, train: int = 2000, val: int = 200, size: int = 128, seed: int = 0) -> Path:
    """Writes the dataset below ``root`` unless it is there; returns its folder (COCO layout).

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
