"""`make env`, first half: the virtual environment with the pinned packages. Standard library only.

`python -m mtpd.install.venv .venv` makes it with the Python that runs it. It does nothing where the environment has what
requirements/ asks for already. `python -m mtpd.install.venv .venv docs` adds what `make docs` needs.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / 'requirements'
SUPPORTED_PYTHON = ((3, 11), (3, 12))
OLDEST_TORCH = (2, 6)
PACKAGE_SETS = ('base', 'dev', 'onnx', 'sweep')  # files of requirements/
ON_DEMAND = ('docs',)  # further ones, which `make env` leaves out


def main(venv: Path, *more: str) -> None:
    """Makes or completes the environment. Ends the process with a message where that can't be done.

    Args:
        more: names from `ON_DEMAND`, whose packages are to be in it, too.
    """
    python = venv / 'bin' / 'python'
    if not python.exists():
        create_venv(venv)
    version = run_python(python, 'import sys; print("{}.{}".format(*sys.version_info))')
    if version_numbers(version) not in SUPPORTED_PYTHON:
        exit_with(f'{venv} was made with Python {version}. Remove it (`rm -rf {venv}`) and repeat.')
    stamp = venv / 'mtpd-env.txt'
    if not stamp.is_file() or stamp.read_text() != requirements_digest(python):
        stamp.unlink(missing_ok=True)
        install_packages(python)
        stamp.write_text(requirements_digest(python))
    for name in more:
        install_on_demand(python, name, venv / f'mtpd-env-{name}.txt')


def install_on_demand(python: Path, name: str, stamp: Path) -> None:
    """Installs a set of packages beside the pinned ones, which stay as they are."""
    if name not in ON_DEMAND:
        exit_with(f'There are no packages {name!r}, only: {", ".join(ON_DEMAND)}.')
    file = REQUIREMENTS / f'{name}.txt'
    if stamp.is_file() and stamp.read_text() == file.read_text():
        return
    stamp.unlink(missing_ok=True)
    pins = [f'--constraint={REQUIREMENTS / each}.txt' for each in PACKAGE_SETS]
    pip_install(python, *pins, f'--requirement={file}')
    stamp.write_text(file.read_text())


def create_venv(venv: Path) -> None:
    """Makes an environment with this Python, if the kit supports it."""
    version = sys.version_info[:2]
    if version not in SUPPORTED_PYTHON:
        others = [name for name in ('python3.11', 'python3.12') if shutil.which(name)]
        advice = 'Install Python 3.11 or 3.12 first.'
        if others:
            advice = f'Run `make env PYTHON={others[0]}`.'
        exit_with(
            f'Python {version[0]}.{version[1]} is not supported (3.11 and 3.12 are). {advice}'
        )
    print(f'Making {venv} with Python {version[0]}.{version[1]} ...', flush=True)
    if subprocess.run([sys.executable, '-m', 'venv', str(venv)]).returncode:
        shutil.rmtree(venv, ignore_errors=True)
        exit_with(
            f'The virtual environment {venv} could not be made; the lines above say why. Without the module '
            f'ensurepip: `apt install python{version[0]}.{version[1]}-venv`.'
        )


def install_packages(python: Path) -> None:
    """Installs the pinned packages and the kit itself. An installed torch stays as it is."""
    torch = installed_version(python, 'torch')
    if torch and version_numbers(torch) < OLDEST_TORCH:
        exit_with(
            f'torch {torch} is too old: the kit needs 2.6 or newer. `{python} -m pip install torch==2.13.0`'
        )
    index = os.environ.get('TORCH_INDEX')
    extra = ['--extra-index-url', index] if index else []
    if not torch:
        if not index and not shutil.which('nvidia-smi'):
            print(
                'No NVIDIA GPU here. If pip now fetches gigabytes of CUDA packages, the smaller CPU build comes '
                'with `make env TORCH_INDEX=https://download.pytorch.org/whl/cpu`.'
            )
        pip_install(python, *extra, '-r', str(REQUIREMENTS / 'torch.txt'), quiet=False)
        torch = installed_version(python, 'torch')
    elif not installed_version(python, 'torchvision'):
        pip_install(python, *extra, '--no-deps', f'torchvision=={torchvision_for(torch)}')
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, 'constraints.txt')
        constraints.write_text(f'torch=={torch}\n')
        files = [f'--requirement={REQUIREMENTS / name}.txt' for name in PACKAGE_SETS]
        pip_install(python, f'--constraint={constraints}', *files)
    pip_install(python, '--no-deps', '--no-build-isolation', '-e', str(ROOT))


def pip_install(python: Path, *arguments: str, quiet: bool = True) -> None:
    """Shows and runs `pip install` of the environment. Ends the process where it fails."""
    print('pip install', *arguments, flush=True)
    command = [str(python), '-m', 'pip', 'install', '--disable-pip-version-check', *arguments]
    if code := subprocess.run([*command, '--quiet'] if quiet else command).returncode:
        exit_with(
            f'pip ended with code {code}; the lines above say why. Nothing is lost: repeat `make env`.'
        )


def torchvision_for(torch: str) -> str:
    """The torchvision release that belongs to a torch 2.x: '2.11.0+cu130' -> '0.26.*'."""
    return f'0.{version_numbers(torch)[1] + 15}.*'


def requirements_digest(python: Path) -> str:
    """A checksum of all that decides which packages the environment needs: pins, torch's version, the checkout."""
    state = hashlib.sha256()
    for file in [*sorted(REQUIREMENTS.glob('*.txt')), ROOT / 'pyproject.toml']:
        state.update(file.read_bytes())
    for name in ('torch', 'torchvision'):
        state.update(installed_version(python, name).encode())
    state.update(str(ROOT).encode())
    return state.hexdigest() + '\n'


def installed_version(python: Path, package: str) -> str:
    """The version of an installed package, '' where it is not installed."""
    code = (
        'import importlib.metadata as m, sys\n'
        'try: print(m.version(sys.argv[1]))\n'
        'except m.PackageNotFoundError: print()'
    )
    return run_python(python, code, package)


def run_python(python: Path, code: str, *arguments: str) -> str:
    """What the code prints. Ends the process where this Python does not work."""
    command = [str(python), '-c', code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        exit_with(
            f'{python} does not work:\n{done.stderr.strip()}\nRemove its environment and repeat.'
        )
    return done.stdout.strip()


def version_numbers(version: str) -> tuple[int, int]:
    """Major and minor number: '2.13.0+cpu' -> (2, 13)."""
    major, minor = re.match(r'(\d+)\.(\d+)', version).groups()
    return int(major), int(minor)


def exit_with(message: str) -> None:
    print(f'Error: {message}', file=sys.stderr)
    raise SystemExit(2)


if __name__ == '__main__':
    main(Path(sys.argv[1] if len(sys.argv) > 1 else '.venv'), *sys.argv[2:])
