"""How a container says that it could not be."""

from __future__ import annotations

import sys
from typing import Final

from harness.errors import UsageError

EXIT_OURS: Final = 125
"""Not the command's: we failed, and have said so in one line on standard error."""


class ContainerError(UsageError):
    """This host does not let us; the message is one line that says what to do."""


def tell(message: str) -> None:
    """Write one line to standard error, from whichever of our processes this is."""
    line = message.replace("\n", "\\n").replace("\r", "\\r")
    print(f"dentry: {line}", file=sys.stderr, flush=True)
