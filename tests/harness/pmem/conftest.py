"""A tree to make images of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pmem_support import make_tree


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: owners, and mounts over /dev/fuse")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "source")
