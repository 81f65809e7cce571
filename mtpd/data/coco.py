"""COCO-format folders: where their files lie, what they contain, what is wrong with them."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from ..errors import MtpdError


def locate(root: Path, split: str | dict) -> tuple[Path, Path]:
    """Annotation file and image folder of a split.

    Args:
        root: the dataset's folder.
        split: a name such as ``'train'``, found as ``annotations/[instances_]train[2017].json`` with the images
            in ``train[2017]/``, ``images/train[2017]/`` or ``images/``; or ``{'annotations': ..., 'images': ...}``.

    Returns:
        The two paths; where none of the usual names is there, the first of them (which then is reported missing).
    """
    root = Path(root)
    if isinstance(split, dict):
        return root / split['annotations'], root / split['images']
    files = [
        root / 'annotations' / f'{start}{split}{year}.json'
        for start in ('', 'instances_')
        for year in ('', '2017')
    ]
    folders = [
        root / name
        for name in (split, f'{split}2017', f'images/{split}', f'images/{split}2017', 'images')
    ]
    return (
        next((path for path in files if path.is_file()), files[0]),
        next((path for path in folders if path.is_dir()), folders[0]),
    )


@lru_cache(maxsize=8)
def _read(path: Path, modified: int) -> dict:
    return json.loads(path.read_text(encoding='utf-8'))


def read(path: Path) -> dict:
    """The annotation file's content.

    Raises:
        MtpdError: no such file, not JSON, or without the lists that COCO's format asks for.
    """
    if not path.is_file():
        raise MtpdError(f'annotation file {path}: no such file. Check data.root and data.splits.')
    try:
        table = _read(path, path.stat().st_mtime_ns)
    except (ValueError, RecursionError) as error:
        raise MtpdError(
            f'annotation file {path} is not JSON ({error}). Fetch or export it again.'
        ) from None
    lists = ('images', 'annotations', 'categories')
    absent = [
        key for key in lists if not isinstance(table, dict) or not isinstance(table.get(key), list)
    ]
    if absent:
        raise MtpdError(
            f'annotation file {path} is not in COCO format: no list {", ".join(absent)} at its top level. '
            'Export it as COCO instances.'
        )
    return table


def classes(path: Path) -> tuple[str, ...]:
    """Class names in the file's order: mmdet numbers the heads' outputs by it, whatever the category ids."""
    return tuple(str(item['name']) for item in read(path)['categories'])


def has_masks(path: Path) -> bool:
    return not without_masks(path)[0]


def without_masks(path: Path) -> tuple[int, int]:
    """How many objects have no mask, of how many there are."""
    objects = read(path)['annotations']
    return sum(not item.get('segmentation') for item in objects), len(objects)


def problems(root: Path, split: str | dict) -> list[str]:
    """What stops training or testing on a split: every finding with its fix; empty when all is well."""
    annotations, images = locate(root, split)
    try:
        table = read(annotations)
        found = (
            []
            if images.is_dir()
            else [f'image folder {images}: no such folder. Check data.splits.']
        )
        for key in ('images', 'categories'):
            if not table[key]:
                found.append(f'annotation file {annotations} lists no {key}.')
        names = classes(annotations)
    except MtpdError as error:
        return [str(error)]
    except (KeyError, TypeError) as error:
        return [f'annotation file {annotations}: a category lacks its id or name ({error}).']
    if len(set(names)) < len(names):
        found.append(
            f'annotation file {annotations}: a class name appears twice in {", ".join(names)}.'
        )
    if not found:
        missing = [
            item['file_name']
            for item in table['images']
            if not (images / item['file_name']).is_file()
        ]
        if missing:
            found.append(
                f'{len(missing)} of {len(table["images"])} images of {annotations} are not in {images}, '
                f'for example {missing[0]}.'
            )
    return found
