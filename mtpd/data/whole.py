"""Image files that are missing, empty, cut short or no images: found out from the bytes that training reads anyway."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import copy
import os.path
import re
from typing import Any

import mmcv
import numpy as np
from mmdet.datasets import PIPELINES
from mmdet.datasets.pipelines import LoadImageFromFile

from ..errors import MtpdError

PNG = b'\x89PNG\r\n\x1a\n'
# The next marker in a JPEG's coded data, where FF is followed by 00, or separates restarts, or fills.
_MARKER = re.compile(rb'\xff([^\x00\x01\xd0-\xd8\xff])', re.DOTALL)


class CorruptImage(MtpdError):
    """An image file that can't be trained on.

    Attributes:
        files: what is wrong (`fault`, or the like) by path.
    """

    def __init__(self, text: str, files: dict[str, str] | None = None):
        # Out of a data worker torch raises it again, with the worker's traceback for its text.
        super().__init__(text.rpartition(f'{type(self).__name__}: ')[2].rstrip())
        self.files = files or {}


def fault(content: bytes) -> str | None:
    """What is wrong with an image file, as far as its bytes tell without decoding: by its version, OpenCV takes half
    a JPEG for a whole one."""
    if not content:
        return 'is empty (0 bytes)'
    if content.startswith(b'\xff\xd8') and not _jpeg_ends(content):
        return 'is cut short: a JPEG without its end'
    if content.startswith(PNG) and not _png_ends(content):
        return 'is cut short: a PNG without its end'
    return None


def _jpeg_ends(content: bytes) -> bool:
    """Whether the end marker comes, after segments (a thumbnail in one has an end of its own) and coded data."""
    place = 2
    while match := _MARKER.search(content, place):
        if match[1] == b'\xd9':
            return True
        place = match.end() + int.from_bytes(content[match.end() : match.end() + 2], 'big')
    return False


def _png_ends(content: bytes) -> bool:
    place = len(PNG)
    while place + 12 <= len(content):
        if content[place + 4 : place + 8] == b'IEND':
            return True
        place += 12 + int.from_bytes(content[place : place + 4], 'big')
    return False


def path_of(folder: str | None, info: dict) -> str:
    """An image's path, as mmdet joins it."""
    return info['filename'] if folder is None else os.path.join(folder, info['filename'])  # noqa: PTH118


@PIPELINES.register_module()
class LoadWholeImage(LoadImageFromFile):
    """As mmdet's `LoadImageFromFile`; of an image that is not whole it raises CorruptImage."""

    def __call__(self, results: dict) -> dict:
        path = path_of(results['img_prefix'], results['img_info'])
        if self.file_client is None:
            self.file_client = mmcv.FileClient(**self.file_client_args)
        wrong, image = None, None
        try:
            content = self.file_client.get(path)
            wrong = fault(content)
        except FileNotFoundError:
            wrong = 'is missing'
        except OSError as error:
            wrong = f'cannot be read ({error.strerror})'
        if not wrong:
            try:
                image = mmcv.imfrombytes(content, self.color_type, self.channel_order)
            except MemoryError:
                raise
            except Exception:  # by mmcv's backend, each has its own
                image = None
            if image is None:
                wrong = 'is no image that OpenCV can read'
        if wrong:
            raise CorruptImage(f'image {path} {wrong}. Fetch or export it again.', {path: wrong})
        results |= dict(filename=path, ori_filename=results['img_info']['filename'])
        results['img'] = image.astype(np.float32) if self.to_float32 else image
        results |= dict(img_shape=image.shape, ori_shape=image.shape, img_fields=['img'])
        return results


def checked(cfg: Any) -> Any:
    """A copy of a dataset's config that loads images by `LoadWholeImage`."""
    cfg = copy.deepcopy(cfg)
    _replace(cfg)
    return cfg


def _replace(node: Any) -> None:
    if isinstance(node, dict) and node.get('type') in ('LoadImageFromFile', LoadImageFromFile):
        node['type'] = 'LoadWholeImage'
    for item in node.values() if isinstance(node, dict) else node:
        if isinstance(item, (dict, list, tuple)):
            _replace(item)
