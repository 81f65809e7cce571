"""Means, differences and rank correlations with their 95 % intervals, and how they are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval, of `n` samples; the ends are None for a single sample."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def sign(self) -> int:
        """1 where the whole interval is above 0, -1 where it is below, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)

    def json(self) -> dict:
        """The fields as JSON can hold them."""
        return asdict(self)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """The mean and its Student's t interval; no ends for a single value, None for no value."""
    values = np.asarray(list(values), float)
    n = len(values)
    if n == 0:
        return None
    mean = float(values.mean())
    if n == 1:
        return Interval(mean, None, None, 1)
    half_width = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half_width, mean + half_width, n)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Interval | None:
    """The mean of a - b over the seeds that both have, with its t interval. `a` and `b`: seed -> value."""
    return mean_interval([a[seed] - b[seed] for seed in a if seed in b])


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> Interval | None:
    """The mean of `a` by that of `b`, values that belong together in pairs, with Fieller's interval.

    No ends for a single pair, and where `b` is not shown to differ from 0: then the ratio has no bounds. None for no pair,
    and where the mean of `b` is 0.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    n = len(a)
    if n == 0 or b.mean() == 0:
        return None
    top, bottom = float(a.mean()), float(b.mean())
    value = top / bottom
    if n == 1:
        return Interval(value, None, None, n)
    covariance = np.cov(a, b, ddof=1) * stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) ** 2 / n
    square, middle, rest = (
        bottom**2 - covariance[1, 1],
        top * bottom - covariance[0, 1],
        top**2 - covariance[0, 0],
    )
    if square <= 0:
        return Interval(value, None, None, n)
    reach = float(np.sqrt(max(0.0, middle**2 - square * rest)))
    return Interval(value, float(middle - reach) / square, float(middle + reach) / square, n)


def percentile_interval(replicates: Sequence[float] | np.ndarray) -> np.ndarray:
    """Low and high end (2, ...) of the percentile intervals of bootstrap replicates (R, ...); NaNs are left out."""
    tail = 100 * (1 - CONFIDENCE) / 2
    return np.nanpercentile(replicates, (tail, 100 - tail), axis=0)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Interval | None:
    """Spearman's rank correlation with the percentile interval of a bootstrap over the pairs.

    None for fewer than four pairs, and where all x or all y are equal.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    n = len(x)
    if n < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    draws = np.random.default_rng(0).integers(n, size=(BOOTSTRAP_DRAWS, n))
    low, high = percentile_interval([_spearman(x[pairs], y[pairs]) for pairs in draws])
    return Interval(_spearman(x, y), float(low), float(high), n)


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:  # a bootstrap draw of one pair only
        return float('nan')
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


# Numbers as text.


def format_number(value: float, digits: int = 1) -> str:
    """With a true minus sign, and no negative zero: −1.2, 0.0."""
    text = f'{value:.{digits}f}'
    return text.replace('-', '−') if float(text) else text.lstrip('-')


def format_signed(value: float, digits: int = 1) -> str:
    """With its sign: +1.2, −0.4, ±0.0."""
    text = format_number(value, digits)
    if text.startswith('−'):
        return text
    return f'+{text}' if float(text) else f'±{text}'


def printed_difference(after: float, before: float) -> str:
    """after - before, both rounded as they are printed, so that a reader who subtracts them gets the same."""
    return format_signed(round(after, 1) - round(before, 1))


def format_interval(
    interval: Interval | None, sign: bool = False, digits: int = 1, star: bool = False
) -> str | None:
    """'1.8 [0.9, 2.7]'; the value alone where there are no ends; None for None.

    Args:
        sign: the value as `format_signed` gives it.
        star: a star after an interval that leaves out 0.
    """
    if interval is None:
        return None
    value = (format_signed if sign else format_number)(interval.value, digits)
    if interval.low is None:
        return value
    low, high = format_number(interval.low, digits), format_number(interval.high, digits)
    mark = '\N{NO-BREAK SPACE}*' if star and interval.sign else ''
    return f'{value} [{low}, {high}]{mark}'
