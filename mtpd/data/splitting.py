"""A dataset with one annotation file, split into train and val."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

from ..errors import MtpdError, RecipeError
from ..utils.files import make_writable_folder, write_json
from . import coco, layouts
from .annotations import read_id


def split_dataset(
    source: Path, out: Path, val: float = 0.2, seed: int = 0, images: Path | None = None
) -> str:
    """Writes ``annotations/train.json`` and ``annotations/val.json`` into `out`, and ``images``, a link to the images.

    An image goes into one of them with all its objects. Which one depends on its file name and the seed, not on the
    order in the file.

    Args:
        source: a folder with one annotation file (or with train alone), or that file; it is not changed.
        out: a folder that does not exist, or is empty.
        val: the share of the images that go into val.
        images: their folder, where it is not beside the annotation file.

    Returns:
        A line with the numbers of images and objects, and the classes without objects.

    Raises:
        MtpdError: nothing to split, faults in the dataset, or `out` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MtpdError(f'{out} is not empty, and nothing is overwritten: name another folder.')
    file, folder = _locate_source(source, images)
    place = {'annotations': str(file.absolute()), 'images': str(folder.absolute())}
    if problems := coco.split_problems(Path(), place):
        raise RecipeError(source, problems)
    table = json.loads(file.read_text(encoding='utf-8-sig'))
    names = sorted({image['file_name'] for image in table['images']})
    if len(names) < 2:
        raise MtpdError(f'{file} has one image: a split needs two or more.')
    random.Random(seed).shuffle(names)
    val_names = set(names[: min(max(1, round(val * len(names))), len(names) - 1)])
    parts = {'train': table | {}, 'val': table | {}}
    for split, part in parts.items():
        part['images'] = [
            i for i in table['images'] if (i['file_name'] in val_names) == (split == 'val')
        ]
        ids = {read_id(i['id']) for i in part['images']}
        part['annotations'] = [a for a in table['annotations'] if read_id(a['image_id']) in ids]
        if not part['annotations']:
            raise MtpdError(f'{split} would have no objects: give another --val or --seed.')
    make_writable_folder(out / 'annotations')
    try:
        (out / 'images').symlink_to(folder.resolve(), target_is_directory=True)
    except OSError as error:
        raise MtpdError(
            f'{out / "images"}: the link cannot be made ({error.strerror}). Name a folder on another disk.'
        ) from None
    files = {split: out / 'annotations' / f'{split}.json' for split in parts}
    for split, part in parts.items():
        write_json(files[split], part, indent=None)
    return f'{out}: ' + '; '.join(_summary(split, file) for split, file in files.items())


def _locate_source(source: Path, images: Path | None) -> tuple[Path, Path]:
    """The annotation file and the image folder."""
    if source.is_file():
        file, parent = source, source.absolute().parent
        root = parent.parent if parent.name == 'annotations' else parent
        folder = images or layouts.images_near(source.absolute(), root)
    else:
        train, val = (layouts.place_of_split(source, name) for name in ('train', 'val'))
        if train and val:
            raise MtpdError(f'{source} is split already: {train.annotations}, {val.annotations}.')
        place = train or layouts.single_place(source)
        if not place:
            raise MtpdError(
                f'{source} has no annotation file of a known layout (docs/own-data.md). Name the file: '
                f'mtpd data split FILE.json OUT --images FOLDER'
            )
        file, folder = place.annotations, images or place.images
    if not folder:
        raise MtpdError(f'the images of {file} are not near it. Name their folder: --images FOLDER')
    return file, folder


def _summary(split: str, annotations: Path) -> str:
    table = coco.read_annotations(annotations)
    counts = Counter(item['category_id'] for item in table['annotations'])
    absent = [item['name'] for item in table['categories'] if not counts[item['id']]]
    text = f'{split} {len(table["images"])} images, {counts.total()} objects'
    return f'{text}, none of {", ".join(absent)}' if absent else text
