"""Loss curves that grow while a training runs."""

from __future__ import annotations

import json

import pytest

from mtpd.report import live


def put(path, updates: int) -> None:
    rows = [
        {'update': u, 'updates': 40, 'time': 0.5, 'loss': 2 - u / 40, 'loss_cls': 1 - u / 40, 'loss_mgd_fpn_0': 1.0}
        for u in range(10, updates + 1, 10)
    ]  # fmt: skip
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def test_the_figure_grows_and_says_the_time_left(tmp_path, monkeypatch):
    import threading

    monkeypatch.setattr(live, 'MIN_PAUSE', 0.01)
    monkeypatch.setattr(live, 'PAUSE_FACTOR', 0)
    alts, shown = [], threading.Event()

    def show(fig):
        alts.append(fig.alt)
        shown.set()

    with live.live_losses(tmp_path, 'teacher A', show):
        for updates in (10, 30):
            shown.clear()
            put(tmp_path / 'log.json', updates)
            assert shown.wait(20)
    assert any('update 10 of 40, 0.50 s an update, 0:00:15 left' in alt for alt in alts)
    assert 'update 30 of 40, 0.50 s an update, 0:00:05 left' in alts[-1]
    assert 'distillation loss' in alts[-1]
    assert threading.active_count() == 1 or 'watch' not in str(threading.enumerate())


def test_what_is_trained_first_is_shown_and_named(tmp_path, monkeypatch):
    import threading

    monkeypatch.setattr(live, 'MIN_PAUSE', 0.01)
    monkeypatch.setattr(live, 'PAUSE_FACTOR', 0)
    alts, shown = [], threading.Event()
    first, old, stage = (tmp_path / name for name in ('first', 'old', 'stage'))
    for folder in (first, old, stage):
        folder.mkdir()
    put(old / 'log.json', 40)  # done before

    def show(fig):
        alts.append(fig.alt)
        shown.set()

    with live.live_losses(stage, 'teacher A', show, {old: 'baseline', first: 'stage 1'}):
        for folder in (first, stage):
            shown.clear()
            put(folder / 'log.json', 20)
            assert shown.wait(20)
    assert alts[0].startswith('first, stage 1: update 20 of 40') and 'distillation' not in alts[0]
    assert alts[-1].startswith('update 20 of 40') and 'distillation loss' in alts[-1]
    assert not any('baseline' in text for text in alts)


def test_the_end_is_shown_also_of_a_training_that_fails(tmp_path):
    shown = []
    with pytest.raises(ZeroDivisionError), live.live_losses(tmp_path, None, shown.append):
        put(tmp_path / 'log.json', 40)
        raise ZeroDivisionError
    assert len(shown) == 1
    assert shown[0].alt.startswith('update 40 of 40, 0.50 s an update. Loss curves')


def test_before_the_first_update():
    assert live.progress_text([]) == 'no update yet'
    assert live.progress_text([{'update': 5, 'updates': 5, 'bbox_mAP': 0.1}]) == 'no update yet'
