"""A path walk, step by step: where it stands, who asks, and what decides."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any, Final

from vfs import abi
from vfs.credentials import CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, Credentials
from vfs.dentry import Dentry
from vfs.inode import Inode
from vfs.mount import Mount, VirtualDentry
from vfs.namei import FOLLOW, Walk, get_name
from vfs.permission import generic_permission, inode_permission
from vfs.task import Task

_WANTED: Final = ((abi.R_OK, "read"), (abi.W_OK, "write"), (abi.X_OK, "search"))
_ADVICE: Final = {
    errno.ENOENT: "make it, or correct the name",
    errno.ENOTDIR: "name a directory there",
    errno.EACCES: "change the mode or owner (chmod, chown), or act as another user (as)",
    errno.ELOOP: "break the cycle of symbolic links, or mount without nosymfollow",
    errno.ENAMETOOLONG: "a name has 255 bytes, a path 4095",
    errno.EROFS: "remount read-write (mount -o remount,rw)",
    errno.EPERM: "take the immutable flag off, or act as its owner",
    errno.EISDIR: "a directory is only opened for reading",
}
_NODEV: Final = "remount with dev (mount -o remount,bind,dev)"

Step = dict[str, Any]


def explain(
    task: Task, path: str, read: bool = False, write: bool = False, follow: bool = True
) -> dict[str, Any]:
    """Walk `path` as the task would, and open it for reading and writing as far as asked.

    ``steps`` has what happened in order; ``errno`` is None if it succeeds, and ``advice`` is what
    would change it otherwise. Nothing is opened, and no time of access changes but that of links.
    """
    name = os.fsencode(path)
    start = task.fs.root if name.startswith(b"/") else task.fs.cwd
    steps: list[Step] = []
    try:
        get_name(name)
        walk = _Explaining(task, start, steps)
    except OSError as error:
        return _outcome(steps, error)
    try:
        walk.descend(name)
        walk.finish(FOLLOW if follow else 0)
        _open(walk, steps, task.cred, read, write)
    except OSError as error:
        return _outcome(steps, error)
    finally:
        walk.abandon()
    return _outcome(steps, None)


def _outcome(steps: list[Step], error: OSError | None) -> dict[str, Any]:
    if error is None:
        return {"steps": steps, "errno": None, "name": None, "message": None, "advice": None}
    number = error.errno or 0
    return {
        "steps": steps,
        "errno": number,
        "name": errno.errorcode.get(number, str(number)),
        "message": os.strerror(number),
        "advice": _NODEV if steps and steps[-1]["kind"] == "nodev" else _ADVICE.get(number),
    }


class _Explaining(Walk):
    """The walk itself, which tells what it does. It decides nothing that `Walk` does not."""

    __slots__ = ("steps",)

    def __init__(self, task: Task, start: VirtualDentry, steps: list[Step]) -> None:
        super().__init__(task.vfs, task.cred, task.fs.root, start)
        self.steps = steps
        self._note("start", "/" if start.same(task.fs.root) else ".", "where the path begins")

    def _note(self, kind: str, name: str | bytes, text: str, **more: Any) -> None:
        mount, inode = self.mount, self.dentry.inode
        self.steps.append(
            {
                "kind": kind,
                "name": os.fsdecode(name),
                "text": text,
                "mount": mount.id,
                "filesystem": mount.superblock.type.name,
                "ino": None if inode is None else inode.ino,
                **more,
            }
        )

    def _may_lookup(self) -> None:
        inode = self.dentry.inode
        assert inode is not None
        self._note("permission", self.dentry.name, **judge(inode, self.cred, abi.X_OK))
        super()._may_lookup()

    def _jump_to_root(self, is_link: bool) -> None:
        super()._jump_to_root(is_link)
        self._note("root", "/", "an absolute path goes on at the task's root")

    def stand_at(self, mount: Mount, dentry: Dentry) -> None:
        before = self.mount
        super().stand_at(mount, dentry)
        if mount is not before:
            kind = mount.superblock.type.name
            self._note("mount", dentry.name, f"across to mount {mount.id} ({kind})")

    def _walk_component(self, name: bytes, follow: bool, last: bool = False) -> bytes | None:
        try:
            link = super()._walk_component(name, follow, last)
        except OSError as error:
            if error.errno == errno.ENOENT:
                self._note("missing", name, "there is no such name in it")
            raise
        if link is not None:
            self._note("link", name, "a symbolic link", target=os.fsdecode(link))
        else:
            inode = self.inode
            self._note("component", name, stat.filemode(inode.mode))
        return link


def _open(walk: _Explaining, steps: list[Step], cred: Credentials, read: bool, write: bool) -> None:
    """What open(2) asks of the file. Raises: its OSError."""
    mask = (abi.R_OK if read else 0) | (abi.W_OK if write else 0)
    inode = walk.inode
    if write and inode.is_dir:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if mask:
        walk._note("permission", walk.dentry.name, **judge(inode, cred, mask))
        inode_permission(inode, cred, mask)
    if inode.is_special and not inode.is_dir and walk.mount.flags & abi.MS_NODEV:
        walk._note("nodev", walk.dentry.name, "the mount has nodev")
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    if write:
        if walk.mount.read_only:
            whose = "mount" if walk.mount.flags & abi.MS_RDONLY else "filesystem"
            walk._note("read-only", walk.dentry.name, f"the {whose} is read-only")
        walk.mount.want_write()


def judge(inode: Inode, cred: Credentials, mask: int) -> dict[str, Any]:
    """Whether `cred` may do `mask` to `inode`, and what decides: the ``class`` of permission bits
    (owner, group, others), a capability, or the filesystem itself.
    """
    mode = inode.mode
    if cred.fsuid == inode.uid:
        kind, bits = "owner", mode >> 6 & 7
    elif cred.in_group(inode.gid):
        kind, bits = "group", mode >> 3 & 7
    else:
        kind, bits = "others", mode & 7
    wanted = "+".join(
        "execute" if name == "search" and not inode.is_dir else name
        for bit, name in _WANTED
        if mask & bit
    )
    granted = _granted(inode_permission, inode, cred, mask)
    generic = _granted(generic_permission, inode, cred, mask)
    whose = f"{inode.uid}:{inode.gid} {stat.filemode(mode)}"
    if granted != generic:
        decides = "filesystem" if granted or not mask & abi.W_OK else "read-only or immutable"
    elif granted and mask & ~bits & 7:
        decides = "CAP_DAC_OVERRIDE"
        if not cred.caps >> CAP_DAC_OVERRIDE & 1:
            decides = "CAP_DAC_READ_SEARCH" if cred.caps >> CAP_DAC_READ_SEARCH & 1 else kind
    else:
        decides = kind
    verdict = "granted" if granted else "refused"
    return {
        "text": f"{wanted} {verdict} by {decides}: {whose}",
        "granted": granted,
        "decides": decides,
        "class": kind,
    }


def _granted(ask: Any, inode: Inode, cred: Credentials, mask: int) -> bool:
    try:
        ask(inode, cred, mask)
    except OSError:
        return False
    return True
