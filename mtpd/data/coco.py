"""COCO-format folders: what they contain, what is wrong with them."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from ..errors import MtpdError
from ..utils.files import file_sha256, file_version
from ..utils.paths import missing_folder_text
from .annotations import MIN_TRAINING_SIDE, Annotations, parse_annotations, read_id
from .classes import list_names
from .image_files import image_problems, paths_on_disk
from .layouts import locate_split


@lru_cache(maxsize=8)
def _read_file(path: Path, version: tuple[int, int]) -> Annotations:
    content = json.loads(path.read_text(encoding='utf-8-sig'))
    lists = content if isinstance(content, dict) else {}
    keys = ('images', 'annotations', 'categories')
    if absent := [key for key in keys if not isinstance(lists.get(key), list)]:
        raise MtpdError(
            f'annotation file {path} is not in COCO format: no list {", ".join(absent)} at its top level. '
            'Export it as COCO instances.'
        )
    return parse_annotations(content, f'annotation file {path}')


def _read(path: Path) -> Annotations:
    """Raises MtpdError: no such file, not JSON, or without the lists that COCO's format asks for."""
    if not path.is_file():
        raise MtpdError(f'annotation file {path}: no such file. Check data.root and data.splits.')
    try:
        return _read_file(path, file_version(path))
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


def read_annotations(path: Path) -> dict:
    """The annotation file's images, categories and annotations, in the one form that `annotations` describes.

    Callers share it: they change nothing in it.

    Raises:
        MtpdError: no such file, not JSON, without the lists that COCO's format asks for, or with a fault.
    """
    annotations = _read(path)
    if annotations.problems:
        raise MtpdError(' '.join(annotations.problems))
    return annotations.table


def class_names(path: Path) -> tuple[str, ...]:
    """Class names in the file's order, also of a file with faults elsewhere.

    Raises:
        MtpdError: as `read_annotations`, for a fault in the categories.
    """
    annotations = _read(path)
    names = tuple(item['name'] for item in annotations.table['categories'])
    if not names or None in names:
        raise MtpdError(' '.join(annotations.problems))
    return names


def class_problems(train: Path, val: Path) -> list[str]:
    """Why two annotation files don't have the same classes; their order doesn't matter."""
    names = {path: class_names(path) for path in (train, val)}
    alone = {
        path: [name for name in names[path] if name not in names[other]]
        for path, other in ((train, val), (val, train))
    }
    if not any(alone.values()):
        return []
    if all(alone.values()):
        return [
            f'{train} and {val} have different classes: {list_names(alone[train])} {_count(alone[train])} in the first only, '
            f'{list_names(alone[val])} {_count(alone[val])} in the second only. If these are the same classes, make the names '
            f'equal in "categories". Otherwise add to the second {new_category(val, alone[train][0])}, to the first '
            f'{new_category(train, alone[val][0])}{_and_the_rest(*alone.values())}.'
        ]
    path, other = (train, val) if alone[val] else (val, train)
    return [
        f'{path} lacks {len(alone[other])} of the {len(names[other])} classes of {other}: {list_names(alone[other])}. It needs '
        f'their names even without such objects: add {new_category(path, alone[other][0])} to its "categories"'
        f'{_and_the_rest(alone[other])}.'
    ]


def _count(names: list[str]) -> str:
    return f'({len(names)})'


def _and_the_rest(*lists: list[str]) -> str:
    return ', and so on' if any(len(names) > 1 for names in lists) else ''


def new_category(path: Path, name: str) -> str:
    """An entry for a class that an annotation file lacks, with an id that is free there."""
    ids = [read_id(item['file_id']) for item in _read(path).table['categories']]
    number = max((key for key in ids if isinstance(key, int)), default=0) + 1
    return json.dumps({'id': number, 'name': name}, ensure_ascii=False)


def split_size(path: Path) -> tuple[int, int]:
    """How many images and classes an annotation file has, also one with faults. Raises MtpdError as `read_annotations`."""
    table = _read(path).table
    return len(table['images']), len(table['categories'])


def mask_problems(path: Path) -> list[str]:
    """Why detectors can't train on, or be measured by, the masks of an annotation file; empty where all objects have one."""
    annotations = _read(path)
    if annotations.mask_problems:
        return list(annotations.mask_problems)
    objects = annotations.table['annotations']
    without = sum(item['segmentation'] is None for item in objects)
    if not without:
        return []
    return [f'{without} of {len(objects)} annotations of {path} have no mask (segmentation).']


def fingerprint(path: Path) -> str:
    """The annotation file's SHA-256, which any change alters."""
    return _cached_sha256(path, file_version(path))


@lru_cache(maxsize=8)
def _cached_sha256(path: Path, version: tuple[int, int]) -> str:
    return file_sha256(path)


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
        annotations = _read(path)
    except MtpdError as error:
        return [str(error)]
    version = folder.is_dir() and file_version(folder)
    check = (path, file_version(path), folder, version, corrupt_limit)
    if check in _valid_splits:
        return []
    problems = list(annotations.problems)
    if not folder.is_dir():
        problems.append(f'image folder {missing_folder_text(folder)} Check data.splits.')
    if problems:
        return problems
    images = annotations.table['images']
    paths = paths_on_disk(folder, [image['file_name'] for image in images])
    missing = [image['file_name'] for image in images if image['file_name'] not in paths]
    if len(missing) > corrupt_limit:
        return [_missing_images_problem(path, folder, split, missing, len(images))]
    if problem := _shared_file_problem(path, folder, paths):
        return [problem]
    present = [image for image in images if image['file_name'] in paths]
    problems = image_problems(present, paths, corrupt_limit - len(missing))
    if not problems:
        _valid_splits.add(check)
    return problems


def _missing_images_problem(
    path: Path, folder: Path, split: str | dict, missing: list[str], count: int
) -> str:
    key = f'data.splits.{split if isinstance(split, str) else "<split>"}'
    return (
        f'{len(missing)} of {count} images of {path} are not in {folder}, for example {missing[0][:200]}. Copy them there, '
        f'or name their folder: --cfg-options {key}.annotations={path} {key}.images=FOLDER, or leave them out: '
        f'data.corrupt_limit={len(missing)}.'
    )


def _shared_file_problem(path: Path, folder: Path, paths: dict[str, Path]) -> str:
    """Of names that come to one file, as where several folders were copied into one; empty where none do."""
    names: dict[Path, str] = {}
    for name, file in paths.items():
        other = names.setdefault(file, name)
        if other != name:
            return (
                f'{path} names {other[:200]} and {name[:200]}, but both are the same file {file.name} in {folder}: one has the '
                'wrong picture. Copy the images with their folders.'
            )
    return ''


def split_notes(root: Path, split: str | dict, training: bool) -> list[str]:
    """What is taken for granted in a split without problems, and what training leaves out."""
    path, folder = locate_split(root, split)
    annotations = _read(path)
    notes, images = list(annotations.notes), annotations.table['images']
    names = [image['file_name'] for image in images]
    paths = paths_on_disk(folder, names)
    missing = [name for name in names if name not in paths]
    if missing:  # no more than data.corrupt_limit
        notes.append(
            f'annotation file {path}: {len(missing)} of {len(images)} images are not in {folder} and are left out, for example '
            f'{missing[0][:200]}.'
        )
    others = [
        (name, file)
        for name, file in paths.items()
        if Path(folder, name) != file and not Path(folder, name).is_file()
    ]
    if others:
        name, file = others[0]
        notes.append(
            f'annotation file {path}: {len(others)} images have another spelling in {folder}, for example {name} is '
            f'{file.name}.'
        )
    if training:
        with_objects = {item['image_id'] for item in annotations.table['annotations']}
        empty = sum(image['id'] not in with_objects for image in images)
        if empty:
            notes.append(
                f'annotation file {path}: {empty} of {len(images)} images have no objects, and training leaves them out, '
                'as mmdet does.'
            )
    return notes


def thin_images(root: Path, split: str | dict, longest: int, training: bool) -> list[str]:
    """The first image of a split that resizing leaves without a row or column, where OpenCV fails; with the fix.

    Args:
        longest: pixels of the longer side after resizing.
        training: mmdet trains on no image with a side under 32 pixels.
    """
    path, _ = locate_split(root, split)
    for item in read_annotations(path)['images']:
        short, long = sorted((item['width'], item['height']))
        is_used = not training or short >= MIN_TRAINING_SIDE
        if is_used and short / long * longest < 0.5:
            return [
                f'image {item["file_name"]} of {path} is {item["width"]} x {item["height"]} pixels. After '
                f'resizing to image.scale its shorter side has no pixel left: cut it into parts, or raise image.scale to {-(-long // (2 * short)) + 1}.'
            ]
    return []
