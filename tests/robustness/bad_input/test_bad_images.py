"""Images that are refused, and kinds of images that train."""

import io
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from helpers.place import call, passes, refuse
from mtpd.data import coco


def image(content: bytes | None):
    def make(place):
        place.image.write_bytes(content) if content is not None else place.image.unlink()
        return place.train()

    return make


def stored(path: Path, pixels: np.ndarray | Image.Image, **options) -> None:
    made = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    made.save(path, **options)


def truncated(place):
    place.image.write_bytes(place.image.read_bytes()[:3000])
    return place.train()


def truncated_jpeg(place):
    """OpenCV would give its lower half in grey, if it were read from the file."""
    buffer = io.BytesIO()
    stored(buffer, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), format='jpeg')
    place.image.with_suffix('.jpg').write_bytes(buffer.getvalue()[: buffer.tell() // 2])
    place.edit(lambda t: t['images'][1].update(file_name='000001.jpg'))
    return place.train()


def turned(place):
    """Lies 64 x 96 in the file, as which it is annotated; its EXIF data turns it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored(place.image.with_suffix('.jpg'), np.zeros((96, 64, 3), np.uint8), exif=exif)
    place.edit(lambda t: t['images'][1].update(file_name='000001.jpg', width=64, height=96))
    return place.train()


def of_another_size(place):
    stored(place.image, np.zeros((32, 32, 3), np.uint8))
    return place.train()


def huge(place):
    """20,000 x 20,000 by its header; nothing is decoded."""
    stored(place.image, Image.new('1', (20_000, 20_000)))
    return place.train()


def huge_by_its_list(place):
    place.edit(lambda t: t['images'][1].update(width=20_000, height=20_000))
    return place.train()


def a_bomb(place):
    header = b'P5 100000 100000 255\n'
    place.image.with_suffix('.pgm').write_bytes(header)
    place.edit(lambda t: t['images'][1].update(file_name='000001.pgm'))
    return place.train()


def thin(place):
    """Resized to 64 pixels it is 0.1 pixels high."""
    stored(place.image, np.zeros((40, 20_000, 3), np.uint8))
    place.edit(lambda t: t['images'][1].update(width=20_000, height=40))
    return place.train()


def no_folder(place):
    shutil.rmtree(place.coco / 'train')
    return place.train()


ROWS = {
    'missing': (image(None), r'1 of 4 images of .*train\.json are not in .*000001\.png'),
    'no folder': (no_folder, 'image folder .*train: no such folder'),
    'no bytes': (image(b''), r'000001\.png is empty \(0 bytes\)'),
    'not an image': (
        image(b'hello there ' * 40),
        r'000001\.png is damaged, cut short or not an image',
    ),
    'a web page': (image(b'<!DOCTYPE html>'), 'damaged, cut short or not an image'),
    'truncated': (truncated, 'damaged, cut short or not an image .*Fetch or export it again'),
    'truncated JPEG': (
        truncated_jpeg,
        'damaged, cut short or not an image .*Fetch or export it again, as JPEG',
    ),
    'of another size': (of_another_size, 'is 32 x 32 pixels,.* says 64 x 64'),
    'turned by EXIF': (turned, 'is 96 x 64 pixels, turned as its EXIF data says,.* says 64 x 96'),
    '20,000 pixels': (huge, 'has more than 178,956,970 pixels, the limit'),
    '20,000 pixels by its list': (huge_by_its_list, r'000001\.png has 20000 x 20000 pixels'),
    '20,000 x 40 pixels': (
        thin,
        r'000001\.png of .* is 20000 x 40 pixels\. .*raise image\.scale to 251',
    ),
    'ten thousand million pixels': (a_bomb, '(?s)more than 178,956,970 pixels|no image'),
}


@pytest.mark.parametrize('name', ROWS)
def test_it_is_refused(name, place):
    refuse(place, *ROWS[name])


# What passes


def of_mode(mode: str, path: Path) -> None:
    """An image of another kind than the coloured one of 8 bits."""
    gradient = np.arange(64 * 64).reshape(64, 64)
    if mode == '16-bit':
        cv2.imwrite(str(path), (gradient * 16).astype(np.uint16))
        return
    made = Image.fromarray((gradient // 16).astype(np.uint8))
    stored(path, made.convert(mode), format='tiff' if mode == 'CMYK' else 'png')


def kind(mode: str):
    return lambda place: of_mode(mode, place.image)


def turned_as_it_is_seen(place):
    turned(place)
    assert coco.split_problems(place.coco, 'train')
    place.edit(lambda t: t['images'][1].update(width=96, height=64))


def one_pixel(place):
    """mmdet leaves images with a side under 32 pixels out of a training."""
    stored(place.coco / 'train/000003.png', np.zeros((1, 1, 3), np.uint8))
    place.edit(lambda t: t['images'][3].update(width=1, height=1))


def long(place):
    stored(place.image, np.zeros((400, 20_000, 3), np.uint8))
    place.edit(lambda t: t['images'][1].update(width=20_000, height=400))


PASSES = {
    '16-bit': kind('16-bit'),
    'CMYK': kind('CMYK'),
    'palette': kind('P'),
    'grey': kind('L'),
    'transparent': kind('RGBA'),
    'one bit': kind('1'),
    'turned by EXIF, annotated as it is seen': turned_as_it_is_seen,
    '1 x 1': one_pixel,
    '20,000 pixels wide': long,
}


@pytest.mark.parametrize('name', PASSES)
def test_it_passes(name, place):
    PASSES[name](place)
    passes(place)


def test_all_kinds_train(place):
    """An update on them, by the command."""
    for k, mode in enumerate(('16-bit', 'CMYK', 'P', 'L', 'RGBA', '1')):
        of_mode(mode, place.coco / 'train' / f'{k:06d}.png')

    def change(table):
        for k, side in ((4, 64), (5, 64), (6, 1)):
            name = f'{k:06d}.png'
            table['images'].append({'id': k, 'file_name': name, 'width': side, 'height': side})
            table['annotations'].append(table['annotations'][0] | {'id': 90 + k, 'image_id': k})
        table['annotations'][-1] |= {'bbox': [0, 0, 1, 1], 'area': 1}

    place.edit(change)
    stored(place.coco / 'train/000006.png', np.zeros((1, 1, 3), np.uint8))
    done = call(place.train(**{'schedule.batch_size': 6}))
    assert done.exit_code == 0, done.output
    assert (place.run / 'detectors/student/model.pth').is_file()
