"""Binds and moves: what they show, what they take along, and what they refuse."""

from __future__ import annotations

import errno

import pytest
from mount_calls_support import (
    bind,
    flags_of,
    marked,
    mount_id,
    move,
    not_in_a_user_namespace,
    propagation,
    rbind,
    tmpfs,
)
from vfs_support import contents, exists, fails_with, make_file

from harness.testbed.target import TargetTask
from vfs.abi import (
    CLONE_NEWNS,
    MS_MOVE,
    MS_NOEXEC,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_SHARED,
    MS_UNBINDABLE,
    O_PATH,
    O_RDONLY,
    ST_RELATIME,
)


@pytest.fixture
def mnt(root: TargetTask) -> str:
    """``/mnt`` with a tmpfs on it, which has a file ``f``; below it lies a file ``hidden``."""
    root.mkdir("mnt", 0o755)
    make_file(root, "mnt/hidden")
    tmpfs(root, "mnt")
    make_file(root, "mnt/f", b"on top")
    return "mnt"


# Binds


def test_a_bind_shows_the_same_files_from_a_second_place(root: TargetTask, mnt: str) -> None:
    root.mkdir("second", 0o755)
    bind(root, "mnt", "second")
    assert root.stat("second/f").st_ino == root.stat("mnt/f").st_ino
    make_file(root, "second/g", b"both")
    assert contents(root, "mnt/g") == b"both"


def test_a_bind_of_a_subdirectory_ends_dotdot_at_its_mount_point(root: TargetTask) -> None:
    root.mkdir("a", 0o755)
    root.mkdir("a/sub", 0o755)
    root.mkdir("b", 0o755)
    bind(root, "a/sub", "b")
    assert root.stat("b/..").st_ino == root.stat("/").st_ino
    root.chdir("b")
    assert root.getcwd() == b"/b"


def test_a_directory_can_be_bound_onto_itself_again_and_again(root: TargetTask, mnt: str) -> None:
    ids = {mount_id(root, "mnt")}
    for _ in range(2):
        bind(root, "mnt", "mnt")
        assert exists(root, "mnt/f")
        ids.add(mount_id(root, "mnt"))
    assert len(ids) == 3
    root.umount2("mnt", 0)
    root.umount2("mnt", 0)
    root.umount2("mnt", 0)
    assert exists(root, "mnt/hidden")


def test_a_bind_below_its_own_source_does_not_contain_itself(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    rbind(root, "mnt", "mnt/d")
    assert exists(root, "mnt/d/f")
    assert not exists(root, "mnt/d/d/f")


def test_link_and_rename_between_binds_of_one_filesystem_are_exdev(
    root: TargetTask, mnt: str
) -> None:
    root.mkdir("second", 0o755)
    bind(root, "mnt", "second")
    fails_with(errno.EXDEV, root.link, "mnt/f", "second/g")
    fails_with(errno.EXDEV, root.rename, "mnt/f", "second/g")


def test_names_do_not_cross_mounts(root: TargetTask, mnt: str) -> None:
    make_file(root, "f")
    fails_with(errno.EXDEV, root.link, "f", "mnt/g")
    fails_with(errno.EXDEV, root.rename, "f", "mnt/g")


def test_a_bind_leaves_mounts_below_out_and_a_recursive_one_takes_them(
    root: TargetTask, mnt: str
) -> None:
    marked(root, "mnt/d", "deep")
    root.mkdir("plain", 0o755)
    root.mkdir("whole", 0o755)
    bind(root, "mnt", "plain")
    rbind(root, "mnt", "whole")
    assert not exists(root, "plain/d/deep")
    assert exists(root, "whole/d/deep")


def test_a_recursive_bind_takes_stacked_mounts_in_their_order(root: TargetTask, mnt: str) -> None:
    marked(root, "mnt/d", "lower")
    tmpfs(root, "mnt/d")
    make_file(root, "mnt/d/upper")
    root.mkdir("whole", 0o755)
    rbind(root, "mnt", "whole")
    assert exists(root, "whole/d/upper")
    root.umount2("whole/d", 0)
    assert exists(root, "whole/d/lower")
    assert exists(root, "mnt/d/upper")


def test_a_recursive_bind_of_a_subdirectory_takes_only_what_is_mounted_below_it(
    root: TargetTask,
) -> None:
    for path in ("a", "a/in", "b"):
        root.mkdir(path, 0o755)
    marked(root, "a/in/mnt", "inside")
    marked(root, "a/out", "outside")
    rbind(root, "a/in", "b")
    assert exists(root, "b/mnt/inside")
    root.umount2("b/mnt", 0)
    root.umount2("b", 0)
    assert exists(root, "a/in/mnt/inside")


def test_a_directory_that_left_a_binds_tree_has_no_parent_there(root: TargetTask) -> None:
    for path in ("a", "a/sub", "a/sub/d", "b", "out"):
        root.mkdir(path, 0o755)
    bind(root, "a/sub", "b")
    root.chdir("b/d")
    root.rename("/a/sub/d", "/out/d")
    fails_with(errno.ENOENT, root.stat, "..")
    assert root.getcwd() == b"(unreachable)/"


def test_a_bind_outlives_the_name_of_its_source(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    make_file(root, "mnt/d/f", b"kept")
    make_file(root, "above", b"file")
    make_file(root, "below")
    bind(root, "above", "below")
    root.unlink("above")
    assert contents(root, "below") == b"file"
    root.mkdir("e", 0o755)
    bind(root, "mnt/d", "e")
    root.rename("mnt/d", "mnt/moved")
    assert contents(root, "e/f") == b"kept"


def test_a_directory_deleted_under_its_bind_is_empty_and_takes_no_names(root: TargetTask) -> None:
    root.mkdir("source", 0o755)
    root.mkdir("d", 0o755)
    bind(root, "source", "d")
    root.rmdir("source")
    fails_with(errno.ENOENT, root.mkdir, "d/new", 0o755)
    root.chdir("d")
    assert root.stat(".").st_nlink == 0
    fails_with(errno.ENOENT, tmpfs, root, ".")


def test_a_deleted_directory_cannot_be_bound(root: TargetTask) -> None:
    root.mkdir("gone", 0o755)
    root.mkdir("d", 0o755)
    root.chdir("gone")
    root.rmdir("/gone")
    fails_with(errno.ENOENT, bind, root, ".", "/d")


def test_a_binds_source_must_be_given_and_be_there(root: TargetTask) -> None:
    fails_with(errno.EINVAL, bind, root, None, "/")
    fails_with(errno.EINVAL, bind, root, "", "/")
    fails_with(errno.ENOENT, bind, root, "missing", "/")
    make_file(root, "f")
    fails_with(errno.ENOTDIR, bind, root, "f/x", "/")


def test_a_binds_source_is_followed_through_symlinks(root: TargetTask, mnt: str) -> None:
    root.symlink("mnt", "link")
    root.mkdir("d", 0o755)
    bind(root, "link", "d")
    assert exists(root, "d/f")


def test_an_unbindable_mount_cannot_be_bound_and_is_left_out_of_a_recursive_bind(
    root: TargetTask, mnt: str
) -> None:
    marked(root, "mnt/d", "deep")
    marked(root, "mnt/d/below", "deeper")
    propagation(root, "mnt/d", MS_UNBINDABLE)
    root.mkdir("copy", 0o755)
    fails_with(errno.EINVAL, bind, root, "mnt/d", "copy")
    fails_with(errno.EINVAL, rbind, root, "mnt/d", "copy")
    rbind(root, "mnt", "copy")
    assert exists(root, "copy/f")
    assert not exists(root, "copy/d/deep")
    assert not exists(root, "copy/d/below")
    root.umount2("copy", 0)


def test_an_unreachable_bind_source_is_einval_and_one_in_another_namespace_too(
    root: TargetTask, mnt: str
) -> None:
    root.mkdir("d", 0o755)
    fd = root.open("mnt", O_RDONLY, 0)
    heir = root.clone("heir", CLONE_NEWNS)
    heir.fchdir(fd)
    fails_with(errno.EINVAL, bind, heir, ".", "/d")
    fails_with(errno.EINVAL, rbind, heir, ".", "/d")
    heir.close(fd)
    root.close(fd)


# Moves


def test_moving_a_mount_takes_it_away_from_where_it_was(root: TargetTask, mnt: str) -> None:
    root.mkdir("new", 0o755)
    fd = root.open("mnt/f", O_RDONLY, 0)
    before = mount_id(root, "mnt")
    move(root, "mnt", "new")
    assert contents(root, "new/f") == b"on top"
    assert exists(root, "mnt/hidden")
    assert mount_id(root, "new") == before
    assert root.read(fd, 100) == b"on top"
    root.close(fd)


def test_moving_a_mount_takes_what_is_mounted_below_and_who_is_in_it(
    root: TargetTask, mnt: str
) -> None:
    marked(root, "mnt/d", "deep")
    root.mkdir("new", 0o755)
    root.chdir("mnt/d")
    move(root, "/mnt", "/new")
    assert root.getcwd() == b"/new/d"
    assert exists(root, "/new/d/deep")


def test_moving_the_topmost_of_a_stack_leaves_the_rest(root: TargetTask, mnt: str) -> None:
    tmpfs(root, "mnt")
    make_file(root, "mnt/topmost")
    root.mkdir("new", 0o755)
    move(root, "mnt", "new")
    assert exists(root, "new/topmost")
    assert exists(root, "mnt/f")


def test_a_mount_can_be_moved_on_top_of_another(root: TargetTask, mnt: str) -> None:
    marked(root, "other", "o")
    move(root, "mnt", "other")
    assert exists(root, "other/f")
    root.umount2("other", 0)
    assert exists(root, "other/o")


def test_a_moves_source_must_be_given_and_be_there(root: TargetTask) -> None:
    fails_with(errno.EINVAL, move, root, None, "/")
    fails_with(errno.EINVAL, move, root, "", "/")
    fails_with(errno.ENOENT, move, root, "missing", "/")


def test_moving_a_mount_into_or_onto_itself_is_eloop(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    marked(root, "mnt/below", "b")
    fails_with(errno.ELOOP, move, root, "mnt", "mnt/d")
    fails_with(errno.ELOOP, move, root, "mnt", "mnt/below")
    fails_with(errno.ELOOP, move, root, "mnt", "mnt")


def test_only_a_mounts_root_can_be_moved(root: TargetTask, mnt: str) -> None:
    not_in_a_user_namespace(root)
    root.mkdir("d", 0o755)
    root.mkdir("mnt/sub", 0o755)
    fails_with(errno.EINVAL, move, root, "mnt/sub", "d")
    fails_with(errno.EINVAL, move, root, "mnt/f", "d")
    fails_with(errno.ELOOP, move, root, "/", "d")


def test_moving_a_directory_onto_a_file_or_a_file_onto_a_directory_is_einval(
    root: TargetTask, mnt: str
) -> None:
    make_file(root, "f")
    make_file(root, "g")
    root.mkdir("d", 0o755)
    bind(root, "f", "g")
    fails_with(errno.EINVAL, move, root, "mnt", "f")
    fails_with(errno.EINVAL, move, root, "g", "d")
    make_file(root, "h")
    move(root, "g", "h")


def test_moving_a_mount_whose_parent_is_shared_is_einval(root: TargetTask, mnt: str) -> None:
    marked(root, "mnt/d", "deep")
    root.mkdir("new", 0o755)
    propagation(root, "mnt", MS_SHARED)
    fails_with(errno.EINVAL, move, root, "mnt/d", "new")
    propagation(root, "mnt", MS_PRIVATE)
    move(root, "mnt/d", "new")
    assert exists(root, "new/deep")


def test_moving_a_tree_with_an_unbindable_mount_to_a_shared_one_is_einval(
    root: TargetTask, mnt: str
) -> None:
    marked(root, "tree", "t")
    marked(root, "tree/sub", "s")
    propagation(root, "tree/sub", MS_UNBINDABLE)
    root.mkdir("mnt/d", 0o755)
    propagation(root, "mnt", MS_SHARED)
    fails_with(errno.EINVAL, move, root, "tree", "mnt/d")
    propagation(root, "mnt", MS_PRIVATE)
    move(root, "tree", "mnt/d")
    assert exists(root, "mnt/d/sub/s")


def test_a_mount_whose_root_was_deleted_cannot_be_moved_and_stays(root: TargetTask) -> None:
    root.mkdir("source", 0o755)
    root.mkdir("d", 0o755)
    root.mkdir("e", 0o755)
    bind(root, "source", "d")
    root.rmdir("source")
    fails_with(errno.ENOENT, move, root, "d", "e")
    root.umount2("d", 0)


def test_moving_a_mount_of_another_namespace_is_einval(root: TargetTask, mnt: str) -> None:
    root.mkdir("d", 0o755)
    fd = root.open("mnt", O_PATH, 0)
    other = root.clone("other", CLONE_NEWNS)
    other.fchdir(fd)
    fails_with(errno.EINVAL, move, other, ".", "/d")
    root.close(fd)


def test_a_move_ignores_every_other_flag(root: TargetTask, mnt: str) -> None:
    root.mkdir("new", 0o755)
    root.mount("mnt", "new", None, MS_MOVE | MS_RDONLY | MS_NOEXEC | MS_REC, None)
    assert flags_of(root, "new") == ST_RELATIME
