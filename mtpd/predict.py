"""What a detector finds in images of one's own: drawn, and as JSON. By mmdet's `inference_detector`."""

from __future__ import annotations

from .runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import ast
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
from .engine.loop import choose_device
from .errors import MtpdError
from .pipeline.mmdet_config import load_config, recipe_as_mmdet
from .runtime import checkpoints
from .utils.files import write_json

SHOWN = 400  # pixels: the least side of what is drawn
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
        cfg = Config(_literals(meta.get('config') or meta.get('student_config'), checkpoint))
    else:
        asked = load_config(config)
        recipe = isinstance(asked, Recipe)
        cfg = Config.fromstring(recipe_as_mmdet(asked, name), '.py') if recipe else asked.cfg
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
    paths = images(sources)
    names = [path.name for path in paths]
    for path in paths:
        pixels = mmcv.imread(str(path)) if path.is_file() else None
        if pixels is None:
            raise MtpdError(f'{path} is no image that OpenCV can read.')
        result = inference_detector(model, str(path))
        several = names.count(path.name) > 1
        drawn = out / (f'{path.parent.name}_{path.name}' if several else path.name)
        shown = _enlarged(pixels, result)
        model.show_result(*shown, score_thr=threshold, out_file=str(drawn), font_size=10)
        boxes = result[0] if isinstance(result, tuple) else result
        found = [
            {'class': model.CLASSES[kind], 'score': float(box[4]), 'box': box[:4].tolist()}
            for kind, some in enumerate(boxes)
            for box in np.asarray(some)
            if box[4] >= threshold
        ]
        found.sort(key=lambda item: -item['score'])
        rows.append({'image': str(path), 'drawn': str(drawn), 'objects': found})
        yield rows[-1]
    write_json(out / 'predictions.json', rows)


def _enlarged(pixels: np.ndarray, result: list | tuple) -> tuple[np.ndarray, list | tuple]:
    """A small image and what was found in it, larger, so that mmdet's labels don't cover it all."""
    factor = max(1, SHOWN // min(pixels.shape[:2]))

    def larger(array):
        return np.repeat(np.repeat(array, factor, 0), factor, 1)

    def boxes(found):
        return [some * np.array([factor] * 4 + [1], some.dtype) for some in found]

    if isinstance(result, tuple):
        masks = [[larger(np.asarray(mask)) for mask in some] for some in result[1]]
        return larger(pixels), (boxes(result[0]), masks)
    return larger(pixels), boxes(result)


def images(sources: Iterable[str | Path]) -> list[Path]:
    """The images that files and folders name. Raises MtpdError where one is missing, or a folder has none."""
    found = []
    for source in map(Path, sources):
        inside = [source]
        if source.is_dir():
            inside = sorted(p for p in source.iterdir() if p.suffix.lower() in IMAGES)
        if not inside or not inside[0].exists():
            raise MtpdError(
                f'{source}: {"no images in this folder" if source.is_dir() else "no such file"}.'
            )
        found += inside
    return found


def _literals(text: str | None, checkpoint: Path) -> dict:
    """A config's text, if it is nothing but literals; nothing of it is run."""
    if not text:
        raise MtpdError(
            f'{checkpoint} does not say of which detector it is: name its recipe or mmdet config with --config.'
        )
    try:
        lines = ast.parse(text).body
        return {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
    except (SyntaxError, ValueError, AttributeError):
        raise MtpdError(
            f'the config in {checkpoint} is not as the kit writes it, and is not run: name one with --config.'
        ) from None
