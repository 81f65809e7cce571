"""COCO 2017: fetched, unpacked, and checked against its annotation files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ..errors import MtpdError
from ..utils.download import fetch_file, unpack_zip
from ..utils.files import check_disk_space
from . import coco

# The bucket of images.cocodataset.org, which itself has no certificate of its own.
SERVER = 'https://s3.amazonaws.com/images.cocodataset.org'


@dataclass(frozen=True)
class Archive:
    """A zip file of the server: its path there, its length in bytes, its SHA-256, how many images it holds."""

    path: str
    size: int
    sha256: str
    images: int = 0

    @property
    def name(self) -> str:
        return Path(self.path).name


# COCO publishes no checksums. These, and the sizes, are the ones that TensorFlow Datasets recorded
# (tensorflow/datasets, tensorflow_datasets/url_checksums/coco.txt).
ARCHIVES = {
    'annotations': Archive(
        'annotations/annotations_trainval2017.zip',
        252907541,
        '113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268',
    ),
    'train': Archive(
        'zips/train2017.zip',
        19336861798,
        '69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929',
        images=118287,
    ),
    'val': Archive(
        'zips/val2017.zip',
        815585330,
        '4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05',
        images=5000,
    ),
}


def download_coco(
    root: str | Path,
    splits: Iterable[str] = ('val', 'train'),
    server: str = SERVER,
    remove_zips: bool = False,
    echo: Callable[[str], object] = print,
) -> None:
    """Makes ``annotations/instances_<split>2017.json`` and ``<split>2017/`` below `root`, where they are missing.

    The archives are compared with their sizes and SHA-256, each file with the archive's CRC-32, the images with
    the annotation file. Interrupted, it goes on where it was.

    Args:
        splits: 'train', 'val' or both.
        server: the official one, or the root of a mirror with the same archives.
        remove_zips: remove each archive after its files have been checked.

    Raises:
        MtpdError: an archive can't be fetched or is not the published one, there is no space, `root` holds other data.
    """
    root = Path(root)
    splits = sorted(set(splits), key=len)  # the small one first
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / '.download.lock'):
            _fetch_splits(root, splits, server)
            for split in splits:
                count, listing = ARCHIVES[split].images, _annotation_file(root, split)
                echo(f'{root / split}2017: {count} images, all that {listing} lists')
            for name in ('annotations', *splits) if remove_zips else ():
                (root / ARCHIVES[name].name).unlink(missing_ok=True)
    except OSError as error:
        raise MtpdError(
            f'{root} cannot be written to ({error.strerror or error}). Choose another folder with --root.'
        ) from error


def _fetch_splits(root: Path, splits: list[str], server: str) -> None:
    missing = [split for split in splits if _split_problems(root, split)]
    _check_space(root, missing)
    for split in missing:
        listing = _annotation_file(root, split)
        if not listing.is_file():
            _fetch_archive(root, 'annotations', f'annotations/{listing.name}', server)
        if _split_problems(root, split):
            _fetch_archive(root, split, f'{split}2017/', server)
        if problems := _split_problems(root, split):
            raise MtpdError(' '.join(problems))


def _annotation_file(root: Path, split: str) -> Path:
    return root / 'annotations' / f'instances_{split}2017.json'


def _split_problems(root: Path, split: str) -> list[str]:
    """As `coco.split_problems`. Raises MtpdError where the annotation file is not COCO 2017's."""
    path = _annotation_file(root, split)
    if path.is_file():
        (listed, _), expected = coco.split_size(path), ARCHIVES[split].images
        if listed != expected:
            raise MtpdError(
                f'{path} lists {listed} images and COCO 2017 has {expected}: '
                'it belongs to another dataset. Choose another folder with --root.'
            )
    places = {'annotations': f'annotations/{path.name}', 'images': f'{split}2017'}
    return coco.split_problems(root, places)


def _check_space(root: Path, splits: list[str]) -> None:
    """Raises MtpdError where the archives and what they unpack to, about as large, do not fit on the disk."""
    needed = 0
    for name in ('annotations', *splits) if splits else ():
        archive = ARCHIVES[name]
        zips = (root / archive.name, root / f'{archive.name}.part')
        present = [path for path in (*zips, *(root / f'{name}2017').glob('*')) if path.is_file()]
        needed += max(0, 2 * archive.size - sum(path.stat().st_size for path in present))
    check_disk_space(root, needed, 'COCO 2017, archives and unpacked,')


def _fetch_archive(root: Path, name: str, prefix: str, server: str) -> None:
    archive = ARCHIVES[name]
    url = f'{server.rstrip("/")}/{archive.path}'
    unpack_zip(fetch_file(url, root / archive.name, archive.sha256, archive.size), root, prefix)
