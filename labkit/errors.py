"""The one error that a user's input can raise, and the one way to end early that is none.

Everything else that goes wrong is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LIKE = 0.75
"""Share of two names that must agree for one to be taken for a slip of the other; below it `lr` would be `run`."""


class LabError(ValueError):
    """Bad input: the message names the thing, the value it had and the next step to take.

    The command line prints the message alone and exits with code 2.
    """


class Stopped(Exception):
    """A run was asked to stop and has saved where it is; the same command goes on from there."""


def nearest(name: str, names: Iterable[str], like: float = LIKE) -> str | None:
    """The one of `names` that `name` is likely a slip of, or None where less than `like` of the two agrees.

    >>> nearest("learning_rat", ["learning_rate", "run"]), nearest("lr", ["learning_rate", "run"])
    ('learning_rate', None)
    """
    near = get_close_matches(name, list(names), n=1, cutoff=like)
    return near[0] if near else None
