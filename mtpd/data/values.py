"""What a value of a JSON file is, and how much of it is shown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any


def is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_text(value: Any) -> bool:
    """Something to be read, which can be a file's name and be printed."""
    return (
        isinstance(value, str)
        and bool(value.strip())
        and '\0' not in value
        and not re.search('[\ud800-\udfff]', value)
    )


def is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**53


def are_finite(values: list) -> bool:
    """Whether all are finite numbers, by their sum: a large file has tens of millions of them."""
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def short(value: Any) -> str:
    text = repr(_few(value))
    return text if len(text) <= 80 else f'{text[:77]}...'


def _few(value: Any) -> Any:
    """No more of a large value than is shown."""
    if isinstance(value, (str, bytes)):
        return value[:80]
    if isinstance(value, int) and abs(value) > 2**64:
        return 'a huge number'
    if isinstance(value, (list, tuple)):
        return type(value)(_few(item) for item in value[:8])
    if isinstance(value, dict):
        return {_few(key): _few(item) for key, item in _first(value.items(), 8)}
    return value


def _first(items: Iterable, count: int) -> list:
    return [item for item, _ in zip(items, range(count), strict=False)]
