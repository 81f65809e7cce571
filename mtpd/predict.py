"""Detections in images of one's own, drawn and as JSON, by mmdet's `inference_detector`."""

from __future__ import annotations

from .runtime import compat  # noqa: F401  (before mmcv)

# isort: split
from collections.abc import Iterable, Iterator
from pathlib import Path

import mmcv
import numpy as np
from mmcv import Config
from mmdet.apis import inference_detector
from mmdet.core import get_classes
from mmdet.models import build_detector
from torch import nn

from .config.files import set_class_count
from .config.recipe import Recipe
from .config.settings import parse_settings
from .engine.loop import choose_device
from .errors import MtpdError
from .pipeline.mmdet_config import load_config, recipe_as_mmdet
from .runtime import checkpoints
from .utils.files import write_json

LEAST_SIDE = 400  # pixels, of what is drawn
IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


def detector(
    checkpoint: str | Path,
    config: str | Path | None = None,
    name: str = 'student',
    device: str = 'auto',
) -> nn.Module:
    """A detector with a checkpoint's weights (any layout), as mmdet's `init_detector` would give it.

    Args:
        config: a recipe, whose detector `name` it is, or an mmdet config; by default what the checkpoint's `meta` says,
            which `mtpd export` and the kit's trainings write. That is read as literals: no code of it is run.

    Raises:
        MtpdError: no config is given and the checkpoint has none, or the weights do not fit.
    """
    checkpoint = Path(checkpoint)
    meta = checkpoints.load_checkpoint(checkpoint).get('meta') or {}
    if config is None:
        cfg = _config_in_checkpoint(meta, checkpoint)
    elif isinstance(loaded := load_config(config), Recipe):
        cfg = Config.fromstring(recipe_as_mmdet(loaded, name), '.py')
    else:
        cfg = loaded.cfg
    classes = meta.get('CLASSES') or cfg.data.test.get('classes') or get_classes('coco')
    if meta.get('CLASSES'):
        set_class_count(cfg.model, len(classes))
    model = build_detector(cfg.model)
    checkpoints.load_student(model, checkpoint)
    model.cfg, model.CLASSES = cfg, classes
    return model.to(choose_device(device, checkpoint, '--device')).eval()


def predict(
    model: nn.Module, sources: Iterable[str | Path], out: str | Path, threshold: float = 0.3
) -> Iterator[dict]:
    """Detects objects image by image, and draws those scored at least `threshold` into ``out/<image>``.

    Args:
        sources: images, and folders of images.

    Yields:
        ``{'image', 'drawn', 'objects'}``: paths, and for each object its ``class``, ``score`` and ``box`` (x1, y1, x2,
        y2, pixels of the image), by falling score. Small images are drawn larger. ``out/predictions.json`` has them all in the end.

    Raises:
        MtpdError: no such file or folder, a folder without images, or a file that is no image.
    """
    out, rows = Path(out), []
    paths = image_files(sources)
    names = [path.name for path in paths]
    for path in paths:
        pixels = mmcv.imread(str(path)) if path.is_file() else None
        if pixels is None:
            raise MtpdError(f'{path} is no image that OpenCV can read.')
        result = inference_detector(model, str(path))
        same_name = names.count(path.name) > 1
        drawn = out / (f'{path.parent.name}_{path.name}' if same_name else path.name)
        enlarged = _enlarged(pixels, result)
        model.show_result(*enlarged, score_thr=threshold, out_file=str(drawn), font_size=10)
        boxes_by_class = result[0] if isinstance(result, tuple) else result
        if len(boxes_by_class) != len(model.CLASSES):
            raise MtpdError(
                f'the detector has {len(boxes_by_class)} classes, and {len(model.CLASSES)} names are known: name its '
                'recipe or mmdet config with --config.'
            )
        objects = [
            {'class': name, 'score': float(box[4]), 'box': box[:4].tolist()}
            for name, boxes in zip(model.CLASSES, boxes_by_class, strict=True)
            for box in np.asarray(boxes)
            if box[4] >= threshold
        ]
        objects.sort(key=lambda item: -item['score'])
        rows.append({'image': str(path), 'drawn': str(drawn), 'objects': objects})
        yield rows[-1]
    write_json(out / 'predictions.json', rows)


def _enlarged(pixels: np.ndarray, result: list | tuple) -> tuple[np.ndarray, list | tuple]:
    """A small image and mmdet's result in it, enlarged, so that the labels don't cover it all."""
    factor = max(1, LEAST_SIDE // min(pixels.shape[:2]))

    def enlarge(array):
        return np.repeat(np.repeat(array, factor, 0), factor, 1)

    def scale(boxes_by_class):
        return [boxes * np.array([factor] * 4 + [1], boxes.dtype) for boxes in boxes_by_class]

    if isinstance(result, tuple):
        boxes_by_class, masks_by_class = result
        masks = [[enlarge(np.asarray(mask)) for mask in masks] for masks in masks_by_class]
        return enlarge(pixels), (scale(boxes_by_class), masks)
    return enlarge(pixels), scale(result)


def image_files(sources: Iterable[str | Path]) -> list[Path]:
    """The images that files and folders name. Raises MtpdError where one is missing, or a folder has none."""
    paths = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGES)
            if not inside:
                raise MtpdError(f'{source}: no images in this folder.')
            paths += inside
        elif source.exists():
            paths.append(source)
        else:
            raise MtpdError(f'{source}: no such file.')
    return paths


def _config_in_checkpoint(meta: dict, checkpoint: Path) -> Config:
    text = meta.get('config') or meta.get('student_config')
    if not text:
        raise MtpdError(
            f'{checkpoint} does not say of which detector it is: name its recipe or mmdet config with --config.'
        )
    try:
        return Config(parse_settings(text, f'the config in {checkpoint}'))
    except MtpdError as error:
        raise MtpdError(f'{error} Name one with --config.') from None
