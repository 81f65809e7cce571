"""A run directory: what run.json says, and that it belongs to one set of settings."""

import json

import pytest
from click.testing import CliRunner

from mtpd import load_recipe
from mtpd.cli.main import main
from mtpd.errors import MtpdError
from mtpd.pipeline.run_dir import claim_run_dir, open_run, refuse_other_settings
from mtpd.utils.files import write_json

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
NO_CHECKPOINTS = {'teachers.r101.checkpoint': None, 'teachers.rx101.checkpoint': None}


def refused(*arguments, **options) -> str:
    texts = [part for k, v in options.items() for part in ('--cfg-options', f'{k}={v}')]
    result = CliRunner().invoke(main, [str(item) for item in (*arguments, *texts)])
    assert result.exit_code == 2, (result.output, result.exception)
    assert 'Traceback' not in result.output
    return result.output


def test_what_a_run_says_of_itself(tmp_path):
    recipe = load_recipe(MINI, {**NO_CHECKPOINTS, 'schedule.arm': 8}, seed=3)
    open_run(recipe, tmp_path, smoke=False)
    info = json.loads((tmp_path / 'run.json').read_text())
    assert info['command'].startswith(f'mtpd run {MINI} --seed 3 --cfg-options')
    assert 'schedule.arm=8' in info['command']
    assert [arm['updates'] for arm in info['arms']] == [8] * 5
    assert info['arms'][0]['teachers'] == [None]
    again = load_recipe(tmp_path / 'recipe.py')
    assert again.cfg.schedule.arm == 8 and again.seed == 3


def test_a_run_that_an_earlier_version_began_goes_on(tmp_path):
    """It knew fewer speed switches, said how many processes load images, and had other figures of the paper."""
    recipe = load_recipe(MINI)
    values = recipe.cfg._cfg_dict.to_dict()
    new = (
        'fold_student',
        'fused_convs',
        'fused_attention',
        'deform_kernels',
        'target_stream',
        'pin_memory',
        'byte_batches',
    )
    assert all(values['speed'].pop(switch) == 'auto' for switch in new)
    values['runtime']['workers'] = 1
    values['paper'] = {
        'baseline': 36.5,
        'after_stage': [37.9, 39.9],
        'direct': 41.0,
        'result': 41.7,
    }
    settings_file = tmp_path / 'recipe.py'
    settings_file.write_text('\n'.join(f'{key} = {value!r}' for key, value in values.items()))
    (tmp_path / 'detectors').mkdir()
    claim_run_dir(settings_file, recipe.text)
    assert settings_file.read_text() == recipe.text
    with pytest.raises(MtpdError, match=r'holds a run with other settings \(speed\.fold_student'):
        claim_run_dir(settings_file, load_recipe(recipe, {'speed.fold_student': True}).text)


def test_a_run_directory_of_other_detectors_is_refused(tmp_path):
    """Their student would be taken for this recipe's; the settings of the choice itself may differ."""
    recipe, other = load_recipe(MINI), load_recipe(MINI, {'schedule.baseline': 7})
    refuse_other_settings(recipe, tmp_path)
    text_before = recipe.text
    (tmp_path / 'order').mkdir()
    (tmp_path / 'order' / 'recipe.py').write_text(text_before)  # as `mtpd order` leaves it
    refuse_other_settings(load_recipe(MINI, {'order.images': 9}), tmp_path)
    for wrong, key in ((other, 'schedule.baseline'), (load_recipe(MINI, seed=1), 'seed')):
        with pytest.raises(MtpdError, match=rf'holds a run with other settings \({key}\)'):
            refuse_other_settings(wrong, tmp_path)
    assert 'schedule.baseline' in refused(
        'order', MINI, '--work-dir', tmp_path, **{'schedule.baseline': 7}
    )
    assert (tmp_path / 'order' / 'recipe.py').read_text() == text_before
    write_json(tmp_path / 'sweep' / 'sweep.json', {})
    assert 'holds a sweep' in refused('run', MINI, '--work-dir', tmp_path / 'sweep')
    assert [path.name for path in (tmp_path / 'sweep').iterdir()] == ['sweep.json']


@pytest.fixture
def run_dir(tmp_path):
    """Of the recipe as it is, with something in it."""
    (tmp_path / 'detectors').mkdir()
    claim_run_dir(tmp_path / 'recipe.py', load_recipe(MINI).text)
    return tmp_path


@pytest.mark.parametrize(
    ('option', 'key'),
    [
        ({'speed.fused_convs': False}, 'speed.fused_convs'),
        ({'distill.method': 'cwd'}, 'distill.method'),
        ({'arms.progressive.teachers': ['r101']}, 'arms.progressive.teachers'),
        ({'distill.settings.mgd.alpha_mgd': 1e-9}, 'distill.settings.mgd.alpha_mgd'),
    ],
)
def test_a_training_run_and_doctor_refuse_the_same_other_settings(run_dir, option, key):
    """Else what is trained already would be given out as the result of these."""
    recipe = load_recipe(MINI, option)
    pattern = rf'holds a run with other settings \({key}\)\. Choose another --work-dir'
    with pytest.raises(MtpdError, match=pattern):
        refuse_other_settings(recipe, run_dir)
    with pytest.raises(MtpdError, match=pattern):
        claim_run_dir(run_dir / 'recipe.py', recipe.text)
    (name, value), *_ = option.items()
    train = ('train', MINI, '--work-dir', run_dir)
    assert f'holds a run with other settings ({key})' in refused(*train, **{name: value})


def test_a_training_may_have_other_machines_and_further_arms(run_dir):
    further = {'arms.mine.teachers': ['rx101'], 'arms.mine.label': 'mine', 'runtime.threads': 1}
    further |= {'schedule.log_interval': 7, 'distill.settings.cwd.tau': 2.0}
    refuse_other_settings(load_recipe(MINI, further), run_dir)
    with pytest.raises(
        MtpdError, match=r'\(arms\.mine\.label, .* and 1 more\)'
    ):  # `mtpd run` lists them
        claim_run_dir(run_dir / 'recipe.py', load_recipe(MINI, further).text)


def test_a_run_goes_on_where_a_method_that_it_does_not_use_is_added_or_changed(run_dir):
    more = {'distill.settings.cwd.tau': 2.0, 'distill.settings.mine.type': 'CWD'}
    claim_run_dir(run_dir / 'recipe.py', load_recipe(MINI, more).text)
    for other in ({'distill.settings.mgd.alpha': 1.0}, {'distill.method': 'cwd'}):
        with pytest.raises(MtpdError, match=next(iter(other))):
            claim_run_dir(run_dir / 'recipe.py', load_recipe(MINI, other).text)


def test_an_older_runs_recipe_lacks_switches_that_are_auto(run_dir):
    values = load_recipe(MINI).cfg._cfg_dict.to_dict()
    del values['speed']['fused_convs']
    text = ''.join(f'{key} = {value!r}\n' for key, value in values.items())
    (run_dir / 'recipe.py').write_text(text)
    refuse_other_settings(load_recipe(MINI), run_dir)
    with pytest.raises(MtpdError, match=r'\(speed\.fused_convs\)'):
        refuse_other_settings(load_recipe(MINI, {'speed.fused_convs': False}), run_dir)
