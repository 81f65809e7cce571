"""Detection by an exported ONNX file. Needs ONNX Runtime, NumPy and OpenCV, neither torch nor mmdet."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np

from .errors import MtpdError


class EdgeDetector:
    """A detector that `mtpd export STUDENT TARGET.onnx` wrote, run by ONNX Runtime.

    Attributes:
        about: the file's metadata: classes, how images are prepared, how boxes are selected.

    Args:
        threads: number of CPU threads; 0: all.

    Raises:
        MtpdError: there is no such file, `mtpd export` did not write it, or ONNX Runtime is not installed.
    """

    def __init__(self, path: str | Path, threads: int = 0):
        runtime = import_onnx_package('onnxruntime')
        path = Path(path)
        if not path.is_file():
            raise MtpdError(f'{path} does not exist. `mtpd export CHECKPOINT {path}` writes one.')
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.session = runtime.InferenceSession(
                str(path), options, providers=['CPUExecutionProvider']
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common class
            raise MtpdError(f'{path} is not an ONNX file that can be run: {error}') from None
        about = self.session.get_modelmeta().custom_metadata_map.get('mtpd')
        if about is None:
            raise MtpdError(
                f'{path} was not written by `mtpd export`: it does not say how images are prepared.'
            )
        self.about = json.loads(about)

    def __call__(self, image: np.ndarray, threshold: float = 0.0) -> list[dict]:
        """The objects that score at least `threshold`, by falling score.

        Args:
            image: (height, width, 3), uint8, BGR as OpenCV reads it.

        Returns:
            ``{'class', 'score', 'box'}`` each; box: x1, y1, x2, y2 in the image's pixels.

        Raises:
            MtpdError: `image` is None.
        """
        if image is None:  # what cv2.imread returns for a file that does not exist or is no image
            raise MtpdError('the image is None: cv2.imread gives None where it cannot read a file.')
        pixels, size = self.prepare_image(image)
        boxes, scores = self.session.run(None, {'image': pixels})
        boxes, scores, labels = self.select_boxes(boxes, scores, size)
        # As mmcv resizes: sides are rounded, so width and height have scales of their own.
        scales = np.array([size[0] / image.shape[1], size[1] / image.shape[0]] * 2, np.float32)
        return [
            {'class': self.about['classes'][label], 'score': float(score), 'box': box.tolist()}
            for box, score, label in zip(boxes / scales, scores, labels, strict=True)
            if score >= threshold
        ]

    def prepare_image(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """The network's input (1, 3, H, W): resized, normalised, padded right and below; and the image's size in it
        (width, height)."""
        height, width = self.about['input']
        high, wide = self.about['scale']
        scale = min(
            max(high, wide) / max(image.shape[:2]),
            min(high, wide) / min(image.shape[:2]),
            height / image.shape[0],
            width / image.shape[1],
        )
        size = (int(image.shape[1] * scale + 0.5), int(image.shape[0] * scale + 0.5))
        resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR).astype(np.float32)
        if self.about['to_rgb']:
            resized = resized[..., ::-1]
        normalised = (resized - np.float32(self.about['mean'])) / np.float32(self.about['std'])
        pixels = np.zeros((1, 3, height, width), np.float32)
        pixels[0, :, : size[1], : size[0]] = normalised.transpose(2, 0, 1)
        return pixels, size

    def select_boxes(
        self, boxes: np.ndarray, scores: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What mmdet's test steps leave: the best scores of each FPN level, non-maximum suppression by class, the best
        of all.

        Args:
            boxes: (N, 4), x1, y1, x2, y2 in the input's pixels, level by level.
            scores: (N, classes).
            size: the image's width and height in the input, which boxes are clipped to.

        Returns:
            Boxes (M, 4), scores (M,) and labels (M,), by falling score.
        """
        levels, start = [], 0
        for number, count in enumerate(self.about['levels']):
            candidates = scores[start : start + count] > self.about['score_thr']
            if 'grids' in self.about:  # files of version 0.1 don't have them
                candidates &= self._cells_inside(number, size)[:, None]
            place, label = np.nonzero(candidates)
            place += start
            best = np.argsort(-scores[place, label], kind='stable')[: self.about['nms_pre']]
            levels.append((place[best], label[best]))
            start += count
        place, labels = (np.concatenate(parts) for parts in zip(*levels, strict=True))
        scores = scores[place, labels]
        boxes = np.clip(boxes[place], 0, np.array([*size, *size], np.float32))
        remaining = [np.empty(0, int)]
        for label in np.unique(labels):
            (of_class,) = np.nonzero(labels == label)
            chosen = nms_indices(boxes[of_class], scores[of_class], self.about['iou_threshold'])
            remaining.append(of_class[chosen])
        indices = np.concatenate(remaining)
        best = np.argsort(-scores[indices], kind='stable')[: self.about['max_per_img']]
        indices = indices[best]
        return boxes[indices], scores[indices], labels[indices]

    def _cells_inside(self, level: int, size: tuple[int, int]) -> np.ndarray:
        """Which boxes of an FPN level belong to cells that mmdet has for an image of this width and height, alone in its batch.

        The input's other cells see padding alone, and boxes that they give would be clipped onto the image's border.
        """
        rows, columns = self.about['grids'][level]
        divisor, (height, width) = self.about['divisor'], self.about['input']
        padded_width, padded_height = (-(-side // divisor) * divisor for side in size)
        inside = np.zeros((rows, columns), bool)
        inside[: -(-padded_height * rows // height), : -(-padded_width * columns // width)] = True
        return inside.reshape(-1).repeat(self.about['levels'][level] // inside.size)


def nms_indices(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Non-maximum suppression as mmcv's: the indices of the boxes (n, 4) that remain, by falling score.

    A box removes those of lower score whose IoU with it is above `threshold`.
    """
    order, remaining = np.argsort(-scores, kind='stable'), []
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    while len(order):
        best, order = order[0], order[1:]
        remaining.append(best)
        top_left = np.maximum(boxes[best, :2], boxes[order, :2])
        bottom_right = np.minimum(boxes[best, 2:], boxes[order, 2:])
        common = np.prod(np.clip(bottom_right - top_left, 0, None), axis=1)
        order = order[common <= threshold * (area[best] + area[order] - common)]
    return np.array(remaining, int)


def import_onnx_package(name: str) -> ModuleType:
    """Imports a package of requirements/onnx.txt. Raises MtpdError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MtpdError(f'{name} is not installed: pip install -r requirements/onnx.txt') from None
