"""Tables in notebooks, as Markdown: they render in JupyterLab, in papermill's output and in HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from IPython.display import Markdown


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None) -> Markdown:
    """Rows as a table: numbers with one decimal or as integers, None as a dash.

    Args:
        columns: {key of a row: heading}, in order; all keys of the first row by default. Without rows there is no
            table either.
    """
    if not rows:
        return Markdown('')
    columns = columns or {key: key for key in rows[0]}
    lines = [_line(columns.values()), _line('---' for _ in columns)]
    lines += [_line(text(row.get(key)) for key in columns) for row in rows]
    return Markdown('\n'.join(lines))


def say(*sentences: str) -> Markdown:
    """A paragraph of computed sentences."""
    return Markdown(' '.join(sentences))


def text(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return '–'
    if isinstance(value, float):
        return f'{value:.1f}' if abs(value) >= 1 or value == 0 else f'{value:.3f}'
    if isinstance(value, int) and not isinstance(value, bool):
        return f'{value:,}'
    return str(value)


def _line(cells) -> str:
    return (
        '| ' + ' | '.join(str(cell).replace('|', r'\|').replace('\n', ' ') for cell in cells) + ' |'
    )
