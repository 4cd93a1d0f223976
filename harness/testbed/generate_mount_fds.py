"""The steps of ``generate_mounts`` that mount by descriptors: open_tree(2), fsopen(2) and so on."""

from __future__ import annotations

from harness.testbed.mount_model import DIRECTORY, FILE, DescriptorModel, MountModel
from harness.testbed.mount_sequence import EMPTY, PROPAGATION, MountSequence
from vfs import abi

_ATTRS = (
    abi.MOUNT_ATTR_RDONLY, abi.MOUNT_ATTR_NOSUID, abi.MOUNT_ATTR_NODEV, abi.MOUNT_ATTR_NOEXEC,
    abi.MOUNT_ATTR_NOATIME, abi.MOUNT_ATTR_STRICTATIME, abi.MOUNT_ATTR_NODIRATIME,
    abi.MOUNT_ATTR_NOSYMFOLLOW,
)  # fmt: skip
# Of the bits for access times these mean something.
_ATIMES = (abi.MOUNT_ATTR_RELATIME, abi.MOUNT_ATTR_NOATIME, abi.MOUNT_ATTR_STRICTATIME)


def open_tree(s: MountSequence) -> None:
    path = s.mount_point(False) if s.chance(60) else s.some(DIRECTORY, FILE)
    flags = abi.OPEN_TREE_CLONE if s.chance(80) else 0
    flags |= abi.AT_RECURSIVE if s.chance(30 if flags else 3) else 0
    flags |= s.some_of((abi.OPEN_TREE_CLOEXEC, abi.AT_SYMLINK_NOFOLLOW), 8)
    fds = s.task.of_kind("tree")
    if fds and s.chance(10):
        fd = s.one_of(fds)
        s.add("open_tree", fd, b"", flags | abi.AT_EMPTY_PATH)
        s.task.opens(s.task.files[fd])
        return
    refused = flags & abi.AT_RECURSIVE and not flags & abi.OPEN_TREE_CLONE
    if flags & abi.OPEN_TREE_CLONE:
        refused = not s.task.may_mount or not s.may_clone(path, bool(flags & abi.AT_RECURSIVE))
    if s.chance(15):
        attributes = _attributes(s)
        s.add("open_tree_attr", abi.AT_FDCWD, s.show(path), flags, attributes)
        refused = refused or _contradictory(attributes)
    else:
        s.add("open_tree", abi.AT_FDCWD, s.show(path), flags)
    if refused:
        return
    kind = "tree" if flags & abi.OPEN_TREE_CLONE else "path"
    s.task.opens(DescriptorModel(kind, path, s.namespace.below(path)))
    if kind == "tree" and s.chance(60):
        attach(s)


def attach(s: MountSequence) -> None:
    """A detached tree to a place, or to one in another detached tree."""
    trees = s.task.of_kind("tree")
    if not trees and not s.chance(5):
        open_tree(s)
        return
    fd = s.descriptor("tree")
    tree = s.task.files.get(fd)
    flags = abi.MOVE_MOUNT_F_EMPTY_PATH
    if len(trees) > 1 and s.chance(35):
        other = s.one_of(trees)
        flags |= abi.MOVE_MOUNT_T_EMPTY_PATH if s.chance(60) else 0
        path = b"" if flags & abi.MOVE_MOUNT_T_EMPTY_PATH else s.one_of((b"a", b"b", b"."))
        s.add("move_mount", fd, b"", other, path, flags)
        return
    names = tree.of if tree and isinstance(tree.of, dict) else EMPTY
    if s.chance(15):
        target = s.mount_point()
        flags |= abi.MOVE_MOUNT_BENEATH
    else:
        target = s.place(names.get(b"", DIRECTORY))
    s.add("move_mount", fd, b"", abi.AT_FDCWD, s.show(target), flags)
    if s.task.may_mount and target and not flags & abi.MOVE_MOUNT_BENEATH:
        s.model.attach(s.namespace, target, MountModel(), names)
        if tree:
            s.task.files[fd] = DescriptorModel("path", target)


def move_mount(s: MountSequence) -> None:
    if len(s.namespace.mounts) < 2 and not s.chance(5):
        open_tree(s)
        return
    source, target = s.movable(), s.place()
    flags = s.weighted(
        ((6, 0), (3, abi.MOVE_MOUNT_BENEATH), (4, abi.MOVE_MOUNT_SET_GROUP),
         (1, abi.MOVE_MOUNT_F_SYMLINKS | abi.MOVE_MOUNT_T_SYMLINKS), (1, 0x400),
         (1, abi.MOVE_MOUNT_BENEATH | abi.MOVE_MOUNT_SET_GROUP))
    )  # fmt: skip
    if flags & (abi.MOVE_MOUNT_BENEATH | abi.MOVE_MOUNT_SET_GROUP):
        target = s.mount_point()
    s.add("move_mount", abi.AT_FDCWD, s.show(source), abi.AT_FDCWD, s.show(target), flags)
    if flags in (0, abi.MOVE_MOUNT_F_SYMLINKS | abi.MOVE_MOUNT_T_SYMLINKS):
        s.moved(source, target)


def set_group(s: MountSequence) -> None:
    """A bind that joins the group of what it shows, which is what the flag is there for."""
    mounts = s.namespace.mounts.items()
    shared = [path for path, stack in mounts if stack[-1].group or stack[-1].master]
    source = s.one_of(shared) if shared else s.mount_point(False)
    target = s.place()
    s.add("mount", s.show(source), s.show(target), None, abi.MS_BIND, None)
    s.bound(source, target)
    s.propagate(target, s.weighted(((6, abi.MS_PRIVATE), (2, abi.MS_UNBINDABLE))))
    flags = abi.MOVE_MOUNT_SET_GROUP
    s.add("move_mount", abi.AT_FDCWD, s.show(source), abi.AT_FDCWD, s.show(target), flags)
    if source in s.namespace.mounts and target in s.namespace.mounts:
        s.namespace.top(target).group = s.namespace.top(source).group


def _attributes(s: MountSequence) -> tuple[int, int, int, int]:
    added, cleared = s.some_of(_ATTRS, 55), s.some_of(_ATTRS, 35)
    if (added | cleared) & abi.MOUNT_ATTR__ATIME and not s.chance(15):
        cleared |= abi.MOUNT_ATTR__ATIME
    propagation = s.weighted(PROPAGATION) if s.chance(40) else 0
    return added, cleared, propagation, 0


def _contradictory(attributes: tuple[int, int, int, int]) -> bool:
    added, cleared, propagation, _ = attributes
    atime = added & abi.MOUNT_ATTR__ATIME
    return (
        propagation & (propagation - 1) != 0
        or atime not in _ATIMES
        or cleared & abi.MOUNT_ATTR__ATIME
        not in ((0, abi.MOUNT_ATTR__ATIME) if not atime else (abi.MOUNT_ATTR__ATIME,))
    )


def mount_setattr(s: MountSequence) -> None:
    attributes = _attributes(s)
    flags = abi.AT_RECURSIVE if s.chance(40) else 0
    trees = s.task.of_kind("tree", "path")
    if trees and s.chance(35):
        s.add("mount_setattr", s.one_of(trees), b"", flags | abi.AT_EMPTY_PATH, attributes)
        return
    path = s.mount_point(False) if not s.chance(6) else s.directory()
    s.add("mount_setattr", abi.AT_FDCWD, s.show(path), flags, attributes)
    s.propagated(path, attributes[2] | (abi.MS_REC if flags else 0))


def fsopen(s: MountSequence) -> None:
    """A new mount in the five calls that it takes, some of them wrong."""
    fstype = s.weighted(((14, "tmpfs"), (1, "nofs")))
    flags = s.weighted(((12, 0), (2, abi.FSOPEN_CLOEXEC), (1, 2)))
    s.add("fsopen", fstype, flags)
    if fstype == "nofs" or flags == 2 or not s.task.may_mount:
        return
    fd = s.task.opens(DescriptorModel("context"))
    for _ in range(s.choices.integer(0, 2)):
        key, value = s.one_of((("mode", "755"), ("size", "1m"), ("source", "here"), ("bogus", "1")))
        s.add("fsconfig", fd, abi.FSCONFIG_SET_STRING, key, value, 0)
    if s.chance(15):
        s.add("fsconfig", fd, abi.FSCONFIG_SET_FLAG, s.one_of(("ro", "inode64", "huh")), None, 0)
    created = not s.chance(6)
    if created:
        create = abi.FSCONFIG_CMD_CREATE if s.chance(85) else abi.FSCONFIG_CMD_CREATE_EXCL
        s.add("fsconfig", fd, create, None, None, 0)
    flags = s.weighted(((12, 0), (2, abi.FSMOUNT_CLOEXEC), (1, 2)))
    attributes = s.some_of(_ATTRS, 30)
    s.add("fsmount", fd, flags, attributes)
    made = created and flags != 2 and attributes & abi.MOUNT_ATTR__ATIME in _ATIMES
    if made:
        s.task.opens(DescriptorModel("tree", of=EMPTY))
    if s.chance(60):
        s.add("close", fd)
        s.task.files.pop(fd)
    if made and s.chance(75):
        attach(s)


def fspick(s: MountSequence) -> None:
    """A superblock reconfigured, which the mount's root stands for."""
    path = s.mount_point(False) if not s.chance(8) else s.directory()
    flags = s.weighted(
        ((12, 0), (2, abi.FSPICK_CLOEXEC), (1, abi.FSPICK_NO_AUTOMOUNT), (1, 64))
    )  # fmt: skip
    s.add("fspick", abi.AT_FDCWD, s.show(path), flags)
    if path not in s.namespace.mounts or flags == 64 or not s.task.may_mount:
        return
    fd = s.task.opens(DescriptorModel("context"))
    match s.one_of(("ro", "rw", "size", "none")):
        case "size":
            s.add("fsconfig", fd, abi.FSCONFIG_SET_STRING, "size", "2m", 0)
        case "ro" | "rw" as key:
            s.add("fsconfig", fd, abi.FSCONFIG_SET_FLAG, key, None, 0)
        case _:
            pass
    s.add("fsconfig", fd, abi.FSCONFIG_CMD_RECONFIGURE, None, None, 0)
    if s.chance(70):
        s.add("close", fd)
        s.task.files.pop(fd)
