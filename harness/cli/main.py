"""The `dentry` command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run `argv`, by default the process's own; return the exit status."""
    try:
        # Here, because the import takes long enough for a Ctrl-C to hit it.
        from harness.cli.commands import run

        return run(argv)
    except KeyboardInterrupt:
        # The status that a shell gives to what the signal ended.
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
