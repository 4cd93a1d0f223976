"""docs/fuse-support.md, made from the opcode table: ``python -m harness.fuse.support > FILE``."""

from __future__ import annotations

from harness.fuse import abi, session
from harness.fuse.opcodes import OPCODES

_INTRODUCTION = f"""\
# FUSE support

Made from the opcode table by `python -m harness.fuse.support`; a test compares.

The server speaks FUSE 7.{abi.MINIMUM_MINOR_VERSION} to 7.{abi.KERNEL_MINOR_VERSION}, with requests
of up to {abi.MAX_WRITE >> 10} KiB of data ({abi.REQUEST_PAGES} pages) and times in nanoseconds. An
opcode that is not in the table gets ENOSYS, as does one newer than the agreed version.
"""
_FLAGS = {
    "SUBMOUNTS": "with `announce_submounts`",
    "ALLOW_IDMAP": "with `allow_idmap`",
    "POSIX_LOCKS": "unless locks are left to the client",
    "FLOCK_LOCKS": "unless locks are left to the client",
    "WRITEBACK_CACHE": "with the root mount's option `writeback`",
    "POSIX_ACL": "with its `posix_acl`",
    "DONT_MASK": "with its `posix_acl`",
    "SECURITY_CTX": "with its `security_label`",
}


def flag_names(flags: int) -> list[str]:
    """The names of INIT flags, by bit."""
    return [name for name, bit in abi.INIT_FLAGS.items() if flags & bit]


def support_table() -> str:
    """The whole document."""
    lines = [
        _INTRODUCTION,
        "| opcode | name | since | supported | changes files | |",
        "|---:|---|---|---|---|---|",
    ]
    for row in OPCODES:
        since = f"7.{row.since}" if row.since else ""
        changes = "yes" if row.mutating else ""
        lines.append(
            f"| {row.number} | {row.name} | {since} | {row.status} | {changes} | {row.note} |"
        )
    lines += ["", "## INIT flags asked for", ""]
    lines += [f"- {name}" for name in flag_names(session.ALWAYS_WANTED)]
    lines += [f"- {name}, {when}" for name, when in _FLAGS.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(support_table(), end="")
