"""Why there is no image."""

from __future__ import annotations


class ImageError(Exception):
    """The tree can't become the image that was asked for. The message is one line, for the user."""


def printable(name: bytes) -> str:
    """A file's name for such a line: what is no text is escaped."""
    return name.decode("utf-8", "backslashreplace").encode("unicode_escape").decode("ascii")
