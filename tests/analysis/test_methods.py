"""Direct against progressive by method: which runs and results count, and what becomes of their numbers."""

from __future__ import annotations

import json
import subprocess
import sys

import nbformat
import numpy as np
import pytest

from helpers.fake_run import put, trained
from mtpd.analysis import paper, published
from mtpd.analysis.methods import MethodComparison, compare_methods, methods_caption
from mtpd.analysis.paper import load_run_or_plan
from mtpd.analysis.run import arm_kinds, load_run
from mtpd.config.recipe import load_recipe
from mtpd.errors import MtpdError
from mtpd.pipeline.notebooks import execute_notebook
from mtpd.utils.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
NAME = 'mini_retinanet_r50__r101_rx101'


def recipe_of(run):
    return load_recipe(MINI, {}, run.info['seed'])


@pytest.fixture
def family(tmp_path):
    """MGD with three seeds and CWD with one, as folders beside each other; no committed results."""
    runs = tmp_path / 'runs'
    for seed, (direct, progressive) in enumerate([(10.0, 11.5), (12.0, 11.0), (14.5, 13.0)]):
        trained(runs / NAME / str(seed), seed=seed, direct=direct, progressive=progressive)
    trained(runs / f'{NAME}-cwd' / '0', 'cwd', direct=9.5)
    return runs


def test_bars_are_means_and_deviations_of_the_files(family, tmp_path):
    run = load_run(family / NAME / '1')
    comparison = compare_methods(recipe_of(run), run, results=tmp_path)
    assert list(comparison.bars) == ['box'] and list(comparison.bars['box']) == ['CWD', 'MGD']
    for arm, folder in (('direct', '1_rx101'), ('progressive', '2_rx101')):
        files = [family / NAME / s / 'stages' / arm / folder / 'metrics.json' for s in '012']
        aps = [100 * json.loads(file.read_text())['bbox_mAP'] for file in files]
        bar = comparison.bars['box']['MGD'][arm]
        assert bar['mean'] == pytest.approx(np.mean(aps)) and bar['n'] == 3
        assert bar['sd'] == pytest.approx(np.std(aps, ddof=1))
    assert comparison.bars['box']['CWD'] == {
        'direct': {'mean': pytest.approx(9.5), 'sd': None, 'n': 1}
    }
    assert comparison.sources['CWD'] == [str(family / f'{NAME}-cwd' / '0')]
    assert len(comparison.sources['MGD']) == 3 and not comparison.left_out


def test_masks_have_their_own_bars(tmp_path):
    run = trained(tmp_path / 'a' / '0', direct=(20.0, 18.0), progressive=(21.0, 19.5))
    comparison = compare_methods(recipe_of(run), run, results=tmp_path)
    assert comparison.bars['mask']['MGD']['progressive']['mean'] == pytest.approx(19.5)
    assert comparison.bars['box']['MGD']['progressive']['mean'] == pytest.approx(21.0)


def test_neighbours_that_differ_in_more_are_left_out_and_named(family, tmp_path):
    trained(family / f'{NAME}-long' / '5', seed=5, options={'schedule.arm': 900}, direct=30.0)
    alpha = {'distill.settings.mgd.alpha': 1e-4}
    trained(family / f'{NAME}-alpha' / '6', seed=6, options=alpha, direct=31.0)
    other = {
        'distill.settings.fgd.alpha': 1e-2,
        'runtime.threads': 1,
        'order.images': 9,
    }  # no matter to MGD
    trained(family / NAME / '7', seed=7, options=other, direct=15.5)
    trained(family / f'{NAME}-smoke' / '8', seed=8, direct=32.0)
    trained(family / NAME / 'again', seed=2, direct=33.0)
    trained(family / NAME / 'unfinished', seed=9)
    put(family / NAME / 'broken' / 'run.json', {})
    put(family / NAME / 'plain' / 'run.json', {})
    (family / NAME / 'plain' / 'recipe.py').write_text(f"name = '{NAME}'\n")
    (family / NAME / 'broken' / 'recipe.py').write_text(f"name = '{NAME}'\nimport os\n")
    run = load_run(family / NAME / '0')
    comparison = compare_methods(recipe_of(run), run, results=tmp_path)
    bar = comparison.bars['box']['MGD']['direct']
    assert (bar['n'], bar['mean']) == (4, pytest.approx((10 + 12 + 14.5 + 15.5) / 4))
    text = ' '.join(comparison.left_out)
    assert len(comparison.left_out) == 5
    assert 'plain/recipe.py does not say how the run was distilled' in text
    assert f'{NAME}-long/5 differs from {family}/{NAME}/0 in schedule.arm.' in text
    assert f'{NAME}-alpha/6 differs' in text and 'distill.settings.alpha' in text
    assert f'again repeats {family}/{NAME}/2 (MGD, seed 2)' in text
    assert 'broken/recipe.py is not as the kit writes it' in text


def test_named_folders_alone_count_and_must_fit(family, tmp_path):
    run = load_run(family / NAME / '0')
    trained(tmp_path / 'elsewhere' / 'pkd', 'pkd', options={'distill.levels': [0, 1]}, direct=8.0)
    comparison = compare_methods(recipe_of(run), run, [tmp_path / 'elsewhere'], tmp_path)
    assert {m: arms['direct']['n'] for m, arms in comparison.bars['box'].items()} == {
        'MGD': 1,
        'PKD': 1,
    }
    seeds = compare_methods(recipe_of(run), run, [family / NAME], tmp_path)
    assert seeds.bars['box']['MGD']['direct']['n'] == 3
    trained(tmp_path / 'start', 'fgd', options={'distill.start': 'random'}, direct=1.0)
    with pytest.raises(MtpdError) as caught:
        compare_methods(recipe_of(run), run, [tmp_path / 'start', tmp_path / 'gone'], tmp_path)
    first, second = str(caught.value).splitlines()
    assert first.endswith('in distill.start.') and first.startswith(f'compare: {tmp_path}/start')
    assert 'gone is not a run' in second


def test_a_runs_recipe_is_read_without_running_it(family, tmp_path):
    path = family / NAME / '1' / 'recipe.py'
    path.write_text(path.read_text() + f"open('{tmp_path}/ran', 'w')\n")
    run = load_run(family / NAME / '0')
    assert (
        'is not as the kit writes it'
        in compare_methods(recipe_of(run), run, results=tmp_path).left_out[0]
    )
    assert not (tmp_path / 'ran').exists()


def test_committed_results_stand_in_for_methods_without_a_run(family, tmp_path):
    results = tmp_path / 'results' / NAME
    fgd = trained(tmp_path / 'a', 'fgd', 3, direct=7.0, progressive=8.0)
    mgd = trained(tmp_path / 'b', 'mgd', 4, direct=99.0)
    long = trained(tmp_path / 'c', 'pkd', 4, {'schedule.arm': 900}, direct=99.0)
    for item in (fgd, mgd, long):
        put(
            results / f'{item.path.name}.json',
            {'run': item.info, 'environment': {}, 'results': item.results()},
        )
    put(results / 'search.json', {'what': 'another file', 'rows': []})
    run = load_run(family / NAME / '0')
    comparison = compare_methods(recipe_of(run), run, results=tmp_path / 'results')
    assert list(comparison.bars['box']) == ['CWD', 'FGD', 'MGD']
    assert comparison.bars['box']['FGD']['progressive'] == {
        'mean': pytest.approx(8),
        'sd': None,
        'n': 1,
    }
    assert comparison.bars['box']['MGD']['direct']['n'] == 3  # the runs', not the file's 99
    assert comparison.sources['FGD'] == [str(results / 'a.json')]


def test_a_summary_over_seeds_counts_each_seed_once(tmp_path):
    """The files that benchmarks/seeds.py and a report write, with no run of one's own."""
    aps = {'none': 5.0, 'direct': 6.0, 'repeated': 5.5, 'progressive': 7.0, 'reverse': 4.0}
    for seed in range(3):
        values = {name: ap + seed**2 for name, ap in aps.items()}
        run = trained(tmp_path / 'runs' / str(seed), 'cwd', seed, **values)
        put(run.path / 'detectors' / 'student' / 'metrics.json', {'bbox_mAP': 0.01})
        put(run.path / 'status.json', {'state': 'done', 'steps': [{'name': 'a', 'state': 'done'}]})
    results = tmp_path / 'results' / NAME
    committed = {'run': run.info, 'environment': {}, 'results': run.results()}
    put(results / 'seed2.json', committed)
    command = [sys.executable, str(ROOT / 'benchmarks' / 'seeds.py'), str(tmp_path / 'runs')]
    subprocess.run([*command, '--out', str(results / 'seeds.json')], check=True, cwd=ROOT)
    recipe = load_recipe(MINI)
    plan = load_run_or_plan(recipe, tmp_path / 'none', 'a.pth')
    comparison = compare_methods(recipe, plan, results=tmp_path / 'results')
    bar = comparison.bars['box']['CWD']['progressive']
    assert (bar['n'], bar['mean']) == (3, pytest.approx((7 + 8 + 11) / 3))
    assert bar['sd'] == pytest.approx(np.std([7, 8, 11], ddof=1))
    assert comparison.sources == {'CWD': [str(results / 'seed2.json'), str(results / 'seeds.json')]}


def test_a_summary_of_other_updates_is_passed_over(tmp_path):
    recipe = load_recipe(MINI)
    row = {
        'label': recipe.arms['direct'].label,
        'AP': [9.0],
        'updates': recipe.arms['direct'].updates,
    }
    committed = {'seeds': [0], 'rows': [row], 'commands': ['mtpd run x.py']}
    plan = load_run_or_plan(recipe, tmp_path, 'a.pth')
    counts = []
    for updates in (row['updates'], row['updates'] + 2):
        put(tmp_path / NAME / 'seeds.json', committed | {'rows': [row | {'updates': updates}]})
        counts.append(len(compare_methods(recipe, plan, results=tmp_path).bars))
    assert counts == [1, 0]


def test_what_is_committed_is_found(tmp_path):
    single = json.loads((ROOT / 'results' / NAME / 'seed0.json').read_text())
    aps = {row['label']: row['AP'] for row in single['results']}
    recipe = load_recipe(MINI)
    comparison = compare_methods(recipe, load_run_or_plan(recipe, tmp_path, 'a.pth')).bars['box'][
        'MGD'
    ]
    for arm in ('direct', 'progressive'):
        assert comparison[arm] == {'mean': aps[recipe.arms[arm].label], 'sd': None, 'n': 1}


def test_no_run_and_no_results_leave_the_papers_bars(tmp_path):
    recipe = load_recipe(MINI)
    comparison = compare_methods(
        recipe, load_run_or_plan(recipe, tmp_path / 'none', 'a.pth'), results=tmp_path
    )
    assert comparison == MethodComparison({}, {}, [])
    chart = published.paper_chart('RetinaNet R50')
    text = methods_caption(comparison, chart, 'RetinaNet R50', 'DigitScenes')
    assert 'No run has been measured here yet' in text and 'to about 0.05 points' in text
    assert 'scale' not in text


def test_the_caption_says_scales_seeds_and_what_is_missing(family, tmp_path):
    trained(family / f'{NAME}-long' / '5', seed=5, options={'schedule.arm': 900}, direct=30.0)
    run = load_run(family / NAME / '0')
    comparison, chart = (
        compare_methods(recipe_of(run), run, results=tmp_path),
        published.paper_chart('RetinaNet R50'),
    )
    text = methods_caption(comparison, chart, 'RetinaNet R50', 'DigitScenes')
    assert "The scales differ: the paper's AP is on COCO at full size, ours on DigitScenes" in text
    assert f'CWD: 1 seed ({family}/{NAME}-cwd/0).' in text and 'MGD: 3 seeds (' in text
    assert 'whiskers one standard deviation' in text and 'A single seed has no whiskers' in text
    assert 'Not measured, so not drawn: CWD progressive.' in text
    assert 'Left out: ' in text and 'in schedule.arm.' in text
    coco = methods_caption(comparison, chart, 'RetinaNet R50', 'COCO')
    assert 'Both sides are AP on COCO.' in coco and 'differ:' not in coco
    alone = methods_caption(comparison, {}, None, 'own')
    assert alone.startswith('CWD: 1 seed') and 'paper' not in alone


def test_coco_is_told_by_its_content(tiny_coco, tmp_path):
    root = tiny_coco(tmp_path / 'coco')
    recipe = load_recipe('configs/own_data/retinanet.py', {'data.root': str(root)})
    assert paper.dataset_name(load_recipe(MINI)) == 'DigitScenes'
    assert paper.dataset_name(recipe) == 'coco'  # the folder's name: four images are not COCO
    whole = {
        'images': [{'id': k} for k in range(5000)],
        'annotations': [],
        'categories': [{'id': k, 'name': str(k)} for k in range(80)],
    }
    put(root / 'annotations' / 'val.json', whole)
    assert paper.dataset_name(recipe) == 'COCO'


@pytest.mark.slow
def test_notebook_05_draws_the_runs_beside_the_paper(tmp_path):
    options = {'data.scenes.train': 6, 'data.scenes.val': 8, 'data.cache': str(tmp_path)}
    for method, ap in (('mgd', 21.0), ('fgd', 23.0)):
        folder = tmp_path / f'{NAME}-{method}' / '0'
        trained(folder, method, 0, options, none=20.0, direct=ap, progressive=ap + 1)
    out = tmp_path / 'out.ipynb'
    text = ' '.join(f'{key}={value}' for key, value in options.items())
    given = {'recipe': MINI, 'cfg_options': text, 'work_dir': str(tmp_path / f'{NAME}-mgd' / '0')}
    execute_notebook(ROOT / 'notebooks' / '05_evaluate.ipynb', out, given)
    outputs = [o.data for c in nbformat.read(out, 4).cells for o in c.get('outputs', [])]
    alts = ' '.join(data.get('text/plain', '') for data in outputs)
    assert 'box AP: FGD direct 23.0, progressive 24.0; MGD direct 21.0, progressive 22.0.' in alts
    text = ' '.join(data.get('text/markdown', '') for data in outputs)
    assert 'The scales differ' in text and f'FGD: 1 seed ({tmp_path}/{NAME}-fgd/0).' in text
    assert 'this checkpoint' not in text, 'none was given'


TWO_TEACHERS = [
    path
    for kind in ('mini', 'paper', 'own_data')
    for path in (ROOT / 'configs' / kind).glob('*.py')
    if not path.stem.startswith('pool') and 'pkd' not in path.stem
]


@pytest.mark.parametrize('path', TWO_TEACHERS, ids=lambda path: path.stem)
def test_recipes_of_two_teachers_name_their_controls(path):
    recipe = load_recipe(path)
    arms = [{'name': a.name, 'teachers': list(a.teachers)} for a in recipe.arms.values()]
    kinds = arm_kinds(arms)
    assert kinds == {
        'none': 'control',
        'direct': 'direct',
        'progressive': 'progressive',
        'repeated': 'other',
        'reverse': 'other',
    }
    assert arm_kinds([{'name': 'auto', 'teachers': []}]) == {'auto': 'other'}  # not chosen yet
    assert recipe.arms['reverse'].teachers == recipe.arms['progressive'].teachers[::-1]
