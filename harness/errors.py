"""The error that is the user's to mend."""

from __future__ import annotations


class UsageError(Exception):
    """What was asked for can't be done as asked. The message is one line that says what to do.

    The command line prints it and exits with status 2.
    """
