"""Unmounts that propagate: what goes, what stays, what slides down, and when one is EBUSY."""

from __future__ import annotations

import errno

import pytest
from mount_support import (
    bind,
    less_privileged,
    make_private,
    make_rshared,
    make_rslave,
    make_shared,
    make_slave,
    mkdirs,
    mounted,
    move,
    new_namespace,
    points,
    rbind,
    unmount,
    view,
)
from vfs_support import exists, fails_with, make_file

from harness.testbed.target import TargetTask
from vfs.abi import MNT_DETACH, MNT_EXPIRE, O_DIRECTORY, O_RDONLY


@pytest.fixture
def slave(root: TargetTask) -> None:
    """``/b`` is a slave of ``/a``; on x of both there is X with directories s and t."""
    mounted(root, "A", "/a", "x")
    mkdirs(root, "/b")
    make_shared(root, "/a")
    bind(root, "/a", "/b")
    make_slave(root, "/b")
    mounted(root, "X", "/a/x", "s", "t")


def on_slave(root: TargetTask) -> list[str]:
    return [line for line in view(root) if line.startswith("/b/")]


WHOLE = pytest.mark.parametrize("flags", [0, MNT_DETACH], ids=["plain", "lazy"])


# What goes and what stays


@pytest.mark.usefixtures("slave")
@WHOLE
def test_a_copy_without_mounts_on_it_goes(root: TargetTask, flags: int) -> None:
    unmount(root, "/a/x", flags)
    assert view(root) == ["/a A shared:1", "/b A master:1"]


@pytest.mark.usefixtures("slave")
@WHOLE
def test_a_copy_with_a_mount_in_it_stays_and_is_private(root: TargetTask, flags: int) -> None:
    mounted(root, "own", "/b/x/s")
    unmount(root, "/a/x", flags)
    assert view(root) == ["/a A shared:1", "/b A master:1", "/b/x X", "/b/x/s own"]


@pytest.mark.usefixtures("slave")
def test_a_tree_goes_with_the_copies_of_all_its_parts(root: TargetTask) -> None:
    mounted(root, "S", "/a/x/s", "deep")
    mounted(root, "deep", "/a/x/s/deep")
    mounted(root, "T", "/a/x/t")
    unmount(root, "/a/x", MNT_DETACH)
    assert view(root) == ["/a A shared:1", "/b A master:1"]


@pytest.mark.usefixtures("slave")
def test_a_mount_deep_in_a_copied_tree_keeps_all_that_is_above_it(root: TargetTask) -> None:
    mounted(root, "S", "/a/x/s", "deep")
    mounted(root, "T", "/a/x/t")
    mounted(root, "own", "/b/x/s/deep")
    unmount(root, "/a/x", MNT_DETACH)
    assert on_slave(root) == ["/b/x X", "/b/x/s S", "/b/x/s/deep own"]


@pytest.mark.usefixtures("slave")
def test_a_mount_on_the_root_of_a_copy_slides_down_to_where_that_was(root: TargetTask) -> None:
    mounted(root, "own", "/b/x", "sub")
    mounted(root, "below", "/b/x/sub")
    unmount(root, "/a/x")
    assert on_slave(root) == ["/b/x own", "/b/x/sub below"]
    unmount(root, "/b/x", MNT_DETACH)
    assert on_slave(root) == []


@pytest.mark.usefixtures("slave")
def test_a_stack_on_the_root_of_a_copy_slides_down_whole(root: TargetTask) -> None:
    for name in ("one", "two", "three"):
        mounted(root, name, "/b/x")
    unmount(root, "/a/x")
    assert on_slave(root) == ["/b/x one", "/b/x two", "/b/x three"]


@pytest.mark.usefixtures("slave")
def test_a_mount_on_the_root_of_an_inner_copy_slides_down_and_keeps_the_outer_one(
    root: TargetTask,
) -> None:
    mounted(root, "S", "/a/x/s")
    mounted(root, "own", "/b/x/s")
    unmount(root, "/a/x", MNT_DETACH)
    assert on_slave(root) == ["/b/x X", "/b/x/s own"]


@pytest.mark.usefixtures("slave")
def test_a_mount_on_top_of_copies_stacked_on_each_other_slides_past_them_all(
    root: TargetTask,
) -> None:
    mounted(root, "X2", "/a/x")
    mounted(root, "X3", "/a/x")
    mounted(root, "own", "/b/x")
    unmount(root, "/a/x")
    assert on_slave(root) == ["/b/x X master:2", "/b/x X2 master:3", "/b/x own"]
    unmount(root, "/a/x")
    unmount(root, "/a/x")
    assert on_slave(root) == ["/b/x own"]


def test_a_lazy_unmount_of_a_covered_stack_lets_the_uppermost_slide_all_the_way(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a", "x")
    mkdirs(root, "/b")
    make_shared(root, "/a")
    bind(root, "/a", "/b")
    make_slave(root, "/b")
    mounted(root, "X", "/a/x")
    mounted(root, "X2", "/a/x")
    mounted(root, "own", "/b/x")
    unmount(root, "/a", MNT_DETACH)
    assert view(root) == ["/b A", "/b/x own"]


@pytest.mark.usefixtures("slave")
def test_whatever_is_at_the_place_on_a_receiver_goes(root: TargetTask) -> None:
    unmount(root, "/b/x")
    mounted(root, "own", "/b/x")
    unmount(root, "/a/x")
    assert view(root) == ["/a A shared:1", "/b A master:1"]


@pytest.mark.usefixtures("slave")
def test_a_copy_that_was_moved_away_stays(root: TargetTask) -> None:
    mkdirs(root, "/free")
    move(root, "/b/x", "/free")
    unmount(root, "/a/x")
    assert view(root) == ["/a A shared:1", "/b A master:1", "/free X"]


@pytest.mark.usefixtures("slave")
def test_an_unmount_on_a_slave_does_not_reach_its_master(root: TargetTask) -> None:
    unmount(root, "/b/x")
    assert view(root) == ["/a A shared:1", "/a/x X shared:2", "/b A master:1"]


@pytest.mark.usefixtures("slave")
def test_an_unmount_from_a_private_mount_reaches_nothing(root: TargetTask) -> None:
    make_private(root, "/a")
    unmount(root, "/a/x")
    assert view(root) == ["/a A", "/b A", "/b/x X"]


def test_an_unmount_passes_a_peer_that_does_not_show_the_place(root: TargetTask) -> None:
    mounted(root, "A", "/a", "x", "y")
    make_shared(root, "/a")
    mkdirs(root, "/part", "/end")
    bind(root, "/a/y", "/part")
    make_slave(root, "/part")
    make_shared(root, "/part")
    bind(root, "/a", "/end")
    mounted(root, "X", "/a/x")
    assert points(root) == ["/a", "/a/x", "/end", "/end/x", "/part"]
    unmount(root, "/a/x")
    assert points(root) == ["/a", "/end", "/part"]


def test_an_unmount_reaches_the_end_of_a_chain_past_a_link_that_has_lost_its_copy(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a", "x")
    mkdirs(root, "/b", "/c", "/free")
    make_shared(root, "/a")
    for master, slave in (("/a", "/b"), ("/b", "/c")):
        bind(root, master, slave)
        make_slave(root, slave)
        make_shared(root, slave)
    mounted(root, "X", "/a/x")
    make_slave(root, "/b")
    move(root, "/b/x", "/free")
    assert view(root) == [
        "/a A shared:1",
        "/a/x X shared:2",
        "/b A master:1",
        "/c A shared:3 master:1",
        "/c/x X shared:4 master:5",
        "/free X shared:5 master:2",
    ]
    unmount(root, "/a/x")
    assert points(root) == ["/a", "/b", "/c", "/free"]


def test_an_unmount_reaches_every_namespace_and_spares_who_has_a_mount_in_it(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a", "x")
    make_shared(root, "/a")
    mounted(root, "X", "/a/x", "s")
    make_private(root, "/a/x")
    one, two = new_namespace(root, "one"), new_namespace(root, "two")
    mounted(two, "own", "/a/x/s")
    unmount(one, "/a/x")
    assert view(root, one, two) == [
        "root:/a A shared:1",
        "one:/a A shared:1",
        "two:/a A shared:1",
        "two:/a/x X",
        "two:/a/x/s own",
    ]


# Lazy unmounts of trees that are shown elsewhere


def test_a_lazy_unmount_of_a_recursive_bind_takes_off_what_is_on_the_originals(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a", "x")
    mounted(root, "X", "/a/x", "s")
    mounted(root, "S", "/a/x/s")
    make_rshared(root, "/a")
    mkdirs(root, "/copy")
    rbind(root, "/a", "/copy")
    unmount(root, "/copy", MNT_DETACH)
    assert view(root) == ["/a A shared:1"]


def test_a_lazy_unmount_of_a_recursive_bind_made_slave_spares_the_originals(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a", "x")
    mounted(root, "X", "/a/x")
    make_rshared(root, "/a")
    mkdirs(root, "/copy")
    rbind(root, "/a", "/copy")
    make_rslave(root, "/copy")
    unmount(root, "/copy", MNT_DETACH)
    assert view(root) == ["/a A shared:1", "/a/x X shared:2"]


def test_a_lazy_unmount_of_mounts_bound_into_themselves_leaves_nothing(root: TargetTask) -> None:
    mounted(root, "A", "/a", "x", "y")
    make_shared(root, "/a")
    for name in ("x", "y"):
        rbind(root, "/a", f"/a/{name}")
    assert len(points(root)) == 6
    unmount(root, "/a", MNT_DETACH)
    assert points(root) == []


def test_a_lazy_unmount_in_mounts_bound_into_themselves_takes_its_own_siblings_along(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a", "x", "y")
    make_shared(root, "/a")
    for name in ("x", "y"):
        bind(root, "/a", f"/a/{name}")
    assert points(root) == ["/a", "/a/x", "/a/x/y", "/a/y"]
    # The copy of /a/y goes with /a/x, and from each of their peers with it.
    unmount(root, "/a/x", MNT_DETACH)
    assert points(root) == ["/a"]


def test_a_mount_over_a_peer_inside_its_own_peer_covers_both_and_goes_from_both(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a", "x")
    make_shared(root, "/a")
    bind(root, "/a", "/a/x")
    before = view(root)
    assert before == ["/a A shared:1", "/a/x A shared:1"]
    mounted(root, "T", "/a/x")
    assert view(root) == [
        "/a A shared:1",
        "/a T shared:2",
        "/a/x A shared:1 (on A)",
        "/a/x T shared:2",
    ]
    unmount(root, "/a")
    assert view(root) == before


@pytest.mark.usefixtures("slave")
def test_who_stands_in_a_copy_stays_there_after_a_lazy_unmount(root: TargetTask) -> None:
    make_file(root, "/a/x/f", b"data")
    fd = root.open("/b/x/f", O_RDONLY, 0)
    root.chdir("/b/x/s")
    unmount(root, "/a/x", MNT_DETACH)
    assert on_slave(root) == []
    assert root.getcwd() == b"(unreachable)/s"
    assert root.read(fd, 10) == b"data"
    assert exists(root, "../f")
    root.close(fd)


def test_a_lazy_unmount_takes_the_tree_apart(root: TargetTask) -> None:
    mounted(root, "A", "/a", "x")
    make_file(root, "/a/x/below")
    mounted(root, "X", "/a/x")
    root.chdir("/a")
    unmount(root, "/a", MNT_DETACH)
    assert exists(root, "x/below")


def test_a_tree_unmounted_by_the_removal_of_its_mount_point_stays_together(
    root: TargetTask,
) -> None:
    mkdirs(root, "/a")
    other = new_namespace(root, "other")
    mounted(other, "A", "/a", "x")
    make_file(other, "/a/x/below")
    mounted(other, "X", "/a/x")
    other.chdir("/a")
    other.open(".", O_RDONLY | O_DIRECTORY, 0)
    root.rmdir("/a")
    assert view(other) == []
    assert not exists(other, "x/below")
    other.chdir("x")
    assert other.getcwd() == b"(unreachable)/x"


def test_a_lazily_unmounted_tree_keeps_covered_what_a_locked_mount_covers(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a", "x")
    make_file(root, "/a/x/below")
    mounted(root, "X", "/a/x")
    mkdirs(root, "/copy")
    jail = less_privileged(root, "jail")
    rbind(jail, "/a", "/copy")
    jail.chdir("/copy")
    jail.open(".", O_RDONLY | O_DIRECTORY, 0)
    unmount(jail, "/copy", MNT_DETACH)
    assert points(jail) == ["/a", "/a/x"]
    assert not exists(jail, "x/below")
    jail.chdir("x")
    assert jail.getcwd() == b"(unreachable)/x"


def test_an_overmount_of_a_tree_that_arrived_locked_slides_down_with_it(root: TargetTask) -> None:
    mkdirs(root, "/d")
    mounted(root, "T", "/t")
    root.chdir("/t")
    mounted(root, "U", "/t")
    make_shared(root, "/")
    jail = less_privileged(root, "jail")
    rbind(root, ".", "/d")
    fails_with(errno.EINVAL, jail.umount2, "/d", 0)
    mounted(jail, "own", "/d")
    assert [line for line in view(jail) if line.startswith("/d")] == [
        "/d T master:2",
        "/d U master:3",
        "/d own",
    ]
    unmount(root, "/d")
    unmount(root, "/d")
    assert [line for line in view(jail) if line.startswith("/d")] == ["/d own"]
    unmount(jail, "/d")


# EBUSY


@pytest.fixture
def other(root: TargetTask) -> TargetTask:
    """Another namespace; X on ``/a/x`` is there too, a copy with a directory s."""
    mounted(root, "A", "/a", "x")
    make_shared(root, "/a")
    mounted(root, "X", "/a/x", "s")
    make_file(root, "/a/x/f")
    return new_namespace(root, "other")


def test_an_unmount_is_ebusy_while_a_copy_elsewhere_is_in_use_and_changes_nothing(
    root: TargetTask, other: TargetTask
) -> None:
    before = view(root, other)
    other.chdir("/a/x")
    fails_with(errno.EBUSY, root.umount2, "/a/x", 0)
    fails_with(errno.EAGAIN, root.umount2, "/a/x", MNT_EXPIRE)
    fails_with(errno.EBUSY, root.umount2, "/a/x", MNT_EXPIRE)
    assert view(root, other) == before
    other.chdir("/")
    fd = other.open("/a/x/f", O_RDONLY, 0)
    fails_with(errno.EBUSY, root.umount2, "/a/x", 0)
    assert view(root, other) == before
    other.close(fd)
    unmount(root, "/a/x")
    assert view(root, other) == ["root:/a A shared:1", "other:/a A shared:1"]


def test_a_lazy_unmount_does_not_mind_a_copy_in_use(root: TargetTask, other: TargetTask) -> None:
    other.chdir("/a/x/s")
    unmount(root, "/a/x", MNT_DETACH)
    assert points(other) == ["/a"]
    assert other.getcwd() == b"(unreachable)/s"


def test_an_unmount_does_not_mind_a_copy_in_use_that_has_a_mount_in_it(
    root: TargetTask, other: TargetTask
) -> None:
    make_private(other, "/a/x")
    mounted(other, "own", "/a/x/s")
    other.chdir("/a/x")
    unmount(root, "/a/x")
    assert view(root, other) == [
        "root:/a A shared:1",
        "other:/a A shared:1",
        "other:/a/x X",
        "other:/a/x/s own",
    ]
    assert other.getcwd() == b"/a/x"


def test_an_unmount_minds_a_copy_in_use_that_is_covered_itself(
    root: TargetTask, other: TargetTask
) -> None:
    make_private(other, "/a/x")
    fd = other.open("/a/x/f", O_RDONLY, 0)
    mounted(other, "own", "/a/x")
    fails_with(errno.EBUSY, root.umount2, "/a/x", 0)
    other.close(fd)
    unmount(root, "/a/x")
    assert view(root, other) == [
        "root:/a A shared:1",
        "other:/a A shared:1",
        "other:/a/x own",
    ]


def test_an_unmount_does_not_mind_the_use_of_what_covers_a_copy(
    root: TargetTask, other: TargetTask
) -> None:
    make_private(other, "/a/x")
    mounted(other, "own", "/a/x")
    other.chdir("/a/x")
    unmount(root, "/a/x")
    assert other.getcwd() == b"/a/x"
    assert points(other) == ["/a", "/a/x"]


def test_an_unmount_minds_the_use_of_whatever_is_at_the_place_elsewhere(
    root: TargetTask, other: TargetTask
) -> None:
    make_slave(other, "/a")
    unmount(other, "/a/x")
    mounted(other, "own", "/a/x")
    other.chdir("/a/x")
    fails_with(errno.EBUSY, root.umount2, "/a/x", 0)
    assert points(root) == ["/a", "/a/x"]


def test_an_unmount_is_ebusy_in_the_namespace_of_the_user_only_if_it_propagates_there(
    root: TargetTask, other: TargetTask
) -> None:
    make_private(other, "/a")
    other.chdir("/a/x")
    unmount(root, "/a/x")
    assert points(other) == ["/a", "/a/x"]


def test_an_unmount_by_a_slave_does_not_mind_its_masters_use(
    root: TargetTask, other: TargetTask
) -> None:
    make_slave(other, "/a")
    root.chdir("/a/x")
    unmount(other, "/a/x")
    assert points(other) == ["/a"]
    assert root.getcwd() == b"/a/x"


def test_mnt_expire_is_marked_once_and_propagates_the_second_time(
    root: TargetTask, other: TargetTask
) -> None:
    fails_with(errno.EAGAIN, root.umount2, "/a/x", MNT_EXPIRE)
    assert points(other) == ["/a", "/a/x"]
    unmount(root, "/a/x", MNT_EXPIRE)
    assert points(root) == points(other) == ["/a"]
