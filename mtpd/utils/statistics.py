"""How sure a mean, a difference and a rank correlation are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval, which are None where `n` is too small for one."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def sign(self) -> int:
        """1 or -1 where all of the interval is above or below 0, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)

    def json(self) -> dict:
        return asdict(self)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Mean and Student's t interval; no ends for a single value, None for no value."""
    values = np.asarray(list(values), float)
    n = len(values)
    if not n:
        return None
    centre = float(values.mean())
    if n == 1:
        return Interval(centre, None, None, 1)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Interval(centre, centre - reach, centre + reach, n)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Interval | None:
    """Mean of a - b over the seeds that both have, with its t interval."""
    return mean_interval([a[seed] - b[seed] for seed in a if seed in b])


def percentile_interval(drawn: Sequence[float] | np.ndarray) -> np.ndarray:
    """Low and high end (2, ...) of the percentile intervals of bootstrap replicates (R, ...)."""
    tail = 100 * (1 - CONFIDENCE) / 2
    return np.nanpercentile(drawn, (tail, 100 - tail), axis=0)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Interval | None:
    """Spearman's rank correlation, and the percentile interval of a bootstrap over the pairs.

    Fewer than four pairs, or no spread in x or y: None.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    n = len(x)
    if n < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    draws = np.random.default_rng(0).integers(n, size=(BOOTSTRAP_DRAWS, n))
    drawn = [_spearman(x[rows], y[rows]) for rows in draws]
    low, high = percentile_interval(drawn)
    return Interval(_spearman(x, y), float(low), float(high), n)


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:  # a draw of one pair over and over
        return float('nan')
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


# Numbers as text: with a true minus sign, never a negative zero, and intervals in brackets.


def format_number(value: float, digits: int = 1) -> str:
    text = f'{value:.{digits}f}'
    return text.replace('-', '−') if float(text) else text.lstrip('-')


def format_signed(value: float, digits: int = 1) -> str:
    """A difference with its sign: +1.2, −0.4, ±0.0."""
    text = format_number(value, digits)
    if not float(f'{value:.{digits}f}'):
        return f'±{text}'
    return text if text.startswith('−') else f'+{text}'


def printed_difference(after: float, before: float) -> str:
    """The difference of two figures as they are printed, so that a reader who subtracts them gets the same."""
    return format_signed(round(after, 1) - round(before, 1))


def format_interval(
    found: Interval | None, sign: bool = False, digits: int = 1, star: bool = False
) -> str | None:
    """'1.8 [0.9, 2.7]', of one seed '1.8'; None stays None.

    Args:
        star: after an interval that leaves out 0.
    """
    if found is None:
        return None
    value = (format_signed if sign else format_number)(found.value, digits)
    if found.low is None:
        return value
    mark = '\N{NO-BREAK SPACE}*' if star and found.sign else ''
    return (
        f'{value} [{format_number(found.low, digits)}, {format_number(found.high, digits)}]{mark}'
    )
