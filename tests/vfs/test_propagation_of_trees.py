"""Propagation with the descriptor-based calls: detached trees, mounting beneath, joining groups."""

from __future__ import annotations

import errno

import pytest
from mount_support import (
    bind,
    less_privileged,
    make_private,
    make_rshared,
    make_shared,
    make_slave,
    make_unbindable,
    mkdirs,
    mounted,
    new_namespace,
    unmount,
    view,
)
from vfs_support import fails_with, make_file

from harness.testbed.target import TargetTask
from vfs.abi import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    MNT_DETACH,
    MOUNT_ATTR_RDONLY,
    MOVE_MOUNT_BENEATH,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_SET_GROUP,
    MS_PRIVATE,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
    O_DIRECTORY,
    O_RDONLY,
    O_WRONLY,
    OPEN_TREE_CLONE,
)


def detached(task: TargetTask, path: str, flags: int = 0) -> int:
    fd: int = task.open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | flags)
    return fd


def attach(task: TargetTask, fd: int, path: str, flags: int = 0) -> None:
    task.move_mount(fd, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH | flags)


def set_type(task: TargetTask, path: str, propagation: int, flags: int = 0) -> None:
    task.mount_setattr(AT_FDCWD, path, flags, (0, 0, propagation, 0))


@pytest.fixture
def pair(root: TargetTask) -> None:
    """``/a`` and its slave ``/b`` with directories x and y; a free ``/free``."""
    mounted(root, "A", "/a", "x", "y")
    make_shared(root, "/a")
    mkdirs(root, "/b", "/free")
    bind(root, "/a", "/b")
    make_slave(root, "/b")


# Detached trees


@pytest.mark.usefixtures("pair")
def test_a_detached_clone_is_in_its_originals_group_until_it_is_closed(root: TargetTask) -> None:
    fd = detached(root, "/a")
    make_slave(root, "/a")
    assert view(root) == ["/a A master:1", "/b A master:1"]
    root.close(fd)
    assert view(root) == ["/a A", "/b A"]


@pytest.mark.usefixtures("pair")
def test_a_detached_clone_of_a_slave_comes_back_as_a_slave(root: TargetTask) -> None:
    fd = detached(root, "/b")
    unmount(root, "/b")
    attach(root, fd, "/free")
    mounted(root, "X", "/a/x")
    assert view(root) == [
        "/a A shared:1",
        "/a/x X shared:2",
        "/free A master:1",
        "/free/x X master:2",
    ]


@pytest.mark.usefixtures("pair")
def test_a_mount_does_not_reach_a_clone_while_it_is_detached(root: TargetTask) -> None:
    fd = detached(root, "/a")
    mounted(root, "X", "/a/x")
    attach(root, fd, "/free")
    mounted(root, "Y", "/a/y")
    assert view(root) == [
        "/a A shared:1",
        "/a/x X shared:2",
        "/a/y Y shared:3",
        "/b A master:1",
        "/b/x X master:2",
        "/b/y Y master:3",
        "/free A shared:1",
        "/free/y Y shared:3",
    ]


@pytest.mark.usefixtures("pair")
def test_an_unmount_reaches_a_clone_while_it_is_detached(root: TargetTask) -> None:
    mounted(root, "X", "/a/x")
    fd = detached(root, "/a", AT_RECURSIVE)
    unmount(root, "/a/x")
    attach(root, fd, "/free")
    assert view(root) == ["/a A shared:1", "/b A master:1", "/free A shared:1"]


@pytest.mark.usefixtures("pair")
def test_a_mount_put_into_a_detached_clone_reaches_its_peers_that_are_attached(
    root: TargetTask,
) -> None:
    mounted(root, "T", "/t")
    fd = detached(root, "/a")
    root.move_mount(detached(root, "/t"), "", fd, "x", MOVE_MOUNT_F_EMPTY_PATH)
    reached = ["/a A shared:1", "/a/x T shared:2", "/b A master:1", "/b/x T master:2"]
    assert view(root) == [*reached, "/t T"]
    attach(root, fd, "/free")
    assert view(root) == [*reached, "/free A shared:1", "/free/x T shared:2", "/t T"]


@pytest.mark.usefixtures("pair")
def test_a_mount_in_use_in_a_detached_clone_keeps_an_unmount_busy(root: TargetTask) -> None:
    mounted(root, "X", "/a/x")
    fd = detached(root, "/a", AT_RECURSIVE)
    inner = root.openat(fd, "x", O_RDONLY | O_DIRECTORY, 0)
    fails_with(errno.EBUSY, root.umount2, "/a/x", 0)
    root.close(inner)
    unmount(root, "/a/x")


@pytest.mark.usefixtures("pair")
def test_closing_a_detached_tree_unmounts_nothing_elsewhere(root: TargetTask) -> None:
    mounted(root, "X", "/a/x")
    before = view(root)
    root.close(detached(root, "/a", AT_RECURSIVE))
    assert view(root) == before


@pytest.mark.usefixtures("pair")
def test_a_detached_tree_attached_to_a_shared_mount_propagates_as_a_whole(
    root: TargetTask,
) -> None:
    mounted(root, "T", "/t", "1")
    mounted(root, "T1", "/t/1")
    fd = detached(root, "/t", AT_RECURSIVE)
    attach(root, fd, "/a/x")
    root.close(fd)
    assert view(root) == [
        "/a A shared:1",
        "/a/x T shared:2",
        "/a/x/1 T1 shared:3",
        "/b A master:1",
        "/b/x T master:2",
        "/b/x/1 T1 master:3",
        "/t T",
        "/t/1 T1",
    ]


@pytest.mark.usefixtures("pair")
def test_a_clone_leaves_unbindable_mounts_out_and_of_one_itself_is_einval(
    root: TargetTask,
) -> None:
    mounted(root, "T", "/t", "1", "2")
    mounted(root, "T1", "/t/1")
    mounted(root, "T2", "/t/2")
    make_unbindable(root, "/t/1")
    fails_with(errno.EINVAL, detached, root, "/t/1")
    attach(root, detached(root, "/t", AT_RECURSIVE), "/free")
    assert [line for line in view(root) if line.startswith("/free")] == ["/free T", "/free/2 T2"]


@pytest.mark.usefixtures("pair")
def test_a_detached_tree_that_became_unbindable_is_einval_on_a_shared_mount_only(
    root: TargetTask,
) -> None:
    mounted(root, "T", "/t")
    fd = detached(root, "/t")
    root.mount_setattr(fd, "", AT_EMPTY_PATH, (0, 0, MS_UNBINDABLE, 0))
    fails_with(errno.EINVAL, attach, root, fd, "/a/x")
    attach(root, fd, "/free")
    assert view(root) == ["/a A shared:1", "/b A master:1", "/free T unbindable", "/t T"]


@pytest.mark.usefixtures("pair")
def test_a_type_set_on_a_detached_tree_comes_along(root: TargetTask) -> None:
    mounted(root, "T", "/t", "1")
    mounted(root, "T1", "/t/1")
    fd = detached(root, "/t", AT_RECURSIVE)
    root.mount_setattr(fd, "", AT_EMPTY_PATH | AT_RECURSIVE, (0, 0, MS_SHARED, 0))
    attach(root, fd, "/free")
    assert view(root)[2:] == ["/free T shared:2", "/free/1 T1 shared:3", "/t T", "/t/1 T1"]


def test_a_clone_taken_from_another_namespaces_descriptor_is_einval(root: TargetTask) -> None:
    mounted(root, "A", "/a")
    fd = root.open_tree(AT_FDCWD, "/a", 0)
    other = new_namespace(root, "other")
    fails_with(errno.EINVAL, other.open_tree, fd, ".", OPEN_TREE_CLONE)


# mount_setattr


@pytest.mark.parametrize(
    ("propagation", "expected"),
    [
        (MS_SHARED, ["/a A shared:1", "/a/x X shared:2", "/peer A shared:1"]),
        (MS_SLAVE, ["/a A master:1", "/a/x X", "/peer A shared:1"]),
        (MS_PRIVATE, ["/a A", "/a/x X", "/peer A shared:1"]),
        (MS_UNBINDABLE, ["/a A unbindable", "/a/x X unbindable", "/peer A shared:1"]),
    ],
)
def test_mount_setattr_changes_the_type_of_a_whole_tree(
    root: TargetTask, propagation: int, expected: list[str]
) -> None:
    mounted(root, "A", "/a", "x")
    mkdirs(root, "/peer")
    mounted(root, "X", "/a/x")
    make_rshared(root, "/a")
    bind(root, "/a", "/peer")
    set_type(root, "/a", propagation, AT_RECURSIVE)
    assert view(root) == expected


@pytest.mark.parametrize(
    "propagation", [MS_SHARED | MS_SLAVE, MS_PRIVATE | MS_UNBINDABLE, 1, MS_SHARED | 1]
)
def test_mount_setattr_with_more_or_other_than_one_type_is_einval(
    root: TargetTask, propagation: int
) -> None:
    mounted(root, "A", "/a")
    fails_with(errno.EINVAL, set_type, root, "/a", propagation)
    assert view(root) == ["/a A"]


def test_a_failing_mount_setattr_changes_the_type_of_none(root: TargetTask) -> None:
    mounted(root, "A", "/a", "x")
    mounted(root, "X", "/a/x")
    make_file(root, "/a/x/f")
    fd = root.open("/a/x/f", O_WRONLY, 0)
    attr = (MOUNT_ATTR_RDONLY, 0, MS_SHARED, 0)
    fails_with(errno.EBUSY, root.mount_setattr, AT_FDCWD, "/a", AT_RECURSIVE, attr)
    assert view(root) == ["/a A", "/a/x X"]
    root.mkdir("/a/still-writable", 0o755)
    root.close(fd)
    root.mount_setattr(AT_FDCWD, "/a", AT_RECURSIVE, attr)
    assert view(root) == ["/a A shared:1", "/a/x X shared:2"]
    fails_with(errno.EROFS, root.mkdir, "/a/x/new", 0o755)


# MOVE_MOUNT_BENEATH


@pytest.mark.usefixtures("pair")
def test_a_mount_goes_beneath_the_topmost_one_on_every_side(root: TargetTask) -> None:
    mounted(root, "top", "/a/x")
    mounted(root, "N", "/new")
    attach(root, detached(root, "/new"), "/a/x", MOVE_MOUNT_BENEATH)
    assert view(root) == [
        "/a A shared:1",
        "/a/x N shared:2",
        "/a/x top shared:3",
        "/b A master:1",
        "/b/x N master:2",
        "/b/x top master:3",
        "/new N",
    ]
    unmount(root, "/a/x")
    assert [line for line in view(root) if "/x" in line] == ["/a/x N shared:2", "/b/x N master:2"]


def test_a_mount_in_the_table_is_moved_beneath_another(root: TargetTask) -> None:
    mounted(root, "top", "/x")
    mounted(root, "N", "/new")
    root.move_mount(AT_FDCWD, "/new", AT_FDCWD, "/x", MOVE_MOUNT_BENEATH)
    assert view(root) == ["/x N", "/x top"]


def test_mounting_beneath_what_is_no_mount_is_einval(root: TargetTask) -> None:
    mounted(root, "N", "/new", "d")
    mkdirs(root, "/d")
    for path in ("/d", "/new/d", "/"):
        fails_with(errno.EINVAL, attach, root, detached(root, "/new"), path, MOVE_MOUNT_BENEATH)


def test_mounting_beneath_a_locked_mount_is_einval(root: TargetTask) -> None:
    mounted(root, "L", "/locked")
    jail = less_privileged(root, "jail")
    jail.mount("N", "/locked", "tmpfs", 0, None)
    fd = detached(jail, "/locked")
    unmount(jail, "/locked")
    fails_with(errno.EINVAL, attach, jail, fd, "/locked", MOVE_MOUNT_BENEATH)
    assert view(jail) == ["/locked L"]


def test_a_locked_mount_that_another_arrives_beneath_stays_locked(root: TargetTask) -> None:
    mounted(root, "L", "/locked")
    mounted(root, "N", "/new")
    make_shared(root, "/")
    jail = less_privileged(root, "jail")
    attach(root, detached(root, "/new"), "/locked", MOVE_MOUNT_BENEATH)
    assert [line for line in view(jail) if line.startswith("/l")] == [
        "/locked N master:2",
        "/locked L",
    ]
    fails_with(errno.EINVAL, jail.umount2, "/locked", 0)


def test_mounting_beneath_a_peer_of_the_mount_it_is_on_is_einval(root: TargetTask) -> None:
    mounted(root, "A", "/a")
    make_shared(root, "/a")
    bind(root, "/a", "/a")
    mounted(root, "N", "/new")
    before = view(root)
    fails_with(errno.EINVAL, attach, root, detached(root, "/new"), "/a", MOVE_MOUNT_BENEATH)
    assert view(root) == before


# MOVE_MOUNT_SET_GROUP


def set_group(task: TargetTask, source: str, target: str) -> None:
    task.move_mount(AT_FDCWD, source, AT_FDCWD, target, MOVE_MOUNT_SET_GROUP)


@pytest.mark.usefixtures("pair")
def test_a_private_mount_joins_the_group_and_the_master_of_another(root: TargetTask) -> None:
    for path in ("/p", "/q"):
        mkdirs(root, path)
        bind(root, "/a", path)
        make_private(root, path)
    set_group(root, "/a", "/p")
    set_group(root, "/b", "/q")
    mounted(root, "X", "/p/x")
    assert view(root) == [
        "/a A shared:1",
        "/a/x X shared:2",
        "/b A master:1",
        "/b/x X master:2",
        "/p A shared:1",
        "/p/x X shared:2",
        "/q A master:1",
        "/q/x X master:2",
    ]


@pytest.mark.usefixtures("pair")
def test_an_unbindable_mount_that_joins_a_group_is_unbindable_no_more(root: TargetTask) -> None:
    mkdirs(root, "/u", "/v")
    bind(root, "/a", "/u")
    make_unbindable(root, "/u")
    set_group(root, "/a", "/u")
    bind(root, "/u", "/v")
    assert view(root) == ["/a A shared:1", "/b A master:1", "/u A shared:1", "/v A shared:1"]


@pytest.mark.usefixtures("pair")
def test_an_unbindable_mount_that_gets_only_a_master_stays_unbindable(root: TargetTask) -> None:
    mkdirs(root, "/u", "/v")
    bind(root, "/a", "/u")
    make_unbindable(root, "/u")
    set_group(root, "/b", "/u")
    assert view(root) == ["/a A shared:1", "/b A master:1", "/u A master:1 unbindable"]
    fails_with(errno.EINVAL, bind, root, "/u", "/v")
    mounted(root, "X", "/a/x")
    assert view(root)[-2:] == ["/u A master:1 unbindable", "/u/x X master:2"]


@pytest.mark.usefixtures("pair")
def test_a_bind_of_a_subdirectory_joins_and_a_wider_one_does_not(root: TargetTask) -> None:
    mkdirs(root, "/part", "/whole")
    bind(root, "/a/x", "/part")
    make_private(root, "/part")
    set_group(root, "/a", "/part")
    bind(root, "/a", "/whole")
    make_private(root, "/whole")
    fails_with(errno.EINVAL, set_group, root, "/part", "/whole")
    assert view(root) == [
        "/a A shared:1",
        "/b A master:1",
        "/part A[/x] shared:1",
        "/whole A",
    ]


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("/a", "/b"),
        ("/a", "/a"),
        ("/private", "/other"),
        ("/a", "/elsewhere"),
        ("/a", "/a/x"),
        ("/a/x", "/private"),
    ],
    ids=["to-slave", "to-shared", "from-private", "other-filesystem", "to-dir", "from-dir"],
)
def test_joining_a_group_is_einval(root: TargetTask, source: str, place: str) -> None:
    for path in ("/private", "/other"):
        mkdirs(root, path)
        bind(root, "/a", path)
        make_private(root, path)
    mounted(root, "E", "/elsewhere")
    before = view(root)
    fails_with(errno.EINVAL, set_group, root, source, place)
    assert view(root) == before


@pytest.mark.usefixtures("pair")
def test_joining_a_group_needs_privilege_over_both_namespaces(root: TargetTask) -> None:
    mkdirs(root, "/p")
    bind(root, "/a", "/p")
    make_private(root, "/p")
    source = root.open_tree(AT_FDCWD, "/a", 0)
    jail = less_privileged(root, "jail")
    other = new_namespace(root, "other")
    flags = MOVE_MOUNT_SET_GROUP | MOVE_MOUNT_F_EMPTY_PATH
    fails_with(errno.EPERM, jail.move_mount, source, "", AT_FDCWD, "/p", flags)
    other.move_mount(source, "", AT_FDCWD, "/p", flags)
    assert "other:/p A shared:1" in view(root, other)


@pytest.mark.usefixtures("pair")
def test_a_lazily_unmounted_tree_lends_its_group_to_none(root: TargetTask) -> None:
    fd = root.open_tree(AT_FDCWD, "/a", 0)
    mkdirs(root, "/p")
    bind(root, "/a", "/p")
    make_private(root, "/p")
    unmount(root, "/a", MNT_DETACH)
    flags = MOVE_MOUNT_SET_GROUP | MOVE_MOUNT_F_EMPTY_PATH
    fails_with(errno.EINVAL, root.move_mount, fd, "", AT_FDCWD, "/p", flags)
