"""The errors that end a command in words, and not in a traceback."""

from __future__ import annotations


class CommandError(Exception):
    """A command of `dentry` can't go on. The command line prints the message and exits with
    `exit_status`: 2 for what the user can mend, whose message is one line that says how.
    """

    exit_status = 2


class UsageError(CommandError):
    """What was asked for can't be done as asked."""
