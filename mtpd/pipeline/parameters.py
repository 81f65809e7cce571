"""The parameters cell of a notebook: `name: type = literal  # help`, one a line, types checked."""

from __future__ import annotations

import ast
import difflib
import io
import os
import tokenize
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import MtpdError

PLAIN = {'str': str, 'int': int, 'float': float, 'bool': bool, 'list': list, 'dict': dict}


class Parameter(NamedTuple):
    """One line of a notebook's parameters cell: `name: type = default  # help`."""

    type: str
    default: Any
    help: str


def parameters_of(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters that a notebook declares in the cell tagged `parameters`, in order.

    Raises MtpdError when the notebook can't be read or a line isn't `name: type = literal`.
    """
    return declared(read_notebook(notebook), Path(notebook))


def read_notebook(path: str | Path):
    """The nbformat notebook at `path`. Raises MtpdError when there is none."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise MtpdError(f'Notebook {path} does not exist.') from None
    except Exception as error:  # nbformat raises several kinds for a file that is no notebook
        raise MtpdError(f'{path} is not a Jupyter notebook: {error}') from None


def declared(notebook, path: Path) -> dict[str, Parameter]:
    """The parameters of an nbformat notebook read from `path`, as `parameters_of` gives them."""
    cells = [c for c in notebook.cells if 'parameters' in c.metadata.get('tags', [])]
    if not cells:
        return {}
    source = cells[0].source
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise MtpdError(f'{path}, parameters cell: {error}') from None
    comments = {
        token.start[0]: token.string.lstrip('# ').strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for line in tree.body:
        try:
            if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
                raise ValueError
            type_, default = ast.unparse(line.annotation), ast.literal_eval(line.value)
            _fits(default, line.annotation)
        except (ValueError, TypeError, KeyError):
            code = ast.get_source_segment(source, line)
            raise MtpdError(
                f'{path}, parameters cell: `{code}` is not `name: type = literal  # help` '
                f'with types of {", ".join(PLAIN)}, None.'
            ) from None
        help_ = comments.get(line.end_lineno, '')
        found[line.target.id] = Parameter(type_, default, help_)
    return found


def checked(given: dict[str, Any], known: dict[str, Parameter], path: Path) -> dict[str, Any]:
    """`given` as plain Python values of the declared types. Raises MtpdError with every problem."""
    problems, values = [], {}
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f' Did you mean {near[0]!r}?' if near else ''
            names = ', '.join(known) or 'none'
            problems.append(f'unknown parameter {name!r}.{hint} Known: {names}.')
            continue
        try:
            plain = _plain(value)
            values[name] = _fits(plain, ast.parse(known[name].type, mode='eval').body)
        except TypeError:
            kind = type(value).__name__
            problems.append(f'{name} is {known[name].type}, got {value!r} ({kind}).')
    if problems:
        raise MtpdError('\n'.join(f'{path.name}: {problem}' for problem in problems))
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, 'item') and getattr(value, 'shape', None) == ():  # a numpy or torch scalar
        return value.item()
    if value is None or type(value) in PLAIN.values():
        return value
    raise TypeError


def _fits(value: Any, annotation: ast.expr) -> Any:
    """`value` as the annotation wants it (an int becomes a float), TypeError where it doesn't."""
    if isinstance(annotation, ast.BinOp):  # a | b
        for side in (annotation.left, annotation.right):
            try:
                return _fits(value, side)
            except TypeError:
                continue
        raise TypeError
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        if value is not None:
            raise TypeError
        return value
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == 'list':
        return [_fits(item, annotation.slice) for item in _fits(value, annotation.value)]
    wanted = PLAIN[ast.unparse(annotation)]
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise TypeError
    return value
