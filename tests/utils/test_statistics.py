"""A ratio of paired means, and its interval."""

from __future__ import annotations

import pytest
from scipy import stats

from mtpd.utils.statistics import paired_ratio

GAINS = [0.5, 0.3, 0.6, 0.2, 0.5], [4.8, 5.1, 4.4, 4.9, 5.2]


def test_the_ends_are_the_ratios_that_a_t_test_just_does_not_refuse():
    """Fieller's interval: at r, a - r * b is as far from 0 as Student's t allows."""
    ratio = paired_ratio(*GAINS)
    assert ratio.value == pytest.approx(2.1 / 24.4)
    assert ratio.low < ratio.value < ratio.high and ratio.n == 5
    for end in (ratio.low, ratio.high):
        rest = [a - end * b for a, b in zip(*GAINS, strict=True)]
        assert stats.ttest_1samp(rest, 0).pvalue == pytest.approx(0.05, abs=1e-9)


def test_what_has_no_bounds_has_no_ends():
    one = paired_ratio([3.0], [1.5])
    assert (one.value, one.low, one.high, one.n) == (2, None, None, 1)
    unsure = paired_ratio([1.0, 2.0, 3.0], [2.0, -1.0, 0.5])
    assert unsure.value == pytest.approx(4) and unsure.low is unsure.high is None
    assert paired_ratio([], []) is None
    assert paired_ratio([1.0, 2.0], [1.0, -1.0]) is None
