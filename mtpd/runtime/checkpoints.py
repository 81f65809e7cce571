"""Checkpoints: safe reading, both layouts, export, atomic writing.

Layouts (keys of `state_dict`): *plain* is mmdet's own (`backbone.*`, `neck.*`, `bbox_head.*`);
*distiller* is that of the MTPD and MGD repositories and of `mtpd.distill.distiller.Distiller`
(`student.<plain>`, `distill_losses.<name>.*`; the originals' also hold `teacher.<plain>`).
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import sys
from collections import OrderedDict
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import MtpdError
from ..utils.files import read_json_if_whole, sha256
from . import safe_load
from .safe_load import DamagedCheckpoint


def load_checkpoint(path: str | Path, map_location: str = 'cpu', trust: bool = False) -> dict:
    """The checkpoint in `path`, read without running code from it, unless it is to be trusted (`safe_load.load_safely`).

    Raises:
        MtpdError: no such file, not a checkpoint, a damaged one, or one with foreign objects.
    """
    checkpoint = safe_load.load_safely(path, map_location, trust)
    if not isinstance(checkpoint, dict):
        raise MtpdError(f"checkpoint {path} holds no dict: save it as {{'state_dict': ...}}")
    return checkpoint


def load_resumable(path: Path) -> dict:
    """As `load`, of what an earlier training of this run left; it is never replaced unasked.

    Raises:
        MtpdError: as `load`, with the way to have it made again.
    """
    try:
        return load_checkpoint(path)
    except MtpdError as error:
        raise type(error)(
            f'{error}\nAn earlier training left it there: put the right file back, or remove it, '
            'and the same command makes it again'
        ) from error


def student_state(checkpoint: dict, source: str | Path = 'the checkpoint') -> dict[str, Tensor]:
    """The detector's weights with plain keys, whatever the layout (see the module's docstring).

    Raises:
        MtpdError: there are no weights in it; `source` is named.
    """
    state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, dict) or not any(isinstance(v, Tensor) for v in state.values()):
        there = ', '.join(map(str, list(checkpoint)[:5])) or 'nothing'
        raise MtpdError(
            f"{source} holds no weights: expected tensors under its 'state_dict', and there is {there}"
        )
    for prefix in ('module.', 'student.', ''):  # the last one copies
        if any(key.startswith(prefix) for key in state):
            state = _without_prefix(prefix, state)
    # mmcv's EMA hook saves the average in the plain keys, and the raw weights as `ema_*`.
    for key in [k for k, v in state.items() if k.startswith('ema_') or not isinstance(v, Tensor)]:
        del state[key]
    return state


def _without_prefix(prefix: str, state: dict) -> dict:
    """The entries under `prefix`, without it; also of the version metadata that modules need."""

    def cut(entries):
        return {k[len(prefix) :]: v for k, v in entries.items() if k.startswith(prefix)}

    below = OrderedDict(cut(state))
    versions = cut({f'{k}.': v for k, v in getattr(state, '_metadata', {}).items()})
    below._metadata = {key.rstrip('.'): value for key, value in versions.items()}
    return below


def load_strictly(
    model: nn.Module, state: dict, what: str, source: str | Path, only: tuple[str, ...] = ('',)
) -> None:
    """Loads `state` (its keys that start with one of `only`), cast to the model's types.

    Raises:
        MtpdError: missing, unexpected or differently shaped weights, all in one message with the
            likely cause; it names `what` is loaded (e.g. 'the student') and the `source`. Weights
            that are not finite.
    """
    check_finite(state, source)
    own = model.state_dict()
    fitting, shapes = copy.copy(state), {}
    for key, value in state.items():
        if key in own and own[key].shape != value.shape:
            shapes[key] = (tuple(own[key].shape), tuple(value.shape))
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
    only_shapes = len(problems) == 1 and bool(shapes)
    lines.append(
        (only_shapes and _classes_hint(model, shapes))
        or f'  {len(own) - len(result.missing_keys)} of {len(own)} weights match: the file is of '
        'another architecture (type, depth or width); give the checkpoint of this very config'
    )
    raise MtpdError('\n'.join(lines))


def check_finite(state: dict, source: str | Path) -> None:
    """Raises MtpdError where weights are NaN or infinite: the training that made them had diverged."""
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


def _classes_hint(model: nn.Module, shapes: dict) -> str:
    """Names both numbers of classes where they explain all of `shapes` (own, file's)."""
    own = max((m.num_classes for m in model.modules() if hasattr(m, 'num_classes')), default=0)
    found = set()
    for key, (mine, theirs) in shapes.items():
        if not own or key.startswith(('backbone.', 'neck.')) or mine[1:] != theirs[1:]:
            return ''
        background = mine[0] == own + 1  # else a multiple of the classes: anchors, box sides
        found.add(theirs[0] - 1 if background else theirs[0] * own / mine[0])
    if len(found) != 1:
        return ''
    return (
        f'  likely cause: the model has {own} classes and the file {found.pop():g}: give a '
        'checkpoint of the same classes, or change num_classes'
    )


def load_student(model: nn.Module, path: str | Path) -> dict:
    """Loads a plain detector from a checkpoint of any layout, strictly; returns its `meta`.

    Raises:
        MtpdError: from `load`, `student_state` and `load_strictly`.
    """
    checkpoint = load_checkpoint(path)
    load_strictly(model, student_state(checkpoint, path), 'the student', path)
    return checkpoint.get('meta') or {}


# Of a checkpoint's `meta`, what describes its detector.
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
        return part.replace(dst.with_name(f'{stem}-{sha256(part)[:8]}.pth'))
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
        meta: entries to add to the `meta`, plain values only. Kept of the source's is what describes
            the student: config, classes, versions, the stages that made it. `exported_from` names the
            source, or what that was exported from.
        trust: run what code `src` holds, see `safe_load.load_safely`.

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
        'exported_from': {'file': Path(src).name, 'sha256': sha256(src)},
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
        # A data worker's end is raised wherever the process is at the time, see `data.workers`.
        if str(error).startswith('DataLoader worker'):
            raise
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


# Where a training that was cut off goes on: its newest checkpoint that is whole.


class ResumePoint(NamedTuple):
    """A resumable checkpoint, and the updates done in it."""

    path: Path
    update: int


def find_resume_point(folder: Path) -> ResumePoint | None:
    """The newest of latest.pth and previous.pth that is whole; says so where that is not latest.pth.

    Raises:
        MtpdError: one is whole, and no training wrote it.

    Files that were being written when a training was killed are removed.
    """
    for part in folder.glob('.*.part'):  # of a process that was killed while it wrote
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
                f'{path} is not the checkpoint of a training: remove it, or put it back.'
            )
        _report_damaged(damaged, f'the training goes on from {path.name}, update {meta["iter"]}')
        return ResumePoint(path, meta['iter'])
    _report_damaged(damaged, 'the training starts afresh')
    return None


def is_finished(final: Path) -> bool:
    """Whether the detector that a training leaves is there; a damaged one is made again from its whole latest.pth.

    Raises:
        MtpdError: it is damaged, and there is nothing whole to make it from; or it is no checkpoint.
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
    """What there is to go on from when a training has ended too early, as the beginning of a sentence."""
    done = read_json_if_whole(folder / 'training.json', {}).get('update')
    if done is None or not (folder / 'latest.pth').is_file():
        return 'No checkpoint was written yet: the same command begins again'
    return f'latest.pth stays as update {done} left it: the same command goes on from there'


def _report_damaged(damaged: list[str], what: str) -> None:
    if damaged:
        print('\n'.join([*damaged, what]), flush=True)
