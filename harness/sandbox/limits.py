"""How many descriptors the daemon may hold. Linux: RLIMIT_NOFILE."""

from __future__ import annotations

import logging
import resource
from pathlib import Path
from typing import Final

from harness.sandbox.errors import SandboxError

LOG = logging.getLogger(__name__)

DEFAULT: Final = 1_000_000


def _nr_open() -> int:
    """The most that the kernel gives anybody."""
    return int(Path("/proc/sys/fs/nr_open").read_text())


def set_nofile(wanted: int | None) -> int:
    """Set both limits to ``wanted``; return the soft limit in force afterwards.

    0 keeps the limits. None raises the soft limit to the lesser of a million and fs.nr_open, if it
    is lower; where that is refused, to the hard limit.

    Raises:
        SandboxError: ``wanted`` is more than the kernel or the hard limit allows, or negative.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted == 0:
        return soft
    most = _nr_open()
    if wanted is None:
        target = min(DEFAULT, most)
        if not _is_below(soft, target):
            return soft
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, target))
        except (OSError, ValueError):
            LOG.info("descriptors stay limited to %d: more than that is not permitted", hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    elif not 0 < wanted <= most:
        raise SandboxError(f"--rlimit-nofile {wanted}: choose 0 (keep) or 1 to {most}, fs.nr_open")
    else:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
        except (OSError, ValueError):
            raise SandboxError(
                f"--rlimit-nofile {wanted}: this process may have {hard} at most"
            ) from None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _is_below(soft: int, target: int) -> bool:
    return soft != resource.RLIM_INFINITY and soft < target
