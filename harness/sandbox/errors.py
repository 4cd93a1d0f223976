"""The error of everything in this package."""

from __future__ import annotations

from harness.errors import UsageError


class SandboxError(UsageError):
    """The sandbox that was asked for can't be built here. One line, which says what refused."""
