"""Files that stand for namespaces: what they are like, and that they keep namespaces alive."""

from __future__ import annotations

import errno
import struct

import pytest
from vfs_support import fails_with, make_file

from harness.testbed.target import Target, TargetTask
from vfs import VirtualFilesystem
from vfs.abi import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    F_GETFD,
    F_GETFL,
    FD_CLOEXEC,
    LSMT_ROOT,
    MNT_DETACH,
    MOVE_MOUNT_F_EMPTY_PATH,
    NSFS_MAGIC,
    O_ACCMODE,
    O_DIRECT,
    O_DIRECTORY,
    O_NONBLOCK,
    O_PATH,
    O_RDONLY,
    O_RDWR,
    O_TRUNC,
    O_WRONLY,
    OPEN_TREE_CLONE,
    POLLIN,
    POLLOUT,
    S_IFREG,
    SEEK_CUR,
    ST_VALID,
    STATMOUNT_MNT_NS_ID,
    STATX_BTIME,
    STATX_MNT_ID_UNIQUE,
    UTIME_NOW,
)
from vfs.credentials import Credentials
from vfs.namespace import MountNamespace
from vfs.nsfs import (
    NS_GET_ID,
    NS_GET_MNTNS_ID,
    NS_GET_NSTYPE,
    NS_GET_OWNER_UID,
    NS_GET_PARENT,
    NS_GET_USERNS,
    NS_MNT_GET_INFO,
    NS_MNT_GET_NEXT,
    NS_MNT_GET_PREV,
    namespace_of,
    nsfs_path,
    open_namespace,
)
from vfs.task import Task
from vfs.user_namespace import UserNamespace


@pytest.fixture
def root(target: Target) -> TargetTask:
    task = target.task()
    make_file(task, "f")
    make_file(task, "g")
    return task


def bind(task: TargetTask, fd: int, path: str) -> None:
    """Mounts the namespace's file behind ``fd`` on ``path``."""
    tree = task.open_tree(fd, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)
    task.move_mount(tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH)
    task.close(tree)


def namespace_id(task: TargetTask) -> int:
    mount = task.statx(AT_FDCWD, "/", 0, STATX_MNT_ID_UNIQUE).stx_mnt_id
    found: int = task.statmount(mount, STATMOUNT_MNT_NS_ID).mnt_ns_id
    return found


# What the files are like


@pytest.mark.usefixtures("every_id")
@pytest.mark.parametrize("kind", ["mnt", "user"])
def test_a_namespace_is_a_read_only_empty_file(root: TargetTask, kind: str) -> None:
    fd = root.nsfd("root", kind)
    stat = root.fstat(fd)
    assert (stat.st_mode, stat.st_nlink, stat.st_size) == (S_IFREG | 0o444, 1, 0)
    assert (stat.st_uid, stat.st_gid, stat.st_blocks, stat.st_blksize) == (0, 0, 0, 4096)
    statx = root.statx(fd, "", AT_EMPTY_PATH, STATX_BTIME)
    assert not statx.stx_mask & STATX_BTIME
    assert statx.stx_attributes == 0
    statfs = root.fstatfs(fd)
    assert (statfs.f_type, statfs.f_flags) == (NSFS_MAGIC, ST_VALID)
    assert root.fcntl(fd, F_GETFL, 0) & O_ACCMODE == O_RDONLY
    assert root.poll(fd, POLLIN | POLLOUT) == POLLIN | POLLOUT
    root.close(fd)


def test_there_is_nothing_to_do_with_the_bytes_of_a_namespace(root: TargetTask) -> None:
    fd = root.nsfd("root", "mnt")
    fails_with(errno.EINVAL, root.read, fd, 1)
    fails_with(errno.EINVAL, root.pread64, fd, 1, 0)
    fails_with(errno.ESPIPE, root.lseek, fd, 0, SEEK_CUR)
    fails_with(errno.EBADF, root.write, fd, b"x")
    fails_with(errno.EINVAL, root.fsync, fd)
    fails_with(errno.ENOTDIR, root.getdents64, fd, 100)
    root.close(fd)


@pytest.mark.usefixtures("every_id")
def test_nobody_may_change_the_attributes_of_a_namespace(root: TargetTask) -> None:
    fd = root.nsfd("root", "mnt")
    fails_with(errno.EPERM, root.fchmod, fd, 0o600)
    fails_with(errno.EPERM, root.fchown, fd, 1, 1)
    fails_with(errno.EPERM, root.utimensat, fd, None, ((0, UTIME_NOW), (0, UTIME_NOW)))
    fails_with(errno.EPERM, root.fsetxattr, fd, "user.a", b"1", 0)
    fails_with(errno.EOPNOTSUPP, root.fgetxattr, fd, "user.a")
    assert root.flistxattr(fd) == []
    root.close(fd)


def test_a_bound_namespace_opens_for_reading_only(root: TargetTask) -> None:
    fd = root.nsfd("root", "user")
    bind(root, fd, "f")
    again = root.open("f", O_RDONLY | O_NONBLOCK, 0)
    assert root.fstat(again).st_ino == root.fstat(fd).st_ino
    for flags in (O_WRONLY, O_RDWR, O_RDONLY | O_TRUNC):
        fails_with(errno.EPERM, root.open, "f", flags, 0)
    fails_with(errno.ENOTDIR, root.open, "f", O_RDONLY | O_DIRECTORY, 0)
    fails_with(errno.EINVAL, root.open, "f", O_RDONLY | O_DIRECT, 0)
    root.close(again)
    root.umount2("f", 0)
    root.close(fd)


def test_a_namespace_cannot_be_mounted_by_its_types_name(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    fails_with(errno.ENODEV, root.mount, "x", "d", "nsfs", 0, None)


# Which file is which


def test_one_namespace_is_one_file_and_two_are_two(root: TargetTask) -> None:
    same = root.clone("same")
    other = root.clone("other", CLONE_NEWNS)
    fds = [root.nsfd(name, "mnt") for name in ("root", "same", "other")]
    fds.append(same.nsfd("root", "mnt"))
    one, two, three = ((stat.st_dev, stat.st_ino) for stat in map(root.fstat, fds[:3]))
    fourth = same.fstat(fds[3])
    assert one == two == (fourth.st_dev, fourth.st_ino)
    assert one[0] == three[0] and one[1] != three[1]
    assert other.nsfd("other", "user") == 0
    assert other.fstat(0).st_dev == one[0]


def test_the_file_of_a_namespace_is_the_same_after_nobody_had_it_open(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    seen = set()
    for _ in range(3):
        fd = root.nsfd("root", "mnt")
        stat = root.fstat(fd)
        seen.add((stat.st_dev, stat.st_ino))
        root.close(fd)
        root.mount("none", "d", "tmpfs", 0, None)
        assert root.stat("d").st_dev != stat.st_dev
    assert len(seen) == 1


# Lives


def test_an_open_file_keeps_a_namespace_alive(root: TargetTask) -> None:
    child = root.clone("child", CLONE_NEWNS)
    child.mkdir("d", 0o755)
    child.mount("theirs", "d", "tmpfs", 0, None)
    other = namespace_id(child)
    fd = root.nsfd("child", "mnt")
    child.exit()
    assert root.listmount(LSMT_ROOT, 0, 9, other)
    visitor = root.clone("visitor")
    visitor.setns(fd, CLONE_NEWNS)
    assert b"theirs /d " in visitor.mounts()
    visitor.exit()
    assert root.listmount(LSMT_ROOT, 0, 9, other)
    root.close(fd)
    fails_with(errno.ENOENT, root.listmount, LSMT_ROOT, 0, 9, other)


def test_a_bind_mount_keeps_a_namespace_alive(root: TargetTask) -> None:
    child = root.clone("child", CLONE_NEWNS)
    other = namespace_id(child)
    fd = root.nsfd("child", "mnt")
    bind(root, fd, "f")
    root.close(fd)
    child.exit()
    assert root.listmount(LSMT_ROOT, 0, 9, other)
    fd = root.open("f", O_RDONLY, 0)
    visitor = root.clone("visitor")
    visitor.setns(fd, 0)
    assert namespace_id(visitor) == other
    visitor.exit()
    root.umount2("f", MNT_DETACH)
    assert root.listmount(LSMT_ROOT, 0, 9, other)
    root.close(fd)
    fails_with(errno.ENOENT, root.listmount, LSMT_ROOT, 0, 9, other)


def test_namespaces_that_hold_each_other_in_a_row_go_together(root: TargetTask) -> None:
    first = root.clone("first", CLONE_NEWNS)
    second = first.clone("second", CLONE_NEWNS)
    third = second.clone("third", CLONE_NEWNS)
    ids = [namespace_id(task) for task in (first, second, third)]
    bind(second, second.nsfd("third", "mnt"), "f")
    bind(first, first.nsfd("second", "mnt"), "f")
    bind(first, first.nsfd("root", "user"), "g")
    for task in (third, second):
        task.exit()
    for number in ids:
        assert root.listmount(LSMT_ROOT, 0, 9, number)
    first.exit()
    for number in ids:
        fails_with(errno.ENOENT, root.listmount, LSMT_ROOT, 0, 9, number)


def test_a_path_descriptor_is_not_the_namespace(root: TargetTask) -> None:
    fd = root.nsfd("root", "user")
    bind(root, fd, "f")
    path = root.open("f", O_PATH, 0)
    fails_with(errno.EBADF, root.setns, path, 0)


# Without Linux: the test bed has no ioctl. What is expected was asked of 6.18.


@pytest.fixture
def file_of_mnt(task: Task) -> int:
    with task.vfs.lock:
        return task.files.install(open_namespace(task.vfs, task.namespace, task.cred))


@pytest.fixture
def file_of_user(task: Task) -> int:
    with task.vfs.lock:
        return task.files.install(open_namespace(task.vfs, task.cred.user_ns, task.cred))


def ioctl(task: Task, fd: int, command: int, argument: bytes | int = b"") -> int:
    """An ioctl that answers with one number."""
    data = task.ioctl(fd, command, argument)
    return int.from_bytes(data, "little")


def namespace_behind(task: Task, fd: int) -> MountNamespace | UserNamespace | None:
    with task.vfs.lock:
        return namespace_of(task.files.get_file(fd))


def test_ioctls_tell_type_ids_and_owner(task: Task, file_of_mnt: int, file_of_user: int) -> None:
    assert ioctl(task, file_of_mnt, NS_GET_NSTYPE) == CLONE_NEWNS
    assert ioctl(task, file_of_user, NS_GET_NSTYPE) == CLONE_NEWUSER
    assert ioctl(task, file_of_mnt, NS_GET_MNTNS_ID) == task.namespace.id
    assert ioctl(task, file_of_mnt, NS_GET_ID) == task.namespace.id
    assert ioctl(task, file_of_user, NS_GET_OWNER_UID) == 0
    fails_with(errno.EINVAL, task.ioctl, file_of_mnt, NS_GET_OWNER_UID)
    fails_with(errno.EINVAL, task.ioctl, file_of_user, NS_GET_MNTNS_ID)
    for fd in file_of_mnt, file_of_user:
        fails_with(errno.ENOTTY, task.ioctl, fd, 0x5401)
        fails_with(errno.ENOTTY, task.ioctl, fd, 0xB763)


def test_an_ioctl_describes_a_mount_namespace(
    task: Task, file_of_mnt: int, file_of_user: int
) -> None:
    task.mkdir("d", 0o755)
    task.mount(b"none", "d", "tmpfs")
    told = struct.pack("=IIQ", 16, len(task.listmount(LSMT_ROOT)), task.namespace.id)
    assert task.ioctl(file_of_mnt, NS_MNT_GET_INFO, bytes(16)) == told
    larger = NS_MNT_GET_INFO + (16 << 16)
    assert task.ioctl(file_of_mnt, larger, bytes(32)) == told + bytes(16)
    smaller = NS_MNT_GET_INFO - (8 << 16)
    fails_with(errno.ENOTTY, task.ioctl, file_of_mnt, smaller, bytes(8))
    fails_with(errno.EINVAL, task.ioctl, file_of_mnt, NS_MNT_GET_INFO, 0)
    fails_with(errno.EINVAL, task.ioctl, file_of_user, NS_MNT_GET_INFO, bytes(16))


def test_an_ioctl_opens_the_owning_user_namespace(
    task: Task, file_of_mnt: int, file_of_user: int
) -> None:
    fd = ioctl(task, file_of_mnt, NS_GET_USERNS)
    assert namespace_behind(task, fd) is task.cred.user_ns
    assert task.fcntl(fd, F_GETFD) == FD_CLOEXEC
    fails_with(errno.EPERM, task.ioctl, file_of_user, NS_GET_USERNS)
    fails_with(errno.EPERM, task.ioctl, file_of_user, NS_GET_PARENT)
    fails_with(errno.EINVAL, task.ioctl, file_of_mnt, NS_GET_PARENT)
    inner = task.clone(CLONE_NEWUSER | CLONE_NEWNS)
    fails_with(errno.EPERM, inner.ioctl, file_of_mnt, NS_GET_USERNS)
    with task.vfs.lock:
        of_inner = task.files.install(open_namespace(task.vfs, inner.cred.user_ns, task.cred))
    parent = ioctl(task, of_inner, NS_GET_PARENT)
    assert namespace_behind(task, parent) is task.cred.user_ns
    task.files.limit = of_inner
    fails_with(errno.EMFILE, task.ioctl, of_inner, NS_GET_PARENT)


def test_ioctls_step_from_one_mount_namespace_to_the_next(
    task: Task, user: Task, file_of_mnt: int, file_of_user: int
) -> None:
    later = [task.clone(CLONE_NEWNS) for _ in range(2)]
    fd = file_of_mnt
    for other in later:
        fd = ioctl(task, fd, NS_MNT_GET_NEXT)
        assert namespace_behind(task, fd) is other.namespace
    fails_with(errno.ENOENT, task.ioctl, fd, NS_MNT_GET_NEXT, bytes(16))
    back = ioctl(task, fd, NS_MNT_GET_PREV)
    assert namespace_behind(task, back) is later[0].namespace
    fails_with(errno.ENOENT, task.ioctl, file_of_mnt, NS_MNT_GET_PREV)
    fails_with(errno.EINVAL, task.ioctl, file_of_user, NS_MNT_GET_NEXT)
    unprivileged = task.clone(cred=Credentials(1000, 1000))
    fails_with(errno.EPERM, unprivileged.ioctl, file_of_user, NS_MNT_GET_NEXT)
    inner = task.clone(CLONE_NEWUSER)
    fails_with(errno.EPERM, inner.ioctl, file_of_mnt, NS_MNT_GET_NEXT)


def test_nothing_is_left_of_nsfs_when_nobody_uses_it(vfs: VirtualFilesystem, task: Task) -> None:
    before = dict(vfs.ledger.live)
    with vfs.lock:
        first = nsfs_path(vfs, task.namespace)
        second = nsfs_path(vfs, task.namespace)
        third = nsfs_path(vfs, task.cred.user_ns)
        assert first.same(second) and not first.same(third)
        assert first.mount is third.mount and first.mount.namespace is None
        assert first.dentry.name == b"mnt:[%d]" % task.namespace.inum
        for path in (first, third, second):
            path.put()
    assert dict(vfs.ledger.live) == before
