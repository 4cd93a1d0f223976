"""What a generator believes that its mount calls have made, so that the next ones mostly succeed.

Nothing here need be exact: locked mounts, busy ones and propagation through several groups are left
out. A wrong guess costs a call that fails, and failing calls are wanted too.
"""

from __future__ import annotations

from itertools import count
from typing import NamedTuple

DIRECTORY, FILE, SYMLINK = "directory", "file", "symlink"
# Names of a place, relative to it; b"" is the place itself.
Names = dict[bytes, str]
_MOST_NAMES = 60
_DEEPEST = 5


def is_below(path: bytes, top: bytes) -> bool:
    """Whether ``path`` is ``top`` or below it. The root is b"", as for all paths in this module."""
    return path == top or path.startswith(top + b"/")


class MountModel:
    """One mount: which part of a filesystem it shows, and who hears of what happens below it."""

    __slots__ = ("group", "hidden", "inner", "locked", "master", "unbindable")

    def __init__(self, inner: bytes = b"", group: int = 0, master: int = 0) -> None:
        # Where its root lies in its filesystem.
        self.inner = inner
        self.group = group
        self.master = master
        self.unbindable = False
        self.locked = False
        # What was at its place before.
        self.hidden: Names = {}

    def copy(self) -> MountModel:
        twin = MountModel(self.inner, self.group, self.master)
        twin.unbindable, twin.locked, twin.hidden = self.unbindable, self.locked, dict(self.hidden)
        return twin


class NamespaceModel:
    """A mount namespace: mounts by path, the topmost last, and the names that can be seen."""

    __slots__ = ("covered", "mounts", "names", "user")

    def __init__(self, user: int = 0) -> None:
        self.user = user
        # Whether something may lie over the root, where its tasks do not look.
        self.covered = False
        self.mounts: dict[bytes, list[MountModel]] = {b"": [MountModel()]}
        self.names: Names = {b"": DIRECTORY}

    def copy(self, user: int) -> NamespaceModel:
        twin = NamespaceModel(user)
        twin.names = dict(self.names)
        twin.covered = self.covered
        twin.mounts = {path: [m.copy() for m in stack] for path, stack in self.mounts.items()}
        if user != self.user:
            for path, stack in twin.mounts.items():
                for mount in stack:
                    mount.master, mount.group = mount.group or mount.master, 0
                    mount.locked = path != b""
        return twin

    def top(self, path: bytes) -> MountModel:
        return self.mounts[path][-1]

    def mount_of(self, path: bytes) -> bytes:
        """The mount point that ``path`` is on, which is itself if it is one."""
        while path not in self.mounts:
            path = path.rpartition(b"/")[0]
        return path

    def parent_of(self, path: bytes) -> bytes:
        """The mount point below which the mount at ``path`` is."""
        stacked = len(self.mounts.get(path, ())) > 1
        return path if stacked or not path else self.mount_of(path.rpartition(b"/")[0])

    def below(self, path: bytes) -> Names:
        return {p[len(path) :]: kind for p, kind in self.names.items() if is_below(p, path)}

    def mounts_below(self, path: bytes) -> list[bytes]:
        return [p for p in self.mounts if is_below(p, path) and p != path]

    def add_name(self, path: bytes, kind: str) -> None:
        if len(self.names) < _MOST_NAMES and path.count(b"/") <= _DEEPEST:
            self.names[path] = kind

    def forget(self, path: bytes) -> None:
        """``path`` and all below it is gone, mounts too."""
        for gone in [p for p in self.names if is_below(p, path)]:
            del self.names[gone]
        for gone in self.mounts_below(path):
            del self.mounts[gone]
        if path:
            self.mounts.pop(path, None)

    def attach(self, path: bytes, mount: MountModel, names: Names) -> None:
        """``mount`` comes to lie at ``path`` (never b"") and shows ``names``."""
        mount.hidden = self.below(path)
        for gone in mount.hidden:
            self.names.pop(path + gone, None)
        self.mounts.setdefault(path, []).append(mount)
        self.names[path] = names.get(b"", DIRECTORY)
        for name, kind in names.items():
            self.add_name(path + name, kind)

    def detach(self, path: bytes) -> None:
        """The topmost mount at ``path`` goes, and all below it."""
        mount = self.top(path)
        lower = self.mounts[path][:-1]
        kind = self.names.get(path, DIRECTORY)
        self.forget(path)
        if lower:
            self.mounts[path] = lower
        self.names[path] = kind
        for name, kind in mount.hidden.items():
            self.add_name(path + name, kind)

    def move(self, source: bytes, target: bytes) -> None:
        """The topmost mount at ``source`` and those below it go to ``target``."""
        names = self.below(source)
        mount = self.top(source)
        moved = {p[len(source) :]: self.mounts[p] for p in self.mounts_below(source)}
        self.detach(source)
        self.attach(target, mount, names)
        self.mounts.update((target + name, stack) for name, stack in moved.items())

    def pivot(self, new: bytes, old: bytes) -> None:
        """What is below ``new`` becomes the tree, and the rest of it goes to ``old`` in there."""
        names = {self.pivoted(p, new, old): kind for p, kind in self.names.items()}
        mounts = {self.pivoted(p, new, old): stack for p, stack in self.mounts.items()}
        self.names, self.mounts = names, mounts

    @staticmethod
    def pivoted(path: bytes, new: bytes, old: bytes) -> bytes:
        """Where ``path`` is after ``pivot(new, old)``."""
        return path[len(new) :] if is_below(path, new) else old[len(new) :] + path


class DirectoriesModel:
    """Root and cwd of a task, which CLONE_FS shares. Paths of its namespace."""

    __slots__ = ("cwd", "root", "shared")

    def __init__(self, root: bytes = b"", cwd: bytes = b"") -> None:
        self.root = root
        self.cwd = cwd
        self.shared = False


class DescriptorModel(NamedTuple):
    """An open descriptor: ``kind`` is directory, file, path, tree, context, mnt or user.

    ``path`` is where it was opened; ``of`` what a detached tree shows, or the namespace meant.
    """

    kind: str
    path: bytes = b""
    of: Names | NamespaceModel | int | None = None


class TaskModel:
    """A task: what it has, its user namespace, and whether it is capable in there."""

    __slots__ = ("capable", "directories", "files", "name", "namespace", "uid", "user")

    def __init__(self, name: str, namespace: NamespaceModel) -> None:
        self.name = name
        self.namespace = namespace
        self.directories = DirectoriesModel()
        self.files: dict[int, DescriptorModel] = {}
        self.uid = 0
        self.user = 0
        self.capable = True

    @property
    def may_mount(self) -> bool:
        return self.capable and self.user in (0, self.namespace.user)

    def opens(self, descriptor: DescriptorModel) -> int:
        fd = next(number for number in count() if number not in self.files)
        self.files[fd] = descriptor
        return fd

    def of_kind(self, *kinds: str) -> list[int]:
        return [fd for fd, descriptor in self.files.items() if descriptor.kind in kinds]


class Model:
    """All tasks and namespaces."""

    def __init__(self) -> None:
        first = NamespaceModel()
        self.namespaces = [first]
        self.tasks = {"root": TaskModel("root", first)}
        self.clones = 0
        self._groups = count(1)
        self._users = count(1)

    def new_user(self) -> int:
        return next(self._users)

    def copy_namespace(self, namespace: NamespaceModel, user: int) -> NamespaceModel:
        twin = namespace.copy(user)
        self.namespaces.append(twin)
        return twin

    def share(self, mount: MountModel) -> None:
        if not mount.group:
            mount.group = next(self._groups)
        mount.unbindable = False

    def receivers(
        self, namespace: NamespaceModel, path: bytes
    ) -> list[tuple[NamespaceModel, bytes, bool]]:
        """Where a mount at ``path`` shows up too: namespace, path, whether as a peer."""
        parent = namespace.mount_of(path.rpartition(b"/")[0])
        source = namespace.top(parent)
        if not source.group:
            return []
        inner = source.inner + path[len(parent) :]
        found = []
        for other in self.namespaces:
            for place, stack in other.mounts.items():
                mount = stack[-1]
                if source.group not in (mount.group, mount.master) or mount is source:
                    continue
                there = place + inner[len(mount.inner) :]
                if (
                    is_below(inner, mount.inner)
                    and other.mount_of(there.rpartition(b"/")[0]) == place
                ):
                    found.append((other, there, mount.group == source.group))
        return found

    def attach(
        self, namespace: NamespaceModel, path: bytes, mount: MountModel, names: Names
    ) -> None:
        """Mount at ``path`` and wherever it propagates to."""
        receivers = self.receivers(namespace, path)
        if namespace.top(namespace.mount_of(path.rpartition(b"/")[0])).group:
            self.share(mount)
        namespace.attach(path, mount, names)
        for other, there, peer in receivers:
            if other is not namespace or there != path:
                copy = mount.copy()
                if not peer:
                    copy.group, copy.master = 0, mount.group
                if there:
                    other.attach(there, copy, names)

    def detach(self, namespace: NamespaceModel, path: bytes) -> None:
        """Unmount what is at ``path``, and what propagation takes with it."""
        receivers = self.receivers(namespace, path)
        namespace.detach(path)
        for other, there, _ in receivers:
            if there and there in other.mounts and (other is not namespace or there != path):
                other.detach(there)
