"""Tables in notebooks, as Markdown: they render in JupyterLab, in papermill's output and in HTML.

What comes from data (class names, files' names, error texts) is shown as it is written: it is no markup.
"""

from __future__ import annotations

import html
import re
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
    lines = [_line(map(plain, columns.values())), _line('---' for _ in columns)]
    lines += [_line(plain(text(row.get(key))) for key in columns) for row in rows]
    return Markdown('\n'.join(lines))


def say(*sentences: str) -> Markdown:
    """A paragraph of computed sentences, in which **, _ and ` are markup, and nothing else is."""
    return Markdown(plain(' '.join(sentences), keep='*_`'))


def plain(value: Any, keep: str = '') -> str:
    """Text in which Markdown and HTML find nothing to obey; characters of `keep` excepted."""
    escaped = html.escape(str(value), quote=False)
    marks = ''.join(mark for mark in '\\`*_[]|~$!' if mark not in keep)
    return re.sub('([' + re.escape(marks) + '])', r'\\\1', escaped).replace('\n', ' ')


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
    return '| ' + ' | '.join(cells) + ' |'
