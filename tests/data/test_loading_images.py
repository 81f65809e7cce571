"""Image files that are not whole are refused, whatever their kind."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmcv.utils import build_from_cfg
from mmdet.datasets import PIPELINES
from mmdet.datasets.pipelines import LoadImageFromFile
from PIL import Image

from helpers.corrupted import corrupted
from mtpd.data.loading import CorruptImage, LoadWholeImage, read_image
from mtpd.errors import MtpdError


def encoded(format: str, size=(64, 64), **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def with_thumbnail() -> bytes:
    """A JPEG with another one, that has an end, in its EXIF segment."""
    small, large = encoded('JPEG', (16, 16)), encoded('JPEG')
    segment = b'Exif\0\0' + small
    return large[:2] + b'\xff\xe1' + (len(segment) + 2).to_bytes(2, 'big') + segment + large[2:]


WHOLE = {
    'JPEG': encoded('JPEG'),
    'progressive': encoded('JPEG', progressive=True),
    'restarts': encoded('JPEG', restart_marker_rows=1),
    'thumbnail': with_thumbnail(),
    **{kind: encoded(kind) for kind in ('PNG', 'BMP', 'TIFF', 'WEBP', 'GIF')},
}


def load(path: Path, **settings) -> dict:
    asked = dict(img_prefix=str(path.parent), img_info=dict(filename=path.name))
    return LoadWholeImage(**settings)(asked)


@pytest.mark.parametrize('kind', WHOLE)
def test_an_image_that_is_cut_anywhere_is_refused(kind, tmp_path):
    content, path = WHOLE[kind], tmp_path / 'image'
    path.write_bytes(content)
    whole = load(path)['img']
    path.write_bytes(content + b'\xff\xda\x89PNG, after the end')
    assert np.array_equal(load(path)['img'], whole)
    steps = range(0, len(content) - 4, max(7, len(content) // 200))
    for length in [*steps, len(content) - 4, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CorruptImage, match='is empty, cut short, damaged or not an image'):
            load(path)
    if kind == 'JPEG':  # of a file, OpenCV takes a part for the whole
        assert cv2.imread(str(path)).shape == (64, 64, 3)


@pytest.mark.parametrize('seed', range(3))
def test_noise_is_refused_or_read(seed, tmp_path):
    """Lengths and markers at random, after the right beginning or in a whole image."""
    rng, path = np.random.default_rng(seed), tmp_path / 'image'
    refused = 0
    for _ in range(300):
        noise = rng.choice([0, 1, 0xD9, 0xDA, 0xE1, 0xFF], rng.integers(0, 200)).astype(np.uint8)
        content = bytearray(WHOLE[rng.choice(list(WHOLE))])
        place = rng.integers(0, len(content))
        content[place : place + len(noise)] = noise.tobytes()
        for start in (b'', b'\xff\xd8', b'\x89PNG\r\n\x1a\n'):
            path.write_bytes(start + noise.tobytes())
            with pytest.raises(CorruptImage):
                load(path)
        path.write_bytes(bytes(content))
        try:
            assert load(path)['img'].ndim == 3
        except CorruptImage:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize('settings', [{}, dict(to_float32=True, channel_order='rgb')])
def test_a_whole_image_is_loaded_as_by_mmdet(tmp_path, settings):
    (tmp_path / 'a.jpg').write_bytes(WHOLE['JPEG'])
    asked = dict(img_prefix=str(tmp_path), img_info=dict(filename='a.jpg'))
    ours, theirs = (kind(**settings)(dict(asked)) for kind in (LoadWholeImage, LoadImageFromFile))
    assert np.array_equal(ours.pop('img'), theirs.pop('img')) and ours == theirs
    bare = dict(img_prefix=None, img_info=dict(filename=str(tmp_path / 'a.jpg')))
    assert LoadWholeImage()(bare)['filename'] == str(tmp_path / 'a.jpg')


# Pictures to be shown

# Where the upper left, upper right, lower left and lower right quarter of a file's pixels are seen (EXIF's orientation).
QUARTERS = {
    1: 'abcd',
    2: 'badc',
    3: 'dcba',
    4: 'cdab',
    5: 'acbd',
    6: 'cadb',
    7: 'dbca',
    8: 'bdac',
}
COLOURS = {'a': (220, 20, 20), 'b': (20, 220, 20), 'c': (20, 20, 220), 'd': (220, 220, 20)}


@pytest.mark.parametrize('orientation', QUARTERS)
def test_a_picture_is_turned_as_it_is_seen(orientation, tmp_path):
    a, b, c, d = (np.full((16, 32, 3), colour, np.uint8) for colour in COLOURS.values())
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / 'a.jpg'
    pixels = np.vstack([np.hstack([a, b]), np.hstack([c, d])])
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    picture = read_image(path)
    height, width = (32, 64) if orientation < 5 else (64, 32)
    assert picture.shape == (height, width, 3) and picture.dtype == np.uint8
    centres = picture[height // 4 :: height // 2, width // 4 :: width // 2].reshape(4, 3)
    seen = [COLOURS[quarter] for quarter in QUARTERS[orientation]]
    assert np.abs(centres.astype(int) - seen).max() < 12  # JPEG's rounding
    assert np.array_equal(picture[..., ::-1], loaded_by_mmdet(path))


def sixteen_bits(path: Path) -> None:
    cv2.imwrite(str(path), (np.arange(64 * 48, dtype=np.uint16) * 21).reshape(48, 64))


def of_mode(mode: str):
    def write(path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 4), np.uint8)
        Image.fromarray(pixels).convert('RGB' if mode == 'CMYK' else 'RGBA').convert(mode).save(
            path
        )

    return write


def animation(path: Path) -> None:
    pictures = [Image.new('RGB', (64, 48), colour) for colour in ('red', 'blue')]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)


KINDS = {
    '16-bit.png': sixteen_bits,
    'colour.png': of_mode('RGB'),
    'transparent.png': of_mode('RGBA'),
    'palette.png': of_mode('P'),
    'grey.png': of_mode('L'),
    'grey and alpha.png': of_mode('LA'),
    'one bit.png': of_mode('1'),
    'CMYK.jpg': of_mode('CMYK'),
    'still.gif': of_mode('P'),
    'animation.gif': animation,
    'a.webp': of_mode('RGB'),
    'a.tiff': of_mode('RGB'),
}


def loaded_by_mmdet(path: Path) -> np.ndarray:
    """The pixels (H, W, 3), BGR, that mmdet's own class gives to a training."""
    return LoadImageFromFile()(dict(img_prefix=None, img_info=dict(filename=str(path))))['img']


@pytest.mark.parametrize('name', KINDS)
def test_a_picture_is_the_one_that_mmdet_trains_on(name, tmp_path):
    KINDS[name](tmp_path / name)
    picture = read_image(tmp_path / name)
    assert picture.shape == (48, 64, 3) and picture.dtype == np.uint8
    assert np.array_equal(picture[..., ::-1], loaded_by_mmdet(tmp_path / name))


def test_sixteen_bits_are_scaled_to_eight_and_an_animation_is_its_first_picture(tmp_path):
    sixteen_bits(tmp_path / 'a.png')
    values = np.arange(64 * 48).reshape(48, 64) * 21
    scaled = read_image(tmp_path / 'a.png').astype(float)
    assert np.abs(scaled - (values / 257)[..., None]).max() <= 1
    animation(tmp_path / 'a.gif')
    assert (read_image(tmp_path / 'a.gif') == (255, 0, 0)).all()


def test_a_config_may_leave_pictures_unturned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (64, 48), 'red').save(tmp_path / 'a.jpg', exif=exif)
    assert read_image(tmp_path / 'a.jpg').shape == (64, 48, 3)
    unturned = read_image(tmp_path / 'a.jpg', turned=False)
    assert unturned.shape == (48, 64, 3) and unturned.dtype == np.uint8
    assert np.abs(unturned[0, 0].astype(int) - (255, 0, 0)).max() < 5


def test_a_damaged_picture_is_refused(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(WHOLE['JPEG'][:-200])
    with pytest.raises(CorruptImage, match=r'a\.jpg is empty, cut short, damaged or not an image'):
        read_image(tmp_path / 'a.jpg')


# What is said

PROBLEMS = {
    'missing': r'cannot be read \(No such file or directory\)',
    'a folder': r'cannot be read \(Is a directory\)',
    'empty': 'is empty, cut short, damaged or not an image',
    'no image': 'is empty, cut short, damaged or not an image',
    'cut': 'is empty, cut short, damaged or not an image',
}


@pytest.mark.parametrize('how', PROBLEMS)
def test_the_message_names_the_file_and_what_to_do(tmp_path, how):
    path = tmp_path / 'a.png'
    path.write_bytes(WHOLE['PNG'])
    corrupted(path, how)
    with pytest.raises(
        CorruptImage, match=f'^image {path} {PROBLEMS[how]}. Fetch .*corrupt_limit=N'
    ):
        load(path)


def test_mmdets_pipelines_load_by_it():
    assert isinstance(build_from_cfg(dict(type='LoadImageFromFile'), PIPELINES), LoadWholeImage)


def test_an_error_out_of_a_data_worker_is_the_same():
    error = CorruptImage('image a.png is empty. Fetch it.', {'a.png': 'is empty'})
    wrapped = 'Caught CorruptImage in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n'
    again = CorruptImage(f'{wrapped}  File "x"\nmtpd.data.loading.CorruptImage: {error}\n')
    assert str(again) == str(error) and isinstance(again, MtpdError)


def test_a_data_workers_death_is_not_taken_for_a_corrupt_image(monkeypatch):
    """torch raises it in a signal handler, wherever the main process is at that moment."""

    def die(self, results):
        raise RuntimeError('DataLoader worker (pid 71) is killed by signal: Killed. ')

    monkeypatch.setattr(LoadWholeImage.__mro__[1], '__call__', die)
    with pytest.raises(RuntimeError, match=r'worker .* is killed'):
        LoadWholeImage()({'img_prefix': None, 'img_info': {'filename': 'a.png'}})
