"""The one error that a user's input can raise, and the one way to end early that is none.

Everything else that goes wrong is a bug and keeps its traceback.
"""

from __future__ import annotations


class LabError(ValueError):
    """Bad input: the message names the thing, the value it had and the next step to take.

    The command line prints the message alone and exits with code 2.
    """


class Stopped(Exception):
    """A run was asked to stop and has saved where it is; the same command goes on from there."""
