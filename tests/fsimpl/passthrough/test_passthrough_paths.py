"""Options that speak of paths: allow-lists, owners by path, and what a client sets for paths."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsimpl.passthrough import PassthroughSuperblock
from fsimpl.passthrough.allowlist import FULL, NONE, TRAVERSE, PathAllowlist
from vfs import Credentials, abi
from vfs.task import Task

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of others: needs root")
MountWith = Callable[..., Task]
SETPERMISSION = 0x40986601
SETPATHXATTR = 0x41806601


def errno_of(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return None


def allowlist_of(task: Task) -> PathAllowlist:
    superblock = task.fs.root.dentry.superblock
    assert isinstance(superblock, PassthroughSuperblock)
    assert superblock.paths is not None
    assert superblock.paths.allowlist is not None
    return superblock.paths.allowlist


@pytest.fixture
def tree(shared: Path) -> Path:
    """/a/b/c/file, /a/b/d/file, /a/file and /z/file."""
    for name in ("a/b/c", "a/b/d", "a", "z"):
        (shared / name).mkdir(parents=True, exist_ok=True)
        (shared / name / "file").write_text(name)
    return shared


# The list itself

NAMES = st.lists(st.sampled_from([b"a", b"b"]), max_size=3)
CHANGES = st.lists(st.tuples(st.booleans(), NAMES), max_size=8)


@given(changes=CHANGES, asked=NAMES)
def test_levels_follow_from_the_paths_that_are_allowed(
    changes: list[tuple[bool, list[bytes]]], asked: list[bytes]
) -> None:
    allowlist = PathAllowlist()
    allowed: set[tuple[bytes, ...]] = set()
    for add, names in changes:
        path = b"/" + b"/".join(names)
        if add:
            assert allowlist.add([path]) is None
            allowed.add(tuple(names))
        else:
            refused = tuple(names) not in allowed
            assert (allowlist.remove([path]) == path) is refused
            allowed.discard(tuple(names))
    this = tuple(asked)
    if any(this[: len(names)] == names for names in allowed):
        expected = FULL
    elif any(names[: len(this)] == this for names in allowed):
        expected = TRAVERSE
    else:
        expected = NONE
    assert allowlist.level(this) == expected
    visible = allowlist.visible(this)
    assert (visible is None) is (expected == FULL)
    if visible is not None:
        assert visible == {n for n in (b"a", b"b") if allowlist.level((*this, n)) != NONE}


def test_a_change_is_made_whole_or_not_at_all() -> None:
    allowlist = PathAllowlist()
    assert allowlist.add([b"/good", b"/a/../../bad"]) == b"/a/../../bad"
    assert allowlist.level((b"good",)) == NONE
    assert allowlist.add([b"x/./y//", b"/x/../z"]) is None
    assert allowlist.level((b"x", b"y")) == allowlist.level((b"z",)) == FULL
    assert allowlist.remove([b"/z", b"/never"]) == b"/never"
    assert allowlist.level((b"z",)) == FULL
    assert allowlist.remove([b"/z", b"/z"]) == b"/z"


# What it does to a mount


def test_an_empty_allowlist_shows_nothing(mount_with: MountWith, tree: Path) -> None:
    task = mount_with("allowlist")
    assert task.listdir("/") == []
    assert errno_of(lambda: task.stat("/a")) == errno.ENOENT
    assert errno_of(lambda: task.mkdir("/new")) == errno.EACCES
    assert task.stat("/").st_ino == os.stat(tree).st_ino


def test_what_leads_to_an_allowed_path_can_be_walked_and_not_changed(
    mount_with: MountWith, tree: Path
) -> None:
    task = mount_with("allowlist")
    assert allowlist_of(task).add([b"/a/b/c"]) is None
    assert task.listdir("/") == ["a"]
    assert task.listdir("/a") == ["b"]
    assert task.listdir("/a/b") == ["c"]
    assert task.listdir("/a/b/c") == ["file"]
    for path in ("/a/file", "/a/b/d", "/z", "/z/file"):
        assert errno_of(lambda path=path: task.stat(path)) == errno.ENOENT
    refused: list[Callable[[], object]] = [
        lambda: task.mkdir("/a/new"),
        lambda: task.open("/a/new", abi.O_CREAT | abi.O_WRONLY),
        lambda: task.open("/a/b", abi.O_TMPFILE | abi.O_RDWR),
        lambda: task.symlink("x", "/a/b/new"),
        lambda: task.mknod("/a/b/new", abi.S_IFIFO | 0o600),
        lambda: task.rename("/a/b/c/file", "/a/b/out"),
        lambda: task.rename("/a/b/c", "/a/b/out"),
        lambda: task.rmdir("/a/b"),
        lambda: task.link("/a/b/c/file", "/a/b/out"),
        lambda: task.chmod("/a/b", 0o700),
        lambda: task.chown("/a", 5, 5),
        lambda: task.setxattr("/a", "user.x", b"1"),
    ]
    assert [errno_of(call) for call in refused] == [errno.EACCES] * len(refused)
    task.mkdir("/a/b/c/new")
    task.rename("/a/b/c/file", "/a/b/c/new/file")
    assert (tree / "a/b/c/new/file").read_text() == "a/b/c"
    assert sorted(os.listdir(tree / "a")) == ["b", "file"]


def test_what_is_taken_off_the_list_is_gone_though_somebody_holds_it(
    mount_with: MountWith, tree: Path
) -> None:
    task = mount_with("allowlist")
    allowlist = allowlist_of(task)
    allowlist.add([b"/a/b", b"/z"])
    held = task.open("/a/b/c", abi.O_PATH)
    reader = task.open("/a/b/c/file", abi.O_RDONLY)
    task.link("/a/b/d/file", "/z/kept")
    allowlist.remove([b"/a/b"])
    assert errno_of(lambda: task.stat("/a")) == errno.ENOENT
    assert errno_of(lambda: task.openat(held, "file", abi.O_RDONLY)) == errno.ENOENT
    assert errno_of(lambda: task.mkdirat(held, "new", 0o777)) == errno.EACCES
    assert task.read(reader, 10) == b"a/b/c"
    # A list that is longer again shows it again.
    allowlist.add([b"/a/b/c"])
    assert task.listdir("/a/b") == ["c"]
    assert task.stat("/z/kept").st_ino == os.stat(tree / "a/b/d/file").st_ino


def test_an_allowed_name_is_followed_where_the_client_renames_it(
    mount_with: MountWith, tree: Path
) -> None:
    task = mount_with("allowlist")
    allowlist = allowlist_of(task)
    allowlist.add([b"/a/b", b"/z"])
    held = task.open("/a/b/c", abi.O_PATH)
    task.rename("/a/b/c", "/z/c")
    allowlist.remove([b"/a/b"])
    # By its new name it is allowed, and what is below it too.
    task.close(task.openat(held, "file", abi.O_RDWR))
    allowlist.add([b"/a/b"])
    allowlist.remove([b"/z"])
    assert errno_of(lambda: task.openat(held, "file", abi.O_RDONLY)) == errno.ENOENT


def test_a_large_directory_is_filtered_to_its_end(mount_with: MountWith, tree: Path) -> None:
    for number in range(1200):
        (tree / "z" / f"{number:04}-with-a-name-that-takes-room").touch()
    task = mount_with("allowlist")
    names = sorted(os.listdir(tree / "z"))[::397]
    allowlist_of(task).add([b"/z/" + os.fsencode(name) for name in names])
    assert sorted(task.listdir("/z")) == names


# Owners by path


@needs_root
def test_owners_and_modes_are_those_of_the_first_row_that_covers_a_path(
    mount_with: MountWith, tree: Path
) -> None:
    os.chmod(tree / "z", 0o4711)
    task = mount_with("ugid_map=0 1 2000 2001 18 /;5 6 3000 3001 63 /a/b;7 7 7 7 0 /a/b/c")

    def seen(path: str) -> tuple[int, int, int]:
        found = task.stat(path)
        return found.st_uid, found.st_gid, found.st_mode & 0o7777

    assert seen("/") == (0, 1, 0o755)
    assert seen("/z") == (0, 1, 0o755)
    assert seen("/a") == (0, 1, 0o755)
    assert seen("/a/b") == seen("/a/b/c/file") == (5, 6, 0o700)
    os.chmod(tree / "a/b/c/file", 0o600)
    assert seen("/a/b/c/file") == (5, 6, 0o700)
    # A path is its names: /a/bb is not below /a/b.
    (tree / "a" / "bb").touch()
    assert seen("/a/bb") == (0, 1, 0o755)


@needs_root
def test_new_files_are_made_by_whom_the_row_says(mount_with: MountWith, tree: Path) -> None:
    os.chmod(tree / "z", 0o777)
    task = mount_with("ugid_map=1000 1000 2000 2001 63 /z", Credentials(1000, 1000))
    task.close(task.open("/z/made", abi.O_CREAT | abi.O_WRONLY, 0o664))
    task.mkdir("/z/dir", 0o755)
    task.symlink("target", "/z/link")
    task.mknod("/z/fifo", abi.S_IFIFO | 0o640)
    for name, mode in (("made", 0o664), ("dir", 0o755), ("link", 0o777), ("fifo", 0o640)):
        made = os.lstat(tree / "z" / name)
        assert (made.st_uid, made.st_gid) == (2000, 2001)
        assert made.st_mode & 0o7777 == mode
        assert task.lstat(f"/z/{name}").st_uid == 1000
    # tar and cp -p give a file to whom it is said to belong: it stays the host's owner's.
    task.chown("/z/made", 1000, 1000)
    assert os.stat(tree / "z/made").st_uid == 2000
    # The attributes follow a file that changes its place.
    root = mount_with("ugid_map=1000 1000 2000 2001 63 /z")
    root.rename("/z/made", "/made")
    assert root.stat("/made").st_uid == 2000


@pytest.mark.parametrize(
    "value", ["0 0 0 0 7", "0 0 0 0 x /", "0 0 0 0 7 a", "0 0 0 0 7 /..", "0 0 0 0 512 /", ";"]
)
def test_a_malformed_map_of_owners_is_refused(mount_with: MountWith, value: str) -> None:
    assert errno_of(lambda: mount_with(f"ugid_map={value}")) == errno.EINVAL


# What a client sets


def permission(path: bytes, *ids: int, size: int = 152) -> bytes:
    return (struct.pack("<5I4x", *ids) + path.ljust(128, b"\0"))[:size]


def path_xattr(path: bytes, name: bytes, value: bytes) -> bytes:
    return b"".join(text.ljust(128, b"\0") for text in (path, name, value))


@needs_root
def test_the_clients_root_sets_owners_of_paths_up_to_the_limit(
    mount_with: MountWith, tree: Path
) -> None:
    task = mount_with("max_dynamic_perm=2")
    known = task.stat("/z/file")
    assert known.st_uid == os.stat(tree / "z/file").st_uid
    fd = task.open("/", abi.O_RDONLY)
    task.ioctl(fd, SETPERMISSION, permission(b"/z", 10, 11, 2000, 2001, 7))
    assert (task.stat("/z/file").st_uid, task.stat("/z/file").st_mode & 0o777) == (10, 0o770)
    task.close(task.open("/z/new", abi.O_CREAT | abi.O_WRONLY, 0o600))
    assert os.stat(tree / "z/new").st_uid == 2000
    task.ioctl(fd, SETPERMISSION, permission(b"/z/file", 20, 21, 3000, 3001, 0))
    assert (task.stat("/z/file").st_uid, task.stat("/z/new").st_uid) == (20, 10)
    more = permission(b"/a", 1, 1, 1, 1, 0)
    assert errno_of(lambda: task.ioctl(fd, SETPERMISSION, more)) == errno.EPERM


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (permission(b"relative", 1, 1, 1, 1, 0), errno.EINVAL),
        (permission(b"/a/../..", 1, 1, 1, 1, 0), errno.EINVAL),
        (permission(b"/" * 128, 1, 1, 1, 1, 0), errno.EINVAL),
        (permission(b"/a", 1, 1, 1, 1, 0, size=151), errno.EINVAL),
    ],
)
def test_what_is_no_owner_of_a_path_is_refused(
    mount_with: MountWith, argument: bytes, expected: int
) -> None:
    task = mount_with("max_dynamic_perm=1")
    fd = task.open("/", abi.O_RDONLY)
    assert errno_of(lambda: task.ioctl(fd, SETPERMISSION, argument)) == expected


def test_users_of_a_client_set_nothing_and_without_the_option_nobody_does(
    mount_with: MountWith, shared: Path
) -> None:
    good = permission(b"/a", 1, 1, 1, 1, 0)
    user = mount_with("max_dynamic_perm=1,max_dynamic_xattr=1", Credentials(1000, 1000))
    fd = user.open("/", abi.O_RDONLY)
    assert errno_of(lambda: user.ioctl(fd, SETPERMISSION, good)) == errno.EPERM
    xattr = path_xattr(b"/", b"user.a", b"1")
    assert errno_of(lambda: user.ioctl(fd, SETPATHXATTR, xattr)) == errno.EPERM
    task = mount_with("max_dynamic_xattr=1")
    fd = task.open("/", abi.O_RDONLY)
    assert errno_of(lambda: task.ioctl(fd, SETPERMISSION, good)) == errno.ENOTTY


def test_the_clients_root_sets_attributes_of_paths_up_to_the_limit(
    mount_with: MountWith, tree: Path
) -> None:
    task = mount_with("max_dynamic_xattr=1")
    fd = task.open("/z", abi.O_RDONLY)
    task.ioctl(fd, SETPATHXATTR, path_xattr(b"/a", b"user.label", b"told"))
    assert task.getxattr("/a/b/c/file", "user.label") == b"told"
    assert errno_of(lambda: task.getxattr("/z/file", "user.label")) == errno.ENODATA
    task.setxattr("/a/file", "user.label", b"other")
    assert task.getxattr("/a/file", "user.label") == b"told"
    assert os.listxattr(tree / "a/file") == []
    task.setxattr("/a/file", "user.more", b"other")
    assert os.listxattr(tree / "a/file") == ["user.more"]
    more = path_xattr(b"/z", b"user.label", b"told")
    assert errno_of(lambda: task.ioctl(fd, SETPATHXATTR, more)) == errno.EPERM


def test_a_file_can_be_the_only_one(mount_with: MountWith, tree: Path) -> None:
    (tree / "one").write_text("content")
    task = mount_with("only=one")
    assert task.listdir("/") == ["one"]
    task.chmod("/one", 0o640)
    assert os.stat(tree / "one").st_mode & 0o777 == 0o640
    for call in (
        lambda: task.unlink("/one"),
        lambda: task.rename("/one", "/two"),
        lambda: task.link("/one", "/two"),
        lambda: task.mkdir("/two"),
        lambda: task.open("/two", abi.O_CREAT | abi.O_WRONLY),
    ):
        assert errno_of(call) == errno.EROFS
    assert errno_of(lambda: task.chmod("/", 0o777)) == errno.EACCES
    assert errno_of(lambda: task.stat("/a")) == errno.ENOENT


@pytest.mark.parametrize("options", ["only=", "only=..", "only=a/b", "only=one,allowlist"])
def test_what_is_no_single_file_is_refused(mount_with: MountWith, options: str) -> None:
    assert errno_of(lambda: mount_with(options)) == errno.EINVAL
