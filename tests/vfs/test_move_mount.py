"""move_mount: attaching and moving mounts, also beneath others."""

from __future__ import annotations

import errno

import pytest
from mount_calls_support import (
    attach,
    bind,
    clone_tree,
    enter,
    exists_at,
    marked,
    mount_id,
    move_mount,
    new_tmpfs,
    not_in_a_user_namespace,
    open_tree,
    propagation,
    rbind,
    tmpfs,
)
from vfs_support import contents, exists, fails_with, make_file

from harness.testbed.target import TargetTask
from vfs.abi import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    CLONE_NEWNS,
    MNT_DETACH,
    MOVE_MOUNT_BENEATH,
    MOVE_MOUNT_F_AUTOMOUNTS,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_F_SYMLINKS,
    MOVE_MOUNT_SET_GROUP,
    MOVE_MOUNT_T_AUTOMOUNTS,
    MOVE_MOUNT_T_EMPTY_PATH,
    MOVE_MOUNT_T_SYMLINKS,
    MS_PRIVATE,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
    O_DIRECTORY,
    O_PATH,
    O_RDONLY,
)

BENEATH = MOVE_MOUNT_BENEATH


@pytest.fixture
def mnt(root: TargetTask) -> str:
    """``/mnt`` with a tmpfs on it that has a file ``f``; below it lies ``hidden``. ``/w`` is an
    empty directory.
    """
    root.mkdir("w", 0o777)
    root.mkdir("mnt", 0o755)
    make_file(root, "mnt/hidden")
    tmpfs(root, "mnt")
    make_file(root, "mnt/f")
    return "mnt"


# Moving and attaching


def test_move_mount_moves_a_mount_from_one_name_to_another(root: TargetTask, mnt: str) -> None:
    before = mount_id(root, "mnt")
    marked(root, "mnt/d", "deep")
    move_mount(root, "mnt", "w")
    assert exists(root, "mnt/hidden")
    assert exists(root, "w/d/deep")
    assert mount_id(root, "w") == before


def test_move_mount_takes_descriptors_for_both_ends(root: TargetTask, mnt: str) -> None:
    source = root.open("mnt", O_PATH, 0)
    target = root.open("w", O_RDONLY | O_DIRECTORY, 0)
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    root.move_mount(source, "", target, "", flags)
    assert exists(root, "w/f")
    root.close(source)
    root.close(target)


def test_an_empty_name_without_its_flag_is_enoent(root: TargetTask, mnt: str) -> None:
    source = root.open("mnt", O_PATH, 0)
    target = root.open("w", O_PATH, 0)
    fails_with(errno.ENOENT, root.move_mount, source, "", target, "", MOVE_MOUNT_F_EMPTY_PATH)
    fails_with(errno.ENOENT, root.move_mount, source, "", target, "", MOVE_MOUNT_T_EMPTY_PATH)
    fails_with(errno.ENOENT, root.move_mount, AT_FDCWD, "mnt", AT_FDCWD, "", 0)
    root.close(source)
    root.close(target)


def test_move_mount_at_the_cwd_with_an_empty_name_means_the_cwd(root: TargetTask, mnt: str) -> None:
    root.chdir("w")
    root.move_mount(AT_FDCWD, "/mnt", AT_FDCWD, "", MOVE_MOUNT_T_EMPTY_PATH)
    assert exists(root, "/w/f")


def test_names_are_relative_to_their_descriptors(root: TargetTask, mnt: str) -> None:
    top = root.open("/", O_PATH, 0)
    root.mkdir("elsewhere", 0o755)
    root.chdir("elsewhere")
    root.move_mount(top, "mnt", top, "w", 0)
    assert exists(root, "/w/f")
    root.close(top)


@pytest.mark.parametrize("flag, followed", [(0, False), (MOVE_MOUNT_F_SYMLINKS, True)])
def test_a_symlink_as_the_source_is_followed_only_if_asked_for(
    root: TargetTask, mnt: str, flag: int, followed: bool
) -> None:
    root.symlink("mnt", "link")
    if followed:
        move_mount(root, "link", "w", flag)
    else:
        fails_with(errno.EINVAL, move_mount, root, "link", "w", flag)
    assert exists(root, "w/f") is followed


@pytest.mark.parametrize("flag, followed", [(0, False), (MOVE_MOUNT_T_SYMLINKS, True)])
def test_a_symlink_as_the_target_is_followed_only_if_asked_for(
    root: TargetTask, mnt: str, flag: int, followed: bool
) -> None:
    root.symlink("w", "link")
    if followed:
        move_mount(root, "mnt", "link", flag)
    else:
        fails_with(errno.EINVAL, move_mount, root, "mnt", "link", flag)
    assert exists(root, "w/f") is followed


def test_the_automount_flags_are_taken(root: TargetTask, mnt: str) -> None:
    move_mount(root, "mnt", "w", MOVE_MOUNT_F_AUTOMOUNTS | MOVE_MOUNT_T_AUTOMOUNTS)
    assert exists(root, "w/f")


def test_a_detached_file_goes_onto_a_file_and_not_onto_a_directory(
    root: TargetTask, mnt: str
) -> None:
    make_file(root, "g", b"below")
    fd = clone_tree(root, "mnt/f")
    tree = clone_tree(root, "mnt")
    fails_with(errno.EINVAL, attach, root, fd, "w")
    fails_with(errno.EINVAL, attach, root, tree, "g")
    attach(root, fd, "g")
    assert contents(root, "g") == b""
    root.close(fd)
    root.close(tree)


def test_a_descriptor_whose_tree_is_attached_moves_it_on(root: TargetTask, mnt: str) -> None:
    root.mkdir("v", 0o755)
    fd = clone_tree(root, "mnt")
    attach(root, fd, "w")
    attach(root, fd, "v")
    assert exists(root, "v/f")
    assert not exists(root, "w/f")
    root.close(fd)
    assert exists(root, "v/f")


def test_a_detached_tree_can_be_put_on_the_root_and_on_what_is_mounted(
    root: TargetTask, mnt: str
) -> None:
    fd = new_tmpfs(root)
    attach(root, fd, "mnt")
    assert not exists(root, "mnt/f")
    root.close(fd)
    root.umount2("mnt", 0)
    assert exists(root, "mnt/f")
    fd = clone_tree(root, "mnt")
    attach(root, fd, "/")
    assert exists(root, "/../f")
    root.close(fd)


def test_what_is_moved_must_be_the_root_of_a_mount(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/plain", 0o755)
    fails_with(errno.EINVAL, move_mount, root, "mnt/plain", "w")
    fd = clone_tree(root, "mnt")
    fails_with(errno.EINVAL, root.move_mount, fd, "plain", AT_FDCWD, "w", 0)
    root.close(fd)


def test_moving_a_mount_into_itself_is_eloop(root: TargetTask, mnt: str) -> None:
    not_in_a_user_namespace(root)
    root.mkdir("mnt/plain", 0o755)
    fails_with(errno.ELOOP, move_mount, root, "mnt", "mnt/plain")
    fails_with(errno.ELOOP, move_mount, root, "mnt", "mnt")
    fails_with(errno.ELOOP, move_mount, root, "/", "w")


def test_moving_a_mount_away_from_a_shared_parent_is_einval(root: TargetTask, mnt: str) -> None:
    propagation(root, "/", MS_SHARED)
    fails_with(errno.EINVAL, move_mount, root, "mnt", "w")
    fd = clone_tree(root, "mnt")
    attach(root, fd, "w")
    assert exists(root, "w/f")
    root.close(fd)


def test_a_detached_tree_with_an_unbindable_mount_does_not_go_onto_a_shared_one(
    root: TargetTask, mnt: str
) -> None:
    propagation(root, "/", MS_SHARED)
    fd = new_tmpfs(root)
    root.fchdir(fd)
    propagation(root, ".", MS_UNBINDABLE)
    root.chdir("/")
    fails_with(errno.EINVAL, attach, root, fd, "w")
    propagation(root, "/", MS_PRIVATE)
    attach(root, fd, "w")
    root.close(fd)


def test_a_tree_attached_to_a_shared_mount_is_propagated_and_becomes_shared(
    root: TargetTask, mnt: str
) -> None:
    propagation(root, "mnt", MS_SHARED)
    bind(root, "mnt", "w")
    root.mkdir("mnt/d", 0o755)
    fd = new_tmpfs(root)
    attach(root, fd, "mnt/d")
    make_file(root, "mnt/d/new")
    assert exists(root, "w/d/new")
    assert root.mountinfo().count(b"shared:") == 4
    root.close(fd)


def test_a_deleted_target_is_enoent(root: TargetTask, mnt: str) -> None:
    target = root.open("w", O_PATH, 0)
    root.rmdir("w")
    flags = MOVE_MOUNT_T_EMPTY_PATH
    fails_with(errno.ENOENT, root.move_mount, AT_FDCWD, "mnt", target, "", flags)
    root.close(target)


def test_a_detached_copy_of_a_deleted_directory_cannot_be_attached(
    root: TargetTask, mnt: str
) -> None:
    root.mkdir("gone", 0o755)
    fd = clone_tree(root, "gone")
    root.rmdir("gone")
    fails_with(errno.ENOENT, attach, root, fd, "w")
    root.close(fd)


def test_an_inherited_mount_is_locked_where_it_is(
    root: TargetTask, alice: TargetTask, mnt: str
) -> None:
    inner = enter(alice)
    fails_with(errno.EINVAL, move_mount, inner, "mnt", "w")
    fd = clone_tree(inner, "mnt")
    attach(inner, fd, "w")
    inner.close(fd)
    inner.umount2("w", 0)


def test_a_mount_of_another_namespace_is_neither_source_nor_target(
    root: TargetTask, mnt: str
) -> None:
    fd = root.open("mnt", O_PATH, 0)
    target = root.open("w", O_PATH, 0)
    other = root.clone("other", CLONE_NEWNS)
    fails_with(errno.EINVAL, attach, other, fd, "w")
    flags = MOVE_MOUNT_T_EMPTY_PATH
    fails_with(errno.EINVAL, other.move_mount, AT_FDCWD, "mnt", target, "", flags)
    root.close(fd)
    root.close(target)


def test_a_recursive_bind_and_an_open_tree_descriptor_move_alike(
    root: TargetTask, mnt: str
) -> None:
    marked(root, "mnt/d", "deep")
    root.mkdir("copy", 0o755)
    rbind(root, "mnt", "copy")
    fd = open_tree(root, "copy")
    attach(root, fd, "w")
    assert exists(root, "w/d/deep")
    again = open_tree(root, "", AT_EMPTY_PATH, fd)
    attach(root, again, "copy")
    assert exists(root, "copy/d/deep")
    root.close(fd)
    root.close(again)


# Arguments


@pytest.mark.parametrize("flags", [0x8, 0x80, 0x400, 1 << 30, BENEATH | MOVE_MOUNT_SET_GROUP])
def test_unknown_flags_and_two_modes_at_once_are_einval(
    root: TargetTask, mnt: str, flags: int
) -> None:
    fails_with(errno.EINVAL, move_mount, root, "mnt", "w", flags)
    fails_with(errno.EINVAL, move_mount, root, "missing", "missing", flags)


def test_cap_sys_admin_is_asked_for_first(root: TargetTask, alice: TargetTask, mnt: str) -> None:
    fails_with(errno.EPERM, move_mount, alice, "mnt", "w")
    fails_with(errno.EPERM, move_mount, alice, "missing", "missing")
    fails_with(errno.EPERM, move_mount, alice, "mnt", "w", 0x8)


def test_the_target_is_looked_up_before_the_source(root: TargetTask, mnt: str) -> None:
    make_file(root, "file")
    fails_with(errno.ENOENT, move_mount, root, "file/x", "missing")
    fails_with(errno.ENOTDIR, move_mount, root, "missing", "file/x")
    fails_with(errno.EBADF, root.move_mount, AT_FDCWD, "missing", 77, "x", 0)
    fails_with(errno.ENOENT, move_mount, root, "missing", "w")
    fails_with(errno.EBADF, attach, root, 77, "w")


# Beneath another mount


def test_beneath_slides_a_tree_in_below_the_topmost_mount(root: TargetTask, mnt: str) -> None:
    fd = new_tmpfs(root)
    top = mount_id(root, "mnt")
    attach(root, fd, "mnt", BENEATH)
    assert mount_id(root, "mnt") == top
    assert exists(root, "mnt/f")
    make = root.openat(fd, "between", 0o102, 0o644)
    root.close(make)
    root.umount2("mnt", 0)
    assert exists(root, "mnt/between")
    root.close(fd)
    root.umount2("mnt", 0)
    assert exists(root, "mnt/hidden")


def test_beneath_goes_directly_below_the_topmost_of_several(root: TargetTask, mnt: str) -> None:
    tmpfs(root, "mnt")
    make_file(root, "mnt/topmost")
    fd = new_tmpfs(root)
    attach(root, fd, "mnt", BENEATH)
    assert exists(root, "mnt/topmost")
    root.umount2("mnt", 0)
    assert not exists(root, "mnt/f")
    root.close(fd)
    root.umount2("mnt", 0)
    assert exists(root, "mnt/f")


def test_beneath_moves_an_attached_mount_as_well(root: TargetTask, mnt: str) -> None:
    marked(root, "other", "o")
    move_mount(root, "other", "mnt", BENEATH)
    assert exists(root, "mnt/f")
    assert not exists(root, "other/o")
    root.umount2("mnt", 0)
    assert exists(root, "mnt/o")


def test_a_mount_replaced_from_beneath_keeps_its_users_until_they_leave(
    root: TargetTask, mnt: str
) -> None:
    user = root.clone("user")
    user.chdir("mnt")
    fd = new_tmpfs(root)
    make = root.openat(fd, "new", 0o102, 0o644)
    root.close(make)
    attach(root, fd, "mnt", BENEATH)
    root.umount2("mnt", MNT_DETACH)
    assert exists(root, "mnt/new")
    assert exists(user, "f")
    assert user.getcwd() == b"(unreachable)/"
    root.close(fd)


def test_beneath_a_directory_that_is_no_mounts_root_is_einval(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    fd = new_tmpfs(root)
    fails_with(errno.EINVAL, attach, root, fd, "w", BENEATH)
    fails_with(errno.EINVAL, attach, root, fd, "mnt/d", BENEATH)
    root.close(fd)


def test_beneath_the_root_is_einval(root: TargetTask, mnt: str) -> None:
    fd = new_tmpfs(root)
    fails_with(errno.EINVAL, attach, root, fd, "/", BENEATH)
    jailed = root.clone("jailed")
    jailed.chroot("mnt")
    fails_with(errno.EINVAL, attach, jailed, fd, "/", BENEATH)
    root.close(fd)
    jailed.close(fd)


def test_beneath_a_mount_with_something_mounted_on_top_of_the_source_is_einval(
    root: TargetTask, mnt: str
) -> None:
    fd = new_tmpfs(root)
    cover = new_tmpfs(root)
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    root.move_mount(cover, "", fd, "", flags)
    fails_with(errno.EINVAL, attach, root, fd, "mnt", BENEATH)
    root.close(cover)
    root.close(fd)


def test_beneath_its_own_ancestor_is_einval(root: TargetTask, mnt: str) -> None:
    marked(root, "mnt/d", "deep")
    fails_with(errno.EINVAL, move_mount, root, "mnt/d", "mnt", BENEATH)


def test_beneath_itself_is_refused(root: TargetTask, mnt: str) -> None:
    fails_with(errno.EINVAL, move_mount, root, "mnt", "mnt", BENEATH)


def test_beneath_a_locked_mount_is_einval(root: TargetTask, alice: TargetTask, mnt: str) -> None:
    inner = enter(alice)
    fd = new_tmpfs(inner)
    fails_with(errno.EINVAL, attach, inner, fd, "mnt", BENEATH)
    tmpfs(inner, "mnt")
    attach(inner, fd, "mnt", BENEATH)
    inner.close(fd)


@pytest.mark.parametrize("kind", [MS_SHARED, MS_SLAVE])
def test_beneath_a_mount_that_its_parent_would_cover_with_a_copy_is_einval(
    root: TargetTask, mnt: str, kind: int
) -> None:
    propagation(root, "/", MS_SHARED)
    bind(root, "w", "w")
    propagation(root, "w", kind)
    fd = new_tmpfs(root)
    fails_with(errno.EINVAL, attach, root, fd, "w", BENEATH)
    propagation(root, "w", MS_PRIVATE)
    attach(root, fd, "w", BENEATH)
    root.close(fd)


def test_beneath_where_the_parent_would_cover_the_moved_mount_itself_is_einval(
    root: TargetTask, mnt: str
) -> None:
    root.mkdir("mnt/x", 0o755)
    propagation(root, "/", MS_SHARED)
    bind(root, "w", "mnt/x")
    propagation(root, "mnt/x", MS_SLAVE)
    tmpfs(root, "w")
    root.umount2("mnt/x", 0)
    fails_with(errno.EINVAL, move_mount, root, "mnt/x", "w", BENEATH)
    propagation(root, "mnt/x", MS_PRIVATE)
    move_mount(root, "mnt/x", "w", BENEATH)


def test_beneath_a_mount_on_a_shared_parent_is_propagated_beneath_its_copies(
    root: TargetTask, mnt: str
) -> None:
    propagation(root, "mnt", MS_SHARED)
    bind(root, "mnt", "w")
    marked(root, "mnt/d", "deep")
    assert exists(root, "w/d/deep")
    fd = new_tmpfs(root)
    make = root.openat(fd, "between", 0o102, 0o644)
    root.close(make)
    attach(root, fd, "mnt/d", BENEATH)
    assert exists(root, "mnt/d/deep")
    assert exists(root, "w/d/deep")
    root.umount2("w/d", 0)
    assert exists(root, "mnt/d/between")
    assert exists(root, "w/d/between")
    root.close(fd)


def test_beneath_a_file_goes_a_file(root: TargetTask, mnt: str) -> None:
    for name in ("top", "between", "bottom"):
        make_file(root, name, name.encode())
    bind(root, "top", "bottom")
    fd = clone_tree(root, "between")
    tree = clone_tree(root, "mnt")
    fails_with(errno.EINVAL, attach, root, tree, "bottom", BENEATH)
    attach(root, fd, "bottom", BENEATH)
    assert contents(root, "bottom") == b"top"
    root.umount2("bottom", 0)
    assert contents(root, "bottom") == b"between"
    root.close(fd)
    root.close(tree)


def test_beneath_a_mount_of_a_detached_tree_is_decided_like_any_other(
    root: TargetTask, mnt: str
) -> None:
    marked(root, "mnt/d", "deep")
    outer = clone_tree(root, "mnt", AT_RECURSIVE)
    fd = new_tmpfs(root)
    flags = MOVE_MOUNT_F_EMPTY_PATH | BENEATH
    root.move_mount(fd, "", outer, "d", flags)
    assert exists_at(root, outer, "d/deep")
    fails_with(
        errno.EINVAL,
        root.move_mount,
        new_tmpfs(root),
        "",
        outer,
        "",
        flags | MOVE_MOUNT_T_EMPTY_PATH,
    )
    root.close(outer)
    root.close(fd)
