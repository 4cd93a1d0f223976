"""Changes of propagation type: peer groups, masters and their slaves, and what mountinfo says."""

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
    mount_at,
    mounted,
    move,
    new_namespace,
    peers,
    points,
    propagation,
    table,
    unmount,
    view,
)
from vfs_support import fails_with

from harness.testbed.target import TargetTask
from vfs.abi import (
    MNT_DETACH,
    MS_BIND,
    MS_MOVE,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SHARED,
    MS_SILENT,
    MS_SLAVE,
    MS_UNBINDABLE,
    O_DIRECTORY,
    O_RDONLY,
)

TYPES = {
    "shared": MS_SHARED,
    "slave": MS_SLAVE,
    "private": MS_PRIVATE,
    "unbindable": MS_UNBINDABLE,
}


@pytest.fixture
def pair(root: TargetTask) -> None:
    """``/a`` and ``/b`` are peers that show directories x, y and x/deep."""
    mounted(root, "A", "/a", "x", "y", "x/deep")
    make_shared(root, "/a")
    mkdirs(root, "/b")
    bind(root, "/a", "/b")


# Changing the type


@pytest.mark.parametrize("flag", TYPES.values(), ids=TYPES)
def test_changing_the_type_of_what_is_no_mounts_root_is_einval(root: TargetTask, flag: int) -> None:
    mounted(root, "A", "/a", "d")
    fails_with(errno.EINVAL, root.mount, None, "/a/d", None, flag, None)
    fails_with(errno.ENOENT, root.mount, None, "/a/missing", None, flag, None)
    assert view(root) == ["/a A"]


@pytest.mark.parametrize(
    "flags",
    [
        MS_SHARED | MS_PRIVATE,
        MS_SHARED | MS_SLAVE,
        MS_SLAVE | MS_UNBINDABLE,
        MS_PRIVATE | MS_UNBINDABLE | MS_REC,
        MS_SHARED | MS_RDONLY,
        MS_PRIVATE | MS_NOSUID,
        MS_SLAVE | MS_NODEV | MS_REC,
        MS_UNBINDABLE | MS_NOEXEC,
        MS_SHARED | MS_MOVE,
    ],
)
def test_a_change_of_type_with_any_other_flag_is_einval(root: TargetTask, flags: int) -> None:
    mounted(root, "A", "/a")
    fails_with(errno.EINVAL, root.mount, None, "/a", None, flags, None)
    assert view(root) == ["/a A"]


def test_a_change_of_type_may_be_silent_and_ignores_source_type_and_data(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a")
    root.mount("nowhere", "/a", "no-such-type", MS_SHARED | MS_SILENT, "x=y")
    assert view(root) == ["/a A shared:1"]


def test_changing_the_type_needs_cap_sys_admin(root: TargetTask, alice: TargetTask) -> None:
    mounted(root, "A", "/a")
    fails_with(errno.EPERM, alice.mount, None, "/a", None, MS_SHARED, None)


def test_a_bind_or_a_remount_with_a_type_flag_is_a_bind_or_a_remount(root: TargetTask) -> None:
    mounted(root, "A", "/a")
    mkdirs(root, "/b")
    root.mount("/a", "/b", None, MS_BIND | MS_SHARED, None)
    root.mount(None, "/b", None, MS_REMOUNT | MS_BIND | MS_SHARED, None)
    assert view(root) == ["/a A", "/b A"]


def test_changing_the_type_of_another_namespaces_mount_needs_privilege_over_it_only(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a")
    fd = root.open("/a", O_RDONLY | O_DIRECTORY, 0)
    other, jail = new_namespace(root, "other"), less_privileged(root, "jail")
    for task in (other, jail):
        task.fchdir(fd)
    fails_with(errno.EPERM, jail.mount, None, ".", None, MS_SHARED, None)
    other.mount(None, ".", None, MS_SHARED, None)
    assert view(root, other, jail) == ["root:/a A shared:1", "other:/a A", "jail:/a A"]


def test_changing_the_type_of_an_unmounted_mount_is_einval(root: TargetTask) -> None:
    mounted(root, "A", "/a")
    root.chdir("/a")
    unmount(root, "/a", MNT_DETACH)
    fails_with(errno.EINVAL, root.mount, None, ".", None, MS_SHARED, None)


@pytest.mark.parametrize(("name", "flag"), TYPES.items(), ids=TYPES)
def test_a_recursive_change_reaches_every_mount_below_and_a_plain_one_does_not(
    root: TargetTask, name: str, flag: int
) -> None:
    for top in ("/1", "/2"):
        mounted(root, "A", top, "b")
        make_shared(root, top)
        mounted(root, "B", f"{top}/b", "c")
        mounted(root, "C", f"{top}/b/c")
    root.mount(None, "/1/b", None, flag, None)
    root.mount(None, "/2/b", None, flag | MS_REC, None)
    after = {"shared": "shared:1", "slave": "", "private": "", "unbindable": "unbindable"}[name]
    assert [propagation(root, path) for path in ("/1", "/1/b", "/1/b/c")] == [
        "shared:1",
        after,
        "shared:1",
    ]
    assert [propagation(root, path) for path in ("/2", "/2/b", "/2/b/c")] == [
        "shared:1",
        after,
        after,
    ]


def test_a_change_of_type_is_about_the_topmost_mount_and_a_recursive_one_about_what_is_on_it(
    root: TargetTask,
) -> None:
    mounted(root, "A", "/a", "b")
    mounted(root, "B", "/a/b")
    mounted(root, "C", "/a")
    root.mount(None, "/a", None, MS_SHARED | MS_REC, None)
    assert view(root) == ["/a A", "/a C shared:1", "/a/b B (on A)"]


def test_sharing_a_tree_gives_each_mount_a_group_of_its_own(root: TargetTask) -> None:
    mounted(root, "A", "/a", "b")
    mounted(root, "B", "/a/b")
    mkdirs(root, "/c")
    bind(root, "/a", "/c")
    make_rshared(root, "/a")
    make_shared(root, "/c")
    assert view(root) == ["/a A shared:1", "/a/b B shared:2", "/c A shared:3"]


@pytest.mark.usefixtures("pair")
def test_sharing_what_is_shared_keeps_its_group(root: TargetTask) -> None:
    make_shared(root, "/b")
    assert peers(root, "/a", root, "/b")


@pytest.mark.usefixtures("pair")
def test_a_change_of_type_is_not_propagated(root: TargetTask) -> None:
    make_unbindable(root, "/b")
    assert view(root) == ["/a A shared:1", "/b A unbindable"]


@pytest.mark.usefixtures("pair")
def test_a_mount_that_left_its_group_and_is_shared_again_is_in_another(root: TargetTask) -> None:
    make_private(root, "/b")
    make_shared(root, "/b")
    mounted(root, "X", "/a/x")
    assert view(root) == ["/a A shared:1", "/a/x X shared:2", "/b A shared:3"]


@pytest.mark.usefixtures("pair")
def test_a_mount_slaved_and_shared_again_is_below_its_old_group(root: TargetTask) -> None:
    make_slave(root, "/b")
    make_shared(root, "/b")
    mkdirs(root, "/c")
    bind(root, "/b", "/c")
    make_slave(root, "/c")
    assert view(root) == ["/a A shared:1", "/b A shared:2 master:1", "/c A master:2"]


# What becomes of slaves when their master changes


@pytest.fixture
def chain(root: TargetTask) -> None:
    """``/a`` is the master of ``/b``, which is shared and the master of ``/c``."""
    mounted(root, "A", "/a", "x")
    mkdirs(root, "/b", "/c")
    make_shared(root, "/a")
    for master, slave in (("/a", "/b"), ("/b", "/c")):
        bind(root, master, slave)
        make_slave(root, slave)
        make_shared(root, slave)
    make_slave(root, "/c")


CHAIN = ["/a A shared:1", "/b A shared:2 master:1", "/c A master:2"]


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        (MS_SHARED, CHAIN),
        (MS_PRIVATE, ["/a A shared:1", "/b A", "/c A master:1"]),
        (MS_UNBINDABLE, ["/a A shared:1", "/b A unbindable", "/c A master:1"]),
        (MS_SLAVE, ["/a A shared:1", "/b A master:1", "/c A master:1"]),
    ],
)
def test_slaves_of_the_last_of_a_group_go_to_its_master_when_it_leaves(
    root: TargetTask, flag: int, expected: list[str]
) -> None:
    root.mount(None, "/b", None, flag, None)
    assert view(root) == expected
    mounted(root, "X", "/a/x")
    assert "/c/x" in points(root)


@pytest.mark.usefixtures("chain")
def test_slaves_of_the_last_of_a_group_without_a_master_are_private_when_it_leaves(
    root: TargetTask,
) -> None:
    make_private(root, "/a")
    assert view(root) == ["/a A", "/b A shared:1", "/c A master:1"]
    make_private(root, "/b")
    assert view(root) == ["/a A", "/b A", "/c A"]


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        (MS_PRIVATE, ["/a A", "/b A shared:1 master:2", "/c A master:1", "/peer A shared:2"]),
        (
            MS_SLAVE,
            ["/a A master:1", "/b A shared:2 master:1", "/c A master:2", "/peer A shared:1"],
        ),
    ],
    ids=["private", "slave"],
)
def test_slaves_of_a_mount_that_leaves_its_group_stay_with_the_group(
    root: TargetTask, flag: int, expected: list[str]
) -> None:
    mkdirs(root, "/peer")
    bind(root, "/a", "/peer")
    root.mount(None, "/a", None, flag, None)
    assert view(root) == expected


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("flags", [0, MNT_DETACH])
def test_slaves_of_an_unmounted_mount_go_to_its_master(root: TargetTask, flags: int) -> None:
    unmount(root, "/b", flags)
    assert view(root) == ["/a A shared:1", "/c A master:1"]
    unmount(root, "/a", flags)
    assert view(root) == ["/c A"]


# mountinfo


def test_mountinfo_shows_the_optional_fields_in_one_order(root: TargetTask) -> None:
    mounted(root, "A", "/a")
    mkdirs(root, "/b", "/c")
    make_shared(root, "/a")
    bind(root, "/a", "/b")
    make_slave(root, "/b")
    make_shared(root, "/b")
    mounted(root, "U", "/u")
    make_unbindable(root, "/u")
    groups = {name: mount_at(root, f"/{name}") for name in "ab"}
    lines = {line.split(b" ")[4]: line.split(b" ")[6:] for line in root.mountinfo().splitlines()}
    one, two = groups["a"].shared, groups["b"].shared
    assert lines[b"/a"][:2] == [b"shared:%d" % one, b"-"]
    assert lines[b"/b"][:3] == [b"shared:%d" % two, b"master:%d" % one, b"-"]
    assert lines[b"/u"][:2] == [b"unbindable", b"-"]
    assert lines[b"/"][:1] == [b"-"]


def test_mountinfo_lists_mounts_in_the_order_they_were_made(root: TargetTask) -> None:
    for name in "cab":
        mounted(root, name, f"/{name}", "x")
    mkdirs(root, "/c/d")
    move(root, "/a", "/c/d")
    mounted(root, "z", "/c/x")
    assert [row.mount_point for row in table(root)] == [b"/", b"/c", b"/c/d", b"/b", b"/c/x"]


def test_mountinfo_in_a_chroot_leaves_out_what_is_outside(root: TargetTask) -> None:
    mkdirs(root, "/jail", "/jail/in", "/out")
    mounted(root, "I", "/jail/in")
    mounted(root, "O", "/out")
    root.chroot("/jail")
    assert view(root) == ["/in I"]
    assert [row.mount_point for row in table(root)] == [b"/in"]


def test_mountinfo_shows_the_group_of_a_master_that_is_out_of_sight(root: TargetTask) -> None:
    mounted(root, "A", "/a")
    make_shared(root, "/a")
    mkdirs(root, "/jail", "/jail/b")
    bind(root, "/a", "/jail/b")
    make_slave(root, "/jail/b")
    group = mount_at(root, "/a").shared
    jailed = root.clone("jailed")
    jailed.chroot("/jail")
    row = mount_at(jailed, "/b")
    assert (row.shared, row.master, row.propagate_from) == (0, group, 0)
    assert row.id == mount_at(root, "/jail/b").id


def test_propagate_from_names_the_closest_group_in_sight(root: TargetTask) -> None:
    mounted(root, "A", "/1", "jail")
    make_shared(root, "/1")
    mkdirs(root, "/2", "/3", "/jail", "/jail/1", "/jail/4")
    for master, slave in (("/1", "/2"), ("/2", "/3"), ("/3", "/jail/4")):
        bind(root, master, slave)
        make_slave(root, slave)
        make_shared(root, slave)
    bind(root, "/1", "/jail/1")
    jailed = root.clone("jailed")
    jailed.chroot("/jail")
    assert view(jailed) == ["/1 A shared:1", "/4 A shared:2 master:3 propagate_from:1"]
    assert mount_at(jailed, "/4").master == mount_at(root, "/3").shared
