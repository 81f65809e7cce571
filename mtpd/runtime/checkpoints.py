"""Checkpoints: read safely, in any layout, exported, written atomically, and where a training goes on.

Layouts (keys of `state_dict`, or of what takes its place): *plain* is mmdet's own (`backbone.*`, `neck.*`, `bbox_head.*`);
*distiller* is that of the MTPD and MGD repositories and of `mtpd.distill.distiller.Distiller`
(`student.<plain>`, `distill_losses.<name>.*`; the originals' also hold `teacher.<plain>`). Other tools put their own
prefixes before the plain keys, also several: mmrazor, torch's DDP, FSDP and `torch.compile`, Lightning.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import MtpdError
from ..utils.files import file_sha256, read_json_if_valid
from .safe_load import DamagedCheckpoint, load_safely, python_command

# With it begin keys of a detector of mmdet.
DETECTOR_PART = 'backbone.'
# What other modules put before a detector's keys: DDP, distillers, mmrazor (two of versions), Lightning.
WRAPPERS = ('module.', 'student.', 'algorithm.', 'architecture.', 'model.')
# What torch puts into keys where a module is compiled, sharded or recomputed.
WRAPPED_PART = re.compile(
    r'(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.'
)
# What lies beside a student.
BESIDE_STUDENT = ('teacher.', 'teacher_', 'distiller.', 'distill_losses.')
TEACHER_PART = re.compile(r'(?:^|[._])teacher[._]')


def load_checkpoint(path: str | Path, map_location: str = 'cpu', trust: bool = False) -> dict:
    """The dict in `path`, with the class names in its `meta` as `CLASSES`. Code in it runs only where `trust` is set.

    Raises:
        MtpdError: as `load_safely`, or the file holds no dict.
    """
    checkpoint = load_safely(path, map_location, trust)
    if not isinstance(checkpoint, dict):
        raise MtpdError(f"checkpoint {path} does not hold a dict: save it as {{'state_dict': ...}}")
    _name_classes(checkpoint.get('meta'))
    return checkpoint


def _name_classes(meta: Any) -> None:
    """Puts the class names that mmdet 3 has in a checkpoint's `meta` where mmdet 2 has them."""
    dataset = meta.get('dataset_meta') if isinstance(meta, dict) else None
    if isinstance(dataset, dict) and 'CLASSES' not in meta:
        names = dataset.get('classes') or dataset.get('CLASSES')
        if isinstance(names, (list, tuple)):
            meta['CLASSES'] = tuple(names)


def load_resumable(path: Path) -> dict:
    """As `load_checkpoint`, of a file that an earlier training of this run wrote.

    Raises:
        MtpdError: as `load_checkpoint`, with the way to have it made again.
    """
    try:
        return load_checkpoint(path)
    except MtpdError as error:
        raise type(error)(
            f'{error}\nAn earlier training wrote this file: put the right file back, or remove it, '
            'and the same command makes it again'
        ) from error


def student_state(checkpoint: dict, source: str | Path = 'the checkpoint') -> dict[str, Tensor]:
    """The detector's weights with plain keys, whatever the layout (see the module's docstring).

    Raises:
        MtpdError: there are no weights in it, several sets of weights, or a teacher and no student; `source` is named.
    """
    weights, place = _weight_set(checkpoint, source)
    state = _renamed(weights, lambda key: WRAPPED_PART.sub('', key))  # makes a copy
    while not any(key.startswith(DETECTOR_PART) for key in state):
        wrapper = next((w for w in WRAPPERS if any(key.startswith(w) for key in state)), None)
        if wrapper is None:
            break
        state = _renamed(state, lambda key, w=wrapper: key[len(w) :] if key.startswith(w) else None)
    # mmcv's EMA hook saves the average in the plain keys, and the raw weights as `ema_*`.
    beside = [key for key in state if key.startswith((*BESIDE_STUDENT, 'ema_'))]
    for key in beside:
        del state[key]
    # Of some other prefix, beside a teacher.
    is_unknown = any(TEACHER_PART.search(key) for key in beside) and not any(
        key.startswith(DETECTOR_PART) for key in state
    )
    if not state or is_unknown or any(TEACHER_PART.search(key) for key in state):
        prefixes = sorted({key.rpartition(DETECTOR_PART)[0] for key in weights})
        prefixes = [item for item in prefixes if item and not TEACHER_PART.search(item)]
        prefix = prefixes[0] if len(prefixes) == 1 else 'PREFIX.'
        names = list(dict.fromkeys(key.partition('.')[0] for key in weights))
        raise MtpdError(
            f'{source} holds a teacher, but its student was not found: the weights are {", ".join(names[:5])}. '
            "Write the student's weights to a file of their own: "
            + python_command(
                f"c = torch.load('{source}', map_location='cpu'){place}; n = len('{prefix}')",
                f"torch.save({{k[n:]: v for k, v in c.items() if k[:n] == '{prefix}'}}, 'NEW.pth')",
            )
        )
    return state


def _weight_set(checkpoint: dict, source: str | Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a checkpoint, and the text of the subscript at which it has them. Raises MtpdError."""
    sets = {
        key: value
        for key, value in checkpoint.items()
        if isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values())
    }
    # mmengine's `ema_state_dict` has the raw weights, and its `state_dict` their average.
    others = sets.keys() - {'state_dict', 'ema_state_dict'}
    key = 'state_dict' if 'state_dict' in checkpoint else next(iter(sets), None)
    averaged = any('ema' in str(name) for name in others)
    if len(sets) > 1 and (key != 'state_dict' or averaged):
        names = [str(name) for name in sets]
        raise MtpdError(
            f'{source} holds several sets of weights: {", ".join(names)}. Write the right one to a file of its own: '
            + python_command(
                f"c = torch.load('{source}', map_location='cpu')",
                f"torch.save(c['{names[0]}'], 'NEW.pth')",
            )
        )
    state, place = (checkpoint, '') if key is None else (checkpoint[key], f"['{key}']")
    tensors = OrderedDict()
    if isinstance(state, dict):
        items = state.items()
        tensors.update((k, v) for k, v in items if isinstance(k, str) and isinstance(v, Tensor))
    if not tensors:
        keys = ', '.join(map(str, list(checkpoint)[:5])) or 'nothing'
        raise MtpdError(
            f"{source} holds no weights: expected tensors under its 'state_dict', but found {keys}"
        )
    tensors._metadata = getattr(state, '_metadata', {})
    return tensors, place


def _renamed(state: dict, rename: Callable[[str], str | None]) -> OrderedDict:
    """The entries and the modules' versions of `state` under other keys, without those whose new key is None."""
    entries = OrderedDict(
        (new, value) for key, value in state.items() if (new := rename(key)) is not None
    )
    versions = getattr(state, '_metadata', {}).items()
    entries._metadata = {
        new.rstrip('.'): value for key, value in versions if (new := rename(f'{key}.')) is not None
    }
    return entries


def load_strictly(
    model: nn.Module, state: dict, what: str, source: str | Path, only: tuple[str, ...] = ('',)
) -> None:
    """Loads `state` into a model, cast to the model's types.

    Args:
        what: the model's name in messages, such as 'the student'.
        source: where `state` is from, for messages.
        only: beginnings of the keys that are loaded.

    Raises:
        MtpdError: weights are missing, unexpected or of other shapes (all in one message, with the likely cause), or are
            not finite.
    """
    check_finite(state, source)
    expected = model.state_dict()
    fitting, shapes = copy.copy(state), {}
    for key, value in state.items():
        if key in expected and expected[key].shape != value.shape:
            shapes[key] = (tuple(expected[key].shape), tuple(value.shape))
        if key in shapes or not key.startswith(only):
            del fitting[key]
    result = model.load_state_dict(fitting, strict=False)
    problems = {
        'not in the file': [key for key in result.missing_keys if key not in shapes],
        f'not in {what}': result.unexpected_keys,
        f'other shape ({what}, file)': [f'{key} {a} {b}' for key, (a, b) in shapes.items()],
    }
    problems = {kind: keys for kind, keys in problems.items() if keys}
    if not problems:
        return
    lines = [f'{source} does not fit {what}:']
    for kind, keys in problems.items():
        more = f' and {len(keys) - 5} more' if len(keys) > 5 else ''
        lines.append(f'  {kind}: {", ".join(keys[:5])}{more}')
    hint = _classes_hint(model, shapes) if len(problems) == 1 else ''
    matching = len(expected) - len(result.missing_keys)
    lines.append(
        hint
        or f'  {matching} of {len(expected)} weights match: the file has another architecture (type, depth or width); '
        'give a checkpoint of exactly this config'
    )
    raise MtpdError('\n'.join(lines))


def check_finite(state: dict, source: str | Path) -> None:
    """Raises MtpdError where weights are NaN or infinite."""
    bad = [
        key
        for key, value in state.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if bad:
        more = f' and {len(bad) - 3} more' if len(bad) > 3 else ''
        raise MtpdError(
            f'{source} holds weights that are NaN or infinite ({", ".join(bad[:3])}{more}): its training diverged. Give '
            'another checkpoint, or train it again with a lower learning rate'
        )


def _has_sigmoid(model: nn.Module, key: str) -> bool:
    """Whether the head that has the weight `key` tells classes by sigmoids, with no output for the background."""
    parts = key.split('.')
    owners = [model.get_submodule('.'.join(parts[:depth])) for depth in range(1, len(parts))]
    heads = [module for module in owners if hasattr(module, 'num_classes')]
    return bool(heads) and getattr(heads[-1], 'use_sigmoid_cls', False)


def _classes_hint(model: nn.Module, shapes: dict) -> str:
    """A message with both numbers of classes, where they explain all `shapes` (the model's, the file's); else ''."""
    classes = max((m.num_classes for m in model.modules() if hasattr(m, 'num_classes')), default=0)
    file_classes = set()
    for key, (shape, file_shape) in shapes.items():
        if not classes or key.startswith(('backbone.', 'neck.')) or shape[1:] != file_shape[1:]:
            return ''
        if shape[0] == classes + 1 and not _has_sigmoid(model, key):  # with the background
            file_classes.add(file_shape[0] - 1)
        else:  # a multiple of the classes, by anchors or the sides of boxes
            file_classes.add(file_shape[0] * classes / shape[0])
    if len(file_classes) != 1:
        return ''
    return (
        f'  likely cause: the model has {classes} classes and the file {file_classes.pop():g}: give a '
        'checkpoint of the same classes, or change num_classes'
    )


def load_student(model: nn.Module, path: str | Path, what: str = 'the student') -> dict:
    """Loads a plain detector from a checkpoint of any layout, strictly; returns its `meta`.

    Args:
        what: the model's name in messages.

    Raises:
        MtpdError: as `load_checkpoint`, `student_state` and `load_strictly`.
    """
    checkpoint = load_checkpoint(path)
    load_strictly(model, student_state(checkpoint, path), what, path)
    return checkpoint.get('meta') or {}


# The entries of a checkpoint's `meta` that describe its detector.
DESCRIPTIVE_META = (
    'CLASSES',
    'PALETTE',
    'config',
    'mmdet_version',
    'mmcv_version',
    'epoch',
    'iter',
)
DESCRIPTIVE_META += (
    'recipe',
    'detector',
    'seed',
    'arm',
    'stage',
    'teacher',
    'stages',
    'exported_from',
)


def publish_student(
    src: str | Path, dst: str | Path, half: bool = False, trust: bool = False
) -> Path:
    """`export_student` under a name that ends in its SHA-256, as mmdet's: ``student-7ee888e0.pth``; returns the path.

    The same source gives the same file. `dst`: the name without that, or a folder, to keep the source's name.

    Raises:
        MtpdError: as `export_student`.
    """
    dst = Path(dst)
    dst = dst / Path(src).name if dst.is_dir() else dst
    stem = re.sub('-[0-9a-f]{8}$', '', dst.name.removesuffix('.pth'))
    part = dst.with_name(f'.{stem}.{os.getpid()}.pth')
    try:
        export_student(src, part, half, trust=trust)
        return part.replace(dst.with_name(f'{stem}-{file_sha256(part)[:8]}.pth'))
    finally:
        part.unlink(missing_ok=True)


def export_student(
    src: str | Path,
    dst: str | Path,
    half: bool = False,
    meta: dict | None = None,
    trust: bool = False,
) -> Path:
    """Writes the student in `src` (any layout) to `dst` as a plain mmdet checkpoint.

    Args:
        half: store floats as float16 (half the size; loading casts them back).
        meta: entries to add to the `meta`, plain values only. The source's entries stay that describe the student:
            config, classes, versions, the stages that made it. `exported_from` names the source, or what that was
            exported from.
        trust: run what code `src` holds, see `load_safely`.

    Raises:
        MtpdError: `src` cannot be read or holds no weights, or `dst` cannot be written.
    """
    checkpoint = load_checkpoint(src, trust=trust)
    state = student_state(checkpoint, src)
    for key, value in state.items():
        # A variance may exceed float16's 65504: such a tensor stays as it is.
        if half and value.is_floating_point() and value.half().isfinite().all():
            state[key] = value.half()
    old = checkpoint.get('meta') or {}
    if 'student_config' in old:
        old = {**old, 'config': old['student_config']}
    new = {
        'mmdet_version': metadata.version('mmdet'),
        'mmcv_version': metadata.version('mmcv-full'),
        'exported_from': {'file': Path(src).name, 'sha256': file_sha256(src)},
        **{key: old[key] for key in DESCRIPTIVE_META if key in old},
        **(meta or {}),
    }
    origin = new['exported_from']
    new['exported_from'] = {**origin, 'half': half or origin.get('half', False)}
    save_atomic({'meta': new, 'state_dict': state}, dst)
    return Path(dst)


def save_atomic(obj: object, path: str | Path) -> None:
    """`torch.save` that leaves either the whole new file or the old one; an equal `meta` gives equal bytes.

    Raises:
        MtpdError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    if isinstance(obj, dict) and 'meta' in obj:
        obj = {**obj, 'meta': _with_interned_texts(obj['meta'])}
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open('wb') as file:
            torch.save(obj, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch's zip writer wraps a full disk's OSError
        raise MtpdError(
            f'checkpoint {path} cannot be written ({error}): check permissions and free space'
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _with_interned_texts(value: object) -> object:
    """An equal value in which equal texts are one object: pickle writes an object once, and refers to it."""
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        return {
            _with_interned_texts(key): _with_interned_texts(item) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(map(_with_interned_texts, value))
    return value


# Where a training that was cut off goes on


class ResumePoint(NamedTuple):
    """A resumable checkpoint, and the updates done in it."""

    path: Path
    update: int


def find_resume_point(folder: Path) -> ResumePoint | None:
    """The newest of latest.pth and previous.pth that is whole; prints which ones are damaged.

    Temporary files (`.*.part`) that a training was writing when it was killed are removed.

    Raises:
        MtpdError: a whole one is not the checkpoint of a training.
    """
    for part in folder.glob('.*.part'):
        part.unlink()
    damaged = []
    for path in (folder / 'latest.pth', folder / 'previous.pth'):
        if not path.is_file():
            continue
        try:
            meta = load_resumable(path).get('meta') or {}
        except DamagedCheckpoint as error:
            damaged.append(str(error).splitlines()[0])
            continue
        if not isinstance(meta.get('iter'), int):
            raise MtpdError(
                f'{path} is not the checkpoint of a training: remove it, or put the right file back.'
            )
        _report_damaged(damaged, f'the training goes on from {path.name}, update {meta["iter"]}')
        return ResumePoint(path, meta['iter'])
    _report_damaged(damaged, 'the training starts from the beginning')
    return None


def is_finished(final: Path) -> bool:
    """Whether the detector that a training leaves (`final`) is there and whole; one that is damaged is made again from latest.pth.

    Raises:
        MtpdError: it is damaged, and so is latest.pth; or it is no checkpoint.
    """
    if not final.is_file():
        return False
    try:
        load_resumable(final)
    except DamagedCheckpoint as error:
        try:
            load_checkpoint(final.with_name('latest.pth'))
        except MtpdError:
            raise error from None
        _report_damaged([str(error).splitlines()[0]], 'it is made again from latest.pth')
        return False
    return True


def resume_hint(folder: Path) -> str:
    """Where a training that ended too early goes on: the beginning of a sentence."""
    done = read_json_if_valid(folder / 'training.json', {}).get('update')
    if done is None or not (folder / 'latest.pth').is_file():
        return 'No checkpoint was written yet: the same command begins again'
    return f'latest.pth stays as update {done} left it: the same command goes on from there'


def _report_damaged(damaged: list[str], consequence: str) -> None:
    if damaged:
        print('\n'.join([*damaged, consequence]), flush=True)
