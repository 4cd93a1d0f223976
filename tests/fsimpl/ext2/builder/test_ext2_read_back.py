"""Random trees in images of ours: the VFS sees in the image what Linux sees in the source."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ext2_reader_support import SOURCE_FIELDS, assert_same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_ext2_random_trees import NAMES, TREES, grow

from fsimpl.ext2.builder import BuildOptions, HostSource, build, write_image
from vfs.task import Task

FIELDS = (*SOURCE_FIELDS, "st_nlink", "st_mtime_ns")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes, and files of others")
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow
    ],
)  # fmt: skip
@given(children=st.dictionaries(NAMES, TREES, max_size=8), htree=st.booleans())
def test_a_random_tree_is_read_from_its_image(
    task: Task, children: dict[bytes, Any], htree: bool
) -> None:
    if "x" not in task.listdir("/"):
        task.mkdir("/x")
    with tempfile.TemporaryDirectory(prefix="dentry-ext2-") as directory:
        top, image = Path(directory) / "tree", Path(directory) / "image"
        top.mkdir()
        files: list[bytes] = []
        for name, child in children.items():
            grow(os.path.join(os.fsencode(top), name), child, files)
        with build(HostSource(top), BuildOptions(htree=htree)) as plan:
            write_image(plan, str(image))
        task.mount(image, "/x", "ext2")
        try:
            assert_same(task, "/x", top, FIELDS)
        finally:
            task.umount2("/x", 0)
