"""An exported detector at work: needs ONNX Runtime, NumPy and OpenCV, neither torch nor mmdet."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from .errors import MtpdError


class EdgeDetector:
    """A detector that `mtpd export STUDENT TARGET.onnx` wrote, run by ONNX Runtime.

    Attributes:
        about: what stands in the file: classes, how images are prepared, how boxes are chosen.

    Raises:
        MtpdError: no such file, none that the kit wrote, or ONNX Runtime is not installed.
    """

    def __init__(self, path: str | Path, threads: int = 0):
        """`threads`: of the CPU; 0: all."""
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
        except Exception as error:  # of ONNX Runtime's own kinds
            raise MtpdError(f'{path} is no ONNX file that can be run: {error}') from None
        about = self.session.get_modelmeta().custom_metadata_map.get('mtpd')
        if about is None:
            raise MtpdError(
                f'{path} was not written by `mtpd export`: how to prepare images is not in it.'
            )
        self.about = json.loads(about)

    def __call__(self, image: np.ndarray, threshold: float = 0.0) -> list[dict]:
        """Objects scored at least `threshold`, by falling score.

        Args:
            image: (height, width, 3), uint8, BGR as OpenCV reads it.

        Returns:
            ``{'class', 'score', 'box'}`` each; box: x1, y1, x2, y2 in the image's pixels.

        Raises:
            MtpdError: `image` is None.
        """
        if image is None:  # what cv2.imread gives for a file that is not there, or no image
            raise MtpdError(
                'no image to look at: cv2.imread gives None where it cannot read a file.'
            )
        pixels, size = self.prepared(image)
        boxes, scores = self.session.run(None, {'image': pixels})
        found = self.chosen(boxes, scores, size)
        # As mmcv resizes: sides are rounded, so height and width have scales of their own.
        ratio = np.array([size[0] / image.shape[1], size[1] / image.shape[0]] * 2, np.float32)
        return [
            {
                'class': self.about['classes'][label],
                'score': float(score),
                'box': (box / ratio).tolist(),
            }
            for box, score, label in found
            if score >= threshold
        ]

    def prepared(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """The network's input (1, 3, H, W): resized to fit, normalised, padded right and below; and the image's size
        (width, height) in it."""
        height, width = self.about['input']
        high, wide = self.about['scale']
        scale = min(
            max(high, wide) / max(image.shape[:2]),
            min(high, wide) / min(image.shape[:2]),
            height / image.shape[0],
            width / image.shape[1],
        )
        size = (int(image.shape[1] * scale + 0.5), int(image.shape[0] * scale + 0.5))
        small = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR).astype(np.float32)
        if self.about['to_rgb']:
            small = small[..., ::-1]
        small = (small - np.float32(self.about['mean'])) / np.float32(self.about['std'])
        pixels = np.zeros((1, 3, height, width), np.float32)
        pixels[0, :, : size[1], : size[0]] = small.transpose(2, 0, 1)
        return pixels, size

    def chosen(self, boxes: np.ndarray, scores: np.ndarray, size: tuple[int, int]):
        """Box (pixels of the input), score and class of what is left after mmdet's steps: the highest scores of each
        FPN level, non-maximum suppression class by class, the best of all."""
        about, start, rows = self.about, 0, []
        for count in about['levels']:
            place, label = np.nonzero(scores[start : start + count] > about['score_thr'])
            score = scores[start + place, label]
            order = np.argsort(-score, kind='stable')[: about['nms_pre']]
            rows.append((start + place[order], label[order], score[order]))
            start += count
        place, label, score = (np.concatenate(part) for part in zip(*rows, strict=True))
        limits = np.array([size[0], size[1]] * 2, np.float32)
        box = np.clip(boxes[place], 0, limits)
        kept: list[int] = []
        for kind in np.unique(label):
            (these,) = np.nonzero(label == kind)
            kept += these[nms_indices(box[these], score[these], about['iou_threshold'])].tolist()
        kept = sorted(kept, key=lambda k: -score[k])[: about['max_per_img']]
        return [(box[k], score[k], int(label[k])) for k in kept]


def nms_indices(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Places of the boxes (n, 4) that stay when each removes lower scored ones that overlap it by more than `threshold`
    (IoU)."""
    order, kept = np.argsort(-scores, kind='stable'), []
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        common = np.prod(np.clip(high - low, 0, None), axis=1)
        order = order[common <= threshold * (area[best] + area[order] - common)]
    return np.array(kept, int)


def import_onnx_package(name: str):
    """A package of the extra `onnx`. Raises MtpdError where it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise MtpdError(f'{name} is not installed: pip install -r requirements/onnx.txt') from None
