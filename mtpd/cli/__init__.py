"""The command line: `mtpd ...`, or `python -m mtpd.cli ...`."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from .main import main as commands


def main(arguments: Sequence[str] | None = None) -> None:
    """The program: `arguments`, by default the process's, to their command. It ends by SystemExit."""
    try:
        commands(arguments)
    finally:
        # All is done and said. While Python cleans up Ctrl-C ends the process at once, without a traceback.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


__all__ = ['main']
