"""Class names: which classes of a checkpoint are those of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import MtpdError
from .annotations import read_name


def known_classes(names: Any) -> tuple[str, ...] | None:
    """The class names that a checkpoint's `meta.CLASSES` has; None where it says nothing that can be read as names."""
    if isinstance(names, str):
        return (names,)
    if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def match_classes(
    dataset: Sequence[str], trained: Sequence[str] | None, checkpoint: Path | str
) -> tuple[str, ...]:
    """The classes of a checkpoint's outputs, in their order, by the dataset's names where it has them.

    Args:
        dataset: class names of a dataset.
        trained: those of the checkpoint; None: it doesn't say, and is taken to have the dataset's.

    Raises:
        MtpdError: the checkpoint lacks classes of the dataset.
    """
    if trained is None:
        return tuple(dataset)
    comparable = _comparison((*dataset,), (*trained,))
    by_name = {comparable(name): name for name in dataset}
    outputs = tuple(by_name.get(comparable(name), name) for name in trained)
    if missing := [name for name in dataset if name not in outputs]:
        text = (
            f'{checkpoint} was trained on other classes: it lacks {len(missing)} of the {len(dataset)} classes of the dataset '
            f"({list_names(missing)}), and has {len(trained)} ({list_names(trained)}). Give a checkpoint with the dataset's "
            'classes.'
        )
        if len(trained) == len(dataset):
            text += (
                ' `mtpd eval --ignore-classes` measures it nevertheless, and takes its first class for the first of the '
                'dataset, and so on.'
            )
        raise MtpdError(text)
    return outputs


def same_classes(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether both have the same classes in the same order."""
    comparable = _comparison((*first,), (*second,))
    return [*map(comparable, first)] == [*map(comparable, second)]


def list_names(names: Sequence[str]) -> str:
    """The first three names, in a text."""
    return ', '.join([*names[:3], '...'] if len(names) > 3 else names)


def _comparison(*lists: tuple[str, ...]):
    """How names are compared: exactly where a list has two that differ by case or underscores alone."""
    if all(len({_loose(name) for name in names}) == len(names) for names in lists):
        return _loose
    return read_name


def _loose(name: str) -> str:
    return read_name(name).lower().replace('_', ' ')  # early mmdet: traffic_light
