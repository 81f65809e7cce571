"""A tiny COCO-format folder, arranged as other tools lay out theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class Files(NamedTuple):
    """Where a split lies: annotation file, image folder, and what stands before the names in the file."""

    annotations: str
    images: str
    prefix: str = ''


# By the tool's name: train and val, or one file for all images.
SPLIT = {
    'COCO': (
        Files('annotations/instances_train2017.json', 'train2017'),
        Files('annotations/instances_val2017.json', 'val2017'),
    ),
    'Roboflow': (
        Files('train/_annotations.coco.json', 'train'),
        Files('valid/_annotations.coco.json', 'valid'),
    ),
    'CVAT with subsets': (
        Files('annotations/instances_Train.json', 'images/Train'),
        Files('annotations/instances_Validation.json', 'images/Validation'),
    ),
    'FiftyOne': (Files('train/labels.json', 'train/data'), Files('val/labels.json', 'val/data')),
    'AIcrowd': (
        Files('train/annotations.json', 'train/images'),
        Files('validation/annotations.json', 'validation/images'),
    ),
    'labelme2coco': (Files('train.json', 'images', 't_'), Files('val.json', 'images', 'v_')),
    'capitals': (Files('TRAIN/labels.json', 'TRAIN/data'), Files('VAL/labels.json', 'VAL/data')),
    # `images/train` is there, and is not the folder that the names start from.
    'names with a folder': (
        Files('annotations/train.json', 'images', 'train/'),
        Files('annotations/val.json', 'images', 'val/'),
    ),
    'names from the top': (
        Files('annotations/train.json', '', 'train/'),
        Files('annotations/val.json', '', 'val/'),
    ),
}
SINGLE = {
    'CVAT': Files('annotations/instances_default.json', 'images/default'),
    'CVAT, older': Files('annotations/instances_default.json', 'images'),
    'Label Studio': Files('result.json', '', 'images/'),
    'Label Studio, older': Files('result.json', 'images'),
    'FiftyOne': Files('labels.json', 'data'),
    'Roboflow': Files('_annotations.coco.json', ''),
    'Supervisely': Files('annotations/instances.json', 'images'),
    'labelme': Files('annotations.json', '', 'JPEGImages/'),
}


def arranged(source: Path, root: Path, **splits: Files) -> Path:
    """Moves splits of the COCO-format folder `source` into the layout of `root`: train=Files(...), val=..."""
    for split, files in splits.items():
        table = json.loads((source / f'annotations/{split}.json').read_text())
        for image in table['images']:
            file = source / split / image['file_name']
            image['file_name'] = files.prefix + image['file_name']
            target = root / files.images / image['file_name']
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
        (root / files.annotations).parent.mkdir(parents=True, exist_ok=True)
        (root / files.annotations).write_text(json.dumps(table))
    return root
