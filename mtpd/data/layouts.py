"""Where a dataset has its annotation files and images: as COCO lays them out, and as the usual tools do."""

from __future__ import annotations

import json
import mmap
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from ..errors import MtpdError
from ..utils.files import file_version


class Layout(NamedTuple):
    """Where a tool puts annotation files and images, below the dataset's folder; ``{split}`` is the split's name."""

    tool: str
    annotations: tuple[str, ...]
    images: tuple[str, ...]


COCO = Layout(
    'COCO',
    (
        *('annotations/{split}.json', 'annotations/{split}2017.json'),
        *('annotations/instances_{split}.json', 'annotations/instances_{split}2017.json'),
    ),
    ('{split}', '{split}2017', 'images/{split}', 'images/{split}2017', 'images', ''),
)
# An annotation file for each split. The first that is there counts.
LAYOUTS = (
    COCO,
    Layout('Roboflow', ('{split}/_annotations.coco.json',), ('{split}',)),
    Layout('FiftyOne', ('{split}/labels.json',), ('{split}/data',)),
    Layout('AIcrowd', ('{split}/annotations.json',), ('{split}/images', '{split}')),
    Layout('labelme2coco', ('{split}.json',), ('{split}', 'images/{split}', 'images', '')),
)
# One annotation file for all images.
SINGLE_LAYOUTS = (
    Layout('CVAT', ('annotations/instances_default.json',), ('images/default', 'images', '')),
    Layout('Label Studio', ('result.json',), ('images', '')),
    Layout('FiftyOne', ('labels.json',), ('data',)),
    Layout('Roboflow', ('_annotations.coco.json',), ('',)),
    Layout('Supervisely', ('annotations/instances.json',), ('images',)),
    Layout('labelme', ('annotations.json', 'dataset.json'), ('JPEGImages', 'images', '')),
)
OTHER_FORMATS = (
    ('VOC XML', '*/*.xml'),
    ('VOC XML', '*/*/*.xml'),
    ('YOLO text', '**/labels/*.txt'),
    ('YOLO text', '**/labels/*/*.txt'),
)
NAMES = (('train', 'training'), ('val', 'valid', 'validation'))  # of one and the same split
FILE_NAME = re.compile(rb'"file_name"\s*:\s*"((?:[^"\\]|\\.){1,4096}+)"')
JSON_FILES = 50  # so many are looked into where no layout fits


class Place(NamedTuple):
    """Annotation file and image folder of a split, and the layout by which they were recognised."""

    annotations: Path
    images: Path
    layout: Layout


def locate_split(root: Path, split: str | dict) -> tuple[Path, Path]:
    """Annotation file and image folder of a split.

    Args:
        root: the dataset's folder.
        split: a name such as ``'train'``, found in the first of `LAYOUTS` that has it; 'val' also as 'valid' or
            'validation', each in any capitals, and where neither 'train' nor 'val' is there in the first of
            `SINGLE_LAYOUTS`. Or ``{'annotations': ..., 'images': ...}``, relative to `root`.

    Returns:
        The two paths; of several image folders the one with the file's first image. Where there is no annotation file,
        COCO's first paths, which are then reported missing.
    """
    root = Path(root)
    if isinstance(split, dict):
        return root / split['annotations'], root / split['images']
    if place := recognised_place(root, split):
        return place.annotations, place.images
    file = root / COCO.annotations[0].format(split=split)
    return file, _image_folder(root, COCO, _spellings(split), file)


def recognised_place(root: Path, split: str) -> Place | None:
    """Where a split lies by one of the layouts; None where none of them fits."""
    if place := place_of_split(root, split):
        return place
    if split.lower() in NAMES[1] and not place_of_split(root, 'train'):
        return single_place(root)
    return None


def place_of_split(root: Path, split: str) -> Place | None:
    """Where a split with an annotation file for itself lies; None where there is none."""
    names = _spellings(split)
    for layout in LAYOUTS:
        for pattern in layout.annotations:
            for name in names:
                if (file := root / pattern.format(split=name)).is_file():
                    folder = _image_folder(root, layout, [name, *names], file)
                    return Place(file, folder, layout)
    return None


def single_place(root: Path) -> Place | None:
    """Where the one annotation file of a dataset without splits lies; None where there is none."""
    for layout in SINGLE_LAYOUTS:
        for pattern in layout.annotations:
            if (file := root / pattern).is_file():
                return Place(file, _image_folder(root, layout, [''], file), layout)
    return None


def _spellings(split: str) -> list[str]:
    """A split's name, and the others that it may have."""
    others = next((names for names in NAMES if split.lower() in names), ())
    words = (split, *others)
    cases = ((word, word.lower(), word.capitalize(), word.upper()) for word in words)
    return list(dict.fromkeys(chain.from_iterable(cases)))


def _image_folder(root: Path, layout: Layout, names: list[str], annotations: Path) -> Path:
    """The first of a layout's folders that has the file's first image, else the first that is there.

    Where only one bears the split's name, and images have no folder in theirs, no image is looked for.
    """
    by_split = [p.format(split=names[0]) for p in layout.images if '{split}' in p]
    existing = [folder for name in by_split if (folder := root / name).is_dir()]
    if len(existing) == 1 and '/' not in first_image_name(annotations):
        return existing[0]
    folders = [root / pattern.format(split=name) for pattern in layout.images for name in names]
    if folder := _folder_of_images(folders, annotations):
        return folder
    return next((path for path in folders if path != root and path.is_dir()), folders[0])


def _folder_of_images(folders: Iterable[Path], annotations: Path) -> Path | None:
    name = first_image_name(annotations)
    return next((folder for folder in folders if name and _is_file(folder / name)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def first_image_name(annotations: Path) -> str:
    """The first ``file_name`` of an annotation file, with ``/`` between folders; '' where there is none.

    The file is searched and not parsed: COCO's own takes seconds.
    """
    try:
        return _search_image_name(annotations, file_version(annotations))
    except OSError:  # no such file
        return ''


@lru_cache(maxsize=64)
def _search_image_name(path: Path, version: tuple[int, int]) -> str:
    try:
        with (
            path.open('rb') as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            match = FILE_NAME.search(content)
            return json.loads(b'"%s"' % match[1]).replace('\\', '/') if match else ''
    except (OSError, ValueError):  # an empty file; none of text
        return ''


def class_file(root: Path, splits: Mapping[str, str | dict]) -> Path:
    """The annotation file that a dataset's classes come from: of train, or of val where there is none of train.

    Raises:
        MtpdError: there is neither.
    """
    train, val = (locate_split(root, splits[name])[0] for name in ('train', 'val'))
    if not train.is_file() and not val.is_file():
        raise MtpdError(missing_split_text(root, 'val', splits['val']))
    return train if train.is_file() else val


# What is said of a layout


def describe_layout(root: Path, splits: Mapping[str, str | dict]) -> str:
    """What was recognised in place of COCO's own layout, in a line; '' where nothing is to be said.

    Args:
        splits: 'train' and 'val' as `locate_split` takes them.
    """
    root = Path(root)
    places = {name: recognised_place(root, s) for name, s in splits.items() if isinstance(s, str)}
    texts = [
        f"{place.layout.tool}'s layout: {_relative(place.annotations, root)}"
        + (', used as val' if place.layout in SINGLE_LAYOUTS else '')
        for name, place in places.items()
        if place and not (place.layout is COCO and _has_name(place.annotations, splits[name]))
    ]
    if len(texts) == 2 and texts[0].split(':')[0] == texts[1].split(':')[0]:
        texts = [f'{texts[0]},{texts[1].split(":", 1)[1]}']
    files = {locate_split(root, split)[0].resolve() for split in splits.values()}
    if len(files) < len(splits) and next(iter(files)).is_file():
        texts.append('train and val are the same file: AP is measured on the training images')
    return f'{root}: {"; ".join(texts)}' if texts else ''


def _has_name(annotations: Path, split: str) -> bool:
    return any(annotations.match(pattern.format(split=split)) for pattern in COCO.annotations)


def missing_splits(root: Path, splits: Mapping[str, str | dict]) -> dict[str, str]:
    """A message for each split whose annotation file is not there, by the names in `splits`."""
    return {
        name: missing_split_text(root, name, split)
        for name, split in splits.items()
        if not locate_split(root, split)[0].is_file()
    }


def missing_split_text(root: Path, name: str, split: str | dict) -> str:
    """The message for a split whose annotation file is not there: what was looked for, and what to type.

    Args:
        name: 'train' or 'val', the key of `data.splits`.
        split: its value.
    """
    root, file = Path(root), locate_split(root, split)[0]
    text = f'annotation file {file}: no such file.'
    if isinstance(split, dict):
        return f'{text} Correct data.splits.{name}.annotations, a path below data.root ({root}).'
    other = 'val' if name == 'train' else 'train'
    other_place = place_of_split(root, other)
    single = None if other_place else single_place(root)
    if single:
        return (
            f"{text} The folder has {single.layout.tool}'s layout, one file for all images "
            f'({_relative(single.annotations, root)}), and training needs two. {_split_advice(root)}'
        )
    looked_for = ', '.join(layout.annotations[0].format(split=split) for layout in LAYOUTS[1:])
    text += f' {looked_for} and the other usual names (docs/own-data.md) are missing, too.'
    files = [path for path in _coco_files(root) if not (other_place and path == other_place[0])]
    if files:
        text += f' Name the files: --cfg-options {_option_words(name, files[0], root)}'
        rest = ', '.join(_relative(path, root) for path in files[1:4])
        return f'{text} (There is {rest}, too.)' if rest else text
    if other_place:
        return f'{text} Only {other} is there. {_split_advice(root)}'
    if kind := _other_format(root):
        return f'{text} The annotations are {kind}: docs/own-data.md has the command that converts them to COCO.'
    words = _option_words(name, root / 'FILE.json', root)
    return f'{text} Correct data.root, or name the files: --cfg-options {words}'


def _split_advice(root: Path) -> str:
    target = f'{root}-split'
    command = shlex.join(['mtpd', 'data', 'split', str(root), target])
    return f'Split it: `{command}`, then --cfg-options {shlex.quote(f"data.root={target}")}'


def _option_words(name: str, file: Path, root: Path) -> str:
    """What names a split's files on the command line; FOLDER where the images are not near."""
    folder = images_near(file, root)
    images = _relative(folder, root) if folder else 'FOLDER'
    values = {'annotations': _relative(file, root), 'images': images}
    return ' '.join(
        shlex.quote(f'data.splits.{name}.{key}={_as_text(value)}') for key, value in values.items()
    )


def _as_text(value: str) -> str:
    """A value that --cfg-options reads as text, of a folder named 2017, too."""
    return repr(value) if re.fullmatch(r'[\d._+-]*\d|None|True|False', value) else value


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _coco_files(root: Path) -> list[Path]:
    """JSON files below a folder that name images."""
    files = chain.from_iterable(root.glob(f'{depth}*.json') for depth in ('', '*/', '*/*/'))
    return [path for path in sorted(islice(files, JSON_FILES)) if first_image_name(path)]


def images_near(annotations: Path, root: Path) -> Path | None:
    """The folder beside an annotation file, or at most two levels below `root`, that has its first image."""
    return _folder_of_images(_folders_near(annotations, root), annotations)


def _folders_near(file: Path, root: Path) -> Iterator[Path]:
    for folder in dict.fromkeys((file.parent, root)):
        yield folder
        for pattern in ('*', '*/*'):
            yield from (path for path in sorted(folder.glob(pattern)) if path.is_dir())


def _other_format(root: Path) -> str:
    """The format of annotations that are not COCO's; '' where there are none."""
    return next((kind for kind, glob in OTHER_FORMATS if any(root.glob(glob))), '')
