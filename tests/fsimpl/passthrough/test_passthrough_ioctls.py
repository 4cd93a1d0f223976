"""ioctls on files of the host, beside the host's own answers."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsimpl.passthrough.ioctls import (
    FS_IOC32_GETFLAGS,
    FS_IOC32_SETFLAGS,
    FS_IOC_ENABLE_VERITY,
    FS_IOC_FSGETXATTR,
    FS_IOC_FSSETXATTR,
    FS_IOC_GET_ENCRYPTION_POLICY_EX,
    FS_IOC_GETFLAGS,
    FS_IOC_MEASURE_VERITY,
    FS_IOC_SETFLAGS,
)
from vfs import Credentials, abi
from vfs.task import Task

MountWith = Callable[..., Task]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="changes flags of files: needs root")
FSXATTR = struct.Struct("=5I8x")
PROJINHERIT = 0x200


def errno_of(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return None


@pytest.fixture
def loop(tmp_path: Path, shared: Path) -> Iterator[Path]:
    """``shared`` is the root of a fresh ext4 that has encryption."""
    if not shutil.which("mkfs.ext4"):
        pytest.skip("mkfs.ext4 is missing")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    options = ["-q", "-O", "encrypt", "-I", "256"]
    subprocess.run(["mkfs.ext4", *options, image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, shared], capture_output=True).returncode:
        pytest.skip("no loop mounts here")
    shared.chmod(0o755)
    yield shared
    subprocess.run(["umount", "-l", shared], check=True)


def host_flags(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return int.from_bytes(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)), "little")
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", ["f", "d"])
def test_flags_are_the_hosts(mount_with: MountWith, loop: Path, name: str) -> None:
    (loop / "f").touch()
    (loop / "d").mkdir()
    task = mount_with()
    fd = task.open(name, abi.O_RDONLY)
    before = host_flags(loop / name)
    for command in (FS_IOC_GETFLAGS, FS_IOC32_GETFLAGS):
        assert int.from_bytes(task.ioctl(fd, command), "little") == before
    for command, flag in ((FS_IOC_SETFLAGS, 0x80), (FS_IOC32_SETFLAGS, abi.FS_NODUMP_FL)):
        task.ioctl(fd, command, (before | flag).to_bytes(4, "little"))
        assert host_flags(loop / name) == before | flag


def test_an_immutable_file_is_immutable_at_once_and_for_those_who_may(
    mount_with: MountWith, loop: Path
) -> None:
    (loop / "f").write_bytes(b"x")
    os.chown(loop / "f", 1000, 1000)
    task = mount_with()
    owner = task.clone(cred=Credentials(1000, 1000))
    other = task.clone(cred=Credentials(1001, 1001))
    flags = host_flags(loop / "f")
    immutable = (flags | abi.FS_IMMUTABLE_FL).to_bytes(4, "little")
    nodump = (flags | abi.FS_NODUMP_FL).to_bytes(4, "little")
    fd = owner.open("f", abi.O_RDONLY)
    assert errno_of(lambda: owner.ioctl(fd, FS_IOC_SETFLAGS, immutable)) == errno.EPERM
    owner.ioctl(fd, FS_IOC_SETFLAGS, nodump)
    others = other.open("f", abi.O_RDONLY)
    assert errno_of(lambda: other.ioctl(others, FS_IOC_SETFLAGS, nodump)) == errno.EPERM
    roots = task.open("f", abi.O_RDONLY)
    task.ioctl(roots, FS_IOC_SETFLAGS, immutable)
    try:
        assert errno_of(lambda: task.open("f", abi.O_WRONLY)) == errno.EPERM
        assert errno_of(lambda: task.unlink("f")) == errno.EPERM
    finally:
        task.ioctl(roots, FS_IOC_SETFLAGS, nodump)
    task.unlink("f")


def host_fsxattr(path: Path, value: bytes | None = None) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        if value is not None:
            fcntl.ioctl(fd, FS_IOC_FSSETXATTR, value)
        return fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(FSXATTR.size))
    finally:
        os.close(fd)


@pytest.mark.parametrize("flags", [0x80, 0x80 | PROJINHERIT, 0x40, 0x8])
@pytest.mark.parametrize("project", [0, 77])
def test_fsxattr_is_the_hosts(mount_with: MountWith, loop: Path, flags: int, project: int) -> None:
    for name in ("ours", "hosts"):
        (loop / name).mkdir()
    task = mount_with()
    fd = task.open("ours", abi.O_RDONLY)
    value = FSXATTR.pack(flags, 0, 0, project, 0)
    expected = errno_of(lambda: host_fsxattr(loop / "hosts", value))
    assert errno_of(lambda: task.ioctl(fd, FS_IOC_FSSETXATTR, value)) == expected
    assert task.ioctl(fd, FS_IOC_FSGETXATTR) == host_fsxattr(loop / "ours")
    assert host_fsxattr(loop / "ours") == host_fsxattr(loop / "hosts")


def test_a_privileged_quota_uid_may_set_project_ids_of_others_and_nothing_else(
    mount_with: MountWith, loop: Path
) -> None:
    (loop / "f").touch()
    project = FSXATTR.pack(0, 0, 0, 77, 0)
    # A kernel without quotas has no project ids: then that is the answer to who may.
    by_root = errno_of(lambda: host_fsxattr(loop / "f", project))
    host_fsxattr(loop / "f", FSXATTR.pack(0, 0, 0, 0, 0))
    task = mount_with("privileged_quota_uids=500 600")
    for uid, expected in ((600, by_root), (601, errno.EPERM)):
        caller = task.clone(cred=Credentials(uid, uid))
        fd = caller.open("f", abi.O_RDONLY)

        def change(value: bytes, caller: Task = caller, fd: int = fd) -> int | None:
            return errno_of(lambda: caller.ioctl(fd, FS_IOC_FSSETXATTR, value))

        assert change(project) == expected
        assert change(FSXATTR.pack(abi.FS_NODUMP_FL << 1, 0, 0, 77, 0)) == errno.EPERM


def test_a_read_only_mount_changes_no_flags(mount_with: MountWith, shared: Path) -> None:
    (shared / "f").touch()
    task = mount_with(flags=abi.MS_RDONLY)
    fd = task.open("f", abi.O_RDONLY)
    flags = task.ioctl(fd, FS_IOC_GETFLAGS)
    assert errno_of(lambda: task.ioctl(fd, FS_IOC_SETFLAGS, flags)) == errno.EROFS


def test_the_encryption_policy_of_a_directory_is_told(mount_with: MountWith, loop: Path) -> None:
    host = os.open(loop, os.O_RDONLY)
    (loop / "secret").mkdir()
    directory = os.open(loop / "secret", os.O_RDONLY)
    # struct fscrypt_add_key_arg with an identifier to be filled in, and 64 bytes of key
    key = bytearray(struct.pack("=II32sIIQ24x", 2, 0, b"", 64, 0, 0) + bytes(range(64)))
    libc = ctypes.CDLL(None, use_errno=True)
    view = (ctypes.c_char * len(key)).from_buffer(key)
    added = libc.ioctl(host, ctypes.c_ulong(0xC0506617), view)
    try:
        if added:
            pytest.skip(f"no encryption keys here: {os.strerror(ctypes.get_errno())}")
        identifier = bytes(key[8:24])
        policy = struct.pack("=BBBB4x16s", 2, 1, 4, 3, identifier)
        fcntl.ioctl(directory, 0x800C6613, policy)
        task = mount_with()
        fd = task.open("secret", abi.O_RDONLY)
        told = task.ioctl(fd, FS_IOC_GET_ENCRYPTION_POLICY_EX, struct.pack("=QB", 24, 0))
        assert told == struct.pack("=Q", 24) + policy
        short = struct.pack("=QB", 1, 0)
        assert (
            errno_of(lambda: task.ioctl(fd, FS_IOC_GET_ENCRYPTION_POLICY_EX, short))
            == errno.EOVERFLOW
        )
        root = task.open("/", abi.O_RDONLY)
        full = struct.pack("=QB", 24, 0)
        assert (
            errno_of(lambda: task.ioctl(root, FS_IOC_GET_ENCRYPTION_POLICY_EX, full))
            == errno.ENODATA
        )
    finally:
        del view
        os.close(directory)
        os.close(host)


def test_fsverity_is_what_the_host_says_of_it(mount_with: MountWith, shared: Path) -> None:
    (shared / "f").write_bytes(b"content")
    enable = struct.pack("=4IQIIQ88x", 1, 1, 4096, 4, 0, 0, 0, 0)
    measure = struct.pack("=HH", 0, 64)
    host = os.open(shared / "f", os.O_RDONLY)
    salt = ctypes.create_string_buffer(b"salt", 4)
    hosts = struct.pack("=4IQIIQ88x", 1, 1, 4096, 4, ctypes.addressof(salt), 0, 0, 0)
    expected = errno_of(lambda: fcntl.ioctl(host, FS_IOC_MEASURE_VERITY, measure + bytes(64)))
    task = mount_with()
    fd = task.open("f", abi.O_RDONLY)
    assert errno_of(lambda: task.ioctl(fd, FS_IOC_MEASURE_VERITY, measure)) == expected
    outcome = errno_of(lambda: task.ioctl(fd, FS_IOC_ENABLE_VERITY, enable + b"salt"))
    if outcome is None:
        assert len(task.ioctl(fd, FS_IOC_MEASURE_VERITY, measure)) == 4 + 32
    else:
        assert outcome == errno_of(lambda: fcntl.ioctl(host, FS_IOC_ENABLE_VERITY, hosts))
    os.close(host)
    for argument in (enable, enable + b"sal", b"", 0):
        assert errno_of(lambda a=argument: task.ioctl(fd, FS_IOC_ENABLE_VERITY, a)) == errno.EINVAL


@pytest.mark.parametrize("command", [0, 0x5401, 0x40086603, 0xC0185879, 0x4004667F])
def test_other_ioctls_are_not_passed(mount_with: MountWith, shared: Path, command: int) -> None:
    (shared / "f").touch()
    task = mount_with()
    fd = task.open("f", abi.O_RDWR)
    assert errno_of(lambda: task.ioctl(fd, command, bytes(64))) == errno.ENOTTY
    fd = task.open("/", abi.O_RDONLY)
    assert errno_of(lambda: task.ioctl(fd, command, bytes(64))) == errno.ENOTTY


@pytest.mark.parametrize("command", [FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR, FS_IOC_MEASURE_VERITY])
@pytest.mark.parametrize("argument", [b"", b"abc", 0])
def test_an_argument_that_is_too_short_is_einval(
    mount_with: MountWith, shared: Path, command: int, argument: bytes | int
) -> None:
    (shared / "f").touch()
    task = mount_with()
    fd = task.open("f", abi.O_RDONLY)
    assert errno_of(lambda: task.ioctl(fd, command, argument)) == errno.EINVAL
