"""Image files that are not whole: found by their bytes, whatever OpenCV makes of them."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import io

import cv2
import numpy as np
import pytest
from mmdet.datasets.pipelines import LoadImageFromFile
from PIL import Image

from helpers.corrupted import corrupted
from mtpd.data.loading import PNG, CorruptImage, LoadWholeImage, image_file_fault
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
    'PNG': encoded('PNG'),
}


@pytest.mark.parametrize('kind', WHOLE)
def test_an_image_that_is_cut_anywhere_is_found(kind, tmp_path):
    content = WHOLE[kind]
    assert image_file_fault(content) is None
    assert image_file_fault(content + b'\xff\xda\x89PNG, after the end') is None
    for length in [*range(12, len(content) - 4, 7), len(content) - 4, len(content) - 1]:
        assert 'cut short' in image_file_fault(content[:length]), length
    assert image_file_fault(b'') == 'is empty (0 bytes)'
    if kind == 'JPEG':  # for OpenCV half is whole; from memory, newer versions refuse it
        (tmp_path / 'half.jpg').write_bytes(content[: len(content) * 3 // 4])
        assert cv2.imread(str(tmp_path / 'half.jpg')).shape == (64, 64, 3)


@pytest.mark.parametrize('seed', range(3))
def test_noise_is_no_trouble(seed):
    """Lengths and markers at random, after the right beginning or in a whole image."""
    rng = np.random.default_rng(seed)
    for _ in range(300):
        noise = rng.choice([0, 1, 0xD9, 0xDA, 0xE1, 0xFF], rng.integers(0, 200)).astype(np.uint8)
        content = bytearray(WHOLE[rng.choice(list(WHOLE))])
        place = rng.integers(0, len(content))
        content[place : place + len(noise)] = noise.tobytes()
        for start in (b'', b'\xff\xd8', PNG):
            assert image_file_fault(start + noise.tobytes()) is None or 'is ' in image_file_fault(
                start + noise.tobytes()
            )
        assert image_file_fault(bytes(content)) is None or 'is cut short' in image_file_fault(
            bytes(content)
        )


def test_other_kinds_are_left_to_opencv():
    for kind in ('BMP', 'TIFF', 'WEBP', 'GIF'):
        assert image_file_fault(encoded(kind)) is None
    assert image_file_fault(b'no image') is None


@pytest.mark.parametrize('settings', [{}, dict(to_float32=True, channel_order='rgb')])
def test_a_whole_image_is_loaded_as_by_mmdet(tmp_path, settings):
    (tmp_path / 'a.jpg').write_bytes(WHOLE['JPEG'])
    asked = dict(img_prefix=str(tmp_path), img_info=dict(filename='a.jpg'))
    ours, theirs = (kind(**settings)(dict(asked)) for kind in (LoadWholeImage, LoadImageFromFile))
    assert np.array_equal(ours.pop('img'), theirs.pop('img')) and ours == theirs
    bare = dict(img_prefix=None, img_info=dict(filename=str(tmp_path / 'a.jpg')))
    assert LoadWholeImage()(bare)['filename'] == str(tmp_path / 'a.jpg')


HOW = {
    'missing': 'is missing',
    'a folder': r'cannot be read \(Is a directory\)',
    'empty': r'is empty \(0 bytes\)',
    'no image': 'is no image that OpenCV can read',
    'cut': 'is cut short: a PNG without its end',
}


@pytest.mark.parametrize('how', HOW)
def test_what_is_said_of_a_file(tmp_path, how):
    path = tmp_path / 'a.png'
    path.write_bytes(WHOLE['PNG'])
    corrupted(path, how)
    with pytest.raises(CorruptImage, match=f'^image {path} {HOW[how]}. Fetch or export it again.$'):
        LoadWholeImage()(dict(img_prefix=str(tmp_path), img_info=dict(filename='a.png')))


def test_an_error_out_of_a_data_worker_is_the_same():
    error = CorruptImage('image a.png is empty. Fetch it.', {'a.png': 'is empty'})
    wrapped = 'Caught CorruptImage in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n'
    again = CorruptImage(f'{wrapped}  File "x"\nmtpd.data.whole.CorruptImage: {error}\n')
    assert str(again) == str(error) and isinstance(again, MtpdError)
