"""The mounts of the tree that is served, which both sides must have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from harness.migration.stream import Packer, StateError, Unpacker
from vfs import abi
from vfs.dentry import Dentry
from vfs.mount import Mount
from vfs.superblock import Superblock

_NO_PARENT: Final = 0xFFFFFFFF
_PATH_MAX: Final = 1 << 16
_NAME_MAX: Final = 64
MOUNTS_MAX: Final = 100_000


class MountRecord(NamedTuple):
    """One mount. ``parent`` and ``superblock`` are numbers in the order of their appearance;
    ``mountpoint`` and ``root`` are paths in the parent's file system, and in its own.
    """

    parent: int
    mountpoint: bytes
    superblock: int
    type: bytes
    root: bytes
    flags: int

    def pack(self) -> Packer:
        out = Packer()
        out.u32(self.parent)
        out.blob(self.mountpoint)
        out.u32(self.superblock)
        out.blob(self.type)
        out.blob(self.root)
        out.u32(self.flags)
        return out

    @classmethod
    def unpack(cls, data: Unpacker) -> MountRecord:
        parent, mountpoint = data.u32(), data.blob(_PATH_MAX)
        superblock, kind = data.u32(), data.blob(_NAME_MAX)
        return cls(parent, mountpoint, superblock, kind, data.blob(_PATH_MAX), data.u32())


class MountTable:
    """The mounts below a root, and their superblocks, numbered. Everything is borrowed."""

    def __init__(self, root: Mount) -> None:
        """Needs the VFS lock."""
        self.mounts: dict[Mount, int] = {}
        self.superblocks: dict[Superblock, int] = {}
        for mount in root.tree():
            self.mounts[mount] = len(self.mounts)
            self.superblocks.setdefault(mount.superblock, len(self.superblocks))

    def records(self) -> Iterator[MountRecord]:
        for number, mount in enumerate(self.mounts):
            parent, mountpoint = _NO_PARENT, b""
            if number:
                assert mount.mountpoint is not None
                parent, mountpoint = self.mounts[mount.parent], path_of(mount.mountpoint)
            flags = mount.flags | mount.superblock.flags & abi.MS_RDONLY
            yield MountRecord(
                parent, mountpoint, self.superblocks[mount.superblock],
                mount.superblock.type.name.encode(), path_of(mount.root), flags,
            )  # fmt: skip

    def match(self, records: list[MountRecord]) -> tuple[list[Mount], list[Superblock]]:
        """Our mounts and superblocks by the numbers that they have in ``records``.

        Raises: StateError that says what is mounted on one side only.
        """
        mounts: list[Mount] = []
        superblocks: list[Superblock] = []
        places = {
            (self.mounts[mount.parent], path_of(mount.mountpoint)): mount
            for mount, number in self.mounts.items()
            if number and mount.mountpoint is not None
        }
        root = next(iter(self.mounts))
        ours = list(self.records())
        for number, record in enumerate(records):
            mount: Mount | None = root
            if number:
                if record.parent >= number:
                    raise StateError("a mount comes before what it is mounted on")
                mount = places.get((self.mounts[mounts[record.parent]], record.mountpoint))
            where = _shown(record)
            if mount is None or mount in mounts:
                raise StateError(f"{where} is mounted there and not here: {_SAME}")
            mine = ours[self.mounts[mount]]
            if (record.type, record.root, record.flags) != (mine.type, mine.root, mine.flags):
                raise StateError(f"{where} is mounted there, {_shown(mine)} here: {_SAME}")
            if record.superblock > len(superblocks):
                raise StateError("superblocks are out of order")
            if record.superblock == len(superblocks) and mount.superblock not in superblocks:
                superblocks.append(mount.superblock)
            elif superblocks[record.superblock : record.superblock + 1] != [mount.superblock]:
                raise StateError(f"{where} is another file system there than here: {_SAME}")
            mounts.append(mount)
        for mount in self.mounts:
            if mount not in mounts:
                where = _shown(ours[self.mounts[mount]])
                raise StateError(f"{where} is mounted here and not there: {_SAME}")
        return mounts, superblocks


_SAME: Final = "start both sides with the same --mount, and leave their mounts alone"


def _shown(record: MountRecord) -> str:
    path = record.mountpoint.decode(errors="replace")
    read_only = ",ro" if record.flags & abi.MS_RDONLY else ""
    kind = record.type.decode(errors="replace")
    return f"type={kind},dst=/{path}{read_only} (flags {record.flags:#x})"


def names_of(dentry: Dentry) -> list[bytes]:
    """The names that lead to ``dentry`` from the root of its file system."""
    names = []
    while dentry.parent is not dentry:
        names.append(dentry.name)
        dentry = dentry.parent
    names.reverse()
    return names


def path_of(dentry: Dentry) -> bytes:
    """The same as one string."""
    return b"/".join(names_of(dentry))
