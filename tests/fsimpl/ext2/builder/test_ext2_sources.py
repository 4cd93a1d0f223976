"""Sources that are no host directory: a tree of a VirtualFilesystem, and tar archives."""

from __future__ import annotations

import io
import os
import random
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from ext2_snapshot import Entry, fsck, snapshot
from ext2_trees import ACCESS, DEFAULT, NO_ID, acl, make_extremes, write_at

from fsimpl.ext2.builder import (
    BuildOptions,
    HostSource,
    ImageError,
    ImagePlan,
    TarSource,
    TaskSource,
    build,
    write_image,
)
from vfs import abi
from vfs.task import Task

Mounted = Callable[[Path], AbstractContextManager[Path]]
pytestmark = pytest.mark.usefixtures("e2fsprogs")
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of others")


def seen_by_linux(plan: ImagePlan, tmp_path: Path, mounted: Mounted) -> dict[bytes, Entry]:
    image = tmp_path / "image"
    with plan:
        write_image(plan, str(image))
        assert not plan.changed
    fsck(image)
    with mounted(image) as where:
        return snapshot(where, lost_and_found=False)


@NEEDS_ROOT
def test_a_host_tree_is_the_same_through_a_passthrough(
    task: Task, tmp_path: Path, mounted: Mounted
) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    make_extremes(top)
    task.mkdir("/host")
    task.mount(os.fsencode(top), "/host", "passthrough", 0, "")
    plan = build(TaskSource(task, b"/host"))
    # Content is mapped from where it is.
    names = {piece.file.name for piece in plan.mappings}
    assert os.fsencode(top / "random").lstrip(b"/") in names
    assert b"(copied)" not in names
    assert seen_by_linux(plan, tmp_path, mounted) == snapshot(top)


def test_a_tmpfs_is_copied_and_stays_as_it_was(
    task: Task, tmp_path: Path, mounted: Mounted
) -> None:
    task.mkdir("/t")
    task.mount("tmpfs", "/t", "tmpfs", 0, "mode=711")
    task.mkdir("/t/dir")
    fd = task.open("/t/dir/file", abi.O_RDWR | abi.O_CREAT, 0o640)
    task.pwrite64(fd, b"a" * 10_000, 0)
    task.pwrite64(fd, b"z" * 10, (3 << 30) + 77)
    task.link("/t/dir/file", "/t/second")
    task.symlink("dir/file", "/t/link")
    task.mknod("/t/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    task.mkdir("/t/below")
    task.mount("tmpfs", "/t/below", "tmpfs", 0, "")
    task.setxattr("/t/dir", "user.name", b"value")
    task.chown("/t/dir/file", 7, 8)
    task.utimensat(abi.AT_FDCWD, "/t/dir/file", ((5, 6), (7, 8)))
    inside = task.open("/t/below/inside", abi.O_WRONLY | abi.O_CREAT, 0o600)
    task.write(inside, b"in another mount")
    plan = build(TaskSource(task, b"/t"))
    assert {piece.file.name for piece in plan.mappings} == {b"(copied)"}
    assert plan.mapped_bytes == 3 * 4096
    task.ftruncate(fd, 0)
    found = seen_by_linux(plan, tmp_path, mounted)
    assert sorted(found) == [
        b"", b"below", b"below/inside", b"dir", b"dir/file", b"link", b"null", b"second",
    ]  # fmt: skip
    expected = tmp_path / "expected"
    expected.mkdir()
    write_at(expected / "file", (0, b"a" * 10_000), ((3 << 30) + 77, b"z" * 10))
    assert found[b"dir/file"].content == snapshot(expected)[b"file"].content
    assert found[b"second"].same_as == b"dir/file"
    assert found[b"dir/file"].owner == (7, 8)
    assert found[b"dir/file"].mode == stat.S_IFREG | 0o640
    assert found[b"dir/file"].times[0] == 7 * 10**9 + 8
    assert found[b"dir"].xattrs == (("user.name", b"value"),)
    assert found[b"null"].rdev == os.makedev(1, 3)
    assert found[b"link"].content == b"dir/file"
    assert found[b""].mode == stat.S_IFDIR | 0o711


def test_a_file_deleted_on_the_host_is_copied_while_it_is_there(task: Task, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"x" * 9000)
    task.mkdir("/host")
    task.mount(os.fsencode(tmp_path / "tree"), "/host", "passthrough", 0, "")
    with build(TaskSource(task, b"/host")) as plan:
        (tmp_path / "tree" / "file").unlink()
        (piece, tail) = plan.pieces()
        assert plan.read(piece.offset, 8192) == bytes(8192)
        assert plan.changed
        assert tail.length == 9000 - 8192


def test_only_a_directory_can_be_an_image(task: Task) -> None:
    task.close(task.open("/file", abi.O_WRONLY | abi.O_CREAT, 0o600))
    with pytest.raises(NotADirectoryError):
        build(TaskSource(task, b"/file"))
    with pytest.raises(FileNotFoundError):
        build(TaskSource(task, b"/nothing"))


@NEEDS_ROOT
def test_a_user_is_told_which_file_he_may_not_read() -> None:
    with tempfile.TemporaryDirectory(prefix="dentry-ext2-") as directory:
        os.chmod(directory, 0o755)
        (Path(directory) / "dir").mkdir()
        (Path(directory) / "dir" / "file").write_bytes(b"secret")
        (Path(directory) / "dir" / "file").chmod(0o600)
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError) as caught:
                build(HostSource(directory))
            assert caught.value.filename == "dir/file"
            os.seteuid(0)
            (Path(directory) / "dir" / "file").chmod(0o644)
            os.seteuid(65534)
            with build(HostSource(directory)) as plan:
                (piece,) = plan.pieces()
                assert plan.read(piece.offset, 10) == b"secret" + bytes(4)
        finally:
            os.seteuid(0)


# Archives


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("kind", ["", "gz", "bz2", "xz"])
def test_an_archive_becomes_the_tree_that_it_holds(
    tmp_path: Path, mounted: Mounted, kind: str
) -> None:
    path = tmp_path / "archive"
    random = os.urandom(100_000)
    acl_text = "user::rw-,user:1000:rw-,group::r--,mask::rwx,other::---"
    headers = {
        "SCHILY.xattr.user.name": "value",
        "SCHILY.acl.access": acl_text,
        "mtime": "1700000000.123456789",
    }
    with tarfile.open(path, f"w:{kind}", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        add(archive, "./", type=tarfile.DIRTYPE, mode=0o750, mtime=77)
        add(archive, "./dir/deep/random", random, mode=0o4711, uid=70_000, gid=3)
        add(archive, "/dir/file", b"first")
        add(archive, "dir/file", b"second", pax_headers=headers)
        add(archive, "hard", type=tarfile.LNKTYPE, linkname="./dir/file")
        add(archive, "soft", type=tarfile.SYMTYPE, linkname="x" * 300)
        add(archive, "fifo", type=tarfile.FIFOTYPE)
        add(archive, "char", type=tarfile.CHRTYPE, devmajor=4, devminor=64)
        add(archive, "ü" * 100, b"")
    found = seen_by_linux(build(TarSource(path)), tmp_path, mounted)
    assert sorted(found) == sorted(
        [b"", b"dir", b"dir/deep", b"dir/deep/random", b"dir/file", b"hard", b"soft", b"fifo",
         b"char", "ü".encode() * 100]
    )  # fmt: skip
    (tmp_path / "random").write_bytes(random)
    (tmp_path / "second").write_bytes(b"second")
    expected = snapshot(tmp_path)
    assert found[b""].mode == stat.S_IFDIR | 0o750
    assert found[b""].times[0] == 77 * 10**9
    assert found[b"dir"].mode == stat.S_IFDIR | 0o755
    assert found[b"dir/deep/random"].content == expected[b"random"].content
    assert found[b"dir/deep/random"].mode == stat.S_IFREG | 0o4711
    assert found[b"dir/deep/random"].owner == (70_000, 3)
    assert found[b"dir/file"].content == expected[b"second"].content
    assert found[b"dir/file"].times[0] == 1700000000123456789
    entries = (
        (1, 6, NO_ID), (2, 6, 1000), (4, 4, NO_ID), (0x10, 7, NO_ID), (0x20, 0, NO_ID),
    )  # fmt: skip
    assert dict(found[b"dir/file"].xattrs) == {
        "user.name": b"value",
        "system.posix_acl_access": acl(*entries),
    }
    assert found[b"hard"].same_as == b"dir/file"
    assert found[b"soft"].content == b"x" * 300
    assert found[b"char"].rdev == os.makedev(4, 64)


@NEEDS_ROOT
@pytest.mark.parametrize("words", [["--format=gnu"], ["--format=pax", "--sparse"], ["-z"]])
def test_what_tar_packs_is_in_the_image(tmp_path: Path, mounted: Mounted, words: list[str]) -> None:
    top, path = tmp_path / "tree", tmp_path / "archive"
    top.mkdir()
    write_at(top / "sparse", (100_000, b"a" * 5000), (1 << 20, b"b"), size=3 << 20)
    (top / "dir").mkdir()
    (top / "dir" / ("long" * 50)).write_bytes(b"content" * 1000)
    os.link(top / "sparse", top / "dir" / "again")
    os.mkfifo(top / "fifo")
    (top / "link").symlink_to("y" * 200)
    for name in ("sparse", "dir"):
        os.setxattr(top / name, "user.x", b"\xff\0\x01")
        os.setxattr(top / name, "system.posix_acl_access", ACCESS)
    os.setxattr(top / "dir", "system.posix_acl_default", DEFAULT)
    os.utime(top / "dir", ns=(5, 10**9 + 5))
    pax = words == ["--format=pax", "--sparse"]
    extra = ["--xattrs", "--acls"] if pax else []
    subprocess.run(["tar", *words, *extra, "-cf", str(path), "-C", str(top), "."], check=True)
    found = seen_by_linux(build(TarSource(path)), tmp_path, mounted)
    wanted = snapshot(top)
    for name, entry in wanted.items():
        if not pax:
            entry = entry._replace(xattrs=(), times=(entry.times[0] // 10**9 * 10**9, 0))
            if name in (b"sparse", b"dir", b"dir/again"):
                # An ACL's mask is what group bits show.
                assert entry.mode == found[name].mode
        assert found[name]._replace(times=(0, 0)) == entry._replace(times=(0, 0))
        assert found[name].times[0] == entry.times[0]
    assert set(found) == set(wanted)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../outside", {})], "'..' or NUL in its name"),
        ([("a/../../b", {})], "'..' or NUL in its name"),
        ([("x", {"pax_headers": {"path": "a\0b"}})], "'..' or NUL in its name"),
        ([("x", {"type": tarfile.CHRTYPE, "devmajor": 4096})], "device numbers"),
        ([("file", {}), ("file/below", {})], "'file' is no directory"),
        ([("link", {"type": tarfile.LNKTYPE, "linkname": "none"})], "no earlier file"),
        ([(".", {})], "the root can't be anything but a directory"),
        ([("n" * 256, {})], "256 bytes; an ext2 has 255"),
        ([("link", {"type": tarfile.SYMTYPE, "linkname": "n" * 4096})], "a symlink to 4096 bytes"),
        ([("link", {"type": tarfile.SYMTYPE})], "a symlink to 0 bytes"),
        ([("x", {"pax_headers": {"SCHILY.xattr.user.x": "x" * 5000}})], "attributes need 5"),
        ([("x", {"pax_headers": {"SCHILY.acl.access": "user::rwz"}})], "its ACL"),
    ],
)
def test_members_that_make_no_tree_are_named(
    tmp_path: Path, members: list[tuple[str, dict[str, object]]], message: str
) -> None:
    path = tmp_path / "archive"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, fields in members:
            add(archive, name, **fields)
    with pytest.raises(ImageError, match=message):
        build(TarSource(path))


@pytest.mark.parametrize(
    "data",
    [b"", b"no archive" * 1000, b"\x1f\x8b\x08 broken", b"BZh9 broken" * 99, b"\xfd7zXZ\0 broken"],
)
def test_what_is_no_archive_is_an_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "archive"
    path.write_bytes(data)
    with pytest.raises(ImageError, match="no tar archive"):
        build(TarSource(path))


def test_an_archive_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    with tarfile.open(path, "w") as archive:
        add(archive, "file", b"x" * 100_000)
    with build(TarSource(path), BuildOptions()) as plan:
        (piece, *_) = plan.pieces()
        assert plan.read(piece.offset, 4096) == b"x" * 4096
        os.truncate(path, 512)
        assert plan.read(piece.offset, 4096) == bytes(4096)
        assert plan.changed


def test_a_map_that_claims_more_than_there_is_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0",
        "GNU.sparse.name": "sparse", "GNU.sparse.realsize": str(3 << 40),
    }  # fmt: skip
    claims = f"1\n0\n{3 << 40}\n".encode().ljust(512, b"\0")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "sparse", claims, pax_headers=headers)
    with pytest.raises(ImageError, match="sparse: the archive ends in it"):
        build(TarSource(path))


def test_headers_that_lead_nowhere_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    backwards = tarfile.TarInfo("backwards")
    backwards.size = -512
    header = io.BytesIO()
    with tarfile.open(fileobj=header, mode="w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "x", pax_headers={"comment": "c"})
    for data, message in (
        (backwards.tobuf(tarfile.GNU_FORMAT), "backwards: .* a negative size"),
        (header.getvalue()[:1024] * 3000, "no tar archive"),
    ):
        path.write_bytes(data + bytes(1024))
        with pytest.raises(ImageError, match=message):
            build(TarSource(path))


def test_a_broken_archive_is_an_error_or_an_image(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "file", b"x" * 1000, pax_headers={"mtime": "1.5", "SCHILY.xattr.user.x": "y"})
        add(archive, "dir", type=tarfile.DIRTYPE)
        add(archive, "dir/link", type=tarfile.LNKTYPE, linkname="file")
        add(archive, "dir/soft", type=tarfile.SYMTYPE, linkname="file")
        add(archive, "char", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
        headers = {
            "GNU.sparse.major": "1", "GNU.sparse.minor": "0",
            "GNU.sparse.name": "sparse", "GNU.sparse.realsize": "100000",
        }  # fmt: skip
        sparse = b"2\n0\n512\n50000\n512\n".ljust(512, b"\0") + b"s" * 1024
        add(archive, "sparse", sparse, pax_headers=headers)
    good = path.read_bytes()
    numbers = random.Random(11)
    outcomes = set()
    for number in range(1500):
        data = bytearray(good)
        for _ in range(numbers.randint(1, 4)):
            at = numbers.randrange(len(data))
            data[at] = numbers.choice((data[at] ^ 1 << numbers.randrange(8), 0, 0x39, 0x2D, 0xFF))
            if numbers.random() < 0.7:
                _mend_checksum(data, at)
        if number % 10 == 0:
            del data[numbers.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            with build(TarSource(path)) as plan:
                assert len(plan.read(0, min(plan.size, 1 << 20))) > 0
                outcomes.add("image")
        except ImageError as error:
            assert "\n" not in str(error)
            outcomes.add("error")
    assert outcomes == {"image", "error"}


def _mend_checksum(data: bytearray, at: int) -> None:
    """Make the header that ``at`` is in count right again, so that what it says is looked at."""
    start = at // 512 * 512
    header = data[start : start + 512]
    if header[257:262] == b"ustar":
        header[148:156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(header)
