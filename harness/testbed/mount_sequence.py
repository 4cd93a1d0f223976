"""A sequence of mount calls being made: who acts, and which paths and descriptors it may name."""

from __future__ import annotations

from typing import Any

from harness.testbed.choices import Choices
from harness.testbed.mount_model import (
    DIRECTORY,
    DescriptorModel,
    Model,
    MountModel,
    Names,
    NamespaceModel,
    is_below,
)
from harness.testbed.step import Step, make_step
from vfs import abi

NAMES = (b"a", b"b", b"c", b"d")
PROPAGATION = (
    (45, abi.MS_SHARED), (28, abi.MS_SLAVE), (15, abi.MS_PRIVATE), (8, abi.MS_UNBINDABLE),
    (2, abi.MS_SHARED | abi.MS_SLAVE), (2, abi.MS_PRIVATE | abi.MS_RDONLY),
)  # fmt: skip
EMPTY: Names = {b"": DIRECTORY}


class MountSequence:
    """The steps so far, the model of what they have made, and the task whose turn it is.

    Paths are absolute ones of the task's namespace, in which the root is b""; ``show`` makes them
    what the task may say.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.one_of = choices.one_of
        self.chance = choices.chance
        self.weighted = choices.weighted
        self.model = Model()
        self.task = self.model.tasks["root"]
        self.steps: list[Step] = []

    @property
    def namespace(self) -> NamespaceModel:
        return self.task.namespace

    def add(self, call: str, *args: Any) -> None:
        self.steps.append(make_step(self.task.name, call, *args))

    def some(self, *kinds: str) -> bytes:
        """Something that is there, of these kinds, rarely in another namespace only."""
        names = self.namespace.names
        if self.chance(6):
            names = self.one_of(self.model.namespaces).names
        root = self.task.directories.root
        found = [path for path, kind in names.items() if kind in kinds and is_below(path, root)]
        return self.one_of(found) if found else root

    def directory(self) -> bytes:
        return self.some(DIRECTORY)

    def mount_point(self, other_than_root: bool = True) -> bytes:
        """A place with a mount on it."""
        root = self.task.directories.root
        mounts = self.namespace.mounts
        if self.chance(6):
            mounts = self.one_of(self.model.namespaces).mounts
        found = [path for path in mounts if is_below(path, root)]
        if other_than_root and len(found) > 1 and not self.chance(5):
            found = [path for path in found if path != root]
        return self.one_of(found) if found else root

    def movable(self) -> bytes:
        """A mount point whose mount may go elsewhere, most often: out of a shared one none may."""
        namespace, root = self.namespace, self.task.directories.root
        found = [
            path
            for path, stack in namespace.mounts.items()
            if path != root and is_below(path, root) and not stack[-1].locked
        ]
        if not found or self.chance(5):
            return self.mount_point()
        free = [path for path in found if not namespace.top(namespace.parent_of(path)).group]
        if free and self.chance(60):
            return self.one_of(free)
        path = self.one_of(found)
        parent = namespace.parent_of(path)
        if namespace.top(parent).group and self.chance(75):
            self.propagate(parent, self.one_of((abi.MS_PRIVATE, abi.MS_SLAVE)))
        return path

    def removable(self) -> list[bytes]:
        """Directories that are mount points elsewhere but not here, or bound somewhere."""
        namespace = self.namespace
        elsewhere = {p: None for other in self.model.namespaces for p in other.mounts}
        stacks = namespace.mounts.values()
        bound = {mount.inner: None for stack in stacks for mount in stack if mount.inner}
        found = []
        for path in namespace.names:
            place = namespace.mount_of(path)
            inner = namespace.top(place).inner + path[len(place) :]
            if path != place and (path in elsewhere or inner in bound):
                found.append(path)
        return found

    def place(self, kind: str = DIRECTORY) -> bytes:
        """Where something may be mounted: most often not yet a mount point, and not the root."""
        root = self.task.directories.root
        if self.chance(3):
            self.namespace.covered = True
            return root
        names = self.namespace.names
        found = [p for p, k in names.items() if k == kind and p != root and is_below(p, root)]
        free = [p for p in found if p not in self.namespace.mounts]
        if free and not self.chance(15):
            found = free
        return self.one_of(found) if found else self.directory()

    def new(self) -> bytes:
        """A directory's name for something, which most often does not exist."""
        top = self.mount_point(False) if self.chance(50) else self.directory()
        names = [name for name in NAMES if top + b"/" + name not in self.namespace.names]
        return top + b"/" + self.one_of(names if names and not self.chance(8) else NAMES)

    def show(self, path: bytes) -> bytes:
        """The path as the task may say it."""
        directories = self.task.directories
        if not is_below(path, directories.root):
            return path or b"/"
        said = path[len(directories.root) :] or b"/"
        if self.chance(15) and is_below(path, directories.cwd):
            said = path[len(directories.cwd) + 1 :] or b"."
        if self.chance(4):
            forms = [b"%s/", b"%s/.", b"%s/..", b"l"]
            if said.startswith(b"/"):
                forms += [b"/a/..%s", b"/..%s"]
            said = self.one_of(forms).replace(b"%s", said)
        return said

    def descriptor(self, *kinds: str) -> int:
        """A descriptor of these kinds, rarely any other."""
        found = self.task.of_kind(*kinds)
        if not found or self.chance(5):
            return self.choices.integer(-1, 4)
        return self.one_of(found)

    def some_of(self, options: tuple[int, ...], percent: int) -> int:
        """None of the flags, or with this chance one or two."""
        if not self.chance(percent):
            return 0
        return self.one_of(options) | (self.one_of(options) if self.chance(30) else 0)

    def make_directory(self, path: bytes) -> None:
        self.add("mkdir", self.show(path), 0o755 if self.chance(85) else 0o777)
        self.namespace.add_name(path, DIRECTORY)

    def bound(self, source: bytes, target: bytes, recursive: bool = False) -> None:
        """The model's part of a bind."""
        if self.task.may_mount and target and self.may_clone(source, recursive):
            self.model.attach(
                self.namespace, target, self._clone_of(source), self.namespace.below(source)
            )

    def may_clone(self, source: bytes, recursive: bool) -> bool:
        """Whether what is at ``source`` may be bound elsewhere."""
        namespace = self.namespace
        if namespace.top(namespace.mount_of(source)).unbindable:
            return False
        below = namespace.mounts_below(source)
        return recursive or not any(namespace.top(path).locked for path in below)

    def moved(self, source: bytes, target: bytes) -> None:
        namespace = self.namespace
        if not self.task.may_mount or source not in namespace.mounts or not source or not target:
            return
        parent = namespace.top(namespace.parent_of(source))
        if not parent.group and not is_below(target, source):
            namespace.move(source, target)
            if namespace.top(namespace.parent_of(target)).group:
                self.model.share(namespace.top(target))

    def propagate(self, path: bytes, flags: int) -> None:
        self.add("mount", None, self.show(path), None, flags, None)
        self.propagated(path, flags)

    def propagated(self, path: bytes, flags: int) -> None:
        if not self.task.may_mount or path not in self.namespace.mounts:
            return
        for place in [path, *(self.namespace.mounts_below(path) if flags & abi.MS_REC else ())]:
            mount = self.namespace.top(place)
            mount.unbindable = bool(flags & abi.MS_UNBINDABLE)
            if flags & abi.MS_SHARED:
                self.model.share(mount)
            elif flags & abi.MS_SLAVE:
                mount.master, mount.group = mount.group or mount.master, 0
            elif flags & (abi.MS_PRIVATE | abi.MS_UNBINDABLE):
                mount.master = mount.group = 0

    def unmount(self, path: bytes, flags: int) -> None:
        self.add("umount2", self.show(path), flags)
        namespace = self.namespace
        if not self.task.may_mount or path not in namespace.mounts or not path:
            return
        if namespace.top(path).locked or flags not in (0, abi.MNT_DETACH, abi.UMOUNT_NOFOLLOW):
            return
        if flags & abi.MNT_DETACH or not namespace.mounts_below(path):
            self.model.detach(namespace, path)

    def open(self, path: bytes, flags: int, kind: str) -> int:
        self.add(
            "openat",
            abi.AT_FDCWD,
            self.show(path),
            flags | abi.O_NONBLOCK,
            0o644 if flags & abi.O_CREAT else 0,
        )
        return self.task.opens(DescriptorModel(kind, path))

    def _clone_of(self, source: bytes) -> MountModel:
        place = self.namespace.mount_of(source)
        origin = self.namespace.top(place)
        return MountModel(origin.inner + source[len(place) :], origin.group, origin.master)
