"""What can be observed of a target, in a form in which two targets can be compared.

Inode and device numbers are renamed by first appearance. Times are kept apart: two systems never
agree on them, but they must not disagree about their order.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from vfs import abi

_OPEN = abi.O_RDONLY | abi.O_NOFOLLOW | abi.O_NOATIME | abi.O_CLOEXEC
_CHUNK = 1 << 20
_HIGHEST_OBSERVED_FD = 32


class Node(NamedTuple):
    """One name's file. ``identity`` is (st_dev, st_ino); ``content`` depends on the type: a
    symlink's target, a directory's names, a regular file's ((offset, length, hash), ...) of data.
    ``times`` are atime, mtime and ctime in ns.
    """

    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    blocks: int
    rdev: int
    identity: tuple[int, int]
    xattrs: tuple[tuple[bytes, bytes], ...]
    content: Any
    times: tuple[int, int, int]


class Descriptor(NamedTuple):
    """One open descriptor: its F_GETFL and F_GETFD flags, its position (or errno) and its file."""

    flags: int
    cloexec: int
    position: int | str
    file: Node


class TaskState(NamedTuple):
    """What a task carries: cwd (or the errno of getcwd), umask, descriptors by number."""

    cwd: bytes | str
    umask: int
    descriptors: dict[int, Descriptor]


class State(NamedTuple):
    """A tree by path, and the tasks by name."""

    tree: dict[bytes, Node]
    tasks: dict[str, TaskState]


def observe_tree(calls: Any) -> dict[bytes, Node]:
    """Every name from the root of ``calls`` (an object whose methods are the system calls) down.

    Works relative to its cwd, one directory at a time, so that no path is too long. Leaves the
    cwd at the root. Access times stay, but for those of symlinks.
    """
    tree: dict[bytes, Node] = {}
    top = calls.openat(abi.AT_FDCWD, b"/", _OPEN | abi.O_DIRECTORY, 0)
    try:
        tree[b"/"] = _directory(calls, b"/", top, tree)
    finally:
        calls.close(top)
        calls.chdir(b"/")
    return dict(sorted(tree.items()))


def _directory(calls: Any, path: bytes, fd: int, tree: dict[bytes, Node]) -> Node:
    try:
        names = sorted(
            entry.d_name for entry in _entries(calls, fd) if entry.d_name not in (b".", b"..")
        )
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        # Removed where it came from, and still mounted here.
        return _node(calls.fstat(fd), _xattrs(calls, fd), "removed")
    for name in names:
        below = (path if path != b"/" else b"") + b"/" + name
        calls.fchdir(fd)
        stat = calls.lstat(name)
        kind = stat.st_mode & abi.S_IFMT
        if kind in (abi.S_IFDIR, abi.S_IFREG):
            child = calls.openat(abi.AT_FDCWD, name, _OPEN, 0)
            try:
                if kind == abi.S_IFDIR:
                    tree[below] = _directory(calls, below, child, tree)
                else:
                    tree[below] = _node(stat, _xattrs(calls, child), _extents(calls, child))
            finally:
                calls.close(child)
        else:
            content = calls.readlink(name) if kind == abi.S_IFLNK else None
            tree[below] = _node(stat, _name_xattrs(calls, name), content)
    return _node(calls.fstat(fd), _xattrs(calls, fd), tuple(names))


def _node(stat: Any, xattrs: tuple[tuple[bytes, bytes], ...], content: Any) -> Node:
    return Node(
        stat.st_mode, stat.st_nlink, stat.st_uid, stat.st_gid, stat.st_size, stat.st_blocks,
        stat.st_rdev, (stat.st_dev, stat.st_ino), xattrs, content,
        (stat.st_atime_ns, stat.st_mtime_ns, stat.st_ctime_ns),
    )  # fmt: skip


def _entries(calls: Any, fd: int) -> Iterator[Any]:
    while entries := calls.getdents64(fd, 32768):
        yield from entries


def _xattrs(calls: Any, fd: int) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name, calls.fgetxattr(fd, name)) for name in sorted(calls.flistxattr(fd)))


def _name_xattrs(calls: Any, name: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((key, calls.lgetxattr(name, key)) for key in sorted(calls.llistxattr(name)))


def _extents(calls: Any, fd: int) -> tuple[tuple[int, int, str], ...]:
    extents: list[tuple[int, int, str]] = []
    end = 0
    while True:
        try:
            start = calls.lseek(fd, end, abi.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return tuple(extents)
            raise
        end = calls.lseek(fd, start, abi.SEEK_HOLE)
        digest = hashlib.sha256()
        for offset in range(start, end, _CHUNK):
            digest.update(calls.pread64(fd, min(_CHUNK, end - offset), offset))
        extents.append((start, end - start, digest.hexdigest()[:16]))


def observe_task(calls: Any) -> TaskState:
    """What the task that makes ``calls`` carries."""
    umask = calls.umask(0)
    calls.umask(umask)
    try:
        cwd: bytes | str = calls.getcwd()
    except OSError as error:
        cwd = errno.errorcode[error.errno or 0]
    descriptors = {}
    for fd in range(_HIGHEST_OBSERVED_FD):
        try:
            cloexec = calls.fcntl(fd, abi.F_GETFD, 0)
        except OSError:
            continue
        try:
            position: int | str = calls.lseek(fd, 0, abi.SEEK_CUR)
        except OSError as error:
            position = errno.errorcode[error.errno or 0]
        stat = calls.fstat(fd)
        if stat.st_mode & abi.S_IFMT == abi.S_IFDIR and position not in (0, "EBADF"):
            position = "a cookie"
        file = _node(stat, (), None)
        descriptors[fd] = Descriptor(calls.fcntl(fd, abi.F_GETFL, 0), cloexec, position, file)
    return TaskState(cwd, umask, descriptors)


class Renamer:
    """Numbers that mean nothing across systems, renamed by the order in which they appear."""

    def __init__(self) -> None:
        self._names: dict[Any, int] = {}

    def __call__(self, number: Any) -> int:
        return self._names.setdefault(number, len(self._names) + 1)


def lines_of(state: State) -> dict[str, str]:
    """The state as text, without times: what is observed -> what it is."""
    inode, device = Renamer(), Renamer()
    lines: dict[str, str] = {}

    def show(node: Node) -> str:
        special = f" rdev={node.rdev:#x}" if node.rdev else ""
        content = "" if node.content is None else f" {node.content!r}"
        xattrs = f" xattrs={dict(node.xattrs)!r}" if node.xattrs else ""
        return (
            f"{node.mode:06o} {node.uid}:{node.gid} nlink={node.nlink} size={node.size}"
            f" blocks={node.blocks}{special} dev={device(node.identity[0])}"
            f" ino={inode(node.identity)}{content}{xattrs}"
        )

    for path, node in state.tree.items():
        lines[repr(path)[2:-1]] = show(node)
    for name, task in state.tasks.items():
        lines[f"{name}: cwd"] = repr(task.cwd)
        lines[f"{name}: umask"] = f"{task.umask:03o}"
        for fd, open_file in task.descriptors.items():
            flags = f"{open_file.flags:#o} cloexec={open_file.cloexec} at {open_file.position}"
            lines[f"{name}: fd {fd}"] = f"{flags}: {show(open_file.file)}"
    return lines


_TIMES = ("atime", "mtime", "ctime")
_PAIRS = ((0, 1), (0, 2), (1, 2))


def time_contradictions(one: State, other: State) -> Iterator[tuple[str, str, str]]:
    """Where a file's times come in one order here and in the opposite one there.

    Clocks tick at different rates, so "equal" contradicts nothing. Yields (path, order here, order
    there).
    """
    for path in one.tree.keys() & other.tree.keys():
        here, there = one.tree[path].times, other.tree[path].times
        for a, b in _PAIRS:
            if (here[a] - here[b]) * (there[a] - there[b]) < 0:
                words = [
                    f"{_TIMES[a]} {'<' if times[a] < times[b] else '>'} {_TIMES[b]}"
                    for times in (here, there)
                ]
                yield repr(path)[2:-1], words[0], words[1]
