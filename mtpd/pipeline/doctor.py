"""`mtpd doctor`: can this machine run the recipe? Everything at once, each problem with its fix."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from ..errors import MtpdError, RecipeError
from ..install import build, ops
from ..utils import machine
from ..utils.files import accepts_files, file_sha256, nearest_existing_folder, sha256_in_name
from ..utils.paths import ROOT
from .notebooks import KERNEL_NAME, kernel_spec

if TYPE_CHECKING:
    from ..config.recipe import Recipe

DEFAULT_RECIPE = 'configs/mini/retinanet_r50__r101_rx101.py'
COMPARED_PACKAGES = (
    'torchvision',
    'mmdet',
    'numpy',
    'pycocotools',
    'opencv-python-headless',
    'papermill',
)
# Below the first the recipe fails, below the second it may.
MEMORY_LIMITS = (1.5 * machine.GIB, 4 * machine.GIB)
DISK_LIMITS = (0.5 * machine.GIB, 3 * machine.GIB)


class Check(NamedTuple):
    """One check: `state` is 'ok', 'warn' or 'fail' (the recipe can't run), `found` is what was found."""

    name: str
    state: str
    found: str
    fix: str = ''


def run_checks(
    recipe_path: str | None = None, overrides: dict | None = None, work_dir: Path | None = None
) -> list[Check]:
    """Look at everything that `recipe_path` (default: the demo's recipe) needs. Never raises."""
    return list(each_check(recipe_path, overrides, work_dir))


def each_check(
    recipe_path: str | None = None,
    overrides: dict | None = None,
    work_dir: Path | None = None,
    echo: Callable[[str], None] = lambda text: None,
) -> Iterator[Check]:
    """As `run_checks`, one after the other as they are made. `echo`: as of `check_recipe`."""
    environment = {
        'python': check_python(),
        'torch': check_torch(),
        'versions': check_versions(),
        'mtpd': check_checkout(),
        'device': check_device(),
        'ops': check_ops(),
        'memory': check_memory(),
        'kernel': check_kernel(),
        'runs': check_results_folder(work_dir),
    }
    broken_ops = False
    for name, checks in environment.items():
        for check in _checks_or_failure(name, checks):
            broken_ops |= (check.name, check.state) == ('ops', 'fail')
            yield check
    if broken_ops:
        yield Check('recipe', 'fail', 'not checked: it needs mmcv', 'Repair the ops first.')
        return
    recipe_checks = check_recipe(recipe_path or DEFAULT_RECIPE, overrides, work_dir, echo)
    yield from _checks_or_failure('recipe', recipe_checks)


def print_checks(
    recipe_path: str | None = None,
    echo: Callable = print,
    overrides: dict | None = None,
    work_dir: Path | None = None,
) -> int:
    """Shows the checks as a table, a line when each is made. Returns 1 if the recipe can't run, else 0."""
    states: Counter[str] = Counter()
    width = max(map(len, COMPARED_PACKAGES))
    for check in each_check(recipe_path, overrides, work_dir, echo):
        states[check.state] += 1
        echo(f'{check.state:<5} {check.name:<{width}}  {check.found}')
        if check.fix:
            echo(f'{"":<5} {"":<{width}}  -> {check.fix}')
    echo(f'\n{states.total()} checks: {states["fail"]} failed, {states["warn"]} to look at.')
    return 1 if states['fail'] else 0


def _checks_or_failure(name: str, checks: Iterator[Check]) -> Iterator[Check]:
    """What a check yields, and its breakdown as one more failed check."""
    try:
        yield from checks
    except Exception as error:  # a broken package can raise anything, and to say so is the job here
        if isinstance(error, MtpdError):  # it names its fix
            yield Check(name, 'fail', str(error))
        else:
            yield Check(name, 'fail', f'{type(error).__name__}: {error}', 'Run `make env`.')


# The environment.


def check_python() -> Iterator[Check]:
    version = '.'.join(map(str, sys.version_info[:3]))
    try:
        machine.check_python()
    except MtpdError as error:
        yield Check('python', 'fail', version, str(error))
    else:
        yield Check('python', 'ok', f'{version} ({sys.executable})')


def check_torch() -> Iterator[Check]:
    torch = machine.find_torch()
    try:
        warning = machine.check_torch(torch)
    except MtpdError as error:
        yield Check('torch', 'fail', torch.version if torch else 'not installed', str(error))
    else:
        yield Check('torch', 'warn' if warning else 'ok', torch.version, warning or '')


def check_versions() -> Iterator[Check]:
    """Packages whose version the results depend on, against the pins; and where they come from."""
    pins = machine.pinned_versions()
    for name in COMPARED_PACKAGES:
        version = machine.package_version(name)
        package = machine.find_package(machine.MODULES.get(name, name))
        if version is None:
            yield Check(name, 'fail', 'not installed', machine.install_hint(name))
        elif package and package.origin:
            yield Check(name, 'warn', version, package.remedy)
        elif pins.get(name, version) == version:
            yield Check(name, 'ok', version)
        else:
            fix = f'{pins[name]} is pinned; results may differ. {machine.install_hint(name)}'
            yield Check(name, 'warn', version, fix)
    for name in ('torch', 'mmcv'):  # whose versions other checks look at
        package = machine.find_package(name)
        if package and package.origin:
            yield Check(name, 'warn', package.text, package.remedy)


def check_checkout() -> Iterator[Check]:
    """Another checkout of the kit than the installed one, which PYTHONPATH or the working directory puts first."""
    try:
        record = metadata.distribution('mtpd').read_text('direct_url.json')
    except metadata.PackageNotFoundError:
        return
    source = json.loads(record or '{}')
    installed = Path(unquote(urlsplit(source.get('url', '')).path))
    is_editable = source.get('dir_info', {}).get('editable')
    if is_editable and installed.resolve() != ROOT.resolve():
        package = machine.find_package('mtpd')
        text = f'imported from {ROOT}, by {package.origin}; installed from {installed}'
        yield Check('mtpd', 'warn', text, package.remedy)


def check_device() -> Iterator[Check]:
    cores = f'{machine.cpu_cores()} CPU cores'
    gpus = machine.nvidia_gpus()
    names = ', '.join(f'{name} ({memory})' for name, memory, _ in gpus)
    torch = machine.find_torch()
    if not gpus:
        yield Check('device', 'ok', f'{cores}, no NVIDIA GPU')
    elif torch and torch.cuda:
        yield Check('device', 'ok', f'{names}; {cores}')
    else:
        fix = "torch is a CPU build and can't use the GPU. Install a CUDA build, then `mtpd install-ops`."
        yield Check('device', 'warn', f'{names}; {cores}', fix)


def check_ops() -> Iterator[Check]:
    """mmcv's compiled ops, run on the device that 'auto' takes."""
    pinned = build.mmcv_version()
    try:
        version = metadata.version('mmcv-full')
        tested = ops.self_test()
    except metadata.PackageNotFoundError:
        yield Check('ops', 'fail', 'mmcv-full is not installed', 'Run `mtpd install-ops`.')
        return
    except MtpdError as error:
        yield Check('ops', 'fail', f'mmcv-full {version}', str(error))
        return
    kind = f'CUDA {tested["cuda"]}' if tested['cuda'] else 'CPU'
    device = 'CPU' if tested['device'] == 'cpu' else f'{tested["gpu"]}, against the CPU'
    text = (
        f'mmcv-full {version} with {kind} ops: {", ".join(tested["ops"])} correct on the {device}'
    )
    if tested['obstacle']:
        fix = f'There is a GPU, and `auto` takes the CPU: {tested["obstacle"]}.'
    elif machine.nvidia_gpus() and machine.find_torch().cuda and not tested['gpu']:
        fix = (
            f'nvidia-smi shows a GPU that torch does not see: the driver may be too old for CUDA '
            f'{machine.find_torch().cuda}, or CUDA_VISIBLE_DEVICES hides it.'
        )
    elif version != pinned:
        fix = f'{pinned} is pinned. Run `mtpd install-ops`.'
    else:
        fix = ''
    yield Check('ops', 'warn' if fix else 'ok', text, fix)


def check_memory() -> Iterator[Check]:
    free = machine.free_memory()
    yield _amount_check('memory', free, MEMORY_LIMITS, 'free', 'Close other programs.')


def check_kernel() -> Iterator[Check]:
    """The kernel that a run starts, which is this Python's, and the one that JupyterLab starts for the notebooks."""
    python = kernel_spec().argv[0]
    foreign = foreign_kernel()
    if foreign is None:
        yield Check('kernel', 'ok', f'{KERNEL_NAME} ({python})')
    else:
        text = f'`mtpd run` takes {python}; JupyterLab starts notebooks with {foreign[0]}'
        yield Check('kernel', 'warn', text, foreign[1])


def foreign_kernel() -> tuple[str, str] | None:
    """The kernel that Jupyter has under the notebooks' kernel name, in words, and the fix; None where it is this Python's."""
    from jupyter_client.kernelspec import KernelSpecManager

    manager = KernelSpecManager()
    folder = manager.find_kernel_specs().get(KERNEL_NAME, '')
    try:
        spec = manager.get_kernel_spec(KERNEL_NAME)
        text = _foreign_python(spec.argv[0], spec.env)
    except Exception as error:  # whatever a broken kernel.json leads to
        text = f'one that cannot be read ({type(error).__name__}: {error})'
    return (f'{text} ({folder})', _kernel_remedy(folder)) if text else None


def _foreign_python(python: str, env: dict[str, str]) -> str | None:
    """How a kernel's Python differs from this one; None where it does not."""
    path = env.get('PYTHONPATH')
    if python in ('python', 'python3', f'python3.{sys.version_info.minor}'):  # JupyterLab's own
        return f'one with PYTHONPATH={path}' if path else None
    code = 'import sys, importlib.util as u; print(sys.prefix); print(u.find_spec("mtpd") is None)'
    try:
        done = subprocess.run(
            [python, '-c', code],
            env=os.environ | env,
            cwd=sys.prefix,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        prefix, lacks_kit = done.stdout.splitlines()
    except (OSError, ValueError, subprocess.SubprocessError):
        return f'{python}, which does not start'
    if prefix == sys.prefix:
        return f'one with PYTHONPATH={path}' if path else None
    return f'{python}, without mtpd' if lacks_kit == 'True' else f'{python}, another environment'


def _kernel_remedy(folder: str) -> str:
    """How JupyterLab comes to take this Python's kernel and not that of a folder."""
    listed = filter(None, os.environ.get('JUPYTER_PATH', '').split(os.pathsep))
    if any(Path(folder).is_relative_to(Path(place).absolute()) for place in listed):
        return f'`unset JUPYTER_PATH` before `jupyter lab`, or remove {folder}.'
    if Path(folder).is_relative_to(sys.prefix):
        return f'Run `{sys.executable} -m ipykernel install --sys-prefix --name {KERNEL_NAME}`.'
    return f'`export JUPYTER_PREFER_ENV_PATH=1` before `jupyter lab`, or remove {folder}.'


def check_results_folder(work_dir: Path | None = None) -> Iterator[Check]:
    """The folder for results: writable, with room."""
    folder = (work_dir or ROOT / 'runs').resolve()
    existing = nearest_existing_folder(folder)
    if not accepts_files(existing):
        fix = 'Give another folder: `--work-dir`.'
        yield Check('runs', 'fail', f'{existing} is not writable', fix)
        return
    free = shutil.disk_usage(existing).free
    fix = 'Free some space, or give another folder: `--work-dir`.'
    yield _amount_check('disk', free, DISK_LIMITS, f'free for {folder}', fix)


def _amount_check(name: str, size: int, limits: tuple[float, float], what: str, fix: str) -> Check:
    """Of an amount in bytes: less than the first limit fails, less than the second is a warning."""
    text = f'{size / machine.GIB:.1f} GiB {what}'
    if size >= limits[1]:
        return Check(name, 'ok', text)
    state = 'fail' if size < limits[0] else 'warn'
    return Check(name, state, text, f'{limits[1] / machine.GIB:.0f} GiB are recommended. {fix}')


# The recipe.


def check_recipe(
    path: str,
    overrides: dict | None = None,
    work_dir: Path | None = None,
    echo: Callable[[str], None] = lambda text: None,
) -> Iterator[Check]:
    """The recipe itself, its data, its checkpoints, and what its run would take; `echo` gets a line before updates are tried."""
    from ..config.plan import planned_trainings
    from ..data import coco
    from ..engine import loop
    from ..preflight import checks as preflight
    from ..preflight import forecast
    from ..preflight.student_config import student_notes
    from .run_dir import settings_problem

    try:
        recipe = preflight.load_or_report_all_problems(path, overrides)
    except RecipeError as error:
        yield from (Check('recipe', 'fail', f'{path}: {text}') for text in error.problems)
        return
    yield Check('recipe', 'ok', f'{recipe.name} ({path}); a recipe is Python, and its code has run')
    run_dir = recipe.run_dir(work_dir)
    problems, _ = preflight.check_run(recipe, run_dir, tried=False)
    yield from (Check('recipe', 'fail', problem) for problem in problems)
    yield from check_weights(recipe)
    if not problems:
        root = recipe.cfg.data.root or 'DigitScenes (made if missing)'
        sizes = {split: coco.split_size(recipe.split(split)[0])[0] for split in ('train', 'val')}
        counts = f'{sizes["train"]} + {sizes["val"]} images, {len(recipe.classes)} classes'
        yield Check('dataset', 'ok', f'{root}: {counts}')
        yield from (Check('dataset', 'ok', f'note: {note}') for note in recipe.data_notes())
        yield from (Check('student', 'ok', f'note: {note}') for note in student_notes(recipe))
    if other_settings := settings_problem(run_dir / 'recipe.py', recipe.text):
        yield Check('work-dir', 'fail', other_settings)
    if problems:
        return
    expected, problems = forecast.forecast(
        recipe, planned_trainings(recipe, run_dir), run_dir, echo
    )
    yield from (Check('recipe', 'fail', problem) for problem in problems)
    if problems:
        return
    yield from check_findings(recipe, work_dir)
    if expected:
        words = forecast.forecast_texts(recipe, run_dir, expected) | loop.speed_settings(recipe)
        yield from (Check(f'its {name}', 'ok', text) for name, text in words.items())
    elif not other_settings:
        text = f'{run_dir}: nothing is left to train, so no update was tried'
        yield Check('its time', 'ok', text)


def check_findings(recipe: Recipe, work_dir: Path | None = None) -> Iterator[Check]:
    """What `mtpd diagnose` finds by a few batches. Most are warnings: a run is not refused for them."""
    from ..preflight.diagnosis import diagnose_recipe

    diagnosis = diagnose_recipe(recipe, work_dir, fetch=False)
    for finding in diagnosis.findings:
        text = f'{finding.subject}: {finding.summary}'
        state = 'fail' if finding.severity == 'error' else 'warn'
        yield Check('diagnosis', state, text, finding.change)
    if not diagnosis.findings and diagnosis.measured:
        yield Check('diagnosis', 'ok', 'losses, gradients and teachers are in their usual ranges')


def check_weights(recipe: Recipe) -> Iterator[Check]:
    """The checkpoints that the recipe names: here, with their sha256, or to be fetched."""
    from ..utils.download import is_complete

    for name in recipe.detectors:
        path, url = recipe.checkpoint(name), recipe.url(name)
        if url and not is_complete(path, sha256_in_name(path.name)):
            fix = (
                f'`mtpd run` fetches them to {path.parent}; without a network, put the file there.'
            )
            yield Check(f'weights {name}', 'warn', f'not here yet: {url}', fix)
        elif path and path.is_file():
            yield Check(f'weights {name}', 'ok', f'{path.name}, sha256 {file_sha256(path)[:8]}')
