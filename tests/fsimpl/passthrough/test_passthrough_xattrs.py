"""Extended attributes under the mount's options: whether, which, and by what name."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from fsimpl.passthrough import oslib
from vfs import abi
from vfs.task import Task

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="sets trusted.* attributes: needs root")
MountWith = Callable[..., Task]
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHi", *entry)
    for entry in ((1, 7, -1), (2, 4, 1001), (4, 4, -1), (16, 4, -1), (32, 0, -1))
)
ACCESS = "system.posix_acl_access"
# cap_net_raw, permitted and effective
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)


def errno_of(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return None


def test_noxattr_knows_no_attributes_at_all(mount_with: MountWith, shared: Path) -> None:
    (shared / "f").touch()
    os.setxattr(shared / "f", "user.a", b"1")
    task = mount_with("noxattr")
    for call in (
        lambda: task.getxattr("f", "user.a"),
        lambda: task.setxattr("f", "user.b", b"2"),
        lambda: task.removexattr("f", "user.a"),
        lambda: task.listxattr("f"),
    ):
        assert errno_of(call) == errno.EOPNOTSUPP
    assert os.listxattr(shared / "f") == ["user.a"]


@pytest.mark.parametrize("options", ["", "xattr", "posix_acl", "security_label"])
def test_attributes_pass_unless_they_are_switched_off(
    mount_with: MountWith, shared: Path, options: str
) -> None:
    (shared / "f").touch()
    task = mount_with(options)
    task.setxattr("f", "user.a", b"1")
    assert os.getxattr(shared / "f", "user.a") == b"1"
    task.setxattr("f", ACCESS, ACL)
    assert os.getxattr(shared / "f", ACCESS) == ACL
    assert ACCESS.encode() in task.listxattr("f")


def test_noposix_acl_keeps_acls_out_of_reach_and_the_rest_in(
    mount_with: MountWith, shared: Path
) -> None:
    (shared / "f").touch()
    os.setxattr(shared / "f", ACCESS, ACL)
    os.setxattr(shared / "f", "user.a", b"1")
    task = mount_with("xattr,noposix_acl")
    assert errno_of(lambda: task.getxattr("f", ACCESS)) == errno.EOPNOTSUPP
    assert errno_of(lambda: task.setxattr("f", ACCESS, ACL)) == errno.EOPNOTSUPP
    assert errno_of(lambda: task.removexattr("f", ACCESS)) == errno.EOPNOTSUPP
    assert task.listxattr("f") == [b"user.a"]
    assert os.getxattr(shared / "f", ACCESS) == ACL


def test_a_mapped_attribute_is_on_the_host_under_its_other_name(
    mount_with: MountWith, shared: Path
) -> None:
    (shared / "f").touch()
    os.setxattr(shared / "f", "user.hosts", b"secret")
    task = mount_with("xattrmap=:map::user.virtiofs.:")
    task.setxattr("f", "user.a", b"1")
    task.setxattr("f", "trusted.b", b"2")
    assert sorted(os.listxattr(shared / "f")) == [
        "user.hosts", "user.virtiofs.trusted.b", "user.virtiofs.user.a",
    ]  # fmt: skip
    assert sorted(task.listxattr("f")) == [b"trusted.b", b"user.a"]
    assert task.getxattr("f", "trusted.b") == b"2"
    assert errno_of(lambda: task.getxattr("f", "user.hosts")) == errno.ENODATA
    task.removexattr("f", "trusted.b")
    assert errno_of(lambda: task.getxattr("f", "trusted.b")) == errno.ENODATA
    assert os.getxattr(shared / "f", "user.hosts") == b"secret"


def test_a_bad_name_is_eperm_to_change_and_enodata_to_read(
    mount_with: MountWith, shared: Path
) -> None:
    (shared / "f").touch()
    os.setxattr(shared / "f", "user.bad", b"1")
    os.setxattr(shared / "f", "user.ok", b"1")
    task = mount_with(
        "xattrmap=/bad/all/user.bad/user.bad/ /unsupported/all/user.u/user.u//ok/all///"
    )
    assert errno_of(lambda: task.getxattr("f", "user.bad")) == errno.ENODATA
    assert errno_of(lambda: task.setxattr("f", "user.bad", b"2")) == errno.EPERM
    assert errno_of(lambda: task.removexattr("f", "user.bad")) == errno.EPERM
    for call in (
        lambda: task.getxattr("f", "user.u"),
        lambda: task.setxattr("f", "user.u", b"2"),
        lambda: task.removexattr("f", "user.u"),
    ):
        assert errno_of(call) == errno.EOPNOTSUPP
    assert task.listxattr("f") == [b"user.ok"]


def test_a_comma_in_a_value_is_written_behind_a_backslash(
    mount_with: MountWith, shared: Path
) -> None:
    (shared / "f").touch()
    task = mount_with("xattrmap=\\,map\\,\\,user.v.\\,,xattr")
    task.setxattr("f", "user.a", b"1")
    assert os.listxattr(shared / "f") == ["user.v.user.a"]
    shown = task.fs.root.mount.superblock.show_options()
    assert shown == ",xattrmap=\\,map\\,\\,user.v.\\,,xattr"


@needs_root
@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("rewrite_security_xattrs", "user.virtiofs.security.capability"),
        ("xattrmap=:map::user.v.:", "user.v.security.capability"),
    ],
)
def test_a_renamed_capability_goes_when_the_file_changes(
    mount_with: MountWith, shared: Path, option: str, name: str
) -> None:
    task = mount_with(option)
    (shared / "f").write_bytes(b"content")

    def write(task: Task) -> None:
        fd = task.open("f", abi.O_WRONLY)
        task.write(fd, b"x")
        task.close(fd)

    def allocate(task: Task) -> None:
        fd = task.open("f", abi.O_WRONLY)
        task.fallocate(fd, 0, 0, 10)
        task.close(fd)

    for change in (
        write,
        allocate,
        lambda task: task.truncate("f", 3),
        lambda task: task.chown("f", 1000, -1),
        lambda task: task.chown("f", -1, -1),
    ):
        task.setxattr("f", "security.capability", CAPABILITY)
        assert os.getxattr(shared / "f", name) == CAPABILITY
        assert task.getxattr("f", "security.capability") == CAPABILITY
        change(task)
        assert errno_of(lambda: task.getxattr("f", "security.capability")) == errno.ENODATA
    task.setxattr("f", "security.capability", CAPABILITY)
    task.chmod("f", 0o755)
    task.setxattr("f", "user.a", b"1")
    assert task.getxattr("f", "security.capability") == CAPABILITY


@needs_root
def test_rewriting_security_attributes_leaves_others_and_the_hosts_own_alone(
    mount_with: MountWith, shared: Path
) -> None:
    (shared / "f").touch()
    os.setxattr(shared / "f", "security.hosts", b"h")
    task = mount_with("rewrite_security_xattrs")
    task.setxattr("f", "security.ima", b"i")
    task.setxattr("f", "user.a", b"1")
    assert sorted(os.listxattr(shared / "f")) == [
        "security.hosts", "user.a", "user.virtiofs.security.ima",
    ]  # fmt: skip
    assert sorted(task.listxattr("f")) == [b"security.ima", b"user.a"]
    assert errno_of(lambda: task.getxattr("f", "security.hosts")) == errno.ENODATA


@needs_root
def test_getfattr_style_loop_sees_what_it_listed(mount_with: MountWith, shared: Path) -> None:
    (shared / "f").touch()
    task = mount_with("xattrmap=:map:trusted.:user.virtiofs.:")
    for name in ("user.a", "trusted.b", "security.c"):
        task.setxattr("f", name, name.encode())
    for name in task.listxattr("f"):
        assert task.getxattr("f", name) == name


@pytest.mark.parametrize(
    "options",
    [
        "noxattr,posix_acl",
        "posix_acl,noxattr",
        "noxattr,security_label",
        "noxattr,xattrmap=:map::user.v.:",
        "noxattr,rewrite_security_xattrs",
        "rewrite_security_xattrs,xattrmap=:map::user.v.:",
        "xattrmap=",
        "xattrmap",
        "xattrmap=:nonsense:",
        "xattr=1",
    ],
)
def test_options_that_make_no_sense_are_refused(mount_with: MountWith, options: str) -> None:
    assert errno_of(lambda: mount_with(options)) == errno.EINVAL


def test_what_the_host_sets_under_the_mapped_name_is_seen_inside(
    mount_with: MountWith, shared: Path
) -> None:
    (shared / "f").touch()
    task = mount_with("xattrmap=:map::user.virtiofs.:")
    os.setxattr(shared / "f", "user.virtiofs.user.from_host", b"hello")
    assert task.getxattr("f", "user.from_host") == b"hello"


@needs_root
@pytest.mark.parametrize("proc", [b"/proc/self/fd", b"/nowhere"])
def test_kernels_without_the_calls_for_descriptors_reach_every_kind_of_file(
    mount_with: MountWith, shared: Path, monkeypatch: pytest.MonkeyPatch, proc: bytes
) -> None:
    monkeypatch.setattr(oslib, "HAS_XATTRAT", False)
    monkeypatch.setattr(oslib, "_PROC_SELF_FD", proc)
    (shared / "d").mkdir()
    (shared / "link").symlink_to("d")
    os.mkfifo(shared / "fifo")
    task = mount_with("")
    before = os.getcwd()
    for name in ("d", "link", "fifo"):
        task.setxattr(name, "trusted.a", b"1", follow=False)
        assert os.getxattr(shared / name, "trusted.a", follow_symlinks=False) == b"1"
        assert task.getxattr(name, "trusted.a", follow=False) == b"1"
        assert b"trusted.a" in task.listxattr(name, follow=False)
        task.removexattr(name, "trusted.a", follow=False)
        assert b"trusted.a" not in task.listxattr(name, follow=False)
        assert os.getcwd() == before
