"""Public names of packages, looked up on first use."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize('room', ['mtpd.analysis', 'mtpd.report'])
def test_public_names_are_there_and_submodules_stay(room):
    package = importlib.import_module(room)
    assert package.__all__ == sorted(package.__all__) == dir(package)
    assert all(getattr(package, name).__name__ == name for name in package.__all__)
    assert importlib.import_module(f'{room}.run').__name__ == f'{room}.run'
    with pytest.raises(AttributeError, match=f"'{room}' has no attribute 'nothing'"):
        _ = package.nothing
    with pytest.raises(ImportError):
        exec(f'from {room} import nothing')


def test_a_room_loads_nothing_before_a_name_is_used():
    code = (
        'import sys, mtpd.analysis, mtpd.report; from mtpd.analysis import load_run;'
        "sys.exit(bool({'torch', 'mmcv', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
