"""The command line: what it prints, how it ends, and that a user's mistake is one message."""

import json
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from helpers.fake_run import make_run
from mtpd.cli.main import SECTIONS, main
from mtpd.utils.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'


def call(*arguments):
    return CliRunner().invoke(main, [str(item) for item in arguments])


def refused(*arguments) -> str:
    """The message of a user's mistake: exit code 2 and no traceback."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert 'Traceback' not in result.output
    return result.output


def test_help_needs_no_heavy_import():
    code = (
        'import sys; from mtpd.cli import main\n'
        'try: main(["--help"])\n'
        'except SystemExit: pass\n'
        'print(sorted({"torch", "mmdet", "mmcv", "matplotlib", "numpy"} & set(sys.modules)))'
    )
    process = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    assert process.stdout.splitlines()[-1] == '[]'
    commands = ('run', 'train', 'eval', 'export', 'report', 'data', 'doctor', 'install-ops')
    for command in (*commands, 'sweep', 'status', 'collect'):
        assert f'  {command} ' in process.stdout


@pytest.mark.parametrize(('before', 'after'), [('SIG_DFL', -signal.SIGINT), ('SIG_IGN', 0)])
def test_ctrl_c_after_the_end_leaves_no_traceback(before, after):
    """Python is cleaning up then: what it calls would raise KeyboardInterrupt. Where Ctrl-C was ignored, it is so still."""
    code = (
        'import atexit, signal, sys, time; from mtpd.cli import main\n'
        f'if "{before}" == "SIG_IGN": signal.signal(signal.SIGINT, signal.SIG_IGN)\n'
        'def clean_up():\n'
        '    print("cleaning up", flush=True)\n'
        '    sys.stdin.readline()\n'
        'atexit.register(clean_up)\n'
        'main(["--help"])'
    )
    pipes = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE)
    with subprocess.Popen([sys.executable, '-c', code], text=True, **pipes) as process:
        while process.stdout.readline() != 'cleaning up\n':
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate('\n')
    assert (process.returncode, errors) == (after, '')


def test_help_lists_each_command_once_under_what_one_wants():
    listed = [name for names in SECTIONS.values() for name in names]
    assert len(listed) == len(set(listed)) and not set(main.commands) - set(listed)
    text = call('--help').output
    for heading, names in SECTIONS.items():
        section = text.split(f'\n{heading}:\n')[1].split('\n\n')[0]
        words = [line.split()[0] for line in section.splitlines() if line.startswith('  ')]
        assert words == [name for name in names if name in main.commands]


@pytest.mark.parametrize('group', [(), ('data',)])
def test_no_line_of_help_is_cut(group):
    text = CliRunner().invoke(main, [*group, '--help'], terminal_width=80).output
    lines = [line for line in text.splitlines() if not line.startswith('Usage')]
    assert lines and not [line for line in lines if line.endswith('...')]


def test_digits_are_made_and_checked(tmp_path):
    arguments = ('data', 'digits', '--root', tmp_path, '--train', 3, '--val', 2, '--size', 64)
    result = call(*arguments)
    assert result.exit_code == 0 and '3 + 2 scenes of 64 x 64' in result.output
    folder = next(tmp_path.iterdir())
    (folder / 'val' / '000000.png').write_bytes(b'changed')
    assert 'files of val have changed' in refused(*arguments)


@pytest.mark.parametrize('command', ['run', 'train', 'eval'])
def test_mistakes_in_a_recipe_are_one_message(command):
    more = ('--checkpoint', 'x.pth') if command == 'eval' else ()
    text = refused(command, MINI, '--cfg-options', 'schedul.arm=3 seed=a', *more)
    assert "Did you mean 'schedule'?" in text and "seed is 'a'" in text
    assert 'no such file' in refused(command, 'configs/none.py', *more)


@pytest.mark.parametrize(
    'words',
    [
        ['--cfg-options', 'seed=7', 'schedule.arm=30', MINI],
        [MINI, '--cfg-options', 'seed=7', 'schedule.arm=30'],
        [MINI, '--cfg-options', 'seed=7 schedule.arm=30'],
        [MINI, '--cfg-options', 'seed=7', '--cfg-options', 'schedule.arm=30'],
        ['--cfg-options', 'seed=7', 'schedule.arm=30', '--work-dir', 'a=b', MINI],
        ['--cfg-options', 'seed=7 title=a b', 'schedule.arm=30', MINI],
    ],
)
def test_overrides_are_written_as_in_mmdet_as_one_text_or_one_by_one(words):
    values: dict = {}
    exec(call('show', *words).output, values)  # our own recipe
    assert values['seed'] == 7 and values['schedule']['arm'] == 30


def test_an_override_without_a_value_is_refused():
    assert 'KEY=VALUE' in refused('train', MINI, '--cfg-options', 'seed')


def test_a_missing_dataset_is_named_before_anything_is_written(tmp_path):
    out = tmp_path / 'run'
    options = f'data.root={tmp_path}/none'
    assert 'no such folder' in refused('run', MINI, '--work-dir', out, '--cfg-options', options)
    assert not out.exists()


def test_a_missing_annotation_file_is_named(tmp_path, tiny_coco):
    root = tiny_coco(tmp_path / 'coco')
    (root / 'annotations' / 'val.json').unlink()
    text = refused(
        'run', MINI, '--work-dir', tmp_path / 'run', '--cfg-options', f'data.root={root}'
    )
    assert 'val.json: no such file' in text


def test_missing_teachers_are_all_named(tmp_path):
    options = 'teachers.r101.checkpoint=none/a.pth teachers.rx101.checkpoint=none/b.pth'
    text = refused('run', MINI, '--work-dir', tmp_path / 'run', '--cfg-options', options)
    assert 'a.pth is missing' in text and 'b.pth is missing' in text
    assert 'teachers.rx101.checkpoint=None' in text


@pytest.mark.long
def test_a_teacher_that_cannot_be_fetched_is_named_before_anything_is_written(tmp_path, site):
    options = f'teachers.r101.checkpoint={site.url}/r101.pth'
    text = refused('run', MINI, '--work-dir', tmp_path / 'run', '--cfg-options', options)
    assert 'answers 404' in text and f'{site.url}/r101.pth' in text
    assert not (tmp_path / 'run').exists()


@pytest.mark.long
def test_a_work_dir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    options = 'teachers.r101.checkpoint=None teachers.rx101.checkpoint=None'
    text = refused('run', MINI, '--work-dir', tmp_path / 'file' / 'run', '--cfg-options', options)
    assert 'cannot be written to' in text and '--work-dir' in text


@pytest.mark.long
def test_a_run_dir_of_other_settings_is_kept(tmp_path):
    (tmp_path / 'recipe.py').write_text("name = 'another'\n")
    (tmp_path / 'notebooks').mkdir()  # nothing is lost where there is a recipe only
    options = 'teachers.r101.checkpoint=None teachers.rx101.checkpoint=None'
    text = refused('run', MINI, '--work-dir', tmp_path, '--cfg-options', options)
    assert 'holds a run with other settings' in text
    assert (tmp_path / 'recipe.py').read_text() == "name = 'another'\n"


def test_a_tilde_that_the_shell_leaves_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'file').touch()
    refusal = f'{tmp_path}/file/run cannot be written to'
    assert refusal in refused('train', MINI, '--work-dir=~/file/run')
    assert f'{tmp_path}/none is not a run' in refused('report', '~/none')
    options = ('--cfg-options', 'data.root=~/none')
    assert f'data.root {tmp_path}/none: no such folder' in refused('run', MINI, *options)
    made = call('data', 'digits', '--root=~/d', '--train=2', '--val=1', '--size=64')
    assert made.output.startswith(f'{tmp_path}/d/v')


def test_a_refused_training_leaves_no_folder(tmp_path):
    out, cache = tmp_path / 'runs' / 'mini' / '0', f'data.cache={tmp_path / "data"}'
    command = ('train', MINI, '--work-dir', out, '--detector', 'r9', '--cfg-options', cache)
    assert "unknown detector 'r9'" in refused(*command)
    assert list(tmp_path.iterdir()) == []  # no dataset was made either
    (tmp_path / 'runs').mkdir()  # one that was there stays
    refused(*command)
    assert list(tmp_path.rglob('*')) == [tmp_path / 'runs']


def test_a_report_of_nothing_is_refused(tmp_path):
    assert 'is not a run' in refused('report', tmp_path)


def test_a_web_page_saved_as_checkpoint_is_named(tmp_path):
    page = tmp_path / 'student.pth'
    page.write_text('<!DOCTYPE html><html></html>')
    assert 'is a web page' in refused('export', page, tmp_path / 'out.pth')
    options = 'data.scenes.train=4 data.scenes.val=2 data.scenes.size=64'
    cache = f'data.cache={tmp_path}'
    text = refused('eval', MINI, '--checkpoint', page, '--cfg-options', f'{options} {cache}')
    assert 'is a web page' in text
    assert not (tmp_path / 'out.pth').exists()


def test_the_makefile_runs_the_shipped_recipe():
    assert MINI in (ROOT / 'Makefile').read_text()
    assert json.loads((ROOT / 'notebooks/04_distill_stage.ipynb').read_text())['cells']


def test_show_prints_a_recipe_that_loads_again_and_trains_nothing(tmp_path):
    result = call('show', MINI, '--cfg-options', 'seed=7', '--work-dir', tmp_path / 'run')
    assert result.exit_code == 0, result.output
    values: dict = {}
    exec(result.output, values)  # our own recipe
    assert values['seed'] == 7 and values['student']['config'].endswith(
        'pocket_retinanet_width16.py'
    )
    assert '_base_' not in values and not (tmp_path / 'run').exists()
    plain = call('show', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    assert "'type': 'RetinaNet'" in plain.output


def test_status_and_help_import_nothing_heavy():
    code = (
        'import sys, mtpd.cli, mtpd.pipeline.status, mtpd.sweep.results, mtpd.sweep.folder\n'
        'print([name for name in ("torch", "mmcv", "matplotlib", "pandas", "IPython") if name in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr


def test_a_training_is_not_answered_for_by_one_with_other_settings(tmp_path, tiny_coco):
    from helpers import tiny

    settings = tiny.SMALL | {'data.root': tiny_coco(tmp_path / 'coco')}
    options = ' '.join(f'{key}={value}' for key, value in settings.items())
    command = ('train', MINI, '--work-dir', tmp_path / 'run', '--cfg-options')
    done = call(*command, options)
    assert done.exit_code == 0 and done.output.splitlines()[-1].startswith('AP '), done.output
    assert call(*command, options).exit_code == 0
    for other in ('speed.precision=fp32', 'schedule.baseline=2'):
        message = refused(*command, f'{options} {other}')
        assert other.split('=')[0] in message and '--work-dir' in message


def test_an_arm_is_trained_with_all_its_stages_or_up_to_the_one_that_is_named(tmp_path, tiny_coco):
    from helpers import tiny

    arm = {'arms.none.teachers': '[None,None]', 'distill.start': 'random'}
    settings = tiny.SMALL | arm | {'data.root': tiny_coco(tmp_path / 'coco')}
    options = ' '.join(f'{key}={value}' for key, value in settings.items())
    command = ('train', MINI, '--arm', 'none', '--work-dir', tmp_path / 'run')
    for words, stages in ((('--stage', 1), [1]), ((), [1, 2])):
        done = call(*command, *words, '--cfg-options', options)
        assert done.exit_code == 0, done.output
        files = sorted((tmp_path / 'run/stages/none').glob('*/metrics.json'))
        assert [path.parent.name for path in files] == [f'{k}_no_teacher' for k in stages]
        assert done.output.splitlines()[-1].endswith(f'{stages[-1]}_no_teacher/student.pth')


@pytest.mark.long
def test_for_machines_there_is_json(tmp_path):
    from helpers.fake_run import make_run

    run = make_run(tmp_path / 'recipe' / '0', done=False)
    status = json.loads(call('status', run, '--json').output)
    assert [s['state'] for s in status['steps']].count('failed') == 1
    assert status['trainings'][0] == {
        'folder': str(run / 'stages/direct/1_rx101'), 'updates': 800, 'done': False
    }  # fmt: skip
    rows = json.loads(call('recipes', '--json').output)
    assert next(row for row in rows if row['path'] == MINI)['paper'] == 41.7
    done = call('doctor', 'no/such.py', '--json')
    states = {row['name']: row['state'] for row in json.loads(done.output)}
    assert done.exit_code == 1 and states['recipe'] == 'fail' and states['python'] == 'ok'


@pytest.mark.long
def test_verbose_lets_mmdet_speak(tmp_path, tiny_coco):
    from helpers import tiny

    settings = tiny.SMALL | {'data.root': tiny_coco(tmp_path / 'coco')}
    options = ' '.join(f'{key}={value}' for key, value in settings.items())
    command = [sys.executable, '-m', 'mtpd.cli', 'train', MINI, '--cfg-options', options]
    outputs = {}
    for kind, flag in (('quiet', []), ('verbose', ['-v'])):
        whole = [*command[:3], *flag, *command[3:], '--json', '--work-dir', str(tmp_path / kind)]
        process = subprocess.run(whole, capture_output=True, text=True, cwd=ROOT)
        assert process.returncode == 0, process.stderr
        assert 0 <= json.loads(process.stdout)['metrics']['bbox_mAP'] <= 1
        outputs[kind] = process.stdout + process.stderr
    assert 'mmdet - INFO' in outputs['verbose'] and 'INFO' not in outputs['quiet']


def test_export_makes_the_folder_that_ends_in_a_slash(tmp_path):
    source = ROOT / 'configs/mini/teachers/r101/model.pth'
    result = CliRunner().invoke(main, ['export', str(source), f'{tmp_path}/new/'])
    (file,) = (tmp_path / 'new').iterdir()
    assert result.exit_code == 0 and result.output.strip() == str(file)
    assert file.name.startswith('model-')


def test_diagnose_prints_findings_and_their_number(tmp_path):
    """The ending of a run is enough; exit code 1 where nothing could be measured."""
    run = make_run(tmp_path / 'mini' / '0')
    result = call('diagnose', run)
    assert result.exit_code == 0, result.output
    assert 'measured      none, stage 1: detection 1.3 at the start' in result.output
    assert '  measured  training as long without a teacher brings 5.3 times' in result.output
    assert '  usual     1 or less\n' in result.output
    assert result.output.endswith('1 finding\n')
    missing = ('teachers.r101.checkpoint=no.pth', 'teachers.rx101.checkpoint=no.pth')
    result = call('diagnose', MINI, '--work-dir', tmp_path / 'x', '--cfg-options', *missing)
    assert result.exit_code == 1 and result.output.endswith('2 findings\n')
    assert 'is not a run' in refused('diagnose', tmp_path)
