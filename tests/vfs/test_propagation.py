"""Where a mount propagates to: peers, slaves, what is covered, beneath what is there, nowhere."""

from __future__ import annotations

import errno

import pytest
from mount_support import (
    bind,
    make_private,
    make_shared,
    make_slave,
    make_unbindable,
    mkdirs,
    mount_at,
    mounted,
    move,
    new_namespace,
    points,
    rbind,
    table,
    unmount,
    view,
)
from vfs_support import exists, fails_with, make_file

from harness.testbed.target import Target, TargetTask
from vfs.abi import (
    MNT_DETACH,
    MS_BIND,
    MS_MOVE,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
)


@pytest.fixture
def pair(root: TargetTask) -> None:
    """``/a`` and ``/b`` are peers that show directories x, y and x/deep."""
    mounted(root, "A", "/a", "x", "y", "x/deep")
    make_shared(root, "/a")
    mkdirs(root, "/b")
    bind(root, "/a", "/b")


# Where an event goes


@pytest.mark.usefixtures("pair")
def test_a_mount_appears_on_a_bind_of_a_subdirectory_if_that_shows_the_place(
    root: TargetTask,
) -> None:
    mkdirs(root, "/sub")
    bind(root, "/a/x", "/sub")
    mounted(root, "Y", "/a/y")
    mounted(root, "D", "/a/x/deep")
    assert points(root) == [
        "/a",
        "/a/x/deep",
        "/a/y",
        "/b",
        "/b/x/deep",
        "/b/y",
        "/sub",
        "/sub/deep",
    ]


@pytest.mark.usefixtures("pair")
def test_a_mount_on_the_root_of_a_bind_of_a_subdirectory_appears_where_others_show_it(
    root: TargetTask,
) -> None:
    mkdirs(root, "/sub")
    bind(root, "/a/x", "/sub")
    mounted(root, "S", "/sub")
    assert view(root) == [
        "/a A shared:1",
        "/a/x S shared:2",
        "/b A shared:1",
        "/b/x S shared:2",
        "/sub A[/x] shared:1",
        "/sub S shared:2",
    ]


@pytest.mark.usefixtures("pair")
def test_a_mount_on_the_root_of_a_mount_appears_on_the_roots_of_its_peers(
    root: TargetTask,
) -> None:
    mounted(root, "T", "/a")
    assert view(root) == [
        "/a A shared:1",
        "/a T shared:2",
        "/b A shared:1",
        "/b T shared:2",
    ]
    unmount(root, "/b")
    assert points(root) == ["/a", "/b"]


def test_a_mount_on_the_root_of_a_bind_does_not_appear_where_it_would_be_above_the_root(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a", "x")
    make_shared(root, "/a")
    mkdirs(root, "/sub")
    bind(root, "/a/x", "/sub")
    mounted(root, "T", "/a")
    assert view(root) == ["/a A shared:1", "/a T shared:2", "/sub A[/x] shared:1"]


@pytest.mark.usefixtures("pair")
def test_the_propagation_of_an_event_is_up_to_the_parent_mount_alone(root: TargetTask) -> None:
    mounted(root, "X", "/a/x", "below")
    make_private(root, "/a/x")
    mounted(root, "Z", "/a/x/below")
    assert view(root) == [
        "/a A shared:1",
        "/a/x X",
        "/a/x/below Z",
        "/b A shared:1",
        "/b/x X shared:2",
    ]
    unmount(root, "/a/x/below")
    unmount(root, "/a/x")
    assert points(root) == ["/a", "/b"]


@pytest.mark.usefixtures("pair")
def test_a_mount_appears_on_a_peer_that_is_covered(root: TargetTask) -> None:
    make_private(root, "/")
    mounted(root, "outer", "/outer", "b")
    move(root, "/b", "/outer/b")
    mounted(root, "cover", "/outer")
    mounted(root, "X", "/a/x")
    assert view(root) == [
        "/a A shared:1",
        "/a/x X shared:2",
        "/outer outer",
        "/outer cover",
        "/outer/b A shared:1 (on outer)",
        "/outer/b/x X shared:2",
    ]
    assert not exists(root, "/outer/b")
    unmount(root, "/outer")
    assert mount_at(root, "/outer/b/x").source == b"X"
    assert exists(root, "/outer/b/x")


@pytest.mark.usefixtures("pair")
def test_a_mount_appears_below_a_directory_that_a_peers_mount_covers(root: TargetTask) -> None:
    make_slave(root, "/b")
    mounted(root, "cover", "/b/x")
    mounted(root, "D", "/a/x/deep")
    assert view(root) == [
        "/a A shared:1",
        "/a/x/deep D shared:2",
        "/b A master:1",
        "/b/x cover",
        "/b/x/deep D master:2 (on A)",
    ]
    unmount(root, "/b/x")
    assert view(root)[-1] == "/b/x/deep D master:2"


@pytest.mark.usefixtures("pair")
def test_an_unmounted_peer_that_is_still_in_use_gets_nothing_any_more(root: TargetTask) -> None:
    root.chdir("/b")
    unmount(root, "/b", MNT_DETACH)
    mounted(root, "X", "/a/x", "new")
    assert view(root) == ["/a A shared:1", "/a/x X shared:2"]
    assert not exists(root, "x/new")
    fails_with(errno.ENOENT, root.mount, "Y", "y", "tmpfs", 0, None)


@pytest.mark.usefixtures("pair")
def test_every_peer_shows_the_same_filesystem(root: TargetTask) -> None:
    mounted(root, "X", "/a/x")
    make_file(root, "/b/x/f", b"one")
    assert exists(root, "/a/x/f")
    assert root.stat("/a/x").st_dev == root.stat("/b/x").st_dev


@pytest.mark.usefixtures("pair")
def test_copies_have_the_flags_of_the_original_and_later_changes_stay_with_one(
    root: TargetTask,
) -> None:
    mounted(root, "X", "/a/x", flags=MS_NOSUID | MS_NODEV)
    assert {mount_at(root, f"/{peer}/x").options for peer in "ab"} == {b"rw,nosuid,nodev,relatime"}
    root.mount(None, "/a/x", None, MS_REMOUNT | MS_BIND | MS_RDONLY, None)
    assert mount_at(root, "/a/x").options == b"ro,relatime"
    assert mount_at(root, "/b/x").options == b"rw,nosuid,nodev,relatime"
    root.mkdir("/b/x/new", 0o755)


@pytest.mark.usefixtures("pair")
def test_a_recursive_bind_propagates_its_whole_tree(root: TargetTask) -> None:
    mounted(root, "T", "/t", "1", "2")
    mounted(root, "T1", "/t/1")
    mounted(root, "T2", "/t/2")
    rbind(root, "/t", "/a/x")
    assert [line for line in view(root) if line.startswith("/b")] == [
        "/b A shared:1",
        "/b/x T shared:2",
        "/b/x/1 T1 shared:3",
        "/b/x/2 T2 shared:4",
    ]
    unmount(root, "/b/x", MNT_DETACH)
    assert points(root) == ["/a", "/b", "/t", "/t/1", "/t/2"]


def test_a_bind_of_a_shared_mount_into_itself_appears_once_on_each(root: TargetTask) -> None:
    mounted(root, "A", "/a", "x", "y")
    make_shared(root, "/a")
    bind(root, "/a", "/a/x")
    assert view(root) == ["/a A shared:1", "/a/x A shared:1"]
    bind(root, "/a", "/a/y")
    assert view(root) == [
        "/a A shared:1",
        "/a/x A shared:1",
        "/a/x/y A shared:1",
        "/a/y A shared:1",
    ]


def test_a_mount_in_a_mount_bound_into_itself_appears_at_every_depth(root: TargetTask) -> None:
    mounted(root, "A", "/a", "x", "y")
    make_shared(root, "/a")
    bind(root, "/a", "/a/x")
    mounted(root, "Y", "/a/x/y")
    assert points(root) == ["/a", "/a/x", "/a/x/y", "/a/y"]
    unmount(root, "/a/y")
    assert points(root) == ["/a", "/a/x"]


# Under an existing mount


@pytest.fixture
def covered_slave(root: TargetTask) -> None:
    """``/b`` is a slave of ``/a`` and has a private mount Y of its own on x."""
    mounted(root, "A", "/a", "x")
    mkdirs(root, "/b")
    make_shared(root, "/a")
    bind(root, "/a", "/b")
    make_slave(root, "/b")
    mounted(root, "Y", "/b/x", "under")


@pytest.mark.usefixtures("covered_slave")
def test_a_mount_arrives_beneath_one_that_is_there_and_leaves_from_beneath_it(
    root: TargetTask,
) -> None:
    before = view(root)
    mounted(root, "X", "/a/x")
    assert view(root) == [
        "/a A shared:1",
        "/a/x X shared:2",
        "/b A master:1",
        "/b/x X master:2",
        "/b/x Y",
    ]
    assert exists(root, "/b/x/under")
    unmount(root, "/a/x")
    assert view(root) == before
    assert exists(root, "/b/x/under")


@pytest.mark.usefixtures("covered_slave")
def test_a_mount_that_arrived_beneath_appears_when_the_upper_one_goes(root: TargetTask) -> None:
    mounted(root, "X", "/a/x", "fresh")
    unmount(root, "/b/x")
    assert exists(root, "/b/x/fresh")
    assert view(root)[-1] == "/b/x X master:2"


@pytest.mark.usefixtures("covered_slave")
def test_a_mount_arrives_beneath_a_whole_stack(root: TargetTask) -> None:
    mounted(root, "Y2", "/b/x")
    mounted(root, "X", "/a/x")
    assert [line for line in view(root) if line.startswith("/b/x")] == [
        "/b/x X master:2",
        "/b/x Y",
        "/b/x Y2",
    ]
    mounted(root, "X2", "/a/x")
    assert [line for line in view(root) if line.startswith("/b/x")] == [
        "/b/x X master:2",
        "/b/x X2 master:3",
        "/b/x Y",
        "/b/x Y2",
    ]
    unmount(root, "/a/x")
    unmount(root, "/a/x")
    assert [line for line in view(root) if line.startswith("/b/x")] == ["/b/x Y", "/b/x Y2"]


@pytest.mark.usefixtures("covered_slave")
def test_a_tree_with_a_stack_at_its_root_arrives_whole_beneath_one_that_is_there(
    root: TargetTask,
) -> None:
    mounted(root, "T", "/t", "sub")
    mounted(root, "S", "/t/sub")
    root.chdir("/t")
    mounted(root, "U", "/t")
    rbind(root, ".", "/a/x")
    assert [line for line in view(root) if line.startswith(("/a/x", "/b/x"))] == [
        "/a/x T shared:2",
        "/a/x U shared:3",
        "/a/x/sub S shared:4 (on T)",
        "/b/x T master:2",
        "/b/x U master:3",
        "/b/x Y",
        "/b/x/sub S master:4 (on T)",
    ]
    unmount(root, "/b/x")
    unmount(root, "/a/x", MNT_DETACH)
    unmount(root, "/a/x", MNT_DETACH)
    assert view(root) == ["/a A shared:1", "/b A master:1", "/t T", "/t U", "/t/sub S (on T)"]


@pytest.mark.usefixtures("covered_slave")
def test_a_busy_upper_mount_does_not_mind_what_arrives_beneath(root: TargetTask) -> None:
    root.chdir("/b/x/under")
    mounted(root, "X", "/a/x")
    assert root.getcwd() == b"/b/x/under"
    unmount(root, "/a/x")
    assert root.getcwd() == b"/b/x/under"


@pytest.mark.usefixtures("covered_slave")
def test_a_move_arrives_beneath_an_existing_mount_too(root: TargetTask) -> None:
    mounted(root, "X", "/elsewhere")
    move(root, "/elsewhere", "/a/x")
    assert [line for line in view(root) if line.startswith("/b/x")] == ["/b/x X master:2", "/b/x Y"]


def test_a_mount_goes_on_top_where_it_is_asked_for_and_on_top_of_the_peers_copies(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a", "x")
    make_shared(root, "/a")
    mkdirs(root, "/b")
    bind(root, "/a", "/b")
    mounted(root, "one", "/a/x")
    make_private(root, "/b/x")
    mounted(root, "own", "/b/x")
    mounted(root, "two", "/a/x")
    assert view(root) == [
        "/a A shared:1",
        "/a/x one shared:2",
        "/a/x two shared:3",
        "/b A shared:1",
        "/b/x one",
        "/b/x own",
    ]


# Moving


@pytest.mark.usefixtures("pair")
def test_a_move_onto_a_peer_takes_along_the_whole_tree_on_every_side(root: TargetTask) -> None:
    mounted(root, "T", "/t", "1")
    mounted(root, "T1", "/t/1")
    move(root, "/t", "/b/x")
    assert view(root) == [
        "/a A shared:1",
        "/a/x T shared:2",
        "/a/x/1 T1 shared:3",
        "/b A shared:1",
        "/b/x T shared:2",
        "/b/x/1 T1 shared:3",
    ]


@pytest.mark.usefixtures("pair")
def test_moving_a_tree_with_an_unbindable_mount_anywhere_in_it_onto_a_shared_one_is_einval(
    root: TargetTask,
) -> None:
    mounted(root, "T", "/t", "1")
    mounted(root, "T1", "/t/1")
    make_unbindable(root, "/t/1")
    before = view(root)
    fails_with(errno.EINVAL, root.mount, "/t", "/a/x", None, MS_MOVE, None)
    assert view(root) == before
    mkdirs(root, "/private")
    move(root, "/t", "/private")
    assert view(root)[-2:] == ["/private T", "/private/1 T1 unbindable"]


@pytest.mark.usefixtures("pair")
def test_a_recursive_bind_onto_a_shared_mount_leaves_unbindable_mounts_out_everywhere(
    root: TargetTask,
) -> None:
    mounted(root, "T", "/t", "1", "2")
    mounted(root, "T1", "/t/1", "deep")
    mounted(root, "deep", "/t/1/deep")
    mounted(root, "T2", "/t/2")
    make_unbindable(root, "/t/1")
    rbind(root, "/t", "/a/x")
    assert points(root) == [
        "/a", "/a/x", "/a/x/2", "/b", "/b/x", "/b/x/2", "/t", "/t/1", "/t/1/deep", "/t/2",
    ]  # fmt: skip


@pytest.mark.usefixtures("pair")
def test_moving_a_mount_onto_a_peer_of_its_own_tree_is_allowed_unless_it_is_inside_itself(
    root: TargetTask,
) -> None:
    fails_with(errno.ELOOP, root.mount, "/b", "/b/x", None, MS_MOVE, None)
    move(root, "/b", "/a/x")
    assert view(root) == ["/a A shared:1", "/a/x A shared:1", "/a/x/x A shared:1"]


def test_a_slave_moved_onto_its_own_master_receives_its_own_arrival_as_a_slave(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a", "x")
    make_shared(root, "/a")
    mkdirs(root, "/b")
    bind(root, "/a", "/b")
    make_slave(root, "/b")
    move(root, "/b", "/a/x")
    assert view(root) == ["/a A shared:1", "/a/x A shared:2 master:1", "/a/x/x A master:2"]


def test_a_mount_can_be_moved_off_a_slave(root: TargetTask) -> None:
    mounted(root, "A", "/a", "x", "y")
    mkdirs(root, "/b", "/free")
    make_shared(root, "/a")
    bind(root, "/a", "/b")
    make_slave(root, "/b")
    mounted(root, "X", "/a/x")
    fails_with(errno.EINVAL, root.mount, "/a/x", "/free", None, MS_MOVE, None)
    move(root, "/b/x", "/free")
    assert view(root) == ["/a A shared:1", "/a/x X shared:2", "/b A master:1", "/free X master:2"]
    unmount(root, "/a/x")
    assert view(root) == ["/a A shared:1", "/b A master:1", "/free X"]


# All or nothing


@pytest.mark.usefixtures("pair")
def test_a_mount_that_fails_leaves_nothing_on_any_side(root: TargetTask) -> None:
    make_file(root, "/file")
    before = view(root)
    fails_with(errno.ENOTDIR, root.mount, "/file", "/a/x", None, MS_BIND, None)
    fails_with(errno.ENODEV, root.mount, "none", "/a/x", "no-such-type", 0, None)
    fails_with(errno.EINVAL, root.mount, "none", "/a/x", "tmpfs", 0, "no-such-option")
    assert view(root) == before


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize("operation", ["mount", "bind", "rbind", "move"])
def test_a_namespace_without_room_for_its_copy_fails_the_mount_everywhere_with_enospc(
    target: Target, root: TargetTask, operation: str
) -> None:
    if target.name == "linux":
        pytest.skip("fs.mount-max is the whole host's")
    mounted(root, "T", "/t", "1")
    mounted(root, "T1", "/t/1")
    other = new_namespace(root, "other")
    for number in range(5):
        mounted(other, "filling", f"/{number}")
    # The other namespace is full, this one is not.
    target.set_sysctl("mount_max", len(table(other)) + 2)
    before = view(root, other)
    call = {
        "mount": (root.mount, "X", "/a/x", "tmpfs", 0, None),
        "bind": (root.mount, "/t", "/a/x", None, MS_BIND, None),
        "rbind": (root.mount, "/t", "/a/x", None, MS_BIND | MS_REC, None),
        "move": (root.mount, "/t", "/a/x", None, MS_MOVE, None),
    }[operation]
    fails_with(errno.ENOSPC, *call)
    assert view(root, other) == before
    other.exit()
    call[0](*call[1:])
