"""Sequences of mount calls at random, by several tasks in several namespaces.

Weighted so that what is interesting is reached: chains of shared and slave mounts, binds of a tree
into itself, namespaces of namespaces and of other users, detached trees, lazy unmounts of what is
still open. ``mount_model`` says what probably exists, which makes most calls succeed.

Nothing here depends on what two systems may do differently: no numbers of devices or mounts go back
in as arguments, directories are listed whole and from their start, nothing blocks.
"""

from __future__ import annotations

from collections.abc import Callable

from harness.testbed import generate_mount_fds as mount_fds
from harness.testbed.choices import Choices
from harness.testbed.mount_model import (
    DIRECTORY,
    FILE,
    SYMLINK,
    DescriptorModel,
    DirectoriesModel,
    MountModel,
    NamespaceModel,
    TaskModel,
    is_below,
)
from harness.testbed.mount_sequence import EMPTY, NAMES, PROPAGATION, MountSequence
from harness.testbed.step import Step
from vfs import abi

_TASK_NAMES = ("kid", "alice", "twin", "bob", "late")
_USER = 1000
_FILES = (b"f", b"g")
_FLAGS = (
    abi.MS_RDONLY, abi.MS_NOSUID, abi.MS_NODEV, abi.MS_NOEXEC, abi.MS_NOATIME, abi.MS_NODIRATIME,
    abi.MS_RELATIME, abi.MS_STRICTATIME, abi.MS_NOSYMFOLLOW,
)  # fmt: skip
_TMPFS_DATA = (
    (12, "mode=755"), (4, None), (4, "size=1m,mode=777"), (2, "mode=1777,nr_inodes=20"),
    (1, "size=1m,uid=1000,gid=1000"), (1, "bogus=1"), (1, "mode=9"),
)  # fmt: skip
_BAD_DATA = ("bogus=1", "mode=9")
_UMOUNT_FLAGS = (
    (50, 0), (30, abi.MNT_DETACH), (7, abi.MNT_EXPIRE), (7, abi.UMOUNT_NOFOLLOW),
    (3, abi.MNT_FORCE), (2, abi.MNT_DETACH | abi.MNT_EXPIRE), (1, 64),
)  # fmt: skip
_STATMOUNT_MASKS = (
    abi.STATMOUNT_MNT_BASIC | abi.STATMOUNT_PROPAGATE_FROM,
    abi.STATMOUNT_MNT_ROOT | abi.STATMOUNT_MNT_POINT,
    abi.STATMOUNT_SB_BASIC | abi.STATMOUNT_FS_TYPE | abi.STATMOUNT_SB_SOURCE,
    abi.STATMOUNT_MNT_OPTS,
    abi.STATMOUNT_MNT_BASIC,
)
_RENAME_FLAGS = (0, 0, 0, abi.RENAME_EXCHANGE, abi.RENAME_NOREPLACE)


Maker = Callable[[MountSequence], None]


# Mounts by mount(2) and umount2(2).


def _mount_tmpfs(s: MountSequence) -> None:
    path = s.place()
    data = s.weighted(_TMPFS_DATA)
    flags = s.some_of(_FLAGS, 25)
    s.add("mount", "none", s.show(path), "tmpfs", flags, data)
    if s.task.may_mount and path and data not in _BAD_DATA:
        s.model.attach(s.namespace, path, MountModel(), EMPTY)
        if s.chance(60) and not flags & abi.MS_RDONLY:
            s.make_directory(path + b"/" + s.one_of(NAMES[:2]))


def _bind(s: MountSequence) -> None:
    kind = FILE if s.chance(12) else DIRECTORY
    if kind == FILE or not s.chance(40):
        source = s.some(kind)
    else:
        source = s.mount_point(False)
    target = s.place(kind if not s.chance(4) else DIRECTORY)
    flags = abi.MS_BIND | (abi.MS_REC if s.chance(22) else 0) | s.some_of(_FLAGS, 5)
    s.add("mount", s.show(source), s.show(target), None, flags, None)
    s.bound(source, target, bool(flags & abi.MS_REC))


def _move(s: MountSequence) -> None:
    if len(s.namespace.mounts) < 2 and not s.chance(5):
        _mount_tmpfs(s)
        return
    source, target = s.movable(), s.place()
    if is_below(target, source) and not s.chance(10):
        target = s.place()
    s.add("mount", s.show(source), s.show(target), None, abi.MS_MOVE | s.some_of(_FLAGS, 3), None)
    s.moved(source, target)


def _propagation(s: MountSequence) -> None:
    path = s.mount_point(False) if not s.chance(5) else s.directory()
    s.propagate(path, s.weighted(PROPAGATION) | (abi.MS_REC if s.chance(30) else 0))


def _slave_chain(s: MountSequence) -> None:
    """A copy of a shared mount that hears of it and has peers of its own."""
    slaves = [p for p, stack in s.namespace.mounts.items() if stack[-1].master]
    source = s.one_of(slaves) if slaves and s.chance(50) else s.mount_point(False)
    if not s.namespace.top(s.namespace.mount_of(source)).group:
        s.propagate(source, abi.MS_SHARED)
    target = s.place()
    s.add("mount", s.show(source), s.show(target), None, abi.MS_BIND, None)
    s.bound(source, target)
    if target in s.namespace.mounts:
        s.propagate(target, abi.MS_SLAVE)
        if s.chance(70):
            s.propagate(target, abi.MS_SHARED)


def _remount(s: MountSequence) -> None:
    flags = abi.MS_REMOUNT | (abi.MS_BIND if s.chance(70) else 0) | s.some_of(_FLAGS, 70)
    data = None if flags & abi.MS_BIND else s.one_of((None, None, "size=2m", "mode=700", "bogus"))
    path = s.mount_point(False) if not s.chance(5) else s.directory()
    s.add("mount", None, s.show(path), None, flags, data)


def _odd_mount(s: MountSequence) -> None:
    """Combinations of flags and arguments that make no sense."""
    flags = s.one_of(
        (abi.MS_BIND | abi.MS_MOVE, abi.MS_MOVE | abi.MS_SHARED, abi.MS_REMOUNT | abi.MS_SHARED,
         abi.MS_BIND | abi.MS_SLAVE, abi.MS_NOUSER, abi.MS_BIND, 0)
    )  # fmt: skip
    source = s.one_of((None, b"", b"none", b"/nowhere", s.show(s.directory())))
    s.add("mount", source, s.show(s.place()), s.one_of((None, "tmpfs", "nofs", "")), flags, None)


def _umount(s: MountSequence) -> None:
    path = s.mount_point() if not s.chance(6) else s.directory()
    if path == s.task.directories.root and not s.chance(15):
        # Without its root mount a sequence can do little more.
        _mount_tmpfs(s)
        return
    flags = s.weighted(_UMOUNT_FLAGS)
    s.unmount(path, flags)
    if flags == abi.MNT_EXPIRE and s.chance(60):
        # The second time it is expired.
        s.unmount(path, flags)


def _lazy(s: MountSequence) -> None:
    """Something stays open or a cwd in what is unmounted, and is worked with."""
    path = s.mount_point()
    if path == s.task.directories.root:
        _mount_tmpfs(s)
        return
    inside = [p for p, k in s.namespace.names.items() if k == DIRECTORY and is_below(p, path)]
    where = s.one_of(inside) if inside else path
    if s.chance(50):
        s.add("chdir", s.show(where))
        s.task.directories.cwd = where
    else:
        s.open(where, abi.O_DIRECTORY, "directory")
    s.unmount(path, abi.MNT_DETACH if s.chance(85) else 0)
    for _ in range(s.choices.integer(1, 2)):
        s.one_of((_relative, _relative, _umount, _mount_tmpfs, _bind))(s)


# Names and files.


def _mkdir(s: MountSequence) -> None:
    s.make_directory(s.new())


def _make_file(s: MountSequence) -> None:
    path = s.mount_point(False) if s.chance(60) else s.directory()
    path += b"/" + s.one_of(_FILES)
    s.namespace.add_name(path, FILE)
    if s.chance(50):
        s.add("mknod", s.show(path), abi.S_IFREG | 0o644, 0)
    else:
        s.open(path, abi.O_CREAT | abi.O_RDWR, "file")


def _symlink(s: MountSequence) -> None:
    path = s.directory() + b"/l"
    s.add("symlink", s.show(s.directory()), s.show(path))
    s.namespace.add_name(path, SYMLINK)


def _remove(s: MountSequence) -> None:
    """Mostly mount points, which in other namespaces do not hold a name in its place."""
    removable = s.removable()
    path = s.some(DIRECTORY, FILE, SYMLINK) if s.chance(75) else s.mount_point()
    if removable and s.chance(65):
        path = s.one_of(removable)
    call = "rmdir" if s.namespace.names.get(path, DIRECTORY) == DIRECTORY else "unlink"
    s.add(call, s.show(path))
    if path and path not in s.namespace.mounts and len(s.namespace.below(path)) < 2:
        s.namespace.forget(path)


def _rename(s: MountSequence) -> None:
    old = s.some(DIRECTORY, FILE) if s.chance(75) else s.mount_point()
    new, flags = s.new(), s.one_of(_RENAME_FLAGS)
    if s.chance(75):
        new = old.rpartition(b"/")[0] + b"/" + s.one_of(NAMES)
    s.add("renameat2", abi.AT_FDCWD, s.show(old), abi.AT_FDCWD, s.show(new), flags)
    namespace = s.namespace
    movable = old in namespace.names and old not in namespace.mounts and new not in namespace.names
    same = namespace.mount_of(old) == namespace.mount_of(new)
    if movable and same and not is_below(new, old) and not flags & abi.RENAME_EXCHANGE:
        names = namespace.below(old)
        namespace.forget(old)
        for name, kind in names.items():
            namespace.add_name(new + name, kind)


def _open_some(s: MountSequence) -> None:
    match s.weighted(((4, "directory"), (3, "path"), (2, "file"))):
        case "directory":
            s.open(s.directory(), abi.O_DIRECTORY, "directory")
        case "path":
            s.open(s.some(DIRECTORY, FILE), abi.O_PATH, "path")
        case _:
            s.open(s.some(FILE), s.one_of((abi.O_RDONLY, abi.O_RDWR)), "file")


def _close(s: MountSequence) -> None:
    if not s.task.files and not s.chance(5):
        _open_some(s)
        return
    fd = s.descriptor("directory", "path", "file", "tree", "context", "mnt", "user")
    s.add("close", fd)
    s.task.files.pop(fd, None)


def _relative(s: MountSequence) -> None:
    """From an open directory or the cwd on, wherever that is by now."""
    fd = abi.AT_FDCWD
    if s.task.of_kind("directory", "path", "tree") and s.chance(75):
        fd = s.descriptor("directory", "path", "tree")
    path = s.one_of((b".", b"..", b"a", b"../..", b"../a", b"b", b"f", b""))
    match s.weighted(
        ((3, "stat"), (2, "getcwd"), (2, "open"), (1, "mkdir"), (1, "chdir"), (1, "up"))
    ):
        case "stat":
            flags = abi.AT_EMPTY_PATH if not path else 0
            s.add("statx", fd, path, flags, abi.STATX_BASIC_STATS | abi.STATX_MNT_ID_UNIQUE)
        case "getcwd":
            s.add("getcwd")
        case "open":
            s.add("openat", fd, path, abi.O_PATH, 0)
            s.task.opens(DescriptorModel("path"))
        case "mkdir":
            s.add("mkdirat", fd, path, 0o755)
        case "chdir" if fd >= 0:
            s.add("fchdir", fd)
        case _:
            s.add("chdir", b"..")
            s.task.directories.cwd = s.task.directories.cwd.rpartition(b"/")[0]


def _look(s: MountSequence) -> None:
    path = s.show(s.mount_point(False) if s.chance(60) else s.some(DIRECTORY, FILE, SYMLINK))
    match s.one_of(("stat", "statx", "statmount", "listmount", "names", "readlink", "statfs")):
        case "stat":
            s.add("stat", path)
        case "statx":
            mask = abi.STATX_BASIC_STATS | abi.STATX_MNT_ID_UNIQUE
            s.add("statx", abi.AT_FDCWD, path, s.some_of((abi.AT_SYMLINK_NOFOLLOW,), 30), mask)
        case "statmount":
            s.add("statmount_at", path, s.one_of(_STATMOUNT_MASKS))
        case "listmount":
            s.add("listmount_at", path, s.some_of((abi.LISTMOUNT_REVERSE,), 30))
        case "names":
            if not s.task.of_kind("directory"):
                s.open(s.directory(), abi.O_DIRECTORY, "directory")
            fd = s.descriptor("directory")
            s.add("lseek", fd, 0, abi.SEEK_SET)
            s.add("getdents64", fd, 65536)
            s.add("lseek", fd, 0, abi.SEEK_SET)
        case "statfs":
            s.add("statfs", path)
        case _:
            s.add("readlink", path)


# Roots, tasks and namespaces.


def _chdir(s: MountSequence) -> None:
    fds = s.task.of_kind("directory", "path", "tree")
    if fds and s.chance(35):
        fd = s.one_of(fds)
        s.add("fchdir", fd)
        s.task.directories.cwd = s.task.files[fd].path
    else:
        path = s.directory()
        s.add("chdir", s.show(path))
        s.task.directories.cwd = path


def _chroot(s: MountSequence) -> None:
    path = s.directory()
    s.add("chroot", s.show(path))
    # As long as nobody else lives by this root, which the model would have to follow.
    if s.task.capable:
        s.task.directories.root = path


def _leave_chroot(s: MountSequence) -> None:
    """Back to the top, by the cwd that chroot(2) left outside or by "..", if that works."""
    s.add("chdir", s.one_of((b"..", b"../..", b"/..")))
    s.add("chroot", b".")


def _pivot_root(s: MountSequence) -> None:
    task, namespace = s.task, s.namespace
    root = task.directories.root
    candidates = [path for path in namespace.mounts if is_below(path, root) and path != root]
    if not candidates or s.chance(10):
        s.add("pivot_root", s.show(s.directory()), s.show(s.directory()))
        return
    new = s.one_of(candidates)
    inside = [p for p, k in namespace.names.items() if k == DIRECTORY and is_below(p, new)]
    old = s.one_of(inside) if inside and s.chance(50) else new
    involved = dict.fromkeys((namespace.parent_of(new), namespace.mount_of(old), b""))
    if not s.chance(10):
        for place in involved:
            if namespace.top(place).group:
                s.propagate(place, abi.MS_PRIVATE)
    if old == new:
        s.add("chdir", s.show(new))
        s.add("pivot_root", b".", b".")
        s.add("umount2", b".", abi.MNT_DETACH)
    else:
        s.add("pivot_root", s.show(new), s.show(old))
    shared = any(namespace.top(place).group for place in involved)
    if not task.may_mount or root or shared or namespace.top(new).locked:
        return
    if old == new:
        for path in [p for p in namespace.names if not is_below(p, new)]:
            del namespace.names[path]
        for path in [p for p in namespace.mounts if not is_below(p, new)]:
            del namespace.mounts[path]
    namespace.pivot(new, old)
    concerned = [t.directories for t in s.model.tasks.values() if t.namespace is namespace]
    for directories in {id(directories): directories for directories in concerned}.values():
        if directories.root:
            directories.root = namespace.pivoted(directories.root, new, old)
        directories.cwd = directories.root


def _clone(s: MountSequence) -> None:
    if s.model.clones == len(_TASK_NAMES):
        return
    task = s.task
    flags = s.weighted(
        ((35, abi.CLONE_NEWNS), (25, 0), (10, abi.CLONE_FS), (8, abi.CLONE_FILES),
         (22, abi.CLONE_NEWUSER | abi.CLONE_NEWNS), (4, abi.CLONE_NEWUSER))
    )  # fmt: skip
    if not task.may_mount:
        # Who may not have a namespace gets no task either, and later steps could not name it.
        flags &= ~abi.CLONE_NEWNS if not flags & abi.CLONE_NEWUSER else -1
    if task.directories.root or task.namespace.covered:
        # Nor may who is chrooted have a user namespace; who is below another root mount is.
        flags &= ~abi.CLONE_NEWUSER
        flags &= ~abi.CLONE_NEWNS if not task.may_mount else -1
    uid = task.uid
    if task.uid == 0 and task.user == 0 and s.chance(30):
        uid = _USER
    groups = (uid,) if uid else ()
    name = _TASK_NAMES[s.model.clones]
    s.model.clones += 1
    s.add("clone", name, flags, uid, uid, groups)
    child = TaskModel(name, task.namespace)
    child.uid, child.user, child.capable = uid, task.user, task.capable and uid == task.uid
    child.files = task.files if flags & abi.CLONE_FILES else dict(task.files)
    if flags & abi.CLONE_FS:
        child.directories = task.directories
        child.directories.shared = True
    else:
        child.directories = DirectoriesModel(task.directories.root, task.directories.cwd)
    _enter_new(s, child, flags)
    s.model.tasks[child.name] = child
    s.task = child if s.chance(50) else task


def _enter_new(s: MountSequence, task: TaskModel, flags: int) -> None:
    if flags & abi.CLONE_NEWUSER:
        task.user, task.capable = s.model.new_user(), True
    if flags & abi.CLONE_NEWNS:
        task.namespace = s.model.copy_namespace(task.namespace, task.user)


def _unshare(s: MountSequence) -> None:
    flags = s.weighted(
        ((50, abi.CLONE_NEWNS), (15, abi.CLONE_FS), (5, abi.CLONE_FILES),
         (20, abi.CLONE_NEWUSER | abi.CLONE_NEWNS), (5, abi.CLONE_NEWUSER))
    )  # fmt: skip
    s.add("unshare", flags)
    task = s.task
    directories = task.directories
    task.directories = DirectoriesModel(directories.root, directories.cwd)
    if flags & abi.CLONE_FILES:
        task.files = dict(task.files)
    if not directories.root if flags & abi.CLONE_NEWUSER else task.may_mount:
        _enter_new(s, task, flags)


def _setns(s: MountSequence) -> None:
    """Into another task's namespace."""
    other = s.one_of(list(s.model.tasks.values()))
    kind, flag = ("mnt", abi.CLONE_NEWNS) if s.chance(85) else ("user", abi.CLONE_NEWUSER)
    fds = s.task.of_kind("mnt", "user")
    if not fds or s.chance(50):
        s.add("nsfd", other.name, kind)
        of: NamespaceModel | int = other.namespace if kind == "mnt" else other.user
        fds = [s.task.opens(DescriptorModel(kind, of=of))]
    fd = s.one_of(fds)
    nstype = s.weighted(((6, 0), (6, flag), (1, abi.CLONE_NEWNS), (1, abi.CLONE_FS)))
    s.add("setns", fd, nstype)
    entered = s.task.files[fd].of
    if isinstance(entered, NamespaceModel) and s.task.capable and not s.task.directories.shared:
        s.task.namespace = entered
        s.task.directories = DirectoriesModel()


def _exit(s: MountSequence) -> None:
    others = [task for task in s.model.tasks.values() if task.name != "root"]
    if not others:
        return
    s.task = s.one_of(others)
    s.add("exit")
    gone = s.model.tasks.pop(s.task.name)
    s.task = s.model.tasks["root"]
    if gone.namespace not in [task.namespace for task in s.model.tasks.values()]:
        s.model.namespaces.remove(gone.namespace)


_STEPS: tuple[tuple[int, Maker], ...] = (
    (90, _mount_tmpfs), (110, _bind), (40, _move), (80, _propagation), (35, _slave_chain),
    (40, _remount), (15, _odd_mount), (85, _umount), (35, _lazy),
    (50, _mkdir), (25, _make_file), (15, _symlink), (35, _remove), (20, _rename),
    (25, _open_some), (20, _close), (35, _relative), (45, _look),
    (25, _chdir), (12, _chroot), (6, _leave_chroot), (18, _pivot_root),
    (50, _clone), (30, _unshare), (25, _setns), (8, _exit),
    (50, mount_fds.open_tree), (25, mount_fds.attach), (25, mount_fds.move_mount),
    (12, mount_fds.set_group), (40, mount_fds.mount_setattr), (25, mount_fds.fsopen),
    (15, mount_fds.fspick),
)  # fmt: skip


def begin(s: MountSequence) -> None:
    """A few directories and mounts, so that the first steps have something to work on."""
    for name in NAMES[: s.choices.integer(2, 3)]:
        s.make_directory(b"/" + name)
    if s.chance(60):
        s.propagate(b"", abi.MS_SHARED | (abi.MS_REC if s.chance(50) else 0))
    for _ in range(s.choices.integer(0, 2)):
        _mount_tmpfs(s)
    if s.chance(30):
        _clone(s)


def extend(s: MountSequence) -> None:
    """Add a step, or a few that belong together; rarely none."""
    if len(s.model.tasks) > 1 and s.chance(35):
        tasks = list(s.model.tasks.values())
        able = [task for task in tasks if task.may_mount]
        s.task = s.one_of(able if able and s.chance(85) else tasks)
    s.weighted(_STEPS)(s)


def mount_sequence(choices: Choices, max_steps: int) -> list[Step]:
    """A sequence of at most ``max_steps`` steps."""
    s = MountSequence(choices)
    wanted = choices.integer(min(max_steps, max(max_steps // 3, 1)), max_steps)
    begin(s)
    while len(s.steps) < wanted:
        extend(s)
    return s.steps[:wanted]
