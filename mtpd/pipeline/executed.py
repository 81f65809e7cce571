"""Executed notebooks that did not run to their end: made to say so."""

from __future__ import annotations

from pathlib import Path

from ..utils.files import write_text
from .parameters import read_notebook


def keep_whole() -> None:
    """Has papermill write notebooks whole or not at all; it does so after every cell."""
    from papermill.iorw import LocalHandler, papermill_io

    class Whole(LocalHandler):
        def write(self, buf, path):
            write_text(Path(path), buf)

    if not isinstance(papermill_io.get_handler('/x.ipynb'), Whole):
        papermill_io.register('/', Whole())


def record_end(out: Path, ename: str, evalue: str) -> int | None:
    """Put the end that papermill didn't see into the executed notebook; returns its cell."""
    import nbformat

    if not out.is_file():
        return None
    notebook = read_notebook(out)
    index = next((i for i, c in enumerate(notebook.cells) if _open(c)), None)
    if index is not None:
        error = nbformat.v4.new_output('error', ename=ename, evalue=evalue, traceback=[evalue])
        notebook.cells[index].outputs.append(error)
        for cell in notebook.cells[index:]:
            cell.metadata.get('papermill', {})['status'] = 'pending'
        notebook.cells[index].metadata.get('papermill', {})['status'] = 'failed'
    write_text(out, nbformat.writes(notebook))
    return index


def drop_markers(out: Path) -> None:
    # papermill puts two red notes into a failed notebook; they shift its cells' numbers.
    import nbformat

    notebook = read_notebook(out)
    tag = 'papermill-error-cell-tag'
    notebook.cells = [c for c in notebook.cells if tag not in c.metadata.get('tags', [])]
    write_text(out, nbformat.writes(notebook))


def _open(cell) -> bool:
    # A cell interrupted at work has an execution count but no shell reply, hence no end time.
    if cell.cell_type != 'code' or not cell.source.strip():
        return False
    return cell.execution_count is None or 'shell.execute_reply' not in cell.metadata.get(
        'execution', {}
    )
