"""All that is to be checked and measured on a GPU: `make gpu`, or

python benchmarks/gpu/run.py --data data/coco --out runs/gpu

First what is timed, each step alone on the GPU; then checks and tests, side by side. Each step has a limit of its own and
writes as it goes; one that fails or is cut off stops no other. `steps.txt` says how each ended, `log.txt` has their output.
Then the JSON is copied to results/bench/gpu_*.json, and a verdict is printed: each target, and what was measured.

--data is a folder laid out as COCO 2017; without it pictures of digits, 800 pixels high, take its place.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks'), str(ROOT / 'benchmarks/gpu')]

import verdict
from full_size import RECIPES as FULL_SIZE

PYTHON = [sys.executable, '-W', 'ignore']
PAPER = {
    'retinanet': ('retinanet_r50__r101_rx101', 'rx101', ['off', 'default+tf32', 'default']),
    'mask_rcnn': ('mask_rcnn_r50__swint_swins', 'swins', ['off', 'default']),
    'reppoints': ('reppoints_r50__r101_rx101dcn', 'rx101dcn', ['off', 'default']),
}
TIMED = PAPER | {'retinanet_r101': ('retinanet_r50__r101_rx101', 'r101', ['default'])}
DIGITS = 'data.root=None data.scenes.size=800 data.scenes.train=400 data.scenes.val=40'


class Step:
    """A command with a limit of seconds."""

    def __init__(self, name: str, limit: int, *command: str | Path):
        self.name, self.limit, self.command = name, limit, [str(word) for word in command]


class Runner:
    """Runs steps, and writes `log.txt` and `steps.txt`."""

    def __init__(self, out: Path, seconds: float, environment: dict):
        self.out, self.environment, self.lock = out, environment, threading.Lock()
        self.began, self.seconds = time.monotonic(), seconds
        self.groups: set[int] = set()  # of processes at work
        out.mkdir(parents=True, exist_ok=True)
        for name in ('log.txt', 'steps.txt'):
            (out / name).write_text('')

    def stop(self, number: int, _: object) -> None:
        """What a signal calls: ends all steps, and this process."""
        for group in self.groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        print(f'stopped; {self.out} has what was measured', flush=True)
        os._exit(128 + number)

    def passed(self) -> float:
        return time.monotonic() - self.began

    def write(self, file: str, line: str) -> None:
        with self.lock, (self.out / file).open('a') as target:
            target.write(line + '\n')

    def __call__(self, step: Step) -> bool:
        limit = min(step.limit, self.seconds - self.passed())
        began, code = self.passed(), None
        if limit > 5:
            print(f'{began:5.0f} s  {step.name} begins, {limit:.0f} s at most', flush=True)
            process = subprocess.Popen(
                step.command, cwd=ROOT, env=self.environment, text=True, start_new_session=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            self.groups.add(process.pid)
            timer = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
            timer.start()
            last = ''
            for line in process.stdout:
                last = line.strip() or last
                self.write('log.txt', f'{step.name}| {line.rstrip()}')
            code = process.wait()
            timer.cancel()
            self.groups.discard(process.pid)
            if code not in (0, -signal.SIGKILL):
                print(f'{"":7}{step.name}: {last[:300]}', flush=True)
        ends = {0: 'done', None: 'no time left', -signal.SIGKILL: f'cut off at {limit:.0f} s'}
        how = ends.get(code, f'exit code {code}')
        line = f'{self.passed():5.0f} s  {step.name}: {how} after {self.passed() - began:.0f} s'
        self.write('steps.txt', line)
        print(line, flush=True)
        return code == 0

    def beside(self, steps: list[Step]) -> None:
        threads = [threading.Thread(target=self, args=(step,)) for step in steps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def timed_steps(options: argparse.Namespace, data: str) -> list[Step]:
    bench, small = Path('benchmarks'), options.device == 'cpu'
    size = ['--batch', '2', '--pairs', '1', '--warm-up', '1'] if small else ['--batch', '16', '--pairs', '8', '--warm-up', '2']  # fmt: skip
    steps = []
    for name, (recipe, teacher, kinds) in TIMED.items():
        command = [bench / 'distill_step.py', f'configs/paper/{recipe}.py', '--teacher', teacher]
        command += [*size, '--batches', '1', '--processes', '0', '--ours', *kinds]
        command += ['--cfg-options', data, '--out', options.out / f'gpu_distill_step_{name}.json']
        steps.append(Step(name, 120, *PYTHON, *command))
    peak = [bench / 'gpu/peak.py', '--out', options.out / 'gpu_peak.json', '--cfg-options', data]
    peak += ['--device', options.device, '--batch', '2' if small else '16']
    steps.append(Step('peak', 120, *PYTHON, *peak, '--profile', options.out / 'gpu_profile.txt'))
    stage = [
        bench / 'end_to_end.py',
        'configs/paper/retinanet_r50__r101_rx101.py',
        '--teacher',
        'rx101',
    ]
    stage += ['--updates', '4' if small else '60', '--repeats', '1', '--cfg-options', data]
    steps.append(
        Step('end_to_end', 200, *PYTHON, *stage, '--out', options.out / 'gpu_end_to_end.json')
    )
    stage = [bench / 'gpu/stage.py', '--updates', '4' if small else '300', '--cfg-options', data]
    steps.append(Step('stage_r101', 150, *PYTHON, *stage, '--out', options.out / 'gpu_stage_r101.json'))  # fmt: skip
    return steps


def checking_steps(options: argparse.Namespace) -> list[Step]:
    device, out = f'runtime.device={options.device}', options.out
    few = 'schedule.baseline=100 schedule.arm=100 data.scenes.train=400 data.scenes.val=100'
    check = ['benchmarks/gpu/check.py', '--out', out / 'gpu_check.json']
    notebook = ['-m', 'papermill', 'notebooks/04_distill_stage.ipynb', out / 'notebook.ipynb']
    notebook += ['-k', 'python3', '-p', 'work_dir', out / 'notebook_run', '--no-progress-bar']
    demo = ['-m', 'mtpd.cli', 'run', 'configs/mini/retinanet_r50__r101_rx101.py']
    demo += [
        '--work-dir',
        out / 'demo',
        '--cfg-options',
        f'{device} {"" if options.whole_demo else few}',
    ]
    steps = [
        Step('check', 300, *PYTHON, *check, '--device', options.device),
        Step('notebook', 300, *PYTHON, *notebook, '-p', 'cfg_options', f'{device} {few}'),
        Step('demo', 1200, *PYTHON, *demo),
    ]
    tests = [*PYTHON, '-m', 'pytest', '-q', '-rA', '--tb=short', '-p', 'no:cacheprovider']
    marked = {
        path for path in (ROOT / 'tests').rglob('test_*.py') if 'mark.gpu' in path.read_text()
    }
    if options.device == 'cuda':
        steps.append(Step('gpu_tests', 300, *tests, '-n', '4', '-m', 'gpu', *sorted(marked)))
    if options.data:
        (out / 'full_size').mkdir(parents=True, exist_ok=True)
        full = [
            'benchmarks/full_size.py',
            '--data',
            options.data,
            '--device',
            options.device,
        ]
        full += ['--batch', '4', '--updates', '4', '--scale', '1333', '800']
        for recipe in FULL_SIZE:
            file = out / 'full_size' / f'{recipe}.json'
            command = [*full, '--recipe', recipe, '--out', file]
            steps.append(Step(f'full_size_{recipe}', 600, *PYTHON, *command))
    return steps


def short(path: Path) -> Path:
    """From the project's root, in which steps run, so that the commands in results are everyone's."""
    path = path.resolve()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--data', type=Path, help='a folder laid out as COCO 2017')
    parser.add_argument('--out', type=Path, help='default: runs/gpu, or runs/gpu-cpu')
    parser.add_argument(
        '--device',
        default='cuda',
        choices=['cuda', 'cpu'],
        help='cpu: small sizes that only show that the commands work; default: %(default)s',
    )
    parser.add_argument(
        '--seconds', type=float, default=3600, help='for all steps; default: %(default)s'
    )
    parser.add_argument('--only', nargs='+', metavar='STEP', help='these steps alone')
    parser.add_argument('--whole-demo', action='store_true', help='not a shortened one')
    parser.add_argument(
        '--collect', action='store_true', help='measure nothing: copy and judge what is in --out'
    )
    options = parser.parse_args()
    on_gpu = options.device == 'cuda'
    if on_gpu and not options.collect and not torch.cuda.is_available():
        parser.error('torch sees no GPU (`mtpd doctor` says why). --device cpu tries the commands.')
    if options.data and not options.data.is_dir():
        parser.error(f'--data: there is no folder {options.data}')
    options.out = short(options.out or ROOT / 'runs' / ('gpu' if on_gpu else 'gpu-cpu'))
    options.data = short(options.data) if options.data else None
    os.chdir(ROOT)
    if not options.collect:
        sizes = 'schedule.optimizer.lr=0.00001'
        if not on_gpu:
            sizes = 'image.scale=(128,96) schedule.batch_size=2'
        data = f'data.root={options.data}' if options.data else DIGITS
        data += f' runtime.device={options.device} {sizes}'
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
        timed, checks = timed_steps(options, data), checking_steps(options)
        names = [step.name for step in (*timed, *checks)]
        if wrong := set(options.only or ()) - set(names):
            parser.error(f'--only: {", ".join(wrong)} is none of {", ".join(names)}')
        chosen = options.only or names
        shutil.rmtree(options.out, ignore_errors=True)  # an earlier run's
        environment = {**os.environ, 'PYTHONUNBUFFERED': '1', 'PYTHONPATH': path}
        runner = Runner(options.out, options.seconds, environment)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, runner.stop)
        for step in timed:
            if step.name in chosen:
                runner(step)
        runner.beside([step for step in checks if step.name in chosen])
    if not on_gpu:
        print(f'On a CPU nothing is judged. Output: {options.out}/log.txt')
        return
    for path in verdict.collect(options.out, ROOT / 'results'):
        print(f'results: {short(path)}')
    print(verdict.table(options.out))
    print(f'Output of all steps: {options.out}/log.txt')
    sys.exit(any(line.cells()[3] == 'NOT MET' for line in verdict.targets(options.out)))


if __name__ == '__main__':
    main()
