"""Writes what the pages of docs/ have from the code, each part between its markers.

python docs/generate.py   (make docs-pages)

`<!-- keys -->` of recipes.md is `mtpd.config.schema`; `<!-- switches -->` of performance.md its speed switches;
`<!-- commands -->` of cli.md what `--help` prints; `<!-- parameters -->` of notebooks.md the notebooks' parameter cells;
`<!-- provenance -->` of provenance.md which script, commit and results are behind figures and tables.
"""

from __future__ import annotations

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from mmcv import Config

from mtpd.cli.main import SECTIONS, main
from mtpd.config.schema import DETECTOR, NONE, RECIPE, TEACHER, Rule
from mtpd.engine.speed import CUDA_ONLY, resolve_speed
from mtpd.pipeline.notebooks import notebook_parameters
from mtpd.utils.files import file_sha256, read_json
from mtpd.utils.paths import ROOT

DOCS = Path(__file__).parent
BASES = {  # the files that a recipe's `_base_` names
    'pocket': ('datasets/digits.py', 'schedules/pocket.py', 'distill/methods.py'),
    'full size': ('datasets/coco.py', 'schedules/coco_1x.py', 'distill/methods.py'),
}
TYPES = {str: 'text', int: 'whole number', float: 'number', bool: 'True, False', NONE: 'None'}
ABSENT = object()


def table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ['---'] * len(headings), *rows]
    cells = [[cell.replace('|', '\\|') for cell in line] for line in lines]
    return '\n'.join(f'| {" | ".join(line)} |' for line in cells)


# The keys of recipes


def keys() -> str:
    defaults = [base_values(files) for files in BASES.values()]
    parts, general = [], []
    for name, rule in RECIPE.items():
        if isinstance(rule, Rule):
            general.append(key_row(name, rule, defaults))
        elif rule is DETECTOR:  # the teachers have the same
            title = '`student.KEY`, and `teachers.NAME.KEY` of each teacher'
            parts.append(key_section(title, [*leaves('', DETECTOR)], [{}] * len(BASES)))
            teachers = {key: rule for key, rule in TEACHER.items() if key not in DETECTOR}
            title = '`teachers.NAME.KEY`, of teachers alone'
            parts.append(key_section(title, [*leaves('', teachers)], [{}] * len(BASES)))
        elif name == 'speed':
            precision = rule['precision']
            text = f'`speed.precision` is {kind(precision)}. The other switches are `auto`, True or False. All are `auto` in both bases.'
            parts.append(f'### `speed`\n\n{text}\n[Performance](performance.md#switches) has a row for each.')  # fmt: skip
        elif name != 'teachers':
            parts.append(key_section(f'`{name}`', [*leaves(f'{name}.', rule)], defaults))
    return '\n\n'.join([key_section('General', general, defaults), *parts])


def base_values(files: tuple[str, ...]) -> dict:
    values: dict = {}
    for file in files:
        values |= Config.fromfile(str(ROOT / 'configs/_base_' / file))._cfg_dict.to_dict()
    return values


def leaves(place: str, rules: dict) -> Iterator[tuple[str, Rule]]:
    """The keys below a section, '*' as NAME."""
    for key, rule in rules.items():
        path = f'{place}{"NAME" if key == "*" else key}'
        if isinstance(rule, dict):
            yield from leaves(f'{path}.', rule)
        else:
            yield path, rule


def key_section(title: str, rows: list, defaults: list[dict]) -> str:
    made = [row if isinstance(row, list) else key_row(*row, defaults) for row in rows]
    headings = ['key', 'type', *BASES, 'meaning']
    if all(row[2] == row[3] == '-' for row in made):  # no base has a value
        made, headings = [[*row[:2], row[4]] for row in made], ['key', 'type', 'meaning']
    return f'### {title}\n\n{table(headings, made)}'


def key_row(path: str, rule: Rule, defaults: list[dict]) -> list[str]:
    values = [value_of(path, values) for values in defaults]
    return [f'`{path}`', kind(rule), *map(value_text, values), rule.meaning]


def value_of(path: str, values: Any) -> Any:
    for key in path.split('.'):
        if not isinstance(values, dict) or key not in values:
            return ABSENT
        values = values[key]
    return values


def value_text(value: Any) -> str:
    return '-' if value is ABSENT else f'`{literal(value)}`'


def literal(value: Any) -> str:
    """A value as recipes are written."""
    if isinstance(value, dict):
        return f'dict({", ".join(f"{key}={literal(item)}" for key, item in value.items())})'
    if isinstance(value, list):
        return f'[{", ".join(map(literal, value))}]'
    return repr(round(value, 4)) if isinstance(value, float) else repr(value)


def kind(rule: Rule) -> str:
    """The type of a value, in words."""
    choices = [f'`{choice!r}`' for choice in rule.choices]
    if rule.choices and int not in rule.types:
        return ', '.join(choices)
    names = [TYPES.get(one, one.__name__) for one in rule.types if one not in (str, tuple) or not choices]  # fmt: skip
    if float in rule.types:  # a whole number is one, too
        names.remove(TYPES[int])
    text = ' or '.join(dict.fromkeys('list' if name == 'tuple' else name for name in names))
    if rule.least is not None:
        text += f' from {rule.least} on'
    return ', or '.join([text, *choices])


# The speed switches


def switches() -> str:
    bf16, not_backbone = '`bf16` where the {} multiplies in it', ", but for the student's backbone"
    words = {('keep_memory', 'cuda'): '-'}
    words['channels_last', 'cpu'] = f'yes{not_backbone}; of that, max pooling only'
    words['precision', 'cuda'] = f'{bf16.format("GPU")}; else `fp32`'
    words['precision', 'cpu'] = f'{bf16.format("processor")}{not_backbone}; else `fp32`'
    words |= {(name, 'cpu'): '-' for name in CUDA_ONLY}
    auto = {device: resolve_speed({}, device)._asdict() for device in ('cuda', 'cpu')}
    rows = []
    for name, rule in RECIPE['speed'].items():
        cells = [words.get((name, d), 'yes' if auto[d][name] else 'no') for d in auto]
        rows.append([f'`{name}`', rule.meaning, *cells])
    return table(['switch', 'what it does', '`auto` on a GPU', '`auto` on the CPU'], rows)


# The command line


def commands() -> str:
    context = click.Context(main, info_name='mtpd', help_option_names=['-h', '--help'])
    context.terminal_width = context.max_content_width = 100
    parts = []
    for heading, names in SECTIONS.items():
        parts.append(f'## {heading}')
        for name in names:
            if name in main.commands:
                parts += command_help(main.commands[name], name, context)
    return '\n\n'.join(parts)


def command_help(command: click.Command, name: str, parent: click.Context) -> list[str]:
    """A heading and what --help prints, of a command or of each one below it."""
    context = click.Context(command, parent, name)
    if isinstance(command, click.Group):
        below = sorted(command.commands.items())
        return [part for word, sub in below for part in command_help(sub, word, context)]
    return [f'### {context.command_path}', f'```text\n{command.get_help(context).rstrip()}\n```']


# The notebooks' parameters


def parameters() -> str:
    files = sorted((ROOT / 'notebooks').glob('*.ipynb'))
    declared = {file.stem: notebook_parameters(file) for file in files}
    common = set.intersection(*map(set, declared.values()))
    rows = []
    for number, (name, cell) in enumerate(declared.items()):
        for key, parameter in cell.items():
            if key not in common or not number:
                where = 'all' if key in common else f'`{name}`'
                rows.append([where, f'`{key}`', f'`{parameter.default!r}`', parameter.help])
    return table(['notebook', 'parameter', 'default', 'meaning'], rows)


# Provenance

FIGURES = {  # figure: what draws it, the results that it shows, the pages that have it
    'results/mini_retinanet_r50__r101_rx101/ap_versus_order.png': (
        'benchmarks/order_figure.py', 'results/mini_retinanet_r50__r101_rx101/study.json', ('README.md', 'docs/results.md'),
    ),
    'results/regime/gain.png': ('benchmarks/regime.py', 'results/regime/baselines.json', ('docs/results.md',)),
    'results/mini_pool_reduced/ap_versus_order.png': (
        'benchmarks/order_figure.py', 'results/mini_pool_reduced/study.json', ('docs/results.md',),
    ),
    'results/bench/precision.png': (
        'benchmarks/precision.py', 'results/bench/precision.json', ('benchmarks/README.md',),
    ),
}  # fmt: skip
DEMO = 'results/mini_retinanet_r50__r101_rx101/seed0.json'
STUDIES = {
    'study': 'results/mini_retinanet_r50__r101_rx101/study.json',
    'kept': 'results/mini_retinanet_r50__r101_rx101/kept.json',
    'RCO': 'results/mini_retinanet_r50__r101_rx101/rco.json',
    'pool': 'results/mini_pool_reduced/study.json',
}


def provenance() -> str:
    parts = ['## Figures']
    for figure, (script, results, pages) in FIGURES.items():
        rows = [
            ['on', ', '.join(link(page) for page in pages)],
            ['script', link(script)],
            ['results', link(results)],
            ['their commit', commit(results)],
            ['their SHA-256', digest(results)],
        ]
        parts.append(table([link(figure), ''], rows))
    rows = [[f'demo: {label}', code(command), commit(DEMO)] for label, command in demo_commands()]
    rows += [
        [f'{name}: {label}', code(command), commit(file)]
        for name, file in STUDIES.items()
        for label, command in study_commands(file)
    ]
    parts.append(f'## Rows of the tables\n\n{ROWS}\n\n{table(["row", "command", "commit"], rows)}')
    files = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'results').rglob('*.json'))
    rows = [
        [f'{link(file)}<br>{command_of(file)}<br>{digest(file)}', commit(file)] for file in files
    ]
    parts.append(f'## Files\n\n{table(["file, command, SHA-256", "commit"], rows)}')
    return '\n\n'.join(parts)


ROWS = (
    'In a checkout of the commit, the command trains what the row shows, with what comes before it, and prints its AP. '
    'One seed: `--seed N` for another.'
)


def demo_commands() -> list[tuple[str, str]]:
    """Of each row of the demo's table."""
    results = read_json(ROOT / DEMO)
    recipe, arms = results['run']['recipe'], {arm['name']: arm for arm in results['run']['arms']}
    rows = []
    for row in results['results']:
        stages = len(arms[row['name']]['teachers']) if row['role'] == 'arm' else 0
        what = f'--arm {row["name"]} --stage {stages}' if stages else f'--detector {row["name"]}'
        rows.append((row['label'], f'mtpd train {recipe} {what}'))
    return rows


def study_commands(file: str) -> list[tuple[str, str]]:
    """Of each row of a study's table, all its seeds."""
    study = read_json(ROOT / file)
    recipe = shlex.split(study['command'])[2]
    seeds = f'{min(study["seeds"])}-{max(study["seeds"])}'
    # Where data lie changes no number.
    options = {key: v for key, v in study['overrides'].items() if key != 'data.cache'}
    words = ' '.join(f'{key}={value}' for key, value in options.items())
    rest = f' --cfg-options {words}' if words else ''
    return [
        (order.replace(',', ' → '), f"mtpd sweep {recipe} --orders '{order}' --seeds {seeds}{rest}")
        for order in study['orders']
    ]


def command_of(file: str) -> str:
    written = read_json(ROOT / file)
    command = written.get('command') or written.get('run', {}).get('command')
    rows = written.get('rows')
    commands = (
        [row.get('command') for row in rows if isinstance(row, dict)]
        if isinstance(rows, list)
        else []
    )
    commands = [one for one in commands if one]
    if command:
        return code(command)
    return 'one a row, in the file' if commands or 'commands' in written else 'not recorded'


def commit(file: str) -> str:
    """The commit that a results file records."""
    written = read_json(ROOT / file)
    recorded = str((written.get('environment') or {}).get('git_commit') or '')
    commits = [recorded] if recorded else list((written.get('commits') or {}).values())
    hashes = dict.fromkeys(one[:12] for one in commits if re.fullmatch('[0-9a-f]{7,40}', one))
    return ', '.join(map(code, hashes)) or 'not recorded'


def digest(file: str) -> str:
    return code(file_sha256(ROOT / file))


def link(file: str) -> str:
    return f'[{file}](../{file})'


def code(text: str) -> str:
    return f'`{text}`'


GENERATED: dict[str, tuple[str, Callable[[], str]]] = {  # marker: page and what makes it
    'keys': ('recipes.md', keys),
    'switches': ('performance.md', switches),
    'commands': ('cli.md', commands),
    'parameters': ('notebooks.md', parameters),
    'provenance': ('provenance.md', provenance),
}


def written(page: str, text: str) -> str:
    """A page's text with its generated parts."""
    for marker, (name, made) in GENERATED.items():
        if name == page:
            pattern = f'<!-- {marker} -->\n.*?<!-- end of {marker} -->'
            part = f'<!-- {marker} -->\n{made()}\n<!-- end of {marker} -->'
            text, count = re.subn(pattern, lambda _, part=part: part, text, flags=re.DOTALL)
            if count != 1:
                raise SystemExit(f'{page} needs <!-- {marker} --> and <!-- end of {marker} -->')
    return text


if __name__ == '__main__':
    for name in dict.fromkeys(page for page, _ in GENERATED.values()):
        path = DOCS / name
        path.write_text(written(name, path.read_text(encoding='utf-8')), encoding='utf-8')
