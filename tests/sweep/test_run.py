"""`mtpd sweep`: mistakes, sequences that the costs suggest, pools that cannot be searched, and the whole."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.tiny_sweep import MINI, SMALL, command, run, wait_for
from mtpd import load_recipe
from mtpd.analysis.run import load_run
from mtpd.cli.main import main
from mtpd.errors import MtpdError
from mtpd.pipeline.teacher_order import calibration_text, resolve_auto_arms, suggest_sequence
from mtpd.sweep.folder import load_sweep, open_sweep
from mtpd.sweep.plan import CONTROL, parse_orders
from mtpd.sweep.results import collect_results
from mtpd.sweep.run import SUGGESTED_LENGTHS, suggested_orders
from mtpd.utils.files import file_sha256, read_json, write_json

THIRD = {
    'teachers.r18.config': '../_base_/models/pocket_retinanet.py',
    'teachers.r18.model.backbone.base_channels': 16,
    'teachers.r18.model.neck.in_channels': [16, 32, 64, 128],
    'teachers.r18.updates': 1,
}
AUTO = {'arms': {'_delete_': True, 'auto': {'label': 'chosen', 'teachers': 'auto'}}}


def invoke(command, *arguments, **options):
    texts = [part for k, v in options.items() for part in ('--cfg-options', f'{k}={v}')]
    return CliRunner().invoke(main, [str(item) for item in (command, *arguments, *texts)])


def refused(*arguments, **options) -> str:
    result = invoke(*arguments, **options)
    assert result.exit_code == 2, (result.output, result.exception)
    assert 'Traceback' not in result.output
    return result.output


# Mistakes


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (('--orders', 'r101,r11'), "unknown teacher 'r11'. Did you mean 'r101'?"),
        (('--orders', 'r101,'), 'a name is missing'),
        (('--methods', 'mgd,mdg'), "unknown method 'mdg'. Did you mean 'mgd'?"),
        (('--seeds', '0-x'), "'0-x' is not a seed"),
        (('--seeds', '4-1'), "'4-1' is not a seed"),
        (('--executor', 'locla'), "unknown executor 'locla'. Did you mean 'local'?"),
        (('--orders', ','.join(['r101'] * 7)), '7 stages, which do not divide schedule.arm = 1200'),
    ],
)
def test_mistakes_are_one_message_and_leave_nothing(tmp_path, arguments, words):
    out = tmp_path / 'out'
    assert words in refused('sweep', MINI, '--work-dir', out, *arguments)
    assert not out.exists()


def test_without_submitit_or_sbatch_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    out = tmp_path / 'out'
    arguments = ('sweep', MINI, '--work-dir', out, '--executor', 'slurm')
    assert 'there is no sbatch' in refused(*arguments)
    for program in ('sbatch', 'srun'):
        (tmp_path / program).touch(0o755)
    assert 'with --time' in refused(*arguments)
    monkeypatch.setitem(sys.modules, 'submitit', None)
    assert 'pip install -r requirements/sweep.txt' in refused(*arguments)
    assert not out.exists()


# The automatic choice


@pytest.fixture
def measured(tmp_path):
    """A recipe with a pool of three, a run directory with their AP, and costs by which they form a chain."""
    weights = tmp_path / 'weights.pth'
    weights.write_bytes(b'any')
    names = ('student', 'r101', 'rx101', 'r18')
    options = THIRD | {f'teachers.{name}.checkpoint': str(weights) for name in names[1:]}
    recipe = load_recipe(MINI, options | AUTO | {'student.checkpoint': str(weights)})
    for name, ap in zip(names, (0.1, 0.4, 0.5, 0.3), strict=True):
        folder = tmp_path / 'run' / 'detectors' / name
        write_json(folder / 'metrics.json', {'bbox_mAP': ap, 'sha256': file_sha256(weights)})
        write_json(folder / 'model.json', {})
    cost = [[0, 0.5, 0.9, 0.2], [1, 0, 0.5, 1], [1, 1, 0, 1], [1, 0.2, 0.8, 0]]
    costs = {'detectors': list(names), 'cost': cost, 'images': 8, 'needed': 30}
    return recipe, tmp_path / 'run', costs


@pytest.mark.parametrize('method', ['backward_greedy', 'shortest_path'])
@pytest.mark.parametrize(
    ('length', 'sequence'),
    [(1, ['rx101']), (2, ['r101', 'rx101']), (3, ['r18', 'r101', 'rx101'])],
)
def test_an_arm_gets_as_many_teachers_as_asked_for(measured, method, length, sequence):
    recipe, run_dir, costs = measured
    recipe = load_recipe(recipe, {'order.max_length': length, 'order.method': method})
    suggest_sequence(recipe, costs, run_dir)
    assert read_json(run_dir / 'order' / 'sequence.json')['sequence'] == sequence
    arm = resolve_auto_arms(recipe, run_dir).arm('auto', length)
    assert arm.teachers == tuple(sequence) and arm.stage_updates == 1200 // length
    assert arm.label == 'chosen: ' + ' → '.join(sequence)


def test_a_sweep_gets_the_sequences_of_two_and_of_three(measured, tmp_path):
    recipe, run_dir, costs = measured
    lines = []
    suggested = suggested_orders(recipe, costs, run_dir, lines.append)
    assert suggested['orders'] == [('r101', 'rx101'), ('r18', 'r101', 'rx101')]
    assert list(suggested['reasons']) == [
        f'{method}, {length}'
        for length in (2, 3)
        for method in ('backward_greedy', 'shortest_path')
    ]
    assert lines == [
        'Warning: measured on 8 images, and a stable fit takes about 30. Raise order.images, or give a larger '
        'validation split.',
        'the costs suggest r101 → rx101, r18 → r101 → rx101',
    ]
    orders = parse_orders('auto;r18', recipe.pool, suggested['orders'])
    sweep = open_sweep(recipe, tmp_path / 'sweep', orders, ['mgd'], [0], suggested)
    updates = {job.teachers: job.updates for job in sweep.jobs.values() if job.teachers}
    sequences = {('r101', 'rx101'): 600, ('r18', 'r101', 'rx101'): 400}
    repeated = {('rx101',) * 2: 600, ('rx101',) * 3: 400}
    assert updates == {CONTROL: 1200, ('r18',): 1200} | sequences | repeated
    assert [list(order) for order in suggested['orders']] == load_sweep(sweep.path).info[
        'suggested'
    ]['orders']


def test_enough_images_are_said_too():
    text = calibration_text({'images': 256, 'needed': 30})
    assert text == 'Measured on 256 images; a stable fit takes about 30.'


def test_a_teacher_without_ap_is_named(measured):
    recipe, run_dir, costs = measured
    path = run_dir / 'detectors' / 'r18' / 'metrics.json'
    write_json(path, read_json(path) | {'bbox_mAP': None})
    with pytest.raises(MtpdError, match=r'r18 has no AP .*mtpd eval RECIPE --detector r18'):
        suggest_sequence(recipe, costs, run_dir)
    assert not (run_dir / 'order').exists()


# Pools that cannot be searched


ALONE = {
    'teachers': {'_delete_': True},
    'arms': {'_delete_': True, 'none': {'teachers': [None]}},
}
STRIDES = {'student.model.neck.start_level': 3, 'student.model.neck.num_outs': 1}
STRIDES |= {'teachers.rx101.model.neck.end_level': 1, 'teachers.rx101.model.neck.num_outs': 1}
WRONG = {
    'checkpoint': (
        {'teachers.rx101.checkpoint': 'nowhere/x.pth'},
        ['checkpoint of rx101', 'x.pth is missing', '--cfg-options teachers.rx101.checkpoint=None'],
    ),
    'strides': (
        STRIDES | {'teachers.rx101.checkpoint': None, 'distill.levels': [0]},
        [
            'student and rx101: ',
            'level 0 of the student has stride 32, and the teacher has strides 8',
        ],
    ),
    'search': ({'order.method': 'best'}, ["order.method is 'best': one of", 'backward_greedy']),
    'loss': ({'distill.method': 'mdg'}, ["unknown distill.method 'mdg'. Did you mean 'mgd'?"]),
    'images': ({'order.images': 1}, ['order.images is 1: it must be at least 2']),
}


@pytest.mark.parametrize('command', [('order',), ('sweep', '--orders', 'auto')])
@pytest.mark.parametrize('kind', WRONG)
def test_what_stands_in_the_way_is_said_before_anything_is_trained(
    tmp_path, tiny_coco, command, kind
):
    options, words = WRONG[kind]
    options = options | {'data.root': tiny_coco(tmp_path / 'coco'), 'schedule.arm': 6}
    if kind != 'checkpoint':  # the shipped teachers know other classes
        options |= {'teachers.r101.checkpoint': None, 'teachers.rx101.checkpoint': None}
        options |= {'teachers.rx101.init': None, 'student.checkpoint': None}
    text = refused(command[0], MINI, *command[1:], '--work-dir', tmp_path / 'out', **options)
    assert all(word in text for word in words), text
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('command', ['order', 'sweep'])
def test_a_pool_of_none(tmp_path, command):
    text = refused(command, MINI, '--work-dir', tmp_path / 'out', **ALONE)
    assert 'retinanet_r50__r101_rx101.py has a problem' in text and 'teachers is empty' in text
    assert not (tmp_path / 'out').exists()


def test_automatic_sequences_must_divide_the_updates(tmp_path):
    options = THIRD | {'schedule.arm': 1000}
    sweep = ('sweep', MINI, '--orders', 'auto', '--work-dir', tmp_path / 'out')
    text = refused(*sweep, **options)
    assert 'may find 3 stages, which do not divide schedule.arm = 1000' in text
    assert 'a multiple of 6' in text and not (tmp_path / 'out').exists()


# The whole, with trainings of one or two updates


@pytest.mark.slow
def test_a_pool_of_one_is_direct_distillation(tmp_path, tiny_coco):
    teacher = load_recipe(MINI).cfg.teachers.r101.to_dict() | {'checkpoint': None, 'updates': 1}
    options = {k: v for k, v in SMALL.items() if not k.startswith('teachers')}
    options |= {'data.root': tiny_coco(tmp_path / 'coco')}
    options |= {'teachers': {'_delete_': True, 'r101': teacher}}
    options |= {'arms': {'_delete_': True, 'direct': {'teachers': ['r101']}}}
    result = invoke('order', MINI, '--work-dir', tmp_path / 'run', **options)
    assert result.exit_code == 0, result.output
    assert (
        'The pool has one teacher: direct distillation from teacher 1: ResNet-34' in result.output
    )
    assert 'Warning: measured on 4 images, and a stable fit takes about' in result.output
    assert 'UserWarning' not in result.output and '.py:' not in result.output
    assert read_json(tmp_path / 'run/order/sequence.json')['sequence'] == ['r101']
    result = invoke('sweep', MINI, '--work-dir', tmp_path / 'sweep', **options)
    assert result.exit_code == 0, result.output
    orders = load_sweep(tmp_path / 'sweep').info['orders']
    assert orders == [[None], ['r101']]


@pytest.mark.slow
def test_the_automatic_sequences_of_a_real_pool(tmp_path, tiny_coco):
    """Detectors first, then their costs, then the sequences of two and three; an arm of the recipe likewise."""
    data, folder = tiny_coco(tmp_path / 'coco'), tmp_path / 'sweep'
    third = ' '.join(f'{k}={json.dumps(v)}' for k, v in (THIRD | {'schedule.arm': 6}).items())
    arguments = command(data, folder, '--orders', 'auto', '--slots', '2', '--cfg-options', third)
    first = run(arguments)
    assert first.returncode == 0, first.stderr
    assert 'Warning: measured on 4 images' in first.stdout and 'the costs suggest' in first.stdout
    sweep = load_sweep(folder)
    ap = read_json(folder / 'shared/0/order/sequence.json')['ap']
    suggested = [tuple(order) for order in sweep.info['suggested']['orders']]
    best = max(sorted(set(ap) - {'student'}), key=ap.get)
    assert all(order[-1] == best and len(order) <= SUGGESTED_LENGTHS[-1] for order in suggested)
    orders = dict.fromkeys(
        order
        for path in suggested
        for order in (path, (best,) * len(path))  # as often split
    )
    assert [tuple(order) for order in sweep.info['orders']] == [CONTROL, *orders]
    results = collect_results(folder)
    assert results['unfinished'] == [] and results['suggested'] == sweep.info['suggested']
    stages = {row['order']: row['updates'] * row['stages'] for row in results['rows']}
    assert stages == {'baseline': 0, 'none': 6} | {','.join(order): 6 for order in orders}

    options = SMALL | THIRD | AUTO | {'data.root': str(data), 'schedule.arm': 6}
    recipe = load_recipe(MINI, options | {'order.max_length': 3})
    plan = resolve_auto_arms(recipe, folder / 'shared/0')
    assert plan.arm('auto').teachers == tuple(
        read_json(folder / 'shared/0/order/sequence.json')['sequence']
    )
    again = run(arguments)
    assert again.returncode == 0 and 'the costs suggest' not in again.stdout


@pytest.mark.slow
def test_interrupted_it_ends_its_jobs_without_a_traceback(tmp_path, tiny_coco):
    data, folder = tiny_coco(tmp_path / 'coco'), tmp_path / 'sweep'
    options = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    process = subprocess.Popen(
        command(data, folder, '--slots', '2'), start_new_session=True, **options
    )
    wait_for((folder / 'sweep.json').is_file)
    sweep = load_sweep(folder)
    jobs = [sweep.jobs[name] for name in ('teacher-r101', 'teacher-rx101')]
    pids = wait_for(lambda: all(sweep.status(j) for j in jobs)) and [
        sweep.status(j)['pid'] for j in jobs
    ]
    os.killpg(process.pid, signal.SIGINT)
    out = process.communicate(timeout=120)[0]
    print(out)
    assert process.returncode == 130 and 'stopped by Ctrl-C; the same command goes on' in out
    assert 'Traceback' not in out
    assert not any(Path(f'/proc/{pid}').exists() for pid in pids)
    for job in jobs:
        assert sweep.state(job) in [
            ('failed', 'interrupted'),
            ('lost', 'killed: its process is gone'),
        ]


@pytest.mark.slow
def test_a_sweep_with_a_killed_job_and_the_same_command_again(tmp_path, tiny_coco):
    data, folder = tiny_coco(tmp_path / 'coco'), tmp_path / 'sweep'
    arguments = command(data, folder, '--slots', '2')
    two = os.environ | {'CUDA_VISIBLE_DEVICES': '4,5'}  # without effect where there are none
    first = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=two)
    wait_for((folder / 'sweep.json').is_file)
    sweep = load_sweep(folder)
    prefix = sweep.jobs['mgd-0-r101-of-2']
    os.kill(wait_for(lambda: sweep.status(prefix).get('pid')), signal.SIGKILL)
    out = first.communicate(timeout=300)[0]
    print(out)
    assert first.returncode == 1
    assert 'mgd-0-r101-of-2: lost (killed: its process is gone)' in out
    assert 'mgd-0-r101-rx101: not started, because the jobs that it needs are not done' in out
    states = {name: sweep.state(job)[0] for name, job in sweep.jobs.items()}
    done = ['teacher-r101', 'teacher-rx101', 'baseline-0', 'control-0']
    assert [sweep.status(sweep.jobs[name])['gpu'] for name in done[:2]] == ['4', '5']
    assert [name for name, state in states.items() if state == 'done'] == done
    weights = sorted(folder.glob('**/*.pth'))
    before = {path: path.stat().st_mtime_ns for path in weights}

    second = run(arguments)
    assert second.returncode == 0, second.stderr
    assert '7 jobs, 4 of them done already' in second.stdout
    assert 'mgd-0-r101-of-2: lost before (killed: its process is gone), runs again' in second.stdout
    assert {path: path.stat().st_mtime_ns for path in weights} == before
    attempts = {name: sweep.status(job)['attempt'] for name, job in sweep.jobs.items()}
    assert attempts == dict.fromkeys(sweep.jobs, 1) | {prefix.id: 2}
    assert {sweep.status(job)['threads'] for job in sweep.jobs.values()} == {'1'}

    results = collect_results(folder)
    assert results['unfinished'] == [] and len(results['rows']) == 6
    with (folder / 'results.csv').open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        metrics = json.loads((folder / row['folder'] / 'metrics.json').read_text())
        for column, key in (('AP', 'bbox_mAP'), ('AP50', 'bbox_mAP_50'), ('AP_l', 'bbox_mAP_l')):
            assert (row[column] and float(row[column]) / 100) == (
                '' if metrics[key] is None else pytest.approx(metrics[key])
            )
    assert [(row['order'], row['stage'], row['updates']) for row in rows[2:]] == [
        ('r101,rx101', '1', '1'),
        ('r101,rx101', '2', '1'),
        ('r101,r101', '1', '1'),
        ('r101,r101', '2', '1'),
    ]
    assert rows[2]['folder'] == rows[4]['folder'] == 'mgd/0/stages/r101-rx101/1_r101'
    third = run(arguments)
    assert third.returncode == 0 and 'complete: mtpd collect' in third.stdout
    assert '7 jobs, 7 of them done already' in third.stdout
    assert load_run(folder / 'mgd/0').results()[0]['AP'] is not None
