"""Making, renaming, linking, removing and listing names; which times each of them moves."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

import pytest
from vfs_support import contents, exists, fails_with, make_file, names

from harness.testbed.target import TargetTask
from vfs import abi
from vfs.abi import (
    AT_FDCWD,
    O_CREAT,
    O_RDONLY,
    O_WRONLY,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
)


def rename2(task: TargetTask, old: str, new: str, flags: int) -> None:
    task.renameat2(AT_FDCWD, old, AT_FDCWD, new, flags)


def test_rename_onto_a_file_replaces_it_and_its_open_description_lives_on(
    root: TargetTask,
) -> None:
    make_file(root, "a", b"a")
    make_file(root, "b", b"b")
    fd = root.open("b", O_RDONLY, 0)
    root.rename("a", "b")
    assert contents(root, "b") == b"a"
    assert root.read(fd, 10) == b"b"
    assert root.fstat(fd).st_nlink == 0
    assert names(root, "/") == {"b"}


def test_rename_onto_nonempty_dir_fails_with_enotempty(root: TargetTask) -> None:
    root.mkdir("a", 0o755)
    root.mkdir("b", 0o755)
    make_file(root, "b/f")
    fails_with(errno.ENOTEMPTY, root.rename, "a", "b")
    root.unlink("b/f")
    root.rename("a", "b")
    assert names(root, "/") == {"b"}


def test_rename_does_not_mix_files_and_directories(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    make_file(root, "f")
    fails_with(errno.EISDIR, root.rename, "f", "d")
    fails_with(errno.ENOTDIR, root.rename, "d", "f")


def test_rename_into_itself_is_einval_and_onto_an_ancestor_enotempty(root: TargetTask) -> None:
    root.mkdir("a", 0o755)
    root.mkdir("a/b", 0o755)
    fails_with(errno.EINVAL, root.rename, "a", "a/b/c")
    fails_with(errno.EINVAL, root.rename, "a", "a/x")
    fails_with(errno.ENOTEMPTY, root.rename, "a/b", "a")


def test_rename_between_two_names_of_one_file_does_nothing(root: TargetTask) -> None:
    make_file(root, "a")
    root.link("a", "b")
    root.rename("a", "b")
    assert names(root, "/") == {"a", "b"}
    root.rename("a", "a")


def test_rename_of_a_directory_moves_its_dotdot_and_link_counts(root: TargetTask) -> None:
    for path in ("a", "b", "a/d"):
        root.mkdir(path, 0o755)
    root.rename("a/d", "b/d")
    assert root.stat("b/d/..").st_ino == root.stat("b").st_ino
    assert (root.stat("a").st_nlink, root.stat("b").st_nlink) == (2, 3)


def test_a_cwd_moves_with_its_directory(root: TargetTask) -> None:
    root.mkdir("a", 0o755)
    root.mkdir("b", 0o755)
    root.mkdir("a/d", 0o755)
    root.chdir("a/d")
    root.rename("/a/d", "/b/e")
    assert root.getcwd() == b"/b/e"


def test_moving_a_directory_needs_write_permission_on_it(
    root: TargetTask, alice: TargetTask
) -> None:
    for path in ("a", "b", "a/d"):
        root.mkdir(path, 0o755)
    root.chmod("a", 0o777)
    root.chmod("b", 0o777)
    fails_with(errno.EACCES, alice.rename, "a/d", "b/d")
    alice.rename("a/d", "a/e")


def test_noreplace_is_eexist_on_any_target(root: TargetTask) -> None:
    make_file(root, "a")
    make_file(root, "b")
    fails_with(errno.EEXIST, rename2, root, "a", "b", RENAME_NOREPLACE)
    fails_with(errno.EEXIST, rename2, root, "a", "a", RENAME_NOREPLACE)
    fails_with(errno.EEXIST, rename2, root, "a", ".", RENAME_NOREPLACE)
    rename2(root, "a", "c", RENAME_NOREPLACE)
    assert names(root, "/") == {"b", "c"}


def test_exchange_swaps_any_two_names_even_of_different_kinds(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    make_file(root, "d/in", b"in")
    root.mkdir("other", 0o755)
    make_file(root, "other/f", b"f")
    rename2(root, "d", "other/f", RENAME_EXCHANGE)
    assert contents(root, "d") == b"f"
    assert contents(root, "other/f/in") == b"in"
    assert root.stat("other").st_nlink == 3
    assert root.stat("/").st_nlink == 3


def test_exchange_needs_both_and_refuses_ancestors_both_ways(root: TargetTask) -> None:
    root.mkdir("a", 0o755)
    root.mkdir("a/b", 0o755)
    fails_with(errno.ENOENT, rename2, root, "a", "missing", RENAME_EXCHANGE)
    fails_with(errno.EINVAL, rename2, root, "a", "a/b", RENAME_EXCHANGE)
    fails_with(errno.EINVAL, rename2, root, "a/b", "a", RENAME_EXCHANGE)


def test_whiteout_leaves_a_character_device_zero_behind(root: TargetTask) -> None:
    make_file(root, "a", b"a")
    rename2(root, "a", "b", RENAME_WHITEOUT)
    left = root.lstat("a")
    assert left.st_mode & abi.S_IFMT == abi.S_IFCHR
    assert left.st_rdev == 0
    assert contents(root, "b") == b"a"


def test_flags_that_exclude_each_other_are_einval(root: TargetTask) -> None:
    make_file(root, "a")
    make_file(root, "b")
    for flags in (RENAME_EXCHANGE | RENAME_NOREPLACE, RENAME_EXCHANGE | RENAME_WHITEOUT, 8):
        fails_with(errno.EINVAL, rename2, root, "a", "b", flags)


def test_a_missing_source_comes_before_a_target_too_long(root: TargetTask) -> None:
    fails_with(errno.ENOENT, root.rename, "missing", "n" * 256)
    make_file(root, "a")
    fails_with(errno.ENAMETOOLONG, root.rename, "a", "n" * 256)


# link, unlink, rmdir, mkdir


def test_a_hard_link_is_the_same_file(root: TargetTask) -> None:
    make_file(root, "a", b"one")
    root.link("a", "b")
    assert root.stat("a").st_nlink == 2
    assert root.stat("a").st_ino == root.stat("b").st_ino
    root.unlink("a")
    assert contents(root, "b") == b"one"


def test_link_does_not_follow_a_symlink_unless_asked(root: TargetTask) -> None:
    make_file(root, "f")
    root.symlink("f", "s")
    root.link("s", "hard")
    assert root.readlink("hard") == b"f"
    root.linkat(AT_FDCWD, "s", AT_FDCWD, "followed", abi.AT_SYMLINK_FOLLOW)
    assert root.lstat("followed").st_ino == root.stat("f").st_ino


def test_directories_cannot_be_linked(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    fails_with(errno.EPERM, root.link, "d", "e")


def test_unlink_and_rmdir_each_want_their_kind(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    make_file(root, "f")
    fails_with(errno.EISDIR, root.unlink, "d")
    fails_with(errno.ENOTDIR, root.rmdir, "f")
    make_file(root, "d/x")
    fails_with(errno.ENOTEMPTY, root.rmdir, "d")


def test_mkdir_obeys_the_umask_and_drops_set_id_bits(root: TargetTask) -> None:
    root.umask(0o027)
    root.mkdir("d", 0o7777)
    assert root.stat("d").st_mode & 0o7777 == 0o1750


def test_a_removed_directory_that_is_still_open_is_empty_and_dead(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    fd = root.open("d", O_RDONLY, 0)
    root.rmdir("d")
    fails_with(errno.ENOENT, root.getdents64, fd, 1000)
    fails_with(errno.ENOENT, root.openat, fd, "f", O_CREAT | O_WRONLY, 0o644)
    assert root.fstat(fd).st_nlink == 0


def test_the_targets_text_is_judged_before_the_links_path(root: TargetTask) -> None:
    fails_with(errno.ENAMETOOLONG, root.symlink, "x" * 4096, "missing/link")
    fails_with(errno.ENOENT, root.symlink, "", "/")


# Listing


def test_getdents_tells_types_and_dot_and_dotdot(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    make_file(root, "d/f")
    root.symlink("x", "d/s")
    root.mkdir("d/sub", 0o755)
    fd = root.open("d", O_RDONLY, 0)
    types = {entry.d_name: entry.d_type for entry in root.getdents64(fd, 10000)}
    assert types == {b".": 4, b"..": 4, b"f": 8, b"s": 10, b"sub": 4}
    assert root.getdents64(fd, 10000) == []


def test_getdents_into_a_buffer_too_small_is_einval(root: TargetTask) -> None:
    fd = root.open("/", O_RDONLY, 0)
    fails_with(errno.EINVAL, root.getdents64, fd, 10)


def test_getdents_of_a_file_is_enotdir(root: TargetTask) -> None:
    make_file(root, "f")
    fails_with(errno.ENOTDIR, root.getdents64, root.open("f", O_RDONLY, 0), 1000)


@pytest.mark.parametrize("removed_while_reading", [False, True])
def test_a_listing_in_pieces_misses_and_repeats_nothing(
    root: TargetTask, removed_while_reading: bool
) -> None:
    root.mkdir("d", 0o755)
    for number in range(50):
        make_file(root, f"d/{number:02}")
    fd = root.open("d", O_RDONLY, 0)
    seen: list[bytes] = []
    while entries := root.getdents64(fd, 120):
        seen += [entry.d_name for entry in entries]
        if removed_while_reading and seen[-1] not in (b".", b".."):
            root.unlink(b"d/" + seen[-1])
    assert len(seen) == len(set(seen)) == 52


def test_every_cookie_leads_back_to_the_entry_after_it(root: TargetTask) -> None:
    for number in range(10):
        make_file(root, f"{number}")
    fd = root.open("/", O_RDONLY, 0)
    entries = root.getdents64(fd, 10000)
    make_file(root, "later")
    root.unlink("5")
    kept = [entry.d_name for entry in entries if entry.d_name != b"5"]
    for position, entry in enumerate(entries):
        root.lseek(fd, entry.d_off, abi.SEEK_SET)
        after = [found.d_name for found in root.getdents64(fd, 10000)]
        wanted = [other.d_name for other in entries[position + 1 :] if other.d_name in kept]
        assert [name for name in after if name in kept] == wanted


def test_a_name_that_stays_is_listed_once_although_others_are_renamed(root: TargetTask) -> None:
    for number in range(20):
        make_file(root, f"{number:02}")
    fd = root.open("/", O_RDONLY, 0)
    seen = [entry.d_name for entry in root.getdents64(fd, 200)]
    for number in range(0, 20, 2):
        root.rename(f"{number:02}", f"renamed{number}")
    while entries := root.getdents64(fd, 200):
        seen += [entry.d_name for entry in entries]
    for number in range(1, 20, 2):
        assert seen.count(b"%02d" % number) == 1


# Which times move

OLD = ((1000, 0), (2000, 0))
Operation = Callable[[TargetTask], object]


def write(task: TargetTask) -> None:
    fd = task.open("d/f", O_WRONLY, 0)
    task.write(fd, b"x")
    task.close(fd)


def read(task: TargetTask) -> None:
    fd = task.open("d/f", O_RDONLY, 0)
    task.read(fd, 1)
    task.close(fd)


def open_truncating(task: TargetTask) -> None:
    task.close(task.open("d/f", O_WRONLY | abi.O_TRUNC, 0))


def ftruncate_to_the_same_size(task: TargetTask) -> None:
    fd = task.open("d/f", O_WRONLY, 0)
    task.ftruncate(fd, 10)
    task.close(fd)


# Of the directory d, the file d/f and the empty directory e: which times the operation moves.
TIMES: dict[str, tuple[Operation, str, str, str]] = {
    "read": (read, "", "a", ""),
    "write": (write, "", "mc", ""),
    "truncate": (lambda t: t.truncate("d/f", 3), "", "mc", ""),
    "truncate to the same size": (lambda t: t.truncate("d/f", 10), "", "mc", ""),
    "ftruncate to the same size": (ftruncate_to_the_same_size, "", "mc", ""),
    "open with O_TRUNC": (open_truncating, "", "mc", ""),
    "chmod": (lambda t: t.chmod("d/f", 0o600), "", "c", ""),
    "chmod to the same": (lambda t: t.chmod("d/f", 0o644), "", "c", ""),
    "chown": (lambda t: t.chown("d/f", 1, 1), "", "c", ""),
    "chown of nothing": (lambda t: t.chown("d/f", -1, -1), "", "c", ""),
    "setxattr": (lambda t: t.setxattr("d/f", "user.a", b"1", 0), "", "c", ""),
    "utimensat": (lambda t: t.utimensat(AT_FDCWD, "d/f", None, 0), "", "amc", ""),
    "link": (lambda t: t.link("d/f", "d/g"), "mc", "c", ""),
    "unlink": (lambda t: t.unlink("d/g0"), "mc", "", ""),
    "create": (lambda t: make_file(t, "d/new"), "mc", "", ""),
    "mkdir": (lambda t: t.mkdir("d/new", 0o755), "mc", "", ""),
    "rename": (lambda t: t.rename("d/f", "e/f"), "mc", "c", "mc"),
    "rename within": (lambda t: t.rename("d/f", "d/g"), "mc", "c", ""),
    "stat": (lambda t: t.stat("d/f"), "", "", ""),
    "access": (lambda t: t.access("d/f", abi.R_OK), "", "", ""),
    "listing": (lambda t: names(t, "d"), "a", "", ""),
}


def times_of(task: TargetTask, *paths: str) -> list[tuple[int, int, int]]:
    stats = [task.lstat(path) for path in paths]
    return [(stat.st_atime_ns, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats]


@pytest.mark.usefixtures("every_id")
@pytest.mark.parametrize("operation", TIMES)
def test_each_operation_moves_its_times_and_no_others(root: TargetTask, operation: str) -> None:
    perform, *expected = TIMES[operation]
    root.mkdir("d", 0o755)
    root.mkdir("e", 0o755)
    make_file(root, "d/f", b"0123456789")
    make_file(root, "d/g0")
    root.rename("d/g0", "d/g0")
    paths = ["d", "d/f", "e"]
    for path in paths:
        root.utimensat(AT_FDCWD, path, OLD, 0)
    where = {root.lstat(path).st_ino: path for path in paths}
    before = times_of(root, *paths)
    time.sleep(0.011)  # more than one tick of the kernel's coarse clock
    perform(root)
    now = [
        path
        for path in ("d", "d/f", "d/g", "e/f", "e")
        if exists(root, path) and root.lstat(path).st_ino in where
    ]
    found = {where[root.lstat(path).st_ino]: path for path in now}
    after = times_of(root, *(found[path] for path in paths))
    moved = [
        "".join(name for name, old, new in zip("amc", *pair, strict=True) if old != new)
        for pair in zip(before, after, strict=True)
    ]
    assert moved == expected
