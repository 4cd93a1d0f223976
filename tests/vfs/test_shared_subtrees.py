"""The kernel's sharedsubtree document: its examples, the table of states and the quiz."""

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
    make_rshared,
    make_rslave,
    make_shared,
    make_slave,
    make_unbindable,
    mkdirs,
    mounted,
    move,
    new_namespace,
    points,
    rbind,
    state,
    unmount,
    view,
)
from vfs_support import exists, fails_with, make_file, names

from harness.testbed.target import TargetTask
from vfs.abi import MS_BIND, MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE, MS_UNBINDABLE

# 2: features


def test_a_mount_on_a_shared_mount_appears_on_its_replica_and_the_other_way(
    root: TargetTask,
) -> None:
    mounted(root, "M", "/mnt", "a", "b", "c")
    mkdirs(root, "/tmp")
    make_shared(root, "/mnt")
    bind(root, "/mnt", "/tmp")
    assert names(root, "/tmp") == names(root, "/mnt") == {"a", "b", "c"}
    mounted(root, "X", "/tmp/a", "t1", "t2", "t3")
    assert names(root, "/mnt/a") == {"t1", "t2", "t3"}
    mounted(root, "Y", "/mnt/b", "s1")
    assert names(root, "/tmp/b") == {"s1"}
    assert view(root) == [
        "/mnt M shared:1",
        "/mnt/a X shared:2",
        "/mnt/b Y shared:3",
        "/tmp M shared:1",
        "/tmp/a X shared:2",
        "/tmp/b Y shared:3",
    ]


def test_a_mount_on_the_master_appears_on_the_slave_and_not_the_other_way(
    root: TargetTask,
) -> None:
    mounted(root, "M", "/mnt", "a", "b")
    mkdirs(root, "/tmp")
    make_shared(root, "/mnt")
    bind(root, "/mnt", "/tmp")
    make_slave(root, "/tmp")
    mounted(root, "X", "/mnt/a", "t1", "t2")
    assert names(root, "/tmp/a") == {"t1", "t2"}
    mounted(root, "Y", "/tmp/b", "s1")
    assert names(root, "/mnt/b") == set()
    assert view(root) == [
        "/mnt M shared:1",
        "/mnt/a X shared:2",
        "/tmp M master:1",
        "/tmp/a X master:2",
        "/tmp/b Y",
    ]


def test_a_private_mount_neither_forwards_nor_receives(root: TargetTask) -> None:
    mounted(root, "M", "/mnt", "a", "b")
    mkdirs(root, "/tmp")
    bind(root, "/mnt", "/tmp")
    mounted(root, "X", "/mnt/a")
    mounted(root, "Y", "/tmp/b")
    assert view(root) == ["/mnt M", "/mnt/a X", "/tmp M", "/tmp/b Y"]


def test_binding_an_unbindable_mount_is_einval(root: TargetTask) -> None:
    mounted(root, "M", "/mnt")
    mkdirs(root, "/tmp")
    make_unbindable(root, "/mnt")
    fails_with(errno.EINVAL, root.mount, "/mnt", "/tmp", None, MS_BIND, None)
    fails_with(errno.EINVAL, root.mount, "/mnt", "/tmp", None, MS_BIND | MS_REC, None)
    assert view(root) == ["/mnt M unbindable"]


# 4: use cases


def test_a_cd_mounted_later_appears_in_every_namespace_cloned_before(root: TargetTask) -> None:
    mkdirs(root, "/cdrom")
    bind(root, "/cdrom", "/cdrom")
    make_shared(root, "/cdrom")
    one = new_namespace(root, "one")
    two = new_namespace(one, "two")
    mounted(root, "CD", "/cdrom")
    make_file(root, "/cdrom/track")
    assert exists(one, "/cdrom/track")
    assert exists(two, "/cdrom/track")
    assert view(root, one, two) == [
        f"{name}:{line}"
        for name in ("root", "one", "two")
        for line in ("/cdrom [/cdrom] shared:1", "/cdrom CD shared:2")
    ]
    unmount(two, "/cdrom")
    assert points(root) == points(one) == points(two) == ["/cdrom"]


def test_a_namespace_keeps_its_mounts_to_itself_and_still_sees_the_systems(
    root: TargetTask,
) -> None:
    mounted(root, "T", "/tree", "mine", "theirs")
    make_rshared(root, "/")
    other = new_namespace(root, "other")
    make_rslave(other, "/tree")
    mounted(other, "X", "/tree/mine")
    mounted(root, "Y", "/tree/theirs")
    assert view(root, other) == [
        "root:/ shared:1",
        "root:/tree T shared:2",
        "root:/tree/theirs Y shared:3",
        "other:/ shared:1",
        "other:/tree T master:2",
        "other:/tree/mine X",
        "other:/tree/theirs Y master:3",
    ]


def test_a_filesystem_mounted_later_appears_in_every_view_of_the_whole_tree(
    root: TargetTask,
) -> None:
    mkdirs(root, "/usr", "/view", "/view/v1", "/view/v2")
    make_shared(root, "/")
    rbind(root, "/", "/view/v1")
    mounted(root, "V", "/usr")
    assert view(root) == [
        "/ shared:1",
        "/usr V shared:2",
        "/view/v1 shared:1",
        "/view/v1/usr V shared:2",
    ]
    rbind(root, "/", "/view/v2")
    assert points(root) == [
        "/usr",
        "/view/v1",
        "/view/v1/usr",
        "/view/v1/view/v2",
        "/view/v1/view/v2/usr",
        "/view/v1/view/v2/view/v1",
        "/view/v1/view/v2/view/v1/usr",
        "/view/v2",
        "/view/v2/usr",
        "/view/v2/view/v1",
        "/view/v2/view/v1/usr",
    ]


# 5a: states


@pytest.mark.parametrize(
    ("before", "flag", "after"),
    [
        (SHARED, MS_SHARED, SHARED),
        (SHARED, MS_SLAVE, SLAVE),
        (SHARED, MS_PRIVATE, PRIVATE),
        (SHARED, MS_UNBINDABLE, UNBINDABLE),
        (SLAVE, MS_SHARED, SHARED_AND_SLAVE),
        (SLAVE, MS_SLAVE, SLAVE),
        (SLAVE, MS_PRIVATE, PRIVATE),
        (SLAVE, MS_UNBINDABLE, UNBINDABLE),
        (SHARED_AND_SLAVE, MS_SHARED, SHARED_AND_SLAVE),
        (SHARED_AND_SLAVE, MS_SLAVE, SLAVE),
        (SHARED_AND_SLAVE, MS_PRIVATE, PRIVATE),
        (SHARED_AND_SLAVE, MS_UNBINDABLE, UNBINDABLE),
        (PRIVATE, MS_SHARED, SHARED),
        (PRIVATE, MS_SLAVE, PRIVATE),
        (PRIVATE, MS_PRIVATE, PRIVATE),
        (PRIVATE, MS_UNBINDABLE, UNBINDABLE),
        (UNBINDABLE, MS_SHARED, SHARED),
        (UNBINDABLE, MS_SLAVE, UNBINDABLE),
        (UNBINDABLE, MS_PRIVATE, PRIVATE),
        (UNBINDABLE, MS_UNBINDABLE, UNBINDABLE),
    ],
)
def test_a_change_of_type_leads_from_state_to_state(
    root: TargetTask, before: str, flag: int, after: str
) -> None:
    mounted(root, "A", "/a")
    if before == SHARED:
        make_shared(root, "/a")
        mkdirs(root, "/peer")
        bind(root, "/a", "/peer")
    make(root, before, "/a", "/master")
    assert state(root, "/a") == before
    root.mount(None, "/a", None, flag, None)
    assert state(root, "/a") == after


def test_slaving_the_only_mount_of_a_peer_group_makes_it_private(root: TargetTask) -> None:
    mounted(root, "A", "/a")
    make_shared(root, "/a")
    make_slave(root, "/a")
    assert view(root) == ["/a A"]


def test_slaving_the_only_peer_of_a_shared_slave_leaves_it_its_master(root: TargetTask) -> None:
    mounted(root, "A", "/a")
    make(root, SHARED_AND_SLAVE, "/a", "/master")
    assert view(root) == ["/a A shared:1 master:2", "/master A shared:2"]
    make_slave(root, "/a")
    assert view(root) == ["/a A master:1", "/master A shared:1"]


# 6: quiz


def test_quiz_a_a_peer_moved_below_its_own_group_appears_on_itself_and_goes_no_deeper(
    root: TargetTask,
) -> None:
    mounted(root, "M", "/mnt", "1", "1/1", "2")
    mkdirs(root, "/tmp")
    make_shared(root, "/mnt")
    bind(root, "/mnt", "/tmp")
    move(root, "/tmp", "/mnt/1")
    assert names(root, "/mnt") == names(root, "/mnt/1") == names(root, "/mnt/1/1") == {"1", "2"}
    assert names(root, "/mnt/1/1/1") == {"1"}
    assert view(root) == ["/mnt M shared:1", "/mnt/1 M shared:1", "/mnt/1/1 M shared:1"]


def test_quiz_b_a_recursive_bind_of_the_shared_root_below_itself_does_not_hold_itself(
    root: TargetTask,
) -> None:
    make_rshared(root, "/")
    mkdirs(root, "/v", "/v/1")
    make_file(root, "/file")
    rbind(root, "/", "/v/1")
    assert names(root, "/v/1") == {"v", "file"}
    assert names(root, "/v/1/v/1") == set()
    assert view(root) == ["/ shared:1", "/v/1 shared:1"]


def test_quiz_c_a_mount_reaches_a_slaves_slave_past_one_that_does_not_show_the_place(
    root: TargetTask,
) -> None:
    mkdirs(root, "/mnt", "/mnt/1", "/mnt/1/2", "/mnt/1/2/3", "/mnt/1/test", "/tmp", "/tmp1")
    bind(root, "/mnt", "/mnt")
    make_shared(root, "/mnt")
    bind(root, "/mnt/1", "/tmp")
    make_slave(root, "/mnt")
    make_shared(root, "/mnt")
    bind(root, "/mnt/1/2", "/tmp1")
    make_slave(root, "/mnt")
    chain = [
        "/mnt [/mnt] master:1",
        "/tmp [/mnt/1] shared:2",
        "/tmp1 [/mnt/1/2] shared:1 master:2",
    ]
    assert view(root) == chain
    mounted(root, "bin", "/tmp/test", "sh")
    assert names(root, "/mnt/1/test") == {"sh"}
    assert view(root) == [
        "/mnt [/mnt] master:1",
        "/mnt/1/test bin master:2",
        "/tmp [/mnt/1] shared:3",
        "/tmp/test bin shared:2",
        "/tmp1 [/mnt/1/2] shared:1 master:3",
    ]


# 7: why unbindable mounts


def test_recursive_binds_of_a_shared_tree_into_itself_explode(root: TargetTask) -> None:
    mounted(root, "R", "/root", "tmp", "usr", "tmp/m1", "tmp/m2", "tmp/m3")
    make_shared(root, "/root")
    counts = []
    for target in ("m1", "m2", "m3"):
        rbind(root, "/root", f"/root/tmp/{target}")
        counts.append(len(points(root)))
    # Each of n mounts gets a copy of all n; the document counts 24 at the end.
    assert counts == [2, 6, 42]


def test_an_unbindable_mount_in_the_tree_keeps_recursive_binds_from_exploding(
    root: TargetTask,
) -> None:
    mounted(root, "R", "/root", "tmp", "usr")
    bind(root, "/root/tmp", "/root/tmp")
    make_rshared(root, "/root")
    make_unbindable(root, "/root/tmp")
    for target in ("m1", "m2", "m3"):
        mkdirs(root, f"/root/tmp/{target}")
        rbind(root, "/root", f"/root/tmp/{target}")
    assert view(root) == [
        "/root R shared:1",
        "/root/tmp R[/tmp] unbindable",
        "/root/tmp/m1 R shared:1",
        "/root/tmp/m2 R shared:1",
        "/root/tmp/m3 R shared:1",
    ]


# 8: the figure of a propagation tree


def figure(root: TargetTask) -> None:
    """A, B, C, D are peers; E, F, G slaves of A, J, K of C, H, I of D; E's peer L has slaves M, N
    and O.
    """
    mounted(root, "fs", "/A", "m")
    mkdirs(root, *(f"/{name}" for name in "BCDEFGHIJKLMNO"))
    make_shared(root, "/A")
    for name in "BCD":
        bind(root, "/A", f"/{name}")
    for master, slaves in (("A", "EFG"), ("C", "JK"), ("D", "HI")):
        for slave in slaves:
            bind(root, f"/{master}", f"/{slave}")
            make_slave(root, f"/{slave}")
    make_shared(root, "/E")
    bind(root, "/E", "/L")
    for slave in "MNO":
        bind(root, "/L", f"/{slave}")
        make_slave(root, f"/{slave}")


@pytest.mark.parametrize(
    ("at", "reached"),
    [
        ("A", "ABCDEFGHIJKLMNO"),
        ("D", "ABCDEFGHIJKLMNO"),
        ("E", "ELMNO"),
        ("L", "ELMNO"),
        ("F", "F"),
        ("K", "K"),
        ("O", "O"),
    ],
)
def test_an_event_reaches_the_peers_and_what_is_below_them_in_the_propagation_tree(
    root: TargetTask, at: str, reached: str
) -> None:
    figure(root)
    mounted(root, "X", f"/{at}/m")
    assert "".join(point[1] for point in points(root) if point.endswith("/m")) == reached
    unmount(root, f"/{at}/m")
    assert not any(point.endswith("/m") for point in points(root))


def test_a_copied_propagation_tree_has_the_originals_shape(root: TargetTask) -> None:
    figure(root)
    assert view(root)[0] == "/A fs shared:1"
    mounted(root, "X", "/C/m")
    assert [line for line in view(root) if " X " in line] == [
        *(f"/{name}/m X shared:2" for name in "ABCD"),
        "/E/m X shared:4 master:2",
        *(f"/{name}/m X master:2" for name in "FGHIJK"),
        "/L/m X shared:4 master:2",
        *(f"/{name}/m X master:4" for name in "MNO"),
    ]
