"""Images of a training split to try things out on: those that need most memory first, then any."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

from mmcv import rescale_size

from ..config.recipe import Recipe
from ..data import coco
from ..data.annotations import SMALLEST_IMAGE
from ..data.readable import Readable
from ..engine import pipelines


def examples(recipe: Recipe, folder: Path, most: int, others: int, masks: bool):
    """A dataset of `most` + `others` images (fewer where the split has fewer), as training loads them, corrupt ones as there.

    First come those of the format, high or wide, with the larger batches: mmdet makes batches of one, padded to the
    widest and the highest image after resizing. Of it these two are the first, then those with the most objects. The
    others are a random choice.

    Args:
        folder: gets the annotation file.
        masks: with the objects' masks.
    """
    annotations, _ = recipe.split('train')
    table = coco.read(annotations)
    count = Counter(item['image_id'] for item in table['annotations'] if not item.get('iscrowd'))
    images = [
        item
        for item in table['images']
        if count[item['id']] and min(item['width'], item['height']) >= SMALLEST_IMAGE
    ]
    scale = pipelines.scale(recipe.cfg.image)
    sizes = {i['id']: rescale_size((i['width'], i['height']), scale) for i in images}
    formats = [[i for i in images if (i['width'] > i['height']) == wide] for wide in (True, False)]
    alike = max(formats, key=lambda some: _padded([sizes[i['id']] for i in some]))
    ranks = (lambda i: sizes[i['id']], lambda i: sizes[i['id']][::-1], lambda i: count[i['id']])
    by_width, by_height, by_objects = (sorted(alike, key=rank, reverse=True) for rank in ranks)
    drawn = random.Random(0).sample(images, min(len(images), others))
    ordered = [*by_width[:1], *by_height[:1], *by_objects[:most], *drawn]
    chosen = list({item['id']: item for item in ordered}.values())[: most + others]
    ids = {item['id'] for item in chosen}
    objects = [item for item in table['annotations'] if item['image_id'] in ids]
    path = folder / 'examples.json'
    path.write_text(json.dumps({**table, 'images': chosen, 'annotations': objects}))
    cfg = pipelines.dataset(recipe, 'train', masks=masks)
    data = pipelines.build(cfg | {'ann_file': str(path)})
    return Readable(data, recipe.cfg.data.get('corrupt_limit', 0))


def batches(data: Readable, size: int) -> Iterator[list[int]]:
    """Places of `examples` whose `most` was `size`, in batches of that many: the largest, then without end the others.

    Images of a batch are all high or all wide, as mmdet's sampler groups them; a batch of both would be padded to a
    square. Where there are too few of a format they come again.
    """
    alike = [place for place in range(len(data)) if data.flag[place] == data.flag[0]]
    yield list(islice(cycle(alike), size))
    waiting: dict[int, list[int]] = defaultdict(list)
    for place in cycle([*range(size, len(data)), *range(min(size, len(data)))]):
        group = waiting[data.flag[place]]
        group.append(place)
        if len(group) == size:
            yield waiting.pop(data.flag[place])


def _padded(sizes: list[tuple[int, int]]) -> int:
    """Pixels of an image that is as wide as the widest and as high as the highest."""
    return max((w for w, _ in sizes), default=0) * max((h for _, h in sizes), default=0)
