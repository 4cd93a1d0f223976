"""The kernel's sharedsubtree document, section 5b to 5g: what each operation does to each state."""

from __future__ import annotations

import errno

import pytest
from mount_support import (
    PRIVATE,
    SHARED,
    SHARED_AND_SLAVE,
    SLAVE,
    UNBINDABLE,
    bind,
    make,
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
    state,
    unmount,
    view,
)
from vfs_support import fails_with

from harness.testbed.target import TargetTask
from vfs.abi import MS_BIND, MS_MOVE

STATES = (SHARED, SLAVE, SHARED_AND_SLAVE, PRIVATE, UNBINDABLE)
SOURCES = (SHARED, PRIVATE, SLAVE, UNBINDABLE)


# 5b: bind


@pytest.mark.parametrize("dest", STATES)
@pytest.mark.parametrize("source", SOURCES)
def test_a_binds_state_comes_from_source_and_destination(
    root: TargetTask, source: str, dest: str
) -> None:
    mounted(root, "A", "/A", "a")
    mounted(root, "B", "/B", "b")
    make(root, source, "/A", "/Z")
    make(root, dest, "/B", "/Y")
    before = view(root)
    if source == UNBINDABLE:
        fails_with(errno.EINVAL, root.mount, "/A/a", "/B/b", None, MS_BIND, None)
        assert view(root) == before
        return
    bind(root, "/A/a", "/B/b")
    shared = dest in (SHARED, SHARED_AND_SLAVE)
    assert (
        state(root, "/B/b")
        == {
            SHARED: SHARED,
            PRIVATE: SHARED if shared else PRIVATE,
            SLAVE: SHARED_AND_SLAVE if shared else SLAVE,
        }[source]
    )
    assert mount_at(root, "/B/b").root == b"/a"


def propagation_tree(root: TargetTask) -> None:
    """``/B`` with a peer ``/P``, a slave ``/S`` and a slave ``/T`` that has a slave ``/U``."""
    mounted(root, "B", "/B", "b")
    mkdirs(root, "/P", "/S", "/T", "/U")
    make_shared(root, "/B")
    bind(root, "/B", "/P")
    for slave in ("/S", "/T"):
        bind(root, "/B", slave)
        make_slave(root, slave)
    make_shared(root, "/T")
    bind(root, "/T", "/U")
    make_slave(root, "/U")


def test_a_private_mount_bound_into_a_propagation_tree_gets_a_copy_of_that_tree(
    root: TargetTask,
) -> None:
    propagation_tree(root)
    mounted(root, "A", "/A", "a")
    bind(root, "/A/a", "/B/b")
    assert view(root) == [
        "/A A",
        "/B B shared:1",
        "/B/b A[/a] shared:2",
        "/P B shared:1",
        "/P/b A[/a] shared:2",
        "/S B master:1",
        "/S/b A[/a] master:2",
        "/T B shared:3 master:1",
        "/T/b A[/a] shared:4 master:2",
        "/U B master:3",
        "/U/b A[/a] master:4",
    ]


def test_a_shared_mount_bound_into_a_propagation_tree_brings_its_peer_group(
    root: TargetTask,
) -> None:
    propagation_tree(root)
    mounted(root, "A", "/A", "a")
    make_shared(root, "/A")
    bind(root, "/A/a", "/B/b")
    assert view(root) == [
        "/A A shared:1",
        "/B B shared:2",
        "/B/b A[/a] shared:1",
        "/P B shared:2",
        "/P/b A[/a] shared:1",
        "/S B master:2",
        "/S/b A[/a] master:1",
        "/T B shared:3 master:2",
        "/T/b A[/a] shared:4 master:1",
        "/U B master:3",
        "/U/b A[/a] master:4",
    ]


def test_a_slave_bound_into_a_propagation_tree_keeps_its_master_on_every_peer(
    root: TargetTask,
) -> None:
    propagation_tree(root)
    mounted(root, "A", "/A", "a")
    make(root, SLAVE, "/A", "/Z")
    bind(root, "/A/a", "/B/b")
    assert view(root) == [
        "/A A master:1",
        "/B B shared:2",
        "/B/b A[/a] shared:3 master:1",
        "/P B shared:2",
        "/P/b A[/a] shared:3 master:1",
        "/S B master:2",
        "/S/b A[/a] master:3",
        "/T B shared:4 master:2",
        "/T/b A[/a] shared:5 master:3",
        "/U B master:4",
        "/U/b A[/a] master:5",
        "/Z A shared:1",
    ]


def test_two_binds_of_a_slave_both_receive_and_do_not_tell_each_other(root: TargetTask) -> None:
    mounted(root, "A", "/A", "a", "b")
    make(root, SLAVE, "/A", "/Z")
    mkdirs(root, "/C")
    bind(root, "/A", "/C")
    mounted(root, "X", "/Z/a")
    mounted(root, "Y", "/C/b")
    assert view(root) == [
        "/A A master:1",
        "/A/a X master:2",
        "/C A master:1",
        "/C/a X master:2",
        "/C/b Y",
        "/Z A shared:1",
        "/Z/a X shared:2",
    ]


# 5c: rbind


def test_a_recursive_bind_leaves_out_the_tree_below_an_unbindable_mount(root: TargetTask) -> None:
    mounted(root, "A", "/A", "B", "C")
    mounted(root, "B", "/A/B", "D", "E")
    mounted(root, "C", "/A/C", "F", "G")
    for path in ("/A/B/D", "/A/B/E", "/A/C/F", "/A/C/G"):
        mounted(root, path[-1], path)
    make_unbindable(root, "/A/C")
    mkdirs(root, "/Z")
    rbind(root, "/A", "/Z")
    assert [line for line in view(root) if line.startswith("/Z")] == [
        "/Z A",
        "/Z/B B",
        "/Z/B/D D",
        "/Z/B/E E",
    ]


def test_a_recursive_bind_treats_every_mount_of_the_tree_as_a_bind_does(root: TargetTask) -> None:
    mounted(root, "A", "/A", "shared", "slave", "private")
    for name in (SHARED, SLAVE, PRIVATE):
        make(root, name, mounted(root, name, f"/A/{name}"), "/master")
    mounted(root, "B", "/B", "b")
    make_shared(root, "/B")
    rbind(root, "/A", "/B/b")
    assert view(root) == [
        "/A A",
        "/A/private private",
        "/A/shared shared shared:1",
        "/A/slave slave master:2",
        "/B B shared:3",
        "/B/b A shared:4",
        "/B/b/private private shared:5",
        "/B/b/shared shared shared:1",
        "/B/b/slave slave shared:6 master:2",
        "/master slave shared:2",
    ]


# 5d: move


@pytest.mark.parametrize("dest", STATES)
@pytest.mark.parametrize("source", SOURCES)
def test_a_moved_mounts_state_comes_from_source_and_destination(
    root: TargetTask, source: str, dest: str
) -> None:
    mounted(root, "A", "/A", "a")
    mounted(root, "B", "/B", "b")
    make(root, source, "/A", "/Z")
    make(root, dest, "/B", "/Y")
    before = view(root)
    shared = dest in (SHARED, SHARED_AND_SLAVE)
    if source == UNBINDABLE and shared:
        fails_with(errno.EINVAL, root.mount, "/A", "/B/b", None, MS_MOVE, None)
        assert view(root) == before
        return
    move(root, "/A", "/B/b")
    assert (
        state(root, "/B/b")
        == {
            SHARED: SHARED,
            PRIVATE: SHARED if shared else PRIVATE,
            SLAVE: SHARED_AND_SLAVE if shared else SLAVE,
            UNBINDABLE: UNBINDABLE,
        }[source]
    )
    assert "/A" not in points(root)


def test_moving_a_mount_that_is_on_a_shared_mount_is_einval(root: TargetTask) -> None:
    mounted(root, "S", "/S", "a")
    make_shared(root, "/S")
    mounted(root, "A", "/S/a")
    make_private(root, "/S/a")
    mkdirs(root, "/b")
    fails_with(errno.EINVAL, root.mount, "/S/a", "/b", None, MS_MOVE, None)
    assert view(root) == ["/S S shared:1", "/S/a A"]


def test_a_shared_mount_moved_into_a_propagation_tree_takes_its_peers_with_it(
    root: TargetTask,
) -> None:
    propagation_tree(root)
    mounted(root, "A", "/A")
    mkdirs(root, "/Q")
    make_shared(root, "/A")
    bind(root, "/A", "/Q")
    move(root, "/A", "/B/b")
    assert view(root) == [
        "/B B shared:1",
        "/B/b A shared:2",
        "/P B shared:1",
        "/P/b A shared:2",
        "/Q A shared:2",
        "/S B master:1",
        "/S/b A master:2",
        "/T B shared:3 master:1",
        "/T/b A shared:4 master:2",
        "/U B master:3",
        "/U/b A master:4",
    ]


def test_a_private_mount_moved_into_a_propagation_tree_gets_a_copy_of_that_tree(
    root: TargetTask,
) -> None:
    propagation_tree(root)
    mounted(root, "A", "/A")
    move(root, "/A", "/B/b")
    assert view(root) == [
        "/B B shared:1",
        "/B/b A shared:2",
        "/P B shared:1",
        "/P/b A shared:2",
        "/S B master:1",
        "/S/b A master:2",
        "/T B shared:3 master:1",
        "/T/b A shared:4 master:2",
        "/U B master:3",
        "/U/b A master:4",
    ]


def test_a_slave_moved_into_a_propagation_tree_stays_a_slave_and_becomes_shared(
    root: TargetTask,
) -> None:
    propagation_tree(root)
    mounted(root, "A", "/A")
    make(root, SLAVE, "/A", "/Z")
    move(root, "/A", "/B/b")
    assert view(root) == [
        "/B B shared:1",
        "/B/b A shared:2 master:3",
        "/P B shared:1",
        "/P/b A shared:2 master:3",
        "/S B master:1",
        "/S/b A master:2",
        "/T B shared:4 master:1",
        "/T/b A shared:5 master:2",
        "/U B master:4",
        "/U/b A master:5",
        "/Z A shared:3",
    ]


# 5e: mount


@pytest.mark.parametrize(
    ("dest", "expected"),
    [
        (SHARED, SHARED),
        (SHARED_AND_SLAVE, SHARED),
        (SLAVE, PRIVATE),
        (PRIVATE, PRIVATE),
        (UNBINDABLE, PRIVATE),
    ],
)
def test_a_new_mount_is_shared_on_a_shared_mount_and_private_on_others(
    root: TargetTask, dest: str, expected: str
) -> None:
    mounted(root, "B", "/B", "b")
    make(root, dest, "/B", "/Y")
    mounted(root, "X", "/B/b")
    assert state(root, "/B/b") == expected
    assert "/Y/b" not in points(root)


def test_a_new_mount_on_any_peer_gets_a_copy_of_the_propagation_tree(root: TargetTask) -> None:
    propagation_tree(root)
    mounted(root, "X", "/P/b")
    assert [line for line in view(root) if " X " in line] == [
        "/B/b X shared:2",
        "/P/b X shared:2",
        "/S/b X master:2",
        "/T/b X shared:4 master:2",
        "/U/b X master:4",
    ]


def test_a_new_mount_on_a_shared_slave_reaches_only_what_is_below_it(root: TargetTask) -> None:
    propagation_tree(root)
    mounted(root, "X", "/T/b")
    assert [line for line in view(root) if " X " in line] == [
        "/T/b X shared:3",
        "/U/b X master:3",
    ]


# 5f: unmount


def stacked_on_three_peers(root: TargetTask) -> None:
    """``/1``, ``/2`` and ``/3`` are peers; on ``b`` of each there is A and on that C."""
    mounted(root, "B", "/1", "b")
    mkdirs(root, "/2", "/3")
    make_shared(root, "/1")
    bind(root, "/1", "/2")
    bind(root, "/1", "/3")
    mounted(root, "A", "/1/b")
    mounted(root, "C", "/1/b", "sub")


def test_an_unmount_takes_the_topmost_mount_off_every_peer(root: TargetTask) -> None:
    stacked_on_three_peers(root)
    assert [mount_at(root, f"/{peer}/b").source for peer in (1, 2, 3)] == [b"C", b"C", b"C"]
    unmount(root, "/1/b")
    assert [mount_at(root, f"/{peer}/b").source for peer in (1, 2, 3)] == [b"A", b"A", b"A"]
    unmount(root, "/3/b")
    assert points(root) == ["/1", "/2", "/3"]


def test_a_propagated_unmount_spares_a_copy_that_has_a_mount_on_it(root: TargetTask) -> None:
    stacked_on_three_peers(root)
    make_private(root, "/2/b")
    mounted(root, "child", "/2/b/sub")
    unmount(root, "/1/b")
    assert view(root) == [
        "/1 B shared:1",
        "/1/b A shared:2",
        "/2 B shared:1",
        "/2/b A shared:2",
        "/2/b C",
        "/2/b/sub child",
        "/3 B shared:1",
        "/3/b A shared:2",
    ]


def test_an_unmount_of_what_has_a_mount_on_it_is_ebusy_and_takes_off_nothing(
    root: TargetTask,
) -> None:
    stacked_on_three_peers(root)
    make_private(root, "/1/b")
    mounted(root, "child", "/1/b/sub")
    before = view(root)
    fails_with(errno.EBUSY, root.umount2, "/1/b", 0)
    assert view(root) == before


# 5g: cloning a namespace


@pytest.mark.parametrize("kind", [SHARED, SLAVE, SHARED_AND_SLAVE, PRIVATE])
def test_a_cloned_namespaces_mounts_are_of_their_originals_states(
    root: TargetTask, kind: str
) -> None:
    mounted(root, "A", "/a")
    make(root, kind, "/a", "/master")
    other = new_namespace(root, "other")
    lines = view(root, other)
    assert [line.removeprefix("other:") for line in lines if line.startswith("other:")] == [
        line.removeprefix("root:") for line in lines if line.startswith("root:")
    ]
    assert state(other, "/a") == kind


def test_the_copy_of_an_unbindable_mount_in_a_cloned_namespace_is_private(
    root: TargetTask,
) -> None:
    # The document has it unbindable too.
    mounted(root, "A", "/a")
    make_unbindable(root, "/a")
    other = new_namespace(root, "other")
    assert view(root, other) == ["root:/a A unbindable", "other:/a A"]


def test_a_shared_mount_and_its_copy_in_a_cloned_namespace_tell_each_other(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a", "x", "y")
    make_shared(root, "/a")
    other = new_namespace(root, "other")
    mounted(root, "X", "/a/x")
    mounted(other, "Y", "/a/y")
    assert points(root) == points(other) == ["/a", "/a/x", "/a/y"]
