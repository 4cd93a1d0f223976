"""The budget of descriptors: how many there are, and which are given up for others."""

from __future__ import annotations

import errno
import itertools
import os
import resource
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, ParamSpec

from fsimpl.passthrough import oslib
from fsimpl.passthrough.handle import PROMPT_DATA, HostHandle, open_link
from vfs import abi
from vfs.errors import oserror

if TYPE_CHECKING:
    from vfs.dentry import Dentry, DentryCache
    from vfs.superblock import Superblock

P = ParamSpec("P")

# How many descriptors go at once when they run out.
_RECLAIM_BATCH: Final = 64
# How many host mounts are held open for the sake of parked handles.
_ANCHORS_MAX: Final = 64
_ANCHOR_FLAGS: Final = abi.O_RDONLY | abi.O_DIRECTORY | abi.O_CLOEXEC
_LINKS_FLAGS: Final = abi.O_PATH | abi.O_DIRECTORY | abi.O_CLOEXEC


class MountAnchor:
    """A descriptor that finds files by handle on one host mount. ``users`` are the handles parked
    there, and the superblocks whose root is on it.
    """

    __slots__ = ("fd", "mount", "users")

    def __init__(self, fd: int, mount: bytes) -> None:
        self.fd = fd
        self.mount = mount
        self.users = 0


class DescriptorBudget:
    """Bounds what the passthrough mounts of one VFS take of RLIMIT_NOFILE. Needs the VFS lock.

    Every inode starts with a descriptor. ``ceiling`` is the descriptor number from which on others
    are given up for each new one, so that some are left for sockets and open files; the kernel
    gives out the lowest free number, so the latest one, ``newest``, tells how full it is.

    Given up are first the descriptors of ``parkable`` handles, least recently used first (by a
    second chance), as long as their file system can find the file again by its file handle; then
    unused dentries with their inodes. ``links`` is a descriptor of /proc/self/fd.
    """

    __slots__ = (
        "_owns_links", "_unparkable", "anchors", "ceiling", "links", "newest", "parkable", "stat",
        "superblocks",
    )  # fmt: skip

    def __init__(self, links: int | None = None) -> None:
        """``links`` is borrowed; without it /proc must be mounted when the first mount is made."""
        self._owns_links = links is None
        self.links = -1 if links is None else links
        self.newest = 0
        self.ceiling = _descriptor_ceiling()
        self.parkable: OrderedDict[HostHandle, None] = OrderedDict()
        self.anchors: dict[bytes, MountAnchor] = {}
        self._unparkable: set[bytes] = set()
        self.superblocks: set[Superblock] = set()
        self.stat = oslib.StatBuffer()

    def open_links(self) -> None:
        """Have ``links``, for a mount that is about to ``join``. Raises: ENOENT without /proc."""
        if self.links < 0:
            self.links = os.open("/proc/self/fd", _LINKS_FLAGS)

    def join(self, superblock: Superblock) -> None:
        """A mount begins."""
        self.ceiling = _descriptor_ceiling()
        self.superblocks.add(superblock)

    def leave(self, superblock: Superblock) -> None:
        """A mount ends; the last one closes the door."""
        self.superblocks.discard(superblock)
        if not self.superblocks:
            self._unparkable.clear()
            if self._owns_links and self.links >= 0:
                os.close(self.links)
                self.links = -1

    # Room

    def require(self) -> None:
        """Raises: ENFILE if the budget is used up, before anything is changed on the host."""
        if self.newest < self.ceiling:
            return
        self.ceiling = _descriptor_ceiling()
        self.newest = self._lowest_free()
        # What is given up may have a number from above the ceiling, which leaves no room below it.
        while self.newest >= self.ceiling:
            if not self._reclaim():
                raise oserror(errno.ENFILE)
            self.newest = self._lowest_free()

    def _lowest_free(self) -> int:
        """The descriptor that the kernel would give out now: closed files do not tell ``newest``.
        Not below the ceiling if there is none.
        """
        try:
            fd = os.dup(self.links)
        except OSError:
            return self.ceiling
        os.close(fd)
        return fd

    def make(self, make: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> int:
        """The descriptor that ``make(...)`` gives, after making room for it where that is needed.

        Raises: ENFILE when nothing is left to give up; what ``make`` raises.
        """
        self.require()
        while True:
            try:
                return make(*args, **kwargs)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
            self.ceiling = _descriptor_ceiling()
            if not self._reclaim():
                raise oserror(errno.ENFILE)

    def open(self, handle: HostHandle, flags: int) -> int:
        """``handle.open(flags)``, below the ceiling. Raises: ENFILE."""
        fd = handle.fd
        if fd >= 0 and self.newest < self.ceiling:
            # The common case without the calls that it takes to be ready for the others.
            handle.used = True
            try:
                fd = os.open(b"%d" % fd, flags | PROMPT_DATA, dir_fd=self.links)
            except OSError:
                pass
            else:
                if fd < self.ceiling:
                    return fd
                os.close(fd)
        with handle.pinned():
            while True:
                fd = self.make(handle.open, flags)
                if fd < self.ceiling:
                    return fd
                self.ceiling = _descriptor_ceiling()
                if fd < self.ceiling:
                    return fd
                os.close(fd)
                if not self._reclaim():
                    raise oserror(errno.ENFILE)

    def _reclaim(self) -> bool:
        """Give descriptors up; whether there were any."""
        # The second round meets those to whom the first gave their second chance.
        return self._park_some() or self._park_some() or self._drop_unused()

    def _drop_unused(self) -> bool:
        for dcache in {id(s.vfs): s.vfs.dcache for s in self.superblocks}.values():
            oldest = self._unused(dcache)
            for dentry in oldest:
                if dentry in dcache.lru:
                    dcache.drop(dentry)
            if oldest:
                return True
        return False

    def _unused(self, dcache: DentryCache) -> list[Dentry]:
        mine = (d for d in dcache.lru if d.superblock in self.superblocks and d.inode is not None)
        return list(itertools.islice(mine, _RECLAIM_BATCH))

    # Handles

    def add(self, handle: HostHandle, parkable: bool) -> None:
        """``handle`` has a descriptor now; ``parkable`` if it may be asked to give it up."""
        if parkable and handle.mount not in self._unparkable:
            self.parkable[handle] = None
        if handle.fd > self.newest:
            self.newest = handle.fd

    def close(self, handle: HostHandle) -> None:
        """``handle`` is not needed any more."""
        fd, handle.fd = handle.fd, -1
        if fd >= 0:
            self.parkable.pop(handle, None)
            self._close(fd)
        elif handle.anchor is not None:
            self.leave_anchor(handle.anchor)
            handle.anchor = None

    def _close(self, fd: int) -> None:
        os.close(fd)
        if fd < self.newest:
            self.newest = fd

    def _park_some(self) -> bool:
        parkable = self.parkable
        parked = 0
        for _ in range(len(parkable)):
            handle, _ = parkable.popitem(last=False)
            if handle.pins or handle.used:
                handle.used = False
                parkable[handle] = None
            elif self._park(handle):
                parked += 1
                if parked == _RECLAIM_BATCH:
                    break
        return parked > 0

    def _park(self, handle: HostHandle) -> bool:
        """Whether ``handle`` gave up its descriptor. If it may later on, it is in the queue again.

        A file whose last name is gone keeps it: the descriptor is what keeps the file.
        """
        raw = self.stat.of(handle.fd)
        if not int.from_bytes(raw[16:20], "little"):
            self.parkable[handle] = None
            return False
        anchor = self._anchor(handle)
        if anchor is None:
            if handle.mount not in self._unparkable:
                self.parkable[handle] = None
            return False
        anchor.users += 1
        handle.anchor = anchor
        fd, handle.fd = handle.fd, -1
        self._close(fd)
        return True

    def _anchor(self, handle: HostHandle) -> MountAnchor | None:
        """Where ``handle``'s file can be found again, having its file handle; None if it cannot."""
        if handle.file_handle is None:
            try:
                handle.file_handle = oslib.name_to_handle_at(handle.fd, b"")
            except OSError:
                handle.file_handle = b""
                self._unparkable.add(handle.mount)
        if not handle.file_handle:
            return None
        anchor = self.anchors.get(handle.mount)
        return self._make_anchor(handle) if anchor is None else anchor

    def _make_anchor(self, handle: HostHandle) -> MountAnchor | None:
        """For the mount of ``handle``, which has a file handle. A directory, because opening it has
        no effect, and because it would keep a file's content after its last name is gone.
        """
        mount = handle.mount
        place = handle if handle.is_dir else None
        if place is None:
            place = next((h for h in self.parkable if h.is_dir and h.mount == mount), None)
        if place is None or len(self.anchors) >= _ANCHORS_MAX:
            return None
        try:
            fd = open_directory(place.fd, self.links)
        except OSError:
            return None
        try:
            assert handle.file_handle
            os.close(oslib.open_by_handle_at(fd, handle.file_handle))
        except OSError:
            self._unparkable.add(mount)
            os.close(fd)
            return None
        anchor = self.anchors[mount] = MountAnchor(fd, mount)
        return anchor

    def anchor_root(self, fd: int, mount: bytes) -> MountAnchor:
        """The anchor of the host mount ``mount``, whose directory ``fd`` (borrowed) is shared: made
        while there are descriptors. The caller gives it back with ``leave_anchor``.

        Raises: EOPNOTSUPP (the file system has no file handles), EPERM (no CAP_DAC_READ_SEARCH).
        """
        anchor = self.anchors.get(mount)
        if anchor is None:
            file_handle = oslib.name_to_handle_at(fd, b"")
            place = open_directory(fd, self.links)
            try:
                os.close(oslib.open_by_handle_at(place, file_handle))
            except BaseException:
                os.close(place)
                raise
            anchor = self.anchors[mount] = MountAnchor(place, mount)
        anchor.users += 1
        return anchor

    def leave_anchor(self, anchor: MountAnchor) -> None:
        """One user less; without any it is closed."""
        anchor.users -= 1
        if not anchor.users:
            del self.anchors[anchor.mount]
            self._close(anchor.fd)

    def unpark(self, handle: HostHandle) -> int:
        """Get ``handle`` a descriptor again. Raises: ESTALE (the file is gone), ENFILE."""
        anchor, file_handle = handle.anchor, handle.file_handle
        if anchor is None or not file_handle:
            raise oserror(errno.ESTALE)
        return self.give(handle, self.make(oslib.open_by_handle_at, anchor.fd, file_handle))

    def give(self, handle: HostHandle, fd: int) -> int:
        """The parked ``handle`` has ``fd`` (taken over) now; returns it."""
        handle.fd = fd
        if handle.anchor is not None:
            self.leave_anchor(handle.anchor)
            handle.anchor = None
        self.add(handle, True)
        return fd


def open_directory(fd: int, links: int) -> int:
    """The directory that ``fd`` stands for, opened for reading."""
    return open_link(b"%d" % fd, _ANCHOR_FLAGS, links)


def _descriptor_ceiling() -> int:
    """Leaves a sixteenth of RLIMIT_NOFILE, and at least 16, to others."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return abi.MAX_LFS_FILESIZE
    return limit - max(16, limit // 16)
