"""MOVE_MOUNT_SET_GROUP: a private mount is given the peer group and the master of another."""

from __future__ import annotations

import errno

import pytest
from mount_calls_support import (
    attach,
    bind,
    clone_tree,
    enter,
    marked,
    mount_id,
    move_mount,
    propagation,
    tmpfs,
)
from vfs_support import exists, fails_with, make_file

from harness.testbed.target import TargetTask
from vfs.abi import (
    AT_FDCWD,
    CLONE_NEWNS,
    MNT_DETACH,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_SET_GROUP,
    MOVE_MOUNT_T_EMPTY_PATH,
    MS_PRIVATE,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
    O_PATH,
)

GROUP = MOVE_MOUNT_SET_GROUP


@pytest.fixture
def pair(root: TargetTask) -> str:
    """``/from``, a shared tmpfs with a directory ``d``; ``/to``, a private bind of it."""
    marked(root, "from", "f")
    root.mkdir("from/d", 0o755)
    root.mkdir("to", 0o755)
    bind(root, "from", "to")
    propagation(root, "from", MS_SHARED)
    return "from"


def groups(task: TargetTask, path: str) -> list[bytes]:
    """The optional fields of ``path``'s line in mountinfo."""
    fields = [line.split() for line in task.mountinfo().splitlines()]
    found = [line for line in fields if line[4] == b"/" + path.encode()][-1]
    return found[6 : found.index(b"-")]


def test_set_group_makes_the_target_a_peer_of_a_shared_mount(root: TargetTask, pair: str) -> None:
    move_mount(root, "from", "to", GROUP)
    assert groups(root, "to") == groups(root, "from") != []
    tmpfs(root, "from/d")
    make_file(root, "from/d/new")
    assert exists(root, "to/d/new")


def test_set_group_makes_the_target_a_slave_of_a_slaves_master(root: TargetTask, pair: str) -> None:
    root.mkdir("slave", 0o755)
    bind(root, "from", "slave")
    propagation(root, "slave", MS_SLAVE)
    move_mount(root, "slave", "to", GROUP)
    assert groups(root, "to") == groups(root, "slave")
    assert groups(root, "to")[0].startswith(b"master:")
    tmpfs(root, "to/d")
    make_file(root, "to/d/own")
    assert not exists(root, "from/d/own")
    root.umount2("to/d", 0)
    tmpfs(root, "from/d")
    make_file(root, "from/d/new")
    assert exists(root, "to/d/new")


def test_set_group_of_a_shared_slave_gives_both(root: TargetTask, pair: str) -> None:
    root.mkdir("both", 0o755)
    bind(root, "from", "both")
    propagation(root, "both", MS_SLAVE)
    propagation(root, "both", MS_SHARED)
    move_mount(root, "both", "to", GROUP)
    assert len(groups(root, "to")) == 2
    assert groups(root, "to") == groups(root, "both")


def test_set_group_moves_nothing(root: TargetTask, pair: str) -> None:
    before = mount_id(root, "from"), mount_id(root, "to")
    move_mount(root, "from", "to", GROUP)
    assert (mount_id(root, "from"), mount_id(root, "to")) == before


def test_set_group_goes_from_a_wider_mount_to_a_narrower_one_only(
    root: TargetTask, pair: str
) -> None:
    root.mkdir("narrow", 0o755)
    bind(root, "from/d", "narrow")
    propagation(root, "narrow", MS_PRIVATE)
    move_mount(root, "from", "narrow", GROUP)
    propagation(root, "from", MS_PRIVATE)
    fails_with(errno.EINVAL, move_mount, root, "narrow", "from", GROUP)


def test_set_group_takes_two_mounts_roots(root: TargetTask, pair: str) -> None:
    fails_with(errno.EINVAL, move_mount, root, "from/d", "to", GROUP)
    fails_with(errno.EINVAL, move_mount, root, "from", "to/d", GROUP)


def test_set_group_takes_one_superblock(root: TargetTask, pair: str) -> None:
    marked(root, "stranger", "s")
    fails_with(errno.EINVAL, move_mount, root, "from", "stranger", GROUP)


@pytest.mark.parametrize("kind", [MS_SHARED, MS_SLAVE])
def test_set_group_takes_a_private_target(root: TargetTask, pair: str, kind: int) -> None:
    root.mkdir("third", 0o755)
    bind(root, "from", "third")
    if kind == MS_SLAVE:
        propagation(root, "third", MS_SLAVE)
    fails_with(errno.EINVAL, move_mount, root, "from", "third", GROUP)


@pytest.mark.parametrize("kind", [MS_PRIVATE, MS_UNBINDABLE])
def test_set_group_takes_a_source_that_propagates(root: TargetTask, pair: str, kind: int) -> None:
    propagation(root, "from", kind)
    fails_with(errno.EINVAL, move_mount, root, "from", "to", GROUP)


def test_set_group_of_a_mount_with_itself_is_einval(root: TargetTask, pair: str) -> None:
    fails_with(errno.EINVAL, move_mount, root, "from", "from", GROUP)
    fails_with(errno.EINVAL, move_mount, root, "to", "to", GROUP)


def test_set_group_works_across_namespaces_that_one_has_power_over(
    root: TargetTask, pair: str
) -> None:
    source = root.open("from", O_PATH, 0)
    other = root.clone("other", CLONE_NEWNS)
    other.move_mount(source, "", AT_FDCWD, "to", MOVE_MOUNT_F_EMPTY_PATH | GROUP)
    tmpfs(root, "from/d")
    make_file(root, "from/d/new")
    assert exists(other, "to/d/new")
    assert not exists(root, "to/d/new")
    root.close(source)
    other.close(source)


def test_set_group_from_a_namespace_of_somebody_else_is_eperm(
    root: TargetTask, alice: TargetTask, pair: str
) -> None:
    source = alice.open("from", O_PATH, 0)
    target = alice.open("to", O_PATH, 0)
    inner = enter(alice)
    flags = MOVE_MOUNT_F_EMPTY_PATH | GROUP
    fails_with(errno.EPERM, inner.move_mount, source, "", AT_FDCWD, "to", flags)
    flags = MOVE_MOUNT_T_EMPTY_PATH | GROUP
    fails_with(errno.EPERM, inner.move_mount, AT_FDCWD, "from", target, "", flags)
    move_mount(inner, "from", "to", GROUP)


def test_set_group_of_an_unmounted_mount_is_einval(root: TargetTask, pair: str) -> None:
    source = root.open("from", O_PATH, 0)
    root.umount2("from", MNT_DETACH)
    flags = MOVE_MOUNT_F_EMPTY_PATH | GROUP
    fails_with(errno.EINVAL, root.move_mount, source, "", AT_FDCWD, "to", flags)
    root.close(source)


def test_set_group_gives_a_detached_copy_its_group_back(root: TargetTask, pair: str) -> None:
    fd = clone_tree(root, "to")
    flags = MOVE_MOUNT_T_EMPTY_PATH | GROUP
    root.move_mount(AT_FDCWD, "from", fd, "", flags)
    root.mkdir("third", 0o755)
    attach(root, fd, "third")
    assert groups(root, "third") == groups(root, "from")
    root.close(fd)


def test_set_group_where_locked_mounts_lie_in_the_targets_place_is_einval(
    root: TargetTask, alice: TargetTask, pair: str
) -> None:
    root.mkdir("narrow", 0o755)
    root.mkdir("from/d/e", 0o755)
    bind(root, "from/d", "narrow")
    propagation(root, "narrow", MS_PRIVATE)
    propagation(root, "from", MS_PRIVATE)
    tmpfs(root, "from/d/e")
    propagation(root, "from", MS_SHARED)
    move_mount(root, "from", "to", GROUP)
    propagation(root, "to", MS_PRIVATE)
    inner = enter(alice)
    fails_with(errno.EINVAL, move_mount, inner, "from", "narrow", GROUP)
    fails_with(errno.EINVAL, move_mount, inner, "from", "to", GROUP)
