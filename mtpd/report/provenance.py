"""Where a report's rows and figures come from: a command for each row, and the files behind them with their SHA-256."""

from __future__ import annotations

import shlex

from ..analysis.run import Run
from ..utils.files import file_sha256

READ = ('metrics.json', 'model.json', 'training.json', 'stage.json', 'log.json')


def run_command(run: Run) -> str:
    return run.info.get('command') or f'mtpd run {run.info.get("recipe")}'


def row_commands(run: Run, rows: list[dict]) -> list[dict]:
    """`label` and `command` of each row: what trains it, or what measures the checkpoint that the recipe names."""
    shipped = {one['name'] for one in run.info.get('detectors', []) if one.get('shipped')}
    stages = {arm['name']: len(arm['teachers']) for arm in run.arms}
    words = _words(run_command(run))
    commands = []
    for row in rows:
        if row['role'] == 'arm':
            more = ['--arm', row['name'], '--stage', str(stages[row['name']])]
        else:
            more = ['--detector', row['name']]
        whole = row['name'] in shipped or run.info.get('smoke') or words[:2] != ['mtpd', 'run']
        command = run_command(run) if whole else shlex.join(['mtpd', 'train', *words[2:], *more])
        commands.append({'label': row['label'], 'command': command})
    return commands


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # run.json is a file that anybody can write
        return []


def result_files(runs: list[Run]) -> list[dict]:
    """`path` and `sha256` of all files that tables and figures are made of; of several runs with their folders."""
    files = []
    for run in runs:
        paths = [run.path / 'order' / 'costs.json']
        paths += [path for name in READ for path in run.path.glob(f'[ds]*/**/{name}')]
        prefix = f'{run.path.name}/' if len(runs) > 1 else ''
        for path in sorted(path for path in paths if path.is_file()):
            name = f'{prefix}{path.relative_to(run.path).as_posix()}'
            files.append({'path': name, 'sha256': file_sha256(path)})
    return files
