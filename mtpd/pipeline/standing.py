"""Where a run stands, as its status.json and its folders say; whether its process is still there is looked up."""

from __future__ import annotations

from pathlib import Path

from ..errors import MtpdError
from ..utils.files import read_own
from ..utils.paths import shown
from .holding import STATUS, alive


def facts(folder: Path) -> dict:
    """What a run's or training's status.json says, with `state` 'dead' where its process is gone, and ``trainings``:
    ``folder``, ``updates`` and ``done`` each.

    Raises:
        MtpdError: the folder has no status.
    """
    status = read_own(folder / STATUS)
    if not status:
        raise MtpdError(
            f'{folder} is neither a sweep nor a run: it has no sweep.json and no status.json.'
        )
    if status.get('state') == 'running' and not alive(status):
        status['state'] = 'dead'
    trainings = [
        {
            'folder': shown(path.parent),
            'updates': read_own(path, {}).get('update'),
            'done': any((path.parent / name).is_file() for name in ('student.pth', 'model.pth')),
        }
        for path in sorted(folder.rglob('training.json'))
    ]
    return {**status, 'trainings': trainings}


def text(found: dict) -> str:
    """`facts` as lines: the state, the steps, the updates of what is trained."""
    lines = [_state(found), f'command: {found.get("command")}']
    wide = max((len(step['name']) for step in found.get('steps', ())), default=0)
    for step in found.get('steps', ()):
        seconds = f'{step["seconds"]:.0f} s' if step.get('seconds') else ''
        reason = str(step.get('reason') or '').split('\n', 1)[0]
        lines.append(f'{step["state"]:<11} {step["name"]:<{wide}}  {seconds:>6}  {reason}'.rstrip())
    for row in found['trainings']:
        lines.append(f'{row["folder"]}: {row["updates"]} updates{", done" if row["done"] else ""}')
    return '\n'.join(lines)


def _state(status: dict) -> str:
    state = status.get('state', 'unknown')
    if state in ('running', 'dead'):
        who = f'process {status.get("pid")} on {status.get("host")}, since {status.get("started")}'
        if state == 'running':
            return f'running: {who}'
        return f'ended without a word: killed, or its machine went down ({who}). The same command goes on.'
    words = [state, *(f'{key} {status[key]}' for key in ('signal', 'exit_code') if status.get(key))]
    reason = f': {status["reason"]}' if status.get('reason') else ''
    return f'{", ".join(words)} ({status.get("ended")}){reason}'
