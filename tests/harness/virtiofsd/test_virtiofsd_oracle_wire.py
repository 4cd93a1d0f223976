"""What a guest's requests are answered with, beside Debian's Rust virtiofsd on the same files."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from virtiofsd_support import COMMAND, OPEN, granted, running

from harness.guest.newer import Newer
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import (
    ATTR_SIZE,
    CREATE,
    ENTRY_SIZE,
    GETATTR,
    LOOKUP,
    OPENDIR,
    READ,
    READDIRPLUS,
    ROOT,
    UNLINK,
    WRITE,
    FuseClient,
)
from harness.vhost_user.fuse_client import OPEN as OPEN_FILE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="both serve files of several users")

SETATTR, READLINK, SYMLINK, MKNOD, MKDIR, RMDIR, RENAME, LINK = 4, 5, 6, 8, 9, 11, 12, 13
STATFS, RELEASE, FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR = 17, 18, 20, 21, 22, 23, 24
FLUSH, READDIR, RELEASEDIR, FSYNCDIR, GETLK, SETLK, ACCESS, BMAP = 25, 28, 29, 30, 31, 32, 34, 37
IOCTL, POLL, FALLOCATE, RENAME2, LSEEK, COPY_FILE_RANGE, SETUPMAPPING = 39, 40, 43, 45, 46, 47, 48
SYNCFS, STATX, COPY_FILE_RANGE_64 = 50, 52, 53

SETXATTR_EXT = 1 << 29
# Granted by one of us only: exports are always told of by us, and struct setxattr_in is the longer
# one even without ACLs; idmapped mounts are taken by them; they grant submounts even to those who
# do not want them announced.
FLAGS = 1 << 4 | SETXATTR_EXT | 1 << 40 | 1 << 27

POLICIES = (
    "", "--cache=never", "--cache=metadata", "--cache=always", "--cache=never --allow-mmap",
    "--writeback", "--writeback --cache=always", "--allow-direct-io", "--no-readdirplus",
    "--killpriv-v2", "--preserve-noatime", "--posix-acl", "--security-label", "--readonly",
    "--no-announce-submounts", "--inode-file-handles=mandatory", "--thread-pool-size=2",
)  # fmt: skip
OPEN_FLAGS = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_APPEND", "O_DIRECT", "O_NOATIME", "O_SYNC")

# The errnos that differ, ours first. At ESTALE a guest looks the name up once more.
NUMBERS = {
    "getattr of no node": ("ESTALE", "EBADF"),
    "open of no node": ("ESTALE", "EBADF"),
}

Answers = dict[str, object]
Question = Callable[["Session"], Answers]


class Session:
    """A client and the nodes of `prepare`'s files. It offers all that a guest could, once."""

    def __init__(self, client: FuseClient) -> None:
        self.client = client
        self.flags = granted(client)
        self.nodes = {"/": ROOT, "none": 123456}
        for name in ("file", "dir", "link", "full"):
            self.nodes[name] = client.lookup(ROOT, name.encode()).nodeid
        self.handles = {"none": 9999}
        answer, handle = self.open(os.O_RDWR)
        self.handles["file"] = self.open(os.O_RDONLY)[1] if answer == "EROFS" else handle

    def open(self, flags: int) -> tuple[object, int]:
        """The errno, or the FOPEN flags; and the handle."""
        error, reply = self.ask(OPEN_FILE, "file", struct.pack("<II", flags, 0), 16)
        handle, granted, _ = struct.unpack("<QII", reply.ljust(16, b"\0"))
        return error or granted, handle

    def ask(self, opcode: int, node: str, body: bytes, size: int) -> tuple[str, bytes]:
        error, reply = self.client.request(opcode, self.nodes[node], body, size)
        return errno.errorcode[error] if error else "", reply


def prepare(share: Path) -> None:
    (share / "dir").mkdir(parents=True, exist_ok=True)
    (share / "file").write_text("content" * 100)
    (share / "other").write_text("other")
    (share / "link").symlink_to("file")
    (share / "full").mkdir()
    (share / "full/inner").touch()
    os.setxattr(share / "file", "user.a", b"value")


@contextmanager
def session(command: list[str | Path], directory: Path, *words: str) -> Iterator[Session]:
    prepare(directory / "share")
    path = directory / "sock"
    base = ("--socket-path", path, "--shared-dir", directory / "share", *OPEN, "--log-level=off")
    with (
        running(*base, *words, command=command),
        Frontend.connect(path, wait=60) as frontend,
    ):
        frontend.negotiate()
        frontend.share_memory()
        client = FuseClient(frontend, depth=4)
        yield Session(client)
        client.close()


def policy(at: Session) -> Answers:
    """How long things are believed, and how they are opened."""
    answers: Answers = {"flags": at.flags & ~FLAGS}
    for name in "file", "dir", "link":
        error, reply = at.ask(LOOKUP, "/", name.encode() + b"\0", ENTRY_SIZE)
        answers[f"lookup {name}"] = error or struct.unpack_from("<QQII", reply, 16)
    answers["missing"] = at.ask(LOOKUP, "/", b"missing\0", ENTRY_SIZE)
    error, reply = at.ask(GETATTR, "file", bytes(16), ATTR_SIZE)
    answers["getattr"] = error or struct.unpack_from("<QI", reply)
    for name in OPEN_FLAGS:
        for base in os.O_RDONLY, os.O_RDWR:
            answers[f"open {name} {base}"] = at.open(getattr(os, name) | base)[0]
    for name in "/", "dir", "file":
        error, reply = at.ask(OPENDIR, name, bytes(8), 16)
        answers[f"opendir {name}"] = error or struct.unpack("<QII", reply)[1]
    return answers


def creation(at: Session) -> Answers:
    """How new files are opened, and for how long they are believed."""
    answers: Answers = {}
    for name in ("O_EXCL", *OPEN_FLAGS):
        flags = os.O_RDWR | os.O_CREAT | getattr(os, name)
        body = struct.pack("<IIII", flags, 0o100640, 0, 0) + name.encode() + b"\0"
        for attempt in "first", "again":
            error, reply = at.ask(CREATE, "/", body, ENTRY_SIZE + 16)
            answers[f"{name} {attempt}"] = error or (
                struct.unpack_from("<QQII", reply, 16),
                struct.unpack_from("<I", reply, ENTRY_SIZE + 8),
            )
    return answers


def setattr_in(valid: int, at: Session, size: int = 0, mode: int = 0, uid: int = 0) -> bytes:
    fh = at.handles["file"]
    return struct.pack("<IIQQ32x12xI4xIII", valid, 0, fh, size, mode, uid, 0, 0)


def numbers(at: Session) -> Answers:
    """The errnos of one request of each kind, and of some that make no sense."""
    fh, none = at.handles["file"], at.handles["none"]
    extended = bytes(8) if at.flags & SETXATTR_EXT else b""
    read = struct.Struct("<QQIIQII")
    answers: Answers = {}

    def note(label: str, opcode: int, node: str, body: bytes, size: int = 0) -> None:
        assert label not in answers
        answers[label] = at.ask(opcode, node, body, size)[0]

    for name in b".", b"..", b"x" * 255, b"x" * 256, b"full":
        note(f"lookup {name[:4]!r} {len(name)}", LOOKUP, "/", name + b"\0", ENTRY_SIZE)
    note("lookup in a file", LOOKUP, "file", b"x\0", ENTRY_SIZE)
    for label, handle in ("file", fh), ("no handle", none):
        note(f"read {label}", READ, "file", read.pack(handle, 0, 10, 0, 0, 0, 0), 10)
        note(f"fsync {label}", FSYNC, "file", struct.pack("<QII", handle, 0, 0))
        note(f"flush {label}", FLUSH, "file", struct.pack("<QIIQ", handle, 0, 0, 0))
    note("readdir of no handle", READDIR, "/", read.pack(none, 0, 4096, 0, 0, 0, 0), 4096)
    note("readdirplus of none", READDIRPLUS, "/", read.pack(none, 0, 4096, 0, 0, 0, 0), 4096)
    note("readlink", READLINK, "link", b"", 4096)
    note("statfs", STATFS, "/", b"", 80)
    for mask in 0, 1, 2, 4, 6, 7:
        note(f"access {mask}", ACCESS, "file", struct.pack("<II", mask, 0))
    for key in (
        b"user.a",
        b"user.none",
        b"trusted.x",
        b"security.x",
        b"nodot",
        b"user." + b"x" * 300,
    ):
        label = key[:10].decode()
        for size in 0, 2, 100:
            body = struct.pack("<II", size, 0) + key + b"\0"
            note(f"getxattr {label} {size}", GETXATTR, "file", body, max(size, 8))
        for flags in 1, 2, 0:
            body = struct.pack("<II", 1, flags) + extended + key + b"\0x"
            note(f"setxattr {label} {flags}", SETXATTR, "file", body)
        note(f"removexattr {label}", REMOVEXATTR, "file", key + b"\0")
    for size in 0, 2, 100:
        note(f"listxattr {size}", LISTXATTR, "file", struct.pack("<II", size, 0), max(size, 8))
    note("write", WRITE, "file", read.pack(fh, 0, 3, 0, 0, 0, 0) + b"abc", 8)
    note("chmod", SETATTR, "file", setattr_in(1, at, mode=0o600), ATTR_SIZE)
    note("chown", SETATTR, "file", setattr_in(2, at, uid=5), ATTR_SIZE)
    note("truncate", SETATTR, "file", setattr_in(8, at, size=10), ATTR_SIZE)
    note("truncate by handle", SETATTR, "file", setattr_in(8 | 64, at, size=11), ATTR_SIZE)
    note("truncate a directory", SETATTR, "dir", setattr_in(8, at), ATTR_SIZE)
    note("times", SETATTR, "file", setattr_in(16 | 32 | 128 | 256, at), ATTR_SIZE)
    note("chmod a link", SETATTR, "link", setattr_in(1, at, mode=0o600), ATTR_SIZE)
    note("mkdir", MKDIR, "/", struct.pack("<II", 0o755, 0) + b"new\0", ENTRY_SIZE)
    note("mkdir again", MKDIR, "/", struct.pack("<II", 0o755, 0) + b"dir\0", ENTRY_SIZE)
    for kind in 0o010000, 0o020000, 0o040000, 0o060000, 0o100000, 0o140000, 0, 0o170000:
        body = struct.pack("<IIII", kind | 0o644, 1 << 8 | 3, 0, 0) + b"node%o\0" % kind
        note(f"mknod {kind:o}", MKNOD, "/", body, ENTRY_SIZE)
    for names in b"new link\0target\0", b"empty\0\0", b"dir\0target\0":
        note(f"symlink {names!r}", SYMLINK, "/", names, ENTRY_SIZE)
    for name in "file", "dir", "link":
        body = struct.pack("<Q", at.nodes[name]) + b"hard %s\0" % name.encode()
        note(f"link {name}", LINK, "/", body, ENTRY_SIZE)
    for names in b"missing\0x\0", b"file\0full\0", b"dir\0full\0", b"full\0full/inner\0":
        note(f"rename {names!r}", RENAME, "/", struct.pack("<Q", ROOT) + names)
    for flags in 0, 1, 2, 3, 4:
        body = struct.pack("<QII", ROOT, flags, 0) + b"other\0file\0"
        note(f"rename2 {flags}", RENAME2, "/", body)
    for mode in 0, 1, 2, 3, 8, 0x10, 0x20, 0x40:
        note(f"fallocate {mode}", FALLOCATE, "file", struct.pack("<QQQII", fh, 0, 4096, mode, 0))
    note("fallocate nothing", FALLOCATE, "file", struct.pack("<QQQII", fh, 0, 0, 0, 0))
    for label, offset, whence in (
        ("data", 0, 3),
        ("hole", 0, 4),
        ("beyond", 1 << 40, 3),
        ("?", 0, 9),
    ):
        note(f"lseek {label}", LSEEK, "file", struct.pack("<QQII", fh, offset, whence, 0), 8)
    for flags in 0, 1:
        body = struct.pack("<QQQQQQQ", fh, 0, at.nodes["file"], fh, 100, 5, flags)
        note(f"copy_file_range {flags}", COPY_FILE_RANGE, "file", body, 8)
    note("syncfs", SYNCFS, "/", bytes(8))
    for name in b"dir", b"full", b"missing", b"..":
        note(f"unlink {name!r}", UNLINK, "/", name + b"\0")
    for name in b"file", b"full", b"missing", b".", b"dir":
        note(f"rmdir {name!r}", RMDIR, "/", name + b"\0")
    lock = struct.pack("<QQQQIII4x", fh, 1, 0, 10, 1, 5, 0)
    note("getlk", GETLK, "file", lock, 24)
    note("setlk", SETLK, "file", lock)
    note("bmap", BMAP, "file", struct.pack("<QII", 0, 512, 0), 8)
    note("poll", POLL, "file", struct.pack("<QQII", fh, 0, 0, 0), 8)
    note("setupmapping", SETUPMAPPING, "file", bytes(40))
    note("statx", STATX, "file", struct.pack("<IIQII", 0, 0, 0, 0, 0xFFF), 288)
    note("copy_file_range_64", COPY_FILE_RANGE_64, "file", bytes(56), 8)
    note("opcode 7", 7, "/", b"")
    note("opcode 4000", 4000, "/", b"")
    note("release of no handle", RELEASE, "file", struct.pack("<QIIQ", none, 0, 0, 0))
    note("releasedir of none", RELEASEDIR, "/", struct.pack("<QIIQ", none, 0, 0, 0))
    note("fsyncdir of none", FSYNCDIR, "/", struct.pack("<QII", none, 0, 0))
    for label, opcode, body in ("getattr", GETATTR, bytes(16)), ("open", OPEN_FILE, bytes(8)):
        note(f"{label} of no node", opcode, "none", body, ATTR_SIZE)
    return answers


def owners(at: Session) -> Answers:
    """Who owns what the guest gives away, makes and finds."""
    answers: Answers = {}
    for uid in 0, 5, 6, 77, 78, 79:
        at.client.credentials = (uid, 0, 1)
        body = struct.pack("<II", 0o777, 0) + b"new%d\0" % uid
        error, reply = at.ask(MKDIR, "/", body, ENTRY_SIZE)
        answers[f"made by {uid}"] = error or struct.unpack_from("<I", reply, ENTRY_SIZE - 20)[0]
        at.client.credentials = (0, 0, 1)
        error, reply = at.ask(SETATTR, "file", setattr_in(2, at, uid=uid), ATTR_SIZE)
        answers[f"given to {uid}"] = error or struct.unpack_from("<I", reply, ATTR_SIZE - 20)[0]
    return answers


def both(newer: Newer, directory: Path, question: Question, *words: str) -> tuple[Answers, Answers]:
    answers = []
    for name, command in ("ours", [*COMMAND, "virtiofsd"]), ("theirs", [newer.virtiofsd]):
        with session(command, directory / name, *words) as at:
            answers.append(question(at))
    return answers[0], answers[1]


def differences(ours: Answers, theirs: Answers) -> dict[str, tuple[object, object]]:
    assert list(ours) == list(theirs)
    return {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]}


@pytest.mark.parametrize("line", POLICIES)
def test_names_are_believed_and_files_opened_as_by_virtiofsd(
    newer: Newer, tmp_path: Path, line: str
) -> None:
    ours, theirs = both(newer, tmp_path, policy, *line.split())
    assert differences(ours, theirs) == {}


@pytest.mark.parametrize("line", ["", "--cache=never", "--cache=always --writeback", "--readonly"])
def test_files_are_created_as_by_virtiofsd(newer: Newer, tmp_path: Path, line: str) -> None:
    ours, theirs = both(newer, tmp_path, creation, *line.split())
    assert differences(ours, theirs) == {}


@pytest.mark.parametrize("line", ["", "--xattr"])
def test_requests_fail_as_by_virtiofsd(newer: Newer, tmp_path: Path, line: str) -> None:
    ours, theirs = both(newer, tmp_path, numbers, *line.split())
    assert differences(ours, theirs) == NUMBERS


@pytest.mark.parametrize("line", ["--readonly", "--readonly --xattr"])
def test_what_virtiofsd_refuses_to_readers_is_refused(
    newer: Newer, tmp_path: Path, line: str
) -> None:
    ours, theirs = both(newer, tmp_path, numbers, *line.split())
    found = differences(ours, theirs)
    # They look at nothing else; Linux, and we, find other reasons first.
    early = {key for key, (mine, other) in found.items() if mine and other == "EROFS"}
    assert {key: found[key] for key in found.keys() - early} == NUMBERS


@pytest.mark.parametrize("kind", ["map", "guest", "host", "squash-guest", "squash-host", "forbid"])
def test_owners_are_translated_as_by_virtiofsd(newer: Newer, tmp_path: Path, kind: str) -> None:
    rule = "forbid-guest:5:2" if kind == "forbid" else f"{kind}:5:77:2"
    for name in "ours", "theirs":
        (tmp_path / name / "share").mkdir(parents=True)
        (tmp_path / name / "share").chmod(0o777)
    ours, theirs = both(newer, tmp_path, owners, f"--translate-uid={rule}")
    forbidden = {"EPERM", "EIO"}
    found = {key: set(pair) for key, pair in differences(ours, theirs).items()}
    assert all(pair == forbidden for pair in found.values()), found
    assert bool(found) == (kind == "forbid")
    shares = [tmp_path / name / "share" for name in ("ours", "theirs")]
    hosts = [{path.name: path.stat().st_uid for path in share.iterdir()} for share in shares]
    assert hosts[0] == hosts[1]
