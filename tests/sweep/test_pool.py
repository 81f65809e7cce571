"""Pools of teachers: the automatic choice of two and of three, and pools that cannot be searched."""

import json

import pytest
from click.testing import CliRunner

from helpers.tiny_sweep import MINI, SMALL, command, run
from mtpd import load_recipe
from mtpd.cli.main import main
from mtpd.errors import MtpdError
from mtpd.pipeline.run_dir import refuse_other_settings
from mtpd.pipeline.teacher_order import calibration_text, resolve_auto_arms, suggest_sequence
from mtpd.sweep.folder import load_sweep, open_sweep
from mtpd.sweep.plan import CONTROL, parse_orders
from mtpd.sweep.results import collect_results
from mtpd.sweep.run import SUGGESTED_LENGTHS, suggested_orders
from mtpd.utils.files import read_json, sha256, write_json

THIRD = {
    'teachers.r18.config': '../_base_/models/pocket_retinanet.py',
    'teachers.r18.model.backbone.base_channels': 16,
    'teachers.r18.model.neck.in_channels': [16, 32, 64, 128],
    'teachers.r18.updates': 1,
}
AUTO = {'arms': {'_delete_': True, 'auto': {'label': 'chosen', 'teachers': 'auto'}}}


def asked(command, *arguments, **options):
    texts = [part for k, v in options.items() for part in ('--cfg-options', f'{k}={v}')]
    return CliRunner().invoke(main, [str(item) for item in (command, *arguments, *texts)])


def refused(*arguments, **options) -> str:
    found = asked(*arguments, **options)
    assert found.exit_code == 2, (found.output, found.exception)
    assert 'Traceback' not in found.output
    return found.output


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
        write_json(folder / 'metrics.json', {'bbox_mAP': ap, 'sha256': sha256(weights)})
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
    assert arm.teachers == tuple(sequence) and arm.stage_updates == 600 // length
    assert arm.label == 'chosen: ' + ' → '.join(sequence)


def test_a_sweep_gets_the_sequences_of_two_and_of_three(measured, tmp_path):
    recipe, run_dir, costs = measured
    said = []
    found = suggested_orders(recipe, costs, run_dir, said.append)
    assert found['orders'] == [('r101', 'rx101'), ('r18', 'r101', 'rx101')]
    assert list(found['reasons']) == [
        f'{method}, {length}'
        for length in (2, 3)
        for method in ('backward_greedy', 'shortest_path')
    ]
    assert said == [
        'Warning: measured on 8 images, and a stable fit takes about 30. Raise order.images, or give a larger '
        'validation split.',
        'the costs suggest r101 → rx101, r18 → r101 → rx101',
    ]
    orders = parse_orders('auto;r18', recipe.pool, lambda: found['orders'])
    sweep = open_sweep(recipe, tmp_path / 'sweep', orders, ['mgd'], [0], found)
    updates = {job.teachers: job.updates for job in sweep.jobs.values() if job.teachers}
    assert updates == {CONTROL: 600, ('r101', 'rx101'): 300, ('r18', 'r101', 'rx101'): 200} | {
        ('r18',): 600
    }
    assert [list(order) for order in found['orders']] == load_sweep(sweep.path).info['suggested'][
        'orders'
    ]


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
        ['student (strides 32) and rx101 (8) have no FPN level of the same stride', 'leave one'],
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
        options |= {'teachers.rx101.init': None}
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


def test_a_sweep_of_another_recipe_stays_as_it_is(tmp_path):
    folder = tmp_path / 'sweep'
    open_sweep(load_recipe(MINI), folder, [CONTROL], ['mgd'], [0])
    before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    twin = 'configs/mini/retinanet_r50__swint_swins.py'
    text = refused('sweep', twin, '--work-dir', folder)
    assert f'{folder} holds a sweep of mini_retinanet_r50__r101_rx101' in text
    text = refused('sweep', MINI, '--work-dir', folder, **{'schedule.arm': 1200})
    assert 'holds a sweep with other settings' in text and 'another --work-dir' in text
    assert {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()} == before


# The whole, with trainings of one or two updates


@pytest.mark.slow
def test_a_pool_of_one_is_direct_distillation(tmp_path, tiny_coco):
    teacher = load_recipe(MINI).cfg.teachers.r101.to_dict() | {'checkpoint': None, 'updates': 1}
    options = {k: v for k, v in SMALL.items() if not k.startswith('teachers')}
    options |= {'data.root': tiny_coco(tmp_path / 'coco')}
    options |= {'teachers': {'_delete_': True, 'r101': teacher}}
    options |= {'arms': {'_delete_': True, 'direct': {'teachers': ['r101']}}}
    found = asked('order', MINI, '--work-dir', tmp_path / 'run', **options)
    assert found.exit_code == 0, found.output
    assert 'The pool has one teacher: direct distillation from teacher 1: ResNet-34' in found.output
    assert 'Warning: measured on 4 images, and a stable fit takes about' in found.output
    assert 'UserWarning' not in found.output and '.py:' not in found.output
    assert read_json(tmp_path / 'run/order/sequence.json')['sequence'] == ['r101']
    found = asked('sweep', MINI, '--work-dir', tmp_path / 'sweep', **options)
    assert found.exit_code == 0, found.output
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
    assert [tuple(order) for order in sweep.info['orders']] == [CONTROL, *suggested]
    found = collect_results(folder)
    assert found['unfinished'] == [] and found['suggested'] == sweep.info['suggested']
    stages = {row['order']: row['updates'] * row['stages'] for row in found['rows']}
    assert stages == {'baseline': 0, 'none': 6} | {','.join(order): 6 for order in suggested}

    options = SMALL | THIRD | AUTO | {'data.root': str(data), 'schedule.arm': 6}
    recipe = load_recipe(MINI, options | {'order.max_length': 3})
    plan = resolve_auto_arms(recipe, folder / 'shared/0')
    assert plan.arm('auto').teachers == tuple(
        read_json(folder / 'shared/0/order/sequence.json')['sequence']
    )
    again = run(arguments)
    assert again.returncode == 0 and 'the costs suggest' not in again.stdout


def test_a_run_directory_of_other_detectors_is_refused(tmp_path):
    """Their student would be taken for this recipe's; the settings of the choice itself may differ."""
    recipe, other = load_recipe(MINI), load_recipe(MINI, {'schedule.baseline': 7})
    refuse_other_settings(recipe, tmp_path)
    kept = recipe.text
    (tmp_path / 'order').mkdir()
    (tmp_path / 'order' / 'recipe.py').write_text(kept)  # as `mtpd order` leaves it
    refuse_other_settings(load_recipe(MINI, {'order.images': 9}), tmp_path)
    for wrong, key in ((other, 'schedule.baseline'), (load_recipe(MINI, seed=1), 'seed')):
        with pytest.raises(MtpdError, match=rf'holds a run with other settings \({key}\)'):
            refuse_other_settings(wrong, tmp_path)
    assert 'schedule.baseline' in refused(
        'order', MINI, '--work-dir', tmp_path, **{'schedule.baseline': 7}
    )
    assert (tmp_path / 'order' / 'recipe.py').read_text() == kept
    write_json(tmp_path / 'sweep' / 'sweep.json', {})
    assert 'holds a sweep' in refused('run', MINI, '--work-dir', tmp_path / 'sweep')
    assert [path.name for path in (tmp_path / 'sweep').iterdir()] == ['sweep.json']
