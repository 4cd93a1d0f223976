"""mount_setattr: attributes and propagation of one mount or of a whole tree, all or nothing."""

from __future__ import annotations

import errno

import pytest
from mount_calls_support import (
    bind,
    clone_tree,
    enter,
    flags_of,
    is_read_only,
    marked,
    new_tmpfs,
    propagation,
    remount,
    remount_bind,
    set_attributes,
    tmpfs,
)
from vfs_support import exists, fails_with, make_file

from harness.testbed.target import TargetTask
from vfs.abi import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_NO_AUTOMOUNT,
    AT_RECURSIVE,
    AT_SYMLINK_NOFOLLOW,
    CLONE_NEWNS,
    MNT_DETACH,
    MOUNT_ATTR__ATIME,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_RELATIME,
    MOUNT_ATTR_STRICTATIME,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_SHARED,
    MS_SLAVE,
    MS_STRICTATIME,
    MS_UNBINDABLE,
    O_PATH,
    O_RDONLY,
    O_WRONLY,
    ST_NOATIME,
    ST_NODEV,
    ST_NODIRATIME,
    ST_NOEXEC,
    ST_NOSUID,
    ST_NOSYMFOLLOW,
    ST_RDONLY,
    ST_RELATIME,
)

FLAGS = {
    "rdonly": (MOUNT_ATTR_RDONLY, MS_RDONLY, ST_RDONLY),
    "nosuid": (MOUNT_ATTR_NOSUID, MS_NOSUID, ST_NOSUID),
    "nodev": (MOUNT_ATTR_NODEV, MS_NODEV, ST_NODEV),
    "noexec": (MOUNT_ATTR_NOEXEC, MS_NOEXEC, ST_NOEXEC),
    "nodiratime": (MOUNT_ATTR_NODIRATIME, MS_NODIRATIME, ST_NODIRATIME),
    "nosymfollow": (MOUNT_ATTR_NOSYMFOLLOW, MS_NOSYMFOLLOW, ST_NOSYMFOLLOW),
}
ATIMES = {
    "relatime": (MOUNT_ATTR_RELATIME, ST_RELATIME),
    "noatime": (MOUNT_ATTR_NOATIME, ST_NOATIME),
    "strictatime": (MOUNT_ATTR_STRICTATIME, 0),
}
KINDS = (MS_SHARED, MS_PRIVATE, MS_SLAVE, MS_UNBINDABLE)


@pytest.fixture
def tree(root: TargetTask, alice: TargetTask) -> str:
    """``/tree`` with a tmpfs; on ``/tree/a`` and ``/tree/a/b`` and ``/tree/c`` further ones."""
    root.mkdir("w", 0o777)
    for path in ("tree", "tree/a", "tree/a/b", "tree/c"):
        marked(root, path, "f")
    return "tree"


MOUNTS = ("tree", "tree/a", "tree/a/b", "tree/c")


def all_flags(task: TargetTask) -> list[int]:
    return [flags_of(task, path) for path in MOUNTS]


# Attributes


@pytest.mark.parametrize("attribute, _, shown", FLAGS.values(), ids=list(FLAGS))
def test_an_attribute_is_set_and_cleared_on_this_mount_only(
    root: TargetTask, tree: str, attribute: int, _: int, shown: int
) -> None:
    set_attributes(root, "tree", attribute)
    assert all_flags(root) == [shown | ST_RELATIME] + [ST_RELATIME] * 3
    set_attributes(root, "tree", 0, attribute)
    assert all_flags(root) == [ST_RELATIME] * 4


@pytest.mark.parametrize("attribute, _, shown", FLAGS.values(), ids=list(FLAGS))
def test_an_attribute_is_set_and_cleared_on_a_whole_tree(
    root: TargetTask, tree: str, attribute: int, _: int, shown: int
) -> None:
    set_attributes(root, "tree", attribute, 0, 0, AT_RECURSIVE)
    assert all_flags(root) == [shown | ST_RELATIME] * 4
    assert flags_of(root, "/") == ST_RELATIME
    set_attributes(root, "tree/a", 0, attribute, 0, AT_RECURSIVE)
    assert all_flags(root) == [shown | ST_RELATIME, ST_RELATIME, ST_RELATIME, shown | ST_RELATIME]


def test_attributes_that_are_not_named_stay(root: TargetTask, tree: str) -> None:
    remount_bind(root, "tree", MS_NOSUID | MS_NODEV | MS_NOATIME)
    set_attributes(root, "tree", MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NODEV)
    assert flags_of(root, "tree") == ST_NOSUID | ST_NOEXEC | ST_NOATIME


def test_an_attribute_both_cleared_and_set_is_set(root: TargetTask, tree: str) -> None:
    both = MOUNT_ATTR_NOEXEC | MOUNT_ATTR_RDONLY
    set_attributes(root, "tree", both, both)
    assert flags_of(root, "tree") == ST_NOEXEC | ST_RDONLY | ST_RELATIME


def test_clearing_an_attribute_that_is_not_set_does_nothing(root: TargetTask, tree: str) -> None:
    set_attributes(root, "tree", 0, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOEXEC)
    assert flags_of(root, "tree") == ST_RELATIME


def test_a_read_only_attribute_is_the_mounts_and_not_the_superblocks(
    root: TargetTask, tree: str
) -> None:
    bind(root, "tree", "w")
    set_attributes(root, "tree", MOUNT_ATTR_RDONLY)
    assert is_read_only(root, "tree")
    assert not is_read_only(root, "w")
    set_attributes(root, "tree", 0, MOUNT_ATTR_RDONLY)
    remount(root, "w", MS_RDONLY)
    set_attributes(root, "tree", 0, MOUNT_ATTR_RDONLY)
    assert is_read_only(root, "tree")


@pytest.mark.parametrize("before", ATIMES)
@pytest.mark.parametrize("after", ATIMES)
def test_one_atime_mode_is_exchanged_for_another(
    root: TargetTask, tree: str, before: str, after: str
) -> None:
    for name in (before, after):
        attribute, shown = ATIMES[name]
        set_attributes(root, "tree", attribute, MOUNT_ATTR__ATIME)
        assert flags_of(root, "tree") == shown


def test_the_atime_mode_and_nodiratime_do_not_touch_each_other(root: TargetTask, tree: str) -> None:
    set_attributes(root, "tree", MOUNT_ATTR_NODIRATIME | MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME)
    assert flags_of(root, "tree") == ST_NODIRATIME | ST_NOATIME
    set_attributes(root, "tree", MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME)
    assert flags_of(root, "tree") == ST_NODIRATIME
    set_attributes(root, "tree", 0, MOUNT_ATTR_NODIRATIME)
    assert flags_of(root, "tree") == 0


@pytest.mark.parametrize(
    "attr_set, attr_clr",
    [
        (MOUNT_ATTR_NOATIME, 0),
        (MOUNT_ATTR_STRICTATIME, 0),
        (MOUNT_ATTR_NOATIME, MOUNT_ATTR_NOATIME),
        (0, MOUNT_ATTR_NOATIME),
        (0, MOUNT_ATTR_STRICTATIME),
        (0, 0x40),
        (MOUNT_ATTR_NOATIME | MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME),
        (0x40, MOUNT_ATTR__ATIME),
    ],
)
def test_an_atime_mode_not_cleared_as_a_whole_or_not_one_is_einval(
    root: TargetTask, tree: str, attr_set: int, attr_clr: int
) -> None:
    fails_with(errno.EINVAL, set_attributes, root, "tree", attr_set, attr_clr)
    assert flags_of(root, "tree") == ST_RELATIME


@pytest.mark.parametrize("attribute", [0x100, 1 << 22, 1 << 40, 1 << 63])
def test_an_unknown_attribute_is_einval(root: TargetTask, tree: str, attribute: int) -> None:
    fails_with(errno.EINVAL, set_attributes, root, "tree", attribute)
    fails_with(errno.EINVAL, set_attributes, root, "tree", 0, attribute)


# All or nothing


def test_a_writer_keeps_its_mount_from_becoming_read_only(root: TargetTask, tree: str) -> None:
    fd = root.open("tree/f", O_WRONLY, 0)
    fails_with(errno.EBUSY, set_attributes, root, "tree", MOUNT_ATTR_RDONLY)
    set_attributes(root, "tree", MOUNT_ATTR_NOEXEC)
    assert flags_of(root, "tree") == ST_NOEXEC | ST_RELATIME
    root.close(fd)
    set_attributes(root, "tree", MOUNT_ATTR_RDONLY)


@pytest.mark.parametrize("where", MOUNTS)
def test_a_writer_anywhere_in_a_tree_leaves_all_of_it_as_it_was(
    root: TargetTask, tree: str, where: str
) -> None:
    fd = root.open(f"{where}/f", O_WRONLY, 0)
    both = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOEXEC
    fails_with(errno.EBUSY, set_attributes, root, "tree", both, 0, MS_SHARED, AT_RECURSIVE)
    assert all_flags(root) == [ST_RELATIME] * 4
    assert b"shared:" not in root.mountinfo()
    for path in MOUNTS:
        assert not is_read_only(root, path)
    root.close(fd)
    set_attributes(root, "tree", both, 0, 0, AT_RECURSIVE)
    assert all_flags(root) == [ST_RDONLY | ST_NOEXEC | ST_RELATIME] * 4


def test_a_writer_does_not_matter_where_the_mount_is_read_only_anyway(
    root: TargetTask, tree: str
) -> None:
    bind(root, "tree", "w")
    set_attributes(root, "w", MOUNT_ATTR_RDONLY)
    fd = root.open("tree/f", O_WRONLY, 0)
    set_attributes(root, "w", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOEXEC)
    assert flags_of(root, "w") == ST_RDONLY | ST_NOEXEC | ST_RELATIME
    root.close(fd)


def test_a_locked_attribute_anywhere_in_a_tree_leaves_all_of_it_as_it_was(
    root: TargetTask, alice: TargetTask, tree: str
) -> None:
    set_attributes(root, "tree/c", MOUNT_ATTR_NOEXEC)
    inner = enter(alice)
    args = (MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOEXEC, 0, AT_RECURSIVE)
    before = all_flags(inner)
    fails_with(errno.EPERM, set_attributes, inner, "tree", *args)
    assert all_flags(inner) == before
    set_attributes(inner, "tree/a", *args)
    assert flags_of(inner, "tree/a/b") == ST_NOSUID | ST_RELATIME


def test_the_first_mount_of_a_tree_that_objects_decides_the_errno(
    root: TargetTask, alice: TargetTask, tree: str
) -> None:
    set_attributes(root, "tree/c", MOUNT_ATTR_NOEXEC)
    inner = enter(alice)
    args = (MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOEXEC, 0, AT_RECURSIVE)
    fd = inner.open("tree/a/f", O_WRONLY, 0)
    fails_with(errno.EBUSY, set_attributes, inner, "tree", *args)
    inner.close(fd)
    fd = inner.open("tree/c/f", O_WRONLY, 0)
    fails_with(errno.EPERM, set_attributes, inner, "tree", *args)
    inner.close(fd)


def test_the_atime_mode_of_an_inherited_mount_is_locked(
    root: TargetTask, alice: TargetTask, tree: str
) -> None:
    inner = enter(alice)
    fails_with(errno.EPERM, set_attributes, inner, "tree", MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME)
    fails_with(errno.EPERM, set_attributes, inner, "tree", MOUNT_ATTR_NODIRATIME)
    set_attributes(inner, "tree", MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME)
    tmpfs(inner, "w")
    set_attributes(inner, "w", MOUNT_ATTR_NOATIME | MOUNT_ATTR_NODIRATIME, MOUNT_ATTR__ATIME)


def test_an_inherited_read_only_and_one_set_by_oneself_are_cleared_by_whom_they_belong_to(
    root: TargetTask, alice: TargetTask, tree: str
) -> None:
    set_attributes(root, "tree/a", MOUNT_ATTR_RDONLY)
    inner = enter(alice)
    set_attributes(inner, "tree", MOUNT_ATTR_RDONLY, 0, 0, AT_RECURSIVE)
    fails_with(errno.EPERM, set_attributes, inner, "tree/a", 0, MOUNT_ATTR_RDONLY)
    set_attributes(inner, "tree", 0, MOUNT_ATTR_RDONLY)
    assert not is_read_only(inner, "tree")


# Propagation


def test_a_propagation_type_is_set_on_one_mount_or_on_all(root: TargetTask, tree: str) -> None:
    set_attributes(root, "tree", 0, 0, MS_SHARED)
    assert root.mountinfo().count(b"shared:") == 1
    set_attributes(root, "tree", 0, 0, MS_SHARED, AT_RECURSIVE)
    assert root.mountinfo().count(b"shared:") == 4
    set_attributes(root, "tree", 0, 0, MS_PRIVATE, AT_RECURSIVE)
    assert b"shared:" not in root.mountinfo()


def test_a_shared_tree_shares_with_its_copies(root: TargetTask, tree: str) -> None:
    set_attributes(root, "tree", 0, 0, MS_SHARED)
    bind(root, "tree", "w")
    root.mkdir("tree/late", 0o755)
    tmpfs(root, "tree/late")
    make_file(root, "tree/late/f")
    assert exists(root, "w/late/f")
    set_attributes(root, "w", 0, 0, MS_SLAVE)
    root.umount2("w/late", 0)
    assert exists(root, "tree/late/f")


def test_an_unbindable_mount_is_made_and_unmade(root: TargetTask, tree: str) -> None:
    set_attributes(root, "tree/c", 0, 0, MS_UNBINDABLE)
    fails_with(errno.EINVAL, bind, root, "tree/c", "w")
    set_attributes(root, "tree/c", 0, 0, MS_PRIVATE)
    bind(root, "tree/c", "w")


def test_attributes_and_propagation_are_changed_in_one_call(root: TargetTask, tree: str) -> None:
    set_attributes(root, "tree", MOUNT_ATTR_NOEXEC, 0, MS_SHARED)
    assert flags_of(root, "tree") == ST_NOEXEC | ST_RELATIME
    assert root.mountinfo().count(b"shared:") == 1


@pytest.mark.parametrize(
    "kind", [MS_SHARED | MS_PRIVATE, MS_SLAVE | MS_UNBINDABLE, MS_REC | MS_PRIVATE, 1, 1 << 40]
)
def test_a_propagation_of_two_types_or_of_something_else_is_einval(
    root: TargetTask, tree: str, kind: int
) -> None:
    fails_with(errno.EINVAL, set_attributes, root, "tree", MOUNT_ATTR_NOEXEC, 0, kind)
    assert flags_of(root, "tree") == ST_RELATIME


@pytest.mark.parametrize("kind", KINDS)
def test_every_propagation_type_alone_is_taken(root: TargetTask, tree: str, kind: int) -> None:
    set_attributes(root, "tree", 0, 0, kind, AT_RECURSIVE)
    set_attributes(root, "tree", 0, 0, MS_PRIVATE, AT_RECURSIVE)
    bind(root, "tree", "w")


# What it is asked of


def test_what_is_no_mounts_root_is_einval(root: TargetTask, tree: str) -> None:
    root.mkdir("tree/plain", 0o755)
    fails_with(errno.EINVAL, set_attributes, root, "tree/plain", MOUNT_ATTR_RDONLY)
    fails_with(errno.EINVAL, set_attributes, root, "tree/f", MOUNT_ATTR_RDONLY)
    fails_with(errno.EINVAL, set_attributes, root, "tree/f", 0, 0, MS_SHARED)
    fails_with(errno.ENOENT, set_attributes, root, "missing", MOUNT_ATTR_RDONLY)


def test_a_call_that_changes_nothing_looks_at_nothing(root: TargetTask, tree: str) -> None:
    set_attributes(root, "missing")
    set_attributes(root, "tree/f")
    root.mount_setattr(AT_FDCWD, "missing", 0, (0, 0, 0, 99))


def test_unknown_flags_are_einval_before_all_else(
    root: TargetTask, alice: TargetTask, tree: str
) -> None:
    for task in (root, alice):
        fails_with(errno.EINVAL, set_attributes, task, "tree", MOUNT_ATTR_RDONLY, 0, 0, 0x400)
        fails_with(errno.EINVAL, set_attributes, task, "missing", 0, 0, 0, 1)


def test_cap_sys_admin_is_asked_for_before_the_attributes_and_the_name(
    alice: TargetTask, tree: str
) -> None:
    fails_with(errno.EPERM, set_attributes, alice, "tree", MOUNT_ATTR_RDONLY)
    fails_with(errno.EPERM, set_attributes, alice, "missing", MOUNT_ATTR_RDONLY)
    fails_with(errno.EPERM, set_attributes, alice, "tree", 1 << 40)
    fails_with(errno.EPERM, set_attributes, alice, "tree")


def test_bad_attributes_are_einval_before_a_missing_name_is_enoent(root: TargetTask) -> None:
    fails_with(errno.EINVAL, set_attributes, root, "missing", 1 << 40)
    fails_with(errno.EINVAL, set_attributes, root, "missing", MOUNT_ATTR_NOATIME)
    fails_with(errno.ENOENT, set_attributes, root, "missing", MOUNT_ATTR_RDONLY)


def test_a_structure_of_no_size_is_einval(root: TargetTask, tree: str) -> None:
    fails_with(errno.EINVAL, root.mount_setattr, AT_FDCWD, "tree", 0, None)


def test_a_symlink_is_followed_unless_told_not_to(root: TargetTask, tree: str) -> None:
    root.symlink("tree", "link")
    flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT
    fails_with(errno.EINVAL, set_attributes, root, "link", MOUNT_ATTR_RDONLY, 0, 0, flags)
    set_attributes(root, "link", MOUNT_ATTR_RDONLY)
    assert is_read_only(root, "tree")


def test_a_descriptor_of_the_mounts_root_will_do(root: TargetTask, tree: str) -> None:
    for how in (O_PATH, O_RDONLY):
        fd = root.open("tree", how, 0)
        fails_with(errno.ENOENT, root.mount_setattr, fd, "", 0, (MOUNT_ATTR_NOEXEC, 0, 0, 0))
        set_attributes(root, "", MOUNT_ATTR_NOEXEC, 0, 0, AT_EMPTY_PATH, fd)
        assert flags_of(root, "tree") == ST_NOEXEC | ST_RELATIME
        set_attributes(root, "a", MOUNT_ATTR_NODEV, 0, 0, 0, fd)
        assert flags_of(root, "tree/a") == ST_NODEV | ST_RELATIME
        root.close(fd)


def test_the_topmost_mount_of_a_stack_is_meant(root: TargetTask, tree: str) -> None:
    tmpfs(root, "tree/c")
    set_attributes(root, "tree/c", MOUNT_ATTR_RDONLY)
    root.umount2("tree/c", 0)
    assert not is_read_only(root, "tree/c")


def test_a_mount_of_another_namespace_is_einval(root: TargetTask, tree: str) -> None:
    fd = root.open("tree", O_PATH, 0)
    other = root.clone("other", CLONE_NEWNS)
    fails_with(errno.EINVAL, set_attributes, other, "", MOUNT_ATTR_RDONLY, 0, 0, 0, fd)
    fails_with(errno.EINVAL, set_attributes, other, "", 0, 0, MS_SHARED, 0, fd)
    root.close(fd)


def test_a_lazily_unmounted_mount_is_einval(root: TargetTask, tree: str) -> None:
    root.chdir("tree")
    root.umount2("/tree", MNT_DETACH)
    fails_with(errno.EINVAL, set_attributes, root, ".", MOUNT_ATTR_RDONLY)


def test_the_root_of_a_detached_tree_is_fine_and_a_mount_inside_of_it_einval(
    root: TargetTask, tree: str
) -> None:
    fd = clone_tree(root, "tree", AT_RECURSIVE)
    set_attributes(root, "", MOUNT_ATTR_NOEXEC, 0, 0, AT_RECURSIVE, fd)
    fails_with(errno.EINVAL, set_attributes, root, "a", MOUNT_ATTR_NODEV, 0, 0, 0, fd)
    assert root.fstatfs(fd).f_flags & ST_NOEXEC
    assert flags_of(root, "tree") == ST_RELATIME
    root.close(fd)


def test_a_new_filesystem_is_changed_before_it_is_mounted_anywhere(root: TargetTask) -> None:
    fd = new_tmpfs(root)
    set_attributes(root, "", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOEXEC, 0, MS_SHARED, 0, fd)
    assert root.fstatfs(fd).f_flags & (ST_RDONLY | ST_NOEXEC) == ST_RDONLY | ST_NOEXEC
    root.close(fd)


@pytest.mark.parametrize("old, attribute", [(f[1], f[0]) for f in FLAGS.values()], ids=list(FLAGS))
def test_what_a_bind_remount_set_mount_setattr_clears(
    root: TargetTask, tree: str, old: int, attribute: int
) -> None:
    remount_bind(root, "tree", old | MS_STRICTATIME)
    set_attributes(root, "tree", 0, attribute)
    assert flags_of(root, "tree") == 0


def test_a_propagation_change_alone_reaches_a_mount_with_a_writer(
    root: TargetTask, tree: str
) -> None:
    fd = root.open("tree/f", O_WRONLY, 0)
    set_attributes(root, "tree", 0, 0, MS_SHARED)
    propagation(root, "tree", MS_PRIVATE)
    root.close(fd)
