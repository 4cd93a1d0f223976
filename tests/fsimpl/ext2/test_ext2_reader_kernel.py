"""The running kernel fills an image and mounts it again; the VFS sees the same in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ext2_reader_support import HostView, TaskView, describe, kernel_mount, mke2fs, populate

from vfs.task import Task

NO_JOURNAL = "^has_journal"
KINDS = {
    "ext2, small blocks and inodes": ("ext2", 1024, "-I", "128"),
    "ext2, blocks of 1024": ("ext2", 1024),
    "ext2, blocks of 2048": ("ext2", 2048, "-I", "256"),
    "ext2, blocks of 4096": ("ext2", 4096, "-I", "512"),
    "ext2 of the first revision": ("ext2", 1024, "-r", "0", "-O", "none"),
    "ext2 without types and indexes": ("ext2", 1024, "-O", "^filetype,^dir_index"),
    "ext3": ("ext3", 1024),
    "ext4": ("ext4", 4096),
    "ext4, blocks of 1024": ("ext4", 1024, "-O", NO_JOURNAL),
    "ext4 of 32 bits": ("ext4", 2048, "-O", f"^64bit,^metadata_csum,{NO_JOURNAL}"),
    "ext4, meta_bg": ("ext4", 1024, "-O", f"meta_bg,^resize_inode,{NO_JOURNAL}", "-g", "1024"),
    "ext4, sparse_super2": ("ext4", 1024, "-O", f"sparse_super2,{NO_JOURNAL}"),
    "ext4, bigalloc": ("ext4", 1024, "-O", f"bigalloc,{NO_JOURNAL}", "-C", "16384"),
    "ext4, ea_inode and large_dir": ("ext4", 4096, "-O", f"ea_inode,large_dir,{NO_JOURNAL}"),
    "ext4, metadata_csum_seed": ("ext4", 4096, "-O", f"metadata_csum_seed,{NO_JOURNAL}"),
    "ext4, extents without a tree": ("ext4", 1024, "-O", f"^extent,^64bit,{NO_JOURNAL}"),
}
# What the kernel's answer comes from the free counts of groups, which a mount has not synced.
STATFS = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_kernel_wrote_is_read_as_the_kernel_reads_it(
    kind: str, tmp_path: Path, task: Task, mount_image: Callable[..., str]
) -> None:
    fstype, block_size, *arguments = KINDS[kind]
    image = mke2fs(
        tmp_path / "image", "96M", "-t", str(fstype), "-b", str(block_size), *map(str, arguments)
    )
    with kernel_mount(image, "rw") as place:
        populate(place, int(block_size))
    with kernel_mount(image) as place:
        expected = describe(HostView(place))
        figures = os.statvfs(place)
    where = mount_image(image)
    found = describe(TaskView(task, where))
    assert found.keys() == expected.keys()
    for path, row in expected.items():
        assert found[path] == row, path
    assert len(expected) > 1000
    ours = task.statfs(where)
    assert [getattr(ours, field) for field in STATFS] == [
        getattr(figures, field) for field in STATFS
    ]
