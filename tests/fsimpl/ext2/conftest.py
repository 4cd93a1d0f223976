"""Images mounted in the VFS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vfs.task import Task

MountImage = Callable[..., str]


@pytest.fixture
def mount_image(task: Task) -> MountImage:
    """Mounts an image, with options; returns where."""
    places = 0

    def mount(image: Path, options: str = "", flags: int = 0) -> str:
        nonlocal places
        places += 1
        place = f"/image{places}"
        task.mkdir(place, 0o755)
        task.mount(image, place, "ext2", flags, options)
        return place

    return mount
