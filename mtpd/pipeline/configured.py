"""The datasets of a plain mmdet config: another folder in their place, what is wrong with them."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
from collections.abc import Iterable
from pathlib import Path

from mmcv import Config
from mmdet.datasets import DATASETS, CocoDataset

from ..config.files import set_classes
from ..data import coco
from ..errors import RecipeError
from ..utils.paths import resolve

SPLITS = ('train', 'val', 'test')


def leaves(node: dict | list) -> list[dict]:
    """The dataset configs that name files, inside mmdet's wrappers (RepeatDataset, ConcatDataset, ...)."""
    if isinstance(node, (list, tuple)):
        return [leaf for item in node for leaf in leaves(item)]
    inner = node.get('dataset', node.get('datasets'))
    return leaves(inner) if inner else [node]


def use_folder(cfg: Config, root: Path, source: Path) -> None:
    """Puts a COCO-format folder in place of all datasets of a config, its classes into data and heads.

    Raises:
        RecipeError: no such folder, or a split of the config joins several datasets.
        MtpdError: neither split of it has a readable annotation file.
    """
    if not root.is_dir():
        raise RecipeError(source, [f'data.root {root}: no such folder.'])
    places = {'train': coco.locate(root, 'train'), 'val': coco.locate(root, 'val')}
    places['test'] = places['val']
    found = [place[0] for place in places.values() if place[0].is_file()] or [places['train'][0]]
    names = coco.classes(found[0])  # testing needs no training split
    for split in SPLITS:
        inside = leaves(cfg.data[split])
        if len(inside) != 1:
            text = f'data.{split} joins {len(inside)} datasets, which data.root cannot replace.'
            raise RecipeError(source, [text])
        for key in ('seg_prefix', 'proposal_file', 'data_root', 'separate_eval'):
            inside[0].pop(key, None)
        files = dict(zip(('ann_file', 'img_prefix'), map(str, places[split]), strict=True))
        inside[0].update(files, type='CocoDataset', classes=names)
    set_classes(cfg.model, len(names))


def settle(cfg: Config, source: Path) -> None:
    """Makes the paths of a config's datasets absolute, found as a recipe's."""
    for leaf in (leaf for split in SPLITS for leaf in leaves(cfg.data[split])):
        folder = leaf.pop('data_root', None) or ''
        for key in ('ann_file', 'img_prefix'):
            if isinstance(leaf.get(key), str):
                leaf[key] = str(resolve(str(Path(folder, leaf[key])), source))


def problems(cfg: Config, splits: Iterable[str], corrupt_limit: int = 0) -> list[str]:
    """As `coco.problems`, on the splits of a config."""
    found = []
    for split in splits:
        inside = leaves(cfg.data[split])
        if split == 'test' and len(inside) > 1:
            found.append(f'data.test joins {len(inside)} datasets: give one.')
        for leaf in inside:
            kind = DATASETS.get(leaf.get('type', ''))
            if not (kind and issubclass(kind, CocoDataset) and isinstance(leaf.ann_file, str)):
                found.append(
                    f'data.{split} is no COCO-format dataset ({leaf.get("type")}). Give one: '
                    '--cfg-options data.root=FOLDER'
                )
                continue
            if leaf.get('proposal_file'):
                found.append(
                    f'data.{split}.proposal_file {leaf.proposal_file} would be unpickled, which could run code: leave it out.'
                )
            found += _of_files(leaf, leaf.get('classes') or kind.CLASSES, corrupt_limit)
    return list(dict.fromkeys(found))


def _of_files(leaf: dict, classes: tuple[str, ...], corrupt_limit: int) -> list[str]:
    path = Path(leaf.ann_file)
    place = {'annotations': path, 'images': leaf.get('img_prefix') or ''}
    if found := coco.problems(Path(), place, corrupt_limit):
        return found
    if not isinstance(classes, str) and (unknown := set(classes) - set(coco.classes(path))):
        names = ', '.join(sorted(unknown)[:5])
        found.append(
            f'{path} lacks {len(unknown)} of the classes of the config: {names}. Classes follow '
            'from the data with --cfg-options data.root=FOLDER.'
        )
    if "'with_mask': True" in str(leaf.get('pipeline')) and not coco.has_masks(path):
        found.append(f'the detector trains on masks, and {path} has none.')
    return found
