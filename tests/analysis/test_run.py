"""The reading side of a run directory, on a made-up run with known numbers."""

from __future__ import annotations

import json
import math
import os
import socket

import numpy as np
import pytest

from helpers.fake_run import ARMS, make_run, put
from mtpd.analysis.run import arm_kinds, load_run, split_loss
from mtpd.errors import MtpdError
from mtpd.utils.files import read_json, read_log, write_json


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return load_run(make_run(tmp_path_factory.mktemp('runs') / 'recipe' / '0'))


def test_results_has_a_row_for_baseline_teachers_and_arms_in_points(run):
    rows = {row['name']: row for row in run.results()}
    assert list(rows) == ['r50', 'r101', 'rx101', *ARMS]
    assert [r['role'] for r in rows.values()] == ['baseline'] + ['teacher'] * 2 + ['arm'] * 4
    student, arm = rows['r50'], rows['progressive']
    assert student['AP'] == pytest.approx(20.2) and student['updates'] == 900
    assert arm['AP'] == pytest.approx(30.6) and arm['AP50'] == pytest.approx(1.7 * 30.6)
    assert arm['AP_s'] == pytest.approx(15.3) and arm['AP_l'] is None and arm['mask_AP'] is None
    assert (arm['updates'], arm['stages']) == (800, ['r101', 'rx101'])
    # An arm is the student, so it costs what the student costs.
    assert (arm['parameters'], arm['gflops']) == (student['parameters'], 0.31) == (712_345, 0.31)
    assert rows['rx101']['updates'] is None and rows['rx101']['gflops'] == 2.75
    assert [rows[a]['kind'] for a in ARMS] == ['control', 'direct', 'progressive', 'other']


def test_a_trained_detector_has_all_its_updates_whatever_its_log_lacks(tmp_path):
    path = make_run(tmp_path / 'run')
    log, metrics = (path / 'detectors' / 'r50' / name for name in ('log.json', 'metrics.json'))
    log.write_text(''.join(log.read_text().splitlines(keepends=True)[:-1]))
    assert load_run(path).results()[0]['updates'] == 900
    metrics.unlink()
    assert load_run(path).results()[0]['updates'] == 880, 'those done, of one at work'


def test_curves_count_on_over_the_stages_and_split_the_loss(run):
    rows = run.curves('progressive')
    assert [r['update'] for r in rows] == list(range(20, 801, 20))
    assert [r['stage'] for r in rows] == [1] * 20 + [2] * 20
    assert {r['teacher'] for r in rows[20:]} == {'Teacher 2'}
    first = rows[20]  # update 20 of stage 2
    assert first['detection'] == pytest.approx(0.8 - 0.01 + 0.5 - 0.005 + 0.02)
    assert first['distillation'] == pytest.approx(40 / 20 + 20 / 20)
    assert all(r['distillation'] is None for r in run.curves('none'))
    assert list(run.curves()) == [label for label, _, _ in ARMS.values()]


def test_split_loss_takes_the_total_when_there_are_no_parts():
    assert split_loss({'loss': 1.5}) == (1.5, None)
    assert split_loss({'loss': 1.5, 'loss_fgd_fpn_0': 0.5}) == (1.0, 0.5)
    assert split_loss({'loss_cls': 1.0, 'loss_new_idea_fpn_12': 0.5}) == (1.0, 0.5)
    assert split_loss({'loss_cls': 1.0, 'loss_mask': 0.5, 'loss': 9.0, 'lr': 0.1}) == (1.5, None)
    assert split_loss({'lr': 0.1}) == (None, None)
    cascade = {'s0.loss_cls': 1.0, 's1.loss_mask': 0.25, 's1.acc': 90.0, 'loss': 1.25}
    assert split_loss(cascade) == (1.25, None)


def test_stage_aps_start_at_the_baseline(run):
    rows = run.stage_aps('progressive')
    assert [r['updates'] for r in rows] == [0, 400, 800]
    assert [r['AP'] for r in rows] == pytest.approx([20.2, 26.1, 30.6])
    assert [r['label'] for r in rows] == ['baseline', 'after Teacher 1', 'after Teacher 2']
    assert [r['label'] for r in run.stage_aps('none')] == ['baseline', 'no teacher']
    ours = run.key_aps()
    assert ours['walk_through'] == pytest.approx([20.2, 26.1, 30.6])
    assert [ours[k] for k in ('baseline', 'progressive', 'direct', 'control')] == pytest.approx(
        [20.2, 30.6, 29.0, 27.6]
    )


def test_a_run_that_failed_shows_what_is_there(tmp_path):
    run = load_run(make_run(tmp_path / 'r' / '0', done=False))
    put(run.stage_dirs('progressive')[1] / 'training.json', {'update': 60, 'seconds': 9.0})
    rows = {row['name']: row for row in run.results()}
    assert run.state == 'failed'
    # Those done: 400 of the first stage, 60 of the second.
    assert [rows[arm]['updates'] for arm in ('direct', 'progressive', 'reverse')] == [
        800,
        460,
        None,
    ]
    assert rows['direct']['AP'] is not None
    assert rows['progressive']['AP'] is None and rows['reverse']['AP'] is None
    assert [r['stage'] for r in run.stage_aps('progressive')] == [0, 1]
    assert list(run.stage_aps()) == [ARMS[a][0] for a in ('none', 'direct', 'progressive')]
    assert len(run.curves('progressive')) == 40 and run.curves('reverse') == []
    assert run.metrics('arm', 'reverse') is None and run.metrics('detector', 'no such') is None
    assert 'progressive' not in run.key_aps()
    assert run.key_aps()['walk_through'] == pytest.approx([20.2, 26.1])


@pytest.mark.parametrize(
    ('status', 'state'),
    [
        ({}, 'unknown'),
        ({'state': 'done', 'steps': [{'state': 'done'}]}, 'complete'),
        ({'state': 'running', 'steps': [{'state': 'done'}]}, 'complete'),
        ({'state': 'running', 'steps': [{'state': 'running'}], 'pid': os.getpid()}, 'running'),
        ({'state': 'running', 'steps': [{'state': 'running'}], 'pid': 2**22 + 1}, 'stopped'),
        ({'state': 'running', 'steps': [{'state': 'done'}, {'state': 'failed'}]}, 'failed'),
    ],
)
def test_the_state_is_never_just_believed(tmp_path, status, state):
    put(tmp_path / 'run.json', {'name': 'x'})
    put(tmp_path / 'status.json', status | {'host': socket.gethostname()})
    assert load_run(tmp_path).state == state


def test_what_is_no_run_is_refused_with_the_fix(tmp_path, monkeypatch):
    tmp_path = tmp_path / 'x'
    tmp_path.mkdir()
    with pytest.raises(MtpdError, match=r'does not exist.*mtpd run RECIPE'):
        load_run(tmp_path / 'gone')
    put(tmp_path / 'mini' / '0' / 'run.json', {})
    with pytest.raises(MtpdError, match=r'Did you mean .*mini/0'):
        load_run(tmp_path / 'mini')
    with pytest.raises(MtpdError, match=r'has no run\.json\. First run'):  # any folder may be large
        load_run(tmp_path)
    monkeypatch.setattr('mtpd.analysis.run.ROOT', tmp_path.parent)
    (tmp_path.parent / 'runs').symlink_to(tmp_path)
    with pytest.raises(MtpdError, match=r'Did you mean .*mini/0'):
        load_run(tmp_path.parent / 'runs')
    (tmp_path / 'mini' / '0' / 'run.json').write_text('{"half')
    with pytest.raises(MtpdError, match=r'run\.json is not valid JSON'):
        load_run(tmp_path / 'mini' / '0')


def test_json_is_written_whole_without_nan(tmp_path):
    path = tmp_path / 'deep' / 'a.json'
    content = {'a': math.nan, 1: [np.float32(0.5), math.inf], 'p': tmp_path, 'n': np.arange(2)}
    write_json(path, content)
    assert json.loads(path.read_text()) == {
        'a': None,
        '1': [0.5, None],
        'p': str(tmp_path),
        'n': [0, 1],
    }
    with pytest.raises(TypeError):
        write_json(path, {'bad': object()})
    assert [p.name for p in path.parent.iterdir()] == ['a.json'] and read_json(path)['1'] == [
        0.5,
        None,
    ]


def test_a_log_line_cut_off_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / 'log.json'
    path.write_text('{"update": 1, "loss": 2}\n{"env": 1}\n{"update": 2, "lo')
    assert read_log(path) == [{'update': 1, 'loss': 2}]
    assert read_log(tmp_path / 'none') == []


def test_an_arm_by_name_or_the_progressive_one(tmp_path):
    run = load_run(make_run(tmp_path / 'mini' / '0'))
    assert run.arm('reverse')['teachers'] == ['rx101', 'r101']
    assert run.arm()['name'] == 'progressive'
    with pytest.raises(
        MtpdError, match=r"no arm 'foo'. There are: none, direct, progressive, reverse"
    ):
        run.arm('foo')
    single = [{'name': 'auto', 'label': 'A', 'teachers': ['r101'], 'updates': 4}]
    info = json.loads((run.path / 'run.json').read_text())
    (run.path / 'run.json').write_text(json.dumps(info | {'arms': single}))
    assert load_run(run.path).arm()['name'] == 'auto'


def test_arm_kinds_follow_the_teachers():
    def kinds(**arms):
        return arm_kinds([{'name': n, 'teachers': t} for n, t in arms.items()])

    assert kinds(a=[None, None], b=['x', 'y'], c=['x'], d=['y']) == {
        'a': 'control',
        'b': 'progressive',
        'c': 'other',
        'd': 'direct',
    }
    assert kinds(swap=['y', 'x'], progressive=['x', 'y'])['progressive'] == 'progressive'
    assert kinds(only=['x']) == {'only': 'direct'}
