"""What a user did wrong, said in one line, and the guess at what they meant."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend. The command line prints its message on one line and exits 2.

    The message names the thing (file, key, field) and the remedy.
    """


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the closest of `choices`, or an empty string."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def require_choice(what: str, word: str, choices: Iterable[str]) -> None:
    """Raises `UserError` unless `word` is one of `choices`."""
    choices = list(choices)
    if word not in choices:
        raise UserError(f"{what} '{word}' is unknown (known: {', '.join(choices)}){did_you_mean(word, choices)}")
