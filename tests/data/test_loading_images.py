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
from mtpd.data.loading import CorruptImage, LoadWholeImage
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
        with pytest.raises(CorruptImage, match='is empty, cut short, damaged or no image'):
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


PROBLEMS = {
    'missing': r'cannot be read \(No such file or directory\)',
    'a folder': r'cannot be read \(Is a directory\)',
    'empty': 'is empty, cut short, damaged or no image',
    'no image': 'is empty, cut short, damaged or no image',
    'cut': 'is empty, cut short, damaged or no image',
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
