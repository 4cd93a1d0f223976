"""The migration of a session to another daemon.

In an order in which nothing is used before it is explained: ``stream`` (sections, lengths, the
checksum), ``options``, ``mounts`` (which both sides must have), ``host`` (where files of a
passthrough are), ``dentries``, ``session`` (nodes, handles, locks), ``memory`` (what is on a
tmpfs), ``state`` (all of it, as the vhost-user device asks for it).
"""

from harness.migration.options import MigrationOptions
from harness.migration.state import ServerState

__all__ = ["MigrationOptions", "ServerState"]
