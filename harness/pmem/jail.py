"""What the process that builds an image may do: read its source, and talk to us."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from harness.sandbox import SandboxOptions
from harness.sandbox.allowed import CHECKS, NEEDED, REFUSED
from harness.sandbox.idmaps import IdMap
from harness.sandbox.seccomp import Check, Policy

_NEEDED: Final = {
    "reading the source": """
        close dup faccessat faccessat2 fstat getdents64 getxattr lgetxattr listxattr llistxattr
        lseek newfstatat pread64 preadv preadv2 readlinkat statx
    """,
    "metadata and the table of mappings": "ftruncate memfd_create pwrite64 pwritev pwritev2",
    "the socket": "recvfrom recvmsg sendmsg sendto",
    "/dev/fuse": "readv writev",
    "who one is": "getegid geteuid getgid getuid",
}

# Root's own files are not protected from root by anything else.
_WRITING: Final = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC

POLICY: Final = Policy(
    frozenset(
        name
        for names in (*_NEEDED.values(), NEEDED["waiting"], NEEDED["Python and the C library"])
        for name in names.split()
    ),
    {**CHECKS, "openat": (Check(2, (os.O_RDONLY,), _WRITING),)},
    REFUSED,
)

# Files of every user are read, without access times; nothing is ever written to.
_MODCAPS: Final = ":".join(
    f"-{name}"
    for name in (
        "chown", "dac_override", "fsetid", "setgid", "setuid", "mknod", "setfcap"
    )
)  # fmt: skip


def jail(source: str, keep: Iterable[int]) -> SandboxOptions:
    """The sandbox of a builder of ``source``, which keeps those descriptors.

    Its user namespace has the ids that ours has, each as itself, so that the image has the owners
    that the source has. Who is not root can bring but one's own.
    """
    root = os.geteuid() == 0
    uids = _own_ids("uid") if root else ((os.geteuid(), os.geteuid(), 1),)
    gids = _own_ids("gid") if root else ((os.getegid(), os.getegid(), 1),)
    return SandboxOptions(
        shared_dir=source,
        uid_map=uids,
        gid_map=gids,
        modcaps=_MODCAPS,
        keep_dac_read_search=True,
        keep_fds=keep,
        rlimit_nofile=0,
    )


def _own_ids(kind: str) -> IdMap:
    lines = Path(f"/proc/self/{kind}_map").read_text().splitlines()
    extents = [[int(word) for word in line.split()] for line in lines]
    return tuple((first, first, count) for first, _, count in extents)
