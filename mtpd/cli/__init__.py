"""The command line: `mtpd ...`, or `python -m mtpd.cli ...`."""

from .main import main

__all__ = ['main']
