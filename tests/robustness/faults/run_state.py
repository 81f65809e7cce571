"""What a run directory says of itself: which phase is at work, and whether status.json is true after a hit."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from mtpd.pipeline.status import may_be_alive

PLAIN = {'02_detectors': 'baseline'}
FOLDERS = {
    'baseline': ('detectors/student', 'model.pth'),
    'stage 1': ('stages/progressive/1*', 'student.pth'),
    'stage 2': ('stages/progressive/2*', 'student.pth'),
}


def status(run: Path) -> dict:
    try:
        return json.loads((run / 'status.json').read_text())
    except (OSError, ValueError):
        return {}


def at_work(run: Path, pid: int) -> list[str]:
    """The phases in which the command is; ['start'] before it has begun, ['end'] when it is done."""
    run_status = status(run)
    if run_status.get('pid') != pid:
        return ['start']
    if run_status['state'] != 'running':
        return ['end']
    if run_status['command'].split()[1] == 'train':
        return _training(run)
    steps = run_status.get('steps', [])
    if steps and all(step['state'] == 'done' for step in steps):
        return ['report']
    return [_phase(step['name']) for step in steps if step['state'] == 'running']


def _phase(step: str) -> str:
    if '__' in step:
        return f'stage {step.rsplit("_", 1)[1]}'
    return PLAIN.get(step, step[:2])


def folders(run: Path) -> list[tuple[str, Path, Path]]:
    """Phase, folder and last file of the trainings that have begun."""
    return [
        (name, place, place / final)
        for name, (pattern, final) in FOLDERS.items()
        for place in run.glob(pattern)
    ]


def _training(run: Path) -> list[str]:
    return [f'train {name}' for name, _, final in folders(run) if not final.is_file()][-1:]


def wrong(run: Path, pid: int, target: str, name: str, code: int, during: list[str]) -> str:
    """'' where status.json is as it should be after a hit, else what it says."""
    run_status = status(run)
    state, at_end = run_status.get('state'), during == ['end']
    summary = f'{state}, exit code {run_status.get("exit_code")}, {run_status.get("signal")}, {run_status.get("reason")}'
    if run_status.get('pid') != pid:  # hit before the command had begun its work
        return (
            ''
            if during == ['start'] and not (state == 'running' and may_be_alive(run_status))
            else summary
        )
    if code == -signal.SIGKILL:
        killed = state == 'running' and not may_be_alive(run_status)
        return '' if killed or (at_end and state == 'done') else f'{summary} after a kill'
    if state == 'done' and code == 0:  # a worker or a kernel that had nothing more to do
        return ''
    if target in ('runner', 'training'):
        wanted = ('interrupted', name, {'SIGINT': 130, 'SIGTERM': 143}.get(name), code)
        right = (
            state,
            run_status['signal'],
            run_status['exit_code'],
            run_status['exit_code'],
        ) == wanted
        return '' if right or (at_end and state == 'done') else summary
    words = {'kernel': 'the Python process of the notebook', 'data worker': 'a data worker'}
    names_target = words[target] in (run_status['reason'] or '')
    right = (
        state == 'failed'
        and run_status['exit_code'] == code == {'kernel': 1, 'data worker': 2}[target]
    )
    return '' if right and names_target else summary
