"""README.md and docs/: generated parts are the code's, links lead somewhere, and what is said of the code is so."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import mtpd
from mtpd.cli.main import SECTIONS, main
from mtpd.config.recipe import load_recipe
from mtpd.config.schema import RECIPE, Rule
from mtpd.utils.paths import ROOT, find_config_file
from mtpd.utils.statistics import mean_interval

sys.path.insert(0, str(ROOT / 'docs'))
README, DOCS = ROOT / 'README.md', sorted((ROOT / 'docs').glob('*.md'))
PAGES = [README, *DOCS, ROOT / 'CONTRIBUTING.md', ROOT / 'benchmarks/README.md']
TASKS = (
    'results', 'recipes', 'notebooks', 'teacher-order', 'sweeps', 'full-size', 'own-data', 'detectors', 'mmdet',
    'performance', 'gpu', 'run-directory', 'troubleshooting', 'cli', 'architecture', 'methods', 'course', 'exercises', 'provenance',
)  # fmt: skip


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(path: Path) -> str:
    return path.read_text(encoding='utf-8')


def page(name: str) -> str:
    return text_of(ROOT / 'docs' / f'{name}.md')


def prose(text: str) -> str:
    """Without blocks of code."""
    return re.sub(r'^```.*?^```$', '', text, flags=re.DOTALL | re.MULTILINE)


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    made: list[str] = []
    for heading in re.findall(r'^#+ (.*)$', prose(text_of(path)), re.MULTILINE):
        slug = re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
        count = sum(re.sub(r'-\d+$', '', other) == slug for other in made)
        made.append(f'{slug}-{count}' if count else slug)
    return set(made)


def between(text: str, marker: str) -> str:
    return text.split(f'<!-- {marker} -->')[1].split(f'<!-- end of {marker} -->')[0]


def table_rows(text: str) -> list[list[str]]:
    """The cells of all rows of tables, but for headings' rules."""
    lines = [line for line in text.splitlines() if line.startswith('|') and '---' not in line]
    return [
        [cell.strip().replace('\\|', '|') for cell in re.split(r'(?<!\\)\|', line)[1:-1]]
        for line in lines
    ]


@pytest.mark.parametrize(
    'name', ['recipes.md', 'performance.md', 'cli.md', 'notebooks.md', 'provenance.md']
)
def test_generated_parts_are_what_the_code_says(name):
    import generate

    text = text_of(ROOT / 'docs' / name)
    assert generate.written(name, text) == text, 'run make docs-pages'


def rules_of(node: dict | Rule, path: tuple = ()) -> list[tuple[tuple, Rule]]:
    if isinstance(node, Rule):
        return [(path, node)]
    return [pair for key, below in node.items() for pair in rules_of(below, (*path, key))]


def test_each_key_of_a_recipe_has_its_meaning_on_one_page():
    recipes, performance = table_rows(page('recipes')), table_rows(page('performance'))
    for path, rule in rules_of(RECIPE):
        assert rule.meaning.endswith('.'), path
        if path[0] in ('student', 'teachers'):
            key = '.'.join(path[1 if path[0] == 'student' else 2 :])
        else:
            key = '.'.join('NAME' if part == '*' else part for part in path)
        rows = performance if path[0] == 'speed' else recipes
        key = path[-1] if path[0] == 'speed' else key
        assert [row for row in rows if row[0] == f'`{key}`' and rule.meaning in row], path


def test_defaults_are_those_of_the_recipes():
    """Of the page, against two recipes that are built on the bases."""
    rows = {row[0].strip('`'): row[2:4] for row in table_rows(page('recipes')) if len(row) == 5}
    recipes = [load_recipe(f'configs/{name}.py') for name in ('mini/pool', 'paper/retinanet_r50__r101_rx101')]  # fmt: skip
    for key in ('schedule.batch_size', 'schedule.teacher', 'image.scale', 'order.images', 'distill.method'):  # fmt: skip
        section, name = key.split('.')
        shown = [ast.literal_eval(cell.strip('`')) for cell in rows[key]]
        assert shown == [recipe.cfg[section][name] for recipe in recipes], key


@pytest.mark.parametrize('path', PAGES, ids=name_of)
def test_links_and_anchors_resolve(path):
    text = prose(text_of(path))
    links = re.findall(r'\]\(([^()\s]+)\)', text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if link.startswith('https://'):
            continue
        file, _, anchor = link.partition('#')
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_there_is_a_page_for_each_task_and_the_readme_leads_to_it():
    assert {path.stem for path in DOCS} == set(TASKS)
    links = re.findall(r'\]\(docs/([\w-]+)\.md', text_of(README))
    assert set(links) == set(TASKS)


def test_the_readme_is_short():
    text = text_of(README)
    assert len(text.split()) <= 1000 and len(text.splitlines()) <= 170
    places = [text.index(part) for part in ('# MTPD', '![', '## Quick start', 'make demo', '## What it shows')]  # fmt: skip
    assert places == sorted(places) and text[: places[2]].count('\n') < 15
    (heading, *rows), more = table_rows(between(text, 'results')), text.count('AP50')
    assert 'AP' in heading and len(rows) <= 7 and more <= 1


@pytest.mark.parametrize('path', [README, *DOCS], ids=name_of)
def test_no_paragraph_is_long(path):
    for block in re.split(r'\n\s*\n', prose(text_of(path))):
        lines = [
            line for line in block.splitlines() if not line.startswith(('|', '<!--', '![', '#'))
        ]
        items = re.split(r'^(?:- |\d+\. )', '\n'.join(lines), flags=re.MULTILINE)
        assert max(item.strip().count('\n') for item in items) < 5, block


def test_the_readmes_recipe_loads(tmp_path, tiny_coco):
    recipe = next(block for block in code_blocks(text_of(README), 'python') if '_base_' in block)
    assert len(recipe.splitlines()) <= 15
    file = tmp_path / 'mine.py'
    file.write_text(recipe.replace('/path/to/dataset', str(tiny_coco(tmp_path / 'data'))))
    loaded = load_recipe(file)
    assert (loaded.name, loaded.cfg.distill.method, loaded.cfg.schedule.arm) == ('mine', 'mgd', 800)
    assert [loaded.checkpoint(name) for name in loaded.detectors] == [None] * 3
    assert set(loaded.arms) > {'none', 'direct', 'progressive', 'auto'}


@pytest.mark.parametrize('path', PAGES, ids=name_of)
def test_commands_and_files_are_there(path):
    text = text_of(path).split('<!-- provenance -->')[0]  # after it: commands of earlier commits
    known = {name for names in SECTIONS.values() for name in names} | set(main.commands)
    for word in re.findall(r'(?:`|/bin/|^|; |&& )mtpd ([a-z][\w-]*)', text, re.MULTILINE):
        assert word in known, word
    named = re.findall(r'(?<![\w/])(?:configs|results|benchmarks|notebooks|mtpd|tests)/[\w./-]*\w', text)  # fmt: skip
    for name in named:
        if not re.search(r'(^|/)[A-Z]\.py$', name):  # X.py stands for any
            assert (ROOT / name).exists(), name
    for name in re.findall(r'mmdet::[\w-]+/[\w+-]+\.py', text):
        assert name == 'mmdet::family/name.py' or find_config_file(name).is_file()
    for block in code_blocks(text, 'python'):
        ast.parse(block)


def test_what_is_cited_is_the_same_everywhere():
    import json

    import yaml

    citation = yaml.safe_load(text_of(ROOT / 'CITATION.cff'))
    paper, zenodo = citation['preferred-citation'], json.loads(text_of(ROOT / '.zenodo.json'))
    assert (
        citation['version'] == mtpd.__version__ and 'version' not in zenodo
    )  # a release has its own
    assert zenodo['title'] == citation['title'] and zenodo['license'] == citation['license']
    assert zenodo['keywords'] == citation['keywords']
    assert (paper['volume'], paper['start'], paper['end'], paper['year']) == (202, 3577, 3598, 2023)
    assert f'pages = {{{paper["start"]}--{paper["end"]}}}' in text_of(README)
    (related,) = zenodo['related_identifiers']
    assert related['identifier'].removeprefix('arXiv:') in paper['url']


def test_each_figure_has_its_provenance():
    import generate

    drawn = {'docs/architecture.svg'}  # by hand
    for path in PAGES:
        for link in re.findall(r'!\[[^]]*\]\(([^)]+)\)', text_of(path)):
            figure = (path.parent / link).resolve().relative_to(ROOT).as_posix()
            if figure not in drawn:
                script, results, pages = generate.FIGURES[figure]
                assert (ROOT / script).is_file() and (ROOT / results).is_file()
                assert name_of(path) in pages
                assert f'({link})\n[Script, commit, results](' in text_of(path)


def test_the_exercises_have_the_numbers_of_their_files():
    import json

    def read(name):
        return json.loads(text_of(ROOT / 'results' / name))

    rows = {row['name']: row for row in read('exercises.json')['rows']}
    text = page('exercises')
    for name, label in (('none', 'no teacher'), ('alpha2e-5', 'alpha 2e-5'), ('alpha1e-2', 'alpha 1e-2')):  # fmt: skip
        row = rows[name]
        ratio = f'{row["ratio"]:.0f}' if row['ratio'] else '–'
        assert f'{label} | {ratio} | {row["last detection"]:.2f} | {row["AP"]:.1f} |' in text
    three = [rows[name] for name in ('inherit', 'alpha2e-5', 'none')]
    for key, label in (('AP', 'AP'), ('first detection', 'detection loss, first 25 updates'),
                       ('last detection', 'detection loss, last 25 updates')):  # fmt: skip
        cells = ' | '.join(f'{row[key]:.{1 if key == "AP" else 2}f}' for row in three)
        assert f'| {label} | {cells} |' in text
    study = read('mini_pool_reduced/study.json')
    for name, costs in zip(study['costs']['detectors'], study['costs']['cost'], strict=True):
        cells = ' | '.join('0' if cost < 1e-6 else f'{cost:.2f}' for cost in costs[1:])
        assert f'| {name} | {cells} |' in text
    search = {row['settings'].get('distill.settings.mgd.alpha', 2e-5): row['AP'] for row in read('regime/search.json')['rows']
              if row['settings']['schedule.arm'] == 1500 and row['seeds'] == [0] and 'schedule.arm_lr' not in row['settings']}  # fmt: skip
    for alpha, label in ((8e-6, '8e-6'), (2e-5, '2e-5')):
        assert f'alpha {label} | {search[alpha]["rx101"]:.1f} |' in text
        assert f'no teacher | {search[alpha]["none"]:.1f} |' in text


def strings_of_the_code() -> str:
    """All texts in mtpd, a line each; values in them are three dots."""
    lines = []
    for path in (ROOT / 'mtpd').rglob('*.py'):
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else ' ... ' for p in node.values]
                lines.append(''.join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines.append(node.value)
    return '\n'.join(lines)


def test_messages_in_troubleshooting_are_those_of_the_code():
    texts = strings_of_the_code()
    messages = [
        cell[1:-1]
        for part in page('troubleshooting').split('| message |')[1:]
        for cell, *_ in table_rows(part.split('\n\n')[0])
        if cell.startswith('`')
    ]
    assert len(messages) > 15
    for message in messages:
        for part in re.split(r'\s*\.\.\.\s*', message.strip('. ')):
            assert part.strip(',: ') in texts, message


def test_the_settings_of_losses_are_those_of_the_recipes():
    settings = load_recipe('configs/paper/retinanet_r50__r101_rx101.py').cfg.distill.settings
    rows = {row[0].strip('`'): row[3] for row in table_rows(page('methods')) if len(row) == 4 and row[0][:1] == '`'}  # fmt: skip
    assert set(rows) == set(settings)
    for key, cell in rows.items():
        stated = {
            name: ast.literal_eval(value) for name, value in re.findall(r'`(\w+)=([^`]+)`', cell)
        }
        assert stated == {k: v for k, v in settings[key].to_dict().items() if k != 'type'}, key


def test_the_papers_sequences_are_listed():
    rows = [row[0].strip('`') for row in table_rows(page('full-size').split('## The five')[1])]
    names = {path.stem for path in (ROOT / 'configs/paper').glob('*.py') if 'pkd' not in path.stem}
    assert names == {row for row in rows if row in names} and len(names) == 5


def test_the_demos_tables_are_those_of_their_file():
    file = ROOT / 'results/mini_retinanet_r50__r101_rx101/study.json'
    orders = {row['name']: row for row in json.loads(file.read_text())['studies']['mgd']['orders']}
    names = {
        'teacher 2 only': 'rx101',
        'teacher 2 → teacher 2': 'rx101-rx101',
        'teacher 1 → teacher 2': 'r101-rx101',
        'teacher 2 → teacher 1': 'rx101-r101',
        'teacher 1 only': 'r101',
        'no teacher': 'none',
    }

    def cell(interval, sign=''):
        if interval is None:
            return '–'
        mean, low, high = (interval[key] for key in ('value', 'low', 'high'))
        return f'{mean:{sign}.1f} [{low:.1f}, {high:.1f}]'.replace('-', '−')

    for text in (text_of(README), page('results')):
        rows = {row[0]: row[1:] for row in table_rows(text) if row[0] in names and len(row) == 4}
        assert list(rows) == list(names)
        for label, name in names.items():
            row = orders[name]
            wanted = [cell(row['mean']), cell(row['above_control'], '+'), cell(row['above_direct'], '+')]  # fmt: skip
            assert [x.replace('[−0.0', '[0.0').replace('−0.0]', '0.0]') for x in wanted] == rows[
                label
            ]


def test_the_regimes_tables_are_those_of_their_files():
    def read(name):
        (*rows,) = json.loads(text_of(ROOT / f'results/regime/{name}.json'))['rows']
        return rows

    def gains(row, arm):
        aps = row['AP_by_seed']
        return [aps[arm][seed] - aps['none'][seed] for seed in aps['none']]

    def signed(number):
        return f'{number:+.1f}'.replace('-', '−')

    text = page('results')
    for row in read('baselines'):
        arms = [np.mean(gains(row, arm)) for arm in ('rx101', 'rx101-rx101', 'r101-rx101', 'rx101-r101')]  # fmt: skip
        rise = row['AP']['none'] - row['baseline']
        updates = row['settings'].get('schedule.baseline', 6000)
        cells = [f'{updates:,}', f'{row["baseline"]:.1f}', *map(signed, (rise, *arms))]
        assert f'| {" | ".join(cells)} | {row["regime_index"]["value"]:.1f} |' in text
    (row,) = read('own_scenes')
    assert 'teacher 1 at {r101:.1f} AP, teacher 2 at {rx101:.1f}.'.format(**row['teachers']) in text
    assert f'| no teacher | {row["AP"]["none"]:.1f} | |' in text
    for label, arm in (('such a teacher 2 only', 'rx101'), ('such teachers 1 → 2', 'r101-rx101')):
        gain = mean_interval(gains(row, arm))
        interval = f'{gain.value:+.1f} [{gain.low:.1f}, {gain.high:.1f}]'.replace('-', '−')
        assert f'| {label} | {row["AP"][arm]:.1f} | {interval} |' in text


def test_the_demos_sentences_are_what_its_files_give():
    """Differences paired by seed that the page has beside its tables."""
    folder = ROOT / 'results/mini_retinanet_r50__r101_rx101'
    ap = {}
    for name in ('study', 'kept', 'rco'):
        study = json.loads((folder / f'{name}.json').read_text())
        ap[name] = {row['name']: row['ap'] for row in study['studies']['mgd']['orders']}
        rows = [row for row in study['rows'] if row['order'] == 'baseline']
        ap[name]['baseline'] = {str(row['seed']): row['AP'] for row in rows}

    def text(one, other, digits):
        pairs = [one[seed] - (other[seed] if other else 0) for seed in one]
        interval = mean_interval(pairs)
        numbers = (interval.value, interval.low, interval.high)
        mean, low, high = (f'{number:.{digits}f}' for number in numbers)
        return f'{mean} [{low}, {high}]'.replace('-', '−')

    study, layers, rco = (ap[name] for name in ('study', 'kept', 'rco'))
    words = ' '.join(page('results').split())
    for stated in (
        f'the baseline {text(study["baseline"], None, 1)}',
        f'bring {text(study["none"], study["baseline"], 1)}'.replace('bring 1.1', 'bring 1.1 AP'),
        f'first than last, by {text(study["r101-rx101"], study["rx101-r101"], 2)}',
        f'+{text(layers["r101-rx101"], study["r101-rx101"], 1)} against new layers',
        f'{text(layers["rx101-rx101"], study["rx101-rx101"], 1).replace("−0.0 ", "0.0 ")} against new layers',
        f'{text(rco["early-rx101"], study["r101-rx101"], 1)} against teacher 1 → teacher 2',
        text(layers['r101-rx101'], None, 1),
        text(rco['early-rx101'], None, 1),
    ):
        assert stated in words, stated
    pool = json.loads((ROOT / 'results/mini_pool_reduced/study.json').read_text())['rows']
    means = {
        order: sum(row['AP'] for row in pool if row['order'] == order) / 5
        for order in ('baseline', 'none', 'x50')
    }
    alone, teacher = means['none'] - means['baseline'], means['x50'] - means['none']
    assert f'bring {alone:.1f} AP, and the teacher of highest AP {teacher:.1f} on top' in words
    assert f'Its regime index is {alone / teacher:.1f},' in words
