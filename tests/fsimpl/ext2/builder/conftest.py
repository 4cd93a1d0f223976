"""Fixtures for tests that need e2fsprogs, and the host's kernel to mount an image."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from ext2_snapshot import loop_mounted

Mounted = Callable[..., AbstractContextManager[Path]]


@pytest.fixture
def e2fsprogs() -> None:
    if not all(map(shutil.which, ("e2fsck", "debugfs", "mke2fs"))):
        pytest.skip("needs e2fsprogs")


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    """Mounts an image of ours by the host's kernel, for a `with`."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("needs root, and loop devices")
    if "\text2\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs a kernel with ext2 or ext4")
    return lambda image, options="ro": loop_mounted(image, tmp_path / "mounted", options)
