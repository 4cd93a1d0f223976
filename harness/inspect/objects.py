"""Dentries, inodes, open files, locks, and who holds a reference on what."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

from harness.inspect.mounts import find, flags_of
from vfs import abi
from vfs.dentry import Dentry
from vfs.dpath import d_path
from vfs.errors import InvariantViolation
from vfs.file import FileDescription
from vfs.inode import Inode
from vfs.locks import F_WRLCK, OFFSET_MAX
from vfs.mount import VirtualDentry
from vfs.mountinfo import dentry_path
from vfs.refs import RefCounted
from vfs.task import Task

_POLICIES: Final = {0: "pinned", 1: "valid", 2: "revalidated"}
_TYPES: Final = {
    abi.S_IFREG: "file",
    abi.S_IFDIR: "directory",
    abi.S_IFLNK: "symlink",
    abi.S_IFCHR: "character device",
    abi.S_IFBLK: "block device",
    abi.S_IFIFO: "FIFO",
    abi.S_IFSOCK: "socket",
}
_DENTRIES_MAX: Final = 10_000


def dentries(task: Task, path: str = "/", depth: int | None = None) -> dict[str, Any]:
    """The dentry cache at and below `path` of one filesystem, as a tree. Raises: as stat(2)."""
    with find(task, path, follow=False) as place:
        budget = [_DENTRIES_MAX]
        found = _dentry(place.dentry, budget, depth)
        found["path"] = os.fsdecode(d_path(place, task.fs.root))
        found["cache"] = _POLICIES[place.dentry.superblock.dcache]
        # Not the reference that this view holds.
        found["references"] -= 1
        return found


def _dentry(dentry: Dentry, budget: list[int], depth: int | None) -> dict[str, Any]:
    budget[0] -= 1
    inode = dentry.inode
    below = sorted((dentry.children or {}).values(), key=lambda child: child.name)
    shown = below if depth is None or depth > 0 else []
    children = []
    for child in shown:
        if budget[0] <= 0:
            break
        children.append(_dentry(child, budget, None if depth is None else depth - 1))
    return {
        "name": os.fsdecode(dentry.name),
        "inode": None if inode is None else inode.ino,
        "type": None if inode is None else _TYPES.get(inode.mode & abi.S_IFMT, "unknown"),
        "mounted": dentry.mounted,
        "references": dentry.count,
        "pinned": dentry.pinned,
        "hashed": dentry.hashed,
        "unused": dentry.count == 0,
        "children": children,
        "left_out": len(below) - len(children),
    }


def inode(task: Task, path: str) -> dict[str, Any]:
    """The inode at `path`, and the names in the cache that lead to it. Raises: as lstat(2)."""
    with find(task, path, follow=False) as place:
        found = place.inode
        superblock = found.superblock
        found.refresh()
        names = []
        if superblock.root is not None:
            cached = task.vfs.dcache.walk(superblock.root)
            names = [os.fsdecode(dentry_path(d)) for d in cached if d.inode is found]
        return {
            "class": type(found).__name__,
            "filesystem": superblock.type.name,
            "device": f"{abi.major(superblock.dev)}:{abi.minor(superblock.dev)}",
            "ino": found.ino,
            "type": _TYPES.get(found.mode & abi.S_IFMT, "unknown"),
            "mode": f"{found.mode & 0o7777:04o}",
            "uid": found.uid,
            "gid": found.gid,
            "links": found.nlink,
            "size": found.size,
            "references": found.count,
            "names": names,
        }


def fds(task: Task) -> list[dict[str, Any]]:
    """The task's open descriptors, and the descriptions behind them."""
    found = []
    for number, file in task.files:
        access = "rw" if file.readable and file.writable else "r" if file.readable else ""
        place = VirtualDentry(file.mount, file.dentry)
        found.append(
            {
                "fd": number,
                "path": os.fsdecode(d_path(place, task.fs.root)),
                "access": access or ("w" if file.writable else "path"),
                "flags": f"{file.flags:#o}",
                "position": file.position,
                "cloexec": task.files.cloexec(number),
                "references": file.count,
                "class": type(file).__name__,
            }
        )
    return found


def locks(task: Task) -> list[dict[str, Any]]:
    """Every advisory lock of the VFS."""
    rows = []
    for inode, held in task.vfs.locks.items():
        base = {"filesystem": inode.superblock.type.name, "ino": inode.ino}
        for record in held.records:
            end = None if record.end == OFFSET_MAX else record.end
            kind = "write" if record.kind == F_WRLCK else "read"
            rows.append(
                {**base, "kind": "POSIX", "access": kind, "start": record.start, "end": end,
                 "pid": record.pid, "waiters": len(held.waiters)}
            )  # fmt: skip
        for flock, _ in held.flocks.values():
            kind = "write" if flock == F_WRLCK else "read"
            rows.append(
                {**base, "kind": "FLOCK", "access": kind, "start": 0, "end": None, "pid": None,
                 "waiters": len(held.waiters)}
            )  # fmt: skip
    return rows


def devices(task: Task) -> list[dict[str, Any]]:
    """The drivers that are registered."""
    return [
        {
            "name": device.name,
            "kind": "block" if device.kind == abi.S_IFBLK else "character",
            "major": abi.major(device.rdev),
            "minor": abi.minor(device.rdev),
            "mode": f"{device.mode:04o}",
            "class": type(device).__name__,
        }
        for device in task.vfs.devices
    ]


def tasks(task: Task) -> list[dict[str, Any]]:
    """Every task of the VFS."""
    return [
        {
            "pid": other.pid,
            "comm": os.fsdecode(other.comm),
            "uid": other.cred.fsuid,
            "gid": other.cred.fsgid,
            "groups": sorted(other.cred.groups),
            "capabilities": f"{other.cred.caps:#x}",
            "umask": f"{other.fs.umask:04o}",
            "namespace": other.namespace.id,
            "user_namespace": other.cred.user_ns.level,
            "root": os.fsdecode(d_path(other.fs.root, task.fs.root)),
            "cwd": os.fsdecode(d_path(other.fs.cwd, task.fs.root)),
            "fds": len(other.files.numbers()),
            "fds_limit": other.files.limit,
            "own": other is task,
        }
        for other in task.vfs.tasks
    ]


def statistics(task: Task) -> dict[str, Any]:
    """How many objects of each kind live, and how large the caches are."""
    vfs = task.vfs
    return {
        "live": dict(sorted(vfs.ledger.live.items())),
        "tracing": vfs.ledger.tracing,
        "dentries_unused": len(vfs.dcache.lru),
        "dentries_unused_limit": vfs.dcache.limit,
        "locked_inodes": len(vfs.locks),
        "superblocks": len(vfs.superblocks),
        "mount_namespaces": len(vfs.namespaces),
        "mounts": sum(len(namespace.mounts) for namespace in vfs.namespaces),
        "tasks": len(vfs.tasks),
        "devices": len(list(vfs.devices)),
    }


def check(task: Task) -> dict[str, Any]:
    """Every invariant of the VFS; the first one that is broken, if any is."""
    try:
        task.vfs.check()
    except InvariantViolation as violation:
        return {"broken": str(violation)}
    return {"broken": None}


def refs(task: Task, path: str | None = None) -> list[dict[str, Any]]:
    """Who holds the mount, the dentry and the inode at `path`, as far as can be found from the
    tasks down; with tracing, the lines that took what is held. Without a path, what lives.

    Raises: as lstat(2).
    """
    if path is None:
        return [
            {"object": kind, "references": count, "holders": [], "lines": []}
            for kind, count in sorted(task.vfs.ledger.live.items())
        ]
    with find(task, path, follow=False) as place:
        rows = []
        objects: list[RefCounted | Inode] = [place.mount, place.dentry]
        if place.dentry.inode is not None:
            objects.append(place.dentry.inode)
        for held in objects:
            mine = 0 if isinstance(held, Inode) else 1
            lines = [] if isinstance(held, Inode) else task.vfs.ledger.holders(held)
            rows.append(
                {
                    "object": repr(held),
                    "references": held.count - mine,
                    "holders": [text for text, item in _holders(task) if item is held]
                    + _structure(held),
                    # The latest is this view's own.
                    "lines": list(lines[: len(lines) - mine]),
                }
            )
        return rows


def _holders(task: Task) -> Iterator[tuple[str, object]]:
    """Pairs of a holder and what it holds, over all tasks."""
    seen: set[FileDescription] = set()
    for other in task.vfs.tasks:
        who = f"task {other.pid}"
        for name, place in (("root", other.fs.root), ("cwd", other.fs.cwd)):
            yield f"{name} of {who}", place.mount
            yield f"{name} of {who}", place.dentry
        for number, file in other.files:
            if file in seen:
                continue
            seen.add(file)
            yield f"fd {number} of {who}", file.mount
            yield f"fd {number} of {who}", file.dentry


def _structure(held: RefCounted | Inode) -> list[str]:
    """What is held by its place in the trees."""
    if isinstance(held, Dentry):
        found = [f"child {os.fsdecode(name)}" for name in held.children or ()]
        found += ["its name, which the cache is the only place of"] if held.pinned else []
        found += [f"{held.mounted} mount(s) on it"] if held.mounted else []
        found += [f"root of mount {m.id}" for m in held.superblock.mounts if m.root is held]
        return found
    if isinstance(held, Inode):
        return ["its dentries"]
    return ["the tree of its namespace"] if getattr(held, "namespace", None) else []


def busy(task: Task, path: str) -> dict[str, Any]:
    """What makes umount(2) of the mount at `path` fail with EBUSY, and what else is in its way.

    Raises: as stat(2).
    """
    with find(task, path) as place:
        mount = place.mount
        reasons = [
            {
                "kind": "mount",
                "what": f"{child.superblock.type.name} (mount {child.id}) is mounted in it",
                "cure": "unmount that first, or use umount -l",
            }
            for child in mount.children.values()
        ]
        found = 0
        for text, held in _holders(task):
            if held is mount:
                found += 1
                cure = "close it" if text.startswith("fd") else "have it go elsewhere"
                reasons.append({"kind": "holder", "what": text, "cure": cure})
        # One is the tree's, one is this view's.
        others = mount.count - 2 - found
        if others > 0:
            reasons.append(
                {
                    "kind": "holder",
                    "what": f"{others} more: files that a client of the daemon has open",
                    "cure": "have the client close them",
                }
            )
        return {
            "mount": mount.id,
            "root": place.is_mount_root,
            "flags": flags_of(mount),
            "locked": mount.locked,
            "busy": bool(reasons),
            "reasons": reasons,
        }
