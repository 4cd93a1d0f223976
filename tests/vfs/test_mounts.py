"""mount(2): new mounts, what its arguments may be, and which of its flags wins."""

from __future__ import annotations

import errno

import pytest
from mount_calls_support import (
    all_fail_with,
    attach,
    bind,
    clone_tree,
    flags_of,
    marked,
    mount_id,
    move,
    not_in_a_user_namespace,
    only_one_of_a_kind,
    propagation,
    rbind,
    tmpfs,
)
from vfs_support import contents, exists, fails_with, make_file, mode

from harness.testbed.target import TargetTask, TargetUnavailable
from vfs.abi import (
    AT_FDCWD,
    AT_RECURSIVE,
    AT_SYMLINK_NOFOLLOW,
    CLONE_NEWNS,
    MNT_DETACH,
    MS_BIND,
    MS_MGC_VAL,
    MS_MOVE,
    MS_NOEXEC,
    MS_NOUSER,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SHARED,
    MS_SILENT,
    MS_SLAVE,
    MS_UNBINDABLE,
    O_PATH,
    ST_NOEXEC,
    ST_RDONLY,
    ST_RELATIME,
    STATX_ATTR_MOUNT_ROOT,
    STATX_MNT_ID,
    STATX_MNT_ID_UNIQUE,
)

PROPAGATIONS = (MS_SHARED, MS_PRIVATE, MS_SLAVE, MS_UNBINDABLE)


@pytest.fixture
def mnt(root: TargetTask) -> str:
    """``/mnt`` with a tmpfs on it, which has a file ``f``; below it lies a file ``hidden``."""
    root.mkdir("mnt", 0o755)
    make_file(root, "mnt/hidden")
    tmpfs(root, "mnt")
    make_file(root, "mnt/f", b"on top")
    return "mnt"


# New mounts


def test_a_mount_covers_what_was_there_until_it_is_taken_off(root: TargetTask, mnt: str) -> None:
    assert contents(root, "mnt/f") == b"on top"
    assert not exists(root, "mnt/hidden")
    assert root.stat("mnt").st_dev != root.stat("/").st_dev
    root.umount2("mnt", 0)
    assert exists(root, "mnt/hidden")
    assert not exists(root, "mnt/f")


def test_dotdot_crosses_from_a_mounts_root_to_the_mount_points_parent(
    root: TargetTask, mnt: str
) -> None:
    assert root.stat("mnt/..").st_ino == root.stat("/").st_ino
    root.chdir("mnt")
    assert root.getcwd() == b"/mnt"
    root.chdir("..")
    assert root.getcwd() == b"/"


def test_dotdot_leaves_a_stack_of_mounts_in_one_step(root: TargetTask, mnt: str) -> None:
    tmpfs(root, "mnt")
    tmpfs(root, "mnt")
    root.chdir("mnt")
    assert root.getcwd() == b"/mnt"
    root.chdir("..")
    assert root.getcwd() == b"/"


def test_each_mount_of_a_type_is_a_filesystem_of_its_own(root: TargetTask, mnt: str) -> None:
    marked(root, "other", "o")
    assert root.stat("mnt").st_dev != root.stat("other").st_dev
    assert not exists(root, "other/f")


def test_each_mount_has_its_own_id_and_a_file_has_its_mounts(root: TargetTask, mnt: str) -> None:
    root.mkdir("copy", 0o755)
    bind(root, "mnt", "copy")
    ids = {mount_id(root, path) for path in ("/", "mnt", "copy")}
    assert len(ids) == 3
    assert mount_id(root, "mnt/f") == mount_id(root, "mnt")


def test_statx_tells_the_root_of_a_mount(root: TargetTask, mnt: str) -> None:
    make_file(root, "g")
    bind(root, "mnt/f", "g")
    root.symlink("mnt", "link")
    roots = {"/": True, "mnt": True, "mnt/f": False, "g": True, "link": True, "mnt/..": True}
    for path, is_root in roots.items():
        found = root.statx(AT_FDCWD, path, 0, 0)
        assert found.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT
        assert bool(found.stx_attributes & STATX_ATTR_MOUNT_ROOT) is is_root, path
    link = root.statx(AT_FDCWD, "link", AT_SYMLINK_NOFOLLOW, 0)
    assert not link.stx_attributes & STATX_ATTR_MOUNT_ROOT


def test_statx_tells_one_mount_id_or_the_other_and_the_unique_one_if_asked_for_both(
    root: TargetTask, mnt: str
) -> None:
    old = root.statx(AT_FDCWD, "mnt/f", 0, STATX_MNT_ID)
    new = root.statx(AT_FDCWD, "mnt/f", 0, STATX_MNT_ID_UNIQUE)
    both = root.statx(AT_FDCWD, "mnt/f", 0, STATX_MNT_ID | STATX_MNT_ID_UNIQUE)
    asked = STATX_MNT_ID | STATX_MNT_ID_UNIQUE
    assert old.stx_mask & asked == STATX_MNT_ID
    assert new.stx_mask & asked == both.stx_mask & asked == STATX_MNT_ID_UNIQUE
    assert new.stx_mnt_id == both.stx_mnt_id > 1 << 31
    assert old.stx_mnt_id < 1 << 31
    assert f"\n{old.stx_mnt_id} ".encode() in b"\n" + root.mountinfo()


def test_a_unique_mount_id_is_never_used_again(root: TargetTask, mnt: str) -> None:
    seen = {mount_id(root, "mnt")}
    for count in range(4):
        root.umount2("mnt", 0)
        tmpfs(root, "mnt")
        seen.add(mount_id(root, "mnt"))
        assert len(seen) == count + 2


def test_mounting_over_the_root_of_a_mount_hides_it_from_walks_not_from_its_cwd(
    root: TargetTask, mnt: str
) -> None:
    root.chdir("mnt")
    tmpfs(root, "/mnt")
    assert not exists(root, "/mnt/f")
    assert exists(root, "f")
    assert mode(root, "/mnt") == 0o1777


def test_a_mount_on_the_root_is_seen_by_dotdot_only(root: TargetTask) -> None:
    make_file(root, "below")
    tmpfs(root, "/")
    assert exists(root, "/below")
    assert exists(root, "below")
    make_file(root, "/../on_top")
    assert not exists(root, "/on_top")
    assert not exists(root, "/../below")


def test_a_mount_on_dotdot_lands_on_the_parent_directory(root: TargetTask) -> None:
    root.mkdir("a", 0o755)
    root.mkdir("a/b", 0o755)
    root.chdir("a/b")
    tmpfs(root, "..")
    make_file(root, "/a/on_top")
    assert not exists(root, "/a/b")
    assert root.getcwd() == b"/a/b"
    assert exists(root, "../on_top")


def test_the_cwd_can_be_mounted_on(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    root.chdir("d")
    tmpfs(root, ".")
    make_file(root, "/d/on_top")
    assert not exists(root, "on_top")
    assert exists(root, "../d/on_top")


def test_a_mount_is_put_where_a_symlink_leads(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    root.symlink("d", "link")
    tmpfs(root, "link")
    make_file(root, "d/f")
    assert exists(root, "link/f")
    root.symlink("nowhere", "dangling")
    fails_with(errno.ENOENT, tmpfs, root, "dangling")


def test_mount_needs_cap_sys_admin_after_the_target_and_before_the_rest(
    root: TargetTask, alice: TargetTask, mnt: str
) -> None:
    all_fail_with(
        errno.EPERM,
        alice.mount,
        ("none", "/", "tmpfs", 0, ""),
        ("none", "/", "no-such-type", 0, ""),
        ("none", "/", None, 0, ""),
        ("missing", "/", None, MS_BIND, None),
        ("mnt", "/", None, MS_MOVE, None),
        (None, "mnt", None, MS_SHARED | MS_PRIVATE, None),
    )
    fails_with(errno.ENOENT, alice.mount, "none", "missing", "tmpfs", 0, "")
    fails_with(errno.EINVAL, alice.mount, "none", "/", "tmpfs", MS_NOUSER, "")


def test_an_unknown_filesystem_type_is_enodev_and_none_is_einval(root: TargetTask) -> None:
    fails_with(errno.ENODEV, root.mount, "none", "/", "no-such-type", 0, "")
    fails_with(errno.ENODEV, root.mount, "none", "/", "", 0, "")
    fails_with(errno.EINVAL, root.mount, "none", "/", None, 0, "")


def test_the_target_is_looked_up_before_the_type_and_the_source(root: TargetTask) -> None:
    fails_with(errno.ENOENT, root.mount, "none", "missing", "no-such-type", 0, "")
    fails_with(errno.ENOENT, root.mount, "none", "", "tmpfs", 0, "")
    fails_with(errno.ENOENT, root.mount, None, "missing", None, MS_BIND, None)


@pytest.mark.parametrize("source", [None, "", "none", "/no/such/thing"])
def test_a_filesystem_without_a_device_takes_any_source(
    root: TargetTask, source: str | None
) -> None:
    root.mkdir("d", 0o755)
    root.mount(source, "d", "tmpfs", 0, None)
    make_file(root, "d/f")
    assert exists(root, "d/f")


def test_a_bad_option_fails_a_mount_and_leaves_nothing(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    fails_with(errno.EINVAL, tmpfs, root, "d", 0, "no_such_option")
    fails_with(errno.EINVAL, tmpfs, root, "d", 0, "mode=9")
    fails_with(errno.EINVAL, root.umount2, "d", 0)


def test_the_same_filesystem_twice_in_one_place_is_ebusy_unless_bound(
    root: TargetTask,
) -> None:
    not_in_a_user_namespace(root)
    devtmpfs = only_one_of_a_kind(root)
    root.mkdir("d", 0o755)
    root.mkdir("e", 0o755)
    root.mount("none", "d", devtmpfs, 0, None)
    fails_with(errno.EBUSY, root.mount, "none", "d", devtmpfs, 0, None)
    root.mount("none", "e", devtmpfs, 0, None)
    assert root.stat("d").st_dev == root.stat("e").st_dev
    bind(root, "d", "d")
    fails_with(errno.EBUSY, root.mount, "none", "d", devtmpfs, 0, None)
    tmpfs(root, "d")
    root.mount("none", "d", devtmpfs, 0, None)
    for _ in range(4):
        root.umount2("d", 0)


def test_a_directory_goes_onto_a_directory_and_a_file_onto_a_file(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    make_file(root, "f", b"f")
    make_file(root, "g", b"g")
    fails_with(errno.ENOTDIR, tmpfs, root, "f")
    fails_with(errno.ENOTDIR, bind, root, "d", "f")
    fails_with(errno.ENOTDIR, bind, root, "f", "d")
    bind(root, "f", "g")
    assert contents(root, "g") == b"f"
    root.umount2("g", 0)


def test_a_fifo_can_be_mounted_on_and_shown_elsewhere(root: TargetTask) -> None:
    root.mknod("fifo", 0o010600, 0)
    make_file(root, "f", b"regular")
    bind(root, "f", "fifo")
    assert contents(root, "fifo") == b"regular"
    root.umount2("fifo", 0)
    bind(root, "fifo", "f")
    assert root.stat("f").st_mode == 0o010600


def test_a_deleted_directory_or_file_cannot_be_mounted_on(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    root.mkdir("e", 0o755)
    root.chdir("d")
    root.rmdir("/d")
    fails_with(errno.ENOENT, tmpfs, root, ".")
    fails_with(errno.ENOENT, bind, root, "/e", ".")


def test_nothing_can_be_mounted_on_a_mount_of_another_namespace(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    root.mkdir("d", 0o755)
    fd = root.open("mnt/d", O_PATH, 0)
    other = root.clone("other", CLONE_NEWNS)
    other.fchdir(fd)
    fails_with(errno.EINVAL, tmpfs, other, ".")
    fails_with(errno.EINVAL, bind, other, "/d", ".")
    fails_with(errno.EINVAL, move, other, "/mnt", ".")
    root.close(fd)


def test_nothing_can_be_mounted_in_a_tree_that_was_unmounted(root: TargetTask, mnt: str) -> None:
    root.mkdir("mnt/d", 0o755)
    root.chdir("mnt")
    root.umount2("/mnt", MNT_DETACH)
    fails_with(errno.ENOENT, tmpfs, root, "d")
    fails_with(errno.ENOENT, bind, root, "d", "d")
    fails_with(errno.ENOENT, move, root, ".", "d")
    fails_with(errno.EINVAL, move, root, "d", "d")
    fails_with(errno.EINVAL, bind, root, "d", "/mnt")
    fails_with(errno.EINVAL, root.mount, None, ".", None, MS_REMOUNT, None)


# Flags that decide what the call does


def test_the_old_magic_number_in_the_flags_is_discarded(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    tmpfs(root, "d", MS_MGC_VAL | MS_RDONLY)
    assert flags_of(root, "d") == ST_RDONLY | ST_RELATIME
    root.mkdir("e", 0o755)
    bind(root, "d", "e", MS_MGC_VAL)
    assert mount_id(root, "e") != mount_id(root, "/")


def test_another_magic_number_is_taken_for_flags(root: TargetTask) -> None:
    fails_with(errno.EINVAL, tmpfs, root, "/", MS_MGC_VAL + (1 << 16))


@pytest.mark.parametrize("with_flag", [0, MS_BIND, MS_MOVE, MS_REMOUNT, MS_PRIVATE])
def test_ms_nouser_is_einval_with_everything(root: TargetTask, mnt: str, with_flag: int) -> None:
    fails_with(errno.EINVAL, root.mount, "mnt", "mnt", "tmpfs", MS_NOUSER | with_flag, None)


@pytest.mark.parametrize("one", PROPAGATIONS)
@pytest.mark.parametrize("two", PROPAGATIONS)
def test_two_propagation_types_at_once_are_einval(root: TargetTask, one: int, two: int) -> None:
    if one == two:
        propagation(root, "/", one | MS_REC | MS_SILENT)
    else:
        fails_with(errno.EINVAL, propagation, root, "/", one | two)
        fails_with(errno.EINVAL, propagation, root, "/", one | two | MS_REC)


@pytest.mark.parametrize("extra", [MS_RDONLY, MS_NOEXEC, MS_MOVE])
def test_a_propagation_type_with_any_flag_but_rec_and_silent_is_einval(
    root: TargetTask, mnt: str, extra: int
) -> None:
    fails_with(errno.EINVAL, root.mount, "mnt", "mnt", None, MS_SHARED | extra, None)


def test_the_propagation_of_what_is_no_mounts_root_is_einval(root: TargetTask, mnt: str) -> None:
    for kind in PROPAGATIONS:
        fails_with(errno.EINVAL, propagation, root, "mnt/f", kind)


def test_remount_wins_over_propagation_and_move(root: TargetTask, mnt: str) -> None:
    root.mkdir("d", 0o755)
    root.mount("mnt", "mnt", None, MS_REMOUNT | MS_MOVE | MS_NOEXEC, None)
    assert flags_of(root, "mnt") == ST_NOEXEC | ST_RELATIME
    root.mount("mnt", "mnt", None, MS_REMOUNT | MS_SHARED | MS_PRIVATE, None)
    assert flags_of(root, "mnt") == ST_RELATIME
    fails_with(errno.EINVAL, root.mount, "mnt", "d", None, MS_REMOUNT | MS_BIND, None)


def test_bind_wins_over_propagation_and_move(root: TargetTask, mnt: str) -> None:
    root.mkdir("d", 0o755)
    root.mount("mnt", "d", None, MS_BIND | MS_MOVE | MS_SHARED | MS_PRIVATE, None)
    assert exists(root, "mnt/f")
    assert exists(root, "d/f")


def test_the_type_is_not_looked_at_where_none_is_needed(root: TargetTask, mnt: str) -> None:
    root.mkdir("d", 0o755)
    root.mount("mnt", "d", "no-such-type", MS_BIND, "no_such_option")
    root.mount(None, "d", "no-such-type", MS_REMOUNT | MS_BIND | MS_RDONLY, "no_such_option")
    root.mount(None, "d", "no-such-type", MS_PRIVATE, "no_such_option")
    root.mkdir("e", 0o755)
    root.mount("d", "e", "no-such-type", MS_MOVE, "no_such_option")
    assert flags_of(root, "e") == ST_RDONLY | ST_RELATIME


# The limit on mounts of a namespace


LIMIT = 1000


@pytest.fixture
def crowded(root: TargetTask) -> str:
    """``/tree`` with more mounts in it than half of fs.mount-max, which is ``LIMIT``."""
    try:
        root.target.set_sysctl("mount_max", LIMIT)
    except TargetUnavailable as error:
        pytest.skip(str(error))
    root.mkdir("tree", 0o755)
    tmpfs(root, "tree")
    for count in range(9):
        root.mkdir(f"tree/{count}", 0o755)
        rbind(root, "tree", f"tree/{count}")
    return "tree"


def test_a_recursive_bind_beyond_the_limit_of_a_namespace_is_enospc_and_adds_nothing(
    root: TargetTask, crowded: str
) -> None:
    root.mkdir("d", 0o755)
    fails_with(errno.ENOSPC, rbind, root, "tree", "d")
    fails_with(errno.EINVAL, root.umount2, "d", 0)
    bind(root, "tree", "d")
    assert exists(root, "d/0")


def test_the_limit_counts_each_namespace_by_itself_and_what_is_unmounted_no_more(
    root: TargetTask, crowded: str
) -> None:
    other = root.clone("other", CLONE_NEWNS)
    root.mkdir("d", 0o755)
    fails_with(errno.ENOSPC, rbind, other, "tree", "d")
    root.umount2("tree/8", MNT_DETACH)
    rbind(root, "tree", "d")
    fails_with(errno.ENOSPC, rbind, other, "tree", "d")


def test_a_detached_tree_counts_only_when_it_is_attached(root: TargetTask, crowded: str) -> None:
    root.mkdir("d", 0o755)
    fd = clone_tree(root, "tree", AT_RECURSIVE)
    fails_with(errno.ENOSPC, attach, root, fd, "d")
    root.umount2("tree", MNT_DETACH)
    attach(root, fd, "d")
    assert exists(root, "d/8/7")
    root.close(fd)
