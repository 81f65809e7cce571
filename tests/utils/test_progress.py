"""Bars with the time left, and the level of logs."""

from __future__ import annotations

import time

from mtpd.runtime import compat  # noqa: F401  (before mmcv)
from mtpd.utils import progress

# isort: split
from mmcv import ProgressBar


def test_a_bar_appears_when_it_takes_longer_and_says_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, 'BAR_DELAY', 0.2)
    assert list(progress.progress_bar('quick', range(3))) == [0, 1, 2]
    assert capsys.readouterr().err == ''
    rows = progress.progress_bar('slow things', range(4))
    rows.mininterval = 0
    for _ in rows:
        time.sleep(0.15)
    printed = capsys.readouterr()
    assert 'slow things' in printed.err and '<00:0' in printed.err and printed.out == ''


def test_mmcvs_bar_is_ours(monkeypatch, capsys):
    monkeypatch.setattr(progress, 'BAR_DELAY', 0)
    shown = ProgressBar(3)
    shown.bar.mininterval = 0
    for _ in range(3):
        shown.update()
    assert shown.completed == 3
    printed = capsys.readouterr()
    assert 'images' in printed.err and '2/3' in printed.err and printed.out == ''


def test_logs_are_quiet_unless_asked_for(monkeypatch):
    monkeypatch.delenv(progress.VERBOSE_VARIABLE, raising=False)
    assert progress.log_level() == 'WARNING'
    monkeypatch.setenv(progress.VERBOSE_VARIABLE, '1')
    assert progress.log_level() == 'INFO'
