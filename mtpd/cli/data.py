"""`mtpd data ...`: make, fetch or split datasets."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import MtpdError
from .options import PATH, Command

SPLIT = click.Choice(['train', 'val'])


@click.group()
def data() -> None:
    """Make, fetch or split datasets."""


@data.command()
@click.option(
    '--root', default='data', show_default=True, type=PATH, help='The folder that gets them.'
)
@click.option('--train', default=2000, show_default=True, help='Training scenes.')
@click.option('--val', default=200, show_default=True, help='Validation scenes.')
@click.option('--size', default=128, show_default=True, help='Side of a scene in pixels.')
@click.option('--seed', default=0, show_default=True)
def digits(root: Path, train: int, val: int, size: int, seed: int) -> None:
    """Make DigitScenes below ROOT, or check the ones that are there."""
    from ..data.digit_scenes import changed_splits, make_digit_scenes

    folder = make_digit_scenes(root, train, val, size, seed)
    if changed := changed_splits(folder):
        raise MtpdError(
            f'{folder}: files of {", ".join(changed)} have changed. Remove the folder and make the scenes again.'
        )
    click.echo(f'{folder}: {train} + {val} scenes of {size} x {size} pixels, checksums correct')


@data.command(cls=Command)
@click.option(
    '--root', default='data/coco', show_default=True, type=PATH, help='The folder that gets it.'
)
@click.option(
    '--split',
    'splits',
    multiple=True,
    type=SPLIT,
    help='One or both: --split train val. Default: both.',
)
@click.argument('more', nargs=-1, type=SPLIT, metavar='')
@click.option('--server', envvar='MTPD_COCO_SERVER', help='A mirror with the same archives.')
@click.option('--remove-zips', is_flag=True, help='Remove the archives after the check.')
def coco(root: Path, splits, more, server: str | None, remove_zips: bool) -> None:
    """Fetch COCO 2017 into ROOT, or check what is there. It has 20 GB, 40 GB with what it unpacks to.

    The download continues where it was interrupted. Sizes and SHA-256 of the archives are compared with those of
    TensorFlow Datasets, because COCO publishes none. Terms of use: https://cocodataset.org/#termsofuse
    """
    from ..data.coco_download import SERVER, download_coco

    download_coco(
        root, (*splits, *more) or ('train', 'val'), server or SERVER, remove_zips, click.echo
    )


@data.command()
@click.argument('source', type=click.Path(exists=True, path_type=Path))
@click.argument('out', type=click.Path(path_type=Path))
@click.option(
    '--val',
    default=0.2,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help='Share of the images that go into val.',
)
@click.option('--seed', default=0, show_default=True)
@click.option(
    '--images',
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the images. Default: the layout's, or one near the file.",
)
def split(source: Path, out: Path, val: float, seed: int, images: Path | None) -> None:
    """Split a dataset with one annotation file into train and val.

    SOURCE is the dataset's folder or its annotation file, and is not changed. OUT gets two annotation files and a link to
    the images.
    """
    from ..data.splitting import split_dataset

    click.echo(split_dataset(source, out, val, seed, images))
