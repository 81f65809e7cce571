"""Numbers as text: with a true minus sign, never a negative zero, and intervals in brackets."""

from __future__ import annotations

from .intervals import Interval


def number(value: float, digits: int = 1) -> str:
    text = f'{value:.{digits}f}'
    return text.replace('-', '−') if float(text) else text.lstrip('-')


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign: +1.2, −0.4, ±0.0."""
    text = number(value, digits)
    if not float(f'{value:.{digits}f}'):
        return f'±{text}'
    return text if text.startswith('−') else f'+{text}'


def gain(after: float, before: float) -> str:
    """The difference of two figures as they are printed, so that a reader who subtracts them gets the same."""
    return signed(round(after, 1) - round(before, 1))


def bracketed(
    found: Interval | None, sign: bool = False, digits: int = 1, star: bool = False
) -> str | None:
    """'1.8 [0.9, 2.7]', of one seed '1.8'; None stays None.

    Args:
        star: after an interval that leaves out 0.
    """
    if found is None:
        return None
    value = (signed if sign else number)(found.value, digits)
    if found.low is None:
        return value
    mark = '\N{NO-BREAK SPACE}*' if star and found.sign else ''
    return f'{value} [{number(found.low, digits)}, {number(found.high, digits)}]{mark}'
