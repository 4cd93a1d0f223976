"""Mount namespaces, as mount_namespaces(7) has them: its examples, what a namespace's end does, and
mount points that another namespace removes.
"""

from __future__ import annotations

import errno

import pytest
from mount_support import (
    bind,
    make_private,
    make_rprivate,
    make_rshared,
    make_rslave,
    make_shared,
    make_slave,
    make_unbindable,
    mkdirs,
    mount_at,
    mounted,
    new_namespace,
    points,
    rbind,
    table,
    unmount,
    view,
)
from vfs_support import exists, fails_with, make_file

from harness.testbed.target import TargetTask
from vfs.abi import (
    AT_FDCWD,
    CLONE_FS,
    CLONE_NEWNS,
    MNT_DETACH,
    MS_BIND,
    O_RDONLY,
    RENAME_EXCHANGE,
)


@pytest.fixture
def other(root: TargetTask) -> TargetTask:
    """A task in a copy of ``root``'s namespace; ``/``, with ``/d`` and ``/f``, is private."""
    mkdirs(root, "/d")
    make_file(root, "/f")
    return new_namespace(root, "other")


# A namespace is a copy


@pytest.mark.parametrize("by", ["clone", "unshare"])
def test_a_new_namespace_has_a_copy_of_every_mount_under_new_ids(root: TargetTask, by: str) -> None:
    mounted(root, "A", "/a", "b")
    mounted(root, "B", "/a/b")
    mounted(root, "C", "/a/b")
    if by == "clone":
        other = new_namespace(root, "other")
    else:
        other = root.clone("other")
        other.unshare(CLONE_NEWNS)
    assert view(other) == view(root) == ["/a A", "/a/b B", "/a/b C"]
    ids = [{row.id for row in table(task)} for task in (root, other)]
    assert not ids[0] & ids[1]


def test_what_private_mounts_get_later_stays_in_their_namespace(
    root: TargetTask, other: TargetTask
) -> None:
    mounted(root, "X", "/x")
    mounted(other, "D", "/d")
    assert view(root, other) == ["root:/x X", "other:/d D"]


def test_tasks_that_share_a_namespace_see_each_others_mounts(root: TargetTask) -> None:
    sibling = root.clone("sibling")
    mounted(sibling, "X", "/x")
    assert view(root) == view(sibling) == ["/x X"]


def test_unsharing_leaves_the_tasks_behind_that_shared_the_namespace(root: TargetTask) -> None:
    sibling = root.clone("sibling")
    mkdirs(root, "/x")
    sibling.unshare(CLONE_NEWNS)
    mounted(sibling, "X", "/x")
    assert view(root, sibling) == ["sibling:/x X"]


def test_unsharing_mounts_ends_the_sharing_of_root_and_cwd(root: TargetTask) -> None:
    sibling = root.clone("sibling", CLONE_FS)
    mkdirs(root, "/d")
    sibling.unshare(CLONE_NEWNS)
    sibling.chdir("/d")
    assert (root.getcwd(), sibling.getcwd()) == (b"/", b"/d")


# The manual page's examples


def test_example_of_ms_shared_and_ms_private(root: TargetTask) -> None:
    mounted(root, "sdb1", "/mntS", "a")
    mounted(root, "sdb2", "/mntP", "b")
    make_shared(root, "/mntS")
    make_private(root, "/mntP")
    assert view(root) == ["/mntP sdb2", "/mntS sdb1 shared:1"]
    sh2 = new_namespace(root, "sh2")
    assert view(root, sh2) == [
        "root:/mntP sdb2",
        "root:/mntS sdb1 shared:1",
        "sh2:/mntP sdb2",
        "sh2:/mntS sdb1 shared:1",
    ]
    mounted(sh2, "sdb6", "/mntS/a")
    mounted(sh2, "sdb7", "/mntP/b")
    assert view(root, sh2) == [
        "root:/mntP sdb2",
        "root:/mntS sdb1 shared:1",
        "root:/mntS/a sdb6 shared:2",
        "sh2:/mntP sdb2",
        "sh2:/mntP/b sdb7",
        "sh2:/mntS sdb1 shared:1",
        "sh2:/mntS/a sdb6 shared:2",
    ]


def test_example_of_ms_slave(root: TargetTask) -> None:
    mounted(root, "sdb7", "/mntX", "a")
    mounted(root, "sdb6", "/mntY", "b", "c")
    make_shared(root, "/mntX")
    make_shared(root, "/mntY")
    sh2 = new_namespace(root, "sh2")
    make_slave(sh2, "/mntY")
    assert view(root, sh2) == [
        "root:/mntX sdb7 shared:1",
        "root:/mntY sdb6 shared:2",
        "sh2:/mntX sdb7 shared:1",
        "sh2:/mntY sdb6 master:2",
    ]
    mounted(sh2, "sda3", "/mntX/a")
    mounted(sh2, "sda5", "/mntY/b")
    mounted(root, "sda1", "/mntY/c")
    assert view(root, sh2) == [
        "root:/mntX sdb7 shared:1",
        "root:/mntX/a sda3 shared:2",
        "root:/mntY sdb6 shared:3",
        "root:/mntY/c sda1 shared:4",
        "sh2:/mntX sdb7 shared:1",
        "sh2:/mntX/a sda3 shared:2",
        "sh2:/mntY sdb6 master:3",
        "sh2:/mntY/b sda5",
        "sh2:/mntY/c sda1 master:4",
    ]


USERS = ("cecilia", "henry", "otto")


def homes(root: TargetTask) -> None:
    mkdirs(root, "/home", *(f"/home/{user}" for user in USERS))
    mounted(root, "sdb6", "/mntX")
    mounted(root, "sdb7", "/mntY")


def test_example_of_ms_unbindable_binding_the_root_for_every_user_explodes(
    root: TargetTask,
) -> None:
    homes(root)
    found = ["/mntX sdb6", "/mntY sdb7"]
    for user in USERS:
        rbind(root, "/", f"/home/{user}")
        copies = [f"/home/{user}{line}" for line in found]
        found = sorted([*found, f"/home/{user}", *copies])
        assert view(root) == found
    assert len(points(root)) == 23


def test_example_of_ms_unbindable_unbindable_homes_keep_the_number_linear(
    root: TargetTask,
) -> None:
    homes(root)
    mkdirs(root, "/mntZ")
    for user in USERS:
        rbind(root, "/", f"/home/{user}")
        make_unbindable(root, f"/home/{user}")
        fails_with(errno.EINVAL, root.mount, f"/home/{user}", "/mntZ", None, MS_BIND, None)
    assert view(root) == [
        *(
            line
            for user in USERS
            for line in (
                f"/home/{user} unbindable",
                f"/home/{user}/mntX sdb6",
                f"/home/{user}/mntY sdb7",
            )
        ),
        "/mntX sdb6",
        "/mntY sdb7",
    ]


def test_example_of_propagate_from(root: TargetTask) -> None:
    mkdirs(root, "/mnt", "/proc", "/etc", "/tmp", "/tmp/etc")
    mounted(root, "proc", "/proc")
    bind(root, "/", "/mnt")
    bind(root, "/proc", "/mnt/proc")
    make_private(root, "/mnt")
    make_shared(root, "/mnt")
    bind(root, "/mnt/etc", "/tmp/etc")
    make_slave(root, "/tmp/etc")
    make_shared(root, "/tmp/etc")
    bind(root, "/tmp/etc", "/mnt/tmp/etc")
    make_slave(root, "/mnt/tmp/etc")
    assert view(root) == [
        "/mnt shared:1",
        "/mnt/proc proc",
        "/mnt/tmp/etc [/etc] master:2",
        "/proc proc",
        "/tmp/etc [/etc] shared:2 master:1",
    ]
    root.chroot("/mnt")
    assert view(root) == [
        "/ shared:1",
        "/proc proc",
        "/tmp/etc [/etc] master:2 propagate_from:1",
    ]


def test_propagate_from_is_silent_where_no_dominating_group_is_in_sight(root: TargetTask) -> None:
    mounted(root, "A", "/a", "jail", "jail/m")
    make_shared(root, "/a")
    mkdirs(root, "/far", "/near", "/near/m")
    bind(root, "/a/jail", "/far")
    make_slave(root, "/far")
    bind(root, "/far", "/near/m")
    root.chroot("/near")
    root.chdir("/")
    assert view(root) == ["/m A[/jail] master:1"]


def test_note_making_everything_a_slave_keeps_new_mounts_in_and_lets_those_of_others_in(
    root: TargetTask,
) -> None:
    mkdirs(root, "/a", "/b")
    make_rshared(root, "/")
    other = new_namespace(root, "other")
    make_rslave(other, "/")
    mounted(other, "A", "/a")
    mounted(root, "B", "/b")
    assert view(root, other) == [
        "root:/ shared:1",
        "root:/b B shared:2",
        "other:/ master:1",
        "other:/a A",
        "other:/b B master:2",
    ]


def test_note_making_everything_private_isolates_both_ways(root: TargetTask) -> None:
    mkdirs(root, "/a", "/b")
    make_rshared(root, "/")
    other = new_namespace(root, "other")
    make_rprivate(other, "/")
    mounted(other, "A", "/a")
    mounted(root, "B", "/b")
    assert view(root, other) == ["root:/ shared:1", "root:/b B shared:2", "other:/a A"]


# The end of a namespace


def test_the_end_of_a_namespace_unmounts_nothing_elsewhere(root: TargetTask) -> None:
    mounted(root, "A", "/a", "x")
    make_shared(root, "/a")
    other = new_namespace(root, "other")
    mounted(other, "X", "/a/x")
    other.exit()
    assert view(root) == ["/a A shared:1", "/a/x X shared:2"]


def test_slaves_of_a_namespace_that_ended_are_private(root: TargetTask) -> None:
    mounted(root, "A", "/a")
    make_shared(root, "/a")
    other = new_namespace(root, "other")
    make_slave(root, "/a")
    assert view(root, other) == ["root:/a A master:1", "other:/a A shared:1"]
    other.exit()
    assert view(root) == ["/a A"]


def test_slaves_of_a_shared_slave_whose_namespace_ended_have_its_master(root: TargetTask) -> None:
    mounted(root, "A", "/a", "x")
    make_shared(root, "/a")
    middle = new_namespace(root, "middle")
    make_slave(middle, "/a")
    make_shared(middle, "/a")
    last = new_namespace(middle, "last")
    make_slave(last, "/a")
    assert view(root, middle, last) == [
        "root:/a A shared:1",
        "middle:/a A shared:2 master:1",
        "last:/a A master:2",
    ]
    middle.exit()
    mounted(root, "X", "/a/x")
    assert view(root, last) == [
        "root:/a A shared:1",
        "root:/a/x X shared:2",
        "last:/a A master:1",
        "last:/a/x X master:2",
    ]


def test_an_open_file_keeps_its_mount_working_after_its_namespace_has_ended(
    root: TargetTask,
) -> None:
    other = new_namespace(root, "other")
    mounted(other, "A", "/a")
    make_file(other, "/a/f", b"data")
    other.chdir("/a")
    other.unshare(CLONE_NEWNS)
    fd = other.open("/a/f", O_RDONLY, 0)
    unmount(other, "/a", MNT_DETACH)
    assert other.read(fd, 10) == b"data"
    assert exists(other, "f")
    other.close(fd)


# Mount points that are removed or renamed


def test_removing_a_directory_that_is_mounted_on_here_is_ebusy_and_elsewhere_detaches_it(
    root: TargetTask, other: TargetTask
) -> None:
    mounted(other, "D", "/d")
    fails_with(errno.EBUSY, other.rmdir, "/d")
    root.rmdir("/d")
    assert points(other) == []
    assert not exists(other, "/d")


def test_unlinking_a_file_that_is_mounted_on_here_is_ebusy_and_elsewhere_detaches_it(
    root: TargetTask, other: TargetTask
) -> None:
    make_file(root, "/g")
    bind(other, "/g", "/f")
    fails_with(errno.EBUSY, other.unlink, "/f")
    root.unlink("/f")
    assert points(other) == []
    assert not exists(other, "/f")


def test_removing_a_mount_point_detaches_everything_mounted_below_and_above_it(
    root: TargetTask, other: TargetTask
) -> None:
    mounted(other, "D", "/d", "sub")
    mounted(other, "S", "/d/sub")
    mounted(other, "T", "/d")
    root.rmdir("/d")
    assert view(other) == []


def test_removing_a_mount_point_detaches_it_in_every_namespace(
    root: TargetTask, other: TargetTask
) -> None:
    third = new_namespace(root, "third")
    mounted(other, "D", "/d")
    mounted(third, "E", "/d")
    root.rmdir("/d")
    assert view(other, third) == []


def test_removing_a_mount_point_detaches_its_mount_from_every_bind_that_shows_it(
    root: TargetTask, other: TargetTask
) -> None:
    mkdirs(other, "/b")
    make_shared(other, "/")
    bind(other, "/", "/b")
    mounted(other, "D", "/d")
    assert points(other) == ["/b", "/b/d", "/d"]
    root.rmdir("/d")
    assert points(other) == ["/b"]


def test_a_mount_detached_by_removal_takes_nothing_off_its_peers(
    root: TargetTask, other: TargetTask
) -> None:
    mounted(other, "A", "/d", "sub")
    mkdirs(other, "/peer")
    make_shared(other, "/d")
    bind(other, "/d", "/peer")
    mounted(other, "S", "/d/sub")
    root.rmdir("/d")
    assert view(other) == ["/peer A shared:1", "/peer/sub S shared:2"]


def test_who_stands_in_a_mount_detached_by_removal_stays_there(
    root: TargetTask, other: TargetTask
) -> None:
    mounted(other, "D", "/d")
    make_file(other, "/d/f", b"data")
    other.chdir("/d")
    root.rmdir("/d")
    assert exists(other, "f")
    assert other.getcwd() == b"(unreachable)/"


def test_a_busy_mount_does_not_keep_another_namespace_from_removing_its_mount_point(
    root: TargetTask, other: TargetTask
) -> None:
    mounted(other, "D", "/d")
    make_file(other, "/d/f", b"data")
    fd = other.open("/d/f", O_RDONLY, 0)
    root.rmdir("/d")
    assert other.read(fd, 10) == b"data"
    other.close(fd)


def test_renaming_onto_a_mount_point_is_ebusy_here_and_elsewhere_detaches_it(
    root: TargetTask, other: TargetTask
) -> None:
    mkdirs(root, "/e")
    mounted(other, "D", "/d")
    fails_with(errno.EBUSY, other.rename, "/e", "/d")
    root.rename("/e", "/d")
    assert points(other) == []
    assert exists(other, "/d")


def test_renaming_a_mount_point_is_ebusy_here_and_elsewhere_takes_the_mount_along(
    root: TargetTask, other: TargetTask
) -> None:
    mounted(other, "D", "/d")
    fails_with(errno.EBUSY, other.rename, "/d", "/e")
    root.rename("/d", "/e")
    assert view(other) == ["/e D"]


def test_exchanging_a_mount_point_is_ebusy_here_and_elsewhere_takes_the_mount_along(
    root: TargetTask, other: TargetTask
) -> None:
    mkdirs(root, "/e")
    mounted(other, "D", "/d")
    fails_with(errno.EBUSY, other.renameat2, AT_FDCWD, "/d", AT_FDCWD, "/e", RENAME_EXCHANGE)
    fails_with(errno.EBUSY, other.renameat2, AT_FDCWD, "/e", AT_FDCWD, "/d", RENAME_EXCHANGE)
    root.renameat2(AT_FDCWD, "/d", AT_FDCWD, "/e", RENAME_EXCHANGE)
    assert view(other) == ["/e D"]


def test_renaming_a_directory_above_a_mount_point_is_allowed_and_takes_the_mount_along(
    root: TargetTask,
) -> None:
    mkdirs(root, "/a", "/a/b")
    other = new_namespace(root, "other")
    mounted(root, "R", "/a/b")
    mounted(other, "O", "/a/b")
    root.rename("/a", "/new")
    assert view(root, other) == ["root:/new/b R", "other:/new/b O"]


def test_a_mount_point_is_busy_through_every_bind_of_this_namespace(root: TargetTask) -> None:
    mkdirs(root, "/a", "/a/d", "/b")
    bind(root, "/a", "/b")
    mounted(root, "D", "/a/d")
    fails_with(errno.EBUSY, root.rmdir, "/b/d")
    fails_with(errno.EBUSY, root.rename, "/b/d", "/b/e")
    assert points(root) == ["/a/d", "/b"]


def test_the_failed_removal_of_a_mount_point_detaches_nothing(
    root: TargetTask, other: TargetTask
) -> None:
    make_file(root, "/d/f")
    mounted(other, "D", "/d")
    fails_with(errno.ENOTEMPTY, root.rmdir, "/d")
    assert view(other) == ["/d D"]


# pivot_root


def pivot_tree(root: TargetTask) -> None:
    """``/new`` is a mount with a directory ``old``, on ``/new`` of a mount ``/outer``."""
    mounted(root, "outer", "/outer", "new")
    mounted(root, "N", "/outer/new", "old")


def test_pivot_root_is_einval_while_the_mount_below_the_new_root_is_shared(
    root: TargetTask,
) -> None:
    pivot_tree(root)
    make_shared(root, "/outer")
    before = view(root)
    fails_with(errno.EINVAL, root.pivot_root, "/outer/new", "/outer/new/old")
    assert view(root) == before
    make_private(root, "/outer")
    root.pivot_root("/outer/new", "/outer/new/old")
    assert view(root) == ["/ N", "/old", "/old/outer outer"]


def test_pivot_root_is_einval_while_the_new_root_is_shared_and_put_old_on_it(
    root: TargetTask,
) -> None:
    pivot_tree(root)
    make_shared(root, "/outer/new")
    fails_with(errno.EINVAL, root.pivot_root, "/outer/new", "/outer/new/old")
    make_slave(root, "/outer/new")
    root.pivot_root("/outer/new", "/outer/new/old")


def test_pivot_root_is_einval_while_put_old_is_on_a_shared_mount(root: TargetTask) -> None:
    pivot_tree(root)
    mounted(root, "O", "/outer/new/old", "deep")
    make_shared(root, "/outer/new/old")
    fails_with(errno.EINVAL, root.pivot_root, "/outer/new", "/outer/new/old/deep")
    make_private(root, "/outer/new/old")
    root.pivot_root("/outer/new", "/outer/new/old/deep")
    assert mount_at(root, "/old").source == b"O"


def test_pivot_root_keeps_the_peer_group_of_the_old_root(root: TargetTask) -> None:
    mkdirs(root, "/d", "/peer")
    make_shared(root, "/")
    bind(root, "/", "/peer")
    pivot_tree(root)
    make_private(root, "/outer")
    make_private(root, "/outer/new")
    root.pivot_root("/outer/new", "/outer/new/old")
    mounted(root, "D", "/old/d")
    assert view(root) == [
        "/ N",
        "/old shared:1",
        "/old/d D shared:2",
        "/old/outer outer",
        "/old/peer shared:1",
        "/old/peer/d D shared:2",
        "/old/peer/outer outer shared:3",
        "/old/peer/outer/new N shared:4",
    ]
