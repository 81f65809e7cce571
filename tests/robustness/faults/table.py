"""The table of the hits, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mtpd.utils.files import write_json
from mtpd.utils.machine import cpu_cores

WHAT = (
    'A tiny run on the CPU, hit at random moments and started again by the same command. A row is a hit: the moment in '
    'seconds since the start of the command, what was at work, whom the signal went to, the exit code, the processes '
    'left 5 seconds later, whether status.json and the message were right, and whether the end of its run (final '
    'and resumable checkpoints, metrics, results) was bit-identical to that of a run that was not hit.'
)


@dataclass
class Fault:
    """One row of the table."""

    run: int  # which of the runs that are compared
    moment: float  # seconds after the command's start
    during: str
    signal: str
    target: str
    exit: int
    left: int  # processes 5 seconds after its end
    status: str  # 'true', or what status.json said
    message: str  # 'yes', 'none' after what leaves no time for one, or what was printed
    identical: str = 'not ended'

    @property
    def right(self) -> bool:
        has_message = self.message in ('yes', 'none')
        return has_message and (self.left, self.status, self.identical) == (0, 'true', 'yes')


def outcome(rows: list[Fault]) -> str:
    right, runs = sum(row.right for row in rows), len({row.run for row in rows})
    return f'{right} of {len(rows)} hits right, over {runs} compared runs'


def text(rows: list[Fault]) -> str:
    lines = [('no', *asdict(rows[0]))] if rows else []
    lines += [(number, *asdict(row).values()) for number, row in enumerate(rows, 1)]
    widths = [max(len(str(cell)) for cell in column) for column in zip(*lines, strict=True)]
    return '\n'.join(
        '  '.join(f'{cell!s:{width}}' for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def save(path: Path, rows: list[Fault], command: str, seed: int, seconds: float) -> None:
    content = {'what': WHAT, 'command': command, 'seed': seed, 'outcome': outcome(rows)}
    machine = {'torch': torch.__version__, 'cores': cpu_cores()}
    content |= {
        'machine': machine,
        'seconds': round(seconds),
        'rows': [asdict(row) for row in rows],
    }
    write_json(path, content)
