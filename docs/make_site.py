"""The site: pages, the notebooks as a run executed them, and that run's report. Nothing is run again.

python docs/make_site.py   (make docs)

Pages are gathered in OUT/source as they lie in the checkout, so that their links stay as they are. Sphinx writes OUT/html.
"""

from __future__ import annotations

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

import click
import nbformat
from nbformat.v4 import new_markdown_cell

from mtpd.report.html import LIVE_TAG
from mtpd.utils.files import read_json
from mtpd.utils.paths import ROOT

RECIPE = 'configs/mini/retinanet_r50__r101_rx101.py'
RUN = ROOT / 'runs' / 'mini_retinanet_r50__r101_rx101' / '0'
OUTSIDE = ('CHANGELOG.md', 'CONTRIBUTING.md', 'benchmarks/README.md')  # pages beside README, docs/
SHOWN = (
    'text/markdown',
    'image/png',
    'image/jpeg',
    'text/html',
    'text/plain',
)  # the first that it has
EXECUTED = {'04_distill_stage': '04_distill_stage__progressive_1'}  # one of those of its stages
# The contents, part by part. README.md is the start page.
CONTENTS = {
    'Course': ('docs/course', 'notebooks/*', 'docs/exercises'),
    'Understand': ('docs/results', 'docs/methods', 'docs/teacher-order', 'docs/architecture'),
    'Run': (
        'docs/notebooks', 'docs/run-directory', 'docs/sweeps', 'docs/full-size', 'docs/gpu', 'docs/performance',
    ),
    'Adapt': ('docs/recipes', 'docs/own-data', 'docs/detectors', 'docs/mmdet'),
    'Look up': (
        'docs/cli', 'docs/troubleshooting', 'docs/provenance', 'benchmarks/README', 'CHANGELOG', 'CONTRIBUTING',
    ),
}  # fmt: skip


@click.command()
@click.option('--run', default=RUN, type=Path, help='The run whose notebooks and report are shown.')
@click.option('--out', default=ROOT / 'build' / 'site', type=Path, help='The folder to write.')
def main(run: Path, out: Path) -> None:
    """Write the site to OUT/html."""
    source, html = out / 'source', out / 'html'
    for folder in (source, html):
        shutil.rmtree(folder, ignore_errors=True)
    gather(source, run.resolve())
    command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-b', 'html']
    command += ['-c', str(ROOT / 'docs'), '-d', str(out / 'doctrees'), str(source), str(html)]
    if code := subprocess.run(command, cwd=ROOT).returncode:
        raise SystemExit(code)
    for path in html.rglob(
        '*.map'
    ):  # of the theme's scripts, for its developers: a quarter of the site
        path.unlink()
    if (run / 'report').is_dir():
        shutil.copytree(run / 'report', html / 'report')
    size = sum(path.stat().st_size for path in html.rglob('*') if path.is_file())
    print(f'{html / "index.html"}: {size / 1e6:.0f} MB')


def gather(source: Path, run: Path) -> None:
    """All that Sphinx reads: pages, and the files that they lead to."""
    pages = ['README.md', *OUTSIDE]
    pages += [f'docs/{path.name}' for path in sorted((ROOT / 'docs').glob('*.md'))]
    for name in pages:
        text = (ROOT / name).read_text(encoding='utf-8')
        copy_targets(name, text, source)
        target = source / ('index.md' if name == 'README.md' else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(site_text(name, text, run), encoding='utf-8')
    (source / 'notebooks').mkdir()
    for path in sorted((ROOT / 'notebooks').glob('*.ipynb')):
        nbformat.write(notebook_page(path, run), source / 'notebooks' / path.name)


def copy_targets(name: str, text: str, source: Path) -> None:
    """The files that a page leads to and that are no pages: figures, results, code."""
    for link in re.findall(r'\]\(([^()#\s]+)', text):
        path = ((ROOT / name).parent / link).resolve()
        if '://' not in link and path.is_file() and path.suffix not in ('.md', '.ipynb'):
            target = source / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def site_text(name: str, text: str, run: Path) -> str:
    """A page as the site has it: README.md is its start."""
    text = text.replace('](../README.md', '](../index.md')
    if name == 'docs/course.md':
        text = text.replace('<!-- report -->', report_line(run, '../'))
    if name != 'README.md':
        return text
    head, _, rest = text.partition('<!-- figure -->')
    return f'{head}[The course](docs/course.md). {report_line(run, "")}\n\n<!-- figure -->{rest}\n\n{contents()}'


def contents() -> str:
    blocks = []
    for part, names in CONTENTS.items():
        glob = ':glob:\n' if any('*' in name for name in names) else ''
        lines = '\n'.join(names)
        blocks.append(f'```{{toctree}}\n:hidden:\n:caption: {part}\n{glob}\n{lines}\n```')
    return '\n\n'.join(blocks) + '\n'


def report_line(run: Path, up: str) -> str:
    if (run / 'report' / 'index.html').is_file():
        return f'<a href="{up}report/index.html">The report of the demo’s run</a>.'
    return 'The report of the demo’s run is not part of this copy: `make demo` makes it, then `make docs`.'


def notebook_page(path: Path, run: Path):
    """A notebook as the run executed it; as it is, with the command that runs it, where that has not been."""
    executed = run / 'notebooks' / f'{EXECUTED.get(path.stem, path.stem)}.ipynb'
    notebook = nbformat.read(executed if executed.is_file() else path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if keep(cell)]
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            show_outputs(cell)
    where = new_markdown_cell(origin(path, executed, run))
    notebook.cells.insert(1, where)
    return notebook


def keep(cell) -> bool:
    """Not what needs a kernel, what only says that a notebook failed, or the run's parameters, which its command has."""
    left_out = {LIVE_TAG, 'papermill-error-cell-tag', 'injected-parameters'}
    return not left_out & {*cell.metadata.get('tags', [])}


def show_outputs(cell) -> None:
    """Outputs of kinds that need no script, each image with its alt text."""
    shown, alts = [], []
    for output in cell.outputs:
        data = output.get('data')
        if data is not None:
            if 'application/vnd.jupyter.widget-view+json' in data:
                continue
            kinds = [kind for kind in SHOWN if kind in data]
            output.data = {kind: data[kind] for kind in kinds[:1]}
            images = [about for about in output.metadata.values() if isinstance(about, dict)]
            alts += [about['alt'] for about in images if about.get('alt')]
        shown.append(output)
    cell.outputs = shown
    if alts:
        cell.metadata['mystnb'] = {'image': {'alt': ' '.join(alts)}}


def origin(path: Path, executed: Path, run: Path) -> str:
    """Which command and commit made a notebook's outputs."""
    words = [f'Source: <code>notebooks/{path.stem}.py</code>.']
    if not executed.is_file():
        words.append(
            'This page has no outputs: <code>make demo</code> makes them, then <code>make docs</code>.'
        )
    else:
        info, machine = read_json(run / 'run.json', {}), read_json(run / 'environment.json', {})
        command = info.get('command') or f'mtpd run {RECIPE}'
        commit = machine.get('git_commit')
        words.append(f'Outputs: <code>{escape(command)}</code>, seed {info.get("seed")}')
        words[-1] += f', commit <code>{commit[:12]}</code>.' if commit else '.'
        if info.get('smoke'):
            words.append('<strong>A smoke run</strong>: a few updates. Its numbers mean nothing.')
    return f'<p class="origin">{" ".join(words)}</p>'


if __name__ == '__main__':
    main()
