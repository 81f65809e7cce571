"""Several processes: what each update computes, what is left on disk, evaluation, and how mistakes end."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import nbformat
import psutil
import pytest
import torch
from click.testing import CliRunner
from mmcv import ConfigDict
from mmdet.models import build_detector

from helpers import spied
from helpers.plain_config import META, TEXT
from helpers.tiny import retinanet
from mtpd import load_recipe
from mtpd.cli.main import main
from mtpd.engine.evaluation import evaluate
from mtpd.engine.loop import train_model
from mtpd.errors import MtpdError
from mtpd.pipeline import mmdet_config
from mtpd.pipeline.notebooks import execute_notebook
from mtpd.pipeline.stages import _stage_builder
from mtpd.runtime import checkpoints
from mtpd.runtime.distributed import ProcessKilled, launch, run_on_all_ranks
from mtpd.utils import world
from mtpd.utils.machine import cpu_cores
from mtpd.utils.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
UPDATES = 4
SMALL = {
    'image.scale': 64,
    'schedule.batch_size': 2,
    'schedule.arm': UPDATES,
    'schedule.log_interval': 2,
    'schedule.checkpoint_interval': 2,
    'schedule.grad_clip': None,  # it would change what is compared
    'runtime.device': 'cpu',
    'runtime.workers': 0,
    'runtime.threads': 1,
    'distill.start': 'inherit',
    'arms.direct.teachers': ['r101'],
    'student.model': {'test_cfg': {'score_thr': 0.0}},  # untrained: nothing scores 0.05
    'teachers.r101.model': {
        'backbone': {'base_channels': 8},
        'neck': {'in_channels': [8, 16, 32, 64]},
    },
}
VARIABLES = (
    'RANK',
    'WORLD_SIZE',
    'LOCAL_RANK',
    'LOCAL_WORLD_SIZE',
    'GROUP_WORLD_SIZE',
    'MASTER_ADDR',
)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in [n for n in os.environ if n in VARIABLES or n.startswith('SLURM_')]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}{os.pathsep}{ROOT / "tests"}')


@pytest.fixture(scope='module')
def recipe(tmp_path_factory, tiny_coco):
    """Four training images; the last has nothing but a crowd, which leaves it without a box to find."""
    folder = tmp_path_factory.mktemp('coco')
    root = tiny_coco(folder / 'coco')
    file = root / 'annotations' / 'train.json'
    table = json.loads(file.read_text())
    table['annotations'].append(
        dict(
            table['annotations'][0],
            id=99,
            image_id=3,
            iscrowd=1,
            segmentation={'counts': [64 * 64], 'size': [64, 64]},
        )
    )
    file.write_text(json.dumps(table))
    teacher = folder / 'teacher.pth'
    options = {'data.root': str(root), 'teachers.r101.checkpoint': str(teacher)}
    options['speed.fold_teacher'] = False  # its weights are compared with the stored ones
    options['speed.precision'] = 'fp32'  # gradients with those of one process
    plan = load_recipe(MINI, SMALL | options)
    torch.manual_seed(5)
    model = build_detector(ConfigDict(plan.model('r101')))
    model.init_weights()
    checkpoints.save_atomic({'state_dict': model.state_dict()}, teacher)
    return plan


@pytest.fixture(scope='module')
def stage(recipe, tmp_path_factory):
    """A stage by two processes, started as `--gpus 2` does: folder, report, and each rank's updates."""
    out = tmp_path_factory.mktemp('stage')
    build, cfg = _stage_builder(recipe, 'r101', None, 'inherit', out)
    watched = partial(spied.spied, str(out), build)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', f'{ROOT}{os.pathsep}{ROOT / "tests"}')
        report = train_model(
            load_recipe(recipe, {'runtime.gpus': 2}), watched, cfg, out, UPDATES, seed=3
        )
    seen = [
        [
            torch.load(out / f'rank{rank}_update{update + 1}.pt', weights_only=False)
            for update in range(UPDATES)
        ]
        for rank in range(2)
    ]
    return out, build, report, seen


def alone_gradients(build, saved) -> dict:
    """What one process by itself gets from the same weights, images and random numbers."""
    model = build()
    model.load_state_dict(saved['weights'])
    torch.set_rng_state(saved['random'])
    model.train_step(saved['data'], None)['loss'].backward()
    return spied.gradients(model)


def test_an_updates_gradient_is_the_mean_of_the_ranks_own(stage):
    _, build, _, seen = stage
    worst = 0.0
    for update in range(UPDATES - 1):
        gradients = [alone_gradients(build, seen[rank][update]) for rank in range(2)]
        for rank in range(2):
            for name, got in seen[rank][update + 1]['gradients'].items():
                wanted = (gradients[0][name] + gradients[1][name]) / 2
                scale = max(1.0, float(wanted.abs().max()))
                worst = max(worst, float((got - wanted).abs().max()) / scale)
        # The two shards differ, or their mean would show nothing.
        assert not torch.allclose(
            gradients[0]['student.backbone.conv1.weight'],
            gradients[1]['student.backbone.conv1.weight'],
        )
    print(f'\nlargest difference from the mean of the ranks: {worst:.1e}')
    assert worst < 1e-5


def test_every_parameter_gets_a_gradient_also_from_an_image_without_objects(stage):
    _, build, _, seen = stage
    empty = [
        saved for rank in seen for saved in rank if not any(map(len, saved['data']['gt_bboxes']))
    ]
    assert empty and len(empty) < 2 * UPDATES
    for saved in (empty[0], seen[0][0]):
        assert [
            name for name, value in alone_gradients(build, saved).items() if value is None
        ] == []


def test_weights_stay_identical_and_the_teacher_untouched(stage, recipe):
    _, _, report, seen = stage
    worst = 0.0
    for ours, theirs in zip(*seen, strict=True):
        for name in ours['gradients']:
            worst = max(worst, float((ours['weights'][name] - theirs['weights'][name]).abs().max()))
    print(f'\nlargest difference of weights between the ranks: {worst}')
    assert worst == 0
    name = 'student.backbone.conv1.weight'
    assert not torch.equal(seen[0][0]['weights'][name], seen[0][-1]['weights'][name])
    stored = checkpoints.load_checkpoint(recipe.checkpoint('r101'))['state_dict']
    for rank in range(2):
        for key, value in seen[rank][-1]['teacher'].items():
            assert torch.equal(value, stored[key]), key
    assert 'bbox_head.retina_cls.weight' in report.copied


def test_ranks_draw_their_own_masks_and_images(stage):
    _, _, _, seen = stage
    for ours, theirs in zip(*seen, strict=True):
        for name, mask in ours['masks'].items():
            assert mask.shape == theirs['masks'][name].shape
            assert not torch.equal(mask, theirs['masks'][name]), name
        assert len(ours['data']['img_metas']) == 1  # of a batch of two
    for update in range(0, UPDATES, 2):  # all four images in two updates
        files = {
            saved['data']['img_metas'][0]['ori_filename']
            for rank in seen
            for saved in rank[update : update + 2]
        }
        assert len(files) == 4


def test_one_log_and_one_checkpoint_from_which_one_process_goes_on(stage, recipe, tmp_path):
    out, build, *_ = stage
    rows = [json.loads(line) for line in (out / 'log.json').read_text().splitlines()]
    assert [row['update'] for row in rows] == [2, 4]
    latest = torch.load(out / 'latest.pth', weights_only=True)
    assert latest['meta']['iter'] == UPDATES
    assert {key.split('.')[0] for key in latest['state_dict']} == {'student', 'distill_losses'}
    for name in ('latest.pth', 'log.json'):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    train_model(recipe, build, recipe.model('student'), tmp_path, UPDATES + 1, seed=3)
    rows = [json.loads(line) for line in (tmp_path / 'log.json').read_text().splitlines()]
    assert [row['update'] for row in rows] == [2, 4, 5]
    further = torch.load(tmp_path / 'latest.pth', weights_only=True)
    name = 'student.backbone.conv1.weight'
    assert not torch.equal(further['state_dict'][name], latest['state_dict'][name])
    torch.testing.assert_close(
        further['state_dict'][name], latest['state_dict'][name], atol=0.05, rtol=0
    )


@pytest.mark.slow
def test_three_processes_evaluate_as_one(stage, recipe, tmp_path):
    """Four images for three processes: mmdet gives the third an image twice, which must not count."""
    out, *_ = stage
    evaluations = []
    for gpus in (None, 3):
        plan = load_recipe(recipe, {'runtime.gpus': gpus} if gpus else {})
        evaluations.append(evaluate(plan, out / 'latest.pth', out=tmp_path / str(gpus)))
        evaluations[-1]['boxes'] = json.loads(
            (tmp_path / str(gpus) / 'detections.json').read_text()
        )
    assert len(evaluations[0]['boxes']) > 4
    assert evaluations[0] == evaluations[1]


@pytest.mark.long
def test_the_command_under_torchrun_trains_and_measures_as_one_process_does(recipe, tmp_path):
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node',
        '2',
    ]
    command += [
        '-m',
        'mtpd.cli',
        'train',
        str(recipe.source),
        '--arm',
        'direct',
        '--work-dir',
        str(tmp_path),
    ]
    options = recipe.overrides | {'schedule.eval_interval': 2}
    for key, value in options.items():
        command += ['--cfg-options', f'{key}={value}']
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    out = tmp_path / 'stages' / 'direct' / '1_r101'
    assert done.stdout.count('student.pth') == 1  # rank 0 alone prints
    assert done.stdout.count(f'update {UPDATES}/{UPDATES}  loss') == 1
    assert {path.name for path in out.iterdir()} >= {
        'student.pth',
        'metrics.json',
        'stage.json',
        'model.json',
    }
    assert json.loads((out / 'stage.json').read_text())['start'] == 'inherit'
    alone = evaluate(recipe, out / 'student.pth', out=tmp_path)
    assert json.loads((out / 'metrics.json').read_text()) == alone and alone['num_images'] == 4
    boxes = (out / 'detections.json').read_text()
    assert len(json.loads(boxes)) > 4 and boxes == (tmp_path / 'detections.json').read_text()
    rows = [json.loads(line) for line in (out / 'log.json').read_text().splitlines()]
    assert [row['update'] for row in rows if 'bbox_mAP' in row] == [2, 4]


@pytest.mark.slow
def test_a_plain_config_is_trained_by_two_processes(tmp_path, tiny_coco):
    root, file, out = tiny_coco(tmp_path / 'pets'), tmp_path / 'pets.py', tmp_path / 'run'
    file.write_text(TEXT.format(model=retinanet(num_classes=2), root=str(root), meta=META))
    arguments = ['train', file, '--gpus', 2, '--cfg-options', 'device=cpu', '--work-dir', out]
    done = CliRunner().invoke(main, [str(item) for item in arguments])
    assert done.exit_code == 0, done.output
    assert 'this run has 4' in done.output  # two images of each
    # Three images, seen twice an epoch: two updates of four, for two epochs.
    assert torch.load(out / 'latest.pth', weights_only=True)['meta']['iter'] == 4
    config = mmdet_config.load_config(file, {'device': 'cpu'})
    numbers = mmdet_config.evaluate_config(config, out / 'model.pth')
    assert json.loads((out / 'metrics.json').read_text()) == numbers


@pytest.mark.slow
def test_a_mistake_that_one_process_finds_is_the_callers():
    with pytest.raises(MtpdError, match=r'^this disk is full$'):
        run_on_all_ranks(2, 'cpu', spied.refuse, 1)


NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@pytest.mark.long
def test_a_started_process_takes_the_mmdet_that_this_one_takes(other_package, monkeypatch):
    """The working directory is a checkout of another mmdet."""
    installed = spied.mmdet_file()
    folder = other_package('mmdet', '2.28.2')
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'path', [entry for entry in sys.path if entry != str(folder)])
    assert launch(1, 'cpu', spied.mmdet_file, ()) == installed


@pytest.mark.slow
def test_a_crash_of_one_process_ends_all_and_is_told(capfd):
    handlers = [signal.getsignal(number) for number in NUMBERS]
    with pytest.raises(RuntimeError, match='ZeroDivisionError: a bug'):
        run_on_all_ranks(2, 'cpu', spied.crash, 1)
    killed = r'^process 1 of 2 was ended by signal SIGKILL \(often: out of memory\)\.$'
    with pytest.raises(ProcessKilled, match=killed):
        run_on_all_ranks(2, 'cpu', spied.die, 1)
    output = capfd.readouterr()
    assert 'torch/distributed' not in output.err and 'elastic' not in output.err + output.out
    assert handlers == [signal.getsignal(number) for number in NUMBERS]


@pytest.mark.slow
def test_a_notebook_shows_once_what_the_processes_write(tmp_path, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    code = 'from helpers import spied; from mtpd.runtime.distributed import run_on_all_ranks'
    cells = [code, "print(run_on_all_ranks(2, 'cpu', spied.speak))", 'print("the next cell")']
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, cells)])
    nbformat.write(notebook, tmp_path / 'in.ipynb')
    echo = io.StringIO()
    execute_notebook(tmp_path / 'in.ipynb', tmp_path / 'out.ipynb', echo=echo)
    outputs = nbformat.read(tmp_path / 'out.ipynb', 4).cells[1].outputs
    shown = {
        name: sorted(''.join(output.text for output in outputs if output.name == name).split('\n'))
        for name in ('stdout', 'stderr')
    }
    threads = str(max(1, cpu_cores() // 2))
    children = ['from a child of rank 0', 'from a child of rank 1']
    result = str([(0, threads), (1, threads)])
    assert shown['stdout'] == ['', result, *children, 'from print']  # rank 1's print is not
    assert shown['stderr'] == ['', 'error of rank 0', 'error of rank 1']
    assert echo.getvalue().count('from print') == 1


@pytest.mark.slow
@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
def test_a_signal_ends_all_processes_after_a_checkpoint(name, recipe, tmp_path):
    """SIGINT as a terminal sends it, to the whole process group."""
    command = [sys.executable, '-m', 'mtpd.cli', 'train', str(recipe.source), '--arm', 'direct']
    command += ['--gpus', '2', '--work-dir', str(tmp_path)]
    endless = {'schedule.arm': 100_000, 'schedule.checkpoint_interval': 100_000}
    for key, value in (recipe.overrides | endless).items():
        command += ['--cfg-options', f'{key}={value}']
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        while not started.stdout.readline().startswith(f'update {2 * UPDATES}/'):
            assert started.poll() is None
        processes = psutil.Process(started.pid).children(recursive=True)
        assert len(processes) == 2
        if name == 'SIGINT':
            os.killpg(started.pid, signal.SIGINT)
        else:
            started.terminate()
        _, errors = started.communicate(timeout=60)
    finally:
        started.kill()
    number = signal.Signals[name]
    assert started.returncode == 128 + number and 'Traceback' not in errors, errors
    assert not [process for process in processes if process.is_running()]
    (latest,) = tmp_path.rglob('latest.pth')
    assert torch.load(latest, weights_only=True)['meta']['iter'] >= 2 * UPDATES


SLURM = """
import sys
from helpers import spied
from mtpd.runtime.distributed import process_group, run_on_all_ranks
from mtpd.errors import MtpdError
try:
    with process_group(None, 'cpu', 'the recipe', sys.argv.pop()):
        print(run_on_all_ranks(2, 'cpu', spied.place, 'at'))
except MtpdError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    'texts, output', [('aa', "['at 0', 'at 1']"), ('ab', 'different commands')]
)
def test_two_tasks_of_slurm(texts, output):
    names = ('JOB_ID', 'STEP_ID', 'STEP_NUM_TASKS', 'STEP_TASKS_PER_NODE', 'STEP_NODELIST')
    values = (str(os.getpid()), '0', '2', '2', 'localhost')
    shared = {f'SLURM_{name}': value for name, value in zip(names, values, strict=True)}
    tasks = [
        subprocess.Popen(
            [sys.executable, '-c', SLURM, text],
            env={**os.environ, **shared, 'SLURM_PROCID': str(k), 'SLURM_LOCALID': str(k)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for k, text in enumerate(texts)
    ]
    assert output in tasks[0].communicate(timeout=120)[0]
    assert tasks[1].communicate(timeout=120)[0] == ''
    assert [task.returncode for task in tasks] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize('name, ended', [('SIGKILL', []), ('SIGTERM', ['0.ended', '1.ended'])])
def test_no_process_outlives_the_one_that_started_it(name, ended, tmp_path):
    """A notebook's kernel or a script, which do nothing themselves about SIGTERM."""
    code = 'from helpers import spied; from mtpd.runtime.distributed import run_on_all_ranks; '
    code += f'run_on_all_ranks(2, "cpu", spied.wait, {str(tmp_path)!r})'
    started = subprocess.Popen([sys.executable, '-c', code])
    deadline = time.monotonic() + 90
    while len(files := list(tmp_path.glob('*.pid'))) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    processes = [psutil.Process(int(file.read_text())) for file in files]
    assert len(processes) == 2
    number = signal.Signals[name]
    started.send_signal(number)
    assert started.wait(60) == -number
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []
    assert sorted(file.name for file in tmp_path.glob('*.ended')) == ended


def refused(*arguments) -> str:
    result = CliRunner().invoke(main, [str(item) for item in arguments])
    assert result.exit_code == 2, result.output
    assert 'Traceback' not in result.output
    return result.output


def test_more_gpus_than_there_are_is_refused(tmp_path, recipe):
    for command in ('train', 'run', 'eval'):
        more = ('--checkpoint', 'x.pth') if command == 'eval' else ()
        text = refused(command, MINI, '--work-dir', tmp_path / 'run', '--gpus', 2, *more)
        assert 'torch sees no GPU' in text and 'runtime.device=cpu' in text
    assert not (tmp_path / 'run').exists()


@pytest.mark.gpu
def test_more_gpus_than_there_are_are_refused_beside_one(tmp_path):
    count = 1 + torch.cuda.device_count()
    text = refused('train', MINI, '--work-dir', tmp_path / 'run', '--gpus', count)
    assert f'runtime.gpus (--gpus) is {count}, and torch sees {count - 1} GPU(s)' in text


def test_a_batch_that_cannot_be_shared_evenly_is_refused(tmp_path):
    options = 'runtime.device=cpu data.scenes.train=4 data.scenes.val=2 data.scenes.size=64'
    for command in ('train', 'run'):
        more = ('--gpus', 3, '--cfg-options', f'{options} data.cache={tmp_path}')
        text = refused(command, MINI, '--work-dir', tmp_path / 'run', *more)
        assert 'schedule.batch_size is 8, which 3 processes cannot share evenly' in text
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'variables, message',
    [
        ({'WORLD_SIZE': '3', 'RANK': '0', 'LOCAL_RANK': '0'}, 'torchrun started 3 process'),
        ({'WORLD_SIZE': '1', 'RANK': '0'}, 'torchrun started 1 process'),
        ({'WORLD_SIZE': '2'}, 'RANK is not set'),
        ({'WORLD_SIZE': 'two', 'RANK': '0'}, "WORLD_SIZE is 'two'"),
        (
            {'WORLD_SIZE': '2', 'RANK': '2', 'LOCAL_RANK': '0'},
            'RANK is 2, but WORLD_SIZE is 2: RANK must be less',
        ),
        (
            {
                'WORLD_SIZE': '6',
                'RANK': '0',
                'LOCAL_RANK': '0',
                'LOCAL_WORLD_SIZE': '4',
                'GROUP_WORLD_SIZE': '2',
            },
            'unequal numbers',
        ),
        (
            {'SLURM_STEP_NUM_TASKS': '3', 'SLURM_PROCID': '0', 'SLURM_STEP_TASKS_PER_NODE': '2,1'},
            r'unequal numbers of tasks on the nodes (2,1)',
        ),
    ],
)
def test_a_world_that_does_not_fit_is_refused(monkeypatch, variables, message):
    for name, value in ({'MASTER_ADDR': 'localhost', 'MASTER_PORT': '1'} | variables).items():
        monkeypatch.setenv(name, value)
    text = refused('train', MINI, '--gpus', 2, '--cfg-options', 'runtime.device=cpu')
    assert message in text


def test_a_run_is_started_once(monkeypatch):
    variables = {
        'WORLD_SIZE': '2',
        'RANK': '0',
        'LOCAL_RANK': '0',
        'MASTER_ADDR': 'a',
        'MASTER_PORT': '1',
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert 'start it once, with --gpus' in refused('run', MINI)


def test_slurm_tells_each_process_its_place(monkeypatch):
    variables = {
        'SLURM_JOB_ID': '4711',
        'SLURM_STEP_ID': '0',
        'SLURM_STEP_NUM_TASKS': '8',
        'SLURM_STEP_TASKS_PER_NODE': '4(x2)',
        'SLURM_STEP_NODELIST': 'gpu[07-08]',
        'SLURM_PROCID': '6',
        'SLURM_LOCALID': '2',
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv('MASTER_PORT', '')
    monkeypatch.delenv('MASTER_PORT')
    monkeypatch.setenv('MASTER_ADDR', '')
    monkeypatch.delenv('MASTER_ADDR')
    assert world.current_world() == world.World(6, 8, 2, 4, 'SLURM')
    assert os.environ['MASTER_ADDR'] == 'gpu07'
    assert 20000 <= int(os.environ['MASTER_PORT']) < 40000
    monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '1')  # sbatch's script, or a task by itself
    assert world.current_world() is None


@pytest.mark.parametrize(
    'hosts, first',
    [('a', 'a'), ('n[1-3,7],m', 'n1'), ('x2,x3', 'x2'), ('r[09]-ib,b', 'r09-ib'), ('n[3,5]', 'n3')],
)
def test_the_first_host_of_slurms_list(hosts, first):
    assert world._first_host(hosts) == first
