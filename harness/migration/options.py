"""What is asked of a migration."""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

from harness.migration.stream import StateError

LOG = logging.getLogger(__name__)

FIND_PATHS: Final = "find-paths"
FILE_HANDLES: Final = "file-handles"
ABORT: Final = "abort"
GUEST_ERROR: Final = "guest-error"


class MigrationOptions(NamedTuple):
    """virtiofsd: ``--migration-*``. ``mode`` and ``on_error`` are the constants above.

    ``mode``, ``verify_handles`` and ``confirm_paths`` say how a source tells files of the host;
    a destination takes what it is sent. ``on_error`` counts on both sides.
    """

    mode: str = FIND_PATHS
    on_error: str = ABORT
    verify_handles: bool = False
    confirm_paths: bool = False

    def lost(self, reason: str) -> None:
        """Something cannot be carried over: it ends the migration, or the guest loses it.

        Raises: StateError with ``abort``.
        """
        if self.on_error == ABORT:
            raise StateError(reason)
        LOG.warning("lost to the guest: %s", reason)
