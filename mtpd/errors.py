"""The exceptions that a user of the kit may see, and how their messages name what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class MtpdError(Exception):
    """A problem that the user can solve. The message says what is wrong, where, and what to do.

    The command line prints the message without a traceback and ends with `exit_code`.
    """

    exit_code = 2

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython shows in a notebook in place of a traceback."""
        return f'{type(self).__name__}: {self}'.splitlines()


class RecipeError(MtpdError):
    """Everything that is wrong with a recipe, in one message.

    Attributes:
        source: the recipe's file.
        problems: the problems, a line each.
        rest: the recipe without its unknown keys, where one can be made; other values may be wrong. Else None.
    """

    def __init__(self, source: str | Path, problems: list[str], rest: Any = None):
        self.source, self.problems, self.rest = source, problems, rest
        count = 'a problem' if len(problems) == 1 else f'{len(problems)} problems'
        super().__init__(
            '\n'.join([f'{source} has {count}:', *(f'  - {problem}' for problem in problems)])
        )

    def __reduce__(self) -> tuple:
        """To be raised in another process than the one that found the problems."""
        return RecipeError, (self.source, self.problems)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence with the known word nearest to `word`, or with all known words where none is near."""
    known = list(known)
    if not known:
        return 'There are none.'
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f'Did you mean {close[0]!r}?' if close else f'There are: {", ".join(known)}.'


def unknown_name(what: str, word: str, known: Iterable[str]) -> str:
    """The message for a name that is not in `known`: "unknown arm 'x'. Did you mean 'y'?"; `what` is the kind, 'arm'."""
    return f'unknown {what} {word!r}. {did_you_mean(str(word), known)}'
