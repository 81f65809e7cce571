"""COCO-format folders: where their files lie, what they contain, what is wrong with them."""

from __future__ import annotations

import json
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
def _parse_json(path: Path, changed: tuple[int, int]) -> dict:
    return json.loads(path.read_text(encoding='utf-8'))


def _file_version(path: Path) -> tuple[int, int]:
    """Another pair after the file has been written to."""
    told = path.stat()
    return told.st_mtime_ns, told.st_size


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


def class_names(path: Path) -> tuple[str, ...]:
    """Class names in the file's order: mmdet numbers the heads' outputs by it, whatever the category ids.

    Raises:
        MtpdError: as `read`, and for a category without a name.
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


def split_problems(root: Path, split: str | dict, corrupt_limit: int = 0) -> list[str]:
    """What stops training or testing on a split: every finding with its fix; empty when all is well.

    Args:
        corrupt_limit: as many images may be missing or corrupt.
    """
    path, images = locate_split(root, split)
    try:
        table = read_annotations(path)
    except MtpdError as error:
        return [str(error)]
    found = list(_cached_annotation_problems(path, _file_version(path)))
    if not images.is_dir():
        found.append(f'image folder {images}: no such folder. Check data.splits.')
    if found:
        return found
    names = [item['file_name'] for item in table['images']]
    missing = {name for name in names if not _is_file(images / name)}
    if len(missing) > corrupt_limit:
        return [
            f'{len(missing)} of {len(names)} images of {path} are not in {images}, for example {next(n for n in names if n in missing)[:200]}.'
        ]
    there = [item for item in table['images'] if item['file_name'] not in missing]
    return validation.image_problems(there, images, corrupt_limit - len(missing))


def thin_images(root: Path, split: str | dict, longest: int, training: bool) -> list[str]:
    """Images of which resizing to `longest` pixels leaves no row or column, at which OpenCV fails.

    Args:
        training: mmdet leaves out images with a side under 32 pixels.
    """
    path, _ = locate_split(root, split)
    for item in read_annotations(path)['images']:
        short, long = sorted((item['width'], item['height']))
        if short / long * longest < 0.5 and not (training and short < 32):
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
