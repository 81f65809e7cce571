"""A recipe's steps: their order, what is skipped, what a failure leaves; the whole once, in small."""

import io
import json
import re
import threading

import nbformat
import pytest

from mtpd import load_recipe
from mtpd.analysis.run import load_run
from mtpd.errors import MtpdError
from mtpd.pipeline import run as pipeline
from mtpd.pipeline.notebooks import NotebookError, execute_notebook
from mtpd.pipeline.run import ChainRunner, PrefixedStream
from mtpd.pipeline.run_dir import run_info
from mtpd.utils.machine import cpu_cores
from mtpd.utils.paths import ROOT
from mtpd.utils.processes import Interrupted

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
NO_CHECKPOINTS = {
    f'{key}.checkpoint': None for key in ('student', 'teachers.r101', 'teachers.rx101')
}


def notebook(path, body):
    """A notebook with the pipeline's parameters and one cell."""
    parameters = "recipe: str = ''\nseed: int = 0\ncfg_options: str = ''\nwork_dir: str = ''"
    if path.stem == '04_distill_stage':
        parameters += "\narm: str = ''\nstage: int = 1"
    cells = [nbformat.v4.new_code_cell(parameters), nbformat.v4.new_code_cell(body)]
    cells[0].metadata['tags'] = ['parameters']
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def status(run_dir):
    return json.loads((run_dir / 'status.json').read_text())


def test_the_steps_are_all_arms_stages_between_preparation_and_evaluation(tmp_path):
    def names(jobs):
        recipe = load_recipe(MINI, {'runtime.jobs': jobs})
        return [step.title for step in pipeline.recipe_steps(recipe, tmp_path)]

    def stages(*arms):
        counts = {'none': 1, 'direct': 1}
        numbered = [f'{arm}_{k + 1}' for arm in arms for k in range(counts.get(arm, 2))]
        return [f'04_distill_stage__{stage}' for stage in numbered]

    before = ['00_environment', '01_data', '02_detectors', '03_teacher_order']
    after = ['05_evaluate', '06_analysis']
    # Arms that begin with the same stage follow each other.
    in_order = stages('none', 'direct', 'repeated', 'reverse', 'progressive')
    assert names(1) == [*before, *in_order, *after]
    # Side by side what takes longest begins first, and what takes least, without a teacher, last.
    long_first = stages('repeated', 'reverse', 'direct', 'progressive', 'none')
    assert names(2) == [*before, *long_first, *after]


def test_detectors_are_trained_with_all_cores_and_measured_beside_other_steps(tmp_path):
    def groups(**overrides):
        chains = pipeline.step_chains(load_recipe(MINI, overrides), tmp_path)
        return [[[step.title for step in chain] for chain in group] for group in chains]

    measured = [['00_environment'], ['01_data', '02_detectors']]
    assert groups()[0] == measured
    trained = groups(**{'student.checkpoint': None})
    assert trained[:2] == [[['00_environment'], ['01_data']], [['02_detectors']]]
    assert trained[2:] == groups()[1:]


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Small notebooks in place of the kit's, for the real runner."""
    sources = tmp_path / 'sources'
    sources.mkdir()
    for step in pipeline.recipe_steps(load_recipe(MINI), tmp_path):
        body = 'from pathlib import Path'
        for path in step.outputs:
            inside = path.relative_to(tmp_path)
            body += f"\nPath(work_dir, '{inside}').parent.mkdir(parents=True, exist_ok=True)"
            body += f"\nPath(work_dir, '{inside}').write_text('{{}}')"
        if not (sources / step.source.name).is_file():
            notebook(sources / step.source.name, body)
    monkeypatch.setattr(pipeline, 'NOTEBOOKS', sources)
    return sources


@pytest.mark.long
def test_a_failed_step_is_recorded_and_the_next_call_goes_on_from_it(tmp_path, sources):
    whole = (sources / '01_data.ipynb').read_text()
    notebook(sources / '01_data.ipynb', "raise ValueError('broken <b>')")
    run_dir, lines = tmp_path / 'run', []
    with pytest.raises(NotebookError, match='broken'):
        pipeline.run_recipe(
            load_recipe(MINI, NO_CHECKPOINTS), run_dir, smoke=True, echo=lines.append
        )
    steps = status(run_dir)['steps']
    assert [step['state'] for step in steps[:3]] == ['done', 'failed', 'pending']
    assert 'broken <b>' in steps[1]['reason'] and status(run_dir)['state'] == 'failed'
    assert (run_dir / 'notebooks' / '01_data.ipynb').is_file()
    (sources / '01_data.ipynb').write_text(whole)
    notebook(sources / '02_detectors.ipynb', 'pass')  # ends well and writes nothing
    with pytest.raises(MtpdError, match=r'ended without writing detectors/student/metrics\.json'):
        pipeline.run_recipe(
            load_recipe(MINI, NO_CHECKPOINTS), run_dir, smoke=True, echo=lines.append
        )
    beside = 'up to 2 steps run side by side, not in the order of their numbers'
    assert [lines.pop(0), lines.pop(3)] == [beside, beside]
    first, second = lines[:3], lines[3:]  # steps side by side, in either order
    assert {'[1/14] 00_environment', '[2/14] 01_data'} < set(first)
    (done,) = set(first) - {'[1/14] 00_environment', '[2/14] 01_data'}
    assert re.fullmatch(r'\[1/14\] 00_environment: done in \d+ s', done)
    (ended,) = [line for line in second if 'done in' in line]
    assert ended.startswith('[2/14] 01_data: ') and second[-1] == '[3/14] 02_detectors'
    second = {line for line in second if line != ended}
    assert second == {'[1/14] 00_environment: done before', '[2/14] 01_data', '[3/14] 02_detectors'}
    assert [step['state'] for step in status(run_dir)['steps'][:3]] == ['done', 'done', 'failed']


@pytest.mark.long
def test_steps_are_done_again_where_validation_annotations_changed(tmp_path, sources, tiny_coco):
    root = tiny_coco(tmp_path / 'coco')
    recipe = load_recipe(MINI, NO_CHECKPOINTS | {'data.root': str(root)})
    notebook(sources / '03_teacher_order.ipynb', "raise ValueError('stop')")
    path, lines = root / 'annotations' / 'val.json', []

    def run():
        with pytest.raises(NotebookError, match='stop'):
            pipeline.run_recipe(recipe, tmp_path / 'run', smoke=True, echo=lines.append)

    run()
    table = json.loads(path.read_text())
    table['annotations'][0]['category_id'] = 6
    path.write_text(json.dumps(table))
    lines.clear()
    run()
    assert 'the validation annotations have changed: detectors are measured again' in lines
    assert '[2/14] 01_data' in lines and '[3/14] 02_detectors' in lines


@pytest.mark.long
def test_a_run_is_done_when_its_report_is(tmp_path, sources, monkeypatch):
    run_dir, reports = tmp_path / 'run', []
    monkeypatch.setattr(
        pipeline, 'step_chains', lambda *_: [[[pipeline.Step(sources / '01_data.ipynb')]]]
    )

    def report(folder):
        reports.append((folder, status(folder)['state'], load_run(folder).state))
        with pytest.raises(MtpdError, match='is in use'):
            pipeline.run_recipe(load_recipe(MINI, NO_CHECKPOINTS), folder)
        if len(reports) == 1:
            raise Interrupted(15)
        return folder / 'index.html'

    with pytest.raises(Interrupted):
        pipeline.run_recipe(load_recipe(MINI, NO_CHECKPOINTS), run_dir, report=report)
    recorded = status(run_dir)
    assert (recorded['state'], recorded['signal'], recorded['exit_code']) == (
        'interrupted',
        'SIGTERM',
        143,
    )
    assert [step['state'] for step in recorded['steps']] == ['done']
    lines = []
    pipeline.run_recipe(
        load_recipe(MINI, NO_CHECKPOINTS), run_dir, echo=lines.append, report=report
    )
    assert lines[-1] == f'report: {run_dir}/index.html' and status(run_dir)['state'] == 'done'
    assert reports == 2 * [(run_dir, 'running', 'complete')]


@pytest.mark.long
def test_a_failed_run_has_a_report(tmp_path, sources):
    notebook(sources / '01_data.ipynb', "raise ValueError('broken')")
    states = []

    def report(folder):
        states.append(load_run(folder).state)
        return folder

    with pytest.raises(NotebookError, match='broken'):
        pipeline.run_recipe(load_recipe(MINI, NO_CHECKPOINTS), tmp_path / 'run', report=report)
    assert states == ['failed'] and status(tmp_path / 'run')['state'] == 'failed'


@pytest.mark.long
def test_one_of_the_kits_notebooks_runs_by_itself(tmp_path):
    options = f'data.scenes.train=6 data.scenes.val=8 data.cache={tmp_path}'
    out = tmp_path / 'out.ipynb'
    execute_notebook(
        ROOT / 'notebooks/01_data.ipynb',
        out,
        {'cfg_options': options, 'work_dir': str(tmp_path / 'run')},
    )
    cells = nbformat.read(out, as_version=4).cells
    images = [
        o for c in cells for o in c.get('outputs', []) if 'image/' in str(o.get('data', ''))[:40]
    ]
    assert len(images) == 3
    texts = [
        o['data'].get('text/markdown', '')
        for c in cells
        for o in c.get('outputs', [])
        if 'data' in o
    ]
    assert any(
        '**Conclusion.** The dataset has 6 training images, 8 validation images and 10 classes.'
        in text
        for text in texts
    )


def test_a_smoke_run_shortens_what_it_trains_only():
    """A shipped teacher keeps the updates of its training, which the report states."""
    recipe = load_recipe(MINI, {'teachers.r101.checkpoint': None})
    smoke = load_recipe(recipe, pipeline._smoke_overrides(recipe))
    assert (smoke.cfg.teachers.r101.updates, smoke.cfg.teachers.r101.scenes) == (4, 64)
    assert smoke.cfg.teachers.rx101 == recipe.cfg.teachers.rx101
    assert run_info(smoke)['detectors'][2]['updates'] == recipe.cfg.teachers.rx101.updates == 7000
    assert (smoke.cfg.schedule.arm, smoke.cfg.data.scenes.train) == (4, 64)


@pytest.mark.slow
def test_every_notebook_runs_in_a_smoke_run(tmp_path):
    options = {**NO_CHECKPOINTS, 'runtime.threads': 1, 'teachers.rx101.init': None}
    run_dir = pipeline.run_recipe(load_recipe(MINI, options), tmp_path / 'run', smoke=True)
    assert {step['state'] for step in status(run_dir)['steps']} == {'done'}
    for path in (run_dir / 'notebooks').glob('*.ipynb'):
        for cell in nbformat.read(path, as_version=4).cells:
            assert not [o for o in cell.get('outputs', []) if o.output_type == 'error']


# Chains of steps side by side.


class Step(str):
    label = property(str)


def chains(*texts):
    return [[Step(word) for word in text.split()] for text in texts]


def test_chains_overlap_and_their_steps_keep_their_order():
    meet, done, marks, shares = threading.Barrier(2, timeout=20), [], [], set()

    def work(step, env, mark):
        if step.endswith('1'):
            meet.wait()  # only passed when both chains are at work
        done.append(step)
        marks.append(mark)
        shares.add(env['OMP_NUM_THREADS'])

    ChainRunner(2).run(chains('a1 a2 a3', 'b1 b2'), work)
    assert [s for s in done if s[0] == 'a'] == ['a1', 'a2', 'a3']
    assert [s for s in done if s[0] == 'b'] == ['b1', 'b2']
    assert marks == [f'{step}: ' for step in done]
    assert shares == {str(max(1, cpu_cores() // 2))}


@pytest.mark.parametrize(('jobs', 'given'), [(1, ('a1 a2', 'b1')), (2, ('a1 a2 b1',))])
def test_one_lane_is_this_thread_with_all_cores(jobs, given):
    seen = []
    ChainRunner(jobs).run(
        chains(*given), lambda *call: seen.append((*call, threading.current_thread()))
    )
    assert [call[0] for call in seen] == ['a1', 'a2', 'b1']
    assert all(call[1:] == ({}, '', threading.main_thread()) for call in seen)


def test_after_a_failure_what_runs_is_finished_and_nothing_new_begins():
    both, finished = threading.Barrier(2, timeout=20), []

    def work(step, env, mark):
        both.wait()
        if step == 'bad':
            raise ValueError('broken')
        threading.Event().wait(0.2)  # the failure has been noted by then
        finished.append(step)

    with pytest.raises(ValueError, match='broken'):
        ChainRunner(2).run(chains('bad never', 'long never'), work)
    assert finished == ['long']


def test_marked_lines_are_whole():
    stream = io.StringIO()
    one, two = PrefixedStream(stream, 'a: '), PrefixedStream(stream, 'b: ')
    one.write('upd')
    two.write('first\nsec')
    one.write('ate 1\n')
    two.write('ond\n')
    assert stream.getvalue() == 'b: first\na: update 1\nb: second\n'
