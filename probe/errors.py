"""The one exception that the command line turns into a sentence."""

from __future__ import annotations


class InputError(ValueError):
    """Input or an option is wrong: the message names the invariant, what came and how to mend it, on one line.

    The command line prints the message on standard error and ends with status 2; in Python it is a `ValueError`.
    """
