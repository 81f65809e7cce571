"""Findings that a run directory's logs and numbers show."""

from __future__ import annotations

import json

import pytest

from helpers.fake_run import make_run, metrics, put, stage
from mtpd.analysis.findings import (
    diagnose,
    run_findings,
    stage_findings,
    stage_sentences,
    stage_texts,
)
from mtpd.analysis.run import load_run
from mtpd.config.findings import Finding, count_text, number_text, rise_finding, unique
from mtpd.config.recipe import load_recipe
from mtpd.errors import MtpdError

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'


def with_settings(run, **options):
    """A fake run, its recipe.py that of the demo's recipe."""
    (run / 'recipe.py').write_text(load_recipe(MINI, options).text)
    return load_run(run)


def put_log(folder, rows):
    """Rows of (detection, distillation at level 0, at level 1)."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {'update': 20 * k, 'updates': 20 * len(rows), 'loss_cls': a, 'loss': a + b + c}
        | {'loss_mgd_fpn_0': b, 'loss_mgd_fpn_1': c}
        for k, (a, b, c) in enumerate(rows, 1)
    ]
    (folder / 'log.json').write_text(''.join(json.dumps(row) + '\n' for row in lines))


def only(findings, subject) -> Finding:
    (finding,) = [item for item in findings if item.subject == subject]
    return finding


def test_a_run_without_anything_unusual(tmp_path):
    run = with_settings(make_run(tmp_path / 'runs' / 'mini' / '0'))
    # Its control gains 7.4, its best teacher alone 1.4 on top of that.
    findings = run_findings(run)
    assert [item.subject for item in findings] == ['student']
    assert findings[0].measured == (
        'training as long without a teacher brings 5.3 times what distillation adds (regime index)'
    )
    assert 'Train the baseline longer' in findings[0].change


def test_a_distillation_loss_of_434_against_1_2(tmp_path):
    path = make_run(tmp_path / 'runs' / 'mini' / '0')
    put_log(path / 'stages/direct/1_rx101', [(1.2, 400, 34), (1.2, 200, 16), (1.0, 80, 20)])
    run = with_settings(path, **{'distill.settings.mgd.alpha': 2e-3})
    finding = only(stage_findings(run, 'direct'), 'direct, stage 1')
    # Ratios 361.7, 180, 100.
    assert finding.measured == (
        'the distillation loss is 180 times the detection loss, by the median; distillation 430 against detection 1.2 '
        '(times: level 0 330, level 1 28) at the start, distillation 100 against detection 1 (times: level 0 80, level 1 20) '
        'at the end'
    )
    assert finding.usual == '0.1 to 10' and finding.severity == 'warning'
    assert 'distill.settings.mgd.alpha=1.1e-05: the losses are then equal' in finding.change
    assert stage_texts(run, 'direct') == [f'direct, stage 1: {finding.measured.partition("; ")[2]}']


@pytest.mark.parametrize(
    ('ap', 'severity', 'words'),
    [
        (15.0, 'warning', 'and AP goes from 20.2 to 15.0'),
        (29.0, 'note', 'and AP rises from 20.2 to 29.0'),
        (None, 'warning', '(0.5)'),
    ],
)
def test_a_detection_loss_that_ends_above_where_it_began(tmp_path, ap, severity, words):
    path = make_run(tmp_path / 'runs' / 'mini' / '0')
    folder = path / 'stages/direct/1_rx101'
    put_log(folder, [(0.5, 1, 1), (0.8, 1, 1), (0.7, 1, 1)])
    (folder / 'metrics.json').unlink()
    (folder / 'student.pth').touch()
    if ap:
        put(folder / 'metrics.json', metrics(ap))
    run = with_settings(path)
    finding = only(stage_findings(run, 'direct', 1), 'direct, stage 1')
    assert finding.severity == severity and finding.usual == 'up to 1.1 times'
    assert finding.measured.startswith('the detection loss ends at 0.7, 1.40 times where it began')
    assert finding.measured.endswith(words)
    recipe = load_recipe(MINI)
    (sentence,) = stage_sentences(recipe, 'direct', 1, path)
    assert ('To look at' in sentence) == (severity == 'warning')


def test_an_unfinished_stage_is_not_judged(tmp_path):
    """Its learning rate still rises, and its generation layers are untrained."""
    path = make_run(tmp_path / 'runs' / 'mini' / '0')
    folder = path / 'stages/direct/1_rx101'
    put_log(folder, [(0.5, 90, 1), (0.8, 90, 1), (0.7, 90, 1)])
    run = with_settings(path)
    assert stage_findings(run, 'direct', 1)
    for file in ('metrics.json', 'student.pth'):
        (folder / file).unlink(missing_ok=True)
    assert stage_findings(with_settings(path), 'direct', 1) == []


def test_an_arm_without_a_teacher_is_given_no_advice_on_distillation():
    alone, taught = (rise_finding('none, stage 1', 0.5, 0.7, teacher=t) for t in (False, True))
    assert 'distillation' not in alone.change and 'learning rate' in alone.change
    assert 'distillation loss less weight' in taught.change


def test_a_loss_that_ends_a_little_higher_is_usual(tmp_path):
    path = make_run(tmp_path / 'runs' / 'mini' / '0')
    put_log(path / 'stages/direct/1_rx101', [(0.5, 1, 1), (0.8, 1, 1), (0.54, 1, 1)])
    assert stage_findings(with_settings(path), 'direct') == []


def test_teachers_worse_than_the_student_and_untrained(tmp_path):
    path = make_run(tmp_path / 'runs' / 'mini' / '0')
    put(path / 'detectors/r101/metrics.json', metrics(0.4))
    put(path / 'detectors/rx101/metrics.json', metrics(12.0))
    findings = run_findings(with_settings(path))
    untrained, worse = (only(findings, f'teacher {name}') for name in ('r101', 'rx101'))
    assert untrained.summary == 'AP is 0.4 (usual: above 1 and above the student)'
    assert worse.summary == (
        'AP is 12.0, and the student has 20.2 before distillation (usual: above the student)'
    )


def test_a_teacher_in_train_mode_and_a_smoke_run(tmp_path):
    path = make_run(tmp_path / 'runs' / 'mini' / '0')
    run = with_settings(path, **{'distill.teacher_mode': 'train'})
    assert only(run_findings(run), 'distill.teacher_mode').usual == "'eval'"
    run.info['smoke'] = True
    assert run_findings(run) == []


def test_texts():
    assert [number_text(v) for v in (0, 0.0045, 361.7, 2e-8, 12.4, 1.6e6)] == [
        '0', '0.0045', '360', '2e-8', '12', '1.6e+6'
    ]  # fmt: skip
    finding = Finding('teacher r101', 'warning', 'AP is 0.0', 'above 1', 'Train it.')
    assert finding.text == 'teacher r101: AP is 0.0 (usual: above 1). Train it.'
    error = finding._replace(severity='error')
    assert unique([finding, error, finding]) == [error, finding]
    assert [count_text([finding] * k) for k in range(3)] == [
        'no findings',
        '1 finding',
        '2 findings',
    ]


# Folders of `mtpd train`.


def train_folder(path):
    """What `mtpd train --arm direct` leaves: recipe.py, detectors, stages, status.json."""
    (path / 'detectors').mkdir(parents=True)
    (path / 'recipe.py').write_text(load_recipe(MINI).text)
    put(path / 'status.json', {'state': 'done', 'command': 'mtpd train x.py --arm direct'})
    put(path / 'detectors/student/metrics.json', metrics(20.0))
    stage(path, 'direct', 1)
    return path


def test_a_folder_of_mtpd_train_is_a_run(tmp_path):
    run = load_run(train_folder(tmp_path / 'a'))
    assert run.info['command'] == 'mtpd train x.py --arm direct' and run.state == 'complete'
    aps = {row['name']: row['AP'] for row in run.results()}
    assert aps['student'] == pytest.approx(20) and aps['direct'] == pytest.approx(29)
    assert aps['progressive'] is None


def test_a_folder_of_a_plain_training(tmp_path):
    (tmp_path / 'config.py').write_text('import os\n')  # is not run
    (tmp_path / 'log.json').write_text(
        ''.join(
            json.dumps({'update': k, 'updates': 40, 'loss': loss}) + '\n'
            for k, loss in ((20, 1.0), (40, 1.5))
        )
    )
    put(tmp_path / 'metrics.json', metrics(33.0))
    put(tmp_path / 'training.json', {'update': 40, 'seconds': 5.0})
    (row,) = load_run(tmp_path).results()
    assert (row['AP'], row['updates'], row['seconds']) == (pytest.approx(33), 40, 5.0)
    diagnosis = diagnose(tmp_path)
    assert diagnosis.measured == [f'{tmp_path.name}: AP 33.0']
    (finding,) = diagnosis.findings
    assert finding.measured == 'the loss ends at 1.5, 1.50 times where it began (1)'


def test_code_in_a_folders_recipe_is_not_run(tmp_path):
    path = train_folder(tmp_path / 'a')
    (path / 'recipe.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")\n')
    with pytest.raises(MtpdError, match='is not run'):
        load_run(path)
    assert not (tmp_path / 'ran').exists()
