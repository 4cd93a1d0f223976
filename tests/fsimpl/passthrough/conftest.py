"""A host directory, and tasks whose root is a passthrough of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsimpl.passthrough import PassthroughSuperblock
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
def inside(vfs: VirtualFilesystem, shared: Path) -> Task:
    """A task of root's, with umask 0, whose root is ``shared``."""
    with vfs.create_namespace("passthrough", source=bytes(shared)) as namespace:
        task = vfs.create_task(namespace)
    task.umask(0)
    return task


@pytest.fixture
def inside_user(inside: Task) -> Task:
    """A task of uid and gid 1000, without groups, beside ``inside``."""
    return inside.clone(cred=Credentials(1000, 1000))


@pytest.fixture
def superblock(vfs: VirtualFilesystem, inside: Task) -> PassthroughSuperblock:
    found = inside.fs.root.dentry.superblock
    assert isinstance(found, PassthroughSuperblock)
    return found
