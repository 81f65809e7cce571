"""COCO-format folders: where their files lie, what they contain, what is wrong with them."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

from ..errors import MtpdError
from . import validation


def locate_split(root: Path, split: str | dict) -> tuple[Path, Path]:
    """Annotation file and image folder of a split.

    Args:
        root: the dataset's folder.
        split: a name such as ``'train'``, found as ``annotations/[instances_]train[2017].json`` with the images
            in ``train[2017]/``, ``images/train[2017]/`` or ``images/``; or ``{'annotations': ..., 'images': ...}``.

    Returns:
        The two paths: the first of the usual ones that exists, else the first, which is then reported missing.
    """
    root = Path(root)
    if isinstance(split, dict):
        return root / split['annotations'], root / split['images']
    stems = (split, f'{split}2017', f'instances_{split}', f'instances_{split}2017')
    files = [root / 'annotations' / f'{stem}.json' for stem in stems]
    names = (split, f'{split}2017', f'images/{split}', f'images/{split}2017', 'images')
    folders = [root / name for name in names]
    return (
        next((path for path in files if path.is_file()), files[0]),
        next((path for path in folders if path.is_dir()), folders[0]),
    )


@lru_cache(maxsize=8)
def _parse_json(path: Path, changed: tuple[int, int]) -> dict:
    return json.loads(path.read_text(encoding='utf-8'))


def _file_version(path: Path) -> tuple[int, int]:
    """Time and size, for caches: another pair after the file was written to."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def read_annotations(path: Path) -> dict:
    """The annotation file's content.

    Raises:
        MtpdError: no such file, not JSON, or without the lists that COCO's format asks for.
    """
    if not path.is_file():
        raise MtpdError(f'annotation file {path}: no such file. Check data.root and data.splits.')
    try:
        table = _parse_json(path, _file_version(path))
    except OSError as error:
        raise MtpdError(f'annotation file {path} cannot be read ({error.strerror}).') from None
    except UnicodeDecodeError as error:
        raise MtpdError(
            f'annotation file {path} is not UTF-8 ({error.reason} at byte {error.start}). Export it as UTF-8.'
        ) from None
    except (ValueError, RecursionError) as error:
        raise MtpdError(
            f'annotation file {path} is not JSON ({error}). Fetch or export it again.'
        ) from None
    lists = table if isinstance(table, dict) else {}
    keys = ('images', 'annotations', 'categories')
    if absent := [key for key in keys if not isinstance(lists.get(key), list)]:
        raise MtpdError(
            f'annotation file {path} is not in COCO format: no list {", ".join(absent)} at its top level. '
            'Export it as COCO instances.'
        )
    return table


def class_names(path: Path) -> tuple[str, ...]:
    """Class names in the file's order: mmdet numbers the heads' outputs by it, whatever the category ids.

    Raises:
        MtpdError: as `read_annotations`, and for a category without a name.
    """
    try:
        return tuple(str(item['name']) for item in read_annotations(path)['categories'])
    except (KeyError, TypeError):
        raise MtpdError(f'annotation file {path}: a category lacks its name.') from None


def has_masks(path: Path) -> bool:
    return not count_without_masks(path)[0]


def count_without_masks(path: Path) -> tuple[int, int]:
    """How many objects have no mask, of how many there are."""
    objects = read_annotations(path)['annotations']
    return sum(not item.get('segmentation') for item in objects), len(objects)


_valid_splits: set[tuple] = set()  # checked by this process, and nothing was wrong


def split_problems(root: Path, split: str | dict, corrupt_limit: int = 0) -> list[str]:
    """What stops training or testing on a split: each fault with its fix; empty when all is well.

    A split that passed is not checked again by the same process, unless its annotation file or image folder changes.

    Args:
        split: as `locate_split`.
        corrupt_limit: how many images may be missing or corrupt.
    """
    path, folder = locate_split(root, split)
    try:
        images = read_annotations(path)['images']
    except MtpdError as error:
        return [str(error)]
    version = _file_version(path)
    check = (path, version, folder, folder.is_dir() and _file_version(folder), corrupt_limit)
    if check in _valid_splits:
        return []
    problems = list(_cached_annotation_problems(path, version))
    if not folder.is_dir():
        problems.append(f'image folder {folder}: no such folder. Check data.splits.')
    if problems:
        return problems
    names = [image['file_name'] for image in images]
    missing = _missing_files(folder, names)
    if len(missing) > corrupt_limit:
        first = next(name for name in names if name in missing)
        return [
            f'{len(missing)} of {len(images)} images of {path} are not in {folder}, for example '
            f'{first[:200]}.'
        ]
    present = [image for image in images if image['file_name'] not in missing]
    problems = validation.image_problems(present, folder, corrupt_limit - len(missing))
    if not problems:
        _valid_splits.add(check)
    return problems


def _missing_files(folder: Path, names: list[str]) -> set[str]:
    """The names that are no files in the folder. It is listed: a stat for each file takes minutes on a network disk."""
    parts = {name.rpartition('/')[0] for name in names}
    listed = {
        f'{part}/{file}' if part else file for part in parts for file in _file_names(folder / part)
    }
    # A disk may take a name in another case or encoding than it lists.
    return {name for name in names if name not in listed and not _is_file(folder / name)}


def _file_names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()


def thin_images(root: Path, split: str | dict, longest: int, training: bool) -> list[str]:
    """The first image of a split of which resizing leaves no row or column, at which OpenCV fails, with the fix.

    Args:
        longest: pixels of the longer side after resizing.
        training: mmdet trains on no image with a side under 32 pixels.
    """
    path, _ = locate_split(root, split)
    for item in read_annotations(path)['images']:
        short, long = sorted((item['width'], item['height']))
        is_used = not training or short >= validation.MIN_TRAINING_SIDE
        if is_used and short / long * longest < 0.5:
            return [
                f'image {item["file_name"]} of {path} is {item["width"]} x {item["height"]} pixels, of which image.scale '
                f'leaves none across: cut it into parts, or raise image.scale to {-(-long // (2 * short)) + 1}.'
            ]
    return []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


@lru_cache(maxsize=8)
def _cached_annotation_problems(path: Path, changed: tuple[int, int]) -> tuple[str, ...]:
    return tuple(
        validation.annotation_problems(_parse_json(path, changed), f'annotation file {path}')
    )
