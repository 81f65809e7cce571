"""A sweep of trainings of one or two updates on four images."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from helpers import tiny
from mtpd.utils.files import write_json
from mtpd.utils.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
SMALL = tiny.SMALL | {'teachers.r101.updates': 1, 'teachers.rx101.updates': 1}
# A prefix that two orders share.
ORDERS = 'r101,rx101;r101,r101'


def command(data: Path, folder: Path, *more: str) -> list[str]:
    options = ' '.join(f'{key}={value}' for key, value in (SMALL | {'data.root': data}).items())
    start = [sys.executable, '-m', 'mtpd.cli', 'sweep', MINI, '--cfg-options', options]
    return [*start, '--orders', ORDERS, '--work-dir', str(folder), *more]


def run(arguments: list[str], **options) -> subprocess.CompletedProcess:
    options = {'cwd': ROOT, 'capture_output': True, 'text': True} | options
    process = subprocess.run(arguments, **options)
    print(process.stdout, process.stderr)
    return process


def wait_for(what, seconds: float = 300):
    """The first true value of `what()`."""
    until = time.time() + seconds
    while time.time() < until:
        if value := what():
            return value
        time.sleep(0.1)
    raise AssertionError(f'{what} did not come true within {seconds} s')


def put_job_status(sweep, name: str, **fields) -> None:
    """A job's status.json as this process would write it just now."""
    stamp = datetime.now(UTC).isoformat(timespec='seconds')
    usual = {'pid': os.getpid(), 'host': platform.node(), 'started': stamp, 'heartbeat': stamp}
    write_json(sweep.path / 'jobs' / name / 'status.json', usual | fields)
