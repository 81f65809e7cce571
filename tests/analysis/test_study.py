"""AP by sequence over seeds: intervals against hand calculations, and which runs count."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from helpers.fake_run import put, trained
from helpers.study import AP, T2, made_up_study
from mtpd import plots
from mtpd.analysis.study import ap_curve, load_study
from mtpd.errors import MtpdError
from mtpd.report.tables import study_rows
from mtpd.utils import statistics
from mtpd.utils.statistics import Interval


def test_mean_and_interval_by_hand():
    interval = statistics.mean_interval([1.0, 2.0, 3.0])  # standard deviation 1
    reach = T2 / 3**0.5
    assert (interval.value, interval.n, interval.sign) == (2.0, 3, 0)
    assert (interval.low, interval.high) == (pytest.approx(2 - reach), pytest.approx(2 + reach))
    assert statistics.mean_interval([5.0]) == Interval(5.0, None, None, 1)
    assert statistics.mean_interval([]) is None


def test_differences_are_taken_seed_by_seed():
    """Seeds that move both arms alike leave a small interval; unpaired it would be wide."""
    a, b = {0: 11.0, 1: 21.1, 2: 30.9, 7: 50.0}, {2: 30.0, 1: 20.0, 0: 10.0, 9: 0.0}
    gap = statistics.paired_difference(a, b)  # 1.0, 1.1, 0.9
    assert (gap.value, gap.n) == (pytest.approx(1.0), 3)
    assert gap.high - gap.value == pytest.approx(T2 * 0.1 / 3**0.5)
    assert gap.sign == 1 and statistics.paired_difference(b, a).sign == -1
    assert statistics.paired_difference({0: 1.0}, {1: 1.0}) is None


def test_rank_correlation_against_scipy_and_its_limits():
    rng = np.random.default_rng(3)
    x = rng.normal(size=30)
    y = -x + rng.normal(size=30)
    correlation = statistics.rank_correlation(x, y)
    assert correlation.value == pytest.approx(spearmanr(x, y).statistic)
    assert (
        -1 <= correlation.low < correlation.value < correlation.high < 0 and correlation.sign == -1
    )
    assert statistics.rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]).value == pytest.approx(1)
    assert statistics.rank_correlation([1, 1, 2, 2], [3, 3, 4, 4]).value == pytest.approx(1)  # ties
    assert statistics.rank_correlation([1, 2, 3], [1, 2, 3]) is None
    assert statistics.rank_correlation([1, 2, 3, 4], [5, 5, 5, 5]) is None


# Costs of student, a, b: paths a 0.25, b 0.81, a-b 0.25 + 0.16, b-a 0.81 + 0.16.


def test_the_table_has_the_best_first_and_its_differences():
    study = made_up_study()
    rows = {row['name']: row for row in study.table()}
    assert list(rows) == ['a-b', 'b-a', 'b', 'a', 'none']
    assert (
        study.best_teacher_alone.name == 'b' and study.control.name == 'none' and study.start == 5.5
    )
    best = rows['a-b']
    assert best['mean'].value == pytest.approx(14.0) and best['chosen']
    assert best['above_best_teacher'].value == pytest.approx((1.0 + 0.9 + 1.1) / 3)
    assert best['above_control'].value == pytest.approx(3.0)
    assert rows['none']['above_control'] is None and rows['b']['above_best_teacher'] is None
    costs = {name: row['path_cost'] for name, row in rows.items()}
    assert costs == pytest.approx({'a-b': 0.41, 'b-a': 0.97, 'b': 0.81, 'a': 0.25, 'none': None})
    expected = spearmanr([0.41, 0.97, 0.81, 0.25], [14.0, 13.03, 13.0, 11.67]).statistic
    assert study.correlation().value == pytest.approx(expected)
    written = json.loads(json.dumps(study.json()))
    assert written['orders'][0]['above_direct']['n'] == 3
    assert written['rank_correlation']['value'] == pytest.approx(expected)


def test_the_figures_show_every_seed_and_end(tmp_path):
    study = made_up_study()
    fig = plots.ap_versus_order(study.table(), study.start)
    left, right = fig.axes
    dots = {(round(line.get_xdata()[0], 1)) for line in left.lines if line.get_markersize() == 4.5}
    assert dots == {value for values in AP.values() for value in values}
    assert [label.get_text() for label in left.get_yticklabels()][-1] == '★ a → b'
    reach = T2 * 0.1 / 3**0.5
    ends = [tuple(line.get_xdata()) for line in right.lines if line.get_linewidth() == 2.2]
    assert (pytest.approx(1 - reach), pytest.approx(1 + reach)) in ends
    assert 'a → b +1.0 (0.8 to 1.2)' in fig.alt and 'over 3 seeds' in fig.alt
    fig = plots.predicted_and_measured(study.table(), study.correlation())
    assert 'a → b cost 0.41, AP 14.0' in fig.alt and 'Spearman' in fig.alt
    fig = plots.walk_through(study.order('a-b').curves, study.control.ap)
    assert '5.0 at 0, 8.0 at 300, 9.0 at 600' in fig.alt and 'Without a teacher 11.0' in fig.alt
    shown = [text.get_text() for text in fig.axes[0].texts]
    assert 'stage 1\na' in shown and 'stage 2\nb' in shown
    for empty in (
        plots.ap_versus_order([]),
        plots.predicted_and_measured([]),
        plots.walk_through({}),
    ):
        assert not empty.axes and empty.alt
    assert study_rows(study)[0]['against the strongest teacher alone'].startswith('+1.0 [0.8, 1.2]')


# Which runs count


def test_runs_of_other_seeds_count_and_others_are_named(tmp_path):
    runs = tmp_path / 'runs' / 'mini_retinanet_r50__r101_rx101'
    for seed, ap in enumerate((10.0, 12.0)):
        trained(runs / str(seed), seed=seed, direct=ap, progressive=ap + 1)
    trained(runs / 'again', seed=1, direct=99.0)
    trained(runs / 'long', seed=5, options={'schedule.arm': 900}, direct=30.0)
    trained(runs / 'cwd', 'cwd', seed=6, direct=31.0)
    run = trained(runs / '2', seed=2, direct=14.0)
    put(run.path / 'detectors' / 'rx101' / 'metrics.json', {'bbox_mAP': 0.5})
    put(run.path / 'detectors' / 'student' / 'metrics.json', {'bbox_mAP': 0.05})
    put(run.path / 'order' / 'sequence.json', {'sequence': ['r101', 'rx101']})
    study = load_study(run)
    assert study.best_teacher_alone.ap == {0: 10.0, 1: pytest.approx(12.0), 2: pytest.approx(14.0)}
    assert study.order('progressive').ap == {0: 11.0, 1: 13.0}
    assert study.control is None and study.baseline == {2: 5.0}
    assert study.chosen == [('r101', 'rx101')] and study.seeds == [0, 1, 2]
    (reason,) = study.left_out
    assert 'long differs from' in reason and 'schedule.arm' in reason
    assert load_study(run, [str(runs / '0')]).seeds == [0, 2]
    with pytest.raises(MtpdError, match=r'cwd differs from .* in distill'):
        load_study(run, [str(runs / 'cwd')])
    with pytest.raises(MtpdError, match='is not a run'):
        load_study(run, [str(tmp_path / 'gone')])


def test_a_curve_has_the_evaluations_during_training(tmp_path):
    run = trained(tmp_path / 'a' / '0', progressive=12.0)
    put(run.path / 'detectors' / 'student' / 'metrics.json', {'bbox_mAP': 0.05})
    rows = [
        {'update': 150, 'bbox_mAP': 0.07},
        {'update': 600, 'loss': 1.0},
        {'update': 600, 'bbox_mAP': 0.9},
    ]
    log = run.path / 'stages' / 'progressive' / '1_r101' / 'log.json'
    log.write_text('\n'.join(map(json.dumps, rows)))
    curve = [(row['updates'], row['AP'], row['stage']) for row in ap_curve(run, 'progressive')]
    assert curve == [(0, 5.0, 0), (150, pytest.approx(7.0), 1), (600, 12.0, 1), (1200, 12.0, 2)]
