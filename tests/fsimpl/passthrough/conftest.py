"""A host directory, and tasks whose root is a passthrough of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsimpl.passthrough import PassthroughSuperblock
from harness.testbed.host_sysctls import host_sysctls
from vfs import Credentials, VirtualFilesystem
from vfs.task import Task


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The host directory; owned by us, mode 755."""
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o755)
    return directory


@pytest.fixture
def inside(vfs: VirtualFilesystem, shared: Path) -> Iterator[Task]:
    """A task of root's, with umask 0, whose root is ``shared``; fs.protected_* are the host's."""
    with host_sysctls() as sysctls:
        for name in ("symlinks", "hardlinks", "regular", "fifos"):
            setattr(vfs, f"protected_{name}", sysctls.get(f"protected_{name}"))
        with vfs.create_namespace("passthrough", source=bytes(shared)) as namespace:
            task = vfs.create_task(namespace)
        task.umask(0)
        yield task


@pytest.fixture
def inside_user(inside: Task) -> Task:
    """A task of uid and gid 1000, without groups, beside ``inside``."""
    return inside.clone(cred=Credentials(1000, 1000))


@pytest.fixture
def superblock(vfs: VirtualFilesystem, inside: Task) -> PassthroughSuperblock:
    found = inside.fs.root.dentry.superblock
    assert isinstance(found, PassthroughSuperblock)
    return found


MountWith = Callable[..., Task]


@pytest.fixture
def mount_with(vfs: VirtualFilesystem, shared: Path) -> MountWith:
    """Mounts ``shared`` with options: a task of root's (or of ``cred``) whose root it is."""

    def mount(options: str = "", cred: Credentials | None = None, flags: int = 0) -> Task:
        with vfs.create_namespace(
            "passthrough", source=bytes(shared), flags=flags, options=options
        ) as namespace:
            task = vfs.create_task(namespace, cred or Credentials.root())
        task.umask(0)
        return task

    return mount
