"""`mtpd doctor`: can this machine run the recipe? Everything at once, each problem with its fix."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import MtpdError, RecipeError
from ..install import build, ops
from ..utils import machine
from ..utils.files import accepts_files, nearest_existing, sha256, sha256_in_name
from ..utils.paths import ROOT

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
MEMORY_LIMITS = (1.5 * machine.GIB, 4 * machine.GIB)  # less: the job fails; may fail
DISK_LIMITS = (0.5 * machine.GIB, 3 * machine.GIB)


class Check(NamedTuple):
    """One thing looked at: `state` is 'ok', 'warn' or 'fail' (the main job can't run)."""

    name: str
    state: str
    found: str
    fix: str = ''


def run_checks(
    recipe_path: str | None = None, overrides: dict | None = None, work_dir: Path | None = None
) -> list[Check]:
    """Look at everything that `recipe_path` (default: the demo's recipe) needs. Never raises."""
    checks: list[Check] = []
    for look in (
        check_python,
        check_torch,
        check_versions,
        check_device,
        check_ops,
        check_memory,
        check_kernel,
    ):
        checks += _checks_or_failure(look.__name__.replace('_', ' '), look)
    checks += _checks_or_failure('runs', lambda: check_results_folder(work_dir))
    if any(one.name == 'ops' and one.state == 'fail' for one in checks):
        return [
            *checks,
            Check('recipe', 'fail', 'not looked at: it needs mmcv', 'Mend the ops first.'),
        ]
    return checks + _checks_or_failure(
        'recipe', lambda: check_recipe(recipe_path or DEFAULT_RECIPE, overrides, work_dir)
    )


def print_checks(
    recipe_path: str | None = None,
    echo: Callable = print,
    overrides: dict | None = None,
    work_dir: Path | None = None,
) -> int:
    """Show the checks as a table. Returns 1 if the main job can't run, else 0."""
    checks = run_checks(recipe_path, overrides, work_dir)
    wide = max(len(one.name) for one in checks)
    for one in checks:
        echo(f'{one.state:<5} {one.name:<{wide}}  {one.found}')
        if one.fix:
            echo(f'{"":<5} {"":<{wide}}  -> {one.fix}')
    failed = sum(one.state == 'fail' for one in checks)
    warned = sum(one.state == 'warn' for one in checks)
    echo(f'\n{len(checks)} checks: {failed} failed, {warned} to look at.')
    return 1 if failed else 0


def _checks_or_failure(name: str, look: Callable[[], Iterator[Check]]) -> list[Check]:
    """What a check finds, and its breakdown as one more failed check."""
    found: list[Check] = []
    try:
        found.extend(look())
    except Exception as error:  # a broken package can raise anything, and to say so is the job here
        text = str(error) if isinstance(error, MtpdError) else f'{type(error).__name__}: {error}'
        found.append(Check(name, 'fail', text, 'Run `make env`.'))
    return found


def check_python() -> Iterator[Check]:
    version = '.'.join(map(str, sys.version_info[:3]))
    try:
        machine.check_python()
    except MtpdError as error:
        yield Check('python', 'fail', version, str(error))
    else:
        yield Check('python', 'ok', f'{version} ({sys.executable})')


def check_torch() -> Iterator[Check]:
    found = machine.find_torch()
    try:
        warning = machine.check_torch(found)
    except MtpdError as error:
        yield Check('torch', 'fail', found.version if found else 'not installed', str(error))
    else:
        yield Check('torch', 'warn' if warning else 'ok', found.version, warning or '')


def check_versions() -> Iterator[Check]:
    """Packages whose version the results depend on, against the pins."""
    pins = pinned_versions()
    for name in COMPARED_PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, 'fail', 'not installed', 'Run `make env`.')
            continue
        same = name not in pins or version == pins[name]
        fix = '' if same else f'{pins[name]} is pinned; results may differ. Run `make env`.'
        yield Check(name, 'ok' if same else 'warn', version, fix)


def pinned_versions() -> dict[str, str]:
    """Package -> version of requirements/base.txt."""
    text = (ROOT / 'requirements' / 'base.txt').read_text()
    return dict(re.findall(r'^([\w-]+)==(\S+)', text, re.MULTILINE))


def check_device() -> Iterator[Check]:
    cores = f'{machine.cpu_cores()} CPU cores'
    gpus = machine.nvidia_gpus()
    names = ', '.join(f'{name} ({memory})' for name, memory, _ in gpus)
    found = machine.find_torch()
    if not gpus:
        yield Check('device', 'ok', f'{cores}, no NVIDIA GPU')
    elif found and found.cuda:
        yield Check('device', 'ok', f'{names}; {cores}')
    else:
        fix = "torch is a CPU build and can't use the GPU. Install a CUDA build, then `mtpd install-ops`."
        yield Check('device', 'warn', f'{names}; {cores}', fix)


def check_ops() -> Iterator[Check]:
    """mmcv's ops, run on the device that 'auto' takes."""
    wanted = build.mmcv_version()
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
    place = 'CPU' if tested['device'] == 'cpu' else f'{tested["gpu"]}, against the CPU'
    fix = '' if version == wanted else f'{wanted} is pinned. Run `mtpd install-ops`.'
    if tested['obstacle']:
        fix = f'There is a GPU, and `auto` takes the CPU: {tested["obstacle"]}.'
    elif machine.nvidia_gpus() and machine.find_torch().cuda and not tested['gpu']:
        fix = (
            f'nvidia-smi shows a GPU that torch does not see: the driver may be too old for CUDA '
            f'{machine.find_torch().cuda}, or CUDA_VISIBLE_DEVICES hides it.'
        )
    yield Check(
        'ops',
        'warn' if fix else 'ok',
        f'mmcv-full {version} with {kind} ops: {", ".join(tested["ops"])} right on the {place}',
        fix,
    )


def check_memory() -> Iterator[Check]:
    free = machine.free_memory()
    yield _amount_check('memory', free, MEMORY_LIMITS, 'free', 'Close other programs.')


def check_results_folder(work_dir: Path | None = None) -> Iterator[Check]:
    """The folder for results: writable, with room."""
    folder = (work_dir or ROOT / 'runs').resolve()
    place = nearest_existing(folder)
    if not accepts_files(place):
        yield Check(
            'runs', 'fail', f'{place} is not writable', 'Give another folder: `--work-dir`.'
        )
        return
    free = shutil.disk_usage(place).free
    yield _amount_check(
        'disk', free, DISK_LIMITS, f'free for {folder}', 'Free some, or give another: `--work-dir`.'
    )


def _amount_check(name: str, size: int, limits: tuple[float, float], what: str, fix: str) -> Check:
    state = 'fail' if size < limits[0] else 'warn' if size < limits[1] else 'ok'
    wanted = f'{limits[1] / machine.GIB:.0f} GiB are wanted. '
    found = f'{size / machine.GIB:.1f} GiB {what}'
    return Check(name, state, found, '' if state == 'ok' else wanted + fix)


def check_kernel() -> Iterator[Check]:
    """The notebooks run on the Jupyter kernel `python3`."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        spec = KernelSpecManager().get_kernel_spec('python3')
    except NoSuchKernel:
        fix = f'Run `{sys.executable} -m ipykernel install --sys-prefix --name python3`.'
        yield Check('kernel', 'fail', 'no Jupyter kernel named python3', fix)
    else:
        yield Check('kernel', 'ok', f'python3 ({spec.resource_dir})')


def check_recipe(path: str, overrides: dict | None = None, work_dir: Path | None = None):
    """The recipe itself, its data, its checkpoints, and what its run would take."""
    from ..engine import loop
    from ..preflight import checks as preflight
    from ..preflight import forecast
    from .run_dir import settings_problem

    try:
        loaded = preflight.load_whole(path, overrides)
    except RecipeError as error:
        yield from (Check('recipe', 'fail', f'{path}: {text}') for text in error.problems)
        return
    yield Check('recipe', 'ok', f'{loaded.name} ({path}); a recipe is Python, and its code has run')
    run_dir = loaded.run_dir(work_dir)
    found, seen = preflight.check_run(loaded, run_dir, echo=lambda text: None)
    yield from (Check('recipe', 'fail', problem) for problem in found)
    yield from check_weights(loaded)
    if not found:
        root = loaded.cfg.data.root or 'DigitScenes: made where they are missing'
        yield Check('dataset', 'ok', root)
    if other := settings_problem(run_dir / 'recipe.py', loaded.text):
        yield Check('work-dir', 'fail', other)
    if not found and not seen:
        yield Check(
            'its time', 'ok', f'{run_dir}: nothing is left to train, so no update was tried'
        )
    if seen:
        for name, words in forecast.forecast_text(loaded, run_dir, seen).items():
            yield Check(f'its {name}', 'ok', words)
        for name, words in loop.speed_settings(loaded).items():
            yield Check(f'its {name}', 'ok', words)


def check_weights(loaded: Recipe) -> Iterator[Check]:
    """The checkpoints that the recipe names: here, with their sha256, or to be fetched."""
    from ..utils.download import is_complete

    for name in loaded.detectors:
        path, url = loaded.checkpoint(name), loaded.url(name)
        if url and not is_complete(path, sha256_in_name(path.name)):
            fix = f'`mtpd run` fetches them to {path.parent}; without network put the file there.'
            yield Check(f'weights {name}', 'warn', f'not here yet: {url}', fix)
        elif path and path.is_file():
            yield Check(f'weights {name}', 'ok', f'{path.name}, sha256 {sha256(path)[:8]}')
