"""Options of a passthrough, as the host's kernel meets them through /dev/fuse."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts: needs root"),
]
GETFLAGS, SETFLAGS = 0x80086601, 0x40086602
NODUMP = 0x40
Mounted = Callable[[str], AbstractContextManager[object]]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "shared"
    directory.mkdir()
    return directory


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "mnt"
    directory.mkdir()
    return directory


@pytest.fixture
def mounted(mount_daemon: type, shared: Path, mountpoint: Path) -> Mounted:
    def mount(options: str) -> AbstractContextManager[object]:
        spec = f"type=passthrough,src={shared},dst=/{options and ','}{options}"
        daemon: AbstractContextManager[object] = mount_daemon(
            mountpoint, "-o", "default_permissions", "--mount", spec
        )
        return daemon

    return mount


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0)
    yield os.umask
    os.umask(before)


def acl_of(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


def test_umask_and_default_acl_are_applied_as_on_the_host(
    mounted: Mounted, shared: Path, mountpoint: Path, tmp_path: Path, umask: Callable[[int], int]
) -> None:
    umask(0o027)
    host = tmp_path / "host"
    default = acl_of((1, 7, -1), (2, 6, 1001), (4, 6, -1), (16, 6, -1), (32, 4, -1))
    modes = []
    for place in (shared, host):
        place.mkdir(exist_ok=True)
        (place / "plain").mkdir()
        (place / "acl").mkdir()
        os.setxattr(place / "acl", "system.posix_acl_default", default)
    with mounted("posix_acl"):
        for place in (mountpoint, host):
            for directory in ("plain", "acl"):
                (place / directory / "file").touch(0o666)
                (place / directory / "dir").mkdir(0o777)
                os.mkfifo(place / directory / "fifo", 0o666)
    for place in (shared, host):
        modes.append(
            {
                str(path.relative_to(place)): oct(path.stat().st_mode)
                for path in sorted(place.rglob("*"))
            }
        )
    assert modes[0] == modes[1]


def test_an_acl_lets_a_user_in_through_the_mount(
    mounted: Mounted, shared: Path, mountpoint: Path
) -> None:
    (shared / "file").write_bytes(b"x")
    (shared / "file").chmod(0o600)
    access = acl_of((1, 6, -1), (2, 4, 1001), (4, 0, -1), (16, 4, -1), (32, 0, -1))
    with mounted("posix_acl"):
        os.setxattr(mountpoint / "file", "system.posix_acl_access", access)
        assert os.getxattr(mountpoint / "file", "system.posix_acl_access") == access
        assert (mountpoint / "file").stat().st_mode & 0o777 == 0o640
    assert os.getxattr(shared / "file", "system.posix_acl_access") == access


def test_written_back_data_arrives_whole(mounted: Mounted, shared: Path, mountpoint: Path) -> None:
    with mounted("writeback,cache=always"):
        fd = os.open(mountpoint / "file", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        for number in range(5000):
            os.write(fd, b"%06d\n" % number)
        os.fsync(fd)
        assert len((shared / "file").read_bytes()) == 35000
        os.close(fd)
        # Part of a page of a file that is opened for writing only.
        fd = os.open(mountpoint / "file", os.O_WRONLY)
        os.pwrite(fd, b"XX", 10000)
        os.close(fd)
    expected = bytearray(b"".join(b"%06d\n" % number for number in range(5000)))
    expected[10000:10002] = b"XX"
    assert (shared / "file").read_bytes() == expected


@pytest.mark.parametrize("cache", ["never", "metadata", "auto", "always"])
def test_a_file_is_written_read_and_mapped_with_every_cache_word(
    mounted: Mounted, shared: Path, mountpoint: Path, cache: str
) -> None:
    with mounted(f"cache={cache},allow_mmap"):
        (mountpoint / "file").write_bytes(b"content")
        assert (mountpoint / "file").read_bytes() == b"content"
        with (
            open(mountpoint / "file", "r+b") as file,
            mmap.mmap(file.fileno(), 0) as mapping,
        ):
            mapping[:3] = b"CON"
            mapping.flush()
        assert os.listdir(mountpoint) == ["file"]
    assert (shared / "file").read_bytes() == b"CONtent"


def test_without_allow_mmap_a_file_past_the_cache_is_not_mapped_shared(
    mounted: Mounted, shared: Path, mountpoint: Path
) -> None:
    (shared / "file").write_bytes(b"content")
    with (
        mounted("cache=never,noallow_mmap"),
        open(mountpoint / "file", "r+b") as file,
        pytest.raises(OSError),
    ):
        mmap.mmap(file.fileno(), 0)


def test_inode_flags_travel_through_the_kernel(
    mounted: Mounted, shared: Path, mountpoint: Path
) -> None:
    (shared / "file").touch()
    (shared / "dir").mkdir()
    with mounted(""):
        for name in ("file", "dir"):
            fd = os.open(mountpoint / name, os.O_RDONLY)
            host = os.open(shared / name, os.O_RDONLY)
            flags = int.from_bytes(fcntl.ioctl(host, GETFLAGS, bytes(8))[:4], "little")
            told = int.from_bytes(fcntl.ioctl(fd, GETFLAGS, bytes(8))[:4], "little")
            assert told == flags
            fcntl.ioctl(fd, SETFLAGS, (flags | NODUMP).to_bytes(8, "little"))
            after = int.from_bytes(fcntl.ioctl(host, GETFLAGS, bytes(8))[:4], "little")
            assert after == flags | NODUMP
            os.close(fd)
            os.close(host)


def test_mapped_attributes_travel_through_the_kernel(
    mounted: Mounted, shared: Path, mountpoint: Path
) -> None:
    (shared / "file").touch()
    with mounted("xattrmap=:map::user.virtiofs.:"):
        os.setxattr(mountpoint / "file", "trusted.a", b"1")
        assert os.listxattr(mountpoint / "file") == ["trusted.a"]
        assert os.getxattr(mountpoint / "file", "trusted.a") == b"1"
    assert os.listxattr(shared / "file") == ["user.virtiofs.trusted.a"]


def test_mapped_ids_travel_through_the_kernel(
    mounted: Mounted, shared: Path, mountpoint: Path
) -> None:
    shared.chmod(0o777)
    with mounted("uidmap=0 100000 1000,gidmap=0 200000 1000"):
        (mountpoint / "file").touch()
        os.chown(mountpoint / "file", 5, 6)
        found = (mountpoint / "file").stat()
        assert (found.st_uid, found.st_gid) == (5, 6)
        with pytest.raises(OSError):
            os.chown(mountpoint / "file", 1000, -1)
    found = (shared / "file").stat()
    assert (found.st_uid, found.st_gid) == (100005, 200006)
