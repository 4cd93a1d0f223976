"""Record locks and whole-file locks. Linux: fs/locks.c.

``LockManager`` knows the locks of one set of clients. An *owner* is whatever POSIX says loses its
locks together (a process; for open-file-description locks, the description); a *holder* is the
open description through which a lock was taken, and whose end ends it.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from vfs.errors import InvariantViolation, WouldBlock, oserror
from vfs.wait import WaitQueue

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from vfs.inode import Inode

F_RDLCK: Final = 0
F_WRLCK: Final = 1
F_UNLCK: Final = 2
OFFSET_MAX: Final = (1 << 63) - 1


class RecordLock:
    """Linux: ``struct file_lock``. Bytes ``start`` to ``end``, both included; immutable."""

    __slots__ = ("end", "holder", "kind", "owner", "pid", "start")

    def __init__(
        self, owner: Hashable, holder: object, kind: int, start: int, end: int, pid: int
    ) -> None:
        self.owner = owner
        self.holder = holder
        self.kind = kind
        self.start = start
        self.end = end
        self.pid = pid

    def conflicts(self, other: RecordLock) -> bool:
        """Linux: ``posix_locks_conflict``."""
        return (
            self.owner != other.owner
            and self.start <= other.end
            and other.start <= self.end
            and (self.kind == F_WRLCK or other.kind == F_WRLCK)
        )

    def part(self, start: int, end: int) -> RecordLock:
        """The same lock on other bytes."""
        return RecordLock(self.owner, self.holder, self.kind, start, end, self.pid)

    def __repr__(self) -> str:
        kind = "write" if self.kind == F_WRLCK else "read"
        return f"RecordLock({kind} {self.start}-{self.end} owner={self.owner!r})"


class FileLocks:
    """Linux: ``file_lock_context``. The locks of one inode, and who waits for them to go.

    ``flocks`` maps a flock(2) owner to the kind it holds and its holder.
    """

    __slots__ = ("flocks", "records", "waiters")

    def __init__(self) -> None:
        self.records: list[RecordLock] = []
        self.flocks: dict[Hashable, tuple[int, object]] = {}
        self.waiters = WaitQueue()


class LockManager:
    """Advisory locks by inode. Needs the VFS lock. Holds a reference on every locked inode.

    Nobody is refused for a deadlock (Linux: EDEADLK): whose process waits for whose is known to
    the client alone.
    """

    __slots__ = ("_inodes",)

    def __init__(self) -> None:
        self._inodes: dict[Inode, FileLocks] = {}

    def __len__(self) -> int:
        """How many inodes are locked or waited for."""
        return len(self._inodes)

    def items(self) -> Iterator[tuple[Inode, FileLocks]]:
        """What is locked or waited for."""
        return iter(self._inodes.items())

    def _of(self, inode: Inode) -> FileLocks:
        locks = self._inodes.get(inode)
        if locks is None:
            locks = self._inodes[inode] = FileLocks()
            inode.get()
        return locks

    def _settle(self, inode: Inode, locks: FileLocks) -> None:
        """After locks went: wake who waits; forget an inode without locks.

        Waiters try again and find, or make, a new context.
        """
        if not locks.records and not locks.flocks and self._inodes.get(inode) is locks:
            del self._inodes[inode]
            locks.waiters.wake_all()
            inode.put()
        else:
            locks.waiters.wake_all()

    def test(
        self, inode: Inode, owner: Hashable, kind: int, start: int, end: int
    ) -> RecordLock | None:
        """F_GETLK: a lock that stands in the way of such a lock. Linux: ``posix_test_lock``."""
        locks = self._inodes.get(inode)
        if locks is None:
            return None
        wanted = RecordLock(owner, None, kind, start, end, 0)
        return next((lock for lock in locks.records if lock.conflicts(wanted)), None)

    def set_record(
        self,
        inode: Inode,
        owner: Hashable,
        holder: object,
        kind: int,
        start: int,
        end: int,
        pid: int = 0,
    ) -> None:
        """F_SETLK: lock or unlock a range, replacing what ``owner`` has there.

        Raises: EINVAL; WouldBlock (an EAGAIN) while another owner's lock is in the way.
        """
        if kind not in (F_RDLCK, F_WRLCK, F_UNLCK) or not 0 <= start <= end <= OFFSET_MAX:
            raise oserror(errno.EINVAL)
        locks = self._inodes.get(inode)
        if locks is None:
            if kind == F_UNLCK:
                return
            locks = self._of(inode)
        wanted = RecordLock(owner, holder, kind, start, end, pid)
        if kind != F_UNLCK and any(lock.conflicts(wanted) for lock in locks.records):
            raise WouldBlock(locks.waiters)
        self._replace(locks, wanted)
        # Unlocking and downgrading let others in.
        if kind != F_WRLCK:
            self._settle(inode, locks)

    @staticmethod
    def _replace(locks: FileLocks, wanted: RecordLock) -> None:
        """Linux: ``posix_lock_inode``: the owner's locks leave the range; what touches joins."""
        kept: list[RecordLock] = []
        start, end = wanted.start, wanted.end
        for lock in locks.records:
            if lock.owner != wanted.owner:
                kept.append(lock)
            elif lock.kind == wanted.kind and lock.holder is wanted.holder:
                if lock.end + 1 < start or end + 1 < lock.start:
                    kept.append(lock)
                else:
                    start, end = min(start, lock.start), max(end, lock.end)
            elif lock.end < wanted.start or wanted.end < lock.start:
                kept.append(lock)
            else:
                if lock.start < wanted.start:
                    kept.append(lock.part(lock.start, wanted.start - 1))
                if lock.end > wanted.end:
                    kept.append(lock.part(wanted.end + 1, lock.end))
        if wanted.kind != F_UNLCK:
            kept.append(wanted.part(start, end))
        kept.sort(key=lambda lock: lock.start)
        locks.records = kept

    def set_flock(self, inode: Inode, owner: Hashable, holder: object, kind: int) -> None:
        """flock(2). A conversion gives up the old lock first, as Linux's ``flock_lock_inode`` does.

        Raises: EINVAL; WouldBlock (an EAGAIN).
        """
        if kind not in (F_RDLCK, F_WRLCK, F_UNLCK):
            raise oserror(errno.EINVAL)
        locks = self._inodes.get(inode)
        if locks is None:
            if kind == F_UNLCK:
                return
            locks = self._of(inode)
        held = locks.flocks.get(owner)
        if held is not None and held[0] == kind:
            return
        others = [other for name, (other, _) in locks.flocks.items() if name != owner]
        blocked = kind != F_UNLCK and any(F_WRLCK in (kind, other) for other in others)
        if not blocked and kind != F_UNLCK:
            locks.flocks[owner] = (kind, holder)
        elif held is not None:
            del locks.flocks[owner]
        if held is not None:
            self._settle(inode, locks)
        if blocked:
            raise WouldBlock(locks.waiters)

    def held_through(
        self, inode: Inode, holder: object
    ) -> tuple[list[RecordLock], dict[Hashable, int]]:
        """What was locked through one description: records, and the kinds of flocks by owner."""
        locks = self._inodes.get(inode)
        if locks is None:
            return [], {}
        records = [lock for lock in locks.records if lock.holder is holder]
        flocks = {owner: kind for owner, (kind, by) in locks.flocks.items() if by is holder}
        return records, flocks

    def unlock_owner(self, inode: Inode, owner: Hashable) -> None:
        """A descriptor was closed: ``owner``'s record locks go. Linux: ``locks_remove_posix``."""
        locks = self._inodes.get(inode)
        if locks is not None:
            kept = [lock for lock in locks.records if lock.owner != owner]
            if len(kept) != len(locks.records):
                locks.records = kept
                self._settle(inode, locks)

    def release(self, inode: Inode, holder: object) -> None:
        """A description ended: what was locked through it goes. Linux: ``locks_remove_file``."""
        locks = self._inodes.get(inode)
        if locks is not None:
            locks.records = [lock for lock in locks.records if lock.holder is not holder]
            locks.flocks = {
                owner: held for owner, held in locks.flocks.items() if held[1] is not holder
            }
            self._settle(inode, locks)

    def check(self) -> None:
        """Raises InvariantViolation if locks that exclude each other are held at once."""
        for inode, locks in self._inodes.items():
            if not locks.records and not locks.flocks:
                raise InvariantViolation(f"{inode!r} has a context without locks")
            for index, lock in enumerate(locks.records):
                if lock.start > lock.end:
                    raise InvariantViolation(f"{lock!r} is empty")
                for other in locks.records[index + 1 :]:
                    overlap = lock.start <= other.end and other.start <= lock.end
                    if lock.conflicts(other) or (lock.owner == other.owner and overlap):
                        raise InvariantViolation(f"{lock!r} and {other!r} exclude each other")
            kinds = [kind for kind, _ in locks.flocks.values()]
            if F_WRLCK in kinds and len(kinds) > 1:
                raise InvariantViolation(f"{inode!r}: an exclusive flock is shared")
