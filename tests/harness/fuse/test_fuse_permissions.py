"""Without ``default_permissions`` the checks are ours: each opcode against the kernel's answer.

An ordinary user with a supplementary group does the same to files of every kind of owner and mode,
once by requests that carry the ids and pid of a real process, once by system calls on a tmpfs.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
from fuse_session import ROOT, FuseError, Session

from harness.fuse import abi
from harness.testbed.host_sysctls import host_sysctls

UID, GID, GROUP, STRANGER = 1000, 1000, 2000, 3000
OWNERS = ((UID, GID), (UID, GROUP), (0, GID), (0, GROUP), (0, STRANGER), (STRANGER, STRANGER))
FILE_MODES = (0o000, 0o400, 0o200, 0o644, 0o664, 0o666, 0o755, 0o4755, 0o2755, 0o6777, 0o2644)
DIR_MODES = (0o000, 0o755, 0o770, 0o777, 0o1777, 0o2777, 0o733, 0o300)
TIME_NS = 10**18

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user"),
    pytest.mark.slow,
]


@pytest.fixture
def directory() -> Iterator[Path]:
    """On a tmpfs of the kernel's, where everybody may pass."""
    place = Path(tempfile.mkdtemp(dir="/dev/shm"))
    place.chmod(0o777)
    yield place
    shutil.rmtree(place)


def as_user(function: Callable[[], object]) -> object:
    """What ``function`` returns in a child that is the user; pickled on its way back."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([GROUP])
            os.setresgid(GID, GID, GID)
            os.setresuid(UID, UID, UID)
            os.umask(0)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(function(), pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        result: object = pickle.load(pipe)
    os.waitpid(child, 0)
    return result


@pytest.fixture
def user() -> Iterator[int]:
    """The pid of a process that is the user, with its groups."""
    gate, release = os.pipe()
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(release)
            os.setgroups([GROUP])
            os.setresgid(GID, GID, GID)
            os.setresuid(UID, UID, UID)
            os.write(tell, b"x")
            os.read(gate, 1)
        finally:
            os._exit(0)
    os.close(tell)
    os.read(ready, 1)
    yield child
    for fd in (ready, gate, release):
        os.close(fd)
    os.waitpid(child, 0)


def name_of(number: int | None) -> str:
    return errno.errorcode.get(number or 0, str(number))


def outcome(call: Callable[..., object], *arguments: object) -> str:
    try:
        call(*arguments)
    except OSError as error:
        return name_of(error.errno)
    except FuseError as error:
        return name_of(error.errno)
    return "ok"


class Client:
    """The user's requests, and root's that prepare for them."""

    def __init__(self, session: Session, pid: int) -> None:
        self.session = session
        self.pid = pid

    def become(self, uid: int, gid: int, pid: int) -> None:
        self.session.uid, self.session.gid, self.session.pid = uid, gid, pid

    def root(self) -> None:
        self.become(0, 0, os.getpid())

    def user(self) -> None:
        self.become(UID, GID, self.pid)

    def set_times(self, nodeid: int, now: bool) -> None:
        valid = abi.FATTR_ATIME | abi.FATTR_MTIME
        if now:
            self.session.setattr(nodeid, valid | abi.FATTR_ATIME_NOW | abi.FATTR_MTIME_NOW)
        else:
            self.session.setattr(nodeid, valid, atime=10**9, mtime=10**9)

    def set_xattr(self, nodeid: int, name: bytes) -> None:
        body = abi.SETXATTR_IN.pack(1, 0, 0, 0) + name + b"\0v"
        self.session.call("SETXATTR", nodeid, body)

    def get_xattr(self, nodeid: int, name: bytes) -> None:
        self.session.call("GETXATTR", nodeid, abi.GETXATTR_IN.pack(64, 0) + name + b"\0")

    def access(self, nodeid: int, mask: int) -> None:
        self.session.call("ACCESS", nodeid, abi.ACCESS_IN.pack(mask, 0), 0)

    def set(self, nodeid: int, **fields: int) -> None:
        valid = sum(getattr(abi, f"FATTR_{name.upper()}") for name in fields)
        self.session.setattr(nodeid, valid, **fields)


def _access(path: str, mask: int) -> None:
    if not os.access(path, mask):
        raise OSError(errno.EACCES, "")


def _open(path: str, flags: int) -> None:
    os.close(os.open(path, flags))


# What is done to a file: the system call on its path, the request for its node.
ON_FILES: dict[str, tuple[Callable[[str], object], Callable[[Client, int], object]]] = {
    "chmod 4777": (lambda p: os.chmod(p, 0o4777), lambda c, n: c.set(n, mode=0o4777)),
    "chmod 2777": (lambda p: os.chmod(p, 0o2777), lambda c, n: c.set(n, mode=0o2777)),
    "chown to oneself": (lambda p: os.chown(p, UID, -1), lambda c, n: c.set(n, uid=UID)),
    "chown to root": (lambda p: os.chown(p, 0, -1), lambda c, n: c.set(n, uid=0)),
    "chgrp to one's group": (lambda p: os.chown(p, -1, GROUP), lambda c, n: c.set(n, gid=GROUP)),
    "chgrp to another": (lambda p: os.chown(p, -1, STRANGER), lambda c, n: c.set(n, gid=STRANGER)),
    "truncate": (lambda p: os.truncate(p, 1), lambda c, n: c.set(n, size=1)),
    "utime now": (lambda p: os.utime(p), lambda c, n: c.set_times(n, True)),
    "utime then": (
        lambda p: os.utime(p, ns=(TIME_NS, TIME_NS)),
        lambda c, n: c.set_times(n, False),
    ),
    "setxattr user": (
        lambda p: os.setxattr(p, "user.x", b"v"),
        lambda c, n: c.set_xattr(n, b"user.x"),
    ),
    "setxattr trusted": (
        lambda p: os.setxattr(p, "trusted.x", b"v"),
        lambda c, n: c.set_xattr(n, b"trusted.x"),
    ),
    "setxattr security": (
        lambda p: os.setxattr(p, "security.x", b"v"),
        lambda c, n: c.set_xattr(n, b"security.x"),
    ),
    "getxattr user": (
        lambda p: os.getxattr(p, "user.none"),
        lambda c, n: c.get_xattr(n, b"user.none"),
    ),
    "getxattr trusted": (
        lambda p: os.getxattr(p, "trusted.none"),
        lambda c, n: c.get_xattr(n, b"trusted.none"),
    ),
}
for _flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_NOATIME):
    ON_FILES[f"open {_flags:#o}"] = (
        lambda p, flags=_flags: _open(p, flags),
        lambda c, n, flags=_flags: c.session.open(n, flags),
    )
for _mask in range(8):
    ON_FILES[f"access {_mask}"] = (
        lambda p, mask=_mask: _access(p, mask),
        lambda c, n, mask=_mask: c.access(n, mask),
    )


def attributes(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size


def test_operations_on_files_are_allowed_to_whom_the_kernel_allows_them(
    directory: Path, user: int
) -> None:
    cases = list(product(OWNERS, FILE_MODES, ON_FILES))
    for index, ((uid, gid), mode, _) in enumerate(cases):
        path = directory / str(index)
        path.write_bytes(b"content")
        os.chown(path, uid, gid)
        path.chmod(mode)

    def by_kernel() -> object:
        os.chdir(directory)
        return [outcome(ON_FILES[do][0], str(index)) for index, (_, _, do) in enumerate(cases)]

    expected = as_user(by_kernel)
    assert isinstance(expected, list)
    differences = []
    with Session(default_permissions=False) as session:
        client = Client(session, user)
        for index, (((uid, gid), mode, do), kernels) in enumerate(
            zip(cases, expected, strict=True)
        ):
            client.root()
            entry, opened = session.create(ROOT, str(index).encode())
            session.write(opened.fh, 0, b"content")
            session.release(opened.fh)
            client.set(entry.nodeid, uid=uid, gid=gid)
            client.set(entry.nodeid, mode=mode)
            client.user()
            ours = outcome(ON_FILES[do][1], client, entry.nodeid)
            client.root()
            attr = session.getattr(entry.nodeid)
            left = attr.mode, attr.uid, attr.gid, attr.size
            theirs = attributes(os.stat(directory / str(index)))
            if (ours, left) != (kernels, theirs):
                differences.append((do, uid, gid, oct(mode), kernels, ours, theirs, left))
    assert not differences, differences[:10]


def _mknod(path: str, kind: int, device: int = 0) -> None:
    os.mknod(path, kind | 0o644, device)


def _walk_and_link(session: Session, source: bytes, directory: int) -> None:
    """A client looks a name up before it links to it, which is where searching is checked."""
    try:
        session.lookup(directory, b"new")
    except FuseError as error:
        if error.errno != errno.ENOENT:
            raise
    session.link(session.lookup(ROOT, source).nodeid, directory, b"new")


# What is done to names in directory ``d``, which holds a ``file`` and a ``dir``, both the user's,
# and a ``roots``, root's; beside it is ``mine``, the user's own directory with a ``file``.
ON_NAMES: dict[str, tuple[Callable[[], object], Callable[[Client, int, int], object]]] = {
    "stat": (lambda: os.stat("d/file"), lambda c, d, m: c.session.lookup(d, b"file")),
    "create": (
        lambda: os.close(os.open("d/new", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o2777)),
        lambda c, d, m: c.session.create(d, b"new", 0o2777),
    ),
    "mkdir": (lambda: os.mkdir("d/new", 0o755), lambda c, d, m: c.session.mkdir(d, b"new")),
    "mkfifo": (
        lambda: _mknod("d/new", 0o010000),
        lambda c, d, m: c.session.mknod(d, b"new", 0o010644),
    ),
    "mknod": (
        lambda: _mknod("d/new", 0o020000, os.makedev(1, 3)),
        lambda c, d, m: c.session.mknod(d, b"new", 0o020644, 1 << 8 | 3),
    ),
    "whiteout": (
        lambda: _mknod("d/new", 0o020000, 0),
        lambda c, d, m: c.session.mknod(d, b"new", 0o020644, 0),
    ),
    "symlink": (
        lambda: os.symlink("t", "d/new"),
        lambda c, d, m: c.session.symlink(d, b"new", b"t"),
    ),
    "unlink": (
        lambda: os.unlink("d/file"),
        lambda c, d, m: c.session.call("UNLINK", d, b"file\0"),
    ),
    "unlink root's": (
        lambda: os.unlink("d/roots"),
        lambda c, d, m: c.session.call("UNLINK", d, b"roots\0"),
    ),
    "rmdir": (lambda: os.rmdir("d/dir"), lambda c, d, m: c.session.call("RMDIR", d, b"dir\0")),
    "rename within": (
        lambda: os.rename("d/file", "d/new"),
        lambda c, d, m: c.session.call("RENAME", d, abi.RENAME_IN.pack(d) + b"file\0new\0"),
    ),
    "rename over root's": (
        lambda: os.rename("d/file", "d/roots"),
        lambda c, d, m: c.session.call("RENAME", d, abi.RENAME_IN.pack(d) + b"file\0roots\0"),
    ),
    "rename out": (
        lambda: os.rename("d/file", "mine/new"),
        lambda c, d, m: c.session.call("RENAME", d, abi.RENAME_IN.pack(m) + b"file\0new\0"),
    ),
    "rename directory out": (
        lambda: os.rename("d/dir", "mine/new"),
        lambda c, d, m: c.session.call("RENAME", d, abi.RENAME_IN.pack(m) + b"dir\0new\0"),
    ),
    "rename in": (
        lambda: os.rename("mine/file", "d/new"),
        lambda c, d, m: c.session.call("RENAME", m, abi.RENAME_IN.pack(d) + b"file\0new\0"),
    ),
    "list": (lambda: os.listdir("d"), lambda c, d, m: c.session.opendir(d)),
    "tmpfile": (
        lambda: os.close(os.open("d", os.O_TMPFILE | os.O_RDWR, 0o600)),
        lambda c, d, m: c.session.call(
            "TMPFILE", d, abi.CREATE_IN.pack(os.O_TMPFILE | 2, 0o100600, 0, 0) + b"/\0"
        ),
    ),
}
for _source in ("file", "roots"):
    ON_NAMES[f"link {_source} into"] = (
        lambda source=_source: os.link(f"{source}", "d/new"),
        lambda c, d, m, source=_source: _walk_and_link(c.session, source.encode(), d),
    )


def test_operations_on_names_are_allowed_to_whom_the_kernel_allows_them(
    directory: Path, user: int
) -> None:
    cases = list(product(OWNERS, DIR_MODES, ON_NAMES))
    for index, ((uid, gid), mode, _) in enumerate(cases):
        top = directory / str(index)
        for path in (top, top / "d", top / "mine", top / "d" / "dir"):
            path.mkdir()
        for path in (top / "file", top / "roots", top / "d" / "file", top / "d" / "roots"):
            path.touch()
        (top / "mine" / "file").touch()
        for name in ("file", "mine", "mine/file", "d/file", "d/dir"):
            os.chown(top / name, UID, GID)
        os.chown(top / "d", uid, gid)
        (top / "d").chmod(mode)
        top.chmod(0o777)

    def by_kernel() -> object:
        found = []
        for index, (_, _, do) in enumerate(cases):
            os.chdir(directory / str(index))
            found.append(outcome(ON_NAMES[do][0]))
        return found

    with host_sysctls() as sysctls:
        hardlinks = sysctls.get("protected_hardlinks")
        expected = as_user(by_kernel)
    assert isinstance(expected, list)
    differences = []
    for ((uid, gid), mode, do), index, kernels in zip(
        cases, range(len(cases)), expected, strict=True
    ):
        with Session(default_permissions=False) as session:
            session.vfs.protected_hardlinks = hardlinks
            client = Client(session, user)
            client.root()
            d, m = session.mkdir(ROOT, b"d").nodeid, session.mkdir(ROOT, b"mine").nodeid
            owned = [m, session.create(m, b"file")[0].nodeid]
            owned += [session.create(ROOT, b"file")[0].nodeid, session.mkdir(d, b"dir").nodeid]
            owned += [session.create(d, b"file")[0].nodeid]
            session.create(ROOT, b"roots")
            session.create(d, b"roots")
            for nodeid in owned:
                client.set(nodeid, uid=UID, gid=GID)
            client.set(d, uid=uid, gid=gid)
            client.set(d, mode=mode)
            client.set(ROOT, mode=0o777)
            client.user()
            ours = outcome(ON_NAMES[do][1], client, d, m)
            client.root()
            left = sorted(
                (name, *attributes_of(session, d, name)) for name in (b"new", b"file", b"roots")
            )
        theirs = sorted(
            (name, *attributes_at(directory / str(index) / "d" / name.decode()))
            for name in (b"new", b"file", b"roots")
        )
        if (ours, left) != (kernels, theirs):
            differences.append((do, uid, gid, oct(mode), kernels, ours, theirs, left))
    assert not differences, differences[:10]


def attributes_of(session: Session, parent: int, name: bytes) -> tuple[int, ...]:
    try:
        attr = session.lookup(parent, name).attr
    except FuseError:
        return ()
    return attr.mode, attr.uid, attr.gid, attr.nlink


def attributes_at(path: Path) -> tuple[int, ...]:
    try:
        stat = path.lstat()
    except FileNotFoundError:
        return ()
    return stat.st_mode, stat.st_uid, stat.st_gid, stat.st_nlink
