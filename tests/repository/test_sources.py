"""Notebook sources: no logic in them, pairs that agree, parameters as papermill and people need them."""

import ast
import json

import jupytext
import pytest

from mtpd.pipeline.notebooks import notebook_parameters
from mtpd.utils.paths import ROOT

SOURCES = sorted((ROOT / 'notebooks').glob('*.py'))
NAMES = [path.stem for path in SOURCES]


def test_all_seven_are_there():
    assert NAMES == [
        '00_environment',
        '01_data',
        '02_detectors',
        '03_teacher_order',
        '04_distill_stage',
        '05_evaluate',
        '06_analysis',
    ]


@pytest.mark.parametrize('source', SOURCES, ids=NAMES)
def test_no_logic_and_short_cells(source):
    forbidden = (ast.FunctionDef, ast.ClassDef, ast.While, ast.Try, ast.AsyncFunctionDef, ast.With)
    notebook = jupytext.read(source)
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            tree = ast.parse(cell.source)
            assert not [node for node in ast.walk(tree) if isinstance(node, forbidden)]
            assert len(tree.body) <= 12


@pytest.mark.parametrize('source', SOURCES, ids=NAMES)
def test_the_notebook_is_its_source_without_outputs(source):
    pair = json.loads(source.with_suffix('.ipynb').read_text())
    wanted = [(c.cell_type, c.source) for c in jupytext.read(source).cells]
    cells = [(c['cell_type'], ''.join(c['source'])) for c in pair['cells']]
    assert cells == wanted
    for cell in pair['cells']:
        assert cell.get('id')
        assert not cell.get('outputs') and not cell.get('execution_count')


@pytest.mark.parametrize('source', SOURCES, ids=NAMES)
def test_parameters_come_first_typed_explained_and_few(source):
    notebook = jupytext.read(source)
    first = next(cell for cell in notebook.cells if cell.cell_type == 'code')
    assert first.metadata['tags'] == ['parameters']
    known = notebook_parameters(source.with_suffix('.ipynb'))
    assert 4 <= len(known) <= 8
    for parameter in known.values():
        assert parameter.type and parameter.help
        assert '=' not in parameter.help  # papermill would cut the help text there


@pytest.mark.parametrize('source', SOURCES, ids=NAMES)
def test_each_asks_and_concludes(source):
    text = source.read_text()
    assert '**Question.**' in text and '**Conclusion.**' in text
