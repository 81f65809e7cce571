"""Settings of a run, as its recipe.py states them: read without running code, and compared."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import MtpdError
from ..utils.files import flatten, json_value
from ..utils.paths import display_path

# Settings that may change between the starts of a run: how many corrupt images pass, how many processes load images, and what
# the paper has.
CHANGEABLE = ('data.corrupt_limit', 'runtime.workers', 'paper')


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings that a recipe.py states, None where there is no such file. Nothing of it is run.

    Raises:
        MtpdError: the file is not as the kit writes it.
    """
    try:
        return parse_settings(path.read_text(encoding='utf-8'), display_path(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except MtpdError as error:
        raise MtpdError(
            f'{error} Put the file back as it was, or use another run directory.'
        ) from None


def parse_settings(text: str, source: str) -> dict[str, Any]:
    """The settings that a config's text states, all of them literals. Nothing of it is run.

    Args:
        source: where the text is from, for the message.

    Raises:
        MtpdError: the text is more than literals.
    """
    try:
        return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(text).body}
    except (SyntaxError, ValueError, AttributeError, TypeError):
        raise MtpdError(
            f'{source} is not as the kit writes it (`name = literal` only), and is not run.'
        ) from None


def differing_settings(a: dict, b: dict, ignored: Iterable[str] = ()) -> list[str]:
    """The dotted keys in which two recipes' settings differ, in alphabetical order.

    A recipe of an earlier version may lack a key: it counts as None, and a switch of `speed` as 'auto'.

    Args:
        ignored: dotted keys that may differ, with all below them.
    """
    flat_a, flat_b = (dict(flatten(json_value(settings))) for settings in (a, b))
    return [
        key
        for key in sorted(flat_a | flat_b)
        if _value_or_default(flat_a, key) != _value_or_default(flat_b, key)
        and not any(f'{key}.'.startswith(f'{name}.') for name in ignored)
    ]


def _value_or_default(flat: dict[str, Any], key: str) -> Any:
    return flat.get(key, 'auto' if key.startswith('speed.') else None)
