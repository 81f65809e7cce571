"""Detections in images of one's own, by mmdet's `inference_detector`: drawn, and as JSON."""

from __future__ import annotations

from .runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path

import cv2
import numpy as np
from mmcv import Config
from mmdet.apis import inference_detector
from mmdet.core import get_classes
from mmdet.models import build_detector
from PIL import Image
from torch import nn

from . import plots
from .config.files import set_class_count
from .config.recipe import Recipe
from .config.settings import parse_settings
from .data.loading import CorruptImage, read_image
from .engine.loop import choose_device
from .errors import MtpdError
from .pipeline.mmdet_config import load_config, recipe_as_mmdet
from .runtime import checkpoints
from .utils.files import atomic, make_writable_folder, read_json, write_json
from .utils.paths import is_url, user_path

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff')
PREDICTIONS = 'predictions.json'
# EXIF's tag for the program that made an image, and what a drawing has there.
SOFTWARE, MARK = 0x0131, 'mtpd predict'


class ImagesLeftOut(MtpdError):
    """Images without predictions. Those of the others are written.

    Attributes:
        problems: what is wrong with each, by path.
    """

    exit_code = 1

    def __init__(self, problems: dict[str, str], total: int, out: Path):
        self.problems = problems
        lines = [f'  - {path} {problem}' for path, problem in problems.items()]
        counted = f'{len(problems)} of {total} images have no predictions'
        super().__init__('\n'.join([f'{counted}; {out / PREDICTIONS} has the others:', *lines]))


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
    """Detects objects image by image, and draws those scored at least `threshold` into the folder `out`.

    Small images are drawn larger. ``out/predictions.json`` has all that was yielded, also after an interruption. Only
    what this function wrote before is overwritten.

    Args:
        sources: images, and folders of images, also of nested ones.

    Returns:
        An iterator of ``{'image', 'drawn', 'objects'}``: paths, and for each object its ``class``, ``score`` and ``box``
        (x1, y1, x2, y2, pixels of the image as training reads it), by falling score.

    Raises:
        MtpdError: sources that are no images or folders of any, all of them in one message; or `out` holds other files
            of the names to be written, or the images themselves.
        ImagesLeftOut: at the end of the iteration, where images cannot be read.
    """
    out = user_path(out)
    paths = image_files(sources, out)
    drawings = [out / name for name in drawing_names(paths)]
    _refuse_other_files(out, paths, drawings)
    make_writable_folder(out, '--out')
    return _predict_each(model, paths, drawings, out, threshold)


def _predict_each(
    model: nn.Module, paths: list[Path], drawings: list[Path], out: Path, threshold: float
) -> Iterator[dict]:
    rows: list[dict] = []
    problems: dict[str, str] = {}
    # mmdet's other ways to read an image leave it as it is stored.
    turned = model.cfg.data.test.pipeline[0].get('color_type', 'color') in ('color', 'grayscale')
    try:
        for path, drawn in zip(paths, drawings, strict=True):
            try:
                os.fspath(path).encode()
                pixels = read_image(path, turned)
                result = inference_detector(model, str(path))
            except UnicodeEncodeError:
                name = os.fsencode(path).decode(errors='replace')
                problems[name] = 'has a name that is not UTF-8: rename it'
            except CorruptImage as error:
                problems |= error.problems
            except cv2.error:
                height, width = pixels.shape[:2]
                problems[str(path)] = f'is too thin to be resized ({width} x {height} pixels)'
            else:
                objects = _scored_objects(model, result, threshold)
                _save_drawing(plots.annotated(pixels, objects, model.CLASSES), drawn)
                row = {'image': str(path), 'drawn': str(drawn)}
                rows.append(row | {'objects': _named_objects(objects, model.CLASSES)})
                yield rows[-1]
    finally:
        if rows or problems:
            write_json(out / PREDICTIONS, rows)
    if problems:
        raise ImagesLeftOut(problems, len(paths), out)


def _scored_objects(model: nn.Module, result: list | tuple, threshold: float) -> dict:
    """mmdet's result for an image, scored at least `threshold`, as `plots.annotated` takes it, by falling score."""
    boxes_by_class, masks_by_class = result if isinstance(result, tuple) else (result, None)
    if len(boxes_by_class) != len(model.CLASSES):
        raise MtpdError(
            f'the detector has {len(boxes_by_class)} classes, but {len(model.CLASSES)} names are known: give its '
            'recipe or mmdet config with --config.'
        )
    labels = np.repeat(np.arange(len(boxes_by_class)), [*map(len, boxes_by_class)])
    boxes = np.concatenate(boxes_by_class)
    order = np.argsort(-boxes[:, 4], kind='stable')
    order = order[boxes[order, 4] >= threshold]
    objects = {'boxes': boxes[order, :4], 'labels': labels[order], 'scores': boxes[order, 4]}
    if masks_by_class is not None:
        if isinstance(masks_by_class, tuple):  # of Mask Scoring R-CNN, with scores
            masks_by_class = masks_by_class[0]
        masks = [mask for masks in masks_by_class for mask in masks]
        objects['masks'] = [np.asarray(masks[k], bool) for k in order]
    return objects


def _named_objects(objects: dict, classes: Sequence[str]) -> list[dict]:
    columns = (objects[key].tolist() for key in ('labels', 'scores', 'boxes'))
    return [
        {'class': classes[label], 'score': score, 'box': box}
        for label, score, box in zip(*columns, strict=True)
    ]


def _save_drawing(fig: plots.Figure, path: Path) -> None:
    exif = Image.Exif()
    exif[SOFTWARE] = MARK
    kind, options = 'jpeg', {'exif': exif, 'quality': 92}
    if path.suffix.lower() == '.png':
        kind, options = 'png', {'exif': exif}
    with atomic(path) as temporary:
        fig.savefig(temporary, format=kind, dpi=fig.dpi, pil_kwargs=options)


# Which images, and where their drawings go.


def image_files(sources: Iterable[str | Path], out: Path | None = None) -> list[Path]:
    """The images that files and folders name, without those in hidden folders and in `out`; each once.

    Raises:
        MtpdError: sources that are missing, or folders without images: all of them in one message.
    """
    paths: list[Path] = []
    problems = []
    for source in sources:
        folder = user_path(source)
        if folder.is_dir():
            inside = _images_inside(folder, out)
            if not inside:
                kinds = ' '.join(IMAGES)
                problems.append(f'{source}: no images in this folder or below it ({kinds}).')
            paths += inside
        elif folder.exists():
            paths.append(folder)
        elif is_url(str(source)):
            problems.append(f'{source} is a URL: fetch the image, and name its file.')
        elif re.search(r'[*?\[]', str(source)):
            problems.append(
                f'{source}: no such file. Give the pattern without quotes, so that the shell expands it, or a folder for all '
                'images in it.'
            )
        else:
            problems.append(f'{source}: no such file or folder.')
    if problems:
        raise MtpdError('\n'.join(problems))
    return list({path.absolute(): path for path in paths}.values())


def _images_inside(folder: Path, out: Path | None) -> list[Path]:
    drawn = None if out is None or out.resolve() == folder.resolve() else out.resolve()
    return sorted(
        path
        for path in folder.rglob('*')
        if path.suffix.lower() in IMAGES
        and not any(part.startswith('.') for part in path.relative_to(folder).parts)
        and not (drawn and folder.resolve() in drawn.parents and drawn in path.resolve().parents)
        and not path.is_dir()
    )


def drawing_names(paths: Sequence[Path]) -> list[str]:
    """A file name for each image's drawing, no two alike on any file system.

    It is the image's name: ``a.jpg``, or ``a.gif.png``, as all but JPEG is drawn as PNG. Where several images have that
    name, their folders come before it, and then a number.
    """

    def drawn_as(name: str) -> str:
        is_drawable = name.lower().endswith(('.jpg', '.jpeg', '.png'))
        return name if is_drawable else f'{name}.png'

    counts = Counter(drawn_as(path.name).casefold() for path in paths)
    taken: set[str] = set()
    names = []
    for path in paths:
        parts = path.absolute().parts[1:]
        first = 1 if counts[drawn_as(path.name).casefold()] == 1 else 2
        candidates = chain(
            ('_'.join(parts[-depth:]) for depth in range(first, len(parts) + 1)),
            (f'{number}_{path.name}' for number in count(2)),
        )
        name = next(n for n in map(drawn_as, candidates) if n.casefold() not in taken)
        taken.add(name.casefold())
        names.append(name)
    return names


def _refuse_other_files(out: Path, paths: Sequence[Path], drawings: Sequence[Path]) -> None:
    """Raises MtpdError where a drawing would lie among the images, or take the place of another file."""
    if any(path.absolute().parent.resolve() == out.resolve() for path in paths):
        raise MtpdError(
            f'{out} is the folder of the images: the drawings would lie among them. Name another folder with --out.'
        )
    others = [path for path in drawings if os.path.lexists(path) and not _is_drawing(path)]
    if not _is_predictions(out / PREDICTIONS):
        others.append(out / PREDICTIONS)
    if others:
        counted = 'a file' if len(others) == 1 else f'{len(others)} files'
        raise MtpdError(
            f'{counted} that mtpd predict did not write would be overwritten, such as {others[0]}: name another folder '
            'with --out.'
        )


def _is_drawing(path: Path) -> bool:
    """Whether a file is an image that this module has drawn."""
    try:
        with Image.open(path) as image:
            return image.getexif().get(SOFTWARE) == MARK
    except Exception:  # each kind of broken image has its own
        return False


def _is_predictions(path: Path) -> bool:
    """Whether a file is as this module writes it, or is not there yet."""
    try:
        rows = read_json(path, [])
    except (MtpdError, OSError):
        return False
    return isinstance(rows, list) and all(
        isinstance(row, dict) and row.keys() == {'image', 'drawn', 'objects'} for row in rows
    )


def _config_in_checkpoint(meta: dict, checkpoint: Path) -> Config:
    text = meta.get('config') or meta.get('student_config')
    if not text:
        raise MtpdError(
            f'{checkpoint} does not name its detector: give its recipe or mmdet config with --config.'
        )
    try:
        return Config(parse_settings(text, f'the config in {checkpoint}'))
    except MtpdError as error:
        raise MtpdError(f'{error} Give a config with --config.') from None
