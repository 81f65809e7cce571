"""The one exception a user of the kit should ever see."""

from __future__ import annotations


class MtpdError(Exception):
    """A problem the user can solve: what is wrong, where, and what to do about it.

    The command line prints the message without a traceback and ends with `exit_code`.
    """

    exit_code = 2
