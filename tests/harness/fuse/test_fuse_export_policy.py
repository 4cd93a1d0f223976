"""What a passthrough's mount options tell a FUSE client to keep, to do and to ask for."""

from __future__ import annotations

import os
import struct
import subprocess
from errno import EINVAL, ENOSYS, EOPNOTSUPP
from pathlib import Path

import pytest
from fuse_session import ROOT, Session, expect, mount_tmpfs

from fsimpl.tmpfs import TmpfsType
from harness.fuse import abi
from harness.fuse.cache import ALWAYS
from vfs.virtual_filesystem import VirtualFilesystem

DAY = 86400
KEEP_DIRECTORY = abi.FOPEN_KEEP_CACHE | abi.FOPEN_CACHE_DIR
PLUS = abi.DO_READDIRPLUS | abi.READDIRPLUS_AUTO
NOFLUSH = abi.FOPEN_NOFLUSH
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts, sets labels: needs root")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "shared"
    directory.mkdir()
    (directory / "file").write_bytes(b"content")
    (directory / "sub").mkdir()
    return directory


def session_of(shared: Path, options: str, **arguments: object) -> Session:
    return Session(source=shared, mount_options=options, **arguments)  # type: ignore[arg-type]


def agreed(session: Session) -> int:
    return session.server.flags


def opendir_flags(session: Session, nodeid: int) -> int:
    payload = session.call("OPENDIR", nodeid, abi.OPEN_IN.pack(0, 0), 16)
    flags: int = abi.OPEN_OUT.unpack(payload)[1]
    return flags


@pytest.mark.parametrize(
    ("options", "seconds", "file_flags", "directory_flags", "plus"),
    [
        ("cache=never", 0, abi.FOPEN_DIRECT_IO, 0, False),
        ("cache=none", 0, abi.FOPEN_DIRECT_IO, 0, False),
        ("cache=metadata", DAY, abi.FOPEN_DIRECT_IO, KEEP_DIRECTORY, True),
        ("cache=auto", 1, 0, 0, True),
        ("cache=always", DAY, abi.FOPEN_KEEP_CACHE, KEEP_DIRECTORY, True),
        ("cache=auto,timeout=5", 5, 0, 0, True),
        ("cache=always,timeout=0", 0, abi.FOPEN_KEEP_CACHE, KEEP_DIRECTORY, True),
        ("cache=never,timeout=7", 7, abi.FOPEN_DIRECT_IO, 0, False),
        ("timeout=3", 3, 0, 0, True),
        ("cache=never,readdirplus", 0, abi.FOPEN_DIRECT_IO, 0, True),
        ("cache=always,noreaddirplus", DAY, abi.FOPEN_KEEP_CACHE, KEEP_DIRECTORY, False),
        ("", 1, 0, 0, True),
    ],
)
def test_a_cache_word_is_its_timeouts_and_open_flags(
    shared: Path, options: str, seconds: int, file_flags: int, directory_flags: int, plus: bool
) -> None:
    with session_of(shared, options) as session:
        entry = session.lookup(ROOT, b"file")
        assert (entry.entry_s, entry.attr_s) == (seconds, seconds)
        assert session.open(entry.nodeid).flags & ~NOFLUSH == file_flags
        assert opendir_flags(session, session.lookup(ROOT, b"sub").nodeid) == directory_flags
        assert agreed(session) & PLUS == (PLUS if plus else 0)


def test_fractions_of_a_second_are_kept(shared: Path) -> None:
    with session_of(shared, "timeout=1.25,negative_timeout=0.5") as session:
        payload = session.call("LOOKUP", ROOT, b"file\0", 128)
        _, _, entry_s, attr_s, entry_ns, attr_ns, _ = abi.ENTRY_OUT.unpack(payload)
        assert (entry_s, entry_ns, attr_s, attr_ns) == (1, 250_000_000, 1, 250_000_000)
        missing = abi.ENTRY_OUT.unpack(session.call("LOOKUP", ROOT, b"missing\0", 128))
        assert (missing[0], missing[2], missing[4]) == (0, 0, 500_000_000)


def test_the_servers_own_policy_holds_where_the_mount_says_nothing(shared: Path) -> None:
    with session_of(shared, "", cache=ALWAYS) as session:
        assert session.lookup(ROOT, b"file").entry_s == DAY
    with session_of(shared, "cache=auto", cache=ALWAYS) as session:
        assert session.lookup(ROOT, b"file").entry_s == 1


@pytest.mark.parametrize(
    ("options", "bits", "wanted"),
    [
        ("", abi.WRITEBACK_CACHE | abi.POSIX_ACL | abi.DONT_MASK | abi.SECURITY_CTX, False),
        ("writeback", abi.WRITEBACK_CACHE, True),
        ("posix_acl", abi.POSIX_ACL | abi.DONT_MASK, True),
        ("noposix_acl", abi.POSIX_ACL | abi.DONT_MASK, False),
        ("security_label", abi.SECURITY_CTX, True),
        ("security_ctx", abi.SECURITY_CTX, True),
        ("", abi.HANDLE_KILLPRIV_V2 | abi.DIRECT_IO_ALLOW_MMAP | abi.SUBMOUNTS, True),
        ("killpriv_v2", abi.HANDLE_KILLPRIV_V2, True),
        ("nokillpriv_v2", abi.HANDLE_KILLPRIV_V2, False),
        ("allow_mmap", abi.DIRECT_IO_ALLOW_MMAP, True),
        ("noallow_mmap", abi.DIRECT_IO_ALLOW_MMAP, False),
        ("noannounce_submounts", abi.SUBMOUNTS, False),
        ("announce_submounts", abi.SUBMOUNTS, True),
    ],
)
def test_an_option_is_a_flag_of_the_session(
    shared: Path, options: str, bits: int, wanted: bool
) -> None:
    with session_of(shared, options) as session:
        assert agreed(session) & bits == (bits if wanted else 0)


def test_a_client_is_told_to_ask_for_no_attributes_if_nothing_has_any(shared: Path) -> None:
    value = abi.SETXATTR_IN.pack(1, 0, 0, 0) + b"user.a\0x"
    get = abi.GETXATTR_IN.pack(100, 0)
    with session_of(shared, "noxattr") as session:
        node = session.lookup(ROOT, b"file").nodeid
        expect(ENOSYS, session.call, "SETXATTR", node, value, 0)
        expect(ENOSYS, session.call, "GETXATTR", node, get + b"user.a\0")
        expect(ENOSYS, session.call, "LISTXATTR", node, get)
        expect(ENOSYS, session.call, "REMOVEXATTR", node, b"user.a\0")
        sub = session.lookup(ROOT, b"sub").nodeid
        mount_tmpfs(session, sub)
        expect(EOPNOTSUPP, session.call, "GETXATTR", node, get + b"user.a\0")
    with session_of(shared, "") as session:
        session.call("SETXATTR", session.lookup(ROOT, b"file").nodeid, value, 0)
    assert os.getxattr(shared / "file", "user.a") == b"x"


def test_acls_are_not_asked_for_where_the_checks_are_ours(shared: Path) -> None:
    with session_of(shared, "posix_acl", default_permissions=False) as session:
        assert not agreed(session) & (abi.POSIX_ACL | abi.DONT_MASK)


def test_options_of_the_root_do_not_reach_other_filesystems(shared: Path) -> None:
    vfs = VirtualFilesystem()
    vfs.register(TmpfsType())
    with Session(vfs=vfs) as session:
        assert session.mkdir(ROOT, b"d").entry_s == 1


@pytest.mark.parametrize("option", [True, False])
def test_o_direct_reaches_the_host_only_if_it_is_allowed(shared: Path, option: bool) -> None:
    with session_of(shared, "allow_direct_io" if option else "") as session:
        opened = session.open(session.lookup(ROOT, b"file").nodeid, os.O_RDONLY | os.O_DIRECT)
        file = session.server.handles.files[opened.fh]
        flags = _host_flags(file.fd)  # type: ignore[attr-defined]
        assert bool(flags & os.O_DIRECT) == option


@needs_root
@pytest.mark.parametrize(
    ("option", "expected"), [("", True), ("preserve_noatime", True), ("nopreserve_noatime", False)]
)
def test_o_noatime_reaches_the_host_unless_it_is_not_to(
    shared: Path, option: str, expected: bool
) -> None:
    with session_of(shared, option) as session:
        opened = session.open(session.lookup(ROOT, b"file").nodeid, os.O_RDONLY | os.O_NOATIME)
        file = session.server.handles.files[opened.fh]
        assert bool(_host_flags(file.fd) & os.O_NOATIME) == expected  # type: ignore[attr-defined]


def _host_flags(fd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8)
    raise AssertionError("no flags")


def test_o_append_never_reaches_the_host_and_appends_all_the_same(shared: Path) -> None:
    with session_of(shared, "") as session:
        opened = session.open(session.lookup(ROOT, b"file").nodeid, os.O_WRONLY | os.O_APPEND)
        file = session.server.handles.files[opened.fh]
        assert not _host_flags(file.fd) & os.O_APPEND  # type: ignore[attr-defined]
        session.write(opened.fh, 0, b"!", flags=os.O_WRONLY | os.O_APPEND)
        assert (shared / "file").read_bytes() == b"content!"


def test_pages_that_are_written_back_stay_where_they_belong(shared: Path) -> None:
    with session_of(shared, "writeback") as session:
        opened = session.open(session.lookup(ROOT, b"file").nodeid, os.O_WRONLY | os.O_APPEND)
        assert session.read(opened.fh, 0, 7) == b"content"
        flags = os.O_WRONLY | os.O_APPEND
        session.write(opened.fh, 0, b"C", write_flags=abi.WRITE_CACHE, flags=flags)
        assert (shared / "file").read_bytes() == b"Content"


def test_the_umask_is_ours_once_the_client_leaves_it_to_us(shared: Path) -> None:
    with session_of(shared, "posix_acl") as session:
        session.call("MKDIR", ROOT, abi.MKDIR_IN.pack(0o777, 0o027) + b"d\0", 128)
        session.call("MKNOD", ROOT, abi.MKNOD_IN.pack(0o010666, 0, 0o022, 0) + b"p\0", 128)
        session.call("CREATE", ROOT, abi.CREATE_IN.pack(2, 0o100666, 0o077, 0) + b"f\0", 144)
    modes = [(shared / name).stat().st_mode & 0o7777 for name in ("d", "p", "f")]
    assert modes == [0o750, 0o644, 0o600]


@needs_root
def test_a_default_acl_is_in_place_of_the_umask(shared: Path) -> None:
    entries = ((1, 7, -1), (2, 6, 1001), (4, 6, -1), (16, 6, -1), (32, 4, -1))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(shared / "sub", "system.posix_acl_default", acl)
    with session_of(shared, "posix_acl") as session:
        sub = session.lookup(ROOT, b"sub").nodeid
        session.call("CREATE", sub, abi.CREATE_IN.pack(2, 0o100666, 0o077, 0) + b"f\0", 144)
    assert (shared / "sub" / "f").stat().st_mode & 0o7777 == 0o664


@needs_root
def test_an_acl_that_takes_the_set_group_id_bit_away_does(shared: Path) -> None:
    entries = ((1, 7, -1), (4, 5, -1), (32, 0, -1))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    name = b"system.posix_acl_access\0"
    for extra, expected in ((0, 0o2750), (abi.SETXATTR_ACL_KILL_SGID, 0o750)):
        (shared / "file").chmod(0o2755)
        with session_of(shared, "posix_acl") as session:
            node = session.lookup(ROOT, b"file").nodeid
            body = abi.SETXATTR_IN.pack(len(acl), 0, extra, 0) + name + acl
            session.call("SETXATTR", node, body, 0)
        assert (shared / "file").stat().st_mode & 0o7777 == expected


def label(*labels: tuple[bytes, bytes]) -> bytes:
    records = b""
    for name, value in labels:
        record = abi.SECCTX.pack(len(value), 0) + name + b"\0" + value
        records += record.ljust(len(record) + 7 & ~7, b"\0")
    return abi.EXT_HEADER.pack(abi.EXT_HEADER.size + len(records), len(labels)) + records


@needs_root
def test_what_is_made_has_the_labels_that_came_with_it(shared: Path) -> None:
    labels = ((b"security.one", b"first"), (b"security.two", b"x" * 13))
    with session_of(shared, "security_label") as session:
        session.extensions = label(*labels)
        session.mkdir(ROOT, b"d")
        session.create(ROOT, b"f")
        session.mknod(ROOT, b"p", 0o010644)
        session.symlink(ROOT, b"l", b"target")
    assert os.readlink(shared / "l") == "target"
    for name in ("d", "f", "p", "l"):
        for attribute, value in labels:
            path = shared / name
            assert os.getxattr(path, attribute.decode(), follow_symlinks=False) == value


@needs_root
def test_without_the_option_labels_are_not_taken(shared: Path) -> None:
    with session_of(shared, "") as session:
        session.extensions = label((b"security.one", b"first"))
        session.mkdir(ROOT, b"d")
    assert os.listxattr(shared / "d") == []


@pytest.mark.parametrize(
    "extensions",
    [
        label((b"user.one", b"x")),
        label((b"trusted.one", b"x")),
        label((b"security.one", b"x"))[:-8] + b"\xff" * 8,
        abi.EXT_HEADER.pack(8, 1),
        abi.EXT_HEADER.pack(16, 1) + abi.SECCTX.pack(1 << 31, 0),
        abi.EXT_HEADER.pack(4, 1),
    ],
)
def test_a_label_that_cannot_be_one_leaves_nothing_made(shared: Path, extensions: bytes) -> None:
    with session_of(shared, "security_label") as session:
        session.extensions = extensions.ljust(len(extensions) + 7 & ~7, b"\0")
        expect(EINVAL, session.mkdir, ROOT, b"d")
        expect(EINVAL, session.create, ROOT, b"f")
        expect(EINVAL, session.symlink, ROOT, b"l", b"target")
    assert sorted(os.listdir(shared)) == ["file", "sub"]


@needs_root
@pytest.mark.parametrize(
    ("options", "announced"),
    [("", True), ("announce_submounts", True), ("noannounce_submounts", False)],
)
def test_another_file_system_of_the_host_is_announced(
    shared: Path, options: str, announced: bool
) -> None:
    mount = ["mount", "-t", "tmpfs", "none", shared / "sub"]
    if subprocess.run(mount).returncode:
        pytest.skip("no mounts here")
    try:
        (shared / "sub" / "below").mkdir()
        with session_of(shared, options) as session:
            sub = session.lookup(ROOT, b"sub")
            assert sub.attr.flags == (abi.ATTR_SUBMOUNT if announced else 0)
            assert session.lookup(sub.nodeid, b"below").attr.flags == 0
            assert session.lookup(ROOT, b"file").attr.flags == 0
    finally:
        subprocess.run(["umount", "-l", shared / "sub"], check=True)


@needs_root
def test_a_bind_mount_of_the_host_within_one_file_system_is_announced_too(shared: Path) -> None:
    (shared / "other").mkdir()
    if subprocess.run(["mount", "--bind", shared / "other", shared / "sub"]).returncode:
        pytest.skip("no mounts here")
    try:
        with session_of(shared, "") as session:
            assert session.lookup(ROOT, b"sub").attr.flags == abi.ATTR_SUBMOUNT
            assert session.lookup(ROOT, b"other").attr.flags == 0
    finally:
        subprocess.run(["umount", "-l", shared / "sub"], check=True)
